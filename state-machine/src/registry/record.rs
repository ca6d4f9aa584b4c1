//! The record of an instance; `value` is its encoding.

mod value;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use value::{may_be_instance, may_be_lost};

/// Weight of an instance that does not set one.
pub const WEIGHT: u32 = 100;
/// The latest format of [`Details`] that this version knows.
pub const SCHEMA: u32 = 2;
/// Name in `Instance` of everything that Go's clients have no use for.
pub const DETAILS: &str = "conclave";

/// Schemes that may precede `host:port` in an address.
const SCHEMES: [&str; 2] = ["http://", "https://"];

/// Whether an instance serves calls.
///
/// ```
/// # use conclave_state_machine::registry::record::{Record, State};
/// let mut record = Record::new("10.0.0.7:80");
/// record.state = State::Starting;
/// assert!(!record.is_healthy(), "it is listed, and gets no calls yet");
/// record.state = State::Up;
/// assert!(record.is_healthy());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It serves calls.
    #[default]
    Up,
    /// It finishes calls in progress and takes no new ones, because it will stop soon.
    Draining,
    /// It is running but cannot serve at present.
    Down,
    /// It cannot serve yet.
    Starting,
    /// It was taken out of service on purpose.
    OutOfService,
}

/// Health of an instance, from best to worst.
///
/// ```
/// # use conclave_state_machine::registry::record::Health;
/// /// How well a service is as a whole: as its best instance.
/// fn best(instances: &[Health]) -> Option<Health> {
///     instances.iter().min().copied()
/// }
/// assert_eq!(best(&[Health::Critical, Health::Warning]), Some(Health::Warning));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", from = "String")]
pub enum Health {
    /// Healthy, or nothing else was reported.
    #[default]
    Passing,
    /// Nothing was reported. Also for a value that only later versions know.
    Unknown,
    /// Serving, but not well.
    Warning,
    /// Must not be called.
    Critical,
}

impl From<String> for Health {
    fn from(word: String) -> Health {
        match word.as_str() {
            "passing" => Health::Passing,
            "warning" => Health::Warning,
            "critical" => Health::Critical,
            _ => Health::Unknown,
        }
    }
}

impl Health {
    /// Whether an instance with this health should get calls.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Health::Passing | Health::Warning)
    }
}

/// How the server checks the health of an instance.
///
/// ```
/// # use conclave_state_machine::registry::record::{Check, CheckKind};
/// let shown = |check: &Check| match check.kind {
///     CheckKind::Tcp => "can be connected to".to_owned(),
///     CheckKind::Http => format!("answers GET {}", check.target),
///     CheckKind::Grpc => "says that it serves".to_owned(),
/// };
/// assert_eq!(shown(&Check::default()), "can be connected to");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// A connection can be opened.
    #[default]
    Tcp,
    /// `GET` answers 2xx; 429 is a warning.
    Http,
    /// `grpc.health.v1.Health/Check` answers `SERVING`.
    Grpc,
}

/// An active health check.
///
/// ```
/// # use conclave_state_machine::registry::record::{Check, CheckKind};
/// // Twice in a row is enough to be left alone, and after a minute of that it is removed.
/// let check = Check { kind: CheckKind::Grpc, failures: 2, remove_after_ms: 60_000, ..Check::default() };
/// let text = serde_json::to_string(&check).unwrap();
/// assert_eq!(text, r#"{"kind":"grpc","failures":2,"remove_after_ms":60000}"#);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// How to check.
    pub kind: CheckKind,
    /// HTTP: path and query, `/` if empty. gRPC: name of the service, empty for the whole server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// `host:port` instead of the address of the instance; only where the server allows it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Time between two checks in milliseconds; 0 for [`super::check::CHECK_INTERVAL_MS`].
    #[serde(skip_serializing_if = "is_default")]
    pub interval_ms: u64,
    /// Timeout of one check in milliseconds; 0 for [`super::check::CHECK_TIMEOUT_MS`].
    #[serde(skip_serializing_if = "is_default")]
    pub timeout_ms: u64,
    /// Successful checks in a row before the instance passes again; 0 for 1.
    #[serde(skip_serializing_if = "is_default")]
    pub passes: u32,
    /// Failed checks in a row before it is critical; 0 for 3.
    #[serde(skip_serializing_if = "is_default")]
    pub failures: u32,
    /// An instance that stays critical this long, in milliseconds, is removed; 0 for never.
    #[serde(skip_serializing_if = "is_default")]
    pub remove_after_ms: u64,
    /// Check over TLS; for [`CheckKind::Tcp`] the handshake has to succeed.
    #[serde(skip_serializing_if = "is_default")]
    pub tls: bool,
    /// Name or address that the certificate must be for, and that is sent as SNI and as host of
    /// HTTP and gRPC; empty for the host of the address. Only with `tls`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_server_name: String,
    /// Accept any certificate, so that anybody on the network path can answer. Only with `tls`.
    #[serde(skip_serializing_if = "is_default")]
    pub tls_skip_verify: bool,
}

impl Check {
    /// Where a check of an instance at `address` connects to: `host:port`, without the scheme of
    /// the address.
    #[must_use]
    pub fn place<'a>(&'a self, address: &'a str) -> &'a str {
        let place = if self.address.is_empty() { address } else { &self.address };
        let bare = SCHEMES.iter().find_map(|scheme| place.strip_prefix(scheme));
        bare.unwrap_or(place)
    }
}

/// The result of the server's checks.
///
/// ```
/// # use conclave_state_machine::registry::record::{Checked, Health, Record};
/// let mut record = Record::new("10.0.0.7:80");
/// let output = "connection refused".to_owned();
/// record.details.checked = Some(Checked { health: Health::Critical, output, ..Checked::default() });
/// assert_eq!(record.details.health, Health::Passing, "by its own account");
/// assert_eq!(record.health_shown(), Health::Critical, "by what counts");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checked {
    /// The health that enough checks in a row agree on.
    pub health: Health,
    /// Output of the check that changed it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Since when, in milliseconds since 1970 by the wall clock of the leader at that time; only
    /// for a named check.
    #[serde(skip_serializing_if = "is_default")]
    pub since_ms: i64,
}

/// An instance of a service.
///
/// ```
/// # use conclave_state_machine::registry::record::Record;
/// let mut record = Record::new("10.0.0.7:80");
/// record.tags = vec!["canary".to_owned()];
/// record.metadata.insert("build".to_owned(), "1f3c".into());
/// // As a filter of those who discover sees it.
/// let is_wanted = |record: &Record| record.tags.iter().any(|tag| tag == "canary");
/// assert!(is_wanted(&record) && record.is_healthy() && !record.is_stale());
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Id of the instance, unique within the service.
    pub id: String,
    /// `host:port`.
    pub address: String,
    /// Load-balancing weight relative to other instances; 0 for no calls.
    pub weight: u32,
    /// Zone of the instance; empty if not known.
    pub zone: String,
    /// Version of the service; empty if not known.
    pub version: String,
    /// Tags to select instances by.
    pub tags: Vec<String>,
    /// State as set by the owner.
    pub state: State,
    /// Other fields of the owner. They are stored beside the fields above, whose names (`weight`,
    /// `zone`, `version`, `tags`, `state`, `conclave`) cannot be used.
    pub metadata: Map<String, Value>,
    /// `Metadata` of the value if another client wrote it. It is kept unchanged, because Go's
    /// balancers treat an address with other metadata as another address. Those of its fields that
    /// are ours are also in the fields above.
    pub attributes: Value,
    /// Fields that only Conclave knows.
    pub details: Details,
}

/// What a server with a native registry stores about an instance.
///
/// ```
/// # use conclave_state_machine::registry::record::{Record, State};
/// let mut record = Record::new("10.0.0.7:80");
/// let metrics = ("metrics".to_owned(), "http://10.0.0.7:9100".to_owned());
/// record.details.endpoints.extend([metrics]);
/// record.details.override_state = Some(State::Draining); // `conclave service drain`
/// assert_eq!(record.state_shown(), State::Draining);
/// assert!(record.details.endpoints.contains_key("metrics"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// Further addresses by name, as `scheme://host:port`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, String>,
    /// Region that contains the zone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Location within the zone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sub_zone: String,
    /// Health as reported by the owner.
    #[serde(skip_serializing_if = "is_default")]
    pub health: Health,
    /// Text that the owner reported with it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How the server checks its health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// The result of `check`; `None` before the first result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<Checked>,
    /// Further checks, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, Check>,
    /// The results of `checks`, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub results: BTreeMap<String, Checked>,
    /// State set by an operator, which overrides the owner's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub override_state: Option<State>,
    /// Time to drain before the instance is removed, in milliseconds; 0 for no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub drain_ms: u64,
    /// It came up too often lately, so it is not shown as healthy yet.
    #[serde(skip_serializing_if = "is_default")]
    pub is_damped: bool,
    /// The owner of the session that registered it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// TTL of the session in seconds.
    #[serde(skip_serializing_if = "is_default")]
    pub ttl_seconds: i64,
    /// When it was registered, in milliseconds since 1970, by the wall clock of the member that
    /// took the request; for display.
    #[serde(skip_serializing_if = "is_default")]
    pub registered_ms: i64,
    /// When state or health last changed, likewise.
    #[serde(skip_serializing_if = "is_default")]
    pub changed_ms: i64,
    /// When a lost instance that is kept was lost, likewise; 0 for a registered one.
    #[serde(skip_serializing_if = "is_default")]
    pub lost_ms: i64,
    /// Number of this format, if it is not the first; see [`Details::layout`].
    #[serde(skip_serializing_if = "is_default")]
    pub schema_version: u32,
    /// Fields that only later versions know, unchanged.
    #[serde(flatten)]
    pub later: Map<String, Value>,
}

impl Details {
    /// All checks by name; the unnamed one comes first, with an empty name.
    pub fn all_checks(&self) -> impl Iterator<Item = (&str, &Check)> {
        let named = self.checks.iter().map(|(name, check)| (name.as_str(), check));
        self.check.iter().map(|check| ("", check)).chain(named)
    }

    /// The result of a check; `None` before the first result.
    #[must_use]
    pub fn result(&self, name: &str) -> Option<&Checked> {
        if name.is_empty() { self.checked.as_ref() } else { self.results.get(name) }
    }

    /// The format that the contents need: 1, or [`SCHEMA`] if they use what it added, or a later
    /// one if a later version wrote them.
    #[must_use]
    pub fn layout(&self) -> u32 {
        let is_second = self.health == Health::Unknown || !self.checks.is_empty();
        match self.schema_version {
            later if later > SCHEMA => later,
            _ if is_second => SCHEMA,
            _ => 1,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Record {
    /// An instance whose id is its address, with defaults for everything else.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Record {
        let address = address.into();
        Record { id: address.clone(), address, weight: WEIGHT, ..Record::default() }
    }

    /// The effective state: an operator's override, or else the owner's.
    #[must_use]
    pub fn state_shown(&self) -> State {
        self.details.override_state.unwrap_or(self.state)
    }

    /// The effective health: the worst of what the owner reports and of the checks' results. It is
    /// at best unknown while any check has no result.
    #[must_use]
    pub fn health_shown(&self) -> Health {
        let details = &self.details;
        let is_open = details.all_checks().any(|(name, _)| details.result(name).is_none());
        self.health_known().max(if is_open { Health::Unknown } else { Health::Passing })
    }

    /// The worst health that is known, ignoring checks without a result. An owner that reports
    /// `Unknown` leaves it to the checks.
    #[must_use]
    pub fn health_known(&self) -> Health {
        let details = &self.details;
        let said = Some(details.health).filter(|health| *health != Health::Unknown);
        let found = details.checked.iter().chain(details.results.values());
        found.map(|found| found.health).chain(said).max().unwrap_or(Health::Unknown)
    }

    /// Whether it should get calls: it is up, passing or warning, and not damped.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.state_shown() == State::Up && self.health_shown().is_good() && !self.details.is_damped
    }

    /// Whether its session was lost and it is only kept because many others were lost, too.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.details.lost_ms != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_connects_to_its_own_address_or_the_instances() {
        let own = Check { address: "http://h:2".to_owned(), ..Check::default() };
        assert_eq!(own.place("h:1"), "h:2");
        for address in ["h:1", "http://h:1", "https://h:1"] {
            assert_eq!(Check::default().place(address), "h:1");
        }
    }

    #[test]
    fn only_a_check_by_tls_says_so() {
        let text = |check: &Check| serde_json::to_string(check).unwrap();
        assert_eq!(text(&Check::default()), r#"{"kind":"tcp"}"#);
        let tls_server_name = "api.example".to_owned();
        let check = Check { tls: true, tls_server_name, tls_skip_verify: true, ..Check::default() };
        let said =
            r#"{"kind":"tcp","tls":true,"tls_server_name":"api.example","tls_skip_verify":true}"#;
        assert_eq!(text(&check), said);
        assert_eq!(serde_json::from_str::<Check>(said).unwrap(), check);
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
    fn the_worst_of_several_checks_counts_and_one_without_a_result_is_unknown() {
        let mut record = Record::new("h:1");
        record.details.checks =
            ["live", "ready"].map(|name| (name.into(), Check::default())).into();
        assert_eq!(
            (record.health_shown(), record.health_known()),
            (Health::Unknown, Health::Passing)
        );
        assert!(!record.is_healthy(), "nobody has looked");
        let mut found = |name: &str, health| {
            let found = Checked { health, ..Checked::default() };
            record.details.results.insert(name.to_owned(), found);
            (record.health_shown(), record.is_healthy())
        };
        assert_eq!(found("live", Health::Passing), (Health::Unknown, false));
        assert_eq!(found("ready", Health::Warning), (Health::Warning, true));
        assert_eq!(found("live", Health::Critical), (Health::Critical, false));
        assert_eq!(found("live", Health::Passing), (Health::Warning, true));
        record.details.health = Health::Unknown;
        assert_eq!(record.health_shown(), Health::Warning, "the owner leaves it to the checks");
        record.details.checks.clear();
        record.details.results.clear();
        assert_eq!(record.health_shown(), Health::Unknown, "nobody has said");
    }
}
