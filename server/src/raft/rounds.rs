//! Admits batches into the leader's log in rounds.
//!
//! Batches come from every member at any time. Appended one by one, each would cost its own append
//! to every follower, its own sync on every member and its own commit. Instead, what arrives while
//! a round is in flight enters together when that round is applied, and raft makes one append of
//! it. Nothing is delayed on purpose: with no round in flight a batch enters at once.
//!
//! A batch may be patient: nobody gains if it enters at once. A waiter that queues for a lock
//! behind others is not served any sooner, but a round of its own would use resources that the next
//! hand-over needs. A patient batch enters with the next prompt one, at the latest after
//! [`PATIENCE`].
//!
//! A batch that is closed long before its round begins makes its callers wait a round longer than
//! necessary, and makes rounds smaller. So members close a batch as late as they can: the leader
//! when a round begins ([`Rounds::open`]), a follower when it acknowledges one
//! ([`Rounds::acknowledged`]), because the leader is then about to commit it and to begin the next.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::route::Offer;
use crate::propose::Haste;

/// Batches that may wait for a round; further senders wait for space.
const WAITING_MAX: usize = 256;
/// How long a patient batch waits for a prompt one.
const PATIENCE: Duration = Duration::from_millis(2);

/// The gate before the leader's log.
#[derive(Debug)]
pub(crate) struct Rounds {
    waiting: mpsc::Sender<Waiting>,
    /// Whether a round is in flight.
    in_flight: watch::Receiver<bool>,
    acknowledged: Notify,
}

/// A batch that waits for its round or is in it. `outcome` is closed if the sender gave up.
#[derive(Debug)]
struct Waiting {
    batch: Bytes,
    haste: Haste,
    outcome: oneshot::Sender<Offer>,
}

/// Admits the waiting batches; runs until all [`Rounds`] are dropped.
#[derive(Debug)]
pub(crate) struct Gate {
    waiting: mpsc::Receiver<Waiting>,
    in_flight: watch::Sender<bool>,
    /// How long a patient batch waits for a prompt one.
    patience: Duration,
}

/// Creates both sides of the gate. Batches enter once [`Gate::run`] runs.
pub(crate) fn rounds() -> (Rounds, Gate) {
    let (sender, waiting) = mpsc::channel(WAITING_MAX);
    let (in_flight_sender, in_flight) = watch::channel(false);
    let rounds = Rounds { waiting: sender, in_flight, acknowledged: Notify::new() };
    (rounds, Gate { waiting, in_flight: in_flight_sender, patience: PATIENCE })
}

impl Rounds {
    /// Puts a batch into the next round; returns when it is applied or refused. If the call is
    /// dropped before that round begins, the batch certainly does not enter.
    pub(crate) async fn enter(&self, batch: Bytes, haste: Haste) -> Offer {
        let (outcome, settled) = oneshot::channel();
        if self.waiting.send(Waiting { batch, haste, outcome }).await.is_err() {
            return Offer::Stopped;
        }
        settled.await.unwrap_or(Offer::Unknown)
    }

    /// Returns when a batch that enters now need not wait for a round. Cancel-safe.
    pub(crate) async fn open(&self) {
        // Fails only when this member stops.
        self.in_flight.clone().wait_for(|is_in_flight| !is_in_flight).await.ok();
    }

    /// Notes that this member has acknowledged entries to the leader.
    pub(crate) fn acknowledge(&self) {
        self.acknowledged.notify_waiters();
    }

    /// Returns at the next [`Rounds::acknowledge`]. Cancel-safe.
    pub(crate) async fn acknowledged(&self) {
        self.acknowledged.notified().await;
    }
}

impl Gate {
    /// Admits batches, each through `propose`, which must hand its batch to raft when it is first
    /// polled.
    pub(crate) async fn run<F>(mut self, propose: impl Fn(Bytes) -> F)
    where
        F: Future<Output = Offer>,
    {
        let mut round = Vec::new();
        while self.waiting.recv_many(&mut round, WAITING_MAX).await > 0 {
            if is_patient(&round) {
                // After the timeout the round begins anyway.
                tokio::time::timeout(self.patience, self.hurried(&mut round)).await.ok();
            }
            // Other tasks that are ready may add batches: this member's own, and those of other
            // members.
            tokio::task::yield_now().await;
            while let Ok(waiting) = self.waiting.try_recv() {
                round.push(waiting);
            }
            self.in_flight.send_replace(true);
            join_all(round.drain(..).map(|waiting| waiting.settle(&propose))).await;
            self.in_flight.send_replace(false);
        }
    }

    /// Returns when a prompt batch has come, or none can come any more. Cancel-safe.
    async fn hurried(&mut self, round: &mut Vec<Waiting>) {
        while is_patient(round) && self.waiting.recv_many(round, WAITING_MAX).await > 0 {}
    }
}

/// Whether the round has only patient batches and still has space.
fn is_patient(round: &[Waiting]) -> bool {
    round.len() < WAITING_MAX && round.iter().all(|waiting| waiting.haste == Haste::Patient)
}

impl Waiting {
    /// Proposes the batch; also ends when nobody waits for the outcome any more.
    async fn settle<F: Future<Output = Offer>>(self, propose: &impl Fn(Bytes) -> F) {
        let Self { batch, mut outcome, .. } = self;
        if outcome.is_closed() {
            return;
        }
        tokio::select! {
            biased;
            // A sender that has just given up does not need the outcome.
            offer = propose(batch) => drop(outcome.send(offer)),
            () = outcome.closed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use futures::FutureExt as _;
    use parking_lot::Mutex;

    use super::*;

    /// A log that records what entered and applies it on request.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<Entered>>>);

    type Entered = (Bytes, oneshot::Sender<Offer>);

    impl Log {
        fn gate(&self) -> (Rounds, tokio::task::JoinHandle<()>) {
            self.patient_gate(PATIENCE)
        }

        fn patient_gate(&self, patience: Duration) -> (Rounds, tokio::task::JoinHandle<()>) {
            let (rounds, mut gate) = rounds();
            gate.patience = patience;
            let log = self.clone();
            let propose = move |batch| {
                let (applied, is_applied) = oneshot::channel();
                let log = log.clone();
                async move {
                    log.0.lock().push((batch, applied));
                    is_applied.await.unwrap_or(Offer::Unknown)
                }
            };
            (rounds, tokio::spawn(gate.run(propose)))
        }

        /// Applies all that entered and returns it.
        fn apply(&self) -> Vec<Bytes> {
            let entered = std::mem::take(&mut *self.0.lock());
            let applied = entered.into_iter().map(|(batch, applied)| {
                applied.send(Offer::Taken).ok();
                batch
            });
            applied.collect()
        }
    }

    /// Lets every ready task run.
    async fn settle() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    fn batch(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    #[tokio::test]
    async fn what_arrives_during_a_round_enters_together_after_it() {
        let log = Log::default();
        let (rounds, _gate) = log.gate();
        let mut first = pin!(rounds.enter(batch("a"), Haste::Prompt));
        assert!(first.as_mut().now_or_never().is_none());
        settle().await;
        let mut second = pin!(rounds.enter(batch("b"), Haste::Prompt));
        let mut third = pin!(rounds.enter(batch("c"), Haste::Prompt));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        settle().await;
        assert!(rounds.open().now_or_never().is_none());
        assert_eq!(log.apply(), ["a"]);
        settle().await;
        assert_eq!(first.await, Offer::Taken);
        assert_eq!(log.apply(), ["b", "c"]);
        assert_eq!((second.await, third.await), (Offer::Taken, Offer::Taken));
        settle().await;
        assert!(rounds.open().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_batch_closed_when_the_round_opens_is_in_it() {
        let log = Log::default();
        let (rounds, _gate) = log.gate();
        let rounds = Arc::new(rounds);
        let forwarded = |name| {
            let rounds = rounds.clone();
            tokio::spawn(async move { rounds.enter(batch(name), Haste::Prompt).await })
        };
        let first = forwarded("a");
        settle().await;
        let other = forwarded("b");
        let own = tokio::spawn({
            let rounds = rounds.clone();
            async move {
                rounds.open().await;
                rounds.enter(batch("own"), Haste::Prompt).await
            }
        });
        settle().await;
        assert_eq!(log.apply(), ["a"]);
        settle().await;
        assert_eq!(log.apply(), ["b", "own"]);
        for entered in [first, other, own] {
            assert_eq!(entered.await.unwrap(), Offer::Taken);
        }
    }

    #[tokio::test]
    async fn who_gives_up_holds_up_nobody_and_does_not_enter() {
        let log = Log::default();
        let (rounds, _gate) = log.gate();
        {
            let mut given_up = pin!(rounds.enter(batch("a"), Haste::Prompt));
            assert!(given_up.as_mut().now_or_never().is_none());
            settle().await;
            let mut never_entered = pin!(rounds.enter(batch("b"), Haste::Prompt));
            assert!(never_entered.as_mut().now_or_never().is_none());
        }
        let mut next = pin!(rounds.enter(batch("c"), Haste::Prompt));
        assert!(next.as_mut().now_or_never().is_none());
        settle().await;
        assert_eq!(log.apply(), ["a", "c"]);
        assert_eq!(next.await, Offer::Taken);
    }

    #[tokio::test]
    async fn a_patient_batch_enters_with_the_next_that_is_not() {
        let log = Log::default();
        let (rounds, _gate) = log.patient_gate(Duration::from_secs(3600));
        let mut patient = pin!(rounds.enter(batch("a"), Haste::Patient));
        assert!(patient.as_mut().now_or_never().is_none());
        settle().await;
        assert!(log.apply().is_empty());
        assert!(rounds.open().now_or_never().is_some(), "who is prompt need not wait for it");
        let mut prompt = pin!(rounds.enter(batch("b"), Haste::Prompt));
        assert!(prompt.as_mut().now_or_never().is_none());
        settle().await;
        assert_eq!(log.apply(), ["a", "b"]);
        assert_eq!((patient.await, prompt.await), (Offer::Taken, Offer::Taken));
    }

    #[tokio::test]
    async fn a_patient_batch_enters_alone_if_nobody_comes() {
        let log = Log::default();
        let (rounds, _gate) = log.patient_gate(Duration::from_millis(1));
        let alone = pin!(rounds.enter(batch("a"), Haste::Patient));
        let applied = async {
            while log.0.lock().is_empty() {
                tokio::task::yield_now().await;
            }
            log.apply()
        };
        assert_eq!(tokio::join!(alone, applied), (Offer::Taken, vec![batch("a")]));
    }

    #[tokio::test]
    async fn without_a_gate_nothing_is_proposed() {
        let (rounds, gate) = rounds();
        drop(gate);
        assert_eq!(rounds.enter(batch("a"), Haste::Prompt).await, Offer::Stopped);
        rounds.open().await;
    }

    #[tokio::test]
    async fn an_acknowledgement_counts_only_for_who_waits() {
        let (rounds, _gate) = rounds();
        rounds.acknowledge();
        let mut next = pin!(rounds.acknowledged());
        assert!(next.as_mut().now_or_never().is_none());
        rounds.acknowledge();
        assert!(next.as_mut().now_or_never().is_some());
    }
}
