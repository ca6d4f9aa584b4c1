//! From raw flag values to checked settings.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::cluster::InitialCluster;
use super::flags::{self, Raw};
use super::gates::Gates;
use super::settings::{
    AuthSettings, AutoCompaction, BootstrapSettings, CheckSettings, ChecksAllowed, ClusterState,
    JwtSettings, Limits, ListenSettings, MembershipSettings, RaftSettings, RegistrySettings,
    Settings, SlowSettings, StoreSettings, TraceSettings, WebSettings,
};
use super::{ConfigError, gates, logs, srv, tls, urls};

const DEFAULT_CLIENT_URL: &str = "http://localhost:2379";
const DEFAULT_PEER_URL: &str = "http://localhost:2380";
const DEFAULT_QUOTA_BYTES: i64 = 2 * 1024 * 1024 * 1024;
/// Blocks of the store kept in memory. Small on purpose: the page cache holds the rest.
const DEFAULT_CACHE_BYTES: usize = 64 * 1024 * 1024;
const DEFAULT_COLLECTOR: &str = "localhost:4317";
/// What samples are counted in.
const MILLION: u32 = 1_000_000;
const SLOW_APPLY: Duration = Duration::from_millis(100);
const SLOW_REQUEST: Duration = Duration::from_millis(300);
const DEFAULT_REQUEST_BYTES: u32 = 1_572_864;
/// etcd allows any number; a connection that opens more than this is broken or hostile.
const DEFAULT_CONCURRENT_STREAMS: u32 = 65_536;
const DEFAULT_TOKEN_TTL_SECONDS: u32 = 300;
const DEFAULT_JWT_TTL: Duration = Duration::from_secs(5 * 60);
const DEFAULT_BCRYPT_COST: u32 = 10;
/// What bcrypt knows.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=31;
const ELECTION_TIMEOUT_MAX_MS: u64 = 50_000;
/// etcd refuses shorter intervals, which would flood idle watchers.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Gives every value its type and checks the rules that span several flags.
pub(super) fn settings(mut raw: Raw) -> Result<Settings, ConfigError> {
    let name = raw.text("name").unwrap_or("default").to_owned();
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
        auth: auth(&raw)?,
        log: logs::settings(&raw)?,
        trace: trace(&raw)?,
        slow: slow(&raw)?,
        gates,
        measures_calls: measures_calls(&raw)?,
        web: web(&raw)?,
        registry: registry(&raw)?,
        watch_progress_interval: watch_progress_interval(&raw)?,
        name,
        data_dir,
        listen,
        tls,
        bootstrap,
        warnings: raw.warnings,
    })
}

impl Raw {
    /// The value if given and not empty: as in etcd an empty string means the default.
    pub(super) fn text(&self, flag: &str) -> Option<&str> {
        self.values.get(flag).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn number<T: FromStr>(
        &self,
        flag: &'static str,
        default: T,
    ) -> Result<T, ConfigError>
    where
        T::Err: std::fmt::Display,
    {
        let Some(value) = self.text(flag) else { return Ok(default) };
        value.parse().map_err(|error: T::Err| self.malformed(flag, value, &error.to_string()))
    }

    /// A switch; its values are those of Go's `ParseBool`.
    pub(super) fn switch(&self, flag: &'static str, default: bool) -> Result<bool, ConfigError> {
        let Some(value) = self.text(flag) else { return Ok(default) };
        flags::boolean(value).ok_or_else(|| self.malformed(flag, value, "expected true or false"))
    }

    /// A value that is not of its flag's type: on the command line it is the line that is malformed.
    fn malformed(&self, flag: &'static str, value: &str, reason: &str) -> ConfigError {
        let (value, reason) = (value.to_owned(), reason.to_owned());
        if self.given.contains(flag) {
            return ConfigError::Malformed { flag, value, reason };
        }
        ConfigError::InvalidValue { flag, value, reason }
    }

    /// A list with commas between its items.
    pub(super) fn list(&self, flag: &str) -> Vec<&str> {
        let items = self.text(flag).unwrap_or_default().split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).collect()
    }

    /// Go's duration syntax, as far as people use it: `10m`, `2h`, `1m30s`, `500ms`, `0`.
    fn duration(&self, flag: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(value) = self.text(flag) else { return Ok(default) };
        if value == "0" {
            return Ok(Duration::ZERO);
        }
        humantime::parse_duration(value)
            .map_err(|error| self.malformed(flag, value, &error.to_string()))
    }
}

fn store(raw: &Raw) -> Result<StoreSettings, ConfigError> {
    let quota_bytes = match raw.number("quota-backend-bytes", 0i64)? {
        0 => Some(DEFAULT_QUOTA_BYTES),
        negative if negative < 0 => None,
        quota => Some(quota),
    };
    Ok(StoreSettings { quota_bytes, cache_bytes: raw.number("cache-bytes", DEFAULT_CACHE_BYTES)? })
}

fn raft(raw: &Raw) -> Result<RaftSettings, ConfigError> {
    let heartbeat_ms = milliseconds(raw, "heartbeat-interval", 100)?;
    let election_ms = milliseconds(raw, "election-timeout", 1000)?;
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
    let snapshot_count = raw.number("snapshot-count", 10_000u64)?;
    if snapshot_count == 0 {
        return Err(invalid("snapshot-count", "0", "must be above 0"));
    }
    Ok(RaftSettings {
        heartbeat_interval: Duration::from_millis(heartbeat_ms),
        election_timeout: Duration::from_millis(election_ms),
        snapshot_count,
        snapshot_catchup_entries: raw.number("snapshot-catchup-entries", 5_000)?,
    })
}

fn milliseconds(raw: &Raw, flag: &'static str, default: u64) -> Result<u64, ConfigError> {
    let value: u64 = raw.number(flag, default)?;
    if value == 0 {
        return Err(ConfigError::Rule(format!("--{flag} must be >0 (set to {value}ms)")));
    }
    Ok(value)
}

fn listen(raw: &Raw) -> Result<ListenSettings, ConfigError> {
    let client = raw.text("listen-client-urls");
    let advertise_client = raw.text("advertise-client-urls");
    if client.is_some() && advertise_client.is_none() {
        return Err(ConfigError::Rule(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly"
                .to_owned(),
        ));
    }
    let optional = |flag: &'static str| {
        raw.text(flag).map_or(Ok(Vec::new()), |urls| urls::listen_list(flag, urls))
    };
    let peer = raw.text("listen-peer-urls").unwrap_or(DEFAULT_PEER_URL);
    let advertise_peer = raw.text("initial-advertise-peer-urls").unwrap_or(DEFAULT_PEER_URL);
    Ok(ListenSettings {
        client: urls::listen_list("listen-client-urls", client.unwrap_or(DEFAULT_CLIENT_URL))?,
        http: optional("listen-client-http-urls")?,
        metrics: optional("listen-metrics-urls")?,
        peer: urls::listen_list("listen-peer-urls", peer)?,
        advertise_client_urls: urls::list(
            "advertise-client-urls",
            advertise_client.unwrap_or(DEFAULT_CLIENT_URL),
        )?,
        advertise_peer_urls: urls::list("initial-advertise-peer-urls", advertise_peer)?,
        reuses_ports: raw.switch("socket-reuse-port", false)?,
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
    let state = match raw.text("initial-cluster-state").unwrap_or("new") {
        "new" => ClusterState::New,
        "existing" => ClusterState::Existing,
        other => return Err(invalid("initial-cluster-state", other, "expected new or existing")),
    };
    Ok(BootstrapSettings { initial_cluster, state, token: token(raw), srv: srv::settings(raw)? })
}

fn membership(raw: &Raw) -> Result<MembershipSettings, ConfigError> {
    let learners_max: usize = raw.number("max-learners", 1)?;
    if learners_max == 0 {
        return Err(invalid("max-learners", "0", "must be above 0"));
    }
    Ok(MembershipSettings {
        is_strict: raw.switch("strict-reconfig-check", true)?,
        learners_max,
        token: token(raw),
        force_new_cluster: raw.switch("force-new-cluster", false)?,
    })
}

fn checks(raw: &Raw, gates: Gates) -> Result<CheckSettings, ConfigError> {
    let interval = raw.duration("corrupt-check-time", Duration::ZERO)?;
    Ok(CheckSettings {
        auto_compaction: auto_compaction(raw)?,
        corruption_interval: (!interval.is_zero()).then_some(interval),
        corruption_first: gates.initial_check,
    })
}

fn auto_compaction(raw: &Raw) -> Result<AutoCompaction, ConfigError> {
    const RETENTION: &str = "auto-compaction-retention";
    let retention = raw.text(RETENTION).unwrap_or("0");
    match raw.text("auto-compaction-mode").unwrap_or("periodic") {
        "periodic" => {
            // A bare number counts hours.
            let period = match retention.parse::<u64>() {
                Ok(hours) => Duration::from_secs(hours.saturating_mul(60 * 60)),
                Err(_) => raw.duration(RETENTION, Duration::ZERO)?,
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
    raw.text("initial-cluster-token").unwrap_or("etcd-cluster").to_owned()
}

fn limits(raw: &Raw) -> Result<Limits, ConfigError> {
    let interval = raw.duration("grpc-keepalive-interval", Duration::from_secs(2 * 60 * 60))?;
    let concurrent_streams_max: u32 =
        raw.number("max-concurrent-streams", DEFAULT_CONCURRENT_STREAMS)?;
    Ok(Limits {
        request_bytes_max: raw.number("max-request-bytes", DEFAULT_REQUEST_BYTES)? as usize,
        txn_ops_max: raw.number::<u32>("max-txn-ops", 128)? as usize,
        concurrent_streams_max: concurrent_streams_max.max(1),
        keepalive_interval: (!interval.is_zero()).then_some(interval),
        keepalive_timeout: raw.duration("grpc-keepalive-timeout", Duration::from_secs(20))?,
    })
}

fn auth(raw: &Raw) -> Result<AuthSettings, ConfigError> {
    let token = raw.text("auth-token").unwrap_or("simple");
    let jwt = match token.split_once(',').unwrap_or((token, "")) {
        ("simple", "") => None,
        ("jwt", options) => Some(jwt(token, options)?),
        _ => return Err(invalid("auth-token", token, "expected simple or jwt,...")),
    };
    let ttl_seconds: u32 = raw.number("auth-token-ttl", DEFAULT_TOKEN_TTL_SECONDS)?;
    if ttl_seconds == 0 {
        return Err(invalid("auth-token-ttl", "0", "must be above 0"));
    }
    let bcrypt_cost = raw.number("bcrypt-cost", DEFAULT_BCRYPT_COST)?;
    if !BCRYPT_COSTS.contains(&bcrypt_cost) {
        let reason = format!("must be {} to {}", BCRYPT_COSTS.start(), BCRYPT_COSTS.end());
        return Err(invalid("bcrypt-cost", &bcrypt_cost.to_string(), &reason));
    }
    Ok(AuthSettings { token_ttl: Duration::from_secs(ttl_seconds.into()), bcrypt_cost, jwt })
}

/// `pub-key=FILE,priv-key=FILE,sign-method=RS256,ttl=5m`
fn jwt(token: &str, options: &str) -> Result<JwtSettings, ConfigError> {
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
                let ttl = humantime::parse_duration(value);
                jwt.ttl = ttl.map_err(|error| refuse(&error.to_string()))?;
            }
            _ => return Err(refuse("expected sign-method, pub-key, priv-key and ttl")),
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
    // As in etcd an empty list is no limit either.
    let listed = |flag| {
        let names: Vec<String> = raw.list(flag).into_iter().map(str::to_owned).collect();
        (!names.is_empty() && names.iter().all(|name| name != "*")).then_some(names)
    };
    Ok(WebSettings {
        origins: listed("cors"),
        hosts: listed("host-whitelist"),
        has_gateway: raw.switch("enable-grpc-gateway", true)?,
    })
}

fn trace(raw: &Raw) -> Result<Option<TraceSettings>, ConfigError> {
    const RATE: &str = "distributed-tracing-sampling-rate";
    let samples_per_million: u32 = raw.number(RATE, 0)?;
    if samples_per_million > MILLION {
        return Err(ConfigError::Rule(format!("--{RATE} must be at most {MILLION}")));
    }
    if !raw.switch("enable-distributed-tracing", false)? {
        return Ok(None);
    }
    let address = raw.text("distributed-tracing-address").unwrap_or(DEFAULT_COLLECTOR);
    let has_scheme = address.contains("://");
    let service_name = raw.text("distributed-tracing-service-name").unwrap_or("etcd");
    Ok(Some(TraceSettings {
        endpoint: if has_scheme { address.to_owned() } else { format!("http://{address}") },
        service_name: service_name.to_owned(),
        instance_id: raw.text("distributed-tracing-instance-id").map(str::to_owned),
        samples_per_million,
    }))
}

fn slow(raw: &Raw) -> Result<SlowSettings, ConfigError> {
    Ok(SlowSettings {
        apply: raw.duration("warning-apply-duration", SLOW_APPLY)?,
        request: raw.duration("warning-unary-request-duration", SLOW_REQUEST)?,
    })
}

fn measures_calls(raw: &Raw) -> Result<bool, ConfigError> {
    match raw.text("metrics").unwrap_or("basic") {
        "basic" => Ok(false),
        "extensive" => Ok(true),
        other => Err(invalid("metrics", other, "expected basic or extensive")),
    }
}

fn registry(raw: &Raw) -> Result<RegistrySettings, ConfigError> {
    let checks = match raw.text("registry-checks").unwrap_or("own") {
        "off" => ChecksAllowed::Off,
        "own" => ChecksAllowed::Own,
        "any" => ChecksAllowed::Any,
        other => return Err(invalid("registry-checks", other, "expected off, own or any")),
    };
    Ok(RegistrySettings {
        is_guarded: raw.switch("registry-guard", true)?,
        is_damping: raw.switch("registry-damping", true)?,
        checks,
    })
}

fn watch_progress_interval(raw: &Raw) -> Result<Duration, ConfigError> {
    const FLAG: &str = "watch-progress-notify-interval";
    let interval = raw.duration(FLAG, Duration::from_secs(10 * 60))?;
    if interval < PROGRESS_INTERVAL_MIN {
        let value = humantime::format_duration(interval).to_string();
        return Err(invalid(FLAG, &value, "must be at least 100ms"));
    }
    Ok(interval)
}

pub(super) fn invalid(flag: &'static str, value: &str, reason: &str) -> ConfigError {
    ConfigError::InvalidValue { flag, value: value.to_owned(), reason: reason.to_owned() }
}
