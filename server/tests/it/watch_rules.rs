//! The rules of etcd's Watch, one test each, through gRPC.

use std::collections::BTreeMap;
use std::time::Duration;

use conclave_proto::etcdserverpb::watch_create_request::FilterType;
use conclave_proto::etcdserverpb::watch_request::RequestUnion;
use conclave_proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use conclave_server::watch::Limits;

use super::watch_support::{CLUSTER, MEMBER, Node, TERM, events, on_key, on_range, revision};

pub(crate) fn one(revision: i64, key: &str) -> Vec<(i64, String)> {
    vec![(revision, key.to_owned())]
}

#[tokio::test]
async fn live_events_carry_their_own_revision() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    let created = watching.create(on_range("a", "c")).await;
    assert_eq!((created.watch_id, created.canceled, revision(&created)), (0, false, 1));
    for (key, at) in [("a", 2), ("b", 3), ("a", 4)] {
        assert_eq!(node.put(key, "value"), at);
        let response = watching.next().await;
        assert_eq!(events(&response), one(at, key));
        let header = response.header.unwrap();
        assert_eq!((header.cluster_id, header.member_id), (CLUSTER, MEMBER));
        assert_eq!((header.revision, header.raft_term), (at, TERM));
    }
    node.put("c", "not inside");
    assert_eq!(node.delete("a"), 6);
    let response = watching.next().await;
    assert_eq!(events(&response), one(6, "a"));
    let event = &response.events[0];
    assert_eq!((event.r#type, event.prev_kv.is_none()), (1, true));
    let kv = event.kv.as_ref().unwrap();
    assert_eq!((kv.create_revision, kv.version, kv.value.len()), (0, 0, 0));
}

#[tokio::test]
async fn created_answers_come_in_request_order_with_ids_of_their_own() {
    let node = Node::start(Limits::default()).await;
    let watching = node.open().await;
    let wanted = [0, 7, 0, 1, 0, 7, 0];
    for watch_id in wanted {
        let create = WatchCreateRequest { watch_id, ..on_key("k") };
        watching.send(RequestUnion::CreateRequest(create)).await;
    }
    let mut watching = watching;
    let mut answers = Vec::new();
    for _ in wanted {
        let answer = watching.next().await;
        assert!(answer.created);
        answers.push((answer.watch_id, answer.cancel_reason));
    }
    let duplicate = "mvcc: duplicate watch ID provided on the WatchStream".to_owned();
    // 1 is taken by the third request, which counted on from 0.
    let ids = [0, 7, 1, -1, 2, -1, 3];
    let reasons = ids.map(|id| if id == -1 { duplicate.clone() } else { String::new() });
    assert_eq!(answers, ids.into_iter().zip(reasons).collect::<Vec<_>>());
}

#[tokio::test]
async fn requests_that_cannot_be_are_created_and_canceled_at_once() {
    let node = Node::start(Limits { stream_watchers: 1, ..Limits::default() }).await;
    let mut watching = node.open().await;
    let negative = WatchCreateRequest { start_revision: -1, ..on_key("k") };
    let cases = [
        (on_range("b", "a"), "mvcc: watcher range is empty"),
        (on_range("b", "b"), "mvcc: watcher range is empty"),
        (negative, "etcdserver: mvcc: required revision has been compacted"),
    ];
    for (create, reason) in cases {
        let answer = watching.create(create).await;
        assert!(answer.canceled);
        assert_eq!((answer.watch_id, &answer.cancel_reason[..]), (-1, reason));
    }
    assert!(!watching.create(on_key("")).await.canceled);
    let answer = watching.create(on_key("k")).await;
    let reason = "rpc error: code = ResourceExhausted desc = conclave: too many watchers on this \
                  stream (limit 1, --max-stream-watchers)";
    assert_eq!(answer.cancel_reason, reason);
    // A request of no kind is ignored; the stream lives on.
    watching.requests.send(WatchRequest { request_union: None }).await.unwrap();
    node.put("\0", "the smallest key, which an empty one stands for");
    assert_eq!(events(&watching.next().await), one(2, "\0"));
}

#[tokio::test]
async fn a_start_in_the_past_is_caught_up_with() {
    let node = Node::start(Limits::default()).await;
    for n in 2..=2_501 {
        assert_eq!(node.put(if n % 2 == 0 { "even" } else { "odd" }, "value"), n);
    }
    let mut watching = node.open().await;
    let create = WatchCreateRequest { start_revision: 2, prev_kv: true, ..on_range("a", "z") };
    watching.create(create).await;
    let odd = WatchCreateRequest { start_revision: 2_499, ..on_key("odd") };
    let mut found: BTreeMap<i64, Vec<(i64, String)>> = BTreeMap::new();
    watching.send(RequestUnion::CreateRequest(odd)).await;
    while found.values().map(Vec::len).sum::<usize>() < 2_502 {
        let response = watching.next().await;
        let batch = events(&response);
        assert!(batch.len() <= 1_000);
        if !response.created {
            assert_eq!(revision(&response), 2_501, "catch-up says the current revision");
        }
        for event in response.events.iter().filter(|_| response.watch_id == 0) {
            let kv = event.kv.as_ref().unwrap();
            let prev = event.prev_kv.as_ref().map(|prev| prev.mod_revision);
            assert_eq!(prev, (kv.version > 1).then_some(kv.mod_revision - 2));
        }
        found.entry(response.watch_id).or_default().extend(batch);
    }
    let all: Vec<i64> = found[&0].iter().map(|(revision, _)| *revision).collect();
    assert_eq!(all, (2..=2_501).collect::<Vec<i64>>());
    assert_eq!(found[&1], [(2_499, "odd".to_owned()), (2_501, "odd".to_owned())]);
    node.put("odd", "live again");
    let mut ids = [watching.next().await.watch_id, watching.next().await.watch_id];
    ids.sort_unstable();
    assert_eq!(ids, [0, 1]);
}

#[tokio::test]
async fn a_start_in_the_future_brings_nothing_before_it() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    watching.create(WatchCreateRequest { start_revision: 4, ..on_key("k") }).await;
    node.put("k", "2");
    watching.ask_progress().await;
    node.put("k", "3");
    watching.ask_progress().await;
    node.put("k", "4");
    let response = watching.next().await;
    assert_eq!(events(&response), one(4, "k"));
    watching.ask_progress().await;
    let progress = watching.next().await;
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 4));
}

#[tokio::test]
async fn a_compacted_start_is_created_then_canceled() {
    let node = Node::start(Limits::default()).await;
    for n in 2..10 {
        node.put("k", &n.to_string());
    }
    node.compact(6);
    let mut watching = node.open().await;
    let created = watching.create(WatchCreateRequest { start_revision: 5, ..on_key("k") }).await;
    assert!(!created.canceled);
    let canceled = watching.next().await;
    assert_eq!((canceled.canceled, canceled.compact_revision), (true, 6));
    assert_eq!((canceled.watch_id, revision(&canceled)), (created.watch_id, 0));
    assert_eq!(canceled.cancel_reason, "");
    // The compacted revision itself is still there.
    watching.create(WatchCreateRequest { start_revision: 6, ..on_key("k") }).await;
    let found: Vec<i64> = events(&watching.next().await).into_iter().map(|e| e.0).collect();
    assert_eq!(found, [6, 7, 8, 9]);
}

#[tokio::test]
async fn an_id_stays_taken_after_a_compaction_until_it_is_cancelled() {
    let node = Node::start(Limits::default()).await;
    for n in 2..10 {
        node.put("k", &n.to_string());
    }
    node.compact(6);
    let mut watching = node.open().await;
    let old = |watch_id| WatchCreateRequest { watch_id, start_revision: 5, ..on_key("k") };
    let new = |watch_id| WatchCreateRequest { watch_id, ..on_key("k") };
    for id in [5, 0] {
        assert_eq!(watching.create(old(id)).await.watch_id, id);
        assert_eq!(watching.next().await.compact_revision, 6);
    }
    let refused = watching.create(new(5)).await;
    assert_eq!((refused.watch_id, refused.created, refused.canceled), (-1, true, true));
    let reason = "mvcc: duplicate watch ID provided on the WatchStream";
    assert_eq!(refused.cancel_reason, reason);
    assert_eq!(watching.create(new(0)).await.watch_id, 1, "not 0 again");
    watching.cancel(5).await;
    let canceled = watching.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.compact_revision), (5, true, 0));
    watching.cancel(5).await;
    assert_eq!(watching.create(new(5)).await.watch_id, 5, "and no second answer before");
}

#[tokio::test]
async fn a_compacted_delete_is_still_seen_at_its_revision() {
    let node = Node::start(Limits::default()).await;
    node.put("k", "value");
    let deleted = node.delete("k");
    node.put("other", "value");
    node.compact(deleted);
    let mut watching = node.open().await;
    watching.create(WatchCreateRequest { start_revision: deleted, ..on_key("k") }).await;
    let response = watching.next().await;
    assert_eq!((events(&response), response.events[0].r#type), (one(deleted, "k"), 1));
}

#[tokio::test]
async fn filters_drop_events_and_empty_answers_are_not_sent() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    for filter in [FilterType::Noput, FilterType::Nodelete] {
        let filters = vec![filter.into()];
        watching.create(WatchCreateRequest { filters, ..on_key("k") }).await;
    }
    node.put("k", "value");
    let put = watching.next().await;
    assert_eq!((put.watch_id, events(&put)), (1, one(2, "k")));
    node.delete("k");
    let delete = watching.next().await;
    assert_eq!((delete.watch_id, events(&delete)), (0, one(3, "k")));
}

#[tokio::test]
async fn prev_kv_comes_only_to_those_who_asked() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    watching.create(on_key("k")).await;
    watching.create(WatchCreateRequest { prev_kv: true, ..on_key("k") }).await;
    for (n, before) in [("1", None), ("2", Some("1")), ("3", Some("2"))] {
        node.put("k", n);
        for _ in 0..2 {
            let response = watching.next().await;
            let prev = response.events[0].prev_kv.as_ref().map(|kv| kv.value.to_vec());
            let expected = before.filter(|_| response.watch_id == 1);
            assert_eq!(prev, expected.map(|value| value.as_bytes().to_vec()));
        }
    }
}

#[tokio::test]
async fn a_canceled_watcher_hears_no_more_and_unknown_ids_are_ignored() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    watching.create(on_key("k")).await;
    watching.create(on_range("a", "z")).await;
    watching.cancel(99).await;
    watching.cancel(0).await;
    let canceled = watching.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.created), (0, true, false));
    assert_eq!((&canceled.cancel_reason[..], canceled.compact_revision), ("", 0));
    node.put("k", "value");
    assert_eq!(watching.next().await.watch_id, 1);
    // A canceled id may be used again.
    let answer = watching.create(WatchCreateRequest { watch_id: 7, ..on_key("k") }).await;
    assert_eq!(answer.watch_id, 7);
}

#[tokio::test]
async fn one_revision_comes_in_one_answer() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    watching.create(on_range("k", "l")).await;
    let keys: Vec<String> = (0..100).map(|n| format!("k{n:03}")).collect();
    // 2 MiB: more than any chunk or batch.
    node.put_all(&keys, &"v".repeat(20 << 10));
    let response = watching.next().await;
    assert_eq!(response.events.len(), 100);
    assert!(!response.fragment);
}

#[tokio::test]
async fn fragments_are_sent_only_to_those_who_asked() {
    let limits = Limits { fragment_bytes: 1_000, ..Limits::default() };
    let node = Node::start(limits).await;
    let mut watching = node.open().await;
    watching.create(WatchCreateRequest { fragment: true, ..on_range("k", "l") }).await;
    let keys: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
    node.put_all(&keys, &"v".repeat(400));
    let mut found = Vec::new();
    let mut fragments = Vec::new();
    while found.len() < 10 {
        let response = watching.next().await;
        assert!((1..=2).contains(&response.events.len()));
        assert_eq!(revision(&response), 2);
        found.extend(events(&response).into_iter().map(|(_, key)| key));
        fragments.push(response.fragment);
    }
    assert_eq!(found, keys);
    assert_eq!(fragments.pop(), Some(false));
    assert!(fragments.iter().all(|is_fragment| *is_fragment));
    // An event larger than a fragment comes alone and whole.
    node.put("k", &"v".repeat(5_000));
    let response = watching.next().await;
    assert_eq!((response.events.len(), response.fragment), (1, false));
}

#[tokio::test]
async fn asked_progress_comes_after_all_events_it_speaks_of() {
    let node = Node::start(Limits::default()).await;
    let mut watching = node.open().await;
    // Without watchers there is none; the answer to come proves it.
    watching.ask_progress().await;
    watching.create(on_range("a", "z")).await;
    watching.ask_progress().await;
    let progress = watching.next().await;
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 1));
    assert!(progress.events.is_empty() && !progress.created && !progress.canceled);
    let mut seen = 1;
    for _ in 0..50 {
        let at = node.put("k", "value");
        watching.ask_progress().await;
        loop {
            let response = watching.next().await;
            if response.watch_id == -1 {
                assert!(revision(&response) >= at, "progress is not older than its request");
                assert_eq!(revision(&response), seen, "every event came before");
                break;
            }
            seen = events(&response).last().unwrap().0;
        }
    }
}

#[tokio::test]
async fn idle_watchers_hear_of_progress_by_themselves() {
    let interval = Duration::from_millis(100);
    let node = Node::start_with(Limits::default(), interval).await;
    let mut watching = node.open().await;
    watching.create(on_key("silent")).await;
    watching.create(WatchCreateRequest { progress_notify: true, ..on_key("k") }).await;
    let future = WatchCreateRequest { progress_notify: true, start_revision: 9, ..on_key("k") };
    watching.create(future).await;
    for at in 2..5 {
        node.put("other", "value");
        let progress = loop {
            let response = watching.next().await;
            if revision(&response) == at {
                break response;
            }
        };
        assert_eq!((progress.watch_id, progress.events.len()), (1, 0));
    }
}
