//! Records where secrets are in a tree, and redacts them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::secret::REDACTED;

/// The positions of secrets, each as the keys and indices that lead there, because a key may
/// contain a dot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marks {
    secrets: BTreeSet<Vec<String>>,
    awaited: Option<Vec<String>>,
}

impl Marks {
    pub(super) fn insert(&mut self, steps: Vec<String>) {
        self.secrets.insert(steps);
    }

    /// Treats the value here as secret until it has been read completely; only then its secrets are
    /// known.
    pub(super) fn expect(&mut self, steps: Vec<String>) {
        self.awaited = Some(steps);
    }

    /// Records that the table entry at `steps` was read completely.
    pub(super) fn arrive(&mut self, steps: impl FnOnce() -> Vec<String>) {
        self.awaited.take_if(|awaited| *awaited == steps());
    }

    /// Records that everything expected was read.
    pub(super) fn complete(&mut self) {
        self.awaited = None;
    }

    /// The tree with secrets redacted.
    pub(super) fn redact(&self, mut tree: Value) -> Value {
        for steps in self.secrets.iter().chain(&self.awaited) {
            hide(&mut tree, steps);
        }
        tree
    }
}

/// Redacts the value at `steps`, or whatever is there instead of a table or list on the way.
fn hide(value: &mut Value, steps: &[String]) {
    if let Some((step, steps)) = steps.split_first() {
        let below = match value {
            Value::Object(table) => table.get_mut(step),
            Value::Array(list) => match step.parse::<usize>() {
                Ok(index) => list.get_mut(index),
                Err(_) => return hide(value, &[]),
            },
            Value::Null => None,
            _ => return hide(value, &[]),
        };
        if let Some(below) = below {
            hide(below, steps);
        }
    } else {
        *value = Value::from(REDACTED);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::{
        super::{
            layer::{Layer, Part, Settings},
            secret::Secret,
            typed::read,
        },
        *,
    };

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct App {
        port: u16,
        password: Option<Secret<String>>,
        tokens: Vec<Secret<String>>,
        passwords: HashMap<String, Secret<String>>,
        replica: Option<Replica>,
        login: Login,
        range: Range,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read by serde")]
    struct Replica {
        port: u16,
        password: Secret<String>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Login {
        #[default]
        None,
        Basic {
            #[expect(dead_code, reason = "only read by serde")]
            password: Secret<String>,
        },
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(try_from = "(u8, u8)")]
    struct Range;

    impl TryFrom<(u8, u8)> for Range {
        type Error = &'static str;

        fn try_from((low, high): (u8, u8)) -> Result<Self, Self::Error> {
            if low <= high { Ok(Self) } else { Err("the wrong way round") }
        }
    }

    /// Settings of these layers, weakest first.
    fn settings<const N: usize>(layers: [Value; N]) -> Settings<App> {
        let parts = layers.into_iter().map(|tree| Part::new(Layer::Defaults, "", tree));
        Settings::new(parts.collect(), 0, &|_app: &App| Ok(())).unwrap()
    }

    /// All output that shows a path or a part of it.
    fn seen(settings: &Settings<App>, path: &str) -> String {
        let paths = ["", path.split('.').next().unwrap_or_default(), path];
        let texts = paths.map(|path| settings.explain(path).to_string());
        let shown = paths.map(|path| format!("{:?}", settings.shown(path)));
        texts.concat() + &shown.concat()
    }

    #[test]
    fn a_secret_is_hidden_in_every_layer_and_shape() {
        let cases = [
            // A key with a dot.
            ([json!({"passwords": {"db.internal": "hunter2"}}), json!({})], "passwords"),
            // A list written as text, which overrides a list or is overridden by one.
            ([json!({"tokens": "hunter2,b"}), json!({})], "tokens"),
            ([json!({"tokens": "hunter2"}), json!({"tokens": ["a"]})], "tokens"),
            ([json!({"tokens": ["a", "hunter2"]}), json!({"tokens": "a"})], "tokens.1"),
            ([json!({"tokens": ["a", "hunter2"]}), json!({"tokens": []})], "tokens.1"),
            // Replaced by null, or by something without a secret.
            ([json!({"password": "hunter2"}), json!({"password": null})], "password"),
            (
                [json!({"replica": {"port": 1, "password": "hunter2"}}), json!({"replica": null})],
                "replica.password",
            ),
            (
                [json!({"login": {"basic": {"password": "hunter2"}}}), json!({"login": "none"})],
                "login.basic.password",
            ),
            // Of a shape that does not fit the type.
            ([json!({"password": {"is": "hunter2"}}), json!({"password": "b"})], "password.is"),
            ([json!({"passwords": "hunter2"}), json!({"passwords": {"a": "b"}})], "passwords.a"),
            ([json!({"passwords": ["hunter2"]}), json!({"passwords": {"a": "b"}})], "passwords.0"),
            ([json!({"tokens": {"a": "hunter2"}}), json!({"tokens": ["b"]})], "tokens.a"),
            ([json!({"passwords": "hunter2"}), json!({"passwords": {}})], "passwords"),
        ];
        for (layers, path) in cases {
            let text = seen(&settings(layers.clone()), path);
            assert!(!text.contains("hunter2"), "{layers:?}: {text}");
            assert!(text.contains(REDACTED), "{layers:?}: {text}");
        }
    }

    #[test]
    fn a_fault_does_not_quote_a_secret() {
        let fault = read::<Secret<u8>>(&json!("hunter2"), &mut Marks::default()).unwrap_err();
        assert!(!fault.to_string().contains("hunter2"), "{fault}");
    }

    #[test]
    fn what_is_no_secret_is_shown() {
        let low = json!({"port": 1, "replica": {"port": 2, "password": "a"}, "range": [1, 2]});
        let settings = settings([low, json!({"port": "3", "range": [5, 6], "replica": null})]);
        for (path, value) in [("port", json!(1)), ("replica.port", json!(2)), ("range.1", json!(2))]
        {
            assert_eq!(settings.explain(path).sources[0].1, Some(value), "{path}");
        }
        assert_eq!(settings.shown("replica"), Some(json!(null)));
    }
}
