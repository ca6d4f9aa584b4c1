//! The Watch service on a real connection, over the real rules on rows in memory: no raft, no disk,
//! and limits as a test wants them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::etcdserverpb::watch_client::WatchClient;
use conclave_proto::etcdserverpb::watch_request::RequestUnion;
use conclave_proto::etcdserverpb::{
    ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse,
};
use conclave_server::api::watch::{WatchService, WatchSettings};
use conclave_server::watch::{Hub, Limits, Source};
use conclave_state_machine::command::{Caller, Command, Compact, DeleteRange, Put, Txn, TxnOp};
use conclave_state_machine::history::{self, EventSpan};
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::response::{Event, Halt};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::cluster::within;

/// Ids in headers.
pub(crate) const CLUSTER: u64 = 11;
pub(crate) const MEMBER: u64 = 22;
pub(crate) const TERM: u64 = 33;

/// A store in memory with a watch service on a port.
pub(crate) struct Node {
    pub(crate) store: Arc<Store>,
    pub(crate) hub: Arc<Hub>,
    address: SocketAddr,
    pub(crate) shutdown: CancellationToken,
}

pub(crate) struct Store {
    state: Mutex<(MemoryRows, Machine)>,
    pub(crate) has_leader: AtomicBool,
}

impl Source for Store {
    fn revision(&self) -> i64 {
        self.state.lock().1.head().revision
    }

    fn compacted(&self) -> i64 {
        self.state.lock().1.head().compacted
    }

    fn events(&self, span: EventSpan<'_>) -> Result<Option<Vec<Event>>, Halt> {
        let state = self.state.lock();
        if span.from < state.1.head().compacted {
            return Ok(None);
        }
        history::events(&state.0, span).map(Some)
    }

    fn has_leader(&self) -> bool {
        self.has_leader.load(Ordering::Relaxed)
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader { cluster_id: CLUSTER, member_id: MEMBER, revision, raft_term: TERM }
    }
}

impl Node {
    pub(crate) async fn start(limits: Limits) -> Node {
        Self::start_with(limits, Duration::from_secs(600)).await
    }

    pub(crate) async fn start_with(limits: Limits, progress_interval: Duration) -> Node {
        let rows = MemoryRows::default();
        let machine = Machine::load(&rows).unwrap();
        let has_leader = AtomicBool::new(true);
        let store = Arc::new(Store { state: Mutex::new((rows, machine)), has_leader });
        let hub = Hub::new(Arc::clone(&store) as Arc<dyn Source>, limits);
        let shutdown = CancellationToken::new();
        tokio::spawn(Arc::clone(&hub).run(shutdown.clone()));
        let settings = WatchSettings { receive_bytes_max: 2 << 20, progress_interval };
        let service = WatchService::new(Arc::clone(&hub), settings);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        Node { store, hub, address, shutdown }
    }

    /// Applies a command and publishes its events; returns the revision after it.
    pub(crate) fn apply(&self, command: &Command) -> i64 {
        let mut state = self.store.state.lock();
        let (rows, machine) = &mut *state;
        let applied = rows
            .update(|rows| {
                let applied = machine.apply(rows, Position::default(), &Caller::Inside, command)?;
                machine.finish(rows);
                Ok::<_, Halt>(applied)
            })
            .unwrap();
        drop(state);
        applied.outcome.unwrap();
        self.hub.publish(applied.events, applied.revision);
        applied.revision
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> i64 {
        self.apply(&Command::Put(put(key, value)))
    }

    /// Puts all keys in one revision.
    pub(crate) fn put_all(&self, keys: &[String], value: &str) -> i64 {
        let success = keys.iter().map(|key| TxnOp::Put(put(key, value))).collect();
        self.apply(&Command::Txn(Txn { success, ..Txn::default() }))
    }

    pub(crate) fn delete(&self, key: &str) -> i64 {
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.apply(&Command::DeleteRange(DeleteRange { key, ..DeleteRange::default() }))
    }

    pub(crate) fn compact(&self, revision: i64) {
        self.apply(&Command::Compact(Compact { revision }));
    }

    pub(crate) async fn connect(&self) -> WatchClient<Channel> {
        WatchClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    pub(crate) async fn open(&self) -> Watching {
        Watching::open(self.connect().await).await
    }
}

fn put(key: &str, value: &str) -> Put {
    Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Put::default()
    }
}

/// A client's end of a stream.
pub(crate) struct Watching {
    pub(crate) requests: mpsc::Sender<WatchRequest>,
    pub(crate) responses: tonic::Streaming<WatchResponse>,
}

impl Watching {
    pub(crate) async fn open(client: WatchClient<Channel>) -> Self {
        Self::try_open(client, MetadataMap::new()).await.unwrap()
    }

    pub(crate) async fn try_open(
        client: WatchClient<Channel>,
        metadata: MetadataMap,
    ) -> Result<Self, Status> {
        let mut client = client.max_decoding_message_size(64 << 20);
        let (requests, receiver) = mpsc::channel(64);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        *request.metadata_mut() = metadata;
        let answer = client.watch(request).await?;
        Ok(Watching { requests, responses: answer.into_inner() })
    }

    pub(crate) async fn send(&self, union: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(union) }).await.unwrap();
    }

    /// Sends a create request and returns its answer.
    pub(crate) async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.send(RequestUnion::CreateRequest(create)).await;
        let response = self.next().await;
        assert!(response.created, "{response:?}");
        response
    }

    pub(crate) async fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
    }

    pub(crate) async fn ask_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    }

    pub(crate) async fn next(&mut self) -> WatchResponse {
        self.try_next().await.unwrap()
    }

    pub(crate) async fn try_next(&mut self) -> Result<WatchResponse, Status> {
        within("an answer", self.responses.next()).await.expect("an answer before the end")
    }
}

/// A request for one key.
pub(crate) fn on_key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..WatchCreateRequest::default()
    }
}

/// A request for `[key, end)`.
pub(crate) fn on_range(key: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest { range_end: Bytes::copy_from_slice(end.as_bytes()), ..on_key(key) }
}

/// (mod revision, key) of all events.
pub(crate) fn events(response: &WatchResponse) -> Vec<(i64, String)> {
    let kv = |event: &conclave_proto::mvccpb::Event| event.kv.clone().unwrap();
    let pair = |event| {
        let kv = kv(event);
        (kv.mod_revision, String::from_utf8(kv.key.to_vec()).unwrap())
    };
    response.events.iter().map(pair).collect()
}

pub(crate) fn revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().unwrap().revision
}
