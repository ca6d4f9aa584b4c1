//! Locks from a server that may only speak etcd's API.

use std::time::Duration;

use conclave_client::{Error, SessionState, kv::put};

use crate::{SOON, eventually, start};

#[tokio::test]
async fn a_lock_needs_no_more_than_etcds_api() {
    let Some((_server, client)) = start("a_lock_needs_no_more_than_etcds_api").await else {
        return;
    };
    let ttl = Duration::from_secs(30);
    let lock = client.lock("jobs/1").ttl(ttl).note("me").await.unwrap();
    assert_eq!(lock.locks()[0].name, "jobs/1");
    assert!(lock.is_held().await.unwrap() && lock.token() > 0);
    lock.txn().then(put("state", "running")).commit().await.unwrap();
    assert_eq!(lock.run(async { 7 }).await.unwrap(), 7);
    assert!(matches!(client.lock("jobs/1").try_now().await, Err(Error::Busy)));
    assert!(matches!(client.queue("jobs/1").try_now().await, Err(Error::Busy)), "one queue");
    let token = lock.token();
    lock.release().await.unwrap();
    let next = client.lock("jobs/1").wait(SOON).await.unwrap();
    assert!(next.token() > token);
    // As an operator may take it away.
    client.delete(next.locks()[0].key.to_vec()).await.unwrap();
    assert!(!next.is_held().await.unwrap());
    let error = next.txn().then(put("state", "over")).commit().await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    drop(next);
    client.close().await;
}

#[tokio::test]
async fn what_etcd_cannot_do_is_said() {
    let Some((_server, client)) = start("what_etcd_cannot_do_is_said").await else { return };
    if client.sessions().await.is_ok() {
        // This is a Conclave server, which supports them.
        return;
    }
    for lock in [
        client.lock("a").shared(),
        client.lock("a").permits(1, 3),
        client.lock("a").and("b"),
        client.lock("a").reentrant(),
        client.lock("a").delay_after_loss(Duration::from_secs(1)),
    ] {
        let error = lock.await.unwrap_err();
        assert!(matches!(error, Error::Unimplemented(_)), "{error:?}");
    }
    let lock = client.lock("a").await.unwrap();
    assert!(matches!(lock.downgrade().await, Err(Error::Unimplemented(_))));
    assert!(lock.session().is_none());
    assert!(client.get("a/").prefix().count_only().await.unwrap().count == 1);
}

#[tokio::test]
async fn a_session_needs_no_more_than_etcds_api() {
    let Some((_server, client)) = start("a_session_needs_no_more_than_etcds_api").await else {
        return;
    };
    // A heartbeat may be late by two thirds of the TTL.
    let ttl = Duration::from_secs(12);
    let session = client.session().ttl(ttl).owner("me").await.unwrap();
    let other = client.session().ttl(ttl).await.unwrap();
    assert_eq!(*session.state().borrow(), SessionState::Active);
    client.put("mine", "v").lease(session.id()).await.unwrap();
    client.put("others", "v").lease(other.id()).await.unwrap();
    let count = async |key: &str| client.get(key).count_only().await.unwrap().count;
    // Both are kept alive by heartbeats, for more than their TTL.
    let began = std::time::Instant::now();
    let outlived = async || (began.elapsed() > ttl + ttl / 4).then_some(());
    eventually("the TTL passes", outlived).await;
    assert!(!session.is_lost() && !other.is_lost());
    assert_eq!((count("mine").await, count("others").await), (1, 1));
    let lock = session.lock("l").await.unwrap();
    assert!(lock.is_held().await.unwrap());
    lock.release().await.unwrap();
    let leadership = session.election("e").campaign("me").await.unwrap();
    assert!(session.election("e").leader().await.unwrap().is_some());
    leadership.resign().await.unwrap();
    let lost = session.lost();
    session.close().await.unwrap();
    assert!(lost.is_cancelled());
    assert_eq!((count("mine").await, count("others").await), (0, 1));
    // The next heartbeat reports a session that an operator ended as lost.
    client.session_end(other.id()).await.unwrap();
    let gone = async || other.is_lost().then_some(());
    eventually("the loss is seen", gone).await;
    let again = client.session_end(other.id()).await.unwrap_err();
    assert!(matches!(again, Error::NotFound(_)), "{again:?}");
    let dropped = client.session().ttl(Duration::from_secs(60)).await.unwrap();
    client.put("dropped", "v").lease(dropped.id()).await.unwrap();
    drop(dropped);
    let ended = async || (count("dropped").await == 0).then_some(());
    eventually("a dropped session ends", ended).await;
}
