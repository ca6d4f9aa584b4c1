//! Much at once: watchers on one connection, and values as large as may be.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use conclave_benches::cluster::{Cluster, Program};
use conclave_jepsen_tests::members;
use conclave_proto::etcdserverpb::{
    PutRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest, request_op, watch_request,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::{Client, Nodes, START_TIMEOUT, skipped};

const STREAMS: usize = 100;
const WATCHERS_PER_STREAM: usize = 100;
const EVENTS_TIMEOUT: Duration = Duration::from_secs(60);
/// etcd's default for `--max-request-bytes`.
const REQUEST_BYTES_MAX: usize = 1_572_864;

fn key(stream: usize, watcher: usize) -> String {
    format!("w-{stream:03}-{watcher:03}")
}

/// Opens one watch stream with its watchers; tells when all are created, then waits for one event of each.
async fn watch(client: Client, stream: usize, ready: mpsc::Sender<()>) {
    let (requests, outgoing) = mpsc::channel(WATCHERS_PER_STREAM);
    for watcher in 0..WATCHERS_PER_STREAM {
        let create = WatchCreateRequest { key: key(stream, watcher).into(), ..Default::default() };
        let union = watch_request::RequestUnion::CreateRequest(create);
        requests.try_send(WatchRequest { request_union: Some(union) }).expect("room");
    }
    let responses = client.watch().watch(ReceiverStream::new(outgoing)).await.expect("a stream");
    let mut responses = responses.into_inner();
    let mut ids = vec![None; WATCHERS_PER_STREAM];
    let (mut created, mut seen) = (0, BTreeSet::new());
    while seen.len() < WATCHERS_PER_STREAM {
        let response = responses.message().await.expect("no error").expect("no end");
        assert!(!response.canceled, "{}", response.cancel_reason);
        if response.created {
            // Answers come in the order of the requests.
            ids[created] = Some(response.watch_id);
            created += 1;
            if created == WATCHERS_PER_STREAM {
                ready.send(()).await.expect("somebody counts");
            }
        }
        for event in &response.events {
            let watcher =
                ids.iter().position(|id| *id == Some(response.watch_id)).expect("a watcher");
            let kv = event.kv.as_ref().expect("a key");
            assert_eq!(kv.key, key(stream, watcher).as_bytes(), "its own key");
            assert!(seen.insert(watcher), "one event each");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watchers_on_one_connection_get_their_events() {
    let nodes = Nodes::serving(1, &[]).await;
    let client = nodes.client(0).await;
    let (ready, mut is_ready) = mpsc::channel(STREAMS);
    let mut watching = JoinSet::new();
    for stream in 0..STREAMS {
        watching.spawn(watch(client.clone(), stream, ready.clone()));
    }
    let begin = Instant::now();
    let all_ready = async {
        for _ in 0..STREAMS {
            is_ready.recv().await.expect("a stream with its watchers");
        }
    };
    tokio::time::timeout(EVENTS_TIMEOUT, all_ready)
        .await
        .expect("all watchers are created in time");
    println!("{} watchers created in {:?}", STREAMS * WATCHERS_PER_STREAM, begin.elapsed());

    let begin = Instant::now();
    let writer = nodes.client(0).await;
    for stream in 0..STREAMS {
        let put = |watcher| {
            let put = PutRequest { key: key(stream, watcher).into(), ..Default::default() };
            RequestOp { request: Some(request_op::Request::RequestPut(put)) }
        };
        let success = (0..WATCHERS_PER_STREAM).map(put).collect();
        writer.kv().txn(TxnRequest { success, ..Default::default() }).await.expect("a transaction");
    }
    let all_seen = async {
        while let Some(done) = watching.join_next().await {
            done.expect("every watcher gets its event, once");
        }
    };
    tokio::time::timeout(EVENTS_TIMEOUT, all_seen).await.expect("all events in time");
    println!("all events in {:?}", begin.elapsed());
}

/// Code and text of the answer to a put with a value of `bytes` bytes.
async fn put_of(client: &Client, bytes: usize) -> Result<(), (Code, String)> {
    let answer = client.put("large", vec![b'v'; bytes]).await;
    answer.map(drop).map_err(|status: Status| (status.code(), status.message().to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_may_be_as_large_as_etcd_allows_and_no_larger() {
    let nodes = Nodes::serving(3, &[]).await;
    let client = nodes.client(1).await;
    let largest = REQUEST_BYTES_MAX - 1024;
    assert_eq!(put_of(&client, largest).await, Ok(()));
    for node in 0..3 {
        let value = nodes.client(node).await.get("large").await.expect("an answer");
        assert_eq!(value.map(|value| value.len()), Some(largest));
    }
    let beyond = [REQUEST_BYTES_MAX + 1024, 3 << 20, 20 << 20];
    let mut ours = Vec::new();
    for bytes in beyond {
        ours.push(put_of(&client, bytes).await);
    }
    let too_large = (Code::InvalidArgument, "etcdserver: request is too large".to_owned());
    assert_eq!(ours[0], Err(too_large));
    assert!(matches!(&ours[1], Err((Code::ResourceExhausted, _))), "{:?}", ours[1]);
    assert_eq!(
        nodes.client(1).await.get("large").await.expect("an answer").map(|v| v.len()),
        Some(largest)
    );

    let test = "a_value_may_be_as_large_as_etcd_allows: the comparison";
    let dir = tempfile::tempdir().expect("a directory");
    let mut etcd =
        Cluster::create(Program::new(Path::new("etcd")), dir.path(), 1).expect("free ports");
    if std::process::Command::new("etcd").arg("--version").output().is_err() {
        return skipped(test, "etcd cannot be run (apt-get install etcd-server)");
    }
    etcd.start_all().expect("etcd starts");
    members::wait_until_serving(&etcd.endpoints(), START_TIMEOUT).await.expect("etcd serves");
    let client = Client::open(&etcd.endpoints()[0]).await.expect("a connection");
    assert_eq!(put_of(&client, largest).await, Ok(()));
    for (bytes, ours) in beyond.into_iter().zip(ours) {
        assert_eq!(ours, put_of(&client, bytes).await, "{bytes} bytes: ours, etcd's");
    }
}
