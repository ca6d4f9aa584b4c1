//! Native locks from a server that may speak etcd's API only.

use std::time::Duration;

use conclave_client::{Error, kv::put};

use crate::start;

#[tokio::test]
async fn a_lock_needs_no_more_than_etcds_api() {
    let Some((_server, client)) = start("a_lock_needs_no_more_than_etcds_api").await else {
        return;
    };
    let ttl = Duration::from_secs(5);
    let lock = client.lock("jobs/1").ttl(ttl).note("me").await.unwrap();
    assert_eq!(lock.locks()[0].name, "jobs/1");
    assert!(lock.is_held().await.unwrap() && lock.token() > 0);
    lock.txn().then(put("state", "running")).commit().await.unwrap();
    assert_eq!(lock.run(async { 7 }).await.unwrap(), 7);
    assert!(matches!(client.lock("jobs/1").try_now().await, Err(Error::Busy)));
    assert!(matches!(client.queue("jobs/1").try_now().await, Err(Error::Busy)), "one queue");
    let token = lock.token();
    lock.release().await.unwrap();
    let next = client.lock("jobs/1").wait(Duration::from_secs(20)).await.unwrap();
    assert!(next.token() > token);
    // As an operator would take it away.
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
    if client.session().await.is_ok() {
        // It is one of ours, which can.
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
