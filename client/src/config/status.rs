//! How settings reach those who use them, and how what happened on the way is told.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::layer::{Rejection, Settings};
use crate::tell::{store, store_news, tell};

/// Rejections kept for receivers that are slow; older ones are dropped.
const REJECTIONS_MAX: usize = 16;

/// What the settings in use are based on.
///
/// ```no_run
/// # async fn example(config: conclave_client::Config<serde_json::Value>) -> Result<(), conclave_client::Error> {
/// use conclave_client::config::Basis;
///
/// let basis = config.status().borrow().basis;
/// match basis {
///     Basis::Cluster => println!("settings of the cluster"),
///     Basis::Cache => println!("settings of a former run: the cluster was away at the start"),
///     Basis::Local => println!("settings of this machine only"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// What the cluster holds, or held when it was last reached.
    Cluster,
    /// What the cluster held when a former run of the program wrote the cache.
    Cache,
    /// Only what this machine and the program bring along.
    Local,
}

/// How it stands with a configuration.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = conclave_client::Client::builder(["127.0.0.1:2379"]).build()?;
/// use conclave_client::config::{Basis, Status};
///
/// /// Whether to wake somebody: what is in use may not be what was asked for.
/// fn is_bad(status: &Status) -> bool {
///     status.rejection.is_some() || !status.is_connected || status.basis == Basis::Cache
/// }
///
/// let config = client.config::<serde_json::Value>().set("port", 80).start().await?;
/// assert!(!is_bad(&config.status().borrow()));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The revision of the cluster at which the settings in use were read; 0 if they are local.
    pub revision: i64,
    /// What the settings in use are based on.
    pub basis: Basis,
    /// Whether changes would be noticed. If not, the settings in use may be out of date; they stay
    /// in use, and the connection is made again as soon as that is possible.
    pub is_connected: bool,
    /// Why not, as far as that is known. For people.
    pub trouble: Option<Arc<str>>,
    /// What is wrong with the newest settings, if they are not the ones in use.
    pub rejection: Option<Rejection>,
}

impl Status {
    /// Of settings that are good, while nobody would tell of changes.
    pub(super) fn new(revision: i64, basis: Basis) -> Self {
        Self { revision, basis, is_connected: false, trouble: None, rejection: None }
    }
}

/// The giving side of a configuration.
#[derive(Debug)]
pub(super) struct Publisher<T> {
    values: watch::Sender<Arc<T>>,
    settings: watch::Sender<Arc<Settings<T>>>,
    status: watch::Sender<Status>,
    rejections: broadcast::Sender<Rejection>,
}

/// The taking side.
#[derive(Debug)]
pub(super) struct Outlet<T> {
    pub(super) values: watch::Receiver<Arc<T>>,
    pub(super) settings: watch::Receiver<Arc<Settings<T>>>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) rejections: broadcast::WeakSender<Rejection>,
}

impl<T> Publisher<T> {
    pub(super) fn new(settings: Settings<T>, status: Status) -> (Self, Outlet<T>) {
        let (values, values_out) = watch::channel(Arc::clone(&settings.value));
        let (settings, settings_out) = watch::channel(Arc::new(settings));
        let (status, status_out) = watch::channel(status);
        let (rejections, _) = broadcast::channel(REJECTIONS_MAX);
        let outlet = Outlet {
            values: values_out,
            settings: settings_out,
            status: status_out,
            rejections: rejections.downgrade(),
        };
        (Self { values, settings, status, rejections }, outlet)
    }

    /// Puts settings of the cluster in use.
    ///
    /// All of it is stored before anybody is told: who is woken by one of the channels may look at
    /// another one at once.
    pub(super) fn publish(&self, settings: Settings<T>) {
        let revision = settings.revision;
        let is_new = self.settings.borrow().tree != settings.tree;
        let status = Status { is_connected: true, ..Status::new(revision, Basis::Cluster) };
        if is_new {
            store(&self.values, Arc::clone(&settings.value));
        }
        store(&self.settings, Arc::new(settings));
        let is_news = store_news(&self.status, status);

        tell(&self.settings);
        if is_new {
            tracing::info!(revision, "settings changed");
            tell(&self.values);
        }
        if is_news {
            tell(&self.status);
        }
    }

    /// Keeps the settings in use and says why.
    pub(super) fn reject(&self, rejection: Rejection) {
        tracing::warn!(revision = rejection.revision, "{rejection}");
        let mut status = self.status.borrow().clone();
        (status.is_connected, status.trouble) = (true, None);
        status.rejection = Some(rejection.clone());
        store(&self.status, status);
        // Nobody may be listening; the status says it, too.
        self.rejections.send(rejection).ok();
        tell(&self.status);
    }

    /// Whether changes would be noticed, and why not.
    pub(super) fn connected(&self, is_connected: bool, trouble: Option<Arc<str>>) {
        // It may be told already of what comes next.
        let trouble = trouble.filter(|_| !is_connected);
        self.status.send_if_modified(|status| {
            let is_modified = (status.is_connected, &status.trouble) != (is_connected, &trouble);
            (status.is_connected, status.trouble) = (is_connected, trouble);
            is_modified
        });
    }

    /// Whether the newest settings are the ones in use.
    pub(super) fn is_current(&self) -> bool {
        self.status.borrow().rejection.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::Mutex,
        task::{Context, Wake, Waker},
    };

    use serde_json::{Value, json};

    use super::{
        super::layer::{Layer, Part},
        *,
    };

    fn settings(revision: i64, port: u16) -> Settings<Value> {
        let part = Part::new(Layer::Defaults, "", json!({"port": port}));
        Settings::new(vec![part], revision, &|_value: &Value| Ok(())).expect("valid settings")
    }

    /// Notes what can be seen by who is woken, at the moment in which it is.
    struct Onlooker {
        outlet: Outlet<Value>,
        seen: Mutex<Vec<(Value, i64, i64)>>,
    }

    impl Wake for Onlooker {
        fn wake(self: Arc<Self>) {
            let value = Value::clone(&self.outlet.values.borrow());
            let revision = self.outlet.settings.borrow().revision;
            let told = self.outlet.status.borrow().revision;
            self.seen.lock().expect("no panics").push((value, revision, told));
        }
    }

    #[test]
    fn whoever_is_woken_sees_all_of_what_is_new() {
        let status = Status { is_connected: true, ..Status::new(1, Basis::Cluster) };
        let (publisher, outlet) = Publisher::new(settings(1, 80), status);
        let (mut values, mut all) = (outlet.values.clone(), outlet.settings.clone());
        let mut told = outlet.status.clone();
        let onlooker = Arc::new(Onlooker { outlet, seen: Mutex::default() });
        let waker = Waker::from(Arc::clone(&onlooker));
        let mut context = Context::from_waker(&waker);
        let mut waits = (pin!(values.changed()), pin!(all.changed()), pin!(told.changed()));
        assert!(waits.0.as_mut().poll(&mut context).is_pending());
        assert!(waits.1.as_mut().poll(&mut context).is_pending());
        assert!(waits.2.as_mut().poll(&mut context).is_pending());

        publisher.publish(settings(2, 81));
        let seen = onlooker.seen.lock().expect("no panics").clone();
        assert_eq!(seen, vec![(json!({"port": 81}), 2, 2); 3]);
        assert!(waits.0.as_mut().poll(&mut context).is_ready());
        assert!(waits.1.as_mut().poll(&mut context).is_ready());
        assert!(waits.2.as_mut().poll(&mut context).is_ready());
    }
}
