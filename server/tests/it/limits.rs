//! The limits of docs/security-tests.md that a caller can meet: meeting one moves the metric that is named there.
//! The others' metrics are looked at where the limits are: `jepsen-tests/tests/faults`, `metrics.rs`, `watch_rules.rs`.

use std::time::Duration;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_proto::v1;
use conclave_proto::v1::counter_service_client::CounterServiceClient;
use conclave_proto::v1::session_service_client::SessionServiceClient;
use conclave_proto::v1::write_service_client::WriteServiceClient;
use conclave_proto::v3electionpb as pb;
use etcd::watch_client::WatchClient;
use etcd::watch_request::RequestUnion;
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
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

/// What is too deep to be read in the log must not get there: with it would go what others wrote at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deep_transaction_takes_nothing_else_with_it() {
    let server = server(&["--max-txn-ops=1000"]).await;
    // In the client's own message 50 is beyond what prost reads.
    for levels in [30, 31, 32, 33, 40, 47, 48, 49, 50, 60] {
        let key = format!("beside-{levels}");
        let (mut deep, mut beside) = (server.kv(), server.kv());
        let (deep, beside) = within("both to be answered", async {
            tokio::join!(deep.txn(nested(levels)), beside.put(put(&key, "v")))
        })
        .await;
        beside.unwrap_or_else(|status| panic!("beside {levels} levels: {status}"));
        assert_eq!(deep.is_ok(), levels <= 31, "{levels} levels: {deep:?}");
        let again = within("a write after it", server.put(&key, "w")).await;
        assert!(again > 1);
    }
    let write = |levels, sequence| v1::WriteRequest {
        writer: vec![7; 16].into(),
        sequence,
        settled: 1,
        txn: Some(nested(levels)),
        ..Default::default()
    };
    let mut writes = WriteServiceClient::new(server.channel.clone());
    writes.write(write(31, 1)).await.unwrap();
    for levels in [32, 46, 47, 48, 49] {
        let refused = within("an answer", writes.write(write(levels, 2))).await;
        assert!(refused.is_err(), "{levels} levels");
    }
    server.put("k", "at last").await;
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

/// A connection of its own.
fn connection(server: &Server) -> Channel {
    Endpoint::try_from(server.running.client_urls()[0].clone()).unwrap().connect_lazy()
}

/// One watch stream.
struct Watching {
    requests: mpsc::Sender<etcd::WatchRequest>,
    answers: tonic::Streaming<etcd::WatchResponse>,
}

impl Watching {
    async fn open(channel: &Channel) -> Self {
        let (requests, stream) = mpsc::channel(4);
        let answers = WatchClient::new(channel.clone()).watch(ReceiverStream::new(stream)).await;
        Self { requests, answers: answers.unwrap().into_inner() }
    }

    async fn ask(&mut self, request: RequestUnion) -> etcd::WatchResponse {
        let request_union = Some(request);
        self.requests.send(etcd::WatchRequest { request_union }).await.unwrap();
        within("an answer of a watch", self.answers.message()).await.unwrap().unwrap()
    }

    /// Why there is no further watcher; nothing if there is.
    async fn create(&mut self) -> String {
        let create = etcd::WatchCreateRequest { key: "k".into(), ..Default::default() };
        self.ask(RequestUnion::CreateRequest(create)).await.cancel_reason
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_are_too_many_are_refused_and_counted() {
    const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";
    let limits = ["--max-stream-watchers=2", "--max-connection-watchers=3", "--max-watchers=4"];
    let server = server(&limits).await;
    let refusal = |of: &str| {
        format!(
            "rpc error: code = ResourceExhausted desc = conclave: too many watchers on this {of}"
        )
    };
    let (one, other) = (connection(&server), connection(&server));
    let mut first = Watching::open(&one).await;
    assert_eq!([first.create().await, first.create().await], ["", ""]);
    assert_eq!(first.create().await, refusal("stream (limit 2, --max-stream-watchers)"));
    let mut second = Watching::open(&one).await;
    assert_eq!(second.create().await, "");
    let refused = second.create().await;
    assert_eq!(refused, refusal("connection (limit 3, --max-connection-watchers)"));
    let mut third = Watching::open(&other).await;
    assert_eq!(third.create().await, "", "another connection");
    assert_eq!(third.create().await, refusal("member (limit 4, --max-watchers)"));
    until(&server, "conclave_watch_watchers_refused_total", |refused| refused == 3.0).await;
    // What is cancelled, or ends with its stream, makes room, and a refusal takes none.
    let cancel = RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id: 0 });
    assert!(first.ask(cancel).await.canceled);
    assert_eq!(second.create().await, "");
    drop((first, second));
    until(&server, WATCHERS, |watchers| watchers == 1.0).await;
    let mut fourth = Watching::open(&one).await;
    assert_eq!([fourth.create().await, third.create().await], ["", ""]);
    drop((fourth, third));
    until(&server, WATCHERS, |watchers| watchers == 0.0).await;
    // By JSON they are counted as well.
    let mut by_json = TcpStream::connect(server.running.client_addresses()[0]).await.unwrap();
    let body = r#"{"create_request":{"key":"aw=="}}"#.repeat(3);
    let head = "POST /v3/watch HTTP/1.1\r\nHost: h\r\nContent-Length:";
    let call = format!("{head} {}\r\n\r\n{body}", body.len());
    by_json.write_all(call.as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.contains("too many watchers on this stream") {
        let mut bytes = [0; 4_096];
        let read = within("lines of JSON", by_json.read(&mut bytes)).await.unwrap();
        assert_ne!(read, 0, "{answer}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_are_too_many_are_refused_and_counted() {
    const REFUSED: &str = "conclave_lease_grants_refused_total";
    let few = server(&["--max-leases=2"]).await;
    let grant = |id| etcd::LeaseGrantRequest { ttl: 600, id };
    for id in [1, 2] {
        few.lease().lease_grant(grant(id)).await.unwrap();
    }
    let mut lease = few.lease();
    let one_more = lease.lease_grant(grant(0));
    meet(&few, ("etcdserverpb.Lease", "LeaseGrant"), Code::ResourceExhausted, one_more).await;
    let (code, text) = refused(few.lease().lease_grant(grant(3)).await);
    let expected = "conclave: too many leases (limit 2, --max-leases)";
    assert_eq!((code, text.as_str()), (Code::ResourceExhausted, expected));
    let again = refused(few.lease().lease_grant(grant(2)).await);
    assert_eq!(again, (Code::FailedPrecondition, "etcdserver: lease already exists".to_owned()));
    let begin =
        v1::SessionBeginRequest { ttl_seconds: 600, request_id: "r".into(), ..Default::default() };
    let mut sessions = SessionServiceClient::new(few.channel.clone());
    assert_eq!(refused(sessions.begin(begin.clone()).await).0, Code::ResourceExhausted);
    let labelled = |limit| format!("{REFUSED}{{limit=\"{limit}\"}}");
    assert_eq!(total(&samples(&few).await, &labelled("count")), 3.0);
    few.lease().lease_revoke(etcd::LeaseRevokeRequest { id: 1 }).await.unwrap();
    sessions.begin(begin).await.unwrap();

    let slow = server(&["--max-lease-grants=1"]).await;
    // Two in the same second, whenever that is.
    let refusal = async {
        loop {
            if let Err(status) = slow.lease().lease_grant(grant(0)).await {
                break (status.code(), status.message().to_owned());
            }
        }
    };
    let refusal = within("a refusal", refusal).await;
    assert_eq!(refusal, (Code::Unknown, "etcdserver: too many requests".to_owned()));
    assert_eq!(total(&samples(&slow).await, &labelled("rate")), 1.0);
    let granted = async { while slow.lease().lease_grant(grant(0)).await.is_err() {} };
    within("a grant in the next second", granted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_an_address_that_are_too_many_are_refused_and_counted() {
    const REFUSED: &str = "conclave_rpc_refused_connections_total{port=\"client\"}";
    let server = server(&["--max-address-connections=4"]).await;
    // Reads until this is in the answer; whether it came.
    let page = async |connection: &mut TcpStream, path: &str, wanted: &str| {
        let get = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut answer = String::new();
        let mut is_open = connection.write_all(get.as_bytes()).await.is_ok();
        while is_open && !answer.contains(wanted) {
            let mut bytes = [0; 4_096];
            let read = connection.read(&mut bytes).await.unwrap_or(0);
            answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
            is_open = read > 0;
        }
        is_open
    };
    let version = async |connection: &mut TcpStream| page(connection, "/version", "\"}").await;
    let address = server.running.client_addresses()[0];
    let mut held = Vec::new();
    let refused = async {
        loop {
            let mut connection = TcpStream::connect(address).await.unwrap();
            if !version(&mut connection).await {
                break;
            }
            held.push(connection);
        }
    };
    within("a refusal", refused).await;
    assert!((1..=4).contains(&held.len()), "{}", held.len());
    // Of those that are served one is told; nothing was refused but what came after them.
    let one = format!("\n{REFUSED} 1\n");
    let counted = page(&mut held[0], "/metrics", &one);
    assert!(within("the refusal is counted", counted).await);
    drop(held);
    let served = async {
        while let Ok(mut connection) = TcpStream::connect(address).await
            && !version(&mut connection).await
        {}
    };
    within("room again", served).await;
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
