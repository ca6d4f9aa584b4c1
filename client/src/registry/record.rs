//! What is known about an instance, and its form in the store.

use bytes::Bytes;
use conclave_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::balance::Instance;

/// The weight of an instance that says nothing about it.
const WEIGHT: u32 = 100;
/// `Op` of a value that stands for an instance.
const ADD: u8 = 0;

/// Whether an instance takes calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does.
    #[default]
    Up,
    /// It ends what it has begun and takes nothing new: it will go soon.
    Draining,
    /// It is there but cannot serve at present.
    Down,
}

/// An instance of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Tells it from other instances of the service.
    pub id: String,
    /// `host:port`.
    pub address: String,
    /// How much it takes compared to others; 0 for nothing.
    pub weight: u32,
    /// Where it is; empty if that is not known.
    pub zone: String,
    /// Version of the service; empty if that is not known.
    pub version: String,
    /// Words to choose by.
    pub tags: Vec<String>,
    /// Whether it takes calls.
    pub state: State,
    /// Whatever else it says. In the store it stands beside what is above, whose names (`weight`,
    /// `zone`, `version`, `tags`, `state`) cannot be used.
    pub metadata: Map<String, Value>,
}

/// The value of the key. Names and their order are those of Go's `naming/endpoints`.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "Op", default)]
    op: u8,
    #[serde(rename = "Addr", default)]
    address: String,
    #[serde(rename = "Metadata", default)]
    metadata: Value,
}

impl Record {
    /// An instance with its address for an id, and defaults for everything else.
    pub(super) fn new(address: impl Into<String>) -> Self {
        let address = address.into();
        Self {
            id: address.clone(),
            address,
            weight: WEIGHT,
            zone: String::new(),
            version: String::new(),
            tags: Vec::new(),
            state: State::Up,
            metadata: Map::new(),
        }
    }

    /// How a [balanced channel](crate::balance::BalancedChannel) sees it.
    #[must_use]
    pub fn instance(&self) -> Instance {
        // Not even when all others are unwell shall one that drains get calls.
        let weight = if self.state == State::Draining { 0 } else { self.weight };
        let is_healthy = self.state != State::Down;
        let zone = self.zone.clone();
        Instance { weight, zone, is_healthy, ..Instance::new(&self.id, &self.address) }
    }

    /// The value of its key.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut metadata = self.metadata.clone();
        let mut set = |name: &str, value: Value, is_default: bool| {
            metadata.remove(name);
            if !is_default {
                metadata.insert(name.to_owned(), value);
            }
        };
        set("weight", json!(self.weight), self.weight == WEIGHT);
        set("zone", json!(self.zone), self.zone.is_empty());
        set("version", json!(self.version), self.version.is_empty());
        set("tags", json!(self.tags), self.tags.is_empty());
        set("state", json!(self.state), self.state == State::Up);
        let metadata = if metadata.is_empty() { Value::Null } else { Value::Object(metadata) };
        let wire = Wire { op: ADD, address: self.address.clone(), metadata };
        serde_json::to_vec(&wire).expect("invariant: all keys are strings")
    }

    /// The instance behind a key; `None` if it is something else.
    pub(super) fn decode(prefix: &Bytes, kv: &KeyValue) -> Option<Self> {
        let id = std::str::from_utf8(kv.key.strip_prefix(&prefix[..])?).ok()?;
        let Wire { op, address, metadata } = serde_json::from_slice(&kv.value).ok()?;
        if op != ADD || address.is_empty() {
            return None;
        }
        let mut record = Self { id: id.to_owned(), ..Self::new(address) };
        // Others may say anything here; what is of another kind than ours is theirs.
        if let Value::Object(mut metadata) = metadata {
            take(&mut metadata, "weight", &mut record.weight);
            take(&mut metadata, "zone", &mut record.zone);
            take(&mut metadata, "version", &mut record.version);
            take(&mut metadata, "tags", &mut record.tags);
            take(&mut metadata, "state", &mut record.state);
            record.metadata = metadata;
        }
        Some(record)
    }
}

/// Moves an entry of the right kind to `field`.
fn take<T: serde::de::DeserializeOwned>(
    metadata: &mut Map<String, Value>,
    name: &str,
    field: &mut T,
) {
    let value = metadata.get(name).cloned().and_then(|value| serde_json::from_value(value).ok());
    if let Some(value) = value {
        *field = value;
        metadata.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(value: &str) -> Option<Record> {
        let (key, value) = (Bytes::from_static(b"api/a"), Bytes::from(value.to_owned()));
        let kv = KeyValue { key, value, ..KeyValue::default() };
        Record::decode(&Bytes::from_static(b"api/"), &kv)
    }

    #[test]
    fn the_value_is_that_of_gos_endpoints() {
        let mut record = Record::new("10.0.0.7:80");
        let plain = br#"{"Op":0,"Addr":"10.0.0.7:80","Metadata":null}"#;
        assert_eq!(record.encode(), plain);
        record.weight = 7;
        record.state = State::Draining;
        record.metadata.insert("owner".to_owned(), json!("shop"));
        let expected = concat!(
            r#"{"Op":0,"Addr":"10.0.0.7:80","#,
            r#""Metadata":{"owner":"shop","state":"draining","weight":7}}"#
        );
        assert_eq!(String::from_utf8(record.encode()).unwrap(), expected);
    }

    #[test]
    fn what_others_register_is_understood_as_far_as_possible() {
        let plain = Record { id: "a".to_owned(), ..Record::new("h:1") };
        assert_eq!(decode(r#"{"Op":0,"Addr":"h:1","Metadata":null}"#), Some(plain.clone()));
        assert_eq!(decode(r#"{"Addr":"h:1"}"#), Some(plain.clone()));
        assert_eq!(decode(r#"{"Op":0,"Addr":"h:1","Metadata":"v1"}"#), Some(plain.clone()));
        let odd = decode(r#"{"Op":0,"Addr":"h:1","Metadata":{"weight":"heavy","zone":"z"}}"#);
        let odd = odd.unwrap();
        assert_eq!((odd.weight, odd.zone.as_str()), (WEIGHT, "z"));
        assert_eq!(odd.metadata["weight"], json!("heavy"));
        for other in [r#"{"Op":1,"Addr":"h:1"}"#, r#"{"Op":0}"#, "text", ""] {
            assert_eq!(decode(other), None, "{other}");
        }
    }

    #[test]
    fn who_drains_or_is_down_gets_no_calls() {
        let instance = |state| Record { state, ..Record::new("h:1") }.instance();
        assert_eq!((instance(State::Up).weight, instance(State::Up).is_healthy), (100, true));
        assert_eq!(instance(State::Draining).weight, 0);
        assert!(!instance(State::Down).is_healthy);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            weight in any::<u32>(),
            words in proptest::collection::vec(".{0,8}", 4),
            tags in proptest::collection::vec(".{0,8}", 0..3),
            state in 0..3_usize,
        ) {
            let state = [State::Up, State::Draining, State::Down][state];
            let metadata = Map::from_iter([(format!("x{}", words[0]), json!(words[1]))]);
            let (zone, version) = (words[2].clone(), words[3].clone());
            let record = Record { id: "a".to_owned(), ..Record::new("h:1") };
            let record = Record { weight, zone, version, tags, state, metadata, ..record };
            let text = String::from_utf8(record.encode()).unwrap();
            prop_assert_eq!(decode(&text), Some(record));
        }
    }
}
