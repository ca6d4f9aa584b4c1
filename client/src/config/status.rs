//! Publishes settings, their status, and rejections to their users.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::layer::{Rejection, Settings};
use crate::tell::{store, store_news, tell};

/// Rejections kept for slow receivers; older ones are dropped.
const REJECTIONS_MAX: usize = 16;

/// Where the settings in use come from.
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
    /// The cluster: its current settings, or those when it was last reached.
    Cluster,
    /// The cache, written by an earlier run of the program.
    Cache,
    /// Only this machine and the program.
    Local,
}

/// The status of a configuration.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = conclave_client::Client::builder(["127.0.0.1:2379"]).build()?;
/// use conclave_client::config::{Basis, Status};
///
/// /// Whether to alert somebody: the settings in use may not be the intended ones.
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
    /// Where the settings in use come from.
    pub basis: Basis,
    /// Whether changes would be noticed. If not, the settings in use may be out of date; they stay
    /// in use until the connection is restored.
    pub is_connected: bool,
    /// Why not, if it is known. For people.
    pub trouble: Option<Arc<str>>,
    /// What is wrong with the newest settings, if they are not the ones in use.
    pub rejection: Option<Rejection>,
}

impl Status {
    /// The status of good settings before changes are followed.
    pub(super) fn new(revision: i64, basis: Basis) -> Self {
        Self { revision, basis, is_connected: false, trouble: None, rejection: None }
    }
}

/// The sending side of a configuration.
#[derive(Debug)]
pub(super) struct Publisher<T> {
    values: watch::Sender<Arc<T>>,
    settings: watch::Sender<Arc<Settings<T>>>,
    status: watch::Sender<Status>,
    rejections: broadcast::Sender<Rejection>,
}

/// The receiving side of a configuration.
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

    /// Applies new settings of the cluster.
    ///
    /// Everything is stored before anyone is woken: a task woken by one of the channels may read
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

    /// Keeps the settings in use and publishes why.
    pub(super) fn reject(&self, rejection: Rejection) {
        tracing::warn!(revision = rejection.revision, "{rejection}");
        let mut status = self.status.borrow().clone();
        (status.is_connected, status.trouble) = (true, None);
        status.rejection = Some(rejection.clone());
        store(&self.status, status);
        // There may be no receiver; the status has it, too.
        self.rejections.send(rejection).ok();
        tell(&self.status);
    }

    /// Records whether changes would be noticed, and if not, why.
    pub(super) fn connected(&self, is_connected: bool, trouble: Option<Arc<str>>) {
        // The reason may already belong to the next interruption.
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

    /// Records what is visible to a task at the moment it is woken.
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
