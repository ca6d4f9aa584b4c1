//! Layers: where settings come from, and which of them win.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    marks::Marks,
    tree::{decides, find, merge, place, reach},
    typed,
};

/// The kinds of sources, in the fixed order in which they are merged: if two layers have a setting,
/// the later one here wins.
///
/// ```
/// use conclave_client::config::Layer;
///
/// assert!(Layer::Environment > Layer::App, "a variable wins over a key of the cluster");
/// let order = Layer::ORDER.map(|layer| layer.to_string());
/// println!("from the weakest to the strongest: {}", order.join(", "));
/// assert_eq!(order.last().unwrap(), "overrides");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// Built into the program.
    Defaults,
    /// A file on this machine.
    File,
    /// Keys of the cluster shared by several applications.
    Shared,
    /// Keys of the cluster of this application.
    App,
    /// Environment variables.
    Environment,
    /// Set by the program over everything else, for example from its command line.
    Overrides,
}

impl Layer {
    /// All layers, weakest first.
    pub const ORDER: [Self; 6] =
        [Self::Defaults, Self::File, Self::Shared, Self::App, Self::Environment, Self::Overrides];
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Defaults => "defaults",
            Self::File => "file",
            Self::Shared => "shared",
            Self::App => "app",
            Self::Environment => "environment",
            Self::Overrides => "overrides",
        })
    }
}

/// The source of a setting.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = conclave_client::Client::builder(["127.0.0.1:2379"]).build()?;
/// use conclave_client::config::{Layer, Origin};
///
/// let app = client.config::<serde_json::Value>().set("port", 80).start().await?;
/// let from = app.explain("port").origin().cloned();
/// let key = "port".to_owned();
/// assert_eq!(from, Some(Origin { layer: Layer::Overrides, key, revision: 0 }));
/// assert_eq!(from.unwrap().to_string(), "overrides port");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The layer.
    pub layer: Layer,
    /// The path of the file, the key in the cluster, the name of the variable, or the path set by
    /// the program.
    pub key: String,
    /// The revision in which the key was last changed; 0 outside the cluster.
    pub revision: i64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.layer)?;
        if !self.key.is_empty() {
            write!(f, " {}", self.key)?;
        }
        if self.revision > 0 {
            write!(f, " at revision {}", self.revision)?;
        }
        Ok(())
    }
}

/// The settings of one source.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) origin: Origin,
    pub(super) tree: Value,
}

impl Part {
    pub(super) fn new(layer: Layer, key: impl Into<String>, tree: Value) -> Self {
        Self { origin: Origin { layer, key: key.into(), revision: 0 }, tree }
    }
}

/// Why new settings were refused. The settings in use stay as they were.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = conclave_client::Client::builder(["127.0.0.1:2379"]).build()?;
/// use conclave_client::config::Error;
///
/// #[derive(Debug, serde::Deserialize)]
/// struct App { port: u16 }
///
/// let variables = [("APP_PORT".to_owned(), "many".to_owned())];
/// let refused = client.config::<App>().variables("APP_", variables).start().await.unwrap_err();
/// let Error::Rejected(rejection) = refused else { panic!("{refused}") };
/// assert_eq!(rejection.path, "port");
/// assert_eq!(rejection.origin.unwrap().key, "APP_PORT"); // where to correct it
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The revision of the cluster at which they were read; 0 if the cluster was not read.
    pub revision: i64,
    /// The dotted path of the bad setting; empty if it is not a single setting.
    pub path: String,
    /// The source of the bad setting, if it is known.
    pub origin: Option<Origin>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings refused: ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)?;
        if let Some(origin) = &self.origin {
            write!(f, " (from {origin})")?;
        }
        Ok(())
    }
}

/// The settings at one revision: merged, deserialized into the application's type, and valid.
#[derive(Debug)]
pub(super) struct Settings<T> {
    pub(super) value: std::sync::Arc<T>,
    pub(super) tree: Value,
    parts: Vec<Part>,
    marks: Marks,
    /// Marks the secrets in a tree, as far as it can be deserialized as a `T`.
    mark: fn(&Value, &mut Marks) -> Result<(), typed::Fault>,
    pub(super) revision: i64,
}

/// Checks whether settings are fit for use.
pub(super) type Validate<T> = dyn Fn(&T) -> Result<(), String> + Send + Sync;

impl<T: DeserializeOwned> Settings<T> {
    /// Merges `parts`, which are sorted by layer.
    ///
    /// # Errors
    /// If the result cannot be deserialized, or `validate` refuses it.
    pub(super) fn new(
        parts: Vec<Part>,
        revision: i64,
        validate: &Validate<T>,
    ) -> Result<Self, Rejection> {
        let mut tree = Value::Object(Map::new());
        for part in &parts {
            merge(&mut tree, &part.tree);
        }
        let mut marks = Marks::default();
        let value = typed::read(&tree, &mut marks).map_err(|fault| Rejection {
            revision,
            path: fault.path().to_owned(),
            origin: winner(&parts, fault.path()).map(|part| part.origin.clone()),
            reason: fault.reason.clone(),
        })?;
        validate(&value).map_err(|reason| Rejection {
            revision,
            path: String::new(),
            origin: None,
            reason,
        })?;
        let mark = |tree: &Value, marks: &mut Marks| typed::read::<T>(tree, marks).map(drop);
        Ok(Self { value: std::sync::Arc::new(value), tree, parts, marks, mark, revision })
    }
}

impl<T> Settings<T> {
    /// The value at `path`, with secrets redacted.
    pub(super) fn shown(&self, path: &str) -> Option<Value> {
        find(&self.marks.redact(self.tree.clone()), path).cloned()
    }

    pub(super) fn explain(&self, path: &str) -> Explanation {
        let deciding = self.parts.iter().filter(|part| decides(&part.tree, path));
        let sources =
            deciding.map(|part| (part.origin.clone(), self.said(&part.tree, path))).collect();
        Explanation { path: path.to_owned(), value: self.shown(path), sources }
    }

    /// The value of one part at `path`, with secrets redacted. Other parts may have replaced it, so
    /// it may never have been deserialized: it is deserialized here as if this part had priority,
    /// to find its secrets.
    fn said(&self, part: &Value, path: &str) -> Option<Value> {
        let (steps, value) = reach(part, path);
        let mut marks = self.marks.clone();
        let mut tree = self.tree.clone();
        merge(&mut tree, &place(steps.iter().copied(), value.clone()));
        marks.expect(steps.into_iter().map(str::to_owned).collect());
        // A fault further up does not matter: that level is merged from several parts.
        if value.is_null() || (self.mark)(&tree, &mut marks).is_ok() {
            marks.complete();
        }
        find(&marks.redact(part.clone()), path).cloned()
    }
}

/// The part that determines `path`. A missing setting has none, unless the table that lacks it
/// comes from a single part.
fn winner<'a>(parts: &'a [Part], path: &str) -> Option<&'a Part> {
    let mut deciding = parts.iter().rev().filter(|part| decides(&part.tree, path));
    let last = deciding.next()?;
    let is_shared =
        matches!(find(&last.tree, path), Some(Value::Object(_))) && deciding.next().is_some();
    (!is_shared).then_some(last)
}

/// Explains where a setting comes from: every source that sets it.
///
/// Its `Display` output has one line for the value and one for each source, the winner first:
/// ```text
/// db.port = "5433"
///   environment APP_DB__PORT: "5433"
///   app config/app.toml at revision 17: 5432
///   defaults: 5432
/// ```
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = conclave_client::Client::builder(["127.0.0.1:2379"]).build()?;
/// let app = client.config::<serde_json::Value>();
/// let app = app.defaults(serde_json::json!({"db": {"port": 5432}})).set("db.port", 5433);
/// let explanation = app.start().await?.explain("db.port");
/// assert_eq!(explanation.value, Some(5433.into()));
/// let [(defaults, weaker), _] = &explanation.sources[..] else { panic!("{explanation}") };
/// assert_eq!((defaults.to_string().as_str(), weaker), ("defaults", &Some(5432.into())));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The dotted path that was asked for.
    pub path: String,
    /// The value in use; `None` if no source has one. Secrets are redacted.
    pub value: Option<Value>,
    /// The value from each source, weakest first; `None` where a source replaced the table that
    /// held the setting by something else. Tables of several sources are merged. Secrets are
    /// redacted, and so is what does not fit the application's type.
    pub sources: Vec<(Origin, Option<Value>)>,
}

impl Explanation {
    /// The source that won, if there is one.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.sources.last().map(|(origin, _)| origin)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "not set".to_owned(),
        };
        write!(f, "{} = {}", self.path, text(&self.value))?;
        for (origin, value) in self.sources.iter().rev() {
            write!(f, "\n  {origin}: {}", text(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::{super::secret::Secret, *};

    #[derive(Debug, Deserialize)]
    struct App {
        port: u16,
        #[expect(dead_code, reason = "only read by serde")]
        password: Option<Secret<String>>,
    }

    fn settings(parts: Vec<Part>) -> Result<Settings<App>, Rejection> {
        let validate = |app: &App| if app.port > 9 { Ok(()) } else { Err("low port".to_owned()) };
        Settings::new(parts, 7, &validate)
    }

    #[test]
    fn the_order_of_layers_is_fixed_and_printable() {
        assert!(Layer::ORDER.is_sorted());
        let names = Layer::ORDER.map(|layer| layer.to_string()).join(" < ");
        assert_eq!(names, "defaults < file < shared < app < environment < overrides");
    }

    #[test]
    fn an_explanation_names_every_source_and_no_secret() {
        let mut app = Part::new(Layer::App, "config/app", json!({"port": 20, "password": "x"}));
        app.origin.revision = 5;
        let parts = vec![
            Part::new(Layer::Defaults, "", json!({"port": 10})),
            app,
            Part::new(Layer::Environment, "APP_PORT", json!({"port": "30"})),
        ];
        let settings = settings(parts).unwrap();
        let text = settings.explain("port").to_string();
        let expected = "port = \"30\"\n  environment APP_PORT: \"30\"\n  \
                        app config/app at revision 5: 20\n  defaults: 10";
        assert_eq!(text, expected);
        assert_eq!(settings.explain("port").origin().unwrap().layer, Layer::Environment);
        let text = settings.explain("").to_string() + &settings.explain("password").to_string();
        assert!(text.contains("(secret)") && !text.contains("\"x\""), "{text}");
        assert_eq!(settings.explain("none").value, None);
    }

    #[test]
    fn a_rejection_names_the_culprit() {
        let parts = vec![
            Part::new(Layer::Defaults, "", json!({"port": 10})),
            Part::new(Layer::File, "app.toml", json!({"port": "many"})),
        ];
        let rejection = settings(parts).unwrap_err();
        assert_eq!(rejection.path, "port");
        assert_eq!(rejection.origin.unwrap().key, "app.toml");
        let rejection = settings(vec![Part::new(Layer::App, "k", json!({"port": 3}))]).unwrap_err();
        assert_eq!(rejection.to_string(), "settings refused: low port");
    }
}
