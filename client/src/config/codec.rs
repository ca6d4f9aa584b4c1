//! The formats of settings documents.

use serde_json::Value;

use super::tree::is_too_deep;

/// The format of a file or of a key's value.
///
/// ```
/// use conclave_client::config::Codec;
/// use serde_json::json;
///
/// assert_eq!(Codec::of_name("config/db.toml"), Some((Codec::Toml, "config/db")));
/// let tree = Codec::Yaml.decode(b"hosts: [a, b]\nport: 5432").unwrap();
/// assert_eq!(tree, json!({"hosts": ["a", "b"], "port": 5432}));
/// let fault = Codec::Toml.decode(b"port = 5432\npassword = hunter2").unwrap_err();
/// assert!(fault.ends_with("in line 2") && !fault.contains("hunter2"), "{fault}");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// One JSON document.
    Json,
    /// One TOML document.
    Toml,
    /// One YAML document.
    Yaml,
    /// Plain text: one setting, parsed as a number or boolean where the type asks for one.
    Text,
}

impl Codec {
    /// The format selected by the extension of a file's or key's name, and the name without it.
    #[must_use]
    pub fn of_name(name: &str) -> Option<(Self, &str)> {
        let (stem, extension) = name.rsplit_once('.')?;
        let codec = match extension {
            "json" => Self::Json,
            "toml" => Self::Toml,
            "yaml" | "yml" => Self::Yaml,
            "txt" => Self::Text,
            _ => return None,
        };
        Some((codec, stem))
    }

    /// Decodes a document.
    ///
    /// # Errors
    /// What is wrong, and in which line; never parts of the document, which may hold secrets.
    pub fn decode(self, document: &[u8]) -> Result<Value, String> {
        let text = std::str::from_utf8(document)
            .map_err(|error| format!("not UTF-8 after byte {}", error.valid_up_to()))?;
        let tree = match self {
            Self::Json => serde_json::from_str(text).map_err(|error| format!("not JSON: {error}")),
            Self::Toml => toml(text),
            Self::Yaml => yaml(text),
            Self::Text => Ok(Value::from(text.trim_end_matches('\n'))),
        }?;
        if is_too_deep(&tree) { Err("nested too deep".to_owned()) } else { Ok(tree) }
    }
}

fn toml(text: &str) -> Result<Value, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        format!("not TOML: {} in line {line}", error.message())
    })?;
    Ok(from_toml(toml::Value::Table(table)))
}

/// Recursion depth is bounded by the parser's own limit.
fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(is) => Value::Bool(is),
        // Types for times are deserialized from text.
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(list) => list.into_iter().map(from_toml).collect(),
        toml::Value::Table(table) => {
            table.into_iter().map(|(key, value)| (key, from_toml(value))).collect()
        }
    }
}

fn yaml(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| match error.location() {
        Some(location) => {
            format!("not YAML: line {} column {}", location.line(), location.column())
        }
        None => "not YAML".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_settings_in_each_format() {
        let settings = json!({"db": {"port": 5432, "hosts": ["a", "b"]}, "on": true, "rate": 0.5});
        let json = br#"{"db": {"port": 5432, "hosts": ["a", "b"]}, "on": true, "rate": 0.5}"#;
        let toml = b"on = true\nrate = 0.5\n[db]\nport = 5432\nhosts = ['a', 'b']\n";
        let yaml = b"db:\n  port: 5432\n  hosts: [a, b]\non: true\nrate: 0.5\n";
        assert_eq!(Codec::Json.decode(json).unwrap(), settings);
        assert_eq!(Codec::Toml.decode(toml).unwrap(), settings);
        assert_eq!(Codec::Yaml.decode(yaml).unwrap(), settings);
    }

    #[test]
    fn the_name_tells_the_format() {
        assert_eq!(Codec::of_name("db.yml"), Some((Codec::Yaml, "db")));
        assert_eq!(Codec::of_name("a.b.toml"), Some((Codec::Toml, "a.b")));
        assert_eq!(Codec::of_name("port"), None);
        assert_eq!(Codec::of_name("a.b"), None);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_content() {
        let cases: [(Codec, &[u8], &str); 5] = [
            (Codec::Json, b"{\n\"password\": \"hunter2\",}", "line 2"),
            (Codec::Toml, b"a = 1\npassword = hunter2\n", "line 2"),
            (Codec::Yaml, b"a: 1\npassword: [hunter2\n", "line "),
            (Codec::Text, b"hunter2\xff", "byte 7"),
            (Codec::Json, &[b'['; 100], "recursion"),
        ];
        for (codec, document, part) in cases {
            let error = codec.decode(document).unwrap_err();
            let is_deep = part == "recursion";
            assert!(is_deep || error.contains(part), "{codec:?}: {error}");
            assert!(!error.contains("hunter2"), "{codec:?}: {error}");
        }
    }

    #[test]
    fn text_is_one_setting() {
        assert_eq!(Codec::Text.decode(b"5432\n").unwrap(), json!("5432"));
    }

    #[test]
    fn a_time_of_toml_is_text() {
        let tree = Codec::Toml.decode(b"at = 2026-11-21T10:00:00Z").unwrap();
        assert_eq!(tree, json!({"at": "2026-11-21T10:00:00Z"}));
    }
}
