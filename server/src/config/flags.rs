//! The table of flags, and how a command line and the environment set them.
//!
//! Values are strings here; `resolve.rs` gives them types. Flags of etcd's that are not honoured
//! are listed too, so that they are refused by name rather than taken for typos or ignored.

use std::collections::{BTreeMap, BTreeSet};

use super::{ConfigError, file, go, suggest};

/// How a flag is treated when it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Changes a setting.
    Used,
    /// Harmless and without a counterpart here: accepted with a warning that gives the reason.
    NoEffect(&'static str),
    /// A switch that is always on: turning it off is accepted with a warning that gives the reason.
    Always(&'static str),
    /// Accepted only with this value, which is what we do anyway; otherwise not supported yet.
    Only(&'static str),
    /// No effect, as in etcd, which accepts it with any value or none.
    Ignored,
    /// Not supported, with what to use instead; harmless with its default.
    Instead(&'static str),
    /// Not supported yet.
    Later,
}

/// One flag of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    /// A switch needs no value; it takes one only as `--flag=value`.
    pub(super) is_switch: bool,
    pub(super) standing: Standing,
    /// The value if not given; empty for none.
    pub(super) default: &'static str,
    /// Meaning, for the usage text; empty if not worth a line there. docs/flags.md has all flags.
    pub(super) help: &'static str,
}

impl Flag {
    /// Whether a value equals the default; for a switch in any of Go's spellings.
    fn is_default(&self, value: &str) -> bool {
        if self.is_switch {
            go::boolean(value) == go::boolean(self.default)
        } else {
            value == self.default
        }
    }
}

const fn flag(name: &'static str, standing: Standing) -> Flag {
    Flag { name, is_switch: false, standing, default: "", help: "" }
}

const fn used(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { default, help, ..flag(name, Standing::Used) }
}

const fn switch(
    name: &'static str,
    standing: Standing,
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag { is_switch: true, default, help, ..flag(name, standing) }
}

/// A switch that was replaced by a feature gate.
const fn gate(name: &'static str) -> Flag {
    switch(name, Standing::Used, "", "")
}

const fn later(name: &'static str) -> Flag {
    flag(name, Standing::Later)
}

/// A flag of etcd's discovery service; an empty default makes any value refused.
const fn discovery(name: &'static str, default: &'static str) -> Flag {
    Flag { default, ..flag(name, Standing::Instead(BY_LIST)) }
}

const fn ignored(name: &'static str) -> Flag {
    Flag { is_switch: true, ..flag(name, Standing::Ignored) }
}

const fn no_effect(name: &'static str, reason: &'static str) -> Flag {
    flag(name, Standing::NoEffect(reason))
}

const fn switch_without_effect(name: &'static str, reason: &'static str) -> Flag {
    switch(name, Standing::NoEffect(reason), "", "")
}

const fn only(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { default: value, help, ..flag(name, Standing::Only(value)) }
}

const CONFIG_FILE: &str = "config-file";
/// Flags that etcd up to 3.6 has with the prefix `experimental-`.
pub(super) const GRADUATED: [&str; 20] = [
    "backend-bbolt-freelist-type",
    "bootstrap-defrag-threshold-megabytes",
    "compact-hash-check-time",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "distributed-tracing-address",
    "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate",
    "distributed-tracing-service-name",
    "downgrade-check-time",
    "enable-distributed-tracing",
    "max-learners",
    "memory-mlock",
    "peer-skip-client-san-verification",
    "snapshot-catchup-entries",
    "wait-cluster-ready-timeout",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "watch-progress-notify-interval",
];
/// What replaces the discovery service.
pub(super) const BY_LIST: &str = "use --initial-cluster or --discovery-srv";
/// The reason given for a flag that etcd ignores as well.
pub(super) const IGNORED: &str = "etcd ignores it, too";
const NO_BBOLT: &str = "there is no bbolt backend whose transactions could be batched";
const NO_LOOP: &str = "nothing here connects to its own client port";
const NO_V2: &str = "there is no v2 store";
const OWN_LOG: &str = "log files are recycled as soon as no member needs them";

const SILENT_PEERS: &str = "a member that falls silent is given up by --election-timeout";
const NO_PROXY: &str = "there is no v2 proxy";
const PACED: &str = "what is compacted is deleted in steps that pace themselves";

/// Every flag of etcd 3.4 to 3.7, and ours.
pub(super) const FLAGS: &[Flag] = &[
    // Identity and storage.
    used("name", "default", "human name of this member"),
    used("data-dir", "${name}.etcd", "directory of everything this member keeps"),
    used("wal-dir", "", "directory of the raft log, if not below --data-dir"),
    used("snapshot-count", "10000", "log entries between two snapshots"),
    used(
        "snapshot-catchup-entries",
        "5000",
        "log entries kept behind a snapshot for slow followers",
    ),
    used("quota-backend-bytes", "0", "size at which writes are refused (0: 2 GiB, negative: off)"),
    // Small on purpose: the page cache holds the rest.
    used("cache-bytes", "67108864", "memory for blocks of the store (not an etcd flag)"),
    no_effect("backend-batch-interval", NO_BBOLT),
    no_effect("backend-batch-limit", NO_BBOLT),
    no_effect("backend-bbolt-freelist-type", NO_BBOLT),
    no_effect("bootstrap-defrag-threshold-megabytes", NO_BBOLT),
    no_effect("max-wals", OWN_LOG),
    no_effect("max-snapshots", "one snapshot is kept"),
    switch_without_effect("unsafe-no-fsync", "an acknowledged write is always on disk"),
    // Timing.
    used("heartbeat-interval", "100", "milliseconds between two heartbeats of a leader"),
    used("election-timeout", "1000", "milliseconds without a leader until an election"),
    switch_without_effect(
        "initial-election-tick-advance",
        "the first election waits for a full timeout",
    ),
    switch(
        "pre-vote",
        Standing::Always("a member always asks before it disturbs a leader"),
        "true",
        "ask before disturbing a leader (always so)",
    ),
    no_effect("raft-read-timeout", SILENT_PEERS),
    no_effect("raft-write-timeout", SILENT_PEERS),
    // Listen and advertise.
    used("listen-client-urls", "http://localhost:2379", "where clients connect"),
    used("advertise-client-urls", "http://localhost:2379", "what members tell clients"),
    used("listen-peer-urls", "http://localhost:2380", "where the other members connect"),
    used("initial-advertise-peer-urls", "http://localhost:2380", "what members tell each other"),
    used("listen-client-http-urls", "", "where clients find everything but gRPC"),
    used("listen-metrics-urls", "", "where /metrics and /health are found in addition"),
    switch("socket-reuse-port", Standing::Used, "false", "several processes may listen on a port"),
    switch_without_effect(
        "socket-reuse-address",
        "addresses of connections that are ending are always reused",
    ),
    // Bootstrap.
    used(
        "initial-cluster",
        "${name}=${initial-advertise-peer-urls}",
        "first members, name=url,...",
    ),
    used("initial-cluster-state", "new", "new or existing"),
    used("initial-cluster-token", "etcd-cluster", "distinguishes clusters with equal URLs"),
    discovery("discovery", ""),
    discovery("discovery-token", ""),
    discovery("discovery-endpoints", ""),
    discovery("discovery-dial-timeout", "2s"),
    discovery("discovery-request-timeout", "5s"),
    discovery("discovery-keepalive-time", "2s"),
    discovery("discovery-keepalive-timeout", "6s"),
    Flag { is_switch: true, ..discovery("discovery-insecure-transport", "true") },
    Flag { is_switch: true, ..discovery("discovery-insecure-skip-tls-verify", "false") },
    discovery("discovery-cert", ""),
    discovery("discovery-key", ""),
    discovery("discovery-cacert", ""),
    discovery("discovery-user", ""),
    discovery("discovery-password", ""),
    used("discovery-srv", "", "domain whose SRV records name the first members"),
    used("discovery-srv-name", "", "suffix of the SRV service"),
    used("discovery-dns-server", "", "DNS server for that, if not the system's (not an etcd flag)"),
    no_effect("discovery-proxy", NO_V2),
    no_effect("discovery-fallback", NO_PROXY),
    only("proxy", "off", ""),
    no_effect("proxy-dial-timeout", NO_PROXY),
    no_effect("proxy-failure-wait", NO_PROXY),
    no_effect("proxy-read-timeout", NO_PROXY),
    no_effect("proxy-refresh-interval", NO_PROXY),
    no_effect("proxy-write-timeout", NO_PROXY),
    switch(
        "force-new-cluster",
        Standing::Used,
        "false",
        "go on as the only member, with the data in --data-dir (after a lost quorum)",
    ),
    switch("strict-reconfig-check", Standing::Used, "true", "keep a quorum in every change"),
    used("max-learners", "1", "most learners at a time"),
    used(
        "config-file",
        "",
        "YAML file of all settings; other flags and variables are then ignored",
    ),
    // TLS.
    used("cert-file", "", "certificate of the client port, in PEM form"),
    used("key-file", "", "its key"),
    switch(
        "client-cert-auth",
        Standing::Used,
        "false",
        "clients must have a certificate; its common name is the user",
    ),
    used("trusted-ca-file", "", "authorities that sign certificates of clients"),
    used("client-crl-file", "", "certificates of clients that are revoked"),
    used("client-cert-allowed-hostname", "", "names of which a client's certificate must have one"),
    switch("auto-tls", Standing::Used, "false", "a self-signed certificate for the client port"),
    no_effect("client-cert-file", NO_LOOP),
    no_effect("client-key-file", NO_LOOP),
    used("peer-cert-file", "", "certificate of the peer port, in PEM form"),
    used("peer-key-file", "", "its key"),
    used("peer-client-cert-file", "", "certificate shown to other members, if another"),
    used("peer-client-key-file", "", "its key"),
    switch("peer-client-cert-auth", Standing::Used, "false", "members must have a certificate"),
    used("peer-trusted-ca-file", "", "authorities that sign certificates of members"),
    used("peer-crl-file", "", "certificates of members that are revoked"),
    used("peer-cert-allowed-cn", "", "common names of which a member must have one"),
    used("peer-cert-allowed-hostname", "", "names of which a member's certificate must have one"),
    switch("peer-auto-tls", Standing::Used, "false", "a self-signed certificate for the peer port"),
    switch(
        "peer-skip-client-san-verification",
        Standing::Used,
        "false",
        "do not compare the names in a member's certificate with its address",
    ),
    used("cipher-suites", "", "cipher suites of TLS 1.2 by Go's names (\"\": all)"),
    used("tls-min-version", "TLS1.2", "TLS1.2 or TLS1.3"),
    used("tls-max-version", "TLS1.3", "TLS1.2 or TLS1.3"),
    used("self-signed-cert-validity", "1", "years that a self-signed certificate is valid"),
    // Auth.
    used(
        "auth-token",
        "simple",
        "kind of tokens: simple, or jwt,sign-method=RS256,priv-key=FILE[,pub-key=FILE][,ttl=5m]",
    ),
    used("auth-token-ttl", "300", "seconds that a simple token lives unused"),
    used("bcrypt-cost", "10", "work for one hash of a password, 4 to 31"),
    // Limits.
    used("max-request-bytes", "1572864", "largest request, as etcd would put it into its log"),
    used("max-txn-ops", "128", "most operations in a branch of a transaction"),
    // etcd allows any number; a connection that opens more than this is broken or hostile.
    used("max-concurrent-streams", "65536", "most calls in flight on one connection"),
    no_effect("grpc-keepalive-min-time", "pings of clients are never punished"),
    used("grpc-keepalive-interval", "2h", "how often an idle connection is pinged (0: never)"),
    used("grpc-keepalive-timeout", "20s", "how long a pinged client may take to answer"),
    used("cors", "*", "origins whose pages browsers let use the API"),
    used("host-whitelist", "*", "hosts that requests without TLS may name, but for gRPC"),
    // Compaction and watch.
    used("auto-compaction-mode", "periodic", "periodic or revision"),
    used(
        "auto-compaction-retention",
        "0",
        "history that is kept (0: all): 30m or a number of hours, or of revisions",
    ),
    no_effect("compaction-batch-limit", PACED),
    no_effect("compaction-sleep-interval", PACED),
    used("watch-progress-notify-interval", "10m", "how often an idle watcher hears of progress"),
    used("corrupt-check-time", "0s", "how often members compare all that they store (0: never)"),
    no_effect("compact-hash-check-time", "members are compared at every compaction"),
    no_effect("downgrade-check-time", "there is no older storage format to go back to"),
    // Logs, metrics.
    used("log-level", "info", "debug, info, warn, error"),
    used("log-outputs", "default", "default, stderr, stdout or paths of files"),
    used("log-format", "json", "json or console"),
    used("logger", "zap", "name of etcd's logger, zap or capnslog, which changes nothing"),
    no_effect("log-output", "it is --log-outputs that is honoured"),
    switch("enable-log-rotation", Standing::Used, "false", "begin a new log file when one is full"),
    used("log-rotation-config-json", "{\"maxsize\":100}", "MB of a file, days and files kept"),
    used("metrics", "basic", "basic, or extensive for the durations of calls"),
    switch_without_effect("enable-pprof", "profiles of Go's runtime do not exist here; use perf"),
    switch("enable-grpc-gateway", Standing::Used, "true", "answer JSON at /v3/"),
    used("warning-apply-duration", "100ms", "warn if applying takes longer"),
    used("warning-unary-request-duration", "300ms", "warn if a call takes longer"),
    switch("enable-distributed-tracing", Standing::Used, "false", "send spans of calls by OTLP"),
    used("distributed-tracing-address", "localhost:4317", "where a collector takes them (gRPC)"),
    used("distributed-tracing-service-name", "etcd", "service that the spans are said to be of"),
    used("distributed-tracing-instance-id", "", "instance that the spans are said to be of"),
    used(
        "distributed-tracing-sampling-rate",
        "0",
        "of a million calls whose callers do not trace, how many are traced",
    ),
    used("feature-gates", "", "etcd's feature gates, A=true,B=false"),
    gate("experimental-compact-hash-check-enabled"),
    gate("experimental-enable-lease-checkpoint"),
    gate("experimental-enable-lease-checkpoint-persist"),
    gate("experimental-initial-corrupt-check"),
    gate("experimental-set-member-localaddr"),
    gate("experimental-stop-grpc-service-on-defrag"),
    gate("experimental-txn-mode-write-with-shared-buffer"),
    no_effect("wait-cluster-ready-timeout", "each call waits for a leader by itself"),
    no_effect("experimental-enable-v2v3", NO_V2),
    no_effect("v2-deprecation", NO_V2),
    // `debug` is etcd 3.4's form of `--log-level=debug`.
    switch("debug", Standing::Used, "false", ""),
    no_effect("log-package-levels", "all that is logged has the level of --log-level"),
    switch_without_effect("enable-v2", NO_V2),
    switch_without_effect("memory-mlock", "no file of the store is mapped into memory"),
    // Flags left over from etcd 2, which its help does not show.
    ignored("cluster-active-size"),
    ignored("cluster-remove-delay"),
    ignored("cluster-sync-interval"),
    ignored("config"),
    ignored("force"),
    ignored("max-result-buffer"),
    ignored("max-retry-attempts"),
    ignored("peer-election-timeout"),
    ignored("peer-heartbeat-interval"),
    ignored("retry-interval"),
    ignored("snapshot"),
    ignored("v"),
    ignored("vv"),
    later("peer-skip-client-verify"),
    later("watch-progress-notify-interval-jitter"),
    // The registry (not etcd flags).
    switch(
        "registry-guard",
        Standing::Used,
        "true",
        "keep lost instances if most are lost at once",
    ),
    switch("registry-damping", Standing::Used, "true", "damp instances that come and go too often"),
    used("max-answer-bytes", "0", "memory for the answers to long reads, 0: half of what there is"),
    // etcd has none of these: they limit mistakes and abuse.
    used("max-stream-watchers", "250000", "most watchers on one stream (0: any number)"),
    used("max-connection-watchers", "500000", "most watchers on one connection (0: any number)"),
    used("max-watchers", "1000000", "most watchers on this member (0: any number)"),
    used("max-leases", "10000000", "leases beyond which no more are granted (0: any number)"),
    used("max-lease-grants", "100000", "most leases granted in a second (0: any number)"),
    used("max-address-connections", "16384", "most connections of one address (0: any number)"),
    used("registry-checks", "own", "active checks of own addresses, of any, or off"),
    used(
        "registry-checks-trusted-ca-file",
        "",
        "authorities that checks by TLS believe (none: the system's)",
    ),
];

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Start the server with these values by flag name.
    Run(Raw),
    /// `--version`.
    Version,
    /// `--help`.
    Help,
}

/// Values by flag name, and what to warn about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) values: BTreeMap<&'static str, String>,
    /// Flags given on the command line itself; other values come from variables or a file.
    pub(super) given: BTreeSet<&'static str>,
    /// Whether all values come from a file.
    pub(super) is_file: bool,
    pub(super) warnings: Vec<String>,
}

/// Reads the flags, then environment variables for the flags that are not given.
pub(super) fn read(
    arguments: impl IntoIterator<Item = String>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Asked, ConfigError> {
    let mut raw = Raw::default();
    let environment: Vec<(String, String)> = environment.into_iter().collect();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            return Err(match argument.as_str() {
                "gateway" | "grpc-proxy" => ConfigError::NotACommand(argument),
                _ => ConfigError::NotAFlag(argument),
            });
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "version" => return Ok(Asked::Version),
            "help" | "h" => return Ok(Asked::Help),
            _ => {}
        }
        let flag = find(name).ok_or_else(|| ConfigError::UnknownFlag {
            flag: name.to_owned(),
            like: suggest::nearest(name, names()),
        })?;
        let value = match inline {
            Some(value) => value,
            None if flag.is_switch => "true".to_owned(),
            None => arguments.next().ok_or(ConfigError::MissingValue(flag.name))?,
        };
        raw.values.insert(flag.name, value);
        raw.given.insert(flag.name);
    }
    match config_file(&raw, &environment) {
        None => read_environment(&mut raw, environment)?,
        Some(path) => {
            let ignored = raw.values.into_keys().filter(|flag| *flag != CONFIG_FILE);
            let ignored: Vec<&str> = ignored.collect();
            raw = file::read(&path)?;
            let warning =
                |flag: &str| format!("--{flag} is ignored since --{CONFIG_FILE} is given");
            raw.warnings.extend(ignored.into_iter().map(warning));
        }
    }
    check_standing(&mut raw)?;
    Ok(Asked::Run(raw))
}

/// Path of the configuration file, if one is given.
fn config_file(raw: &Raw, environment: &[(String, String)]) -> Option<String> {
    let from_environment = || {
        let variables = ["ETCD_CONFIG_FILE", "CONCLAVE_CONFIG_FILE"];
        let found = environment.iter().find(|(name, _)| variables.contains(&name.as_str()));
        found.map(|(_, path)| path)
    };
    let path = raw.values.get(CONFIG_FILE).or_else(from_environment);
    path.filter(|path| !path.is_empty()).cloned()
}

/// Names of all flags.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|flag| flag.name)
}

pub(super) fn find(name: &str) -> Option<&'static Flag> {
    let stable = name.strip_prefix("experimental-").filter(|name| GRADUATED.contains(name));
    let name = stable.unwrap_or(name);
    FLAGS.iter().find(|flag| flag.name == name)
}

fn read_environment(
    raw: &mut Raw,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    let mut from_environment: BTreeMap<&'static str, String> = BTreeMap::new();
    for (variable, value) in environment {
        let Some(suffix) =
            variable.strip_prefix("ETCD_").or_else(|| variable.strip_prefix("CONCLAVE_"))
        else {
            continue;
        };
        // As etcd: an empty variable counts as unset.
        if value.is_empty() {
            continue;
        }
        let Some(flag) = find(&suffix.to_ascii_lowercase().replace('_', "-")) else {
            // Only a warning: supervisors set variables of their own with this prefix.
            raw.warnings.push(format!("unrecognized environment variable {variable}"));
            continue;
        };
        if raw.values.contains_key(flag.name) {
            return Err(ConfigError::Shadowed { variable });
        }
        if from_environment.insert(flag.name, value).is_some() {
            return Err(ConfigError::TwoVariables { flag: flag.name });
        }
    }
    raw.values.extend(from_environment);
    Ok(())
}

fn check_standing(raw: &mut Raw) -> Result<(), ConfigError> {
    for (name, value) in &raw.values {
        let flag = find(name).expect("invariant: only names of the table are stored");
        // An empty value means the default, and an ignored flag may have any value.
        let has_value = !value.is_empty() && flag.standing != Standing::Ignored;
        let is_off = flag.is_switch && has_value && !raw.switch(flag.name)?;
        match flag.standing {
            Standing::Used => {}
            Standing::Ignored => {
                raw.warnings.push(format!("--{name} has no effect: {IGNORED}"));
            }
            Standing::Only(_) | Standing::Instead(_) | Standing::Later if !has_value => {}
            Standing::Instead(_) if flag.is_default(value) => {}
            Standing::Instead(advice) => {
                return Err(ConfigError::NotSupported { flag: flag.name, advice });
            }
            Standing::Always(reason) if is_off => {
                raw.warnings.push(format!("--{name}={value} has no effect: {reason}"));
            }
            Standing::Always(_) => {}
            Standing::NoEffect(reason) => {
                raw.warnings.push(format!("--{name} has no effect: {reason}"));
            }
            Standing::Only(_) if flag.is_default(value) => {}
            Standing::Only(supported) => {
                return Err(ConfigError::OnlyValue { flag: flag.name, supported });
            }
            Standing::Later => return Err(ConfigError::NotSupportedYet(flag.name)),
        }
    }
    Ok(())
}

/// The usage text: every flag that has an effect, with its default.
pub(super) fn usage() -> String {
    let mut text = String::from(
        "Usage: conclave server [flags]\n\nFlags are etcd's; each is also read from ETCD_<NAME> \
         or CONCLAVE_<NAME>.\n\n",
    );
    for flag in FLAGS.iter().filter(|flag| !flag.help.is_empty()) {
        let Flag { name, default, help, .. } = flag;
        let is_text = !flag.is_switch && default.parse::<i64>().is_err();
        let quote = if is_text { "'" } else { "" };
        text.push_str(&format!("  --{name:<32} {quote}{default}{quote}: {help}\n"));
    }
    text.push_str("  --version                          print the version and exit\n");
    text
}
