//! Watching a whole server: what the other services change is seen, on the port they share.

use conclave_proto::etcdserverpb::request_op::Request;
use conclave_proto::etcdserverpb::watch_client::WatchClient;
use conclave_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    RequestOp, TxnRequest, WatchCreateRequest,
};

use conclave_proto::mvccpb::Event;

use super::cluster::within;
use super::support::server;
use super::watch_support::{Watching, events, on_range, revision};

fn put(key: &str, value: &str, lease: i64) -> PutRequest {
    PutRequest {
        key: key.as_bytes().to_vec().into(),
        value: value.as_bytes().to_vec().into(),
        lease,
        ..PutRequest::default()
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn pairs(expected: &[(i64, &str)]) -> Vec<(i64, String)> {
    expected.iter().map(|(revision, key)| (*revision, (*key).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_seen() {
    let server = server(&[]).await;
    let mut kv = server.kv();
    let mut lease = server.lease();
    let mut watching = Watching::open(WatchClient::new(server.channel.clone())).await;
    let create = WatchCreateRequest { prev_kv: true, ..on_range("a", "z") };
    assert_eq!(revision(&watching.create(create).await), 1);

    let granted = lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 7 }).await.unwrap();
    let id = granted.into_inner().id;
    kv.put(put("b", "1", id)).await.unwrap();
    assert_eq!(events(&watching.next().await), pairs(&[(2, "b")]));

    let delete =
        DeleteRangeRequest { key: "b".into(), range_end: "c".into(), ..Default::default() };
    let success = vec![
        op(Request::RequestPut(put("k", "1", id))),
        op(Request::RequestPut(put("l", "2", id))),
        op(Request::RequestDeleteRange(delete)),
    ];
    kv.txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    let response = watching.next().await;
    assert_eq!(events(&response), pairs(&[(3, "k"), (3, "l"), (3, "b")]));
    let prev = response.events[2].prev_kv.as_ref().unwrap();
    assert_eq!((&prev.value[..], prev.lease, prev.mod_revision), (&b"1"[..], id, 2));

    lease.lease_revoke(LeaseRevokeRequest { id }).await.unwrap();
    let response = watching.next().await;
    assert_eq!(events(&response), pairs(&[(4, "k"), (4, "l")]));
    assert!(response.events.iter().all(|event| event.r#type == 1 && event.prev_kv.is_some()));

    watching.ask_progress().await;
    let progress = watching.next().await;
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_read_from_disk_until_it_is_compacted() {
    let server = server(&[]).await;
    let mut kv = server.kv();
    for n in 0..50 {
        kv.put(put(&format!("k{}", n % 5), &n.to_string(), 0)).await.unwrap();
    }
    let mut watching = Watching::open(WatchClient::new(server.channel.clone())).await;
    let from = |start_revision| WatchCreateRequest { start_revision, ..on_range("k", "l") };
    watching.create(from(2)).await;
    let mut found = Vec::new();
    while found.len() < 50 {
        found.extend(events(&watching.next().await).into_iter().map(|(revision, _)| revision));
    }
    assert_eq!(found, (2..52).collect::<Vec<_>>());
    watching.cancel(0).await;
    assert!(watching.next().await.canceled);

    kv.compact(CompactionRequest { revision: 40, physical: true }).await.unwrap();
    watching.create(from(39)).await;
    let canceled = watching.next().await;
    assert_eq!((canceled.canceled, canceled.compact_revision), (true, 40));
    watching.create(from(40)).await;
    assert_eq!(events(&watching.next().await).len(), 12);
}

/// More than apply hands on with the events, and less than the hub takes: it is read from the store by whoever
/// wants it.
#[tokio::test(flavor = "multi_thread")]
async fn the_states_before_a_large_delete_come_to_those_who_asked() {
    const KEYS: usize = 12;
    let server = server(&[]).await;
    let mut kv = server.kv();
    let value = "v".repeat(1 << 20);
    for n in 0..KEYS {
        kv.put(put(&format!("k{n:02}"), &value, 0)).await.unwrap();
    }
    let mut asks = Watching::open(WatchClient::new(server.channel.clone())).await;
    asks.create(WatchCreateRequest { prev_kv: true, ..on_range("k", "l") }).await;
    let mut asks_not = Watching::open(WatchClient::new(server.channel.clone())).await;
    asks_not.create(on_range("k", "l")).await;

    let delete =
        DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (12, 0));
    let bare = asks_not.next().await;
    let full = asks.next().await;
    assert_eq!(events(&full), events(&bare));
    assert_eq!(events(&full).len(), KEYS);
    assert!(bare.events.iter().all(|event| event.prev_kv.is_none()));
    let is_whole =
        |event: &Event| event.prev_kv.as_ref().is_some_and(|prev| prev.value.len() == value.len());
    assert!(full.events.iter().all(is_whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_under_load_see_every_revision_once() {
    let server = server(&[]).await;
    let mut watching = Watching::open(WatchClient::new(server.channel.clone())).await;
    watching.create(on_range("k", "l")).await;
    let late = WatchCreateRequest { start_revision: 500, ..on_range("k", "l") };
    watching.create(late).await;
    let writers = (0..8).map(|writer| {
        let mut kv = server.kv();
        tokio::spawn(async move {
            for n in 0..125 {
                kv.put(put(&format!("k{writer}/{n}"), "value", 0)).await.unwrap();
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut next = [2, 500];
    while next != [1_002, 1_002] {
        let response = watching.next().await;
        let id = usize::try_from(response.watch_id).unwrap();
        for (revision, _) in events(&response) {
            assert_eq!(revision, next[id], "every revision once, in order");
            next[id] += 1;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_comes_by_itself_at_the_configured_interval() {
    let server = server(&["--watch-progress-notify-interval=200ms"]).await;
    let mut watching = Watching::open(WatchClient::new(server.channel.clone())).await;
    let create = WatchCreateRequest { progress_notify: true, ..on_range("k", "l") };
    watching.create(create).await;
    server.kv().put(put("other", "value", 0)).await.unwrap();
    let seen = async {
        loop {
            let progress = watching.next().await;
            assert!(progress.events.is_empty());
            if revision(&progress) == 2 {
                return progress.watch_id;
            }
        }
    };
    assert_eq!(within("progress", seen).await, 0);
}
