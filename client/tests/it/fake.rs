//! A scripted server of sessions and Conclave's locks, for failures that are rare with a real
//! server.

mod counter;
mod election;
pub(crate) mod leases;
mod registry;
mod users;

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use conclave_client::v1::{
    AcquireRequest, AcquireResponse, CheckFenceRequest, CheckFenceResponse, CommitRequest,
    CommitResponse, ConvertRequest, ConvertResponse, CounterResponse, DeregisterRequest,
    DiscoverResponse, ForceReleaseRequest, ForceReleaseResponse, Granted, HeldLock, InspectRequest,
    InspectResponse, InstanceWatchResponse, LockListRequest, LockListResponse, Queued,
    RegisterRequest, ReleaseRequest, ReleaseResponse, SessionBeginRequest, SessionBeginResponse,
    SessionEndRequest, SessionEndResponse, SessionListRequest, SessionListResponse,
    SessionOpenRequest, SessionOpenResponse, WriteRequest, WriteResponse,
    acquire_response::Event,
    counter_service_server::CounterServiceServer,
    discovery_service_server::DiscoveryServiceServer,
    election_service_server::ElectionServiceServer,
    lock_service_server::{LockService, LockServiceServer},
    registry_service_server::RegistryServiceServer,
    session_service_server::{SessionService, SessionServiceServer},
    write_service_server::{WriteService, WriteServiceServer},
};
use futures::{StreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use tokio::{runtime::Runtime, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, service::InterceptorLayer};

/// The requests that the server received, and how it answers.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Request ids of acquisitions and releases, in order.
    pub(crate) acquired: Mutex<Vec<Bytes>>,
    pub(crate) released: Mutex<Vec<Bytes>>,
    /// Sequence numbers of the releases and of the requests that they undo.
    pub(crate) release_numbers: Mutex<Vec<Option<(u64, u64)>>>,
    pub(crate) conversions: Mutex<Vec<Option<u64>>>,
    pub(crate) heartbeats: AtomicUsize,
    /// No lock is granted, and the end of a wait is not reported.
    pub(crate) is_held: AtomicBool,
    /// Locks that were granted are no longer held; counts the checks.
    pub(crate) is_taken: AtomicBool,
    pub(crate) fence_checks: AtomicUsize,
    /// This many releases are refused before one is carried out.
    pub(crate) refusals: AtomicUsize,
    /// Answers to the next releases, which are carried out; later ones are answered with true.
    pub(crate) release_answers: Mutex<VecDeque<Result<bool, Status>>>,
    /// Writes received, and the answers to the next ones; later ones are not implemented.
    pub(crate) writes: Mutex<Vec<WriteRequest>>,
    pub(crate) write_answers: Mutex<VecDeque<Result<WriteResponse, Status>>>,
    /// Answers to the next additions.
    pub(crate) add_answers: Mutex<VecDeque<Result<CounterResponse, Status>>>,
    /// While set, additions of 0 are not answered; and whether one was received.
    pub(crate) is_stuck: watch::Sender<bool>,
    pub(crate) has_stuck: AtomicBool,
    /// Numbers of the session's requests that are remembered.
    pub(crate) unsettled: Mutex<BTreeSet<u64>>,
    /// Sessions to be ended; while set, requests to end one are not answered.
    pub(crate) ends: Mutex<Vec<i64>>,
    pub(crate) do_ends_hang: watch::Sender<bool>,
    /// Registrations received, whose answers may be lost; and removals, unless there is no leader.
    pub(crate) registered: Mutex<Vec<RegisterRequest>>,
    pub(crate) are_registrations_lost: AtomicBool,
    pub(crate) deregistered: Mutex<Vec<DeregisterRequest>>,
    pub(crate) has_no_leader: AtomicBool,
    /// While set, registrations of an instance at `late:1` are not answered; afterwards they are
    /// refused.
    pub(crate) do_registrations_hang: watch::Sender<bool>,
    /// Counts the requests for instances; answers to the next ones, later ones are not answered.
    pub(crate) discoveries: AtomicUsize,
    pub(crate) found: Mutex<VecDeque<DiscoverResponse>>,
    /// Counts the operator requests on instances, whose answers are lost.
    pub(crate) operations: AtomicUsize,
    /// Responses of the next watches of services; later ones stay silent.
    pub(crate) changes: Mutex<VecDeque<Vec<InstanceWatchResponse>>>,
    /// Campaign streams and observer streams opened.
    pub(crate) campaigns: AtomicUsize,
    pub(crate) observers: AtomicUsize,
    /// Start revisions of the observer streams, and the cluster id in answers.
    pub(crate) observed_from: Mutex<Vec<i64>>,
    pub(crate) cluster: AtomicU64,
    /// The valid token; 0 if no token is needed.
    pub(crate) token: AtomicUsize,
    pub(crate) logins: AtomicUsize,
    /// The trace context of each call.
    pub(crate) traced: Mutex<Vec<String>>,
    /// The timeout of each call, as sent to the server.
    pub(crate) timeouts: Mutex<Vec<String>>,
    /// Answers all calls.
    pub(crate) failure: Mutex<Option<Status>>,
    /// Refuses all calls as a learner does.
    pub(crate) is_learner: AtomicBool,
    /// The status with which all streams were last broken.
    broken: watch::Sender<Option<Status>>,
}

impl Script {
    /// Breaks all open streams with this status.
    pub(crate) fn break_streams(&self, with: Status) {
        self.broken.send_replace(Some(with));
    }

    /// A stream of these messages that then stays silent until it is broken.
    fn say<T: Send + 'static>(&self, said: Vec<T>) -> BoxStream<'static, Result<T, Status>> {
        let mut broken = self.broken.subscribe();
        let broken = async move {
            broken.changed().await.ok();
            Err(broken.borrow().clone().expect("it is broken with something"))
        };
        stream::iter(said.into_iter().map(Ok)).chain(stream::once(broken)).boxed()
    }
}

/// A server on a runtime of its own.
pub(crate) struct Fake {
    address: SocketAddr,
    pub(crate) script: Arc<Script>,
    runtime: Option<Runtime>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let builder = &mut tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("its address");
        let script = Arc::<Script>::default();
        let scripted = Arc::clone(&script);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let gate = Arc::clone(&scripted);
            tonic::transport::Server::builder()
                .layer(InterceptorLayer::new(move |request| users::admit(&gate, request)))
                .add_service(users::Desk(Arc::clone(&scripted)))
                .add_service(ElectionServiceServer::new(Scripted(Arc::clone(&scripted))))
                .add_service(DiscoveryServiceServer::new(Scripted(Arc::clone(&scripted))))
                .add_service(RegistryServiceServer::new(Scripted(Arc::clone(&scripted))))
                .add_service(CounterServiceServer::new(Scripted(Arc::clone(&scripted))))
                .add_service(LockServiceServer::new(Scripted(Arc::clone(&scripted))))
                .add_service(WriteServiceServer::new(Scripted(Arc::clone(&scripted))))
                .add_service(SessionServiceServer::new(Scripted(scripted)))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        Self { address, script, runtime: Some(runtime) }
    }

    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Scripted(Arc<Script>);

#[tonic::async_trait]
impl LockService for Scripted {
    type AcquireStream = BoxStream<'static, Result<AcquireResponse, Status>>;

    async fn acquire(
        &self,
        request: Request<AcquireRequest>,
    ) -> Result<Response<Self::AcquireStream>, Status> {
        let AcquireRequest { names, request_id, .. } = request.into_inner();
        let say = |event| {
            let answers = self.0.say(vec![AcquireResponse { event: Some(event) }]);
            self.0.acquired.lock().push(request_id);
            Ok(Response::new(answers))
        };
        if self.0.is_held.load(Ordering::Relaxed) {
            return say(Event::Queued(Queued { position: 1 }));
        }
        let held = |name: Bytes| HeldLock { key: name.clone(), name, fence: 1 };
        let locks = names.into_iter().map(held).collect();
        say(Event::Granted(Granted { locks, revision: 1 }))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let refusals = &self.0.refusals;
        let less = |refusals: usize| refusals.checked_sub(1);
        if refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            return Err(Status::resource_exhausted("etcdserver: too many requests"));
        }
        let ReleaseRequest { request_id, once, .. } = request.into_inner();
        self.0.released.lock().push(request_id);
        self.0.release_numbers.lock().push(once.map(|once| (once.sequence, once.undoes)));
        let answer = self.0.release_answers.lock().pop_front().unwrap_or(Ok(true));
        answer.map(|released| Response::new(ReleaseResponse { released }))
    }

    async fn convert(
        &self,
        request: Request<ConvertRequest>,
    ) -> Result<Response<ConvertResponse>, Status> {
        let mut conversions = self.0.conversions.lock();
        conversions.push(request.into_inner().once.map(|once| once.sequence));
        // The answer to the first one is lost.
        match conversions.len() {
            1 => Err(Status::unavailable("etcdserver: request timed out")),
            _ => Ok(Response::new(ConvertResponse { fence: 1 })),
        }
    }

    async fn check_fence(
        &self,
        _: Request<CheckFenceRequest>,
    ) -> Result<Response<CheckFenceResponse>, Status> {
        self.0.fence_checks.fetch_add(1, Ordering::Relaxed);
        let held = !self.0.is_taken.load(Ordering::Relaxed);
        Ok(Response::new(CheckFenceResponse { held, revision: 1, broken: None }))
    }

    async fn commit(&self, _: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        Err(Status::unimplemented("commit"))
    }

    async fn list(
        &self,
        _: Request<LockListRequest>,
    ) -> Result<Response<LockListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }

    async fn inspect(
        &self,
        _: Request<InspectRequest>,
    ) -> Result<Response<InspectResponse>, Status> {
        Err(Status::unimplemented("inspect"))
    }

    async fn force_release(
        &self,
        _: Request<ForceReleaseRequest>,
    ) -> Result<Response<ForceReleaseResponse>, Status> {
        Err(Status::unimplemented("force release"))
    }
}

#[tonic::async_trait]
impl SessionService for Scripted {
    async fn begin(
        &self,
        request: Request<SessionBeginRequest>,
    ) -> Result<Response<SessionBeginResponse>, Status> {
        let SessionBeginRequest { id, ttl_seconds, .. } = request.into_inner();
        Ok(Response::new(SessionBeginResponse { id, ttl_seconds }))
    }

    async fn end(
        &self,
        request: Request<SessionEndRequest>,
    ) -> Result<Response<SessionEndResponse>, Status> {
        self.0.ends.lock().push(request.into_inner().id);
        let mut hang = self.0.do_ends_hang.subscribe();
        hang.wait_for(|hang| !hang).await.expect("the script is there");
        Ok(Response::new(SessionEndResponse {}))
    }

    type OpenStream = BoxStream<'static, Result<SessionOpenResponse, Status>>;

    async fn open(
        &self,
        request: Request<Streaming<SessionOpenRequest>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let script = Arc::clone(&self.0);
        let answer = move |heartbeat: Result<SessionOpenRequest, Status>| {
            script.heartbeats.fetch_add(1, Ordering::Relaxed);
            let sequence = heartbeat?.sequence;
            Ok(SessionOpenResponse { sequence, ..SessionOpenResponse::default() })
        };
        let mut broken = self.0.broken.subscribe();
        let broken = async move { broken.changed().await.ok() };
        Ok(Response::new(request.into_inner().map(answer).take_until(broken).boxed()))
    }

    async fn list(
        &self,
        _: Request<SessionListRequest>,
    ) -> Result<Response<SessionListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }
}

#[tonic::async_trait]
impl WriteService for Scripted {
    async fn write(
        &self,
        request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        self.0.writes.lock().push(request.into_inner());
        let answer = self.0.write_answers.lock().pop_front();
        answer.unwrap_or_else(|| Err(Status::unimplemented("write"))).map(Response::new)
    }
}
