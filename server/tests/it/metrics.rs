//! What a server counts: under etcd's names, and by exactly what was done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::watch_client::WatchClient;
use conclave_proto::v3lockpb;

use crate::api_http::http;
use crate::cluster::{DEADLINE, eventually, within};
use crate::native_lock;
use crate::support::{
    Plan, Server, delete, hand_over, leader, op, put, range, server, servers, then,
};
use crate::watch_support::{Watching, on_range};

/// Samples by name and labels.
pub(crate) type Samples = BTreeMap<String, f64>;

async fn page(server: &Server) -> String {
    let answer = http(server, "GET /metrics").await;
    let (_, page) = answer.split_once("\r\n\r\n").unwrap();
    page.lines().filter(|line| line.contains(' ')).map(|line| format!("{line}\n")).collect()
}

pub(crate) async fn samples(server: &Server) -> Samples {
    let page = page(server).await;
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|line| line.rsplit_once(' ').unwrap());
    samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// The sum over all labels.
pub(crate) fn total(samples: &Samples, name: &str) -> f64 {
    let is_of = |sample: &str| sample == name || sample.starts_with(&format!("{name}{{"));
    samples.iter().filter(|(sample, _)| is_of(sample)).map(|(_, value)| value).sum()
}

/// Waits until a sample of `server`, summed over its labels, is as it should be.
pub(crate) async fn until(server: &Server, name: &str, is_so: impl Fn(f64) -> bool) {
    let waiting = async {
        while !is_so(total(&samples(server).await, name)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(name, waiting).await;
}

/// Waits until a sample of `server`, summed over its labels, is `least` or more.
pub(crate) async fn reaches(server: &Server, name: &str, least: f64) {
    until(server, name, |value| value >= least).await;
}

/// Waits until exactly this has [`moved`]: some things are counted a moment after they were answered.
async fn expect_moved(server: &Server, before: &Samples, expected: &[&str]) {
    let begun = Instant::now();
    let mut found = moved(before, &samples(server).await);
    while found != expected && begun.elapsed() < DEADLINE {
        tokio::time::sleep(Duration::from_millis(20)).await;
        found = moved(before, &samples(server).await);
    }
    assert_eq!(found, expected);
}

/// Waits until something is counted.
async fn counted(server: &Server, name: &str) {
    reaches(server, name, 1.0).await;
}

/// Parts of the names of samples that depend on times and sizes.
const VAGUE: [&str; 5] =
    ["_bucket{", "_in_bytes", "duration_seconds_sum", "milliseconds_sum", "compaction_last"];

/// What etcd 3.4 has with `debugging`, and later ones also without.
const OLDER_NAMES: [&str; 5] =
    ["put_total", "delete_total", "range_total", "txn_total", "db_total_size_in_bytes"];

/// Samples of calls, keys, watches and leases that differ, and by how much; not where times fell.
fn moved(before: &Samples, after: &Samples) -> Vec<String> {
    let areas = ["grpc_server_", "etcd_mvcc_", "etcd_debugging_"];
    let is_exact = |name: &str| {
        areas.iter().any(|area| name.starts_with(area))
            && !VAGUE.iter().any(|part| name.contains(part))
            && !OLDER_NAMES.iter().any(|older| name == format!("etcd_debugging_mvcc_{older}"))
    };
    let all = after.iter().filter(|(name, _)| is_exact(name));
    let differences = all.map(|(name, value)| {
        let difference = value - before.get(name).copied().unwrap_or(0.0);
        (name, difference)
    });
    let shown = differences.filter(|(_, difference)| *difference != 0.0);
    let shown = shown.map(|(name, difference)| format!("{} {difference}", short(name)));
    // How many answers a watch needs for its events is chance.
    let mut shown: Vec<_> = shown.filter(|line| !line.starts_with("msg_sent Watch")).collect();
    shown.sort();
    shown
}

/// `handled KV.Put OK` of a sample of calls with all its labels.
fn short(sample: &str) -> String {
    let labels = sample.strip_prefix("grpc_server_").and_then(|rest| rest.split_once("_total{"));
    let Some((name, labels)) = labels else { return sample.to_owned() };
    let values: Vec<_> = labels.split('"').skip(3).step_by(2).collect();
    let [service, method, code @ ..] = values.as_slice() else { panic!("labels of {sample}") };
    let service = service.strip_prefix("etcdserverpb.").unwrap();
    [&[name, &format!("{service}.{method}")], code].concat().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_has_etcds_names_and_values() {
    let server = server(&[]).await;
    server.put("a", "1").await;
    counted(&server, "etcd_server_leader_changes_seen_total").await;
    let page = page(&server).await;
    let id = format!("etcd_server_id{{server_id=\"{:x}\"}} 1", server.running.node().member_id());
    for line in [
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 1",
        "etcd_server_leader_changes_seen_total 1",
        "etcd_server_proposals_pending 0",
        "etcd_server_proposals_failed_total 0",
        "etcd_server_quota_backend_bytes 2147483648",
        "etcd_server_version{server_version=\"3.7.1\"} 1",
        "etcd_cluster_version{cluster_version=\"3.7\"} 1",
        "etcd_debugging_mvcc_current_revision 2",
        "etcd_debugging_mvcc_keys_total 1",
        "etcd_debugging_auth_revision 1",
        "etcd_disk_backend_snapshot_duration_seconds_bucket{le=\"655.36\"} 0",
        "etcd_mvcc_hash_duration_seconds_bucket{le=\"163.84\"} 0",
        "# TYPE etcd_server_proposals_committed_total gauge",
        "# TYPE etcd_server_proposals_applied_total gauge",
        &id,
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    let samples = samples(&server).await;
    for name in [
        "etcd_disk_backend_commit_duration_seconds_count",
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_disk_wal_write_bytes_total",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_network_client_grpc_received_bytes_total",
        "etcd_network_client_grpc_sent_bytes_total",
        "process_resident_memory_bytes",
    ] {
        assert!(samples[name] > 0.0, "{name}");
    }
    let committed = samples["etcd_server_proposals_committed_total"];
    let applied = "etcd_server_proposals_applied_total";
    until(&server, applied, |applied| applied == committed).await;
    server.put("a", "2").await;
    until(&server, applied, |applied| applied == committed + 1.0).await;
}

/// `docs/metrics.md` is the list of all names; whoever changes one changes both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_documented() {
    // Those of TLS are there if a certificate is.
    let servers = servers(3, &["--auto-tls"]).await;
    // Those of checks are there once somebody has checked.
    http(&servers[0], "GET /readyz").await;
    let page = page(&servers[0]).await;
    let mut rows = Vec::new();
    let mut help = "";
    for line in page.lines() {
        if let Some(line) = line.strip_prefix("# HELP ") {
            (_, help) = line.split_once(' ').unwrap();
        } else if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').unwrap();
            rows.push(format!("| `{name}` | {kind} | {help} |"));
        }
    }
    rows.sort();
    let documented = include_str!("../../../docs/metrics.md");
    let documented: Vec<_> = documented.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(rows, documented, "docs/metrics.md must be\n{}", rows.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_on_keys_are_counted_one_by_one() {
    let server = server(&[]).await;
    let before = samples(&server).await;
    server.put("a", "1").await;
    let nested = op(then(vec![op(put("d", "1")), op(delete("a", ""))]));
    server.txn(then(vec![op(put("b", "1")), op(put("c", "1")), op(range("a", "")), nested])).await;
    server.txn(then(vec![op(put("b", "2"))])).await;
    server.txn(then(vec![op(range("a", "")), op(range("b", ""))])).await;
    server.range(range("a", "z")).await;
    server.range(etcd::RangeRequest { serializable: true, ..range("b", "") }).await;
    let mut kv = server.kv();
    kv.delete_range(delete("c", "")).await.unwrap();
    kv.put(put("", "no key")).await.unwrap_err();
    let mut pieces = kv.range_stream(range("a", "z")).await.unwrap().into_inner();
    while pieces.message().await.unwrap().is_some() {}
    kv.compact(etcd::CompactionRequest { revision: 3, physical: false }).await.unwrap();
    let mut maintenance = server.maintenance();
    maintenance.hash(etcd::HashRequest {}).await.unwrap();
    maintenance.hash_kv(etcd::HashKvRequest { revision: 0 }).await.unwrap();
    expect_moved(
        &server,
        &before,
        &[
            "etcd_debugging_mvcc_compact_revision 4",
            "etcd_debugging_mvcc_current_revision 4",
            "etcd_debugging_mvcc_db_compaction_keys_total 1",
            "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_count 1",
            "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count 1",
            "etcd_debugging_mvcc_keys_total 2",
            "etcd_mvcc_delete_total 2",
            "etcd_mvcc_hash_duration_seconds_count 1",
            "etcd_mvcc_hash_rev_duration_seconds_count 1",
            "etcd_mvcc_put_total 5",
            "etcd_mvcc_range_total 6",
            "etcd_mvcc_txn_total 2",
            "handled KV.Compact OK 1",
            "handled KV.DeleteRange OK 1",
            "handled KV.Put InvalidArgument 1",
            "handled KV.Put OK 1",
            "handled KV.Range OK 2",
            "handled KV.RangeStream OK 1",
            "handled KV.Txn OK 3",
            "handled Maintenance.Hash OK 1",
            "handled Maintenance.HashKV OK 1",
            "msg_received KV.Compact 1",
            "msg_received KV.DeleteRange 1",
            "msg_received KV.Put 2",
            "msg_received KV.Range 2",
            "msg_received KV.RangeStream 1",
            "msg_received KV.Txn 3",
            "msg_received Maintenance.Hash 1",
            "msg_received Maintenance.HashKV 1",
            "msg_sent KV.Compact 1",
            "msg_sent KV.DeleteRange 1",
            "msg_sent KV.Put 1",
            "msg_sent KV.Range 2",
            "msg_sent KV.RangeStream 1",
            "msg_sent KV.Txn 3",
            "msg_sent Maintenance.Hash 1",
            "msg_sent Maintenance.HashKV 1",
            "started KV.Compact 1",
            "started KV.DeleteRange 1",
            "started KV.Put 2",
            "started KV.Range 2",
            "started KV.RangeStream 1",
            "started KV.Txn 3",
            "started Maintenance.Hash 1",
            "started Maintenance.HashKV 1",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_puts_are_counted_and_older_names_say_the_same() {
    let server = server(&[]).await;
    let put_bytes = "etcd_debugging_mvcc_total_put_size_in_bytes";
    let before = samples(&server).await[put_bytes];
    server.put("a", "1").await;
    server.txn(then(vec![op(put("bb", "22")), op(range("a", "")), op(delete("a", ""))])).await;
    // Noted behind the other counts of what was applied.
    until(&server, put_bytes, |bytes| bytes == before + 6.0).await;
    let samples = samples(&server).await;
    for name in OLDER_NAMES {
        let value = samples[&format!("etcd_debugging_mvcc_{name}")];
        assert!(value >= 1.0 && value == samples[&format!("etcd_mvcc_{name}")], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_leases_are_counted_one_by_one() {
    let server = server(&[]).await;
    let before = samples(&server).await;
    let mut watching = Watching::open(WatchClient::new(server.channel.clone())).await;
    watching.create(on_range("a", "z")).await;
    watching.create(on_range("b", "c")).await;
    server.grant(7, 60).await;
    server.kv().put(etcd::PutRequest { lease: 7, ..put("a", "1") }).await.unwrap();
    server.put("b", "1").await;
    let mut events = 0;
    while events < 3 {
        events += watching.next().await.events.len();
    }
    let keep_alive = |id| etcd::LeaseKeepAliveRequest { id };
    let requests = futures::stream::iter([keep_alive(7), keep_alive(7), keep_alive(8)]);
    let mut answers = server.lease().lease_keep_alive(requests).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    server.lease().lease_revoke(etcd::LeaseRevokeRequest { id: 7 }).await.unwrap();
    assert_eq!(watching.next().await.events.len(), 1);
    // Shorter than the shortest: it gets two seconds.
    server.grant(9, 1).await;
    counted(&server, "etcd_debugging_server_lease_expired_total").await;
    expect_moved(
        &server,
        &before,
        &[
            "etcd_debugging_lease_granted_total 2",
            "etcd_debugging_lease_renewed_total 2",
            "etcd_debugging_lease_revoked_total 2",
            "etcd_debugging_lease_ttl_total_count 2",
            "etcd_debugging_lease_ttl_total_sum 62",
            "etcd_debugging_mvcc_current_revision 3",
            "etcd_debugging_mvcc_events_total 4",
            "etcd_debugging_mvcc_keys_total 1",
            "etcd_debugging_mvcc_watch_stream_total 1",
            "etcd_debugging_mvcc_watcher_total 2",
            "etcd_debugging_server_lease_expired_total 1",
            "etcd_mvcc_put_total 2",
            "handled KV.Put OK 2",
            "handled Lease.LeaseGrant OK 2",
            "handled Lease.LeaseKeepAlive OK 1",
            "handled Lease.LeaseRevoke OK 1",
            "msg_received KV.Put 2",
            "msg_received Lease.LeaseGrant 2",
            "msg_received Lease.LeaseKeepAlive 3",
            "msg_received Lease.LeaseRevoke 1",
            "msg_received Watch.Watch 2",
            "msg_sent KV.Put 2",
            "msg_sent Lease.LeaseGrant 2",
            "msg_sent Lease.LeaseKeepAlive 3",
            "msg_sent Lease.LeaseRevoke 1",
            "started KV.Put 2",
            "started Lease.LeaseGrant 2",
            "started Lease.LeaseKeepAlive 1",
            "started Lease.LeaseRevoke 1",
            "started Watch.Watch 1",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_and_leaders_are_counted_by_member() {
    let servers = servers(3, &[]).await;
    let leader = leader(&servers).await;
    let (leader, follower) = (&servers[leader], &servers[(leader + 1) % 3]);
    let id = |server: &Server| format!("{:x}", server.running.node().member_id());
    follower.put("a", "1").await;
    counted(leader, "etcd_network_peer_round_trip_time_seconds_count").await;
    for (at, other) in [(leader, follower), (follower, leader)] {
        for name in ["sent_bytes_total{To", "received_bytes_total{From"] {
            counted(at, &format!("etcd_network_peer_{name}=\"{}\"}}", id(other))).await;
        }
    }
    let before = samples(follower).await["etcd_server_leader_changes_seen_total"];
    hand_over(&servers, follower.running.node().member_id()).await;
    reaches(follower, "etcd_server_leader_changes_seen_total", before + 1.0).await;
    reaches(follower, "etcd_server_is_leader", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_without_a_quorum_is_counted() {
    let mut servers = servers(3, &[]).await;
    let leader = leader(&servers).await;
    let left = servers.swap_remove(leader);
    for server in servers {
        within("a follower stops", server.running.stop()).await;
    }
    counted(&left, "etcd_server_heartbeat_send_failures_total").await;
    counted(&left, "etcd_network_peer_sent_failures_total").await;
    let (mut writes, mut reads) = (left.kv(), left.kv());
    let (write, read, ()) = tokio::join!(
        writes.put(put("a", "1")),
        reads.range(range("a", "")),
        counted(&left, "etcd_server_proposals_pending"),
    );
    write.unwrap_err();
    read.unwrap_err();
    for (name, value) in [
        ("etcd_server_proposals_failed_total", 1.0),
        ("etcd_server_proposals_pending", 0.0),
        ("etcd_server_read_indexes_failed_total", 1.0),
    ] {
        until(&left, name, |found| found == value).await;
    }
    counted(&left, "etcd_server_slow_read_indexes_total").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_between_members_are_counted() {
    let plan = Plan::new(3, &[]);
    let (first, second) = tokio::join!(plan.start(0), plan.start(1));
    for server in [&first, &second] {
        within("a server is ready", server.running.ready()).await.unwrap();
        server.put("a", "1").await;
    }
    for server in [&first, &second] {
        let node = server.running.node();
        node.cut_log().await.unwrap();
        eventually("the log is cut", || node.status().purged_index > 0).await;
    }
    let late = plan.start(2).await;
    within("the late server is ready", late.running.ready()).await.unwrap();
    for (name, value) in [
        ("etcd_network_snapshot_receive_success_total", 1.0),
        ("etcd_network_snapshot_receive_total_duration_seconds_count", 1.0),
        ("etcd_server_snapshot_apply_in_progress_total", 0.0),
    ] {
        until(&late, name, |found| found == value).await;
    }
    let leader = if first.running.node().is_leader() { &first } else { &second };
    counted(leader, "etcd_network_snapshot_send_success_total").await;
    until(leader, "etcd_network_snapshot_send_inflights_total", |found| found == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_turn_is_counted_until_it_comes() {
    const WAITING: &str = "conclave_lock_waiting";
    const SERVED: &str = "conclave_lock_wait_duration_seconds_count";
    let servers = [server(&[]).await];
    let client = native_lock::client(&servers);
    let one = native_lock::session(&client, "one").await;
    let held = native_lock::lock(&one, "jobs").await;
    until(&servers[0], SERVED, |count| count == 1.0).await;

    let two = native_lock::session(&client, "two").await;
    let native = tokio::spawn(two.lock("jobs").into_future());
    until(&servers[0], WAITING, |count| count == 1.0).await;
    let request = v3lockpb::LockRequest { name: "jobs".into(), lease: 0 };
    let mut locks = servers[0].lock();
    let etcds = tokio::spawn(async move { locks.lock(request).await });
    until(&servers[0], WAITING, |count| count == 2.0).await;
    let gives_up = two.lock("jobs").wait(Duration::from_millis(100));
    assert!(within("to give up", gives_up.into_future()).await.is_err());

    held.release().await.unwrap();
    within("a turn", native).await.unwrap().unwrap().release().await.unwrap();
    within("a turn", etcds).await.unwrap().unwrap();
    let campaign = client.election("boss").campaign("me");
    let leads = within("to lead", campaign.into_future()).await.unwrap();
    until(&servers[0], SERVED, |count| count == 4.0).await;
    until(&servers[0], WAITING, |count| count == 0.0).await;
    leads.resign().await.unwrap();
}
