//! Building and starting a configuration.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Config, Error,
    codec::Codec,
    follow::{Debounce, Follower, Plan},
    layer::{Layer, Part, Rejection, Settings, Validate},
    source::{Fetched, SOURCES_MAX, Source, request},
    status::{Basis, Publisher, Status},
    tree::{DEPTH_MAX, place, segments},
};
use crate::{cache::Cache, client::Client};

/// What to do at the start if the cluster cannot be reached or its settings are refused.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use conclave_client::config::{Boot, Source};
///
/// // Settings up to one day old are better than no start; older ones are not.
/// let config = client
///     .with_timeout(Duration::from_secs(3)) // for the first answer
///     .config::<serde_json::Value>()
///     .app(Source::prefix("config/app/"))
///     .cache("/var/cache/app.config")
///     .max_staleness(Duration::from_secs(24 * 60 * 60))
///     .boot(Boot::UseCache)
///     .start()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Boot {
    /// Fail: the program must not run without the cluster's settings.
    FailFast,
    /// Use the settings that the last run cached ([`Builder::cache`]); fail if there are none or
    /// they are too old.
    #[default]
    UseCache,
    /// Like [`Boot::UseCache`], but instead of failing use only the settings of this machine and of
    /// the program.
    UseDefaults,
}

/// Configures a [`Config`]; see [`Client::config`](crate::Client::config).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = conclave_client::Client::builder(["127.0.0.1:2379"]).build()?;
/// #[derive(Debug, serde::Deserialize)]
/// struct App { workers: u32 }
///
/// let builder = client
///     .config()
///     .defaults(serde_json::json!({"workers": 4}))
///     .set("workers", 0) // e.g. of the command line
///     .validate(|app: &App| if app.workers > 0 { Ok(()) } else { Err("no workers") });
/// let error = builder.start().await.unwrap_err();
/// assert_eq!(error.to_string(), "settings refused: no workers");
/// # Ok(()) }
/// ```
#[must_use = "a builder does nothing until `start` is called"]
pub struct Builder<T> {
    client: Client,
    sources: Vec<Source>,
    local: Vec<Local>,
    validate: Box<Validate<T>>,
    cache: Option<PathBuf>,
    max_staleness: Option<Duration>,
    boot: Boot,
    debounce: Debounce,
}

/// A local source, read at the start.
enum Local {
    Part(Part),
    /// It cannot be used, which is reported at the start.
    Broken(String),
    File {
        path: PathBuf,
        is_optional: bool,
    },
}

impl Local {
    fn layer(&self) -> Layer {
        match self {
            Self::Part(part) => part.origin.layer,
            Self::Broken(_) => Layer::Defaults,
            Self::File { .. } => Layer::File,
        }
    }
}

impl<T> Builder<T> {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            sources: Vec::new(),
            local: Vec::new(),
            validate: Box::new(|_value| Ok(())),
            cache: None,
            max_staleness: None,
            boot: Boot::default(),
            debounce: Debounce { quiet: Duration::from_millis(50), max: Duration::from_secs(1) },
        }
    }

    /// Settings that apply where no other source sets anything, e.g. `T::default()` or
    /// `serde_json::json!({...})`.
    pub fn defaults(mut self, defaults: impl Serialize) -> Self {
        self.local.push(match serde_json::to_value(defaults) {
            Ok(tree) => Local::Part(Part::new(Layer::Defaults, "", tree)),
            Err(error) => Local::Broken(format!("the defaults: {error}")),
        });
        self
    }

    /// Adds a file that must exist; its extension selects the format. It is read once, at the
    /// start. Of several files, later ones win.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.local.push(Local::File { path: path.into(), is_optional: false });
        self
    }

    /// Like [`Builder::file`], for a file that may be missing.
    pub fn optional_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.local.push(Local::File { path: path.into(), is_optional: true });
        self
    }

    /// Adds keys of the cluster that this application shares with others. Of several sources, later
    /// ones win; all sources of [`Builder::app`] override them.
    pub fn shared(mut self, source: Source) -> Self {
        self.sources.push(source.layer(Layer::Shared));
        self
    }

    /// Adds keys of the cluster for this application. Of several sources, later ones win.
    pub fn app(mut self, source: Source) -> Self {
        self.sources.push(source.layer(Layer::App));
        self
    }

    /// Adds the environment variables that start with `prefix`. The rest of the name, in lower
    /// case, is the path, with `__` between its segments: with the prefix `APP_`, `APP_DB__PORT`
    /// sets `db.port`.
    pub fn environment(self, prefix: &str) -> Self {
        // Variables that are not UTF-8 cannot be settings.
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        self.variables(prefix, variables)
    }

    /// Like [`Builder::environment`], with the given variables.
    pub fn variables(
        mut self,
        prefix: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut variables: Vec<(String, String)> = variables.into_iter().collect();
        variables.sort();
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(prefix).filter(|rest| !rest.is_empty()) else {
                continue;
            };
            let path = rest.to_lowercase().replace("__", ".");
            self.local.push(local(Layer::Environment, &path, &name, Value::from(value)));
        }
        self
    }

    /// Sets one path, whatever the other layers set.
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        self.local.push(local(Layer::Overrides, path, path, value.into()));
        self
    }

    /// Refuses settings that the type allows but the program cannot use. Called for every new state
    /// of the settings; must be quick.
    pub fn validate<E: fmt::Display>(
        mut self,
        validate: impl Fn(&T) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        self.validate = Box::new(move |value| validate(value).map_err(|error| error.to_string()));
        self
    }

    /// Keeps the last settings of the cluster in this file, for a start without the cluster; see
    /// [`Boot`]. Only its owner can read the file. Each configuration of each process needs its own
    /// file.
    pub fn cache(mut self, path: impl Into<PathBuf>) -> Self {
        self.cache = Some(path.into());
        self
    }

    /// How long ago the cluster must have confirmed the cached settings for them to be used.
    /// Default: any time. While the cluster is reachable, settings are read twice within this time,
    /// but at most once a second.
    pub fn max_staleness(mut self, age: Duration) -> Self {
        self.max_staleness = Some(age);
        self
    }

    /// What to do at the start if the cluster cannot be reached within the client's
    /// [timeout](crate::Builder::timeout) or its settings are refused. Default [`Boot::UseCache`].
    pub fn boot(mut self, boot: Boot) -> Self {
        self.boot = boot;
        self
    }

    /// Applies a change when nothing more has changed for `quiet`, at the latest after `max`. The
    /// settings in use are always the state of the cluster at one revision. Default 50 ms and 1 s.
    pub fn debounce(mut self, quiet: Duration, max: Duration) -> Self {
        self.debounce = Debounce { quiet, max };
        self
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> Builder<T> {
    /// Reads all sources, then follows those in the cluster, in a task on the current tokio runtime
    /// that ends with the last clone of the [`Config`].
    ///
    /// # Errors
    /// [`Error::Setup`] if a local source cannot be used; [`Error::Rejected`] if the settings are
    /// refused; [`Error::Cluster`] if the cluster could not be read; and [`Error::NoCache`] if the
    /// cache could not replace it.
    pub async fn start(self) -> Result<Config<T>, Error> {
        let boot = self.boot;
        let plan = self.plan().await?;
        if plan.sources.is_empty() {
            let settings = plan.settings(None).map_err(Error::rejected)?;
            let status = Status { is_connected: true, ..Status::new(0, Basis::Local) };
            let (_publisher, outlet) = Publisher::new(settings, status);
            return Ok(Config::new(outlet, None));
        }
        let booted = plan.boot(boot).await?;
        let (publisher, outlet) = Publisher::new(booted.settings, booted.status);
        let follower = Follower::new(plan, publisher, booted.fetched);
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run()));
        Ok(Config::new(outlet, Some(Arc::new(task))))
    }

    async fn plan(mut self) -> Result<Plan<T>, Error> {
        if self.sources.len() > SOURCES_MAX {
            return Err(Error::Setup(format!("more than {SOURCES_MAX} sources in the cluster")));
        }
        // Both sorts are stable, so the order within a layer is kept.
        self.sources.sort_by_key(Source::rank);
        self.local.sort_by_key(Local::layer);
        let mut parts = Vec::new();
        for local in self.local {
            match local {
                Local::Part(part) => parts.push(part),
                Local::Broken(reason) => return Err(Error::Setup(reason)),
                Local::File { path, is_optional } => {
                    parts.extend(read(path, is_optional).await.map_err(Error::Setup)?);
                }
            }
        }
        let request = request(&self.sources, 0);
        let max_staleness = self.max_staleness;
        // With full keys: the same keys in another namespace are other settings.
        let whole = self.client.namespace().txn(request.clone()).map_err(Error::Cluster)?;
        let cache = self.cache.map(|path| Cache::new(path, max_staleness, &whole));
        Ok(Plan {
            client: self.client,
            sources: self.sources,
            request,
            local: parts,
            validate: self.validate,
            cache,
            debounce: self.debounce,
        })
    }
}

impl<T> fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// One local setting.
fn local(layer: Layer, path: &str, key: &str, value: Value) -> Local {
    if segments(path).count() > DEPTH_MAX {
        return Local::Broken(format!("{key}: nested too deep"));
    }
    let path: Vec<&str> = segments(path).collect();
    Local::Part(Part::new(layer, key, place(path.into_iter(), value)))
}

async fn read(path: PathBuf, is_optional: bool) -> Result<Option<Part>, String> {
    let name = path.display().to_string();
    let about = |reason: &dyn fmt::Display| format!("{name}: {reason}");
    let Some((codec, _)) = Codec::of_name(&name) else {
        return Err(about(&"the name does not tell whether it is JSON, TOML or YAML"));
    };
    let document = match tokio::fs::read(&path).await {
        Err(error) if is_optional && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        document => document.map_err(|error| about(&error))?,
    };
    let tree = codec.decode(&document).map_err(|reason| about(&reason))?;
    let is_empty = tree.is_null();
    Ok((!is_empty).then(|| Part::new(Layer::File, name, tree)))
}

/// The initial state of a configuration.
struct Booted<T> {
    settings: Settings<T>,
    status: Status,
    /// The cluster's answer, if there was one.
    fetched: Option<Fetched>,
}

impl<T: DeserializeOwned> Plan<T> {
    async fn boot(&self, boot: Boot) -> Result<Booted<T>, Error> {
        let (error, fetched) = match self.fetch().await {
            Ok(answer) => {
                let fetched = Fetched::new(answer.clone());
                match self.settings(Some(&fetched)) {
                    Ok(settings) => {
                        self.save(answer).await;
                        return Ok(booted(settings, Basis::Cluster, Some(fetched), None));
                    }
                    Err(rejection) => (Error::rejected(rejection), Some(fetched)),
                }
            }
            Err(error) => (Error::Cluster(error), None),
        };
        if boot == Boot::FailFast {
            return Err(error);
        }
        tracing::warn!(%error, "starting without the settings of the cluster");
        let rejection = error.rejection().cloned();
        let cached = match &self.cache {
            Some(cache) => self.cached(cache.clone()).await,
            None => Err("there is no cache".to_owned()),
        };
        match cached {
            Ok(settings) => Ok(booted(settings, Basis::Cache, fetched, rejection)),
            Err(reason) if boot == Boot::UseDefaults => {
                tracing::warn!(reason, "starting with local settings only");
                let settings = self.settings(None).map_err(Error::rejected)?;
                Ok(booted(settings, Basis::Local, fetched, rejection))
            }
            Err(_) if self.cache.is_none() => Err(error),
            Err(reason) => Err(Error::NoCache { cluster: Box::new(error), reason }),
        }
    }

    async fn cached(&self, cache: Cache) -> Result<Settings<T>, String> {
        let loaded = tokio::task::spawn_blocking(move || cache.load()).await;
        let answer = loaded.map_err(|error| error.to_string())??;
        let fetched = Fetched::new(answer);
        self.settings(Some(&fetched)).map_err(|rejection| rejection.to_string())
    }
}

fn booted<T>(
    settings: Settings<T>,
    basis: Basis,
    fetched: Option<Fetched>,
    rejection: Option<Rejection>,
) -> Booted<T> {
    let is_connected = fetched.is_some();
    let status = Status { is_connected, rejection, ..Status::new(settings.revision, basis) };
    Booted { settings, status, fetched }
}
