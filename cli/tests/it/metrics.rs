//! What a server process says at `/metrics`: every name that etcd's mixin, its dashboard and its alerts
//! use, and those that others widely use, with their types. What is left out is in `docs/metrics.md`.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{CONCLAVE, run, server::free_port, until};

/// Of contrib/mixin.
const MIXIN: &[(&str, &str)] = &[
    ("etcd_server_has_leader", "gauge"),
    ("etcd_server_leader_changes_seen_total", "counter"),
    ("etcd_server_proposals_committed_total", "gauge"),
    ("etcd_server_proposals_applied_total", "gauge"),
    ("etcd_server_proposals_pending", "gauge"),
    ("etcd_server_proposals_failed_total", "counter"),
    ("etcd_server_quota_backend_bytes", "gauge"),
    ("etcd_mvcc_db_total_size_in_bytes", "gauge"),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge"),
    ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
    ("etcd_disk_backend_commit_duration_seconds", "histogram"),
    ("etcd_network_peer_round_trip_time_seconds", "histogram"),
    ("etcd_network_peer_sent_bytes_total", "counter"),
    ("etcd_network_peer_received_bytes_total", "counter"),
    ("etcd_network_peer_sent_failures_total", "counter"),
    ("etcd_network_client_grpc_sent_bytes_total", "counter"),
    ("etcd_network_client_grpc_received_bytes_total", "counter"),
    ("grpc_server_started_total", "counter"),
    ("grpc_server_handled_total", "counter"),
    ("grpc_server_handling_seconds", "histogram"),
    ("process_resident_memory_bytes", "gauge"),
];

/// Of other dashboards, alerts and operators.
const WIDELY_USED: &[(&str, &str)] = &[
    ("etcd_server_is_leader", "gauge"),
    ("etcd_server_is_learner", "gauge"),
    ("etcd_server_id", "gauge"),
    ("etcd_server_version", "gauge"),
    ("etcd_cluster_version", "gauge"),
    ("etcd_server_slow_apply_total", "counter"),
    ("etcd_server_slow_read_indexes_total", "counter"),
    ("etcd_server_read_indexes_failed_total", "counter"),
    ("etcd_server_heartbeat_send_failures_total", "counter"),
    ("etcd_server_apply_duration_seconds", "histogram"),
    ("etcd_server_range_duration_seconds", "histogram"),
    ("etcd_server_request_duration_seconds", "histogram"),
    ("etcd_server_client_requests_total", "counter"),
    ("etcd_server_health_success", "counter"),
    ("etcd_server_health_failures", "counter"),
    ("etcd_server_healthcheck", "gauge"),
    ("etcd_server_healthchecks_total", "counter"),
    ("etcd_server_snapshot_apply_in_progress_total", "gauge"),
    ("etcd_server_learner_promote_successes", "counter"),
    ("etcd_server_feature_enabled", "gauge"),
    ("etcd_mvcc_put_total", "counter"),
    ("etcd_mvcc_delete_total", "counter"),
    ("etcd_mvcc_txn_total", "counter"),
    ("etcd_mvcc_range_total", "counter"),
    ("etcd_mvcc_hash_duration_seconds", "histogram"),
    ("etcd_mvcc_hash_rev_duration_seconds", "histogram"),
    ("etcd_debugging_mvcc_keys_total", "gauge"),
    ("etcd_debugging_mvcc_total_put_size_in_bytes", "gauge"),
    ("etcd_debugging_mvcc_db_total_size_in_bytes", "gauge"),
    ("etcd_debugging_mvcc_put_total", "counter"),
    ("etcd_debugging_mvcc_delete_total", "counter"),
    ("etcd_debugging_mvcc_range_total", "counter"),
    ("etcd_debugging_mvcc_txn_total", "counter"),
    ("etcd_debugging_auth_revision", "gauge"),
    ("etcd_debugging_mvcc_watcher_total", "gauge"),
    ("etcd_debugging_mvcc_watch_stream_total", "gauge"),
    ("etcd_debugging_mvcc_slow_watcher_total", "gauge"),
    ("etcd_debugging_mvcc_pending_events_total", "gauge"),
    ("etcd_debugging_mvcc_events_total", "counter"),
    ("etcd_debugging_mvcc_current_revision", "gauge"),
    ("etcd_debugging_mvcc_compact_revision", "gauge"),
    ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "histogram"),
    ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "histogram"),
    ("etcd_debugging_mvcc_db_compaction_keys_total", "counter"),
    ("etcd_debugging_mvcc_db_compaction_last", "gauge"),
    ("etcd_debugging_lease_granted_total", "counter"),
    ("etcd_debugging_lease_renewed_total", "counter"),
    ("etcd_debugging_lease_revoked_total", "counter"),
    ("etcd_debugging_lease_ttl_total", "histogram"),
    ("etcd_debugging_server_lease_expired_total", "counter"),
    ("etcd_disk_backend_defrag_duration_seconds", "histogram"),
    ("etcd_disk_backend_snapshot_duration_seconds", "histogram"),
    ("etcd_disk_wal_write_duration_seconds", "histogram"),
    ("etcd_disk_wal_write_bytes_total", "gauge"),
    ("etcd_disk_defrag_inflight", "gauge"),
    ("etcd_network_known_peers", "gauge"),
    ("etcd_network_active_peers", "gauge"),
    ("etcd_network_server_stream_failures_total", "counter"),
    ("etcd_snap_db_fsync_duration_seconds", "histogram"),
    ("etcd_snap_db_save_total_duration_seconds", "histogram"),
    ("etcd_snap_fsync_duration_seconds", "histogram"),
    ("os_fd_used", "gauge"),
    ("os_fd_limit", "gauge"),
];

/// A process that is ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn serve(dir: &TempDir, name: &str, client: u16, peer: u16, cluster: &str) -> Running {
    let mut command = Command::new(CONCLAVE);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    command.env_clear().args(["server", "--name", name, "--initial-cluster", cluster]);
    command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
    command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
    // Nobody misses the leader because a loaded machine let it stand still for a second or two.
    command.arg("--election-timeout=5000");
    command.args(["--metrics", "extensive", "--data-dir"]).arg(dir.path().join(name));
    command.stdin(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().expect("it starts"))
}

/// The body of a page; empty if nobody answers.
fn page(port: u16, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let head = "Host: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("GET {path} HTTP/1.1\r\n{head}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().unwrap_or_default();
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// The sum of all samples whose names with labels begin so.
fn total(page: &str, prefix: &str) -> f64 {
    let samples = page.lines().filter(|line| line.starts_with(prefix));
    samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

#[test]
fn every_name_that_is_used_is_there_with_a_value_behind_it() {
    let dir = TempDir::new().unwrap();
    let [client, other, peer, other_peer] = [(); 4].map(|()| free_port());
    let cluster = format!("a=http://127.0.0.1:{peer},b=http://127.0.0.1:{other_peer}");
    let _servers =
        [serve(&dir, "a", client, peer, &cluster), serve(&dir, "b", other, other_peer, &cluster)];
    until("a leader", || page(client, "/health").contains("\"true\""));
    assert_eq!(page(client, "/readyz"), "ok\n");
    let endpoint = format!("127.0.0.1:{client}");
    for call in [
        ["put", "k", "1"].as_slice(),
        &["put", "k", "2"],
        &["get", "k"],
        &["lease", "grant", "60"],
        &["compaction", "3"],
        &["defrag"],
    ] {
        let done = run(CONCLAVE, &endpoint, call, "");
        assert!(done.status.success(), "{call:?}: {done:?}");
    }
    let swept = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count";
    until("the compaction has deleted all", || total(&page(client, "/metrics"), swept) >= 1.0);
    let page = page(client, "/metrics");
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let kinds: BTreeMap<&str, &str> = kinds.collect();
    for (name, kind) in MIXIN.iter().chain(WIDELY_USED) {
        assert_eq!(kinds.get(name), Some(kind), "{name}");
    }
    for sample in [
        "etcd_server_apply_duration_seconds_count{version=\"v3\",op=\"Put\",success=\"true\"}",
        "etcd_server_range_duration_seconds_count{success=\"true\"}",
        "etcd_server_request_duration_seconds_count{type=\"Put\",success=\"true\"}",
        "etcd_server_client_requests_total{type=\"unary\"",
        "etcd_debugging_mvcc_db_compaction_keys_total",
        "etcd_debugging_mvcc_db_compaction_last",
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_count",
        "etcd_disk_wal_write_duration_seconds_count",
        "etcd_network_known_peers{Local=",
        "etcd_network_active_peers{Local=",
        "etcd_disk_backend_defrag_duration_seconds_count",
        "grpc_server_handling_seconds_count",
        "os_fd_used",
        "os_fd_limit",
    ] {
        until(sample, || total(&self::page(client, "/metrics"), sample) > 0.0);
    }
    assert_eq!(total(&page, "etcd_debugging_mvcc_db_compaction_keys_total"), 1.0);
    assert_eq!(total(&page, "etcd_disk_defrag_inflight"), 0.0);
}
