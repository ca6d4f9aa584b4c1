//! Turns raw flag values into checked settings.

use std::path::PathBuf;
use std::time::Duration;

use super::cluster::InitialCluster;
use super::flags::{self, Raw};
use super::gates::Gates;
use super::settings::{
    AuthSettings, AutoCompaction, BootstrapSettings, CheckSettings, ChecksAllowed, ClusterState,
    JwtSettings, Limits, ListenSettings, MembershipSettings, RaftSettings, RegistrySettings,
    Settings, SlowSettings, StoreSettings, TraceSettings, WebSettings,
};
use super::{ConfigError, ListenUrl, gates, go, logs, memory, srv, tls, urls};

const DEFAULT_QUOTA_BYTES: i64 = 2 * 1024 * 1024 * 1024;
/// Sampling rates are given per million.
const MILLION: u32 = 1_000_000;
const DEFAULT_JWT_TTL: Duration = Duration::from_secs(5 * 60);
/// Costs that bcrypt accepts.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=31;
const ELECTION_TIMEOUT_MAX_MS: u64 = 50_000;
/// As in etcd, a shorter interval is raised to this: it would flood idle watchers.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Gives every value its type and checks the rules that span several flags.
pub(super) fn settings(mut raw: Raw) -> Result<Settings, ConfigError> {
    let name = raw.value("name").to_owned();
    let data_dir = match raw.text("data-dir") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(format!("{name}.etcd")),
    };
    let listen = listen(&raw)?;
    let bootstrap = bootstrap(&raw, &name, &listen)?;
    let tls = tls::settings(&mut raw, &listen, &data_dir)?;
    let gates = gates::settings(&mut raw)?;
    Ok(Settings {
        wal_dir: raw.text("wal-dir").map(PathBuf::from),
        store: store(&raw)?,
        raft: raft(&raw)?,
        membership: membership(&raw)?,
        checks: checks(&raw, gates)?,
        limits: limits(&raw)?,
        auth: auth(&mut raw)?,
        log: logs::settings(&mut raw)?,
        trace: trace(&raw)?,
        slow: slow(&raw)?,
        gates,
        measures_calls: measures_calls(&raw)?,
        web: web(&raw)?,
        registry: registry(&raw)?,
        watch_progress_interval: watch_progress_interval(&mut raw)?,
        name,
        data_dir,
        listen,
        tls,
        bootstrap,
        warnings: raw.warnings,
    })
}

impl Raw {
    /// The value if given and not empty; as in etcd an empty string means the default.
    pub(super) fn text(&self, flag: &str) -> Option<&str> {
        self.values.get(flag).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value, or the flag's default.
    pub(super) fn value(&self, flag: &str) -> &str {
        self.text(flag).unwrap_or_else(|| {
            flags::find(flag).expect("invariant: only flags of the table are asked for").default
        })
    }

    pub(super) fn number<T: TryFrom<i128>>(&self, flag: &'static str) -> Result<T, ConfigError> {
        let value = self.value(flag);
        let number = go::integer(value).ok_or("expected a whole number");
        let number = number.and_then(|number| T::try_from(number).map_err(|_| "out of range"));
        number.map_err(|reason| self.malformed(flag, value, reason))
    }

    /// A boolean flag; values are those of Go's `ParseBool`.
    pub(super) fn switch(&self, flag: &'static str) -> Result<bool, ConfigError> {
        let value = self.value(flag);
        go::boolean(value).ok_or_else(|| self.malformed(flag, value, "expected true or false"))
    }

    /// The error for a value that is not of its flag's type; on the command line it counts as
    /// malformed.
    pub(super) fn malformed(&self, flag: &'static str, value: &str, reason: &str) -> ConfigError {
        self.blame(invalid(flag, value, reason))
    }

    /// Turns an invalid value into a malformed one if it came from the command line.
    fn blame(&self, error: ConfigError) -> ConfigError {
        match error {
            ConfigError::InvalidValue { flag, value, reason } if self.given.contains(flag) => {
                ConfigError::Malformed { flag, value, reason }
            }
            other => other,
        }
    }

    /// A list of URLs. etcd parses them with the command line, so errors count as malformed there.
    fn urls(&self, flag: &'static str) -> Result<Vec<String>, ConfigError> {
        urls::list(flag, self.value(flag)).map_err(|error| self.blame(error))
    }

    /// URLs to listen on.
    fn listen_urls(&self, flag: &'static str) -> Result<Vec<ListenUrl>, ConfigError> {
        if self.value(flag).is_empty() {
            return Ok(Vec::new());
        }
        urls::listen(flag, self.urls(flag)?)
    }

    /// A comma-separated list.
    pub(super) fn list(&self, flag: &str) -> Vec<&str> {
        let items = self.text(flag).unwrap_or_default().split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).collect()
    }

    /// Warns about unknown options of a flag; as in etcd they do no harm.
    fn warn_of_options<'a>(&mut self, flag: &str, names: impl IntoIterator<Item = &'a str>) {
        let warning =
            |name: &str| format!("--{flag}: the option {name} is not known and has no effect");
        self.warnings.extend(names.into_iter().map(warning));
    }

    fn duration(&self, flag: &'static str) -> Result<Duration, ConfigError> {
        let value = self.value(flag);
        go::duration(value).map_err(|reason| self.malformed(flag, value, &reason))
    }
}

fn store(raw: &Raw) -> Result<StoreSettings, ConfigError> {
    let quota_bytes = match raw.number::<i64>("quota-backend-bytes")? {
        0 => Some(DEFAULT_QUOTA_BYTES),
        negative if negative < 0 => None,
        quota => Some(quota),
    };
    Ok(StoreSettings { quota_bytes, cache_bytes: raw.number("cache-bytes")? })
}

fn raft(raw: &Raw) -> Result<RaftSettings, ConfigError> {
    let heartbeat_ms = milliseconds(raw, "heartbeat-interval")?;
    let election_ms = milliseconds(raw, "election-timeout")?;
    if heartbeat_ms.saturating_mul(5) > election_ms {
        return Err(ConfigError::Rule(format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as \
             --heartbeat-interval[{heartbeat_ms}ms]"
        )));
    }
    if election_ms > ELECTION_TIMEOUT_MAX_MS {
        return Err(ConfigError::Rule(format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than \
             {ELECTION_TIMEOUT_MAX_MS}ms"
        )));
    }
    // As in etcd.
    let snapshot_count = match raw.number("snapshot-count")? {
        0 => default_number("snapshot-count"),
        count => count,
    };
    Ok(RaftSettings {
        heartbeat_interval: Duration::from_millis(heartbeat_ms),
        election_timeout: Duration::from_millis(election_ms),
        snapshot_count,
        snapshot_catchup_entries: raw.number("snapshot-catchup-entries")?,
    })
}

/// The default of a numeric flag.
fn default_number<T: TryFrom<i128>>(flag: &str) -> T {
    let flag = flags::find(flag).expect("invariant: only flags of the table are asked for");
    let number = go::integer(flag.default).and_then(|number| T::try_from(number).ok());
    number.expect("invariant: the default of a number is one")
}

fn milliseconds(raw: &Raw, flag: &'static str) -> Result<u64, ConfigError> {
    let value: u64 = raw.number(flag)?;
    if value == 0 {
        return Err(ConfigError::Rule(format!("--{flag} must be >0 (set to {value}ms)")));
    }
    Ok(value)
}

fn listen(raw: &Raw) -> Result<ListenSettings, ConfigError> {
    let is_advertised = raw.values.contains_key("advertise-client-urls");
    if !raw.is_file && raw.text("listen-client-urls").is_some() && !is_advertised {
        return Err(ConfigError::Rule(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly"
                .to_owned(),
        ));
    }
    Ok(ListenSettings {
        client: raw.listen_urls("listen-client-urls")?,
        http: raw.listen_urls("listen-client-http-urls")?,
        metrics: raw.listen_urls("listen-metrics-urls")?,
        peer: raw.listen_urls("listen-peer-urls")?,
        advertise_client_urls: raw.urls("advertise-client-urls")?,
        advertise_peer_urls: raw.urls("initial-advertise-peer-urls")?,
        reuses_ports: raw.switch("socket-reuse-port")?,
    })
}

fn bootstrap(
    raw: &Raw,
    name: &str,
    listen: &ListenSettings,
) -> Result<BootstrapSettings, ConfigError> {
    let initial_cluster = match raw.text("initial-cluster") {
        Some(value) => InitialCluster::parse(value)?,
        None => InitialCluster {
            members: [(name.to_owned(), listen.advertise_peer_urls.clone())].into(),
        },
    };
    let state = match raw.value("initial-cluster-state") {
        "new" => ClusterState::New,
        "existing" => ClusterState::Existing,
        other => {
            let reason = "expected new or existing";
            return Err(raw.malformed("initial-cluster-state", other, reason));
        }
    };
    Ok(BootstrapSettings { initial_cluster, state, token: token(raw), srv: srv::settings(raw)? })
}

fn membership(raw: &Raw) -> Result<MembershipSettings, ConfigError> {
    let learners_max: usize = raw.number("max-learners")?;
    if learners_max == 0 {
        return Err(invalid("max-learners", "0", "must be above 0"));
    }
    Ok(MembershipSettings {
        is_strict: raw.switch("strict-reconfig-check")?,
        learners_max,
        token: token(raw),
        force_new_cluster: raw.switch("force-new-cluster")?,
    })
}

fn checks(raw: &Raw, gates: Gates) -> Result<CheckSettings, ConfigError> {
    let interval = raw.duration("corrupt-check-time")?;
    Ok(CheckSettings {
        auto_compaction: auto_compaction(raw)?,
        corruption_interval: (!interval.is_zero()).then_some(interval),
        corruption_first: gates.initial_check,
    })
}

fn auto_compaction(raw: &Raw) -> Result<AutoCompaction, ConfigError> {
    const RETENTION: &str = "auto-compaction-retention";
    let retention = raw.value(RETENTION);
    match raw.value("auto-compaction-mode") {
        "periodic" => {
            // A bare number counts hours.
            let period = match retention.parse::<u64>() {
                Ok(hours) => Duration::from_secs(hours.saturating_mul(60 * 60)),
                Err(_) => raw.duration(RETENTION)?,
            };
            let is_off = period.is_zero();
            Ok(if is_off { AutoCompaction::Off } else { AutoCompaction::Periodic { period } })
        }
        "revision" => match retention.parse::<i64>() {
            Ok(0) => Ok(AutoCompaction::Off),
            Ok(kept) if kept > 0 => Ok(AutoCompaction::Revision { kept }),
            _ => Err(invalid(RETENTION, retention, "expected a number of revisions")),
        },
        other => Err(invalid("auto-compaction-mode", other, "expected periodic or revision")),
    }
}

fn token(raw: &Raw) -> String {
    raw.value("initial-cluster-token").to_owned()
}

fn limits(raw: &Raw) -> Result<Limits, ConfigError> {
    let interval = raw.duration("grpc-keepalive-interval")?;
    let concurrent_streams_max: u32 = raw.number("max-concurrent-streams")?;
    let lease_grants: u32 = raw.number("max-lease-grants")?;
    let answer_bytes_max = match raw.number::<u64>("max-answer-bytes")? {
        0 => memory::usable_bytes() / 2,
        bytes => bytes,
    };
    Ok(Limits {
        request_bytes_max: raw.number::<u64>("max-request-bytes")?.try_into().unwrap_or(usize::MAX),
        txn_ops_max: raw.number::<u32>("max-txn-ops")? as usize,
        answer_bytes_max,
        concurrent_streams_max: concurrent_streams_max.max(1),
        stream_watchers_max: most(raw, "max-stream-watchers")?,
        connection_watchers_max: most(raw, "max-connection-watchers")?,
        watchers_max: most(raw, "max-watchers")?,
        leases_max: most(raw, "max-leases")?,
        lease_grants_per_second_max: (lease_grants > 0).then_some(lease_grants),
        address_connections_max: most(raw, "max-address-connections")?,
        keepalive_interval: (!interval.is_zero()).then_some(interval),
        keepalive_timeout: raw.duration("grpc-keepalive-timeout")?,
    })
}

/// A maximum; 0 means unlimited.
fn most(raw: &Raw, flag: &'static str) -> Result<usize, ConfigError> {
    let number: u32 = raw.number(flag)?;
    Ok(if number == 0 { usize::MAX } else { number as usize })
}

fn auth(raw: &mut Raw) -> Result<AuthSettings, ConfigError> {
    let token = &raw.value("auth-token").to_owned();
    let jwt = match token.split_once(',').unwrap_or((token, "")) {
        ("simple", options) => {
            raw.warn_of_options("auth-token", options.split(',').filter(|name| !name.is_empty()));
            None
        }
        ("jwt", options) => Some(jwt(raw, token, options)?),
        _ => return Err(invalid("auth-token", token, "expected simple or jwt,...")),
    };
    // As in etcd 0 is the default.
    let ttl_seconds = match raw.number::<u32>("auth-token-ttl")? {
        0 => default_number("auth-token-ttl"),
        seconds => seconds,
    };
    let token_ttl = Duration::from_secs(ttl_seconds.into());
    Ok(AuthSettings { token_ttl, bcrypt_cost: bcrypt_cost(raw)?, jwt })
}

/// bcrypt's cost; as in etcd the default replaces a cost that bcrypt does not accept.
fn bcrypt_cost(raw: &mut Raw) -> Result<u32, ConfigError> {
    const FLAG: &str = "bcrypt-cost";
    let cost = raw.number(FLAG)?;
    if BCRYPT_COSTS.contains(&cost) {
        return Ok(cost);
    }
    let (least, most) = (BCRYPT_COSTS.start(), BCRYPT_COSTS.end());
    let default = default_number(FLAG);
    raw.warnings
        .push(format!("--{FLAG}={cost} is taken for {default}: it must be {least} to {most}"));
    Ok(default)
}

/// `pub-key=FILE,priv-key=FILE,sign-method=RS256,ttl=5m`
fn jwt(raw: &mut Raw, token: &str, options: &str) -> Result<JwtSettings, ConfigError> {
    let refuse = |reason: &str| invalid("auth-token", token, reason);
    let mut jwt = JwtSettings {
        method: String::new(),
        public_key: None,
        private_key: None,
        ttl: DEFAULT_JWT_TTL,
    };
    for option in options.split(',') {
        let (name, value) = option.split_once('=').ok_or_else(|| refuse("expected name=value"))?;
        match name {
            "sign-method" => value.clone_into(&mut jwt.method),
            "pub-key" => jwt.public_key = Some(PathBuf::from(value)),
            "priv-key" => jwt.private_key = Some(PathBuf::from(value)),
            "ttl" => {
                jwt.ttl = go::duration(value).map_err(|reason| refuse(&reason))?;
            }
            other => raw.warn_of_options("auth-token", [other]),
        }
    }
    if jwt.method.is_empty() {
        return Err(refuse("sign-method is missing"));
    }
    if jwt.ttl.as_secs() == 0 {
        return Err(refuse("ttl must be at least 1s"));
    }
    Ok(jwt)
}

fn web(raw: &Raw) -> Result<WebSettings, ConfigError> {
    // As in etcd, an empty list means no restriction.
    let listed = |flag| {
        let names: Vec<String> = raw.list(flag).into_iter().map(str::to_owned).collect();
        (!names.is_empty() && names.iter().all(|name| name != "*")).then_some(names)
    };
    Ok(WebSettings {
        origins: listed("cors"),
        hosts: listed("host-whitelist"),
        has_gateway: raw.switch("enable-grpc-gateway")?,
    })
}

fn trace(raw: &Raw) -> Result<Option<TraceSettings>, ConfigError> {
    const RATE: &str = "distributed-tracing-sampling-rate";
    let samples_per_million: u32 = raw.number(RATE)?;
    if samples_per_million > MILLION {
        return Err(ConfigError::Rule(format!("--{RATE} must be at most {MILLION}")));
    }
    if !raw.switch("enable-distributed-tracing")? {
        return Ok(None);
    }
    let address = raw.value("distributed-tracing-address");
    let has_scheme = address.contains("://");
    let service_name = raw.value("distributed-tracing-service-name");
    Ok(Some(TraceSettings {
        endpoint: if has_scheme { address.to_owned() } else { format!("http://{address}") },
        service_name: service_name.to_owned(),
        instance_id: raw.text("distributed-tracing-instance-id").map(str::to_owned),
        samples_per_million,
    }))
}

fn slow(raw: &Raw) -> Result<SlowSettings, ConfigError> {
    Ok(SlowSettings {
        apply: raw.duration("warning-apply-duration")?,
        request: raw.duration("warning-unary-request-duration")?,
    })
}

fn measures_calls(raw: &Raw) -> Result<bool, ConfigError> {
    match raw.value("metrics") {
        "basic" => Ok(false),
        "extensive" => Ok(true),
        other => Err(invalid("metrics", other, "expected basic or extensive")),
    }
}

fn registry(raw: &Raw) -> Result<RegistrySettings, ConfigError> {
    let checks = match raw.value("registry-checks") {
        "off" => ChecksAllowed::Off,
        "own" => ChecksAllowed::Own,
        "any" => ChecksAllowed::Any,
        other => return Err(invalid("registry-checks", other, "expected off, own or any")),
    };
    Ok(RegistrySettings {
        is_guarded: raw.switch("registry-guard")?,
        is_damping: raw.switch("registry-damping")?,
        checks,
    })
}

fn watch_progress_interval(raw: &mut Raw) -> Result<Duration, ConfigError> {
    const FLAG: &str = "watch-progress-notify-interval";
    let interval = raw.duration(FLAG)?;
    if interval < PROGRESS_INTERVAL_MIN {
        let (given, least) = (raw.value(FLAG), humantime::format_duration(PROGRESS_INTERVAL_MIN));
        raw.warnings.push(format!("--{FLAG}={given} is taken for {least}, which is the least"));
    }
    Ok(interval.max(PROGRESS_INTERVAL_MIN))
}

pub(super) fn invalid(flag: &'static str, value: &str, reason: &str) -> ConfigError {
    ConfigError::InvalidValue { flag, value: value.to_owned(), reason: reason.to_owned() }
}
