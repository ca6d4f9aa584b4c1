//! The Lock service: who waits for whom, and what becomes of those who go.

use std::time::Duration;

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::v3lockpb as pb;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};

use crate::cluster::within;
use crate::support::{Server, delete, leader, range, refused, server, servers};

/// A call that waits.
type Locking = JoinHandle<Result<pb::LockResponse, Status>>;

fn lock(name: &'static str, lease: i64) -> pb::LockRequest {
    pb::LockRequest { name: name.into(), lease }
}

/// Begins to lock, and returns when the key of `lease` is in the queue.
async fn begin(server: &Server, name: &'static str, lease: i64) -> Locking {
    let mut client = server.lock();
    let locking =
        tokio::spawn(async move { Ok(client.lock(lock(name, lease)).await?.into_inner()) });
    until_queue(server, name, |keys| keys.contains(&format!("{name}/{lease:x}"))).await;
    locking
}

/// Waits until the keys of the queue are as they should be.
async fn until_queue(server: &Server, name: &str, is_so: impl Fn(&[String]) -> bool) {
    within("the queue is as it should be", async {
        loop {
            let found = server.range(range(&format!("{name}/"), &format!("{name}0"))).await;
            let keys: Vec<String> =
                found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
            if is_so(&keys) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn unlock(server: &Server, key: &Bytes) {
    server.lock().unlock(pb::UnlockRequest { key: key.clone() }).await.unwrap();
}

/// Deletes a key; the revision in which it is gone.
async fn deletion(server: &Server, key: &str) -> i64 {
    let deleted = server.kv().delete_range(delete(key, "")).await.unwrap();
    deleted.into_inner().header.unwrap().revision
}

async fn locked(locking: Locking) -> pb::LockResponse {
    within("the lock is granted", locking).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_a_key_of_its_lease() {
    let server = server(&[]).await;
    server.grant(0x1abc, 60).await;
    let held = server.lock().lock(lock("n", 0x1abc)).await.unwrap().into_inner();
    assert_eq!(held.key, "n/1abc");
    assert_eq!(held.header.unwrap().revision, 2, "one revision: the put");
    let kv = server.range(range("n/1abc", "")).await.kvs.remove(0);
    assert_eq!((kv.create_revision, kv.lease, &kv.value[..]), (2, 0x1abc, &b""[..]));

    let again = server.lock().lock(lock("n", 0x1abc)).await.unwrap().into_inner();
    assert_eq!(again.key, held.key, "a lease may lock what it holds");
    assert_eq!(again.header.unwrap().revision, 2, "which changes nothing");

    unlock(&server, &held.key).await;
    assert_eq!(server.range(range("n/", "n0")).await.count, 0);
    let answer = server.lock().unlock(pb::UnlockRequest { key: held.key }).await.unwrap();
    assert_eq!(answer.into_inner().header.unwrap().revision, 3, "there is nothing to delete");

    let own = server.lock().lock(lock("n", 0)).await.unwrap().into_inner();
    let lease = server.range(range("n/", "n0")).await.kvs[0].lease;
    assert_eq!(own.key, format!("n/{lease:x}"));
    let request = etcd::LeaseTimeToLiveRequest { id: lease, keys: false };
    let granted = server.lease().lease_time_to_live(request).await.unwrap().into_inner();
    assert_eq!(granted.granted_ttl, 60, "whoever has no lease gets one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_code_unknown_and_the_text_of_its_cause() {
    let server = server(&[]).await;
    let unknown = |text: &str| (Code::Unknown, text.to_owned());
    assert_eq!(
        refused(server.lock().lock(lock("n", 99)).await),
        unknown("etcdserver: requested lease not found")
    );
    assert_eq!(
        refused(server.lock().unlock(pb::UnlockRequest::default()).await),
        unknown("etcdserver: key is not provided")
    );
    assert_eq!(server.range(range("n/", "n0")).await.count, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_of_all_members_get_the_lock_in_the_order_in_which_they_came() {
    let servers = servers(3, &[]).await;
    let mut waiting = Vec::new();
    for lease in 1..=12 {
        servers[0].grant(lease, 60).await;
        waiting.push(begin(&servers[lease as usize % 3], "n", lease).await);
    }
    let mut token = 0;
    for (lease, locking) in (1..=12).zip(waiting) {
        let held = locked(locking).await;
        assert_eq!(held.key, format!("n/{lease:x}"));
        // Read through another member than the one that granted.
        let key = String::from_utf8(held.key.to_vec()).unwrap();
        let queue = servers[0].range(range("n/", "n0")).await;
        assert_eq!(queue.count, 13 - lease);
        let kv = queue.kvs.iter().find(|kv| kv.key == key).unwrap();
        assert!(kv.create_revision > token, "tokens increase");
        token = kv.create_revision;
        unlock(&servers[(lease as usize + 1) % 3], &held.key).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_goes_leaves_the_queue_and_nobody_else_moves() {
    let server = server(&[]).await;
    for lease in 1..=4 {
        server.grant(lease, 60).await;
    }
    let holder = locked(begin(&server, "n", 1).await).await;
    let second = begin(&server, "n", 2).await;
    let third = begin(&server, "n", 3).await;
    let fourth = begin(&server, "n", 4).await;
    second.abort();
    until_queue(&server, "n", |keys| keys == ["n/1", "n/3", "n/4"]).await;
    assert!(!third.is_finished() && !fourth.is_finished());
    unlock(&server, &holder.key).await;
    let held = locked(third).await;
    assert!(!fourth.is_finished());
    unlock(&server, &held.key).await;
    locked(fourth).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_out_of_time_does_not_wait_on() {
    let server = server(&[]).await;
    for lease in 1..=2 {
        server.grant(lease, 60).await;
    }
    locked(begin(&server, "n", 1).await).await;
    let mut request = Request::new(lock("n", 2));
    request.set_timeout(Duration::from_millis(200));
    let failed = refused(within("the deadline", server.lock().lock(request)).await);
    // Whichever was faster, the client's clock or the server's.
    assert!(matches!(failed.0, Code::Unknown | Code::Cancelled | Code::DeadlineExceeded));
    until_queue(&server, "n", |keys| keys == ["n/1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_without_its_lease_hears_it_at_once() {
    let server = server(&[]).await;
    server.grant(1, 60).await;
    server.grant(2, 60).await;
    let holder = locked(begin(&server, "n", 1).await).await;
    let waiting = begin(&server, "n", 2).await;
    server.lease().lease_revoke(etcd::LeaseRevokeRequest { id: 2 }).await.unwrap();
    let failed = within("it hears", waiting).await.unwrap();
    assert_eq!(refused(failed), (Code::Unknown, "mutex: session is expired".to_owned()));

    // A key that was put again by somebody else is not the waiter's.
    server.grant(3, 60).await;
    let waiting = begin(&server, "n", 3).await;
    let swap = [delete("n/3", "").into(), crate::support::put("n/3", "").into()];
    for operation in swap.map(|operation: crate::support::Op| crate::support::op(operation)) {
        server.txn(crate::support::then(vec![operation])).await;
    }
    let failed = within("it hears", waiting).await.unwrap();
    assert_eq!(refused(failed), (Code::Unknown, "mutex: session is expired".to_owned()));
    assert_eq!(server.range(range("n/3", "")).await.count, 1, "nor its to delete");
    unlock(&server, &holder.key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_front_is_waited_for_whatever_it_is() {
    let server = server(&[]).await;
    for lease in 1..=4 {
        server.grant(lease, 60).await;
    }
    // One that never was a place in the queue.
    server.put("n/0", "").await;
    let first = begin(&server, "n", 1).await;
    let second = begin(&server, "n", 2).await;
    first.abort();
    until_queue(&server, "n", |keys| keys == ["n/0", "n/2"]).await;
    let gone = deletion(&server, "n/0").await;
    let held = locked(second).await;
    assert!(held.header.unwrap().revision >= gone, "it did not lock before");

    // One that is a place no more, since it lost its lease.
    let third = begin(&server, "n", 3).await;
    let fourth = begin(&server, "n", 4).await;
    server.put("n/2", "").await;
    third.abort();
    until_queue(&server, "n", |keys| keys == ["n/2", "n/4"]).await;
    let gone = deletion(&server, "n/2").await;
    let held = locked(fourth).await;
    assert!(held.header.unwrap().revision >= gone, "nor did it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_of_a_holder_that_died_goes_to_the_next() {
    let servers = servers(3, &[]).await;
    servers[0].grant(2, 60).await;
    // Long enough to get the lock before it ends.
    servers[0].grant(1, 15).await;
    let holder = locked(begin(&servers[1], "n", 1).await).await;
    let next = locked(begin(&servers[2], "n", 2).await).await;
    assert_eq!(next.key, "n/2");
    assert_eq!(servers[0].range(range("n/1", "")).await.count, 0);
    unlock(&servers[0], &holder.key).await;
    assert_eq!(servers[0].range(range("n/", "n0")).await.count, 1, "too late to harm");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stops_takes_its_waiters_out_of_the_queue() {
    let mut servers = servers(3, &[]).await;
    for lease in 1..=3 {
        servers[0].grant(lease, 60).await;
    }
    let leader = leader(&servers).await;
    let stopping = servers.remove(leader);
    let holder = locked(begin(&servers[0], "n", 1).await).await;
    let stopped = begin(&stopping, "n", 2).await;
    let other = begin(&servers[1], "n", 3).await;
    within("the leader stops", stopping.running.stop()).await;
    let failed = refused(within("its waiter hears", stopped).await.unwrap());
    assert_eq!(failed, (Code::Unknown, "etcdserver: server stopped".to_owned()));
    until_queue(&servers[0], "n", |keys| keys == ["n/1", "n/3"]).await;
    assert!(!other.is_finished(), "waiters outlive a leader");
    unlock(&servers[0], &holder.key).await;
    locked(other).await;
}
