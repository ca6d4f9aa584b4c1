//! Maintenance and Cluster through the wire, and what answers Unimplemented.

use std::time::Duration;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::{AlarmType, alarm_request::AlarmAction};
use tonic::Code;

use crate::cluster::{HASTY, eventually, within};
use crate::support::{
    Plan, Server, delete, hand_over, op, put, range, refused, server, servers, then,
};

async fn status(server: &Server) -> etcd::StatusResponse {
    server.maintenance().status(etcd::StatusRequest {}).await.unwrap().into_inner()
}

pub(crate) fn alarm(action: AlarmAction, member_id: u64, alarm: AlarmType) -> etcd::AlarmRequest {
    etcd::AlarmRequest { action: action as i32, member_id, alarm: alarm as i32 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_states_what_etcdctl_shows() {
    let server = server(&[]).await;
    server.put("a", "1").await;
    let status = status(&server).await;
    let header = status.header.unwrap();
    assert_eq!(header.revision, 2);
    assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.1", "3.7.0"));
    assert_eq!(status.leader, header.member_id);
    assert_eq!(status.raft_term, header.raft_term);
    assert!(status.raft_index >= status.raft_applied_index && status.raft_applied_index > 0);
    assert!(status.db_size >= 20_480 && status.db_size_in_use > 0, "clients divide by it");
    assert_eq!(status.db_size_quota, 2 * 1024 * 1024 * 1024);
    assert!(status.errors.is_empty() && !status.is_learner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_refuses_growth_until_it_is_cleared() {
    let server = server(&["--quota-backend-bytes=53248"]).await;
    let no_space =
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded".to_owned());
    let mut kv = server.kv();
    server.put("small", "1").await;
    assert_eq!(refused(kv.put(put("k", &"v".repeat(40_000))).await), no_space);
    let member = status(&server).await.header.unwrap().member_id;
    let active = etcd::AlarmMember { member_id: member, alarm: AlarmType::Nospace as i32 };
    let mut maintenance = server.maintenance();
    let list = maintenance.alarm(alarm(AlarmAction::Get, 0, AlarmType::None)).await.unwrap();
    assert_eq!(list.into_inner().alarms, [active]);
    assert_eq!(status(&server).await.errors, [format!("memberID:{member} alarm:NOSPACE ")]);
    assert_eq!(refused(kv.put(put("small", "2")).await), no_space, "however small");
    let lease = etcd::LeaseGrantRequest { ttl: 60, id: 0 };
    assert_eq!(refused(server.lease().lease_grant(lease).await), no_space);
    assert_eq!(server.range(range("small", "")).await.count, 1, "reads go on");
    kv.delete_range(delete("small", "")).await.unwrap();
    let compact = etcd::CompactionRequest { revision: 3, physical: true };
    kv.compact(compact).await.unwrap();
    let answer = maintenance.defragment(etcd::DefragmentRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.header, None);
    let request = alarm(AlarmAction::Deactivate, member, AlarmType::Nospace);
    assert_eq!(maintenance.alarm(request).await.unwrap().into_inner().alarms, [active]);
    server.put("small", "3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_small_quota_stops_the_growth_that_others_let_through() {
    let plan = Plan::new(3, &[]);
    let small = plan.with(&["--quota-backend-bytes=53248"]);
    let (small, large, third) = tokio::join!(small.start(0), plan.start(1), plan.start(2));
    for server in [&small, &large, &third] {
        within("a server is ready", server.running.ready()).await.unwrap();
    }
    let no_space =
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded".to_owned());
    let member = small.running.node().member_id();
    let raised = [etcd::AlarmMember { member_id: member, alarm: AlarmType::Nospace as i32 }];
    let mut maintenance = large.maintenance();
    for attempt in ["first", "after a disarm that freed nothing"] {
        large.put("k", &"v".repeat(60_000)).await;
        within("the alarm is raised", async {
            let list = || alarm(AlarmAction::Get, 0, AlarmType::None);
            while maintenance.alarm(list()).await.unwrap().into_inner().alarms != raised {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        for server in [&small, &large] {
            assert_eq!(refused(server.kv().put(put("k", "1")).await), no_space, "{attempt}");
        }
        let disarm = alarm(AlarmAction::Deactivate, member, AlarmType::Nospace);
        assert_eq!(maintenance.alarm(disarm).await.unwrap().into_inner().alarms, raised);
        let list = maintenance.alarm(alarm(AlarmAction::Get, 0, AlarmType::None)).await;
        assert_eq!(list.unwrap().into_inner().alarms, [], "{attempt}: nothing was written since");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_of_no_member_is_shown_without_one() {
    let server = server(&[]).await;
    let request = alarm(AlarmAction::Activate, 0, AlarmType::Nospace);
    server.maintenance().alarm(request).await.unwrap();
    assert_eq!(status(&server).await.errors, ["alarm:NOSPACE "]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_is_cleared_by_its_member_and_kind() {
    let server = server(&[]).await;
    let mut maintenance = server.maintenance();
    let mut ask = async |action, member, kind| {
        maintenance.alarm(alarm(action, member, kind)).await.unwrap().into_inner().alarms
    };
    let active = etcd::AlarmMember { member_id: 5, alarm: AlarmType::Nospace as i32 };
    assert_eq!(ask(AlarmAction::Activate, 5, AlarmType::Nospace).await, [active]);
    for (member, kind) in [
        (0, AlarmType::None),
        (5, AlarmType::None),
        (0, AlarmType::Nospace),
        (5, AlarmType::Corrupt),
    ] {
        assert_eq!(ask(AlarmAction::Deactivate, member, kind).await, []);
    }
    assert_eq!(ask(AlarmAction::Get, 0, AlarmType::None).await, [active]);
    assert_eq!(ask(AlarmAction::Deactivate, 5, AlarmType::Nospace).await, [active]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_cluster_is_read_and_not_written() {
    let server = server(&[]).await;
    server.put("k", "1").await;
    server.grant(7, 60).await;
    let request = alarm(AlarmAction::Activate, 5, AlarmType::Corrupt);
    server.maintenance().alarm(request).await.unwrap();
    for serializable in [false, true] {
        let request = etcd::RangeRequest { serializable, ..range("k", "") };
        assert_eq!(server.range(request).await.count, 1);
    }
    assert_eq!(server.txn(then(vec![op(range("k", ""))])).await.responses.len(), 1);
    let left = etcd::LeaseTimeToLiveRequest { id: 7, keys: true };
    assert!(server.lease().lease_time_to_live(left).await.unwrap().into_inner().ttl > 0);
    let corrupt = (Code::DataLoss, "etcdserver: corrupt cluster".to_owned());
    let mut kv = server.kv();
    assert_eq!(refused(kv.put(put("k", "2")).await), corrupt);
    assert_eq!(refused(kv.delete_range(delete("k", "")).await), corrupt);
    let nested = then(vec![op(then(vec![op(range("k", ""))]))]);
    assert_eq!(refused(kv.txn(nested).await), corrupt, "it goes through the log");
    let compact = etcd::CompactionRequest { revision: 2, physical: false };
    assert_eq!(refused(kv.compact(compact).await), corrupt);
    let grant = etcd::LeaseGrantRequest { ttl: 60, id: 8 };
    assert_eq!(refused(server.lease().lease_grant(grant).await), corrupt);
    let revoke = etcd::LeaseRevokeRequest { id: 7 };
    assert_eq!(refused(server.lease().lease_revoke(revoke).await), corrupt);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_urls_have_no_path() {
    let server = server(&[]).await;
    let invalid = "etcdserver: given member URLs are invalid";
    for url in ["http://127.0.0.1:7004/", " http://127.0.0.1:7004/ ", "http://127.0.0.1:7004/a"] {
        let peer_ur_ls = vec![url.to_owned()];
        let add = etcd::MemberAddRequest { peer_ur_ls: peer_ur_ls.clone(), is_learner: true };
        let answer = refused(server.cluster().member_add(add).await);
        assert_eq!(answer, (Code::InvalidArgument, invalid.to_owned()), "{url}");
        let id = server.running.node().member_id();
        let update = etcd::MemberUpdateRequest { id, peer_ur_ls };
        let answer = refused(server.cluster().member_update(update).await);
        assert_eq!(answer, (Code::InvalidArgument, invalid.to_owned()), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_have_equal_hashes_and_move_their_leader() {
    let servers = servers(3, &[]).await;
    for i in 0..10 {
        servers[i % 3].put(&format!("k{i}"), "v").await;
    }
    let mut hashes = Vec::new();
    for server in &servers {
        server.range(range("k", "")).await;
        let request = etcd::HashKvRequest { revision: 11 };
        let hash = server.maintenance().hash_kv(request).await.unwrap().into_inner();
        assert_eq!((hash.compact_revision, hash.hash_revision), (-1, 11));
        hashes.push(hash.hash);
        assert_eq!(
            refused(server.maintenance().hash_kv(etcd::HashKvRequest { revision: 99 }).await).1,
            "etcdserver: mvcc: required revision is a future revision"
        );
    }
    assert!(hashes.iter().all(|&hash| hash == hashes[0]), "{hashes:?}");

    let leader = status(&servers[0]).await.leader;
    let is_leader = |server: &&Server| server.running.node().member_id() == leader;
    let at = servers.iter().find(is_leader).unwrap();
    let other = servers.iter().find(|server| !is_leader(server)).unwrap();
    let to = |target_id| etcd::MoveLeaderRequest { target_id };
    let target = other.running.node().member_id();
    assert_eq!(
        refused(other.maintenance().move_leader(to(target)).await),
        (Code::FailedPrecondition, "etcdserver: not leader".into())
    );
    assert_eq!(
        refused(at.maintenance().move_leader(to(12345)).await),
        (Code::FailedPrecondition, "etcdserver: bad leader transferee".into())
    );
    let moved = hand_over(&servers, target).await;
    assert!(moved.is_none_or(|moved| moved.header.is_none()), "{moved:?}");
    eventually("the target leads", || other.running.node().is_leader()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_listed_without_a_revision() {
    let servers = servers(3, &[]).await;
    for server in &servers {
        let request = etcd::MemberListRequest { linearizable: true };
        let answer = server.cluster().member_list(request).await.unwrap().into_inner();
        assert_eq!(answer.header.unwrap().revision, 0);
        let mut names: Vec<_> = answer.members.iter().map(|m| m.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["n0", "n1", "n2"]);
        for member in &answer.members {
            assert_eq!((member.peer_ur_ls.len(), member.is_learner), (1, false));
            assert_eq!(member.client_ur_ls, ["http://127.0.0.1:1"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_is_checked_and_never_begun() {
    use etcd::downgrade_request::DowngradeAction;
    let server = server(&[]).await;
    let ask = async |action: DowngradeAction, version: &str| {
        let request = etcd::DowngradeRequest { action: action.into(), version: version.to_owned() };
        server.maintenance().downgrade(request).await
    };
    let validated = ask(DowngradeAction::Validate, "3.6.0").await.unwrap().into_inner();
    assert_eq!(validated.version, "3.7.0");
    let invalid = "etcdserver: invalid downgrade target version";
    for target in ["3.7.0", "3.5.0", "2.6.0"] {
        let answer = refused(ask(DowngradeAction::Validate, target).await);
        assert_eq!(answer, (Code::InvalidArgument, invalid.to_owned()), "{target}");
    }
    let answer = refused(ask(DowngradeAction::Enable, "three").await);
    let wrong = "etcdserver: wrong downgrade target version format";
    assert_eq!(answer, (Code::InvalidArgument, wrong.to_owned()));
    let answer = refused(ask(DowngradeAction::Enable, "3.6").await);
    assert_eq!(answer.0, Code::FailedPrecondition, "{answer:?}");
    let answer = refused(ask(DowngradeAction::Cancel, "").await);
    let none = "etcdserver: no inflight downgrade job";
    assert_eq!(answer, (Code::FailedPrecondition, none.to_owned()));
    let unknown = etcd::DowngradeRequest { action: 3, version: String::new() };
    let answer = refused(server.maintenance().downgrade(unknown).await);
    assert_eq!(answer, (Code::Unknown, "etcdserver: unknown method".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_compacted_by_itself() {
    let server = server(&["--auto-compaction-retention=1s"]).await;
    for i in 0..10 {
        server.put("k", &i.to_string()).await;
    }
    let node = server.running.node();
    eventually("old history is compacted", || node.reader().head().compacted >= 10).await;
    assert_eq!(server.range(range("k", "")).await.kvs[0].value, "9");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_quorum_knows_that_nobody_leads() {
    let mut servers = servers(3, &[HASTY]).await;
    servers[0].put("a", "1").await;
    let left = servers.swap_remove(0);
    let before = status(&left).await;
    for server in servers {
        server.running.stop().await;
    }
    let node = left.running.node();
    eventually("the leader is missed", || !node.has_leader()).await;
    let status = status(&left).await;
    assert!(status.raft_index >= before.raft_index, "{status:?} {before:?}");
    assert!(status.raft_index >= status.raft_applied_index, "{status:?}");
    assert_eq!((status.leader, status.errors), (0, vec!["etcdserver: no leader".to_owned()]));
    let mut request = tonic::Request::new(put("a", "2"));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert_eq!(
        refused(left.kv().put(request).await),
        (Code::Unavailable, "etcdserver: no leader".into())
    );
    let mut request = tonic::Request::new(etcd::StatusRequest::default());
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert_eq!(
        refused(left.maintenance().status(request).await),
        (Code::Unavailable, "etcdserver: no leader".into())
    );
    let health = crate::api_http::http(&left, "GET /health").await;
    assert!(health.starts_with("HTTP/1.1 503 "), "{health}");
    let reason = "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n";
    assert!(health.ends_with(reason), "{health}");
    let own = crate::api_http::http(&left, "GET /health?serializable=true").await;
    assert!(own.starts_with("HTTP/1.1 200 "), "{own}");
    let serializable = etcd::RangeRequest { serializable: true, ..range("a", "") };
    assert_eq!(left.range(serializable).await.count, 1, "local reads go on");
}
