//! Leases in time: who renews them, and when they end.
//!
//! Every member tracks every lease (`Leases`, fed by apply); only the leader's deadlines count. A
//! member that becomes leader restarts all of them with their full TTL and an election timeout on top,
//! so that a keep-alive which the old leader acknowledged up to then is honoured. What expires becomes
//! a command that carries the term in which it was decided and is void in any other.
//!
//! | module | what |
//! |---|---|
//! | `deadlines` | every lease with its end, fed by apply |
//! | `forward` | questions on their way to the leader |
//! | `expire` | the leader ends what is over |

mod deadlines;
mod expire;
mod forward;

use std::sync::Arc;
use std::time::Duration;

use conclave_raft_store::reader::Reader;
use conclave_state_machine::expiry::Renewal;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use self::forward::{RENEWALS_MAX, Waiter};
use crate::config::RegistrySettings;
use crate::propose::Proposer;
use crate::raft::route::{Leader, Route};

pub(crate) use deadlines::Leases;

/// Pause before the leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two looks at whether a lease has been ended that is about to be.
const ENDING_PAUSE: Duration = Duration::from_millis(10);
/// In place of a TTL: the lease is being ended, but its end may not be in the log yet, and under another
/// leader it may live on. Whoever wants to know asks again.
const ENDING: i64 = -1;

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
    /// unknown or have expired. One that is being ended is waited for: no other caller is kept waiting by it.
    ///
    /// # Errors
    /// [`LessorError`].
    pub async fn renew_all(&self, ids: &[i64]) -> Result<Vec<i64>, LessorError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.until_answered(async {
            let mut ttls = self.renew_anywhere(ids).await?;
            loop {
                let is_ending = |at: &usize| ttls[*at] == ENDING;
                let ending: Vec<usize> = (0..ids.len()).filter(is_ending).collect();
                if ending.is_empty() {
                    return Ok(ttls);
                }
                tokio::time::sleep(ENDING_PAUSE).await;
                let again: Vec<i64> = ending.iter().map(|at| ids[*at]).collect();
                for (at, ttl) in ending.into_iter().zip(self.renew_anywhere(&again).await?) {
                    ttls[at] = ttl;
                }
            }
        })
        .await
    }

    /// Asks whoever leads until there is an answer: the TTL of each in seconds, [`ENDING`] for those that are
    /// being ended.
    async fn renew_anywhere(&self, ids: &[i64]) -> Result<Vec<i64>, LessorError> {
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
    }

    /// Leases that there are, as far as this member has applied them.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inner.leases.queue.lock().len()
    }

    /// Whether a lease is one of them.
    #[must_use]
    pub fn knows(&self, id: i64) -> bool {
        self.inner.leases.queue.lock().ttl(id).is_some()
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

    /// Renews leases if this member leads: the TTL of each in seconds, 0 for unknown ones, [`ENDING`] for those
    /// that are being ended. `None` if it does not lead. Waits until `applied_index` is applied, so that a lease which the
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
            Renewal::Ending => ENDING,
            Renewal::Unknown => 0,
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
}
