//! Watches that break and resume.

use conclave_client::{Client, Error, Watcher, mvccpb::event::EventType};
use tokio::time::timeout;

use crate::{SOON, start};

/// The values (or `-` for a deletion) of the next `count` events.
async fn take(watcher: &mut Watcher, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    while values.len() < count {
        let response = timeout(SOON, watcher.next()).await;
        let response = response.expect("an event in time").expect("no error").expect("no end");
        for event in &response.events {
            let value = event.kv.as_ref().expect("a pair").value.to_vec();
            let is_delete = event.r#type() == EventType::Delete;
            values.push(if is_delete {
                "-".to_owned()
            } else {
                String::from_utf8(value).expect("text")
            });
        }
    }
    values
}

#[tokio::test]
async fn a_watch_yields_every_event_in_order() {
    let Some((_server, client)) = start("a_watch_yields_every_event_in_order").await else {
        return;
    };
    let first = client.put("w/a", "1").await.unwrap();
    let mut all = client.watch("w/").prefix().from_revision(first.revision()).prev_kv().start();
    let mut puts = client.watch("w/").prefix().no_deletes().created_notify().start();
    assert!(puts.next().await.unwrap().unwrap().created);
    client.put("w/b", "2").await.unwrap();
    client.delete("w/a").await.unwrap();
    client.put("w/a", "3").await.unwrap();
    assert_eq!(take(&mut all, 4).await, ["1", "2", "-", "3"]);
    assert_eq!(take(&mut puts, 2).await, ["2", "3"]);
    all.request_progress();
    let progress = timeout(SOON, all.next()).await.unwrap().unwrap().unwrap();
    assert!(progress.is_progress());
    assert_eq!(progress.revision(), first.revision() + 3);
}

#[tokio::test]
async fn a_watch_survives_a_restart() {
    let Some((mut server, client)) = start("a_watch_survives_a_restart").await else { return };
    let mut watcher = client.watch("w").created_notify().start();
    watcher.next().await.unwrap();
    client.put("w", "1").await.unwrap();
    assert_eq!(take(&mut watcher, 1).await, ["1"]);
    for round in 2..5 {
        server.kill();
        server.start();
        client.ready().await.expect("the server serves again");
        client.put("w", round.to_string()).await.unwrap();
        assert_eq!(take(&mut watcher, 1).await, [round.to_string()]);
    }
}

#[tokio::test]
async fn what_is_followed_is_read_again_after_the_store_went_back() {
    let test = "what_is_followed_is_read_again_after_the_store_went_back";
    let Some((mut server, client)) = start(test).await else { return };
    let mut watcher = client.watch("g/").prefix().created_notify().start();
    watcher.next().await.unwrap();
    let lease = client.lease_grant(600, 0).await.unwrap().id;
    for value in ["1", "2", "3", "4", "5"] {
        client.put("g/old", value).lease(lease).await.unwrap();
    }
    assert_eq!(take(&mut watcher, 5).await, ["1", "2", "3", "4", "5"]);
    let mut followed = client.group("g").follow();
    let members = timeout(SOON, followed.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(members[0].id, "old");
    server.forget();
    server.start();
    client.ready().await.expect("the server serves again");
    let lease = client.lease_grant(600, 0).await.unwrap().id;
    client.put("g/new", "1").lease(lease).await.unwrap();
    let read_again = async {
        loop {
            let members = followed.next().await.unwrap().expect("it goes on");
            if members.iter().map(|member| &member.id[..]).eq([b"new"]) {
                return;
            }
        }
    };
    timeout(SOON, read_again).await.expect("what is there now is seen");
    let end = timeout(SOON, watcher.next()).await.expect("the end in time");
    assert!(matches!(end, Err(Error::FutureRevision(_))), "{end:?}");
}

/// As after a restore from a backup, if others have written more than was lost before this client
/// reconnects.
#[tokio::test]
async fn what_is_followed_is_read_again_if_another_cluster_answers() {
    let test = "what_is_followed_is_read_again_if_another_cluster_answers";
    let Some((mut old, client)) = start(test).await else { return };
    let Some((mut new, others)) = start(test).await else { return };
    let lease = others.lease_grant(600, 0).await.unwrap().id;
    for value in ["1", "2", "3", "4", "5"] {
        others.put("g/new", value).lease(lease).await.unwrap();
    }
    new.kill();
    let both = Client::builder([old.endpoint(), new.endpoint()]).timeout(SOON).build().unwrap();
    let mut watcher = both.watch("g/").prefix().created_notify().start();
    watcher.next().await.unwrap();
    let lease = client.lease_grant(600, 0).await.unwrap().id;
    client.put("g/old", "1").lease(lease).await.unwrap();
    assert_eq!(take(&mut watcher, 1).await, ["1"]);
    let mut followed = both.group("g").follow();
    let members = timeout(SOON, followed.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(members[0].id, "old");
    old.kill();
    new.start();
    let read_again = async {
        while let Some(members) = followed.next().await.unwrap() {
            if members.iter().map(|member| &member.id[..]).eq([b"new"]) {
                return;
            }
        }
        panic!("it goes on");
    };
    timeout(SOON, read_again).await.expect("what is there now is seen");
    let end = timeout(SOON, watcher.next()).await.expect("the end in time");
    assert!(matches!(end, Err(Error::FutureRevision(_))), "{end:?}");
}

#[tokio::test]
async fn a_watch_below_the_compaction_ends_with_its_revision() {
    let test = "a_watch_below_the_compaction_ends_with_its_revision";
    let Some((_server, client)) = start(test).await else { return };
    for value in ["1", "2", "3"] {
        client.put("w", value).await.unwrap();
    }
    client.compact(4).await.unwrap();
    let mut watcher = client.watch("w").from_revision(2).start();
    let error = watcher.next().await.unwrap_err();
    assert!(matches!(error, Error::Compacted { revision: 4 }), "{error:?}");
    assert_eq!(watcher.next().await.unwrap(), None);
    let mut watcher = client.watch("w").from_revision(4).start();
    assert_eq!(take(&mut watcher, 1).await, ["3"]);
}

#[tokio::test]
async fn a_large_revision_comes_in_one_response() {
    let Some((_server, client)) = start("a_large_revision_comes_in_one_response").await else {
        return;
    };
    let mut watcher = client.watch("big").prefix().prev_kv().from_revision(2).start();
    let value = vec![7_u8; 1_000_000];
    for i in 0..4 {
        client.put(format!("big/{i}"), value.clone()).await.unwrap();
    }
    client.delete("big/").prefix().await.unwrap();
    let mut deleted = 0;
    while deleted == 0 {
        let response = watcher.next().await.unwrap().unwrap();
        let is_delete = response.events[0].r#type() == EventType::Delete;
        deleted = if is_delete { response.events.len() } else { 0 };
    }
    assert_eq!(deleted, 4, "the events of one revision are not split");
}
