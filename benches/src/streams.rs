//! The workloads with long streams: watch fan-out, watch latency, keep-alive.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest,
    WatchCreateRequest, WatchRequest, watch_request,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};

use crate::connection::Connection;
use crate::drive::{Client, Tally, Window};
use crate::event_codec::{Counted, CountingCodec};

const WATCH_PREFIX: &[u8] = b"/watch/";
const WATCH_PREFIX_END: &[u8] = b"/watch0";
const WATCHED_KEYS: u32 = 1000;
const KEEP_ALIVE_TTL_SECONDS: i64 = 3600;
const STAMP_BYTES: usize = 8;

fn create_request() -> WatchRequest {
    let create = WatchCreateRequest {
        key: Bytes::from_static(WATCH_PREFIX),
        range_end: Bytes::from_static(WATCH_PREFIX_END),
        ..Default::default()
    };
    WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) }
}

/// One stream with some watchers on the same prefix.
pub(crate) struct WatchStream {
    /// Kept open, because dropping it would end the stream.
    _requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<Counted>,
}

impl WatchStream {
    pub(crate) async fn open(connection: Connection, watchers: usize) -> Result<Self> {
        let (requests, receiver) = mpsc::channel(1);
        let origin = connection.origin();
        let mut grpc = Grpc::with_origin(connection, origin);
        grpc.ready().await.context("connection")?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        requests.send(create_request()).await?;
        let request = Request::new(ReceiverStream::new(receiver));
        let mut answers = grpc.streaming(request, path, CountingCodec).await?.into_inner();
        for created in 0..watchers {
            if created > 0 {
                requests.send(create_request()).await?;
            }
            // Events for watchers created earlier may arrive in between.
            while !created_answer(&mut answers).await? {}
        }
        Ok(Self { _requests: requests, answers })
    }

    /// Counts delivered events until the window ends.
    pub(crate) async fn count_events(mut self, window: Window) -> Result<Tally> {
        let mut tally = Tally::new();
        while let Some(counted) = self.next(window).await? {
            if Instant::now() >= window.start {
                tally.ops += counted.events;
            }
        }
        Ok(tally)
    }

    /// Measures, for each event, the time since its put began. The stamps count from `clock`.
    pub(crate) async fn time_events(mut self, window: Window, clock: Instant) -> Result<Tally> {
        let mut tally = Tally::new();
        while let Some(counted) = self.next(window).await? {
            let now = Instant::now();
            if let (Some(stamp), true) = (counted.stamp, now >= window.start) {
                let latency = now.saturating_duration_since(clock + Duration::from_nanos(stamp));
                (0..counted.events).for_each(|_| tally.success(latency));
            }
        }
        Ok(tally)
    }

    async fn next(&mut self, window: Window) -> Result<Option<Counted>> {
        let next = tokio::time::timeout_at(window.end.into(), self.answers.message()).await;
        let Ok(message) = next else { return Ok(None) };
        let counted = message?.context("the watch stream ended")?;
        ensure!(!counted.is_canceled, "a watcher was cancelled");
        Ok((Instant::now() < window.end).then_some(counted))
    }
}

async fn created_answer(answers: &mut Streaming<Counted>) -> Result<bool> {
    let answer = answers.message().await?.context("the watch stream ended")?;
    ensure!(!answer.is_canceled, "a watcher was not created");
    Ok(answer.is_created)
}

/// Puts values that contain the time they were made, below the watched prefix.
pub(crate) struct StampedWriter {
    kv: KvClient<Connection>,
    clock: Instant,
    value_bytes: usize,
    rng: SmallRng,
}

impl StampedWriter {
    pub(crate) fn new(
        connection: Connection,
        clock: Instant,
        value_bytes: usize,
        seed: u64,
    ) -> Self {
        let origin = connection.origin();
        let kv = KvClient::with_origin(connection, origin);
        Self { kv, clock, value_bytes, rng: SmallRng::seed_from_u64(seed) }
    }
}

impl Client for StampedWriter {
    async fn step(&mut self) -> Result<(), Status> {
        let key = format!("/watch/{:025}", self.rng.random_range(0..WATCHED_KEYS));
        let mut value = BytesMut::zeroed(self.value_bytes.max(STAMP_BYTES));
        let nanos = u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
        value[..STAMP_BYTES].as_mut().put_u64(nanos);
        let request = PutRequest { key: key.into(), value: value.freeze(), ..Default::default() };
        self.kv.put(request).await.map(drop)
    }
}

/// One lease that is kept alive on one stream.
pub(crate) struct KeepAlive {
    lease: i64,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    pub(crate) async fn open(connection: Connection) -> Result<Self> {
        let origin = connection.origin();
        let mut client = LeaseClient::with_origin(connection, origin);
        let grant = LeaseGrantRequest { ttl: KEEP_ALIVE_TTL_SECONDS, id: 0 };
        let lease = client.lease_grant(grant).await?.into_inner().id;
        let (requests, receiver) = mpsc::channel(1);
        requests.send(LeaseKeepAliveRequest { id: lease }).await?;
        let mut answers =
            client.lease_keep_alive(ReceiverStream::new(receiver)).await?.into_inner();
        answers.message().await?.context("the keep-alive stream ended")?;
        Ok(Self { lease, requests, answers })
    }
}

impl Client for KeepAlive {
    async fn step(&mut self) -> Result<(), Status> {
        let request = LeaseKeepAliveRequest { id: self.lease };
        self.requests.send(request).await.map_err(|_| Status::unavailable("the stream ended"))?;
        let answer = self.answers.message().await?;
        match answer {
            Some(answer) if answer.ttl > 0 => Ok(()),
            Some(_) => Err(Status::internal("the lease is gone")),
            None => Err(Status::unavailable("the stream ended")),
        }
    }
}
