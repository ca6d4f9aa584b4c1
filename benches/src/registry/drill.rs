//! The steps of the drill: the registry is filled, watched and changed, and sessions die.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use conclave_client::{Client, Session};
use conclave_proto::v1;
use hdrhistogram::Histogram;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use v1::registry_service_client::RegistryServiceClient;

use super::Registry;
use super::audit::{Audit, DOOMED, Witness};

/// Most calls in flight while the registry is filled.
const IN_FLIGHT: usize = 512;
/// Watchers that share the connections of one client.
const WATCHERS_PER_CLIENT: usize = 20;
/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
/// Most reports of watchers that wait to be counted.
const REPORTS_MAX: usize = 100_000;
/// The service whose changes are measured, and its instance that changes.
const MEASURED: usize = 0;
const PROBE: &str = "probe";
/// One of this many sessions dies in each wave.
const WAVE_OF: usize = 10;

fn service(number: usize) -> String {
    format!("drill/s{number:04}")
}

fn record(id: &str, address: &str) -> Vec<u8> {
    let zone = if id.len().is_multiple_of(2) { "a" } else { "b" };
    let instance = format!(r#"{{"version":"1.4.0","zone":"{zone}"}}"#);
    format!(r#"{{"Op":0,"Addr":"{address}","Metadata":null,"Instance":{instance}}}"#).into_bytes()
}

/// The cluster and the options of the drill.
pub(super) struct Drill {
    pub(super) flags: Registry,
    pub(super) endpoints: Vec<String>,
}

/// What was registered.
pub(super) struct Filled {
    pub(super) sessions: Vec<Session>,
    /// Number of instances of all sessions, and (`doomed`) of the sessions that are going to die in
    /// each wave.
    pub(super) live: usize,
    pub(super) doomed: [usize; 2],
    pub(super) seconds: f64,
    /// The session that holds the instance that changes.
    probe: i64,
}

/// When only the live instances were left.
pub(super) struct Gone {
    /// When the cluster first answered after the wait began.
    pub(super) served: Instant,
    pub(super) at: Instant,
}

/// The running watchers.
pub(super) struct Watching {
    pub(super) audit: Arc<Audit>,
    reports: tokio::sync::Mutex<mpsc::Receiver<(usize, Instant)>>,
    _tasks: JoinSet<()>,
}

impl Drill {
    fn client(&self) -> Result<Client> {
        Ok(Client::builder(&self.endpoints).timeout(PATIENCE).build()?)
    }

    /// Begins all sessions and registers all instances. A share of the sessions runs on each of the
    /// two runtimes that are going to die.
    pub(super) async fn fill(&mut self, doomed: [tokio::runtime::Handle; 2]) -> Result<Filled> {
        let begun = Instant::now();
        let Registry { sessions, .. } = self.flags;
        let part = sessions / WAVE_OF;
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
                // Kept alive until the runtime ends; nobody ends them after that.
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
                    let mark = if is_doomed { DOOMED } else { 'i' };
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

    /// Starts the watchers of one service, and one auditing watcher for each other service.
    pub(super) async fn watch(&self) -> Result<Watching> {
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
                let mut witness = Witness::new(audit);
                let mut changes =
                    client.service(service(at)).changes(v1::InstanceFilter::default());
                // The delay of a change is measured, so changes must not be combined.
                changes = changes.window(Duration::ZERO);
                loop {
                    let message = match changes.next().await {
                        Ok(message) => message,
                        Err(error) => {
                            eprintln!("a watcher ended: {error}");
                            return;
                        }
                    };
                    let seen = Instant::now();
                    witness.note(&message);
                    if message.snapshot() == v1::instance_watch_response::Snapshot::None {
                        for number in probes(&message) {
                            report.send((number, seen)).await.ok();
                        }
                    }
                    // Dropping it signals that the snapshot is complete.
                    if !message.more {
                        ready = None;
                    }
                    let _still = &ready;
                }
            });
        }
        drop(ready);
        // Ends when all watchers have dropped theirs.
        let all = tokio::time::timeout(PATIENCE, readies.recv()).await;
        ensure!(all.is_ok(), "not all watchers began");
        Ok(Watching { audit, reports: tokio::sync::Mutex::new(reports), _tasks: tasks })
    }

    /// Changes the probe repeatedly. Returns the delays of each change to each watcher.
    pub(super) async fn change(
        &self,
        filled: &Filled,
        watching: &Watching,
    ) -> Result<Histogram<u64>> {
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
        Ok(spread)
    }

    /// How many instances are live, and how many stale, according to the registry.
    async fn live(&self, client: &Client) -> Result<(usize, usize)> {
        let services = client.services("drill/").await?;
        let sum = |count: fn(&v1::ServiceSummary) -> u64| services.iter().map(count).sum::<u64>();
        let (live, stale) = (sum(|service| service.live), sum(|service| service.stale));
        Ok((usize::try_from(live)?, usize::try_from(stale)?))
    }

    /// Waits until exactly `wanted` instances are live and no lost ones are kept.
    pub(super) async fn until_live(&self, wanted: usize) -> Result<Gone> {
        let client = self.client()?;
        let begun = Instant::now();
        let mut served = None;
        loop {
            let (live, stale) = self.live(&client).await?;
            let served = *served.get_or_insert_with(Instant::now);
            ensure!(live >= wanted, "{live} instances live, {wanted} are expected to");
            if (live, stale) == (wanted, 0) {
                return Ok(Gone { served, at: Instant::now() });
            }
            ensure!(begun.elapsed() < PATIENCE, "{live} of {wanted} instances live, {stale} stale");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) async fn hold(&self, wanted: usize, time: Duration) -> Result<()> {
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

/// The numbers of the probe's changes in a message.
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
