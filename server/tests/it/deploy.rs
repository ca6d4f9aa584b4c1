//! What `deploy/` asks of the server exists; its tools' own checks are in `deploy/validate.sh`.

use std::collections::BTreeSet;

use conclave_server::config;

/// The words of a text that consist of letters, digits and underscores.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect()
}

/// What the alerts and the board in `deploy/` ask for exists.
#[test]
fn alerts_and_the_board_ask_for_metrics_that_exist() {
    let documented = include_str!("../../../docs/metrics.md");
    let rows = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut known: BTreeSet<&str> = rows.map(|(name, _)| name).collect();
    // Counted with --metrics=extensive.
    known.insert("grpc_server_handling_seconds");
    let asked = [
        include_str!("../../../deploy/prometheus/alerts.yaml"),
        include_str!("../../../deploy/grafana/conclave.json"),
    ]
    .concat();
    let families = ["etcd_", "conclave_", "grpc_server_", "process_", "os_"];
    let names =
        words(&asked).into_iter().filter(|word| families.iter().any(|f| word.starts_with(f)));
    let mut count = 0;
    for name in names {
        let of_histogram = ["_bucket", "_count", "_sum"].iter().find_map(|s| name.strip_suffix(s));
        let is_known = known.contains(name) || of_histogram.is_some_and(|n| known.contains(n));
        assert!(is_known, "{name} is asked for and is none of ours");
        count += 1;
    }
    assert!(count > 30, "{count}");
}

/// A member may speak TLS, or listen elsewhere: whoever starts the container says so by variables.
#[test]
fn the_health_check_of_the_image_leaves_the_endpoint_open() {
    let lines = include_str!("../../../deploy/docker/Dockerfile").lines();
    let mut check = lines.skip_while(|line| !line.starts_with("HEALTHCHECK")).skip(1);
    let command = check.next().expect("a command").trim();
    assert_eq!(command, r#"CMD ["/usr/local/bin/conclave", "endpoint", "health"]"#);
}

#[test]
fn every_variable_sets_a_flag() {
    let asked = [
        include_str!("../../../deploy/docker/Dockerfile"),
        include_str!("../../../deploy/docker/compose.yaml"),
        include_str!("../../../deploy/systemd/conclave.env"),
        include_str!("../../../deploy/systemd/conclave.service"),
        include_str!("../../../deploy/kubernetes/base/statefulset.yaml"),
        include_str!("../../../deploy/kubernetes/tls/statefulset.yaml"),
    ]
    .concat();
    let usage = config::usage();
    let flags: BTreeSet<&str> =
        usage.split_whitespace().filter_map(|w| w.strip_prefix("--")).collect();
    let mut count = 0;
    for name in words(&asked).into_iter().filter_map(|word| word.strip_prefix("ETCD_")) {
        let flag = name.to_ascii_lowercase().replace('_', "-");
        assert!(flags.contains(flag.as_str()), "--{flag} is no flag");
        count += 1;
    }
    assert!(count > 15, "{count}");
}
