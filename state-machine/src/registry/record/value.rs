//! The encoding in which instances are stored.
//!
//! The value of the key `<service>/<id>` has the format of etcd's Go package `naming/endpoints`, so
//! that grpc-go's resolver finds our instances and we find what Go registers:
//! `{"Op":0,"Addr":"10.0.0.7:80","Metadata":null,"Instance":{"version":"1.4.0","zone":"a"}}`. Go
//! ignores `Instance`. Our fields are there and not in `Metadata`, because Go's resolver passes
//! that on to balancers, which compare it: an object there makes their process panic (etcd#19700),
//! and any change there makes a new address for them. Of the names in `Instance`, `weight`, `zone`,
//! `version`, `tags`, `state` and [`DETAILS`] are ours; the others are the owner's. Our names are
//! understood in `Metadata`, too.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{DETAILS, Details, Record, State, WEIGHT};

/// `Op` of a value that is an instance.
const ADD: u8 = 0;
/// First bytes of such a value as Go writes it; ours begin the same.
const FIRST_BYTES: &[u8] = br#"{"Op":0,"#;
/// Our names in `Instance`.
const NAMES: [&str; 6] = ["weight", "zone", "version", "tags", "state", DETAILS];
/// First bytes of the value that keeps a lost instance. The byte 0 tells it from Go's values.
const LOST_FIRST_BYTES: &[u8] = b"\0lost";

/// The value of the key: names and order as in Go's `naming/endpoints`, and one more name.
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

impl Record {
    /// Encodes the value of its key.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut instance = self.metadata.clone();
        // A default must be written if `Metadata` says something else.
        let is_said = |name: &str| self.attributes.get(name).is_some();
        let mut set = |name: &str, value: Value, is_default: bool| {
            instance.remove(name);
            if !is_default || is_said(name) {
                instance.insert(name.to_owned(), value);
            }
        };
        set("weight", json!(self.weight), self.weight == WEIGHT);
        set("zone", json!(self.zone), self.zone.is_empty());
        set("version", json!(self.version), self.version.is_empty());
        set("tags", json!(self.tags), self.tags.is_empty());
        set("state", json!(self.state), self.state == State::Up);
        let schema_version = schema_said(&self.details);
        let details = Details { schema_version, ..self.details.clone() };
        set(DETAILS, json!(details), details == Details::default());
        let instance = if instance.is_empty() { Value::Null } else { Value::Object(instance) };
        let address = self.address.clone();
        let wire = Wire { op: ADD, address, metadata: self.attributes.clone(), instance };
        serde_json::to_vec(&wire).expect("all keys are strings")
    }

    /// Decodes the instance with this id from the value of its key; `None` if it is something else.
    /// It counts as registered, whatever the value says about a loss.
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
        let attributes = metadata.clone();
        let mut record = Record { id: id.to_owned(), attributes, ..Record::new(address) };
        for said in [metadata, instance] {
            if let Value::Object(said) = said {
                record.hear(said);
            }
        }
        record.details.schema_version = schema_said(&record.details);
        Some(record)
    }

    /// Reads the fields of an object that any client may have written. A field with our name but
    /// another type is left with the owner's.
    fn hear(&mut self, mut said: Map<String, Value>) {
        take(&mut said, "weight", &mut self.weight);
        take(&mut said, "zone", &mut self.zone);
        take(&mut said, "version", &mut self.version);
        take(&mut said, "tags", &mut self.tags);
        take(&mut said, "state", &mut self.state);
        take(&mut said, DETAILS, &mut self.details);
        self.metadata.extend(said);
    }

    /// One of our names whose value has the wrong type, if any.
    #[must_use]
    pub fn misspoken(&self) -> Option<&'static str> {
        NAMES.into_iter().find(|name| self.metadata.contains_key(*name))
    }

    /// Encodes the value of the key that keeps it after its loss.
    #[must_use]
    pub fn encode_lost(&self) -> Vec<u8> {
        [LOST_FIRST_BYTES, self.encode().as_slice()].concat()
    }

    /// Decodes a lost instance from the value of its key; `None` if it is something else.
    #[must_use]
    pub fn decode_lost(id: &str, value: &[u8]) -> Option<Record> {
        let record = Record::parse(id, value.strip_prefix(LOST_FIRST_BYTES)?)?;
        record.is_stale().then_some(record)
    }
}

/// The number of the format as it is stored: none for the first, whose values were written before
/// there was a number.
fn schema_said(details: &Details) -> u32 {
    Some(details.layout()).filter(|layout| *layout > 1).unwrap_or_default()
}

/// Whether a value may be an instance; a cheap test of its first bytes.
#[must_use]
pub fn may_be_instance(value: &[u8]) -> bool {
    value.starts_with(FIRST_BYTES) || value.first() == Some(&b'{') && begins_as_one(value)
}

/// Whether a value begins like an instance, in any order of the fields and with any white space.
fn begins_as_one(value: &[u8]) -> bool {
    let Some(rest) = value.strip_prefix(b"{") else { return false };
    let is_add = member(rest, br#""Op""#).is_some_and(|rest| rest.first() == Some(&b'0'));
    is_add || member(rest, br#""Addr""#).is_some()
}

/// What follows a name and its colon.
fn member<'a>(rest: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = rest.trim_ascii_start().strip_prefix(name)?;
    Some(rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

/// Whether a value may be that of a key that keeps a lost instance.
#[must_use]
pub fn may_be_lost(value: &[u8]) -> bool {
    value.starts_with(LOST_FIRST_BYTES)
}

/// Moves an entry of the right type to `field`.
fn take<T: serde::de::DeserializeOwned>(said: &mut Map<String, Value>, name: &str, field: &mut T) {
    // Go writes null for a missing value.
    if said.get(name).is_some_and(Value::is_null) {
        said.remove(name);
    }
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
    use crate::registry::record::{Check, Checked, Health};

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
        let said = Record { attributes: json!("v1"), ..plain.clone() };
        assert_eq!(decode(r#"{"Op":0,"Addr":"h:1","Metadata":"v1"}"#), Some(said));
        let odd = decode(r#"{"Op":0,"Addr":"h:1","Metadata":{"weight":"heavy","zone":"z"}}"#);
        let odd = odd.unwrap();
        assert_eq!((odd.weight, odd.zone.as_str()), (WEIGHT, "z"));
        assert_eq!(odd.metadata["weight"], json!("heavy"));
        assert_eq!((odd.misspoken(), plain.misspoken()), (Some("weight"), None));
        let both = r#"{"Addr":"h:1","Metadata":{"zone":"z","x":1},"Instance":{"zone":"a","y":2}}"#;
        let both = decode(both).unwrap();
        assert_eq!((both.zone.as_str(), both.metadata.len()), ("a", 2), "ours counts");
        for other in [r#"{"Op":1,"Addr":"h:1"}"#, r#"{"Op":0}"#, "text", ""] {
            assert_eq!(decode(other), None, "{other}");
        }
        assert_eq!(Record::decode("deeper/a", br#"{"Addr":"h:1"}"#), None, "another service's");
    }

    /// Go's balancers compare it.
    #[test]
    fn what_go_says_beside_the_address_stays_as_it_is() {
        for metadata in [r#""v1""#, "7", "[1,2]", r#"{"x":{"y":1},"zone":"z"}"#] {
            let value = format!(r#"{{"Op":0,"Addr":"h:1","Metadata":{metadata}}}"#);
            let mut record = Record::decode("a", value.as_bytes()).unwrap();
            record.details.override_state = Some(State::Draining);
            let drained = String::from_utf8(record.encode()).unwrap();
            assert!(drained.contains(&format!(r#""Metadata":{metadata},"#)), "{drained}");
            assert_eq!(Record::decode("a", drained.as_bytes()), Some(record));
        }
    }

    #[test]
    fn what_is_undone_does_not_come_back_with_what_go_says() {
        let value = concat!(
            r#"{"Op":0,"Addr":"h:1","Metadata":{"conclave":{"is_damped":true},"state":"draining","#,
            r#""tags":["t"],"version":"1","weight":5,"zone":"z"}}"#
        );
        let mut record = Record::decode("a", value.as_bytes()).unwrap();
        assert!(record.details.is_damped && record.weight == 5);
        let attributes = record.attributes.clone();
        record = Record { id: record.id, attributes, ..Record::new("h:1") };
        record.id = "a".to_owned();
        assert_eq!(Record::decode("a", &record.encode()), Some(record));
    }

    #[test]
    fn what_is_null_is_not_said() {
        let value = r#"{"Op":0,"Addr":"h:1","Instance":{"conclave":null,"tags":null,"zone":null}}"#;
        let record = Record::decode("a", value.as_bytes()).unwrap();
        assert_eq!((record.misspoken(), record.metadata.len()), (None, 0));
    }

    #[test]
    fn values_of_instances_are_known_by_their_beginning() {
        for value in [
            r#"{"Op":0,"Addr":"h:1"}"#,
            r#"{"Op": 0, "Addr": "h:1"}"#,
            "{\n  \"Op\" : 0,\n \"Addr\": \"h:1\"}",
            r#"{"Addr":"h:1","Op":0}"#,
            r#"{ "Addr" : "h:1"}"#,
        ] {
            assert!(may_be_instance(value.as_bytes()), "{value}");
            assert!(Record::decode("a", value.as_bytes()).is_some(), "{value}");
        }
        for value in
            ["", "{", "{}", r#"{"Op":1,"Addr":"h:1"}"#, r#"{"Op""#, r#"{"Address":1}"#, "x"]
        {
            assert!(!may_be_instance(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn what_later_versions_say_is_kept() {
        let value = concat!(
            r#"{"Op":0,"Addr":"h:1","Metadata":null,"Instance":{"conclave":{"#,
            r#""checks":{"a":{"kind":"tcp"}},"colour":{"of":"mud"},"health":"splendid","schema_version":9}}}"#
        );
        let record = Record::decode("a", value.as_bytes()).unwrap();
        assert_eq!((record.details.health, record.details.layout()), (Health::Unknown, 9));
        let again = String::from_utf8(record.encode()).unwrap();
        assert_eq!(again, value.replace("splendid", "unknown"));
        // The first format is written without a number, as before there was another.
        let mut record = Record { id: "a".to_owned(), ..Record::new("h:1") };
        record.details.schema_version = 1;
        assert_eq!(record.encode(), br#"{"Op":0,"Addr":"h:1","Metadata":null}"#);
        record.details.checks.insert("a".to_owned(), Check::default());
        let decoded = Record::decode("a", &record.encode()).unwrap();
        assert_eq!((decoded.details.schema_version, decoded.details.layout()), (2, 2));
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
            let found = Checked { since_ms: 7, ..Checked::default() };
            let check = Some(Check { target: words[4].clone(), ..Check::default() });
            let output = words[5].clone();
            let details = Details { drain_ms, is_damped, check, output, ..Details::default() };
            let checks: std::collections::BTreeMap<_, _> =
                tags.iter().map(|name| (name.clone(), Check::default())).collect();
            let results = checks.keys().map(|name| (name.clone(), found.clone())).collect();
            let schema_version = if checks.is_empty() { 0 } else { 2 };
            let details = Details { checks, results, schema_version, ..details };
            let record = Record { id: "a".to_owned(), ..Record::new("h:1") };
            let state = states[state];
            let record = Record { weight, zone, version, tags, state, metadata, details, ..record };
            prop_assert_eq!(Record::decode("a", &record.encode()), Some(record));
        }
    }
}
