//! Runs one workload against endpoints: opens connections, starts threads, sets the window, samples
//! the processes.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use conclave_proto::etcdserverpb::StatusRequest;
use conclave_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access::Access;
use crate::cluster::Cluster;
use crate::connection::Connection;
use crate::drive::{self, Pace, Tally, Window};
use crate::heartbeats::Holder;
use crate::locker::Locker;
use crate::options::{Load, Workload};
use crate::process::{self, Usage};
use crate::report::{Report, ServerCost};
use crate::streams::{KeepAlive, StampedWriter, WatchStream};
use crate::worker::{self, Material, Worker};

const LOADERS: usize = 16;

/// The servers to load.
#[derive(Clone, Debug)]
pub struct Target {
    /// `http://host:port` of each member; connections are spread over them in this order.
    pub endpoints: Vec<String>,
    /// Processes whose cost is measured; none if empty.
    pub pids: Vec<u32>,
    /// Whether the keys of read workloads still have to be written.
    pub is_empty: bool,
    /// TLS settings and token of the connections.
    pub access: Access,
}

impl Target {
    /// A cluster that was just started, without authentication.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let (endpoints, pids) = (cluster.endpoints(), cluster.pids());
        Self { endpoints, pids, is_empty: true, access: Access::default() }
    }

    /// Puts the leader's endpoint first, so that a few clients always use the leader.
    ///
    /// # Errors
    /// If no endpoint answers.
    pub fn leader_first(&mut self) -> Result<()> {
        let leader = runtime()?.block_on(find_leader(self))?;
        self.endpoints.swap(0, leader);
        Ok(())
    }

    fn check_owners(&self) -> Result<()> {
        if self.pids.is_empty() {
            return Ok(());
        }
        for endpoint in &self.endpoints {
            let port = endpoint.rsplit(':').next().context("endpoint has a port")?;
            let port = port
                .trim_end_matches('/')
                .parse()
                .with_context(|| format!("port of {endpoint}"))?;
            process::check_port_owner(port, &self.pids)?;
        }
        Ok(())
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn find_leader(target: &Target) -> Result<usize> {
    for (index, endpoint) in target.endpoints.iter().enumerate() {
        let opened = Connection::open_by(endpoint, &target.access).await;
        let Ok(connection) = opened else { continue };
        let origin = connection.origin();
        let mut client = MaintenanceClient::with_origin(connection, origin);
        let status = client.status(StatusRequest {}).await?.into_inner();
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(index);
        }
    }
    anyhow::bail!("no endpoint says it leads")
}

/// The raft term at the first endpoint; 0 if it has none (the no-op server).
async fn term(target: &Target) -> Result<u64> {
    let connection = Connection::open_by(&target.endpoints[0], &target.access).await?;
    let origin = connection.origin();
    let answer = MaintenanceClient::with_origin(connection, origin).status(StatusRequest {}).await;
    Ok(answer.map_or(0, |status| status.into_inner().raft_term))
}

/// Runs one workload and returns its report.
///
/// # Errors
/// If a port is owned by another process, an endpoint cannot be reached, or a stream ends early.
pub fn run(workload: Workload, load: &Load, target: &Target) -> Result<Report> {
    ensure!(
        load.clients > 0 && load.keys > 0 && load.threads > 0,
        "clients, keys, threads must be positive"
    );
    target.check_owners()?;
    let material = Arc::new(Material::new(load));
    if target.is_empty && workload.needs_keys() {
        preload(target, &material)?;
    }
    let before_term = runtime()?.block_on(term(target))?;
    let (outcome, samples) = measure(workload, load, target, &material)?;
    let mut report = Report::new(workload, load, &outcome.tally, outcome.puts);
    report.client_cpu_us_per_op = samples.client_cpu_us as f64 / report.ops.max(1) as f64;
    let (before, after) = samples.servers;
    report.server = (!target.pids.is_empty())
        .then(|| ServerCost::between(&before, &after, report.ops, load.seconds));
    report.terms = (before_term, runtime()?.block_on(term(target))?);
    Ok(report)
}

/// Sets up the clients on their threads, then starts the window for all at once.
fn measure(
    workload: Workload,
    load: &Load,
    target: &Target,
    material: &Arc<Material>,
) -> Result<(Outcome, Samples)> {
    let (ready, all_ready) = std::sync::mpsc::sync_channel(load.threads);
    let (go, started) = watch::channel(None);
    let threads: Vec<_> = (0..load.threads)
        .map(|thread| {
            let job = Job {
                workload,
                load: load.clone(),
                thread,
                target: target.clone(),
                ready: ready.clone(),
                started: started.clone(),
            };
            let material = material.clone();
            std::thread::spawn(move || job.run(material))
        })
        .collect();
    drop(ready);
    let is_set_up = threads.iter().all(|_| all_ready.recv().is_ok());
    let window = Window::after(load.warm(), load.measured());
    let samples = if is_set_up {
        go.send(Some(Pace::new(window, load.rate)))?;
        sample(window, &target.pids)?
    } else {
        drop(go);
        Samples::default()
    };
    let mut total = Outcome::default();
    for thread in threads {
        total.add(&thread.join().map_err(|_| anyhow::anyhow!("a generator thread panicked"))??);
    }
    Ok((total, samples))
}

/// Writes the keys of `material` to an empty target.
pub(crate) fn preload(target: &Target, material: &Arc<Material>) -> Result<()> {
    runtime()?.block_on(async {
        let connections = open_all(target, LOADERS, true).await?;
        worker::load_keys(&connections, material.clone(), LOADERS).await
    })
}

/// Opens `count` connections. `gathers` should be false if the thread has other work than sending
/// when answers arrive.
async fn open_all(target: &Target, count: usize, gathers: bool) -> Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(count);
    for index in 0..count {
        let endpoint = &target.endpoints[index % target.endpoints.len()];
        connections.push(match gathers {
            true => Connection::open_gathered(endpoint, &target.access).await?,
            false => Connection::open_by(endpoint, &target.access).await?,
        });
    }
    Ok(connections)
}

#[derive(Clone, Copy, Debug, Default)]
struct Samples {
    servers: (Usage, Usage),
    client_cpu_us: u64,
}

/// Sleeps through the window and reads the counters at its start and end.
fn sample(window: Window, pids: &[u32]) -> Result<Samples> {
    let this = std::process::id();
    std::thread::sleep(window.start.saturating_duration_since(Instant::now()));
    let before = (Usage::of_all(pids)?, Usage::of(this)?);
    std::thread::sleep(window.end.saturating_duration_since(Instant::now()));
    let after = (Usage::of_all(pids)?, Usage::of(this)?);
    Ok(Samples {
        servers: (before.0, after.0),
        client_cpu_us: after.1.cpu_us.saturating_sub(before.1.cpu_us),
    })
}

struct Outcome {
    tally: Tally,
    puts: u64,
}

impl Default for Outcome {
    fn default() -> Self {
        Self { tally: Tally::new(), puts: 0 }
    }
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        self.puts += other.puts;
    }
}

/// The work of one generator thread.
struct Job {
    workload: Workload,
    load: Load,
    thread: usize,
    target: Target,
    ready: SyncSender<()>,
    started: watch::Receiver<Option<Pace>>,
}

impl Job {
    fn run(self, material: Arc<Material>) -> Result<Outcome> {
        runtime()?.block_on(async {
            let count = self.load.connection_count(self.target.endpoints.len());
            let watches = matches!(self.workload, Workload::WatchFanout | Workload::WatchLatency);
            let connections = open_all(&self.target, count, !watches).await?;
            match self.workload {
                Workload::KeepAlive => self.keep_alive(connections).await,
                Workload::Heartbeats => self.heartbeats(connections).await,
                Workload::WatchFanout | Workload::WatchLatency => self.watch(connections).await,
                workload if workload.locks() => self.lock(connections).await,
                _ => self.unary(connections, material).await,
            }
        })
    }

    /// The indexes of this thread's share of `count` things.
    fn share(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        (self.thread..count).step_by(self.load.threads)
    }

    /// Signals that everything is set up, and waits for the other threads.
    async fn start(&self) -> Result<Pace> {
        self.ready.send(())?;
        let mut started = self.started.clone();
        let pace = started.wait_for(Option::is_some).await.context("the run was given up")?;
        pace.clone().context("waited for a pace")
    }

    async fn unary(
        &self,
        connections: Vec<Connection>,
        material: Arc<Material>,
    ) -> Result<Outcome> {
        let pace = self.start().await?;
        let mut tasks = JoinSet::new();
        for index in self.share(self.load.clients) {
            let connection = connections[index % connections.len()].clone();
            let worker =
                Worker::new((self.workload, &self.load), index, connection, material.clone());
            tasks.spawn(drive::run(worker, pace.clone()));
        }
        Ok(Outcome { tally: join(tasks).await?, puts: 0 })
    }

    async fn keep_alive(&self, connections: Vec<Connection>) -> Result<Outcome> {
        let mut clients = Vec::new();
        for index in self.share(self.load.clients) {
            clients.push(KeepAlive::open(connections[index % connections.len()].clone()).await?);
        }
        self.drive(clients).await
    }

    async fn heartbeats(&self, connections: Vec<Connection>) -> Result<Outcome> {
        let mut opening = JoinSet::new();
        for index in self.share(self.load.clients) {
            let connection = connections[index % connections.len()].clone();
            opening.spawn(Holder::open(connection, self.load.sessions));
        }
        let mut clients = Vec::new();
        while let Some(holder) = opening.join_next().await {
            clients.push(holder??);
        }
        self.drive(clients).await
    }

    async fn lock(&self, connections: Vec<Connection>) -> Result<Outcome> {
        let mut clients = Vec::new();
        for index in self.share(self.load.clients) {
            let name = match self.workload {
                Workload::LockContended | Workload::LockNativeContended => "bench".to_owned(),
                _ => format!("bench-{index}"),
            };
            let connection = connections[index % connections.len()].clone();
            clients.push(match self.workload {
                Workload::LockNative | Workload::LockNativeContended => {
                    Locker::open_natively(connection, name).await?
                }
                _ => Locker::open(connection, name).await?,
            });
        }
        self.drive(clients).await
    }

    /// Runs clients that are set up.
    async fn drive(&self, clients: Vec<impl drive::Client>) -> Result<Outcome> {
        let pace = self.start().await?;
        let mut tasks = JoinSet::new();
        for client in clients {
            tasks.spawn(drive::run(client, pace.clone()));
        }
        Ok(Outcome { tally: join(tasks).await?, puts: 0 })
    }

    async fn watch(&self, connections: Vec<Connection>) -> Result<Outcome> {
        let clock = Instant::now();
        let streams = self.load.streams.clamp(1, self.load.watchers.max(1));
        let mut open = Vec::new();
        for index in self.share(streams) {
            let connection = connections[index % connections.len()].clone();
            let watchers = (index..self.load.watchers).step_by(streams).count();
            open.push(WatchStream::open(connection, watchers).await?);
        }
        let pace = self.start().await?;
        let mut watchers = JoinSet::new();
        for stream in open {
            match self.workload {
                Workload::WatchFanout => watchers.spawn(stream.count_events(pace.window())),
                _ => watchers.spawn(stream.time_events(pace.window(), clock)),
            };
        }
        let mut writers = JoinSet::new();
        for index in self.share(self.load.clients) {
            let connection = connections[index % connections.len()].clone();
            let writer = StampedWriter::new(connection, clock, self.load.value_bytes, index as u64);
            writers.spawn(drive::run(writer, pace.clone()));
        }
        let mut tally = Tally::new();
        while let Some(stream) = watchers.join_next().await {
            tally.add(&stream??);
        }
        let written = join(writers).await?;
        tally.errors += written.errors;
        tally.error_texts.extend(written.error_texts);
        Ok(Outcome { tally, puts: written.ops })
    }
}

async fn join(mut tasks: JoinSet<Tally>) -> Result<Tally> {
    let mut total = Tally::new();
    while let Some(tally) = tasks.join_next().await {
        total.add(&tally?);
    }
    Ok(total)
}
