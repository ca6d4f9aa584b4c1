//! KV through the wire: revisions, headers, ranges, transactions, compaction, refusals.

use std::ops::ControlFlow;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::response_op::Response;
use conclave_state_machine::read::{Read as _, Table};
use futures::StreamExt as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;

use crate::cluster::eventually;
use crate::support::{delete, op, put, range, refused, server, servers, then};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_effective_write_takes_one_revision() {
    let server = server(&[]).await;
    let header = server.range(range("a", "")).await.header.unwrap();
    assert_eq!(header.revision, 1, "an empty store is at revision 1");
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0);
    assert_eq!(server.put("a", "1").await, 2);
    let mut kv = server.kv();
    let gone = kv.delete_range(delete("x", "")).await.unwrap().into_inner();
    assert_eq!((gone.header.unwrap().revision, gone.deleted), (2, 0), "nothing deleted");
    let read = server.txn(then(vec![op(range("a", ""))])).await;
    assert_eq!(read.header.unwrap().revision, 2, "a read takes none");
    let empty = server.txn(then(vec![op(delete("x", ""))])).await;
    assert_eq!(empty.header.unwrap().revision, 2, "neither does an ineffective transaction");
    let both = server.txn(then(vec![op(put("b", "1")), op(put("c", "1"))])).await;
    assert_eq!(both.header.unwrap().revision, 3);
    let gone = kv.delete_range(delete("a", "z")).await.unwrap().into_inner();
    assert_eq!((gone.header.unwrap().revision, gone.deleted), (4, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_counts_its_puts_since_creation() {
    let server = server(&[]).await;
    server.put("k", "1").await;
    server.put("k", "2").await;
    let kv = server.range(range("k", "")).await.kvs.pop().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    let request = etcd::DeleteRangeRequest { prev_kv: true, ..delete("k", "") };
    let gone = server.kv().delete_range(request).await.unwrap().into_inner();
    assert_eq!(gone.prev_kvs[0].value, "2");
    let request = etcd::PutRequest { prev_kv: true, ..put("k", "3") };
    assert!(server.kv().put(request.clone()).await.unwrap().into_inner().prev_kv.is_none());
    let kv = server.range(range("k", "")).await.kvs.pop().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
    let previous = server.kv().put(request).await.unwrap().into_inner().prev_kv.unwrap();
    assert_eq!((previous.value, previous.mod_revision), ("3".into(), 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_inside_a_transaction_hold_only_the_revision() {
    let server = server(&[]).await;
    let nested = then(vec![op(put("n", "1"))]);
    let ops = vec![op(put("a", "1")), op(range("a", "")), op(nested), op(delete("z", ""))];
    let answer = server.txn(then(ops)).await;
    assert!(answer.succeeded);
    let only = etcd::ResponseHeader { revision: 2, ..Default::default() };
    let responses: Vec<_> = answer.responses.into_iter().map(|op| op.response.unwrap()).collect();
    let Response::ResponsePut(put) = &responses[0] else { panic!("a put") };
    assert_eq!(put.header, Some(only));
    let Response::ResponseRange(range) = &responses[1] else { panic!("a range") };
    assert_eq!((range.header, range.count), (Some(only), 1), "it sees the put before it");
    let Response::ResponseTxn(txn) = &responses[2] else { panic!("a transaction") };
    assert_eq!(txn.header, Some(etcd::ResponseHeader::default()));
    let Response::ResponseDeleteRange(gone) = &responses[3] else { panic!("a delete") };
    assert_eq!((gone.header, gone.deleted), (Some(only), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_honours_every_option() {
    use etcd::range_request::{SortOrder, SortTarget};
    let server = server(&[]).await;
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2")] {
        server.put(key, value).await;
    }
    let keys = |answer: &etcd::RangeResponse| -> Vec<String> {
        answer.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
    };
    let answer = server.range(etcd::RangeRequest { limit: 2, ..range("a", "z") }).await;
    assert_eq!((keys(&answer), answer.more, answer.count), (vec!["a".into(), "b".into()], true, 3));
    let request = etcd::RangeRequest { count_only: true, ..range("\0", "\0") };
    let answer = server.range(request).await;
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (0, 3, false));
    let request = etcd::RangeRequest { keys_only: true, serializable: true, ..range("b", "\0") };
    let answer = server.range(request).await;
    assert_eq!(keys(&answer), ["b", "c"]);
    assert!(answer.kvs.iter().all(|kv| kv.value.is_empty()));
    let request = etcd::RangeRequest {
        sort_order: SortOrder::Descend as i32,
        sort_target: SortTarget::Value as i32,
        limit: 2,
        ..range("a", "z")
    };
    assert_eq!(keys(&server.range(request).await), ["a", "c"]);
    let request = etcd::RangeRequest { min_mod_revision: 3, ..range("a", "z") };
    let answer = server.range(request).await;
    assert_eq!((keys(&answer), answer.count), (vec!["b".into(), "c".into()], 3));
    let answer = server.range(etcd::RangeRequest { revision: 2, ..range("a", "z") }).await;
    assert_eq!((keys(&answer), answer.header.unwrap().revision), (vec!["a".into()], 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_puts_are_refused_as_in_etcd() {
    let server = server(&[]).await;
    server.put("a", "1").await;
    let mut kv = server.kv();
    let invalid = |text: &str| (Code::InvalidArgument, format!("etcdserver: {text}"));
    assert_eq!(refused(kv.range(range("", "")).await), invalid("key is not provided"));
    let request = etcd::RangeRequest { sort_order: 9, ..range("a", "") };
    assert_eq!(refused(kv.range(request).await), invalid("invalid sort option"));
    let request = etcd::RangeRequest { revision: 9, ..range("a", "") };
    assert_eq!(
        refused(kv.range(request).await),
        (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision".into())
    );
    assert_eq!(refused(kv.put(put("", "1")).await), invalid("key is not provided"));
    assert_eq!(refused(kv.delete_range(delete("", "")).await), invalid("key is not provided"));
    let request = etcd::PutRequest { ignore_value: true, ..put("a", "1") };
    assert_eq!(refused(kv.put(request).await), invalid("value is provided"));
    let request = etcd::PutRequest { ignore_lease: true, lease: 1, ..put("a", "1") };
    assert_eq!(refused(kv.put(request).await), invalid("lease is provided"));
    let request = etcd::PutRequest { ignore_value: true, ..put("x", "") };
    assert_eq!(refused(kv.put(request).await), invalid("key not found"));
    let request = etcd::PutRequest { lease: 5, ..put("a", "1") };
    assert_eq!(
        refused(kv.put(request).await),
        (Code::NotFound, "etcdserver: requested lease not found".into())
    );
    assert_eq!(server.put("a", "2").await, 3, "a refusal takes no revision");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_refused_as_in_etcd() {
    let server = server(&["--max-txn-ops=3"]).await;
    let mut kv = server.kv();
    let invalid = |text: &str| (Code::InvalidArgument, format!("etcdserver: {text}"));
    let puts = |count: usize| (0..count).map(|i| op(put(&format!("k{i}"), ""))).collect::<Vec<_>>();
    server.txn(then(puts(3))).await;
    assert_eq!(refused(kv.txn(then(puts(4))).await), invalid("too many operations in txn request"));
    let twice = then(vec![op(put("a", "1")), op(put("a", "2"))]);
    assert_eq!(refused(kv.txn(twice).await), invalid("duplicate key given in txn request"));
    let both = then(vec![op(delete("a", "c")), op(put("b", "2"))]);
    assert_eq!(refused(kv.txn(both).await), invalid("duplicate key given in txn request"));
    let empty = then(vec![etcd::RequestOp { request: None }]);
    assert_eq!(refused(kv.txn(empty).await), invalid("key not found"));
    let request =
        etcd::TxnRequest { compare: vec![etcd::Compare::default()], ..Default::default() };
    assert_eq!(refused(kv.txn(request).await), invalid("key is not provided"));
    let future = etcd::RangeRequest { revision: 99, ..range("a", "") };
    assert_eq!(
        refused(kv.txn(then(vec![op(future)])).await),
        (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compares_decide_the_branch() {
    let server = server(&[]).await;
    server.put("a", "1").await;
    let compare = |target: i32, union: TargetUnion| etcd::Compare {
        key: "a".into(),
        target,
        target_union: Some(union),
        ..Default::default()
    };
    use etcd::compare::{CompareTarget, TargetUnion};
    for (compare, holds) in [
        (compare(CompareTarget::Mod as i32, TargetUnion::ModRevision(2)), true),
        (compare(CompareTarget::Version as i32, TargetUnion::Version(2)), false),
        (compare(CompareTarget::Value as i32, TargetUnion::Value("1".into())), true),
    ] {
        let request = etcd::TxnRequest {
            compare: vec![compare],
            success: vec![op(range("a", ""))],
            failure: vec![],
        };
        let answer = server.txn(request).await;
        assert_eq!((answer.succeeded, answer.responses.len()), (holds, usize::from(holds)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_forgets_history() {
    let server = server(&[]).await;
    for value in ["1", "2", "3"] {
        server.put("a", value).await;
    }
    let mut kv = server.kv();
    let compact = |revision, physical| etcd::CompactionRequest { revision, physical };
    let compacted =
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted".to_owned());
    let answer = kv.compact(compact(3, true)).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 4);
    assert_eq!(refused(kv.compact(compact(3, false)).await), compacted);
    assert_eq!(
        refused(kv.compact(compact(9, false)).await).1,
        "etcdserver: mvcc: required revision is a future revision"
    );
    let at = |revision| etcd::RangeRequest { revision, ..range("a", "") };
    assert_eq!(refused(kv.range(at(2)).await), compacted);
    assert_eq!(server.range(at(3)).await.kvs[0].value, "2", "the mark itself stays readable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_cluster_sweeps_what_a_compaction_made_dead() {
    let servers = servers(3, &[]).await;
    let server = &servers[0];
    // More than one step of the sweep.
    let mut revision = 0;
    for round in 0..40 {
        let puts = (0..100).map(|i| op(put(&format!("k{i}"), &round.to_string())));
        revision = server.txn(then(puts.collect())).await.header.unwrap().revision;
    }
    let compact = etcd::CompactionRequest { revision, physical: false };
    server.kv().compact(compact).await.unwrap();
    for server in &servers {
        let reader = server.running.node().reader();
        eventually("the dead rows go", || !reader.head().has_dead_rows()).await;
        let mut events = 0;
        reader
            .scan(Table::Rev, &[], None, &mut |_, _| {
                events += 1;
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        assert_eq!(events, 100, "one event of each key is left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_range_is_the_range_in_pieces() {
    let server = server(&[]).await;
    for i in 0..100 {
        server.put(&format!("k{i:03}"), &"v".repeat(100)).await;
    }
    for request in [
        range("k", "l"),
        etcd::RangeRequest { limit: 42, ..range("k", "l") },
        etcd::RangeRequest { keys_only: true, ..range("k", "l") },
        etcd::RangeRequest { count_only: true, ..range("k", "l") },
        etcd::RangeRequest { revision: 50, ..range("k", "l") },
        range("k001", ""),
        range("none", ""),
    ] {
        let whole = server.range(request.clone()).await;
        let mut stream = server.kv().range_stream(request.clone()).await.unwrap().into_inner();
        let mut pieces = Vec::new();
        while let Some(piece) = stream.message().await.unwrap() {
            pieces.push(piece.range_response.unwrap());
        }
        let last = pieces.last().unwrap().clone();
        for piece in &pieces[..pieces.len() - 1] {
            assert!(
                piece.header.is_none() && piece.count == 0 && !piece.more && !piece.kvs.is_empty()
            );
        }
        let kvs = pieces.into_iter().flat_map(|piece| piece.kvs).collect();
        assert_eq!(etcd::RangeResponse { kvs, ..last }, whole, "{request:?}");
    }
    let request = etcd::RangeRequest { sort_order: 2, ..range("k", "l") };
    assert_eq!(
        refused(server.kv().range_stream(request).await),
        (Code::Unimplemented, "RangeStream does not support custom sort orders".into())
    );
    let request = etcd::RangeRequest { min_mod_revision: 1, ..range("k", "l") };
    assert_eq!(
        refused(server.kv().range_stream(request).await),
        (Code::Unimplemented, "RangeStream does not support revision filters".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_of_large_values_fit_into_a_message() {
    let server = server(&[]).await;
    for i in 0..9 {
        server.put(&format!("k{i}"), &"v".repeat(1 << 20)).await;
    }
    let mut stream = server.kv().range_stream(range("k", "l")).await.unwrap().into_inner();
    let mut sizes = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        let kvs = piece.range_response.unwrap().kvs;
        assert!(kvs.iter().all(|kv| kv.value.len() == 1 << 20));
        sizes.push(kvs.len());
    }
    assert_eq!(sizes.iter().sum::<usize>(), 9);
    assert!(sizes.iter().all(|keys| (1..=2).contains(keys)), "{sizes:?}");
    let names = etcd::RangeRequest { keys_only: true, ..range("k", "l") };
    let mut stream = server.kv().range_stream(names).await.unwrap().into_inner();
    let only = stream.message().await.unwrap().unwrap().range_response.unwrap();
    assert_eq!((only.kvs.len(), only.count), (9, 9), "what is not sent does not count");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_pass_up_to_the_limit() {
    let server = server(&[]).await;
    let limit: usize = 1_572_864;
    // What etcd adds to a value of this size under such a key: 24 bytes, one more if the member id
    // is long in its low half.
    let member_id = server.running.node().member_id();
    let largest = limit - 24 - usize::from(member_id & 0x8000 != 0);
    assert_eq!(server.put("k", &"v".repeat(largest)).await, 2);
    assert_eq!(server.range(range("k", "")).await.kvs[0].value.len(), largest);
    let mut kv = server.kv();
    let too_large = (Code::InvalidArgument, "etcdserver: request is too large".to_owned());
    assert_eq!(refused(kv.put(put("k", &"v".repeat(largest + 1))).await), too_large);
    let received_max = limit + 512 * 1024;
    assert_eq!(refused(kv.put(put("k", &"v".repeat(received_max - 7))).await), too_large);
    let request = put("k", &"v".repeat(received_max - 6));
    let bytes = prost::Message::encoded_len(&request);
    assert_eq!(
        refused(kv.put(request).await),
        (
            Code::ResourceExhausted,
            format!("grpc: received message larger than max ({bytes} vs. {received_max})")
        )
    );
    assert_eq!(server.put("k", "small").await, 3, "the connection and the store live on");
}

#[tokio::test]
async fn clients_may_compress_what_they_send() {
    let server = server(&["--max-request-bytes=1000000"]).await;
    let mut kv = server.kv().send_compressed(CompressionEncoding::Gzip);
    let answer = kv.put(put("k", &"v".repeat(900_000))).await.unwrap();
    let revision = answer.into_inner().header.unwrap().revision;
    assert_eq!(server.range(range("k", "")).await.kvs[0].value.len(), 900_000);
    // Small as it travels, too large when it is there.
    let (code, text) = refused(kv.put(put("k", &"v".repeat(50_000_000))).await);
    assert_eq!(code, Code::ResourceExhausted, "{text}");
    let mut lease = server.lease().send_compressed(CompressionEncoding::Gzip);
    lease.lease_grant(etcd::LeaseGrantRequest { id: 7, ttl: 60 }).await.unwrap();

    let watch = etcd::watch_client::WatchClient::new(server.channel.clone());
    let create = etcd::WatchCreateRequest {
        key: "k".into(),
        start_revision: revision,
        ..etcd::WatchCreateRequest::default()
    };
    let create = etcd::watch_request::RequestUnion::CreateRequest(create);
    let requests = [etcd::WatchRequest { request_union: Some(create) }];
    let requests = futures::stream::iter(requests).chain(futures::stream::pending());
    let mut watch = watch.send_compressed(CompressionEncoding::Gzip);
    let mut answers = watch.watch(requests).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    let events = answers.message().await.unwrap().unwrap().events;
    assert_eq!(events[0].kv.as_ref().unwrap().mod_revision, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_in_pieces_is_put_together() {
    let server = server(&[]).await;
    for i in 0..50 {
        server.put(&format!("k{i:02}"), "v").await;
    }
    let endpoint = server.running.client_addresses()[0].to_string();
    let client = conclave_client::Client::builder([endpoint]).build().unwrap();
    for limit in [0, 20] {
        let request = etcd::RangeRequest { limit, ..range("k", "l") };
        let whole = client.send_range(request.clone()).await.unwrap();
        let pieces = client.send_range_stream(request).await.unwrap();
        assert_eq!(*pieces, *whole, "{limit}");
    }
}
