//! The cost for a server of keeping sessions alive: processes that each hold many sessions, renewed
//! as cheaply as the server allows.
//!
//! On our session stream, one message renews all sessions of a process. A server that only has
//! leases needs a keep-alive for each; all of them are sent before the first answer is read, as
//! etcd's own client does.

use anyhow::{Context, Result, ensure};
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
};
use conclave_proto::v1;
use conclave_proto::v1::session_service_client::SessionServiceClient;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::cluster::Cluster;
use crate::connection::Connection;
use crate::drive::Client;
use crate::options::{Load, Workload};
use crate::runner::{self, Target};

/// Longer than any run.
const TTL_SECONDS: i64 = 3600;
/// Numbers of sessions per process that the drill measures.
const SHAPES: [usize; 3] = [1, 10, 100];

/// A process that holds sessions.
pub(crate) struct Holder {
    sessions: usize,
    stream: Stream,
}

enum Stream {
    Native {
        sequence: u64,
        requests: mpsc::Sender<v1::SessionOpenRequest>,
        answers: Streaming<v1::SessionOpenResponse>,
    },
    Leases {
        ids: Vec<i64>,
        requests: mpsc::Sender<LeaseKeepAliveRequest>,
        answers: Streaming<LeaseKeepAliveResponse>,
    },
}

impl Holder {
    /// Begins `sessions` sessions and opens the stream that renews them.
    ///
    /// # Errors
    /// If the server rejects a request.
    pub(crate) async fn open(connection: Connection, sessions: usize) -> Result<Self> {
        ensure!(sessions > 0, "a process must hold a session");
        let origin = connection.origin();
        let mut native = SessionServiceClient::with_origin(connection.clone(), origin);
        let stream = match begin(&mut native).await {
            Ok(first) => natively(native, first, sessions).await?,
            Err(status) if status.code() == Code::Unimplemented => {
                by_leases(connection, sessions).await?
            }
            Err(status) => return Err(status.into()),
        };
        let mut holder = Self { sessions, stream };
        holder.step().await?;
        Ok(holder)
    }
}

async fn begin(client: &mut SessionServiceClient<Connection>) -> Result<i64, Status> {
    let request_id = rand::random::<u128>().to_be_bytes().to_vec().into();
    let request =
        v1::SessionBeginRequest { ttl_seconds: TTL_SECONDS, request_id, ..Default::default() };
    Ok(client.begin(request).await?.into_inner().id)
}

async fn natively(
    mut client: SessionServiceClient<Connection>,
    first: i64,
    sessions: usize,
) -> Result<Stream> {
    let mut attach = vec![first];
    while attach.len() < sessions {
        attach.push(begin(&mut client).await?);
    }
    let (requests, receiver) = mpsc::channel(1);
    requests.send(v1::SessionOpenRequest { attach, ..Default::default() }).await?;
    let mut answers = client.open(ReceiverStream::new(receiver)).await?.into_inner();
    answers.message().await?.context("the session stream ended")?;
    Ok(Stream::Native { sequence: 0, requests, answers })
}

async fn by_leases(connection: Connection, sessions: usize) -> Result<Stream> {
    let origin = connection.origin();
    let mut client = LeaseClient::with_origin(connection, origin);
    let mut ids = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        let grant = LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 };
        ids.push(client.lease_grant(grant).await?.into_inner().id);
    }
    let (requests, receiver) = mpsc::channel(sessions);
    requests.send(LeaseKeepAliveRequest { id: ids[0] }).await?;
    let mut answers = client.lease_keep_alive(ReceiverStream::new(receiver)).await?.into_inner();
    answers.message().await?.context("the keep-alive stream ended")?;
    Ok(Stream::Leases { ids, requests, answers })
}

impl Client for Holder {
    /// Renews every session once.
    async fn step(&mut self) -> Result<(), Status> {
        match &mut self.stream {
            Stream::Native { sequence, requests, answers } => {
                *sequence += 1;
                let heartbeat =
                    v1::SessionOpenRequest { sequence: *sequence, ..Default::default() };
                requests.send(heartbeat).await.map_err(|_| ended())?;
                let answer = answers.message().await?.ok_or_else(ended)?;
                is_alive(answer.sequence == *sequence && answer.lost.is_empty())
            }
            Stream::Leases { ids, requests, answers } => {
                for &id in &*ids {
                    let request = LeaseKeepAliveRequest { id };
                    requests.send(request).await.map_err(|_| ended())?;
                }
                for _ in 0..ids.len() {
                    is_alive(answers.message().await?.ok_or_else(ended)?.ttl > 0)?;
                }
                Ok(())
            }
        }
    }

    fn operations(&self) -> u64 {
        self.sessions as u64
    }
}

fn ended() -> Status {
    Status::unavailable("the stream ended")
}

fn is_alive(holds: bool) -> Result<(), Status> {
    if holds { Ok(()) } else { Err(Status::internal("a session is gone")) }
}

/// Cost of heartbeats with one number of sessions per process.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    processes: usize,
    sessions_each: usize,
    renewals_per_second: f64,
    server_cpu_us_per_renewal: f64,
    renewals_per_server_cpu_second: f64,
    errors: u64,
}

/// Measures each number of sessions; the processes are spread over all members.
///
/// # Errors
/// If a run fails.
pub(crate) fn costs(cluster: &Cluster, load: &Load) -> Result<Vec<Cost>> {
    let mut target = Target::of(cluster);
    target.leader_first()?;
    let cost = |sessions| {
        let load = Load { sessions, connections: load.clients, ..load.clone() };
        let report = runner::run(Workload::Heartbeats, &load, &target)?;
        let cpu_us = report.server.context("the servers were measured")?.cpu_us_per_op;
        Ok(Cost {
            processes: load.clients,
            sessions_each: sessions,
            renewals_per_second: report.rate,
            server_cpu_us_per_renewal: cpu_us,
            renewals_per_server_cpu_second: 1e6 / cpu_us,
            errors: report.errors,
        })
    };
    SHAPES.into_iter().map(cost).collect()
}

/// Renewals per second of server CPU, ours as a multiple of theirs.
pub(crate) fn ratios(ours: &[Cost], theirs: &[Cost]) -> String {
    let ratio = |(ours, theirs): (&Cost, &Cost)| {
        let times = theirs.server_cpu_us_per_renewal / ours.server_cpu_us_per_renewal;
        format!("{} sessions a process {times:.1}x", ours.sessions_each)
    };
    let ratios: Vec<String> = ours.iter().zip(theirs).map(ratio).collect();
    format!("renewals per second of server CPU: {}", ratios.join(", "))
}
