//! The drill of the registry: many instances in many sessions, watchers that hear of one change, sessions
//! that die at once, and a leader that is killed meanwhile.
//!
//! ```text
//! conclave-bench registry --binary target/release/conclave
//! ```
//! It prints one JSON line and fails if an instance that lives disappears, if a change does not arrive, or
//! if the dead do not go. Times are figures, not conditions: the machine decides.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use conclave_client::{Client, Session};
use conclave_proto::v1;
use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use v1::instance_change::{Kind, Reason};
use v1::registry_service_client::RegistryServiceClient;

use crate::cluster::{Cluster, Program};
use crate::compare::Scratch;
use crate::drill::wait_until_serving;
use crate::runner::Target;

const NODES: usize = 3;
/// Calls in flight while the registry is filled.
const IN_FLIGHT: usize = 512;
/// Watchers that share the connections of one client.
const WATCHERS_PER_CLIENT: usize = 20;
/// The longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
/// Reports of watchers that wait to be counted.
const REPORTS_MAX: usize = 100_000;
/// The service whose changes are measured, and its instance that changes.
const MEASURED: usize = 0;
const PROBE: &str = "probe";

/// Flags of the drill.
#[derive(Clone, Debug, Args)]
pub struct Registry {
    /// The `conclave` binary.
    #[arg(long)]
    binary: PathBuf,
    /// Where the nodes keep their data; removed afterwards.
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
    /// Instances that are registered.
    #[arg(long, default_value_t = 100_000)]
    instances: usize,
    /// Sessions that hold them; a tenth dies together.
    #[arg(long, default_value_t = 10_000)]
    sessions: usize,
    /// Services that they belong to.
    #[arg(long, default_value_t = 100)]
    services: usize,
    /// Watchers of one service.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Changes that are measured.
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// TTL of the sessions in seconds.
    #[arg(long, default_value_t = 10)]
    ttl: u64,
}

fn service(number: usize) -> String {
    format!("drill/s{number:04}")
}

fn record(id: &str, address: &str) -> Vec<u8> {
    let zone = if id.len().is_multiple_of(2) { "a" } else { "b" };
    let instance = format!(r#"{{"version":"1.4.0","zone":"{zone}"}}"#);
    format!(r#"{{"Op":0,"Addr":"{address}","Metadata":null,"Instance":{instance}}}"#).into_bytes()
}

/// Runs the drill; prints what it found.
///
/// # Errors
/// If something does not happen that must, or the cluster does not start.
pub fn run(flags: &Registry, out: &mut dyn std::io::Write) -> Result<()> {
    let scratch = Scratch::create(&flags.dir)?;
    let mut cluster = Cluster::create(Program::new(&flags.binary), scratch.path(), NODES)?;
    cluster.start_all()?;
    wait_until_serving(&cluster.endpoints())?;
    let runtime = Runtime::new()?;
    // Whoever lives on it dies with it, without a word to the cluster.
    let (first, second) = (Runtime::new()?, Runtime::new()?);
    let mut drill = Drill { flags: flags.clone(), endpoints: cluster.endpoints() };
    let filled = runtime.block_on(drill.fill([first.handle().clone(), second.handle().clone()]))?;
    let watching = runtime.block_on(drill.watch())?;
    let (spread, changes) = runtime.block_on(drill.change(&filled, &watching))?;
    let begun = Instant::now();
    first.shutdown_background();
    let gone = runtime.block_on(drill.until_live(filled.live - filled.doomed[0], begun))?;
    let calm = watching.audit.wrongly_removed();

    let leader = leader(&cluster)?;
    let begun = Instant::now();
    cluster.kill(leader)?;
    second.shutdown_background();
    let left = filled.live - filled.doomed[0] - filled.doomed[1];
    let gone_after_kill = runtime.block_on(drill.until_live(left, begun))?;
    // Whatever a new leader forgot would be gone by then.
    runtime.block_on(drill.hold(left, Duration::from_secs(flags.ttl * 2)))?;
    let removed = watching.audit.wrongly_removed();
    let lost = filled.sessions.iter().filter(|session| session.is_lost()).count();
    serde_json::to_writer(
        &mut *out,
        &serde_json::json!({
            "instances": filled.live,
            "sessions": flags.sessions,
            "fill_seconds": filled.seconds,
            "watchers": flags.watchers,
            "changes": changes,
            "change_to_watcher_ms": {
                "p50": millis(&spread, 50.0), "p99": millis(&spread, 99.0), "max": millis(&spread, 100.0),
            },
            "ttl_seconds": flags.ttl,
            "dead_gone_seconds": gone.as_secs_f64(),
            "dead_gone_with_leader_killed_seconds": gone_after_kill.as_secs_f64(),
            "live_removed": removed,
            "live_sessions_lost": lost,
        }),
    )?;
    writeln!(out)?;
    drop(filled);
    ensure!(calm == 0 && removed == 0 && lost == 0, "{removed} instances that live disappeared");
    Ok(())
}

fn millis(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    Duration::from_micros(histogram.value_at_percentile(percentile)).as_secs_f64() * 1_000.0
}

fn leader(cluster: &Cluster) -> Result<usize> {
    let endpoints = cluster.endpoints();
    let mut target = Target::of(cluster);
    target.leader_first()?;
    let leader = endpoints.iter().position(|endpoint| *endpoint == target.endpoints[0]);
    leader.context("a leader")
}

struct Drill {
    flags: Registry,
    endpoints: Vec<String>,
}

/// What is registered.
struct Filled {
    sessions: Vec<Session>,
    /// Instances of all sessions, and of those that are going to die in the first and second wave.
    live: usize,
    doomed: [usize; 2],
    seconds: f64,
    /// Holds the instance that changes.
    probe: i64,
}

/// Who watches.
struct Watching {
    audit: Arc<Audit>,
    reports: tokio::sync::Mutex<mpsc::Receiver<(usize, Instant)>>,
    _tasks: JoinSet<()>,
}

/// What the auditors of all services saw.
#[derive(Default)]
struct Audit {
    wrong: AtomicUsize,
    is_over: AtomicBool,
}

impl Audit {
    /// Instances of sessions that live which were removed. Ids of the doomed begin with `x`.
    fn wrongly_removed(&self) -> usize {
        self.wrong.load(Ordering::Relaxed)
    }

    fn note(&self, message: &v1::InstanceWatchResponse) {
        for change in &message.changes {
            let Some(instance) = &change.instance else { continue };
            let is_loss = change.kind() == Kind::Removed || instance.stale;
            if is_loss && !instance.id.starts_with('x') && change.reason() != Reason::Deregistered {
                self.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.audit.is_over.store(true, Ordering::Relaxed);
    }
}

impl Drill {
    fn client(&self) -> Result<Client> {
        Ok(Client::builder(&self.endpoints).timeout(PATIENCE).build()?)
    }

    /// Begins all sessions and registers all instances; a tenth of the sessions lives on each of the two
    /// runtimes that are going to die.
    async fn fill(&mut self, doomed: [tokio::runtime::Handle; 2]) -> Result<Filled> {
        let begun = Instant::now();
        let Registry { sessions, .. } = self.flags;
        let part = sessions / 20;
        let own = self.client()?;
        let mut begun_sessions = begin(&own, sessions - 2 * part, self.flags.ttl).await?;
        let mut ids: Vec<(i64, bool)> =
            begun_sessions.iter().map(|session| (session.id(), false)).collect();
        let mut counts = [0; 2];
        for (wave, handle) in doomed.into_iter().enumerate() {
            let (endpoints, ttl) = (self.endpoints.clone(), self.flags.ttl);
            let theirs = handle.spawn(async move {
                let client = Client::builder(&endpoints).timeout(PATIENCE).build()?;
                let sessions = begin(&client, part, ttl).await?;
                let ids: Vec<i64> = sessions.iter().map(Session::id).collect();
                // Kept alive until the runtime ends, and then ended by nobody.
                std::mem::forget(sessions);
                Ok::<_, anyhow::Error>(ids)
            });
            let theirs = theirs.await??;
            counts[wave] = theirs.len();
            ids.extend(theirs.into_iter().map(|id| (id, true)));
        }
        let per_session = self.flags.instances / sessions;
        self.register(&own, &ids, per_session).await?;
        let probe = begun_sessions.first().context("a session")?.id();
        register(&own, (MEASURED, PROBE), (probe, "probe:0")).await?;
        begun_sessions.shrink_to_fit();
        Ok(Filled {
            sessions: begun_sessions,
            live: ids.len() * per_session + 1,
            doomed: counts.map(|count| count * per_session),
            seconds: begun.elapsed().as_secs_f64(),
            probe,
        })
    }

    async fn register(&self, client: &Client, ids: &[(i64, bool)], per: usize) -> Result<()> {
        let slots = Arc::new(Semaphore::new(IN_FLIGHT));
        let clients: Vec<Client> = client.each();
        let mut calls = JoinSet::new();
        for (number, (session, is_doomed)) in ids.iter().copied().enumerate() {
            for place in 0..per {
                let slot = Arc::clone(&slots).acquire_owned().await?;
                let client = clients[number % clients.len()].clone();
                let services = self.flags.services;
                calls.spawn(async move {
                    let mark = if is_doomed { 'x' } else { 'i' };
                    let id = format!("{mark}{number:06}-{place}");
                    let address = format!("10.0.0.1:{}", 1 + number % 60_000);
                    let at = (number * per + place) % services;
                    let done = register(&client, (at, &id), (session, &address)).await;
                    drop(slot);
                    done
                });
                while let Some(done) = calls.try_join_next() {
                    done??;
                }
            }
        }
        while let Some(done) = calls.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Starts the watchers of one service, and an auditor of each other one.
    async fn watch(&self) -> Result<Watching> {
        let audit = Arc::new(Audit::default());
        let (report, reports) = mpsc::channel(REPORTS_MAX);
        let mut tasks = JoinSet::new();
        let (ready, mut readies) = mpsc::channel::<()>(1);
        let mut shared = self.client()?;
        let total = self.flags.watchers + self.flags.services - 1;
        for number in 0..total {
            if number % WATCHERS_PER_CLIENT == 0 {
                shared = self.client()?;
            }
            let at = (number + 1).saturating_sub(self.flags.watchers);
            let (report, ready) = (report.clone(), ready.clone());
            let (audit, client) = (Arc::clone(&audit), shared.clone());
            tasks.spawn(async move {
                let mut ready = Some(ready);
                let mut changes =
                    client.service(service(at)).changes(v1::InstanceFilter::default());
                loop {
                    let message = match changes.next().await {
                        Ok(message) => message,
                        Err(error) => {
                            eprintln!("a watcher ended: {error}");
                            return;
                        }
                    };
                    let seen = Instant::now();
                    if message.snapshot() == v1::instance_watch_response::Snapshot::None {
                        audit.note(&message);
                        for number in probes(&message) {
                            report.send((number, seen)).await.ok();
                        }
                    }
                    // Dropping it says that the snapshot is there.
                    if !message.more {
                        ready = None;
                    }
                    let _still = &ready;
                }
            });
        }
        drop(ready);
        // Ends when all have dropped theirs.
        let all = tokio::time::timeout(PATIENCE, readies.recv()).await;
        ensure!(all.is_ok(), "not all watchers began");
        Ok(Watching { audit, reports: tokio::sync::Mutex::new(reports), _tasks: tasks })
    }

    /// Changes the probe again and again; how long each change took to each watcher.
    async fn change(
        &self,
        filled: &Filled,
        watching: &Watching,
    ) -> Result<(Histogram<u64>, usize)> {
        let mut spread = Histogram::new(3)?;
        let client = self.client()?;
        let mut reports = watching.reports.lock().await;
        for number in 1..=self.flags.changes {
            let sent = Instant::now();
            let address = format!("{PROBE}:{number}");
            register(&client, (MEASURED, PROBE), (filled.probe, &address)).await?;
            for _ in 0..self.flags.watchers {
                let report = tokio::time::timeout(PATIENCE, reports.recv()).await;
                let (seen_number, seen) =
                    report.context("a change did not arrive")?.context("the watchers ended")?;
                ensure!(seen_number == number, "change {seen_number} instead of {number}");
                let took = seen.duration_since(sent).as_micros();
                spread.record(u64::try_from(took).unwrap_or(u64::MAX))?;
            }
        }
        Ok((spread, self.flags.changes))
    }

    /// How many instances live, by the registry.
    async fn live(&self, client: &Client) -> Result<(usize, usize)> {
        let services = client.services("drill/").await?;
        let sum = |count: fn(&v1::ServiceSummary) -> u64| services.iter().map(count).sum::<u64>();
        let (live, stale) = (sum(|service| service.live), sum(|service| service.stale));
        Ok((usize::try_from(live)?, usize::try_from(stale)?))
    }

    async fn until_live(&self, wanted: usize, begun: Instant) -> Result<Duration> {
        let client = self.client()?;
        loop {
            let (live, stale) = self.live(&client).await?;
            ensure!(live >= wanted, "{live} instances live, {wanted} are expected to");
            if (live, stale) == (wanted, 0) {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < PATIENCE, "{live} of {wanted} instances live, {stale} stale");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn hold(&self, wanted: usize, time: Duration) -> Result<()> {
        let client = self.client()?;
        let until = Instant::now() + time;
        while Instant::now() < until {
            let (live, _) = self.live(&client).await?;
            if live != wanted {
                bail!("{live} instances live instead of {wanted}");
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// Numbers of the changes of the probe in a message.
fn probes(message: &v1::InstanceWatchResponse) -> impl Iterator<Item = usize> {
    message.changes.iter().filter_map(|change| {
        let instance = change.instance.as_ref().filter(|instance| instance.id == PROBE)?;
        instance.address.strip_prefix(PROBE)?.strip_prefix(':')?.parse().ok()
    })
}

async fn begin(client: &Client, count: usize, ttl: u64) -> Result<Vec<Session>> {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut begins = JoinSet::new();
    for _ in 0..count {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let begin = client.session().ttl(Duration::from_secs(ttl));
        begins.spawn(async move {
            let session = begin.await;
            drop(slot);
            session
        });
    }
    let mut sessions = Vec::with_capacity(count);
    while let Some(session) = begins.join_next().await {
        sessions.push(session??);
    }
    Ok(sessions)
}

async fn register(
    client: &Client,
    (at, id): (usize, &str),
    (session, address): (i64, &str),
) -> Result<()> {
    let request = v1::RegisterRequest {
        service: service(at),
        id: id.to_owned(),
        session,
        record: record(id, address).into(),
        ..Default::default()
    };
    RegistryServiceClient::new(client.channel()).register(request).await?;
    Ok(())
}
