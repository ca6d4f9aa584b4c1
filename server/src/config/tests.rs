//! Tests of flags, environment variables and the rules between them.

use std::time::Duration;

use conclave_transport::Pair;

use super::*;

fn parse_with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, ConfigError> {
    parse(
        arguments.iter().map(|&argument| argument.to_owned()),
        environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())),
    )
}

fn settings(arguments: &[&str], environment: &[(&str, &str)]) -> Settings {
    match parse_with(arguments, environment) {
        Ok(Invocation::Run(settings)) => *settings,
        other => panic!("expected settings, got {other:?}"),
    }
}

fn error(arguments: &[&str]) -> String {
    parse_with(arguments, &[]).expect_err("must be refused").to_string()
}

#[test]
fn defaults_are_etcds() {
    let settings = settings(&[], &[]);
    assert_eq!(settings.name, "default");
    assert_eq!(settings.data_dir.to_str(), Some("default.etcd"));
    assert_eq!(settings.store.quota_bytes, Some(2 * 1024 * 1024 * 1024));
    assert_eq!(settings.raft.heartbeat_interval, Duration::from_millis(100));
    assert_eq!(settings.raft.election_timeout, Duration::from_secs(1));
    assert_eq!(settings.raft.snapshot_count, 10_000);
    assert_eq!(settings.listen.client[0].place, Place::Tcp(([127, 0, 0, 1], 2379).into()));
    assert_eq!(settings.listen.peer[0].place, Place::Tcp(([127, 0, 0, 1], 2380).into()));
    assert_eq!(settings.limits.txn_ops_max, 128);
    assert_eq!(settings.bootstrap.token, "etcd-cluster");
    assert_eq!(settings.bootstrap.state, ClusterState::New);
    assert_eq!(settings.log.format, LogFormat::Json);
    assert!(settings.warnings.is_empty());
    settings.verify_bootstrap().unwrap();
}

#[test]
fn a_value_comes_after_a_space_or_an_equals_sign() {
    for arguments in [&["--name", "n1"][..], &["--name=n1"], &["-name", "n1"], &["-name=n1"]] {
        assert_eq!(settings(arguments, &[]).name, "n1");
    }
    assert_eq!(settings(&["--name=a", "--name=b"], &[]).name, "b", "the last one wins, as in Go");
    assert_eq!(error(&["--name"]), "flag needs an argument: --name");
    assert_eq!(error(&["server"]), "'server' is not a valid flag");
}

#[test]
fn switches_take_no_separate_value() {
    settings(&["--pre-vote", "--strict-reconfig-check=true"], &[]);
    assert_eq!(error(&["--pre-vote", "true"]), "'true' is not a valid flag");
}

#[test]
fn switches_are_spelled_as_in_go() {
    for (values, is_on) in [
        (["1", "t", "T", "true", "TRUE", "True"], true),
        (["0", "f", "F", "false", "FALSE", "False"], false),
    ] {
        for value in values {
            let standings = [flags::Standing::Ignored, flags::Standing::Instead(flags::BY_LIST)];
            let is_read =
                |flag: &&flags::Flag| flag.is_switch && !standings.contains(&flag.standing);
            for flag in flags::FLAGS.iter().filter(is_read) {
                let argument = format!("--{}={value}", flag.name);
                let asked = flags::read([argument.clone()], []);
                assert!(matches!(asked, Ok(flags::Asked::Run(_))), "{argument}");
                let wrong = parse_with(&[&format!("{argument}x")], &[]).expect_err(&argument);
                assert_eq!(wrong.exit_code(), 2, "{argument}x");
            }
            let settings = settings(
                &[&format!("--strict-reconfig-check={value}"), &format!("--pre-vote={value}")],
                &[("CONCLAVE_REGISTRY_GUARD", value), ("CONCLAVE_REGISTRY_DAMPING", value)],
            );
            assert_eq!(settings.membership.is_strict, is_on, "{value}");
            assert_eq!(settings.registry.is_guarded, is_on, "{value}");
            assert_eq!(settings.registry.is_damping, is_on, "{value}");
            let warnings = if is_on {
                vec![]
            } else {
                let why = "a member always asks before it disturbs a leader";
                vec![format!("--pre-vote={value} has no effect: {why}")]
            };
            assert_eq!(settings.warnings, warnings);
        }
    }
}

#[test]
fn a_command_line_with_a_value_of_another_type_is_malformed() {
    for arguments in [
        &["--quota-backend-bytes=abc"][..],
        &["--max-request-bytes", "-1"],
        &["--grpc-keepalive-timeout=x"],
        &["--unsafe-no-fsync=maybe"],
        &["--listen-peer-urls=ftp://127.0.0.1:1"],
        &["--initial-advertise-peer-urls=http://127.0.0.1:1/"],
        &["--listen-client-urls=foo", "--advertise-client-urls=http://127.0.0.1:1"],
        &["--initial-cluster-state=old"],
        &["--log-level=x"],
    ] {
        let error = parse_with(arguments, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{arguments:?}: {error}");
    }
}

/// Each case was compared with etcd 3.4.23 and 3.5.1.
#[test]
fn values_that_cannot_be_are_no_fault_of_the_line() {
    for arguments in [
        &["--max-learners=0"][..],
        &["--listen-peer-urls=http://a:1"],
        &["--initial-cluster=default=http://127.0.0.1:1/"],
        &["--initial-cluster=a"],
        &["--auto-compaction-mode=x"],
        &["--auth-token=x"],
        &["--logger=x"],
        &["foo"],
    ] {
        let error = parse_with(arguments, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{arguments:?}: {error}");
    }
    for variable in [("ETCD_QUOTA_BACKEND_BYTES", "abc"), ("ETCD_LISTEN_PEER_URLS", "foo")] {
        let error = parse_with(&[], &[variable]).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{variable:?}: {error}");
    }
}

#[test]
fn a_url_ends_with_its_port() {
    for flag in [
        "listen-client-urls",
        "listen-peer-urls",
        "listen-metrics-urls",
        "advertise-client-urls",
        "initial-advertise-peer-urls",
        "initial-cluster=default",
    ] {
        let flag = format!("--{flag}=http://127.0.0.1:1/");
        let slash = error(&["--advertise-client-urls=http://a:1", &flag]);
        assert!(slash.ends_with("URL must not contain a path"), "{slash}");
    }
}

#[test]
fn flags_of_old_etcds_do_no_harm() {
    let proxy =
        settings(&["--proxy=off", "--proxy-read-timeout=0", "--discovery-fallback=exit"], &[]);
    assert_eq!(proxy.warnings.len(), 2, "{:?}", proxy.warnings);
    assert_eq!(
        error(&["--proxy=on"]),
        "--proxy is not supported yet with a value other than \"off\""
    );
    let level = |arguments: &[&str]| settings(arguments, &[]).log.level;
    assert_eq!(level(&["--debug"]), tracing::Level::DEBUG);
    assert_eq!(level(&["--debug=false"]), tracing::Level::INFO);
    assert_eq!(level(&["--debug", "--log-level=warn"]), tracing::Level::WARN);
}

#[test]
fn what_etcd_ignores_is_taken_with_any_value() {
    let given = "--config=a.yml --force --snapshot --v --vv=2 --max-result-buffer=1 \
                 --max-retry-attempts=3 --retry-interval --cluster-active-size=9 \
                 --cluster-remove-delay --cluster-sync-interval --peer-heartbeat-interval=3 \
                 --peer-election-timeout=4 --log-output=stdout --logger=capnslog";
    let given: Vec<&str> = given.split_whitespace().collect();
    let warnings = settings(&given, &[]).warnings;
    assert_eq!(warnings.len(), given.len(), "{warnings:?}");
    let ignored = "--vv has no effect: etcd ignores it, too";
    assert!(warnings.iter().any(|warning| warning == ignored), "{warnings:?}");
    assert!(error(&["--logger=log4j"]).ends_with("expected zap or capnslog"));
}

#[test]
fn a_discovery_service_is_not_asked() {
    let harmless = "--discovery= --discovery-token= --discovery-dial-timeout=2s \
                    --discovery-insecure-transport --discovery-insecure-skip-tls-verify=false \
                    --logger= --proxy=";
    let harmless: Vec<&str> = harmless.split_whitespace().collect();
    let settings = settings(&harmless, &[]);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    for (is_on, values) in
        [(true, ["1", "t", "T", "TRUE", "True"]), (false, ["0", "f", "F", "FALSE", "False"])]
    {
        for value in values {
            let (insecure, unverified) = (
                format!("--discovery-insecure-transport={value}"),
                format!("--discovery-insecure-skip-tls-verify={value}"),
            );
            let [same, other] = if is_on { [insecure, unverified] } else { [unverified, insecure] };
            parse_with(&[&same], &[]).expect(&same);
            let refused = error(&[&other]);
            assert!(refused.contains("is not supported: use --initial-cluster"), "{refused}");
            let wrong = parse_with(&[&format!("{other}x")], &[]).expect_err(&other);
            assert_eq!(wrong.exit_code(), 2, "{other}x");
        }
    }
    for flag in ["--discovery=x", "--discovery-endpoints=x", "--discovery-dial-timeout=3s"] {
        let (name, _) = flag.split_once('=').unwrap();
        let expected = format!("{name} is not supported: use --initial-cluster or --discovery-srv");
        assert_eq!(error(&[flag]), expected);
    }
    assert_eq!(parse_with(&["--discovery=x"], &[]).unwrap_err().exit_code(), 1);
}

#[test]
fn the_usage_text_has_a_line_of_one_form_for_every_flag() {
    let usage = usage();
    for flag in flags::FLAGS.iter().filter(|flag| !flag.help.is_empty()) {
        let beginning = format!("  --{} ", flag.name);
        let line = usage.lines().find(|line| line.starts_with(&beginning)).expect(flag.name);
        let shown = line[beginning.len()..].trim_start().strip_suffix(flag.help).expect(line);
        let default = shown.strip_suffix(": ").expect(line).trim_matches('\'');
        assert_eq!(default, flag.default, "{line}");
    }
    assert!(usage.contains(" 'simple': kind of tokens") && usage.contains(" 300: seconds"));
}

#[test]
fn every_flag_is_documented() {
    let page = include_str!("../../../docs/flags.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `--")).collect();
    let documented: Vec<&str> =
        rows.iter().filter_map(|row| row.strip_prefix("| `--")?.split('`').next()).collect();
    assert_eq!(documented, flags::names().collect::<Vec<_>>(), "rows of docs/flags.md");
    for (flag, row) in flags::FLAGS.iter().zip(rows) {
        let beginning = documented_so(flag);
        assert!(row.starts_with(&beginning), "{row}\ndoes not begin with\n{beginning}");
        let (_, since) = row.trim_end_matches(" |").rsplit_once("| ").expect(row);
        let (since, older_name) = since.strip_suffix(" *").map_or((since, false), |s| (s, true));
        assert!(["3.4", "3.5", "3.6", "3.7", "ours"].contains(&since), "{row}");
        assert_eq!(older_name, flags::GRADUATED.contains(&flag.name), "{row}");
    }
}

/// A flag's row in docs/flags.md; where the flag table has no text, the page adds one.
fn documented_so(flag: &flags::Flag) -> String {
    use flags::Standing;
    let default = match flag.default.replace('|', "\\|") {
        none if none.is_empty() => none,
        some => format!("`{some}`"),
    };
    let meaning = match flag.standing {
        Standing::Used | Standing::Always(_) | Standing::Only(_) => flag.help.to_owned(),
        Standing::NoEffect(reason) => format!("no effect: {reason} "),
        Standing::Ignored => format!("no effect: {} ", flags::IGNORED),
        Standing::Instead(advice) => format!("not supported: {advice} "),
        Standing::Later => "not supported yet ".to_owned(),
    };
    let variable = flag.name.to_ascii_uppercase().replace('-', "_");
    format!("| `--{}` | `ETCD_{variable}` | {default} | {meaning}", flag.name)
}

#[test]
fn variables_fill_what_flags_leave_open() {
    let from_environment =
        settings(&[], &[("ETCD_NAME", "e"), ("CONCLAVE_DATA_DIR", "/d"), ("PATH", "/bin")]);
    assert_eq!(from_environment.name, "e");
    assert_eq!(from_environment.data_dir.to_str(), Some("/d"));
    assert_eq!(settings(&[], &[("ETCD_NAME", "")]).name, "default", "empty counts as unset");
}

#[test]
fn flag_and_variable_together_are_refused() {
    let error = parse_with(&["--name=a"], &[("ETCD_NAME", "b")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "conflicting environment variable \"ETCD_NAME\" is shadowed by corresponding command-line \
         flag (either unset environment variable or disable flag)"
    );
    assert_eq!(error.exit_code(), 1);
    let error = parse_with(&[], &[("ETCD_NAME", "a"), ("CONCLAVE_NAME", "b")]).unwrap_err();
    assert_eq!(error.to_string(), "--name is set by an ETCD_ and a CONCLAVE_ variable; unset one");
}

#[test]
fn unknown_flags_are_refused_and_unknown_variables_warned_about() {
    let unknown = parse_with(&["--no-such-flag=1"], &[]).unwrap_err();
    assert_eq!(unknown.to_string(), "flag provided but not defined: --no-such-flag");
    assert_eq!(unknown.exit_code(), 2);
    let settings = settings(&[], &[("ETCD_NO_SUCH", "1")]);
    assert_eq!(settings.warnings, ["unrecognized environment variable ETCD_NO_SUCH"]);
}

#[test]
fn flags_of_later_features_are_refused_by_name() {
    for flag in ["watch-progress-notify-interval-jitter", "peer-skip-client-verify"] {
        assert_eq!(error(&[&format!("--{flag}=x")]), format!("--{flag} is not supported yet"));
    }
    settings(&["--client-cert-auth=false", "--auto-compaction-retention=0"], &[]);
}

#[test]
fn traces_are_sent_only_if_that_is_asked_for() {
    let address = "--distributed-tracing-address=c:1";
    assert_eq!(settings(&[address], &[]).trace, None);
    let on = "--experimental-enable-distributed-tracing";
    let sent = settings(&[on, address, "--distributed-tracing-sampling-rate=5"], &[]).trace;
    let sent = sent.unwrap();
    assert_eq!((sent.endpoint.as_str(), sent.samples_per_million), ("http://c:1", 5));
    assert_eq!((sent.service_name.as_str(), sent.instance_id), ("etcd", None));
    let sent = settings(&[], &[("ETCD_ENABLE_DISTRIBUTED_TRACING", "true")]).trace.unwrap();
    assert_eq!(sent.endpoint, "http://localhost:4317");
    let much = error(&["--distributed-tracing-sampling-rate=1000001"]);
    assert_eq!(much, "--distributed-tracing-sampling-rate must be at most 1000000");
}

#[test]
fn gates_are_honoured_or_warn_of_what_is_not_so() {
    let checks = |arguments: &[&str]| {
        let settings = settings(arguments, &[]);
        (settings.gates.initial_check, settings.warnings.len())
    };
    assert_eq!(checks(&[]), (false, 0));
    assert_eq!(checks(&["--feature-gates=InitialCorruptCheck=true"]), (true, 0));
    assert_eq!(checks(&["--experimental-initial-corrupt-check"]), (true, 0));
    assert_eq!(
        checks(&["--feature-gates=CompactHashCheck=true, FastLeaseKeepAlive=1"]),
        (false, 0)
    );
    assert_eq!(checks(&["--feature-gates=LeaseCheckpoint=false"]), (false, 0));
    assert_eq!(checks(&["--feature-gates=LeaseCheckpoint=true"]), (false, 1));
    assert_eq!(checks(&["--experimental-compact-hash-check-enabled=false"]), (false, 1));
    assert_eq!(checks(&["--feature-gates=AllAlpha=true"]), (true, 5));
    assert_eq!(checks(&["--feature-gates=AllBeta=true,AllAlpha=false"]), (false, 1));
    let named = "--feature-gates=AllAlpha=true,InitialCorruptCheck=false,LeaseCheckpoint=false";
    assert_eq!(checks(&[named]), (false, 4));
    let warned = settings(&[], &[("ETCD_FEATURE_GATES", "SetMemberLocalAddr=true")]).warnings;
    let beginning = "feature gate SetMemberLocalAddr=true has no effect: ";
    assert!(warned[0].starts_with(beginning), "{warned:?}");
    for (gates, reason) in [
        ("NoSuchGate=true", "unrecognized feature gate: NoSuchGate"),
        ("LeaseCheckpoint", "missing bool value for LeaseCheckpoint"),
        ("LeaseCheckpoint=maybe", "LeaseCheckpoint must be true or false"),
    ] {
        let refused = error(&[&format!("--feature-gates={gates}")]);
        assert!(refused.contains("feature-gates") && refused.contains(reason), "{refused}");
    }
    let gate = "--feature-gates=InitialCorruptCheck=true";
    let both = error(&[gate, "--experimental-initial-corrupt-check=true"]);
    assert!(both.contains("are both given"), "{both}");
}

#[test]
fn names_of_experiments_are_those_of_what_became_of_them() {
    for name in flags::GRADUATED {
        assert!(flags::find(name).is_some(), "{name}");
        assert_eq!(flags::find(&format!("experimental-{name}")).unwrap().name, name);
    }
    let kubeadm = "--experimental-watch-progress-notify-interval=5s";
    assert_eq!(settings(&[kubeadm], &[]).watch_progress_interval, Duration::from_secs(5));
    let slow = settings(&["--experimental-warning-apply-duration=1s"], &[]).slow;
    assert_eq!((slow.apply.as_millis(), slow.request.as_millis()), (1000, 300));
    for unknown in ["--experimental-name=a", "--experimental-no-such=a"] {
        assert!(error(&[unknown]).starts_with("flag provided but not defined: --experimental-"));
    }
}

#[test]
fn flags_without_effect_warn() {
    let settings = settings(&["--backend-batch-limit=1"], &[]);
    assert_eq!(settings.warnings.len(), 1);
    assert!(settings.warnings[0].starts_with("--backend-batch-limit has no effect: "));
}

#[test]
fn timing_is_checked() {
    settings(&["--heartbeat-interval=100", "--election-timeout=500"], &[]);
    assert_eq!(
        error(&["--heartbeat-interval=100", "--election-timeout=499"]),
        "--election-timeout[499ms] should be at least as 5 times as --heartbeat-interval[100ms]"
    );
    assert_eq!(
        error(&["--election-timeout=50001"]),
        "--election-timeout[50001ms] is too long, and should be set less than 50000ms"
    );
    assert_eq!(error(&["--heartbeat-interval=0"]), "--heartbeat-interval must be >0 (set to 0ms)");
    assert!(error(&["--heartbeat-interval=-1"]).starts_with("invalid value \"-1\""));
    let raised = settings(&["--watch-progress-notify-interval=1ms"], &[]);
    assert_eq!(raised.watch_progress_interval, Duration::from_millis(100));
    assert!(raised.warnings[0].ends_with("is taken for 100ms, which is the least"));
}

#[test]
fn negative_numbers_mean_what_etcd_means() {
    assert_eq!(settings(&["--quota-backend-bytes=-1"], &[]).store.quota_bytes, None);
    assert_eq!(settings(&["--quota-backend-bytes", "-1"], &[]).store.quota_bytes, None);
    assert_eq!(settings(&["--quota-backend-bytes=53248"], &[]).store.quota_bytes, Some(53_248));
    assert!(error(&["--max-request-bytes=-1"]).starts_with("invalid value \"-1\""));
    assert_eq!(settings(&["--snapshot-count=0"], &[]).raft.snapshot_count, 10_000);
}

#[test]
fn listen_urls_need_an_address_to_bind() {
    assert_eq!(
        error(&["--listen-client-urls=http://127.0.0.1:1"]),
        "--advertise-client-urls is required when --listen-client-urls is set explicitly"
    );
    for (url, reason) in [
        ("http://example.com:1", "expected IP in URL for binding"),
        ("http://127.0.0.1", "URL address does not have the form \"host:port\""),
        ("http://127.0.0.1:1/path", "URL must not contain a path"),
        ("ftp://127.0.0.1:1", "URL scheme must be http, https, unix, or unixs"),
        ("unix://", "a unix socket needs a path"),
    ] {
        assert!(error(&[&format!("--listen-peer-urls={url}")]).ends_with(reason), "{url}");
    }
    let two = settings(
        &[
            "--listen-client-urls=http://[::1]:5,http://0.0.0.0:80",
            "--advertise-client-urls=http://a:1",
        ],
        &[],
    );
    let places: Vec<&Place> = two.listen.client.iter().map(|url| &url.place).collect();
    let tcp = |address: &str| Place::Tcp(address.parse().unwrap());
    assert_eq!(places, [&tcp("0.0.0.0:80"), &tcp("[::1]:5")]);
}

const THREE: &str =
    "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.1:2,c=http://127.0.0.1:3";

#[test]
fn the_initial_cluster_decides_the_ids() {
    let one = |name: &str, url: &str| {
        settings(
            &[THREE, &format!("--name={name}"), &format!("--initial-advertise-peer-urls={url}")],
            &[],
        )
    };
    let (a, b) = (one("a", "http://127.0.0.1:1"), one("b", "http://127.0.0.1:2"));
    a.verify_bootstrap().unwrap();
    assert_eq!(a.initial_cluster_id(), b.initial_cluster_id());
    assert_ne!(a.initial_member_id(), b.initial_member_id());
    let other = settings(&[THREE, "--name=a", "--initial-cluster-token=other"], &[]);
    assert_ne!(a.initial_cluster_id(), other.initial_cluster_id());
    assert!(
        other.verify_bootstrap().unwrap_err().to_string().contains("--initial-advertise-peer-urls")
    );
    let stranger = settings(&[THREE, "--name=x"], &[]);
    assert_eq!(
        stranger.verify_bootstrap().unwrap_err().to_string(),
        "couldn't find local name \"x\" in the initial cluster configuration"
    );
}

/// Observed on Debian's etcd 3.4.23, started with its defaults.
#[test]
fn ids_are_those_that_etcd_computes() {
    let settings = settings(&[], &[]);
    assert_eq!(settings.initial_member_id(), Some(0x8e9e_05c5_2164_694d));
    assert_eq!(settings.initial_cluster_id(), 0xcdf8_1819_4e3a_8c32);
}

#[test]
fn a_broken_initial_cluster_is_refused() {
    for (value, reason) in [
        ("a", "expected name=url"),
        ("=http://127.0.0.1:1", "expected name=url"),
        (",", "no member given"),
        ("a=http://127.0.0.1:1,b=http://127.0.0.1:1", "initial cluster contains a duplicate URL"),
    ] {
        assert!(error(&[&format!("--initial-cluster={value}")]).ends_with(reason), "{value}");
    }
    assert!(error(&["--initial-cluster-state=old"]).ends_with("expected new or existing"));
}

#[test]
fn version_names_etcds_version_on_a_line() {
    assert!(matches!(parse_with(&["--version"], &[]), Ok(Invocation::Version)));
    assert!(version_text().lines().any(|line| line == "etcd Version: 3.7.1"));
    let text = etcd_version_text();
    let names: Vec<&str> =
        text.lines().map(|line| line.split_once(": ").expect("name and value").0).collect();
    let theirs = ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch"];
    assert_eq!(names, [&theirs[..], &["Conclave Version"]].concat(), "etcd's lines, then ours");
    assert!(text.starts_with("etcd Version: 3.7.1\n"), "{text}");
    assert!(usage().contains("--listen-client-urls"));
}

#[test]
fn the_request_limit_is_etcds() {
    assert_eq!(settings(&[], &[]).limits.request_bytes_max, 1_572_864);
    assert_eq!(settings(&["--max-request-bytes=100"], &[]).limits.request_bytes_max, 100);
}

const HTTPS: [&str; 2] =
    ["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://a:1"];

#[test]
fn a_url_of_tls_needs_a_certificate() {
    assert_eq!(
        error(&HTTPS),
        "TLS key/cert (--cert-file, --key-file) must be provided for client url \
         https://127.0.0.1:1 with HTTPS scheme"
    );
    let pair = ["--cert-file=a.pem", "--key-file=a-key.pem"];
    let with_pair = settings(&[HTTPS.as_slice(), &pair].concat(), &[]);
    assert!(with_pair.listen.client[0].is_tls);
    assert!(with_pair.warnings.is_empty());
    let identity = PortIdentity::Files(Pair { cert: "a.pem".into(), key: "a-key.pem".into() });
    assert_eq!(with_pair.tls.client.unwrap().identity, identity);
    let plain = settings(&pair, &[]);
    assert!(plain.warnings[0].ends_with("ignoring key and cert files"), "{:?}", plain.warnings);
    assert!(plain.tls.client.is_none(), "they need not even be there");
    assert_eq!(
        error(&["--peer-cert-file=a.pem"]),
        "KeyFile and CertFile must both be present[key: , cert: a.pem]"
    );
    let unix = settings(
        &["--listen-client-urls=unix://localhost:m1", "--advertise-client-urls=http://a:1"],
        &[],
    );
    assert_eq!(unix.listen.client[0].place, Place::Unix("localhost:m1".into()));
}

#[test]
fn tls_rules_are_etcds_and_stricter_where_it_lets_anyone_in() {
    let pair = ["--peer-cert-file=a.pem", "--peer-key-file=a-key.pem"];
    let with = |flags: &[&str]| error(&[pair.as_slice(), flags].concat());
    assert!(
        with(&["--peer-client-cert-auth"])
            .starts_with("--peer-client-cert-auth needs --peer-trusted-ca-file")
    );
    assert!(with(&["--peer-crl-file=x"]).contains("need --peer-trusted-ca-file"));
    let ca = "--peer-trusted-ca-file=ca.pem";
    assert_eq!(
        with(&[ca, "--peer-cert-allowed-cn=a,b", "--peer-cert-allowed-hostname=c"]),
        "AllowedCN and AllowedHostname are mutually exclusive (cn=[\"a\", \"b\"], hostname=[\"c\"])"
    );
    let auto = error(&["--peer-auto-tls", "--peer-client-cert-auth"]);
    assert!(auto.contains("cannot be combined"), "{auto}");
    assert!(error(&["--auto-tls", "--self-signed-cert-validity=0"]).contains("from 1 to 100"));
    assert!(with(&["--peer-client-cert-file=x"]).starts_with("ClientKeyFile and ClientCertFile"));
    assert!(error(&["--tls-min-version=TLS1.1"]).ends_with("expected TLS1.2 or TLS1.3"));
    assert!(error(&["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"]).contains("greater"));
    assert_eq!(error(&["--cipher-suites=x"]), "unexpected TLS cipher suite \"x\"");
    let both = settings(&[pair.as_slice(), &[ca, "--peer-cert-allowed-cn=a, b"]].concat(), &[]);
    let peer = both.tls.peer.unwrap();
    assert_eq!(peer.allowed.common_names, ["a", "b"]);
    assert!(peer.checks_addresses && !peer.names_users);
}

#[test]
fn checks_believe_the_authorities_of_a_file_or_the_systems() {
    let flag = "--registry-checks-trusted-ca-file=ca.pem";
    assert_eq!(settings(&[], &[]).tls.checks_ca, None);
    assert_eq!(settings(&[flag], &[]).tls.checks_ca, Some("ca.pem".into()));
    let named = settings(&[], &[("ETCD_REGISTRY_CHECKS_TRUSTED_CA_FILE", "ca.pem")]);
    assert_eq!(named.tls.checks_ca, Some("ca.pem".into()));
    let off = settings(&[flag, "--registry-checks=off"], &[]);
    let why = "--registry-checks-trusted-ca-file has no effect with --registry-checks=off";
    assert_eq!((off.tls.checks_ca, off.warnings), (None, vec![why.to_owned()]));
}

#[test]
fn tokens_are_simple_or_signed() {
    assert!(settings(&[], &[]).auth.jwt.is_none());
    let flag = "--auth-token=jwt,sign-method=RS256,priv-key=a.pem,pub-key=b.pem,ttl=10m";
    let jwt = settings(&[flag], &[]).auth.jwt.unwrap();
    assert_eq!((jwt.method.as_str(), jwt.ttl), ("RS256", Duration::from_secs(600)));
    for wrong in ["jwt", "jwt,sign-method", "jwt,ttl=1m", "opaque"] {
        let complaint = error(&[&format!("--auth-token={wrong}")]);
        assert!(complaint.contains("--auth-token"), "{wrong}: {complaint}");
    }
    for cost in ["--bcrypt-cost=3", "--bcrypt-cost=32"] {
        let settings = settings(&[cost], &[]);
        assert_eq!(settings.auth.bcrypt_cost, 10);
        assert_eq!(settings.warnings, [format!("{cost} is taken for 10: it must be 4 to 31")]);
    }
    for unknown in ["jwt,sign-method=RS256,x=y", "simple,x=y"] {
        let warnings = settings(&[&format!("--auth-token={unknown}")], &[]).warnings;
        let name = if unknown.starts_with("jwt") { "x" } else { "x=y" };
        let warning = format!("--auth-token: the option {name} is not known and has no effect");
        assert_eq!(warnings, [warning]);
    }
    let ttl = settings(&["--auth-token-ttl=0"], &[]).auth.token_ttl;
    assert_eq!(ttl, Duration::from_secs(300));
}

#[test]
fn a_slip_is_answered_with_the_flag_that_was_meant() {
    let unknown = parse_with(&["--listen-client-url=x"], &[]).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "flag provided but not defined: --listen-client-url (did you mean --listen-client-urls?)"
    );
    assert_eq!(unknown.exit_code(), 2);
}

#[test]
fn a_file_of_settings_excludes_flags_and_variables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.yml");
    std::fs::write(&path, "name: from-file\nheartbeat-interval: 200\n").unwrap();
    let flag = format!("--config-file={}", path.display());
    let with_flags = settings(&[&flag, "--name=x"], &[("ETCD_NAME", "y")]);
    assert_eq!(with_flags.name, "from-file");
    assert_eq!(with_flags.raft.heartbeat_interval, Duration::from_millis(200));
    assert_eq!(with_flags.warnings, ["--name is ignored since --config-file is given"]);
    let by_variable = settings(&[], &[("ETCD_CONFIG_FILE", path.to_str().unwrap())]);
    assert_eq!(by_variable.name, "from-file");
    assert!(error(&["--config-file=/no/such/file"]).contains("No such file"));
}

#[test]
fn logs_go_to_files_that_may_be_full() {
    let log = settings(&["--log-outputs=stderr,/a,stderr,/b"], &[]).log;
    let file = |path: &str| LogOutput::File(path.into());
    assert_eq!(log.outputs, [LogOutput::Stderr, file("/a"), file("/b")]);
    assert_eq!(log.rotation, None);
    let full = r#"--log-rotation-config-json={"maxsize":1,"maxage":2,"maxbackups":3}"#;
    let log = settings(&["--log-outputs=/a", "--enable-log-rotation", full], &[]).log;
    let rotation = log.rotation.unwrap();
    assert_eq!((rotation.bytes_max, rotation.files_max), (1 << 20, Some(3)));
    assert_eq!(rotation.age_max, Some(Duration::from_secs(2 * 24 * 60 * 60)));
    assert!(error(&["--enable-log-rotation"]).contains("requires a single file path"));
    let compress = r#"--log-rotation-config-json={"compress":true}"#;
    let plain = settings(&["--log-outputs=/a", "--enable-log-rotation", compress], &[]);
    assert!(plain.log.rotation.is_some());
    assert!(plain.warnings[0].contains("compress has no effect"), "{:?}", plain.warnings);
    let journal = settings(&["--log-outputs=systemd/journal,stderr"], &[]);
    assert_eq!(journal.log.outputs, [LogOutput::Stderr]);
    assert!(journal.warnings[0].contains("is taken for stderr"), "{:?}", journal.warnings);
}

#[test]
fn discovery_excludes_a_list_of_members() {
    let found = settings(&["--discovery-srv=example.com", "--discovery-srv-name=a"], &[]);
    let srv = found.bootstrap.srv.unwrap();
    assert_eq!((srv.domain.as_str(), srv.name.as_str(), srv.server), ("example.com", "a", None));
    let both = error(&["--discovery-srv=example.com", "--initial-cluster=a=http://127.0.0.1:1"]);
    assert!(both.starts_with("multiple discovery or bootstrap flags are set"), "{both}");
    assert!(error(&["--discovery-srv-name=a"]).ends_with("needs --discovery-srv"));
}

/// etcd took a negative value for an interval that had always passed, and compacted without a
/// pause.
#[test]
fn retention_is_neither_negative_nor_nonsense() {
    let retention = |mode: &str, value: &str| {
        let mode = format!("--auto-compaction-mode={mode}");
        let value = format!("--auto-compaction-retention={value}");
        parse_with(&[&mode, &value], &[])
    };
    for mode in ["periodic", "revision"] {
        for value in ["-1", "-5m", "NaN", "inf", "1e3", "--5", "9223372036854775808x"] {
            assert!(retention(mode, value).is_err(), "{mode} {value:?}");
        }
    }
    assert!(retention("revision", "9223372036854775808").is_err(), "more than there are");
    assert!(retention("hourly", "1").is_err());
    let read = |mode: &str, value: &str| match retention(mode, value) {
        Ok(Invocation::Run(settings)) => settings.checks.auto_compaction,
        other => panic!("expected settings, got {other:?}"),
    };
    for mode in ["periodic", "revision"] {
        assert_eq!(read(mode, "0"), AutoCompaction::Off);
    }
    let period = Duration::from_secs(u64::MAX);
    assert_eq!(read("periodic", &u64::MAX.to_string()), AutoCompaction::Periodic { period });
    let kept = i64::MAX;
    assert_eq!(read("revision", &kept.to_string()), AutoCompaction::Revision { kept });
}

#[test]
fn no_port_that_asks_for_tls_is_served_in_the_clear() {
    for flag in ["listen-metrics-urls", "listen-client-http-urls"] {
        let refused = error(&[&format!("--{flag}=https://127.0.0.1:1")]);
        let text = "TLS key/cert (--cert-file, --key-file) must be provided for client url \
                    https://127.0.0.1:1 with HTTPS scheme";
        assert_eq!(refused, text);
        let with = ["--cert-file=a", "--key-file=b", &format!("--{flag}=https://127.0.0.1:1")];
        assert!(settings(&with, &[]).tls.client.is_some());
    }
}

#[test]
fn numbers_and_levels_are_spelled_as_in_go() {
    let settings = settings(
        &["--snapshot-count=0x40", "--max-request-bytes=1_000_000", "--log-level=DEBUG"],
        &[("ETCD_HEARTBEAT_INTERVAL", "0144")],
    );
    assert_eq!(settings.raft.snapshot_count, 64);
    assert_eq!(settings.limits.request_bytes_max, 1_000_000);
    assert_eq!(settings.raft.heartbeat_interval, Duration::from_millis(100));
    assert_eq!(settings.log.level, tracing::Level::DEBUG);
    assert_eq!(
        error(&["--max-txn-ops=4294967296"]),
        "invalid value \"4294967296\" for flag --max-txn-ops: out of range"
    );
}

#[test]
fn an_address_that_is_named_twice_is_one() {
    let twice = "--listen-peer-urls=http://127.0.0.1:1,http://127.0.0.1:1,http://127.0.0.1:2";
    assert_eq!(settings(&[twice], &[]).listen.peer.len(), 2);
}

#[test]
fn a_member_may_go_by_another_name_of_its_address() {
    let one = |cluster: &str, advertised: &str| {
        let cluster = format!("--initial-cluster=a={cluster}");
        let advertised = format!("--initial-advertise-peer-urls={advertised}");
        settings(&["--name=a", &cluster, &advertised], &[]).verify_bootstrap()
    };
    one("http://localhost:1", "http://127.0.0.1:1").unwrap();
    for other in ["http://127.0.0.1:2", "https://127.0.0.1:1", "http://127.0.0.2:1"] {
        assert!(one("http://localhost:1", other).is_err(), "{other}");
    }
}

#[test]
fn an_address_to_advertise_is_asked_for_only_on_the_command_line() {
    let listen = "--listen-client-urls=http://127.0.0.1:1";
    assert!(error(&[listen]).starts_with("--advertise-client-urls is required"));
    let empty = settings(&[listen, "--advertise-client-urls="], &[]);
    assert_eq!(empty.listen.advertise_client_urls, ["http://localhost:2379"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "listen-client-urls: http://127.0.0.1:1\n").unwrap();
    let of_file = settings(&["--config-file", file.path().to_str().unwrap()], &[]);
    assert_eq!(of_file.listen.advertise_client_urls, ["http://localhost:2379"]);
}

#[test]
fn etcds_proxies_are_named_as_what_they_are() {
    for command in ["gateway", "grpc-proxy"] {
        let refused = parse_with(&[command, "start"], &[]).unwrap_err();
        assert!(refused.to_string().contains("load balancer"), "{refused}");
        assert_eq!(refused.exit_code(), 1);
    }
}
