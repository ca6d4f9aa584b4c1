//! Deserializes a tree of settings into the application's type.
//!
//! Like `serde_json::from_value`, with three differences. Text becomes a number, a boolean or a
//! list (`a,b`) where the type asks for one, because environment variables and keys of the store
//! hold only text. An error names the path. And the paths of secrets are recorded.

use std::{cell::RefCell, fmt};

use serde::{
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

use super::{marks::Marks, secret};

/// Why a tree cannot be deserialized, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// `None` until an enclosing level has set it.
    path: Option<String>,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or_default()
    }

    fn at(mut self, place: &Place<'_>) -> Self {
        self.path.get_or_insert_with(|| place.to_string());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self { path: None, reason: reason.to_string() }
    }
}

/// Deserializes a tree into a `T`, and marks the [`secret::Secret`]s in the part of it that was
/// read.
///
/// # Errors
/// The first value that does not fit.
pub(super) fn read<T: DeserializeOwned>(tree: &Value, marks: &mut Marks) -> Result<T, Fault> {
    let secrets = RefCell::new(std::mem::take(marks));
    let root = Cursor { item: Item::Tree(tree), place: Place::Root, secrets: &secrets };
    let value = T::deserialize(root).map_err(|fault| fault.at(&Place::Root));
    *marks = secrets.into_inner();
    value
}

/// The position of a cursor in the tree.
#[derive(Clone, Copy)]
enum Place<'p> {
    Root,
    Key(&'p Place<'p>, &'p str),
    Index(&'p Place<'p>, usize),
    /// An element of a list written as text; the tree has no separate value for it.
    Piece(&'p Place<'p>, usize),
}

impl Place<'_> {
    /// The keys and indices that lead to the value in the tree.
    fn steps(&self) -> Vec<String> {
        let (parent, step) = match self {
            Self::Root => return Vec::new(),
            Self::Piece(parent, _) => return parent.steps(),
            Self::Key(parent, key) => (parent, (*key).to_owned()),
            Self::Index(parent, index) => (parent, index.to_string()),
        };
        let mut steps = parent.steps();
        steps.push(step);
        steps
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parent, step): (_, &dyn fmt::Display) = match self {
            Self::Root => return Ok(()),
            Self::Key(parent, key) => (parent, key),
            Self::Index(parent, index) | Self::Piece(parent, index) => (parent, index),
        };
        match parent {
            Self::Root => write!(f, "{step}"),
            parent => write!(f, "{parent}.{step}"),
        }
    }
}

#[derive(Clone, Copy)]
enum Item<'de> {
    Tree(&'de Value),
    /// An element of a list written as text.
    Text(&'de str),
}

#[derive(Clone, Copy)]
struct Cursor<'de, 'p> {
    item: Item<'de>,
    place: Place<'p>,
    secrets: &'p RefCell<Marks>,
}

impl<'de> Cursor<'de, '_> {
    fn text(&self) -> Option<&'de str> {
        match self.item {
            Item::Tree(value) => value.as_str(),
            Item::Text(text) => Some(text),
        }
    }

    /// Parses text as a number, for types that ask for a number.
    fn number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let text = self.text().unwrap_or_default().trim();
        if let Ok(number) = text.parse() {
            visitor.visit_u64(number)
        } else if let Ok(number) = text.parse() {
            visitor.visit_i64(number)
        } else if let Ok(number) = text.parse() {
            visitor.visit_f64(number)
        } else {
            de::Deserializer::deserialize_any(self, visitor)
        }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.number(visitor)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Cursor<'de, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let value = match self.item {
            Item::Text(text) => return visitor.visit_borrowed_str(text),
            Item::Tree(value) => value,
        };
        match value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(is) => visitor.visit_bool(*is),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), ..) => visitor.visit_u64(number),
                (None, Some(number), _) => visitor.visit_i64(number),
                (None, None, number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
            },
            Value::Array(list) => {
                visitor.visit_seq(Elements::new(&self, list.iter().map(Item::Tree)))
            }
            Value::Object(table) => visitor.visit_map(Entries::new(&self, table)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.text().map(|text| text.trim().parse()) {
            Some(Ok(is)) => visitor.visit_bool(is),
            _ => self.deserialize_any(visitor),
        }
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_f32 deserialize_f64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.item {
            Item::Tree(Value::Null) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if name == secret::NAME {
            self.secrets.borrow_mut().insert(self.place.steps());
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.text() {
            Some("") => visitor.visit_seq(Elements::new(&self, std::iter::empty())),
            Some(text) => {
                let elements = text.split(',').map(|element| Item::Text(element.trim()));
                visitor.visit_seq(Elements::new(&self, elements))
            }
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, v: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(v)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.item {
            Item::Tree(Value::String(text)) => {
                visitor.visit_enum(text.as_str().into_deserializer())
            }
            Item::Text(text) => visitor.visit_enum(text.into_deserializer()),
            Item::Tree(Value::Object(table)) if table.len() == 1 => visitor
                .visit_enum(de::value::MapAccessDeserializer::new(Entries::new(&self, table))),
            Item::Tree(_) => Err(de::Error::custom("expected a variant's name, or a table of one")),
        }
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct map struct identifier ignored_any i128 u128
    }
}

/// The elements of a list.
struct Elements<'de, 'p, I: Iterator<Item = Item<'de>>> {
    items: std::iter::Enumerate<I>,
    parent: Place<'p>,
    secrets: &'p RefCell<Marks>,
}

impl<'de, 'p, I: Iterator<Item = Item<'de>>> Elements<'de, 'p, I> {
    fn new(cursor: &Cursor<'de, 'p>, items: I) -> Self {
        Self { items: items.enumerate(), parent: cursor.place, secrets: cursor.secrets }
    }
}

impl<'de, I: Iterator<Item = Item<'de>>> de::SeqAccess<'de> for Elements<'de, '_, I> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        let place = match item {
            Item::Tree(_) => Place::Index(&self.parent, index),
            Item::Text(_) => Place::Piece(&self.parent, index),
        };
        let element = seed.deserialize(Cursor { item, place, secrets: self.secrets });
        element.map(Some).map_err(|fault| fault.at(&place))
    }
}

/// The entries of a table.
struct Entries<'de, 'p> {
    entries: serde_json::map::Iter<'de>,
    /// The entry whose key was read last.
    entry: Option<(&'de str, &'de Value)>,
    parent: Place<'p>,
    secrets: &'p RefCell<Marks>,
}

impl<'de, 'p> Entries<'de, 'p> {
    fn new(cursor: &Cursor<'de, 'p>, table: &'de Map<String, Value>) -> Self {
        let (parent, secrets) = (cursor.place, cursor.secrets);
        Self { entries: table.iter(), entry: None, parent, secrets }
    }
}

impl<'de> de::MapAccess<'de> for Entries<'de, '_> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        self.entry = self.entries.next().map(|(key, value)| (key.as_str(), value));
        let Some((key, _)) = self.entry else { return Ok(None) };
        // Keys of maps may be numbers, too.
        let place = Place::Key(&self.parent, key);
        let cursor = Cursor { item: Item::Text(key), place, secrets: self.secrets };
        seed.deserialize(cursor).map(Some).map_err(|fault| fault.at(&place))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let (key, value) = self.entry.take().expect("serde's contract: a value follows its key");
        let place = Place::Key(&self.parent, key);
        let cursor = Cursor { item: Item::Tree(value), place, secrets: self.secrets };
        let value = seed.deserialize(cursor).map_err(|fault| fault.at(&place));
        value.inspect(|_| self.secrets.borrow_mut().arrive(|| place.steps()))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::SocketAddr};

    use serde::Deserialize;
    use serde_json::json;

    use super::{super::secret::Secret, *};

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Fast,
        Custom { level: u8 },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Settings {
        port: u16,
        offset: i32,
        ratio: f64,
        on: bool,
        name: String,
        tags: Vec<String>,
        ports: Vec<u16>,
        mode: Mode,
        other: Mode,
        bind: SocketAddr,
        limits: HashMap<u8, u64>,
        missing: Option<u8>,
    }

    #[test]
    fn text_becomes_what_the_type_asks_for() {
        let tree = json!({
            "port": "8080", "offset": "-3", "ratio": "0.5", "on": "true", "name": "123",
            "tags": "a, b", "ports": "1,2", "mode": "fast", "other": {"custom": {"level": "7"}},
            "bind": "127.0.0.1:80", "limits": {"1": "10"}, "missing": null,
        });
        let settings = read::<Settings>(&tree, &mut Marks::default()).unwrap();
        let expected = Settings {
            port: 8080,
            offset: -3,
            ratio: 0.5,
            on: true,
            name: "123".to_owned(),
            tags: vec!["a".to_owned(), "b".to_owned()],
            ports: vec![1, 2],
            mode: Mode::Fast,
            other: Mode::Custom { level: 7 },
            bind: "127.0.0.1:80".parse().unwrap(),
            limits: HashMap::from([(1, 10)]),
            missing: None,
        };
        assert_eq!(settings, expected);
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read by serde")]
    struct Database {
        replicas: Vec<Replica>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read by serde")]
    struct Replica {
        port: u16,
        password: Option<Secret<String>>,
    }

    #[test]
    fn a_fault_has_a_path() {
        let cases = [
            (json!({"replicas": [{"port": 1}, {"port": "x"}]}), "replicas.1.port"),
            (json!({"replicas": [{}]}), "replicas.0"),
            (json!({"replicas": [{"port": 1, "password": 5}]}), "replicas.0.password"),
            (json!({}), ""),
        ];
        for (tree, path) in cases {
            let fault = read::<Database>(&tree, &mut Marks::default()).unwrap_err();
            assert_eq!(fault.path(), path, "{fault}");
        }
    }
}
