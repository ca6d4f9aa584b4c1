//! What is known about an instance, and the one layout in which it is stored.
//!
//! The value of the key `<service>/<id>` is that of etcd's Go package `naming/endpoints`, so that
//! grpc-go's resolver finds our instances and we find what Go registers:
//! `{"Op":0,"Addr":"10.0.0.7:80","Metadata":null,"Instance":{"version":"1.4.0","zone":"a"}}`. Go ignores
//! `Instance`. What we know stands there and not in `Metadata`, because Go's resolver hands that on to balancers,
//! which compare it: an object there ends their process (etcd#19700), and anything that changes there is a new
//! address to them. Of the names in `Instance` `weight`, `zone`, `version`, `tags`, `state` and [`DETAILS`] are
//! ours, the rest is the owner's. They are understood in `Metadata`, too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The weight of an instance that says nothing about it.
pub const WEIGHT: u32 = 100;
/// Name in `Instance` under which everything stands that Go's clients have no use for.
pub const DETAILS: &str = "conclave";
/// `Op` of a value that stands for an instance.
const ADD: u8 = 0;
/// How Go begins such a value; ours begin alike.
const FIRST_BYTES: &[u8] = br#"{"Op":0,"#;
/// Begins the value of a key that keeps a lost instance. The byte 0 keeps it apart from Go's values.
const LOST_FIRST_BYTES: &[u8] = b"\0lost";

/// Whether an instance takes calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does.
    #[default]
    Up,
    /// It ends what it has begun and takes nothing new: it will go soon.
    Draining,
    /// It is there but cannot serve at present.
    Down,
    /// It cannot serve yet.
    Starting,
    /// It is kept from serving on purpose.
    OutOfService,
}

/// How well an instance is, from best to worst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Well, or nobody said otherwise.
    #[default]
    Passing,
    /// Serving, but not well.
    Warning,
    /// Not to be called.
    Critical,
}

/// How the server finds out whether an instance is well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// A connection can be made.
    #[default]
    Tcp,
    /// `GET` answers 2xx; 429 is a warning.
    Http,
    /// `grpc.health.v1.Health/Check` answers `SERVING`.
    Grpc,
}

/// An active check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// What is done.
    pub kind: CheckKind,
    /// HTTP: path and query, `/` if empty. gRPC: name of the service, empty for the whole server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// `host:port` instead of the address of the instance; only where the server allows it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// From one check to the next; 0 for [`super::check::CHECK_INTERVAL_MS`].
    #[serde(skip_serializing_if = "is_default")]
    pub interval_ms: u64,
    /// For one check; 0 for [`super::check::CHECK_TIMEOUT_MS`].
    #[serde(skip_serializing_if = "is_default")]
    pub timeout_ms: u64,
    /// Good checks in a row before the instance passes again; 0 for 1.
    #[serde(skip_serializing_if = "is_default")]
    pub passes: u32,
    /// Bad checks in a row before it is critical; 0 for 3.
    #[serde(skip_serializing_if = "is_default")]
    pub failures: u32,
    /// An instance that is critical for so long is removed; 0 for never.
    #[serde(skip_serializing_if = "is_default")]
    pub remove_after_ms: u64,
}

/// What the server's checks have found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checked {
    /// The state that enough checks in a row agree on.
    pub health: Health,
    /// What the check said that changed it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// An instance of a service.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Whether it takes calls, by its own account.
    pub state: State,
    /// Whatever else it says. In the store it stands beside what is above, whose names (`weight`,
    /// `zone`, `version`, `tags`, `state`, `conclave`) cannot be used.
    pub metadata: Map<String, Value>,
    /// What only Conclave knows of.
    pub details: Details,
}

/// What a server with a native registry keeps about an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// Further addresses by name, as `scheme://host:port`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, String>,
    /// What the zone lies in.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Where in the zone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sub_zone: String,
    /// How well it is, by its own account.
    #[serde(skip_serializing_if = "is_default")]
    pub health: Health,
    /// What it says about that.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How the server looks after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// What it found; `None` before the first result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<Checked>,
    /// What an operator decided, whatever the owner says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub override_state: Option<State>,
    /// Time to drain before the instance is removed; 0 for no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub drain_ms: u64,
    /// It came up too often lately, and is not shown as healthy yet.
    #[serde(skip_serializing_if = "is_default")]
    pub is_damped: bool,
    /// Who registered it: the owner of the session.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// TTL of the session in seconds.
    #[serde(skip_serializing_if = "is_default")]
    pub ttl_seconds: i64,
    /// Wall clock of the member that was asked, in milliseconds; for people.
    #[serde(skip_serializing_if = "is_default")]
    pub registered_ms: i64,
    /// The same, when state or health changed last.
    #[serde(skip_serializing_if = "is_default")]
    pub changed_ms: i64,
    /// The same, when a lost instance that is kept was lost; 0 for one that lives.
    #[serde(skip_serializing_if = "is_default")]
    pub lost_ms: i64,
}

/// The value of the key. Names and their order are those of Go's `naming/endpoints`, and one more.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "Op", default)]
    op: u8,
    #[serde(rename = "Addr", default)]
    address: String,
    #[serde(rename = "Metadata", default)]
    metadata: Value,
    #[serde(rename = "Instance", default, skip_serializing_if = "Value::is_null")]
    instance: Value,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Record {
    /// An instance with its address for an id, and defaults for everything else.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Record {
        let address = address.into();
        Record { id: address.clone(), address, weight: WEIGHT, ..Record::default() }
    }

    /// The state that counts: an operator's word before the owner's.
    #[must_use]
    pub fn state_shown(&self) -> State {
        self.details.override_state.unwrap_or(self.state)
    }

    /// The health that counts: the worse of what the owner says and what the server found.
    #[must_use]
    pub fn health_shown(&self) -> Health {
        let checked = self.details.checked.as_ref().map_or(Health::Passing, |found| found.health);
        self.details.health.max(checked)
    }

    /// Whether it shall get calls: it is up, not critical, and not damped.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.state_shown() == State::Up
            && self.health_shown() < Health::Critical
            && !self.details.is_damped
    }

    /// Whether its session is lost and it is only kept because many others are lost, too.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.details.lost_ms != 0
    }

    /// The value of its key.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut instance = self.metadata.clone();
        let mut set = |name: &str, value: Value, is_default: bool| {
            instance.remove(name);
            if !is_default {
                instance.insert(name.to_owned(), value);
            }
        };
        set("weight", json!(self.weight), self.weight == WEIGHT);
        set("zone", json!(self.zone), self.zone.is_empty());
        set("version", json!(self.version), self.version.is_empty());
        set("tags", json!(self.tags), self.tags.is_empty());
        set("state", json!(self.state), self.state == State::Up);
        set(DETAILS, json!(self.details), self.details == Details::default());
        let instance = if instance.is_empty() { Value::Null } else { Value::Object(instance) };
        let address = self.address.clone();
        let wire = Wire { op: ADD, address, metadata: Value::Null, instance };
        serde_json::to_vec(&wire).expect("all keys are strings")
    }

    /// The instance with this id behind the value of a key; `None` if it is something else. It lives, whatever
    /// the value says about a loss.
    #[must_use]
    pub fn decode(id: &str, value: &[u8]) -> Option<Record> {
        let mut record = Record::parse(id, value)?;
        record.details.lost_ms = 0;
        Some(record)
    }

    fn parse(id: &str, value: &[u8]) -> Option<Record> {
        let Wire { op, address, metadata, instance } = serde_json::from_slice(value).ok()?;
        if op != ADD || address.is_empty() || id.is_empty() || id.contains('/') {
            return None;
        }
        let mut record = Record { id: id.to_owned(), ..Record::new(address) };
        for said in [metadata, instance] {
            if let Value::Object(said) = said {
                record.hear(said);
            }
        }
        Some(record)
    }

    /// Others may say anything; what is of another kind than ours is theirs.
    fn hear(&mut self, mut said: Map<String, Value>) {
        take(&mut said, "weight", &mut self.weight);
        take(&mut said, "zone", &mut self.zone);
        take(&mut said, "version", &mut self.version);
        take(&mut said, "tags", &mut self.tags);
        take(&mut said, "state", &mut self.state);
        take(&mut said, DETAILS, &mut self.details);
        self.metadata.extend(said);
    }

    /// The value of the key that keeps it after its loss.
    #[must_use]
    pub fn encode_lost(&self) -> Vec<u8> {
        [LOST_FIRST_BYTES, self.encode().as_slice()].concat()
    }

    /// The lost instance behind the value of a key; `None` if it is something else.
    #[must_use]
    pub fn decode_lost(id: &str, value: &[u8]) -> Option<Record> {
        let record = Record::parse(id, value.strip_prefix(LOST_FIRST_BYTES)?)?;
        record.is_stale().then_some(record)
    }
}

/// Whether a value may be that of an instance; costs next to nothing.
#[must_use]
pub fn may_be_instance(value: &[u8]) -> bool {
    value.starts_with(FIRST_BYTES)
}

/// Whether a value may be that of a key that keeps a lost instance.
#[must_use]
pub fn may_be_lost(value: &[u8]) -> bool {
    value.starts_with(LOST_FIRST_BYTES)
}

/// Moves an entry of the right kind to `field`.
fn take<T: serde::de::DeserializeOwned>(said: &mut Map<String, Value>, name: &str, field: &mut T) {
    let value = said.get(name).cloned().and_then(|value| serde_json::from_value(value).ok());
    if let Some(value) = value {
        *field = value;
        said.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_value_is_that_of_gos_endpoints() {
        let mut record = Record::new("10.0.0.7:80");
        let plain = br#"{"Op":0,"Addr":"10.0.0.7:80","Metadata":null}"#;
        assert_eq!(record.encode(), plain);
        assert!(may_be_instance(plain));
        record.weight = 7;
        record.state = State::Draining;
        record.details.health = Health::Warning;
        record.metadata.insert("owner".to_owned(), json!("shop"));
        let expected = concat!(
            r#"{"Op":0,"Addr":"10.0.0.7:80","Metadata":null,"Instance":{"conclave":{"health":"warning"},"#,
            r#""owner":"shop","state":"draining","weight":7}}"#
        );
        assert_eq!(String::from_utf8(record.encode()).unwrap(), expected);
    }

    #[test]
    fn what_others_register_is_understood_as_far_as_possible() {
        let decode = |value: &str| Record::decode("a", value.as_bytes());
        let plain = Record { id: "a".to_owned(), ..Record::new("h:1") };
        assert_eq!(decode(r#"{"Op":0,"Addr":"h:1","Metadata":null}"#), Some(plain.clone()));
        assert_eq!(decode(r#"{"Addr":"h:1"}"#), Some(plain.clone()));
        assert_eq!(decode(r#"{"Op":0,"Addr":"h:1","Metadata":"v1"}"#), Some(plain.clone()));
        let odd = decode(r#"{"Op":0,"Addr":"h:1","Metadata":{"weight":"heavy","zone":"z"}}"#);
        let odd = odd.unwrap();
        assert_eq!((odd.weight, odd.zone.as_str()), (WEIGHT, "z"));
        assert_eq!(odd.metadata["weight"], json!("heavy"));
        let both = r#"{"Addr":"h:1","Metadata":{"zone":"z","x":1},"Instance":{"zone":"a","y":2}}"#;
        let both = decode(both).unwrap();
        assert_eq!((both.zone.as_str(), both.metadata.len()), ("a", 2), "ours counts");
        for other in [r#"{"Op":1,"Addr":"h:1"}"#, r#"{"Op":0}"#, "text", ""] {
            assert_eq!(decode(other), None, "{other}");
        }
        assert_eq!(Record::decode("deeper/a", br#"{"Addr":"h:1"}"#), None, "another service's");
    }

    #[test]
    fn the_worst_word_about_health_counts_and_the_operators_about_state() {
        let mut record = Record::new("h:1");
        assert!(record.is_healthy());
        record.details.health = Health::Warning;
        assert!(record.is_healthy());
        record.details.checked = Some(Checked { health: Health::Critical, ..Checked::default() });
        assert_eq!((record.health_shown(), record.is_healthy()), (Health::Critical, false));
        record.details.checked = None;
        record.details.override_state = Some(State::Draining);
        assert_eq!((record.state_shown(), record.is_healthy()), (State::Draining, false));
    }

    #[test]
    fn a_lost_instance_is_none_to_go() {
        let mut record = Record::new("h:1");
        record.details.lost_ms = 5;
        let value = record.encode_lost();
        assert!(!may_be_instance(&value));
        assert_eq!(Record::decode("h:1", &value), None);
        assert_eq!(Record::decode_lost("h:1", &value), Some(record));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            weight in any::<u32>(),
            words in proptest::collection::vec(".{0,8}", 6),
            tags in proptest::collection::vec(".{0,8}", 0..3),
            (state, drain_ms, is_damped) in (0..5_usize, any::<u64>(), any::<bool>()),
        ) {
            let states =
                [State::Up, State::Draining, State::Down, State::Starting, State::OutOfService];
            let metadata = Map::from_iter([(format!("x{}", words[0]), json!(words[1]))]);
            let (zone, version) = (words[2].clone(), words[3].clone());
            let check = Some(Check { target: words[4].clone(), ..Check::default() });
            let output = words[5].clone();
            let details = Details { drain_ms, is_damped, check, output, ..Details::default() };
            let record = Record { id: "a".to_owned(), ..Record::new("h:1") };
            let state = states[state];
            let record = Record { weight, zone, version, tags, state, metadata, details, ..record };
            prop_assert_eq!(Record::decode("a", &record.encode()), Some(record));
        }
    }
}
