//! etcd's recipe: turns, tokens, and places whose owners have gone.

use std::time::Duration;

use bytes::Bytes;
use conclave_client::{
    Client, Error,
    kv::{get, put},
    txn::key,
};
use conclave_proto::v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient};
use tokio::time::{Instant, timeout};

use crate::{SOON, eventually, start};

/// Counts the keys in a queue.
async fn places(client: &Client, name: &str) -> i64 {
    let places = client.get(format!("{name}/")).prefix().count_only().await;
    places.expect("an answer").count
}

async fn until_places(client: &Client, name: &str, count: i64) {
    eventually("the queue has its length", async || {
        (places(client, name).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn turns_come_in_order_and_tokens_grow() {
    let Some((_server, client)) = start("turns_come_in_order_and_tokens_grow").await else {
        return;
    };
    let first = client.queue("q").value("one").await.unwrap();
    assert_eq!(client.get(&first.key()[..]).await.unwrap().one().unwrap().value, "one");
    let mut waiting = Vec::new();
    for place in 2..=4 {
        let client = client.clone();
        let contender = client.clone();
        waiting.push(tokio::spawn(async move { contender.queue("q").await.unwrap() }));
        until_places(&client, "q", place).await;
    }
    assert!(first.is_held().await.unwrap());
    assert!(waiting.iter().all(|waiter| !waiter.is_finished()));
    let mut token = first.token();
    first.release().await.unwrap();
    for waiter in waiting {
        let turn = timeout(SOON, waiter).await.expect("its turn comes").unwrap();
        assert!(turn.token() > token, "{} after {token}", turn.token());
        assert!(turn.revision() >= turn.token());
        token = turn.token();
        turn.release().await.unwrap();
    }
    assert_eq!(places(&client, "q").await, 0);
    assert!(client.leases().await.unwrap().leases.is_empty());
}

#[tokio::test]
async fn who_does_not_wait_leaves_at_once() {
    let Some((_server, client)) = start("who_does_not_wait_leaves_at_once").await else { return };
    let holder = client.queue("q").wait(Duration::MAX).await.unwrap();
    let wait = Duration::from_millis(300);
    let start = Instant::now();
    let error = client.queue("q").wait(wait).await.unwrap_err();
    assert!(matches!(error, Error::Busy) && start.elapsed() >= wait, "{error:?}");
    for _ in 0..3 {
        let error = client.queue("q").try_now().await.unwrap_err();
        assert!(matches!(error, Error::Busy), "{error:?}");
        assert_eq!(places(&client, "q").await, 1, "its place is gone before the answer");
    }
    holder.release().await.unwrap();
    client.queue("q").try_now().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn etcds_lock_service_stands_in_the_same_queue() {
    let test = "etcds_lock_service_stands_in_the_same_queue";
    let Some((_server, client)) = start(test).await else { return };
    let mut locks = LockClient::new(client.channel());
    let lease = client.lease_grant(600, 0).await.unwrap().id;
    let ours = client.queue("shared").await.unwrap();
    let request = LockRequest { name: Bytes::from_static(b"shared"), lease };
    let mut waiter = locks.clone();
    let waiter = tokio::spawn(async move { waiter.lock(request).await.unwrap().into_inner() });
    until_places(&client, "shared", 2).await;
    assert!(!waiter.is_finished());
    let token = ours.token();
    ours.release().await.unwrap();
    let theirs = timeout(SOON, waiter).await.unwrap().unwrap();
    let held = client.get(theirs.key.to_vec()).await.unwrap().one().unwrap();
    assert!(held.create_revision > token);
    assert!(matches!(client.queue("shared").try_now().await, Err(Error::Busy)));
    locks.unlock(UnlockRequest { key: theirs.key }).await.unwrap();
    assert!(client.queue("shared").await.unwrap().token() > held.create_revision);
}

#[tokio::test]
async fn a_guarded_transaction_needs_the_turn() {
    let Some((_server, client)) = start("a_guarded_transaction_needs_the_turn").await else {
        return;
    };
    let turn = client.queue("q").await.unwrap();
    let done = turn.txn().then(put("stock", "9")).then(get("stock")).commit().await.unwrap();
    assert!(done.succeeded && done.responses.len() == 2 && done.revision() > turn.token());
    let other = turn.txn().when(key("stock").value().equal("1")).then(put("stock", "8"));
    let other = other.or_else(get("stock")).commit().await.unwrap();
    assert!(!other.succeeded && other.responses.len() == 1, "its own compare failed");
    // As an operator may take it away.
    client.delete(turn.key().to_vec()).await.unwrap();
    assert!(!turn.is_held().await.unwrap());
    let error = turn.txn().then(put("stock", "7")).commit().await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    assert!(matches!(turn.set_value("x").await, Err(Error::Lost { .. })));
    assert_eq!(client.get("stock").await.unwrap().one().unwrap().value, "9");
}

#[tokio::test]
async fn the_loss_is_told_before_others_can_have_the_turn() {
    let test = "the_loss_is_told_before_others_can_have_the_turn";
    let Some((mut server, client)) = start(test).await else { return };
    let turn = client.queue("q").ttl(Duration::from_secs(8)).await.unwrap();
    assert_eq!(turn.run(async { 7 }).await.unwrap(), 7);
    server.kill();
    let error = turn.run(std::future::pending::<()>()).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }) && turn.lost().is_cancelled(), "{error:?}");
    assert!(turn.lease().is_lost());
}

#[tokio::test]
async fn a_waiter_whose_place_is_gone_never_gets_the_turn() {
    let test = "a_waiter_whose_place_is_gone_never_gets_the_turn";
    let Some((_server, client)) = start(test).await else { return };
    let holder = client.queue("q").await.unwrap();
    let contender = client.clone();
    let waiter = tokio::spawn(async move { contender.queue("q").value("gone").await });
    until_places(&client, "q", 2).await;
    let all = client.get("q/").prefix().await.unwrap().into_inner().kvs;
    let place = all.into_iter().find(|kv| kv.value == "gone").expect("the waiter's place");
    client.delete(place.key.to_vec()).await.unwrap();
    holder.release().await.unwrap();
    let error = timeout(SOON, waiter).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
}

#[tokio::test]
async fn dropped_guards_and_futures_leave_nothing_behind() {
    const CYCLES: usize = 100;
    let test = "dropped_guards_and_futures_leave_nothing_behind";
    let Some((_server, client)) = start(test).await else { return };
    let holder = client.queue("busy").await.unwrap();
    for cycle in 0..CYCLES {
        drop(client.queue(format!("free/{cycle}")).await.unwrap());
        // Cancelled at some point between the request and the wait.
        let patience = Duration::from_millis(u64::try_from(cycle % 10).unwrap());
        assert!(timeout(patience, client.queue("busy")).await.is_err(), "it is held");
    }
    client.close().await;
    eventually("only the holder is left", async || {
        (client.leases().await.unwrap().leases.len() == 1).then_some(())
    })
    .await;
    assert_eq!(client.get("free/").prefix().count_only().await.unwrap().count, 0);
    assert_eq!(places(&client, "busy").await, 1);
    assert!(holder.is_held().await.unwrap());
}

#[tokio::test]
async fn a_place_goes_also_if_nobody_awaits_its_release() {
    let test = "a_place_goes_also_if_nobody_awaits_its_release";
    let Some((_server, client)) = start(test).await else { return };
    let turn = client.queue("q").ttl(Duration::from_secs(600)).await.unwrap();
    let lost = turn.lost();
    let mut release = Box::pin(turn.release());
    assert!(futures::poll!(&mut release).is_pending());
    assert!(lost.is_cancelled(), "before anybody else can have the turn");
    // Before the request has left.
    drop(release);
    until_places(&client, "q", 0).await;
}
