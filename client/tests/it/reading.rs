//! Pages of a range, typed values, and watches that continue after a compaction.

use std::time::{Duration, Instant};

use conclave_client::{
    Client, Error, Json as _, Watcher,
    mvccpb::event::EventType,
    pb::range_request::{SortOrder, SortTarget},
    watch::{OnCompaction, Response},
};
use futures::TryStreamExt as _;
use tokio::time::timeout;

use crate::{SOON, start};

/// The keys of each page.
async fn keys(pages: conclave_client::Pages) -> Result<Vec<Vec<String>>, Error> {
    let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
    let pages = pages.map_ok(|page| page.kvs.iter().map(|kv| text(&kv.key)).collect());
    pages.try_collect().await
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let Some((_server, client)) = start("pages_are_of_one_revision").await else { return };
    for key in ["p/a", "p/b", "p/c", "p/d", "p/e", "q"] {
        client.put(key, "1").await.unwrap();
    }
    let all = || client.get("p/").prefix();
    let mut pages = all().pages(2);
    let first = pages.next().await.unwrap().unwrap();
    assert_eq!((first.kvs.len(), first.count), (2, 5));
    client.put("p/bb", "too late").await.unwrap();
    client.delete("p/e").await.unwrap();
    assert_eq!(keys(pages).await.unwrap(), [vec!["p/c", "p/d"], vec!["p/e"]]);
    assert_eq!(keys(all().limit(3).pages(2)).await.unwrap(), [vec!["p/a", "p/b"], vec!["p/bb"]]);
    assert_eq!(keys(all().limit(2).pages(2)).await.unwrap(), [vec!["p/a", "p/b"]]);
    assert_eq!(keys(all().pages(5)).await.unwrap().len(), 1);
    assert_eq!(keys(client.get("none").pages(5)).await.unwrap(), [Vec::<String>::new()]);
    let within = client.with_namespace("p/").get("").prefix().pages(4);
    assert_eq!(keys(within).await.unwrap(), [vec!["a", "b", "bb", "c"], vec!["d"]]);
    client.put("n/", "of the empty name").await.unwrap();
    client.put("n/a", "1").await.unwrap();
    let within = client.with_namespace("n/").get("").prefix().serializable().pages(1);
    assert_eq!(keys(within).await.unwrap(), [vec![""], vec!["a"]]);
    let none = client.with_namespace("n/").get("").pages(1);
    assert!(matches!(keys(none).await, Err(Error::Invalid(_))));
    for refused in [all().pages(0), all().sort(SortTarget::Key, SortOrder::Descend).pages(2)] {
        let error = keys(refused).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    let mut late = all().pages(2);
    let first = late.next().await.unwrap().unwrap().revision();
    client.put("p/a", "2").await.unwrap();
    client.compact(first + 1).await.unwrap();
    assert!(matches!(late.next().await, Err(Error::Compacted { .. })));
    assert!(late.next().await.unwrap().is_none(), "told once");
}

#[tokio::test]
async fn values_are_read_as_what_they_are() {
    let Some((_server, client)) = start("values_are_read_as_what_they_are").await else { return };
    client.put_json("j/1", &("tea", 2)).unwrap().await.unwrap();
    client.put("j/2", "no JSON").await.unwrap();
    let order: Option<(String, u32)> = client.get("j/1").await.unwrap().json().unwrap();
    assert_eq!(order, Some(("tea".to_owned(), 2)));
    assert_eq!(client.get("j/3").await.unwrap().json::<u32>().unwrap(), None);
    let all = client.get("j/").prefix().await.unwrap();
    let error = all.kvs[1].json::<(String, u32)>().unwrap_err();
    assert!(matches!(&error, Error::Decode { key, .. } if key == "j/2"), "{error}");
}

async fn next(watcher: &mut Watcher) -> Response {
    let response = timeout(SOON, watcher.next()).await.expect("in time");
    response.expect("no error").expect("no end")
}

#[tokio::test]
async fn a_watch_goes_on_with_what_is_there_after_a_compaction() {
    let name = "a_watch_goes_on_with_what_is_there_after_a_compaction";
    let Some((_server, client)) = start(name).await else { return };
    let client: Client = client.with_namespace("w/");
    let first = client.put("a", "1").await.unwrap().revision();
    client.put("b", "1").await.unwrap();
    let last = client.delete("a").await.unwrap().revision();
    client.compact(last).await.unwrap();
    let watch = client.watch("").prefix().from_revision(first);
    let ended = timeout(SOON, watch.clone().start().next()).await.expect("in time");
    assert!(matches!(ended, Err(Error::Compacted { .. })), "{ended:?}");
    let mut watcher = watch.on_compaction(OnCompaction::Resync).start();
    let now = next(&mut watcher).await;
    assert!(!now.is_progress() && now.events.is_empty(), "{now:?}");
    assert_eq!(now.revision(), last);
    let snapshot = now.snapshot.expect("what is there");
    assert_eq!(snapshot.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"b"]);
    client.put("c", "1").await.unwrap();
    let response = next(&mut watcher).await;
    assert!(response.snapshot.is_none());
    assert_eq!(response.events[0].r#type(), EventType::Put);
    assert_eq!(response.events[0].kv.as_ref().unwrap().key, "c");
}

#[test]
fn all_of_it_works_without_a_runtime() {
    use conclave_client::blocking::{Block, connect, iter};
    use conclave_testing::server::{Server, program};

    let Some(program) = program("all_of_it_works_without_a_runtime") else { return };
    let server = Server::single(program);
    let client = connect(Client::builder([server.endpoint()]).timeout(SOON)).unwrap();
    client.ready().block().unwrap();
    let mut changes = client.watch("x").created_notify().start();
    assert!(changes.next().block().unwrap().unwrap().created);
    client.put("x", "1").prev_kv().block().unwrap();
    let change = iter(&mut changes).next().unwrap().unwrap();
    assert_eq!(change.events[0].kv.as_ref().unwrap().value, "1");
    assert_eq!(
        iter(client.get("x").pages(1)).map(|page| page.unwrap().kvs.len()).sum::<usize>(),
        1
    );
    // Its lease is kept alive in the background.
    let lock = client.lock("jobs").ttl(Duration::from_secs(5)).block().unwrap();
    let place = client.get(lock.locks()[0].key.to_vec()).block().unwrap().one().unwrap();
    let left = || client.lease_time_to_live(place.lease, false).block().unwrap().ttl;
    let (start, mut least) = (Instant::now(), left());
    while left() <= least {
        assert!(start.elapsed() < SOON, "nobody renews it");
        least = least.min(left());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(lock.is_held().block().unwrap());
    lock.release().block().unwrap();
    drop(client.lock("jobs").block().unwrap());
    client.close().block();
    let again = client.lock("jobs").try_now().block().unwrap();
    again.release().block().unwrap();
    let leaders = client.election("e").observe();
    let leadership = client.election("e").campaign("me").block().unwrap();
    let leader = iter(leaders).find_map(|leader| leader.unwrap()).unwrap();
    assert_eq!(leader.value(), b"me");
    leadership.resign().block().unwrap();
    // Blocking is allowed in `spawn_blocking`.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reading = runtime.spawn_blocking(move || client.get("x").block().unwrap().kvs.len());
    assert_eq!(runtime.block_on(reading).unwrap(), 1);
}

#[tokio::test]
#[should_panic(expected = "Cannot start a runtime from within a runtime")]
async fn blocking_within_a_runtime_is_refused() {
    use conclave_client::blocking::Block as _;

    let client = Client::builder(["127.0.0.1:1"]).build().unwrap();
    client.get("x").block().ok();
}
