//! Live configuration: typed settings that follow the cluster.
//!
//! A [`Config`] merges the settings of several sources in a fixed order; each layer overrides those
//! before it:
//!
//! ```text
//! defaults < file < shared keys < app keys < environment < overrides
//! ```
//!
//! It deserializes the result into a type of the application, validates it, and keeps it up to
//! date. All keys in the cluster are read in one transaction, so the settings in use are always the
//! state of the cluster at *one* revision. If new settings cannot be read or are refused, the last
//! good ones stay in use, and the [status](Config::status) says why.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use conclave_client::config::{Secret, Source};
//!
//! #[derive(Debug, serde::Deserialize)]
//! struct App { port: u16, workers: usize, password: Secret<String> }
//!
//! let config = client
//!     .config::<App>()
//!     .defaults(serde_json::json!({"port": 8080, "workers": 4}))
//!     .optional_file("app.toml")
//!     .shared(Source::prefix("config/shared/"))
//!     .app(Source::document("config/app.yaml"))
//!     .environment("APP_")
//!     .validate(|app: &App| if app.workers > 0 { Ok(()) } else { Err("no workers") })
//!     .cache("app.cache")
//!     .start()
//!     .await?;
//!
//! println!("listening on port {}", config.current().port);
//! println!("{}", config.explain("port"));
//!
//! let mut workers = config.on_change("workers");
//! while let Some(change) = workers.next().await {
//!     println!("{:?} -> {:?} at revision {}", change.old, change.new, change.revision);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | module | what |
//! |---|---|
//! | `layer` | the layers, the origin of settings, merged settings |
//! | `source` | reading settings from keys of the cluster |
//! | `codec` | decoding JSON, TOML, YAML |
//! | `tree`, `typed` | merging trees, and deserializing a tree into a type |
//! | `follow` | the task that keeps settings up to date |
//! | `history` | earlier values of keys, and rolling back to them |

mod builder;
mod codec;
mod follow;
mod history;
mod layer;
mod marks;
mod secret;
mod source;
mod status;
mod tree;
mod typed;

use std::{fmt, sync::Arc};

use futures::{Stream, stream};
use serde_json::{Map, Value};
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::client::Client;
use layer::Settings;
use source::Fetched;
use status::Outlet;

pub use self::{
    builder::{Boot, Builder},
    codec::Codec,
    history::{History, Release, Rollback, RolledBack},
    layer::{Explanation, Layer, Origin, Rejection},
    secret::Secret,
    source::Source,
    status::{Basis, Status},
    tree::find,
};

impl Client {
    /// Starts to configure settings of type `T`; see [`config`](crate::config).
    pub fn config<T>(&self) -> Builder<T> {
        Builder::new(self.clone())
    }

    /// Reads sources in the cluster, merged in the order given. Returns the tree and its revision.
    /// `revision` is 0 for the current state, or a revision that is not compacted.
    ///
    /// # Errors
    /// [`Error::Cluster`] if the sources cannot be read, [`Error::Rejected`] if they cannot be
    /// decoded.
    pub async fn read_config(
        &self,
        sources: &[Source],
        revision: i64,
    ) -> Result<(Value, i64), Error> {
        let answer = self.send_txn(source::request(sources, revision)).await?;
        let fetched = Fetched::new(answer.into_inner());
        let mut tree = Value::Object(Map::new());
        for part in fetched.parts(sources).map_err(Error::rejected)? {
            tree::merge(&mut tree, &part.tree);
        }
        Ok((tree, if revision > 0 { revision } else { fetched.revision }))
    }
}

/// Why a configuration could not be started or changed.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use conclave_client::config::{Error, Source};
///
/// let config = client.config::<serde_json::Value>().app(Source::document("config/app.toml"));
/// match config.start().await {
///     Ok(config) => println!("{}", config.tree()),
///     Err(Error::Rejected(rejection)) => match &rejection.origin {
///         Some(origin) => eprintln!("correct {} in {origin}: {}", rejection.path, rejection.reason),
///         None => eprintln!("{rejection}"),
///     },
///     Err(error @ (Error::Cluster(_) | Error::NoCache { .. })) => eprintln!("try again: {error}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A local source, or the combination of sources, cannot be used: correct it.
    #[error("{0}")]
    Setup(String),
    /// The settings have the wrong type, or the program refuses them: correct them.
    #[error("{0}")]
    Rejected(Box<Rejection>),
    /// The cluster could not be read.
    #[error(transparent)]
    Cluster(#[from] crate::Error),
    /// Neither the cluster nor the cache could be used.
    #[error("{cluster}; and no settings from the cache: {reason}")]
    NoCache {
        /// Why the cluster could not be used.
        cluster: Box<Error>,
        /// Why the cache could not be used.
        reason: String,
    },
    /// Another client changed the keys at the same time, so nothing was written: read them and try
    /// again.
    #[error("the keys were changed by somebody else at the same time; nothing was written")]
    Conflict,
}

impl Error {
    fn rejected(rejection: Rejection) -> Self {
        Self::Rejected(Box::new(rejection))
    }

    fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }
}

/// Settings that follow the cluster. Cloning is cheap; dropping the last clone ends the background
/// task. Made by [`Client::config`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = conclave_client::Client::builder(["127.0.0.1:2379"]).build()?;
/// use conclave_client::Config;
///
/// #[derive(serde::Deserialize)]
/// struct App { port: u16 }
///
/// // Without a source in the cluster nothing is requested: enough for a test.
/// let config: Config<App> = client.config().defaults(serde_json::json!({"port": 8080}))
///     .variables("APP_", [("APP_PORT".to_owned(), "80".to_owned())])
///     .start().await?;
/// assert_eq!(config.current().port, 80);
/// assert_eq!(config.revision(), 0, "nothing comes from the cluster");
/// # Ok(()) }
/// ```
pub struct Config<T> {
    outlet: Arc<Outlet<T>>,
    task: Option<Arc<AbortOnDropHandle<()>>>,
}

impl<T> Config<T> {
    fn new(outlet: Outlet<T>, task: Option<Arc<AbortOnDropHandle<()>>>) -> Self {
        Self { outlet: Arc::new(outlet), task }
    }

    /// The settings in use. The returned value never changes; call this again for newer settings.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.outlet.values.borrow())
    }

    /// A receiver of the settings in use, marked as changed whenever a setting has changed.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.outlet.values.clone()
    }

    /// The changes of the setting or table at a dotted path, from now on; the empty path means all
    /// settings.
    #[must_use]
    pub fn on_change(&self, path: impl Into<String>) -> Changes<T> {
        let mut settings = self.outlet.settings.clone();
        let seen = Arc::clone(&settings.borrow_and_update());
        Changes { path: path.into(), settings, seen }
    }

    /// Which sources set the value at a dotted path, and which of them wins.
    #[must_use]
    pub fn explain(&self, path: &str) -> Explanation {
        let settings = Arc::clone(&self.outlet.settings.borrow());
        settings.explain(path)
    }

    /// All settings in use as one tree, with secrets redacted.
    #[must_use]
    pub fn tree(&self) -> Value {
        self.outlet.settings.borrow().shown("").unwrap_or_default()
    }

    /// The revision of the cluster at which the settings in use were read; 0 if they are local.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.outlet.settings.borrow().revision
    }

    /// Whether the settings in use are up to date, where they come from, and what is wrong with
    /// newer ones.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.outlet.status.clone()
    }

    /// All rejections from now on. A receiver that does not keep up loses the oldest ones.
    #[must_use]
    pub fn rejections(&self) -> broadcast::Receiver<Rejection> {
        match self.outlet.rejections.upgrade() {
            Some(sender) => sender.subscribe(),
            // Local settings never change: return a closed channel.
            None => broadcast::channel(1).1,
        }
    }
}

impl<T> Clone for Config<T> {
    fn clone(&self) -> Self {
        Self { outlet: Arc::clone(&self.outlet), task: self.task.clone() }
    }
}

impl<T> fmt::Debug for Config<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("status", &*self.outlet.status.borrow()).finish()
    }
}

/// A setting that changed.
///
/// ```
/// use conclave_client::config::Change;
/// use serde_json::json;
///
/// /// A line for a log.
/// fn line(change: &Change) -> String {
///     let text = |value: &Option<serde_json::Value>| match value {
///         Some(value) => value.to_string(),
///         None => "unset".to_owned(),
///     };
///     let Change { path, old, new, revision } = change;
///     format!("{path}: {} -> {} (revision {revision})", text(old), text(new))
/// }
/// let (path, old, new) = ("workers".to_owned(), None, Some(json!(8)));
/// assert_eq!(line(&Change { path, old, new, revision: 17 }), "workers: unset -> 8 (revision 17)");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The path that is watched.
    pub path: String,
    /// The old value, with secrets redacted; `None` if it was not set.
    pub old: Option<Value>,
    /// The new value, with secrets redacted; `None` if it is not set.
    pub new: Option<Value>,
    /// The revision of the cluster at which the new value was read.
    pub revision: i64,
}

/// The changes of one setting; see [`Config::on_change`].
///
/// ```no_run
/// # async fn example(config: conclave_client::Config<serde_json::Value>) -> Result<(), conclave_client::Error> {
/// // Everything below `log` together: the level, the format, and later settings.
/// let mut changes = config.on_change("log");
/// tokio::spawn(async move {
///     while let Some(change) = changes.next().await {
///         println!("log as of revision {}: {:?}", change.revision, change.new);
///     }
/// });
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Changes<T> {
    path: String,
    settings: watch::Receiver<Arc<Settings<T>>>,
    /// The settings that were reported last.
    seen: Arc<Settings<T>>,
}

impl<T> Changes<T> {
    /// Waits for the next change; `None` after the configuration was dropped. A reader that does
    /// not keep up sees several changes as one. Cancel-safe.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            self.settings.changed().await.ok()?;
            let new = Arc::clone(&self.settings.borrow_and_update());
            let old = std::mem::replace(&mut self.seen, Arc::clone(&new));
            if find(&old.tree, &self.path) != find(&new.tree, &self.path) {
                return Some(Change {
                    old: old.shown(&self.path),
                    new: new.shown(&self.path),
                    revision: new.revision,
                    path: self.path.clone(),
                });
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Change> + Send + use<T>
    where
        T: Send + Sync + 'static,
    {
        stream::unfold(self, async |mut changes| Some((changes.next().await?, changes)))
    }
}
