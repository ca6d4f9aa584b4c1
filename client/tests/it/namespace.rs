//! Clients with a namespace.

use std::time::Duration;

use conclave_client::{
    Client, Error,
    kv::{delete, get, put},
    pb::response_op::Response,
    txn::{key, txn},
};
use tokio::time::timeout;

use crate::{SOON, start};

fn names(kvs: &[conclave_client::mvccpb::KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).expect("text")).collect()
}

/// A server with foreign keys on both sides of the namespace `/b/`, and a client within it.
async fn within(test: &str) -> Option<(conclave_testing::server::Server, Client, Client)> {
    let (server, client) = start(test).await?;
    for foreign in ["/a/k", "/b", "/b0", "/c/k", "k"] {
        client.put(foreign, "foreign").await.unwrap();
    }
    let inner = client.with_namespace("/b").with_namespace("/");
    Some((server, client, inner))
}

#[tokio::test]
async fn keys_are_those_of_the_namespace() {
    let Some((_server, client, inner)) = within("keys_are_those_of_the_namespace").await else {
        return;
    };
    for name in ["k", "l", "m"] {
        inner.put(name, name).await.unwrap();
    }
    let was = inner.put("k", "new").prev_kv().await.unwrap();
    assert_eq!(was.prev_kv.as_ref().unwrap().key, "k");
    assert_eq!(client.get("/b/k").await.unwrap().one().unwrap().value, "new");
    for all in [inner.get("").prefix(), inner.get("").from_key()] {
        assert_eq!(names(&all.await.unwrap().kvs), ["k", "l", "m"]);
    }
    assert_eq!(names(&inner.get("l").from_key().await.unwrap().kvs), ["l", "m"]);
    assert_eq!(names(&inner.get("k").range("m").await.unwrap().kvs), ["k", "l"]);
    assert!(matches!(inner.get("").await, Err(Error::Invalid(_))));
    assert!(matches!(inner.put("", "v").await, Err(Error::Invalid(_))));
    let gone = inner.delete("l").from_key().prev_kv().await.unwrap();
    assert_eq!(names(&gone.prev_kvs), ["l", "m"]);
    assert_eq!(inner.delete("").prefix().await.unwrap().deleted, 1);
    assert_eq!(client.get("").prefix().count_only().await.unwrap().count, 5, "the foreign ones");
}

#[tokio::test]
async fn transactions_stay_in_the_namespace() {
    let Some((_server, client, inner)) = within("transactions_stay_in_the_namespace").await else {
        return;
    };
    inner.put("k", "own").await.unwrap();
    let nested = txn().when(key("k").version().equal(1)).then(delete("k").prev_kv());
    let none_else = key("").prefix().version().equal(1);
    let both = inner.txn().when(key("k").value().equal("own")).when(none_else);
    let answer = both.then(put("l", "2")).then(get("").prefix()).then(nested).commit().await;
    let answer = answer.unwrap();
    assert!(answer.succeeded);
    let mut seen = Vec::new();
    for operation in &answer.responses {
        match operation.response.as_ref().unwrap() {
            Response::ResponseRange(range) => seen.extend(names(&range.kvs)),
            Response::ResponseTxn(txn) => {
                let Some(Response::ResponseDeleteRange(gone)) = &txn.responses[0].response else {
                    panic!("{txn:?}")
                };
                seen.extend(names(&gone.prev_kvs));
            }
            _ => {}
        }
    }
    assert_eq!(seen, ["k", "l", "k"]);
    assert_eq!(client.get("/b/").prefix().count_only().await.unwrap().count, 1);
}

#[tokio::test]
async fn watches_and_leases_tell_of_the_namespace() {
    let Some((_server, client, inner)) = within("watches_and_leases_tell_of_the_namespace").await
    else {
        return;
    };
    let mut watcher = inner.watch("").prefix().prev_kv().created_notify().start();
    assert!(timeout(SOON, watcher.next()).await.unwrap().unwrap().unwrap().created);
    let lease = client.lease(Duration::from_secs(60)).await.unwrap();
    client.put("/c/k", "foreign").lease(lease.id()).await.unwrap();
    inner.put("k", "1").lease(lease.id()).await.unwrap();
    let left = inner.lease_time_to_live(lease.id(), true).await.unwrap();
    assert_eq!(left.keys, ["k"]);
    assert_eq!(client.lease_time_to_live(lease.id(), true).await.unwrap().keys.len(), 2);
    lease.revoke().await.unwrap();
    for version in [1, 0] {
        let response = timeout(SOON, watcher.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(response.events.len(), 1, "{response:?}");
        let event = &response.events[0];
        assert_eq!(event.kv.as_ref().unwrap().key, "k");
        assert_eq!(event.kv.as_ref().unwrap().version, version);
        let before = event.prev_kv.as_ref().map(|kv| kv.key.clone());
        assert_eq!(before, (version == 0).then(|| "k".into()));
    }
}

#[tokio::test]
async fn a_turn_excludes_those_of_the_whole_name() {
    let Some((_server, client, inner)) = within("a_turn_excludes_those_of_the_whole_name").await
    else {
        return;
    };
    let turn = inner.queue("jobs").await.unwrap();
    assert!(turn.key().starts_with(b"/b/jobs/"), "{turn:?}");
    assert!(matches!(client.queue("/b/jobs").try_now().await, Err(Error::Busy)));
    let other = inner.lock("jobs").try_now().await;
    assert!(matches!(other, Err(Error::Busy)), "{other:?}");
    assert!(turn.is_held().await.unwrap());
    turn.set_value("17").await.unwrap();
    let done = turn.txn().then(put("state", "running")).then(get("state")).commit().await;
    let Some(Response::ResponseRange(range)) =
        done.unwrap().into_inner().responses.remove(1).response
    else {
        panic!("no range");
    };
    assert_eq!(names(&range.kvs), ["state"]);
    assert!(client.get("/b/state").await.unwrap().one().is_some());
    turn.release().await.unwrap();
    let leadership = inner.election("jobs").campaign("a").await.unwrap();
    assert!(matches!(client.queue("/b/jobs").try_now().await, Err(Error::Busy)));
    let leader = inner.election("jobs").leader().await.unwrap().unwrap();
    assert_eq!(leader.value(), b"a");
    leadership.txn().then(put("state", "led")).commit().await.unwrap();
    assert_eq!(client.get("/b/state").await.unwrap().one().unwrap().value, "led");
    leadership.resign().await.unwrap();
}
