//! Leases through the wire.

use conclave_proto::etcdserverpb as etcd;
use tonic::Code;

use crate::cluster::within;
use crate::support::{Server, put, range, refused, server, servers};

fn grant(ttl: i64, id: i64) -> etcd::LeaseGrantRequest {
    etcd::LeaseGrantRequest { ttl, id }
}

async fn time_to_live(server: &Server, id: i64) -> etcd::LeaseTimeToLiveResponse {
    let request = etcd::LeaseTimeToLiveRequest { id, keys: true };
    server.lease().lease_time_to_live(request).await.unwrap().into_inner()
}

async fn keep_alive(server: &Server, ids: &[i64]) -> Vec<i64> {
    let ids: Vec<_> = ids.iter().map(|&id| etcd::LeaseKeepAliveRequest { id }).collect();
    let requests = futures::stream::iter(ids.clone());
    let mut answers = server.lease().lease_keep_alive(requests).await.unwrap().into_inner();
    let mut ttls = Vec::new();
    for request in ids {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.id, request.id, "answers come in order");
        assert!(answer.header.unwrap().revision > 0);
        ttls.push(answer.ttl);
    }
    assert!(answers.message().await.unwrap().is_none(), "the stream ends after its last request");
    ttls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_chooses_and_raises_what_is_missing() {
    let server = server(&[]).await;
    let mut lease = server.lease();
    let answer = lease.lease_grant(grant(1, 0)).await.unwrap().into_inner();
    assert!(answer.id > 0);
    assert_eq!(answer.ttl, 2, "one and a half election timeouts");
    assert_eq!(answer.header.unwrap().revision, 1, "a grant takes no revision");
    assert_eq!(lease.lease_grant(grant(-5, 0)).await.unwrap().into_inner().ttl, 2);
    assert_eq!(lease.lease_grant(grant(60, 7)).await.unwrap().into_inner().id, 7);
    assert_eq!(
        refused(lease.lease_grant(grant(60, 7)).await),
        (Code::FailedPrecondition, "etcdserver: lease already exists".into())
    );
    assert_eq!(
        refused(lease.lease_grant(grant(9_000_000_001, 8)).await),
        (Code::OutOfRange, "etcdserver: too large lease TTL".into())
    );
    let longest = lease.lease_grant(grant(9_000_000_000, 9)).await.unwrap().into_inner();
    assert_eq!(longest.ttl, 9_000_000_000);
    let left = time_to_live(&server, 9).await;
    assert!(left.ttl >= 8_999_999_990 && left.ttl <= left.granted_ttl, "{}", left.ttl);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_deletes_the_keys_in_one_revision() {
    let server = server(&[]).await;
    let mut lease = server.lease();
    lease.lease_grant(grant(60, 7)).await.unwrap();
    for key in ["b", "a"] {
        server.kv().put(etcd::PutRequest { lease: 7, ..put(key, "1") }).await.unwrap();
    }
    assert_eq!(server.range(range("a", "")).await.kvs[0].lease, 7);
    let found = time_to_live(&server, 7).await;
    assert_eq!((found.granted_ttl, found.keys.len()), (60, 2));
    assert!(found.ttl > 50 && found.ttl <= 60);
    let answer = lease.lease_revoke(etcd::LeaseRevokeRequest { id: 7 }).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 4);
    assert_eq!(server.range(range("a", "z")).await.count, 0);
    let gone = time_to_live(&server, 7).await;
    assert_eq!((gone.id, gone.ttl, gone.granted_ttl, gone.keys.len()), (7, -1, 0, 0));
    assert_eq!(
        refused(lease.lease_revoke(etcd::LeaseRevokeRequest { id: 7 }).await),
        (Code::NotFound, "etcdserver: requested lease not found".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keep_alive_answers_every_request() {
    let server = server(&[]).await;
    server.lease().lease_grant(grant(60, 7)).await.unwrap();
    assert_eq!(keep_alive(&server, &[7, 99, 7]).await, [60, 0, 60], "unknown: TTL 0, no error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_work_on_every_member() {
    let servers = servers(3, &[]).await;
    for (i, server) in servers.iter().enumerate() {
        let id = 10 + i64::try_from(i).unwrap();
        let ttl = 100 - 10 * i64::try_from(i).unwrap();
        server.lease().lease_grant(grant(ttl, id)).await.unwrap();
    }
    for server in &servers {
        assert_eq!(keep_alive(server, &[10, 11, 12]).await, [100, 90, 80]);
        let found = time_to_live(server, 11).await;
        assert!(found.ttl > 80 && found.granted_ttl == 90);
        let leases = server.lease().lease_leases(etcd::LeaseLeasesRequest {}).await.unwrap();
        let ids: Vec<i64> = leases.into_inner().leases.iter().map(|lease| lease.id).collect();
        assert_eq!(ids, [12, 11, 10], "by remaining time");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_lease_takes_its_keys_along() {
    let server = server(&[]).await;
    // Long enough for the put.
    server.lease().lease_grant(grant(6, 7)).await.unwrap();
    server.kv().put(etcd::PutRequest { lease: 7, ..put("a", "1") }).await.unwrap();
    within("the key expires", async {
        while server.range(range("a", "")).await.count > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(keep_alive(&server, &[7]).await, [0]);
}
