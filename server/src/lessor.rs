//! Leases in time: who renews them, and when they end.
//!
//! Every member tracks every lease (`Leases`, fed by apply); only the leader's deadlines count. A
//! member that becomes leader restarts all of them with their full TTL and an election timeout on top,
//! so that a keep-alive which the old leader acknowledged up to then is honoured. What expires becomes
//! a command that carries the term in which it was decided and is void in any other.

use std::sync::Arc;
use std::time::Duration;

use conclave_proto::internal;
use conclave_raft_store::command::auth::inside;
use conclave_raft_store::reader::Reader;
use conclave_state_machine::expiry::{ExpiryQueue, Renewal};
use conclave_state_machine::leases;
use conclave_state_machine::read::Read;
use conclave_state_machine::response::{Halt, LeaseChange};
use openraft::ServerState;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::config::RegistrySettings;
use crate::coordination::unix_ms;
use crate::propose::Proposer;
use crate::raft::link::Link;
use crate::raft::route::{Leader, Route};

/// Leases that one command ends.
const EXPIRE_BATCH: usize = 1000;
/// Commands that end leases in flight.
const EXPIRE_IN_FLIGHT_MAX: usize = 16;
/// After this an expired lease whose end was not applied is ended again.
const EXPIRE_RETRY: Duration = Duration::from_secs(10);
/// Longest pause of the leader between two looks at the deadlines.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(100);
/// Streams of this member's clients that wait for a forwarded call, and leases after which one is full.
const RENEWALS_MAX: usize = 64 * 1024;
const RENEWALS_PER_CALL: usize = 4096;
/// Pause before the leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// All leases with their deadlines on this member's clock.
pub(crate) struct Leases {
    queue: Mutex<ExpiryQueue>,
    /// Time is measured from here, on the monotonic clock.
    epoch: Instant,
    renewed: Counter,
}

impl Leases {
    /// `renewed` counts keep-alives.
    pub(crate) fn new(renewed: Counter) -> Self {
        Self { queue: Mutex::default(), epoch: Instant::now(), renewed }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Follows what was applied.
    pub(crate) fn apply(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let now = self.now();
        let mut queue = self.queue.lock();
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl } => queue.grant(id, seconds(ttl), now),
                LeaseChange::Ended { id } => {
                    queue.remove(id);
                }
            }
        }
    }

    /// Starts over from the stored leases: at the start, and when a snapshot replaced the state.
    ///
    /// # Errors
    /// [`Halt`] if they cannot be read.
    pub(crate) fn load(&self, rows: &impl Read) -> Result<(), Halt> {
        let stored = leases::all(rows)?;
        let now = self.now();
        let mut queue = self.queue.lock();
        queue.clear();
        for (id, ttl) in stored {
            queue.grant(id, seconds(ttl), now);
        }
        Ok(())
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

/// Why a question about leases has no answer. Asking again is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LessorError {
    /// Too many keep-alives wait.
    #[error("too many requests")]
    TooManyRequests,
    /// No leader answered in time.
    #[error("request timed out")]
    Timeout,
    /// This member is stopping.
    #[error("server stopped")]
    Stopped,
}

/// Leases of one stream that wait for a forwarded call, and where their TTLs go.
struct Waiter {
    ids: Vec<i64>,
    ttls: oneshot::Sender<Vec<i64>>,
}

/// Renews and shows leases on every member; clones are cheap.
#[derive(Clone)]
pub struct Lessor {
    inner: Arc<Inner>,
}

struct Inner {
    leases: Arc<Leases>,
    route: Route,
    reader: Reader,
    proposer: Proposer,
    /// The term in which this member leads and its deadlines count.
    active: watch::Sender<Option<u64>>,
    renewals: mpsc::Sender<Waiter>,
    election_timeout: Duration,
    timeout: Duration,
    registry: RegistrySettings,
}

/// What a [`Lessor`] is made of.
pub(crate) struct LessorParts {
    pub(crate) leases: Arc<Leases>,
    pub(crate) route: Route,
    pub(crate) reader: Reader,
    pub(crate) proposer: Proposer,
    pub(crate) election_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) registry: RegistrySettings,
}

impl Lessor {
    /// Creates it and starts its tasks.
    pub(crate) fn start(parts: LessorParts, tasks: &TaskTracker) -> Self {
        let (renewals, waiting) = mpsc::channel(RENEWALS_MAX);
        let LessorParts { leases, route, reader, proposer, election_timeout, timeout, registry } =
            parts;
        let active = watch::Sender::new(None);
        let inner = Inner {
            leases,
            route,
            reader,
            proposer,
            active,
            renewals,
            election_timeout,
            timeout,
            registry,
        };
        let lessor = Self { inner: Arc::new(inner) };
        tasks.spawn(lessor.clone().forward_renewals(waiting));
        tasks.spawn(lessor.clone().lead(tasks.clone()));
        lessor
    }

    /// Keeps leases alive, all in one call: the full TTL of each in seconds, 0 for those that are
    /// unknown or have expired.
    ///
    /// # Errors
    /// [`LessorError`].
    pub async fn renew_all(&self, ids: &[i64]) -> Result<Vec<i64>, LessorError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.until_answered(async {
            loop {
                let ttls = match self.inner.route.leader() {
                    Leader::Me => self.renew_here(ids, 0).await,
                    Leader::Other(..) => self.renew_there(ids).await?,
                    Leader::Nobody => None,
                };
                if let Some(ttls) = ttls {
                    return Ok(ttls);
                }
                self.inner.route.wait_for_change(RETRY_PAUSE).await;
            }
        })
        .await
    }

    /// Milliseconds that each lease has left, -1 for unknown ones.
    ///
    /// # Errors
    /// [`LessorError`].
    pub async fn remaining_ms(&self, ids: &[i64]) -> Result<Vec<i64>, LessorError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.until_answered(self.ask_remaining(ids.to_vec())).await?;
        Ok(found.into_iter().map(|(_, ms)| ms).collect())
    }

    /// The time a lease has left, `None` if there is no such lease.
    ///
    /// # Errors
    /// [`LessorError`].
    pub async fn remaining(&self, id: i64) -> Result<Option<Duration>, LessorError> {
        let found = self.until_answered(self.ask_remaining(vec![id])).await?;
        let remaining = found.first().map_or(-1, |(_, ms)| *ms);
        Ok(u64::try_from(remaining).ok().map(Duration::from_millis))
    }

    /// All leases with the time they have left, the shortest first.
    ///
    /// # Errors
    /// [`LessorError`].
    pub async fn leases(&self) -> Result<Vec<(i64, Duration)>, LessorError> {
        let found = self.until_answered(self.ask_remaining(Vec::new())).await?;
        let found = found.into_iter();
        Ok(found
            .map(|(id, ms)| (id, Duration::from_millis(u64::try_from(ms).unwrap_or(0))))
            .collect())
    }

    async fn until_answered<T>(
        &self,
        answer: impl Future<Output = Result<T, LessorError>>,
    ) -> Result<T, LessorError> {
        let answered = tokio::time::timeout(self.inner.timeout, answer).await;
        answered.unwrap_or(Err(LessorError::Timeout))
    }

    async fn ask_remaining(&self, ids: Vec<i64>) -> Result<Vec<(i64, i64)>, LessorError> {
        loop {
            match self.inner.route.leader() {
                Leader::Me => {
                    if let Some(found) = self.remaining_here(&ids, 0).await {
                        return Ok(found);
                    }
                }
                Leader::Other(leader, link) => {
                    if let Some(found) = self.remaining_there(leader, &link, ids.clone()).await {
                        return Ok(found);
                    }
                }
                Leader::Nobody => {}
            }
            self.inner.route.wait_for_change(RETRY_PAUSE).await;
        }
    }

    async fn remaining_there(
        &self,
        leader: u64,
        link: &Link,
        ids: Vec<i64>,
    ) -> Option<Vec<(i64, i64)>> {
        let sender = Some(self.inner.route.links.sender(leader));
        let applied_index = self.applied_index();
        let request = internal::LeaseRemainingRequest { sender, ids, applied_index };
        let mut client = link.client().ok()?;
        let call = Box::pin(client.lease_remaining(request));
        let answer = self.inner.route.ask(leader, link, call).await?;
        let found = answer.ids.into_iter().zip(answer.remaining_ms);
        answer.is_leader.then(|| found.collect())
    }

    async fn renew_there(&self, ids: &[i64]) -> Result<Option<Vec<i64>>, LessorError> {
        let (answer, ttls) = oneshot::channel();
        let waiter = Waiter { ids: ids.to_vec(), ttls: answer };
        self.inner.renewals.try_send(waiter).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LessorError::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => LessorError::Stopped,
        })?;
        Ok(ttls.await.ok())
    }

    /// Forwards what waits, one call at a time: whatever comes meanwhile, from whichever stream, shares
    /// the next. A waiter that is dropped asks again.
    async fn forward_renewals(self, mut waiting: mpsc::Receiver<Waiter>) {
        while let Some(first) = waiting.recv().await {
            let mut ids = first.ids.clone();
            let mut waiters = vec![first];
            while ids.len() < RENEWALS_PER_CALL
                && let Ok(next) = waiting.try_recv()
            {
                ids.extend(&next.ids);
                waiters.push(next);
            }
            let Some(ttls) = self.forward(ids).await else { continue };
            let mut ttls = ttls.into_iter();
            for Waiter { ids, ttls: answer } in waiters {
                answer.send(ttls.by_ref().take(ids.len()).collect()).ok();
            }
        }
    }

    /// Asks the leader, as long as it is that: the TTL of each lease.
    async fn forward(&self, ids: Vec<i64>) -> Option<Vec<i64>> {
        let Leader::Other(leader, link) = self.inner.route.leader() else { return None };
        let wanted = ids.len();
        let sender = Some(self.inner.route.links.sender(leader));
        let applied_index = self.applied_index();
        let request = internal::LeaseRenewRequest { sender, ids, applied_index };
        let mut client = link.client().ok()?;
        let answer = self.inner.route.ask(leader, &link, client.lease_renew(request)).await?;
        (answer.ttls.len() == wanted).then_some(answer.ttls)
    }

    fn applied_index(&self) -> u64 {
        self.inner.reader.applied().map_or(0, |id| id.index)
    }

    /// Renews leases if this member leads: the TTL of each in seconds, 0 for unknown or expired.
    /// `None` if it does not lead. Waits until `applied_index` is applied, so that a lease which the
    /// asking member has seen is not unknown here.
    pub(crate) async fn renew_here(&self, ids: &[i64], applied_index: u64) -> Option<Vec<i64>> {
        self.until_active(applied_index).await?;
        let mut renewals = self.renew_now(ids);
        if renewals.contains(&Renewal::Unknown) {
            // It may have been granted through a member that applied the grant before this one.
            let committed = self.inner.route.read_index_here().await?;
            self.inner.reader.wait_applied(committed).await;
            renewals = self.renew_now(ids);
        }
        // The answer is an acknowledgement: another leader may not have ended the lease meanwhile.
        self.confirm_leadership().await?;
        let ttl = |renewal| match renewal {
            Renewal::Renewed { ttl } => i64::try_from(Duration::as_secs(&ttl)).unwrap_or(i64::MAX),
            Renewal::Ending | Renewal::Unknown => 0,
        };
        let ttls: Vec<i64> = renewals.into_iter().map(ttl).collect();
        self.inner.leases.renewed.inc_by(ttls.iter().filter(|ttl| **ttl > 0).count() as u64);
        Some(ttls)
    }

    fn renew_now(&self, ids: &[i64]) -> Vec<Renewal> {
        let now = self.inner.leases.now();
        let mut queue = self.inner.leases.queue.lock();
        ids.iter().map(|id| queue.renew(*id, now)).collect()
    }

    /// Milliseconds left of each lease (of all, if `ids` is empty), -1 for unknown, if this member
    /// leads.
    pub(crate) async fn remaining_here(
        &self,
        ids: &[i64],
        applied_index: u64,
    ) -> Option<Vec<(i64, i64)>> {
        self.until_active(applied_index).await?;
        let committed = self.inner.route.read_index_here().await?;
        self.inner.reader.wait_applied(committed).await;
        let ms = |left: Duration| i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
        let now = self.inner.leases.now();
        let queue = self.inner.leases.queue.lock();
        Some(if ids.is_empty() {
            queue.by_remaining(now).into_iter().map(|(id, left)| (id, ms(left))).collect()
        } else {
            ids.iter().map(|id| (*id, queue.remaining(*id, now).map_or(-1, ms))).collect()
        })
    }

    /// Waits until this member's deadlines count, `None` if it does not lead.
    async fn until_active(&self, applied_index: u64) -> Option<()> {
        if !matches!(self.inner.route.leader(), Leader::Me) {
            return None;
        }
        let mut active = self.inner.active.subscribe();
        let is_active = active.wait_for(Option::is_some);
        let is_active = tokio::time::timeout(self.inner.election_timeout, is_active).await;
        is_active.ok()?.ok()?;
        self.inner.reader.wait_applied(applied_index).await;
        Some(())
    }

    /// A leader that a quorum has heard within an election timeout may acknowledge: a new leader
    /// adds that timeout to every lease.
    async fn confirm_leadership(&self) -> Option<()> {
        let acknowledged = {
            let metrics = self.inner.route.raft.metrics();
            metrics.borrow_watched().last_quorum_acked
        };
        match acknowledged {
            Some(at) if at.elapsed() < self.inner.election_timeout => Some(()),
            _ => self.inner.route.read_index_here().await.map(drop),
        }
    }

    /// Follows raft: becomes active when this member leads, and ends what expires meanwhile.
    async fn lead(self, tasks: TaskTracker) {
        let mut metrics = self.inner.route.raft.server_metrics();
        loop {
            let (state, term) = {
                let metrics = metrics.borrow_and_update();
                (metrics.state, metrics.vote.leader_id.term)
            };
            if state == ServerState::Leader {
                tokio::select! {
                    () = self.expire_while_leading(term, &tasks) => {}
                    changed = metrics.changed() => if changed.is_err() { return },
                }
            } else {
                self.inner.active.send_replace(None);
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    async fn expire_while_leading(&self, term: u64, tasks: &TaskTracker) {
        if *self.inner.active.borrow() != Some(term) {
            // Everything earlier leaders granted must be known before anything is called unknown.
            loop {
                if let Some(index) = self.inner.route.read_index_here().await {
                    self.inner.reader.wait_applied(index).await;
                    break;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            let leases = &self.inner.leases;
            leases.queue.lock().restart(leases.now(), self.inner.election_timeout);
            self.inner.active.send_replace(Some(term));
        }
        let slots = Arc::new(Semaphore::new(EXPIRE_IN_FLIGHT_MAX));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let ids = {
                let now = self.inner.leases.now();
                let mut queue = self.inner.leases.queue.lock();
                queue.take_expired(now, EXPIRE_BATCH, EXPIRE_RETRY)
            };
            if ids.is_empty() {
                drop(slot);
                tokio::time::sleep(self.until_next_deadline()).await;
                continue;
            }
            let expire = internal::LeaseExpire {
                term,
                ids,
                now_unix_ms: unix_ms(),
                guarded: self.inner.registry.is_guarded,
                damping: self.inner.registry.is_damping,
            };
            let expire = internal::command::Command::LeaseExpire(expire);
            let command = inside(expire);
            let proposer = self.inner.proposer.clone();
            tasks.spawn(async move {
                // Whatever is lost is handed out again.
                if let Err(error) = proposer.propose(command).await {
                    tracing::warn!(%error, "expired leases were not ended yet");
                }
                drop(slot);
            });
        }
    }

    fn until_next_deadline(&self) -> Duration {
        let leases = &self.inner.leases;
        let next = leases.queue.lock().next_deadline();
        let until = next.map_or(EXPIRE_INTERVAL, |at| at.saturating_sub(leases.now()));
        // At least a tick, so that deadlines that fall together are ended together.
        until.clamp(EXPIRE_INTERVAL / 10, EXPIRE_INTERVAL)
    }
}
