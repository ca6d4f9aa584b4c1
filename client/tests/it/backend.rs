//! Real gRPC servers that answer with their names, and calls through a balanced channel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use conclave_client::balance::{BalancedChannel, Instance, RouteKey};
use conclave_client::mvccpb::KeyValue;
use conclave_client::pb::kv_client::KvClient;
use conclave_client::pb::kv_server::{Kv, KvServer};
use conclave_client::pb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::SOON;
use crate::server::free_port;

/// Answers every range with its name; everything else is unimplemented.
struct Named {
    name: String,
    is_failing: Arc<AtomicBool>,
    fails_one_in: Arc<AtomicUsize>,
    calls: AtomicUsize,
}

#[tonic::async_trait]
impl Kv for Named {
    async fn range(&self, _: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        if self.is_failing.load(Ordering::Relaxed) {
            return Err(Status::unavailable("out of order"));
        }
        let one_in = self.fails_one_in.load(Ordering::Relaxed);
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        if one_in > 0 && calls.is_multiple_of(one_in) {
            return Err(Status::unavailable("out of order now and then"));
        }
        let kv = KeyValue { key: Bytes::from(self.name.clone()), ..KeyValue::default() };
        Ok(Response::new(RangeResponse { kvs: vec![kv], ..RangeResponse::default() }))
    }

    type RangeStreamStream = futures::stream::Empty<Result<RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        _: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("range stream"))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        // Waits longer than any test.
        std::future::pending().await
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Err(Status::unimplemented("txn"))
    }

    async fn compact(
        &self,
        _: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented("compact"))
    }
}

/// A server on its own runtime, so that it can be stopped with all its connections.
pub(crate) struct Backend {
    name: String,
    pub(crate) address: SocketAddr,
    pub(crate) is_failing: Arc<AtomicBool>,
    /// One of this many calls fails; 0: none.
    pub(crate) fails_one_in: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Backend {
    pub(crate) fn start(name: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (is_failing, fails_one_in) = (Arc::default(), Arc::default());
        let name = name.to_owned();
        let mut backend = Self { name, address, is_failing, fails_one_in, runtime: None };
        backend.serve();
        backend
    }

    pub(crate) fn serve(&mut self) {
        let builder = &mut tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let listener = self.listener();
        listener.set_nonblocking(true).expect("non-blocking");
        let named = Named {
            name: self.name.clone(),
            is_failing: Arc::clone(&self.is_failing),
            fails_one_in: Arc::clone(&self.fails_one_in),
            calls: AtomicUsize::new(0),
        };
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).expect("tokio"));
            let server = tonic::transport::Server::builder().add_service(KvServer::new(named));
            server.serve_with_incoming(incoming).await.expect("it serves");
        });
        self.runtime = Some(runtime);
    }

    /// Listens on its port, once the killed server has released it.
    fn listener(&self) -> std::net::TcpListener {
        let begun = Instant::now();
        loop {
            match std::net::TcpListener::bind(self.address) {
                Ok(listener) => return listener,
                Err(error) => assert!(begun.elapsed() < SOON, "{}: {error}", self.address),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn kill(&mut self) {
        self.runtime.take().expect("it runs").shutdown_background();
    }

    pub(crate) fn instance(&self) -> Instance {
        Instance::new(&self.name, self.address.to_string())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn backends() -> Vec<Backend> {
    ["a", "b", "c"].map(Backend::start).into()
}

pub(crate) fn instances(backends: &[Backend]) -> Vec<Instance> {
    backends.iter().map(Backend::instance).collect()
}

/// The name of the server that answers a call.
pub(crate) async fn call(channel: &BalancedChannel) -> Result<String, Status> {
    call_about(channel, None).await
}

pub(crate) async fn call_about(
    channel: &BalancedChannel,
    key: Option<&str>,
) -> Result<String, Status> {
    let mut request = Request::new(RangeRequest::default());
    if let Some(key) = key {
        request.extensions_mut().insert(RouteKey::of(key.as_bytes()));
    }
    let answer = KvClient::new(channel.clone()).range(request).await?.into_inner();
    Ok(String::from_utf8_lossy(&answer.kvs[0].key).into_owned())
}

pub(crate) async fn counts(channel: &BalancedChannel, calls: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..calls {
        *counts.entry(call(channel).await.expect("an answer")).or_default() += 1;
    }
    counts
}
