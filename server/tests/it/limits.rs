//! The limits of docs/security-tests.md that a caller can meet: meeting one moves the metric that is named there.
//! The others' metrics are looked at where the limits are: `jepsen-tests/tests/faults`, `metrics.rs`, `watch_rules.rs`.

use std::time::Duration;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_proto::v1;
use conclave_proto::v1::counter_service_client::CounterServiceClient;
use conclave_proto::v3electionpb as pb;
use futures::StreamExt as _;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::cluster::within;
use crate::metrics::{samples, total, until};
use crate::native_lock::{client, session};
use crate::support::{Server, op, put, refused, server, then};

/// Logins at once, more than may wait and be worked on.
const LOGINS: usize = 400;
/// Requests of a session that may be unsettled.
const UNSETTLED_MAX: u64 = 256;
const SNAPSHOTS_MAX: usize = 4;

/// How often calls of a method ended with a code.
pub(crate) async fn handled(server: &Server, service: &str, method: &str, code: &str) -> f64 {
    let labels = [
        format!("grpc_service=\"{service}\""),
        format!("grpc_method=\"{method}\""),
        format!("grpc_code=\"{code}\""),
    ];
    let is_meant = |name: &str| {
        name.starts_with("grpc_server_handled_total{")
            && labels.iter().all(|label| name.contains(label.as_str()))
    };
    let samples = samples(server).await;
    samples.iter().filter(|(name, _)| is_meant(name)).map(|(_, value)| value).sum()
}

/// Meets a limit: the refusal must have this code, and be counted once.
async fn meet<T: std::fmt::Debug>(
    server: &Server,
    (service, method): (&str, &str),
    code: Code,
    answer: impl Future<Output = Result<T, Status>>,
) {
    // grpc_code in Go's words is the name of the code here.
    let name = format!("{code:?}");
    let before = handled(server, service, method, &name).await;
    let (refusal, text) = refused(answer.await);
    assert_eq!(refusal, code, "{service}/{method}: {text}");
    // Counted a moment after it is answered.
    let counted = async {
        while handled(server, service, method, &name).await != before + 1.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(&format!("{service}/{method} {name}: {text}"), counted).await;
}

fn nested(levels: usize) -> etcd::TxnRequest {
    (0..levels).fold(then(vec![op(put("k", "v"))]), |inner, _| then(vec![op(inner)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_are_refused_are_counted() {
    const KV: &str = "etcdserverpb.KV";
    let full = server(&["--quota-backend-bytes=200000"]).await;
    let server = server(&[]).await;
    let (mut kv, mut lease) = (server.kv(), server.lease());
    let large = kv.put(put("k", &"v".repeat(1_600_000)));
    meet(&server, (KV, "Put"), Code::InvalidArgument, large).await;
    let mut kv = server.kv();
    let larger = kv.put(put("k", &"v".repeat(3_000_000)));
    meet(&server, (KV, "Put"), Code::ResourceExhausted, larger).await;
    let many = (0..129).map(|i| op(put(&format!("k{i}"), "v"))).collect();
    let mut kv = server.kv();
    meet(&server, (KV, "Txn"), Code::InvalidArgument, kv.txn(then(many))).await;
    let mut kv = server.kv();
    meet(&server, (KV, "Txn"), Code::InvalidArgument, kv.txn(nested(40))).await;
    let mut kv = server.kv();
    let future = kv.compact(etcd::CompactionRequest { revision: 100, physical: false });
    meet(&server, (KV, "Compact"), Code::OutOfRange, future).await;
    let long = lease.lease_grant(etcd::LeaseGrantRequest { ttl: 9_000_000_001, id: 0 });
    meet(&server, ("etcdserverpb.Lease", "LeaseGrant"), Code::OutOfRange, long).await;
    let quota = "etcd_server_quota_backend_bytes";
    assert_eq!(total(&samples(&full).await, quota), 200_000.0);
    let value = "v".repeat(50_000);
    let mut is_full = false;
    for i in 0..20 {
        is_full |= full.kv().put(put(&format!("k{i}"), &value)).await.is_err();
    }
    assert!(is_full, "a megabyte does not fit");
    let mut kv = full.kv();
    meet(&full, (KV, "Put"), Code::ResourceExhausted, kv.put(put("more", &value))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_larger_limit_holds_for_every_call() {
    let server = server(&["--max-request-bytes=10485760"]).await;
    let value = bytes::Bytes::from(vec![b'v'; 5 << 20]);
    let granted = server.lease().lease_grant(etcd::LeaseGrantRequest { ttl: 600, id: 0 }).await;
    let lease = granted.unwrap().into_inner().id;
    let mut election = server.election().max_decoding_message_size(usize::MAX);
    let name = bytes::Bytes::from_static(b"e");
    let campaign = pb::CampaignRequest { name: name.clone(), lease, value: value.clone() };
    let elected = election.campaign(campaign).await.unwrap().into_inner();
    let proclaim = pb::ProclaimRequest { leader: elected.leader, value: value.slice(1..) };
    election.proclaim(proclaim).await.unwrap();
    let found = election.leader(pb::LeaderRequest { name }).await.unwrap().into_inner();
    assert_eq!(found.kv.unwrap().value, value.slice(1..));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_are_refused_are_counted() {
    let server = server(&[]).await;
    // Backups that are being sent.
    for i in 0..SNAPSHOTS_MAX {
        // Larger than what a connection takes in advance.
        let noise: String = (0..1_000_000).map(|_| rand::random_range('a'..='z')).collect();
        server.put(&format!("k{i}"), &noise).await;
    }
    let mut held = Vec::new();
    for _ in 0..SNAPSHOTS_MAX {
        let stream = server.maintenance().snapshot(etcd::SnapshotRequest {}).await.unwrap();
        held.push(stream.into_inner());
    }
    let mut maintenance = server.maintenance();
    let one_more = maintenance.snapshot(etcd::SnapshotRequest {});
    let method = ("etcdserverpb.Maintenance", "Snapshot");
    meet(&server, method, Code::Unknown, one_more).await;
    drop(held);
    // Unsettled requests of a session.
    let servers = [server];
    let client = client(&servers);
    let session = session(&client, "one").await;
    let [server] = &servers;
    let mut counters = CounterServiceClient::new(server.channel.clone());
    let request = |sequence| {
        let once = Some(v1::Once { session: session.id(), sequence, settled: 1, undoes: 0 });
        v1::CounterAddRequest { once, name: "n".into(), delta: 1 }
    };
    for sequence in 1..=UNSETTLED_MAX {
        counters.add(request(sequence)).await.unwrap();
    }
    let method = ("conclave.v1.CounterService", "Add");
    let one_more = counters.add(request(UNSETTLED_MAX + 1));
    meet(server, method, Code::FailedPrecondition, one_more).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_that_are_too_many_are_counted() {
    let server = server(&["--bcrypt-cost=8"]).await;
    let mut auth = AuthClient::new(server.channel.clone());
    let (name, password) = ("root".to_owned(), "p".to_owned());
    let user = etcd::AuthUserAddRequest {
        name: name.clone(),
        password: password.clone(),
        ..Default::default()
    };
    auth.user_add(user).await.unwrap();
    let role = etcd::AuthUserGrantRoleRequest { user: name.clone(), role: "root".to_owned() };
    auth.user_grant_role(role).await.unwrap();
    auth.auth_enable(etcd::AuthEnableRequest {}).await.unwrap();
    let logins = (0..LOGINS).map(|_| {
        let mut auth = auth.clone();
        let who = etcd::AuthenticateRequest { name: name.clone(), password: password.clone() };
        async move { auth.authenticate(who).await }
    });
    let answers: Vec<_> = futures::stream::iter(logins).buffer_unordered(LOGINS).collect().await;
    let refusals = answers.iter().filter_map(|answer| answer.as_ref().err());
    let refusals: Vec<_> = refusals.map(|status| (status.code(), status.message())).collect();
    let expected = (Code::Unknown, "etcdserver: too many requests");
    assert!(refusals.iter().all(|refusal| *refusal == expected), "{refusals:?}");
    let counted = async {
        let count = refusals.len() as f64;
        while handled(&server, "etcdserverpb.Auth", "Authenticate", "Unknown").await != count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("refusals are counted", counted).await;
    assert!(!refusals.is_empty(), "all {LOGINS} were served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_take_too_much_memory_are_refused_and_counted() {
    const KEYS: i64 = 2_000;
    // What all keys take is more, what half of them takes is less.
    let server = server(&["--max-answer-bytes=8000000"]).await;
    let value = "v".repeat(2_000);
    for chunk in 0..KEYS / 100 {
        let puts = (0..100).map(|i| op(put(&format!("k{chunk:02}{i:02}"), &value))).collect();
        server.kv().txn(then(puts)).await.unwrap();
    }
    let range = |limit| etcd::RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        limit,
        ..etcd::RangeRequest::default()
    };
    let mut kv = server.kv();
    meet(&server, ("etcdserverpb.KV", "Range"), Code::ResourceExhausted, kv.range(range(0))).await;
    until(&server, "conclave_long_reads_refused_total", |refused| refused == 1.0).await;
    until(&server, "conclave_answer_bytes", |bytes| bytes == 0.0).await;
    let half = server.kv().range(range(KEYS / 2)).await.unwrap().into_inner();
    assert_eq!((half.kvs.len() as i64, half.count, half.more), (KEYS / 2, KEYS, true));
    let revision = half.header.unwrap().revision;
    // In pieces they may be as many as they are.
    let streamed = server.kv().range_stream(range(0)).await.unwrap().into_inner();
    let pieces: Vec<_> =
        streamed.map(|piece| piece.unwrap().range_response.unwrap()).collect().await;
    assert_eq!(pieces.iter().map(|piece| piece.kvs.len() as i64).sum::<i64>(), KEYS);
    assert_eq!(pieces.last().unwrap().header.as_ref().unwrap().revision, revision);
    // Who does not take the answer holds its memory, until it goes. The window is less than the answer.
    let endpoint = Endpoint::try_from(server.running.client_urls()[0].clone()).unwrap();
    let channel = endpoint.initial_stream_window_size(65_535).connect_lazy();
    let mut silent = tonic::client::Grpc::new(channel);
    silent.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Range");
    let codec = tonic_prost::ProstCodec::<_, etcd::RangeResponse>::default();
    let request = tonic::Request::new(range(KEYS / 2));
    let answer = silent.server_streaming(request, path, codec).await.unwrap();
    until(&server, "conclave_answer_bytes", |bytes| bytes > 4_000_000.0).await;
    drop(answer);
    until(&server, "conclave_answer_bytes", |bytes| bytes == 0.0).await;
}
