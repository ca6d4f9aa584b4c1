//! From a command to a raft log entry and back to the answer.
//!
//! ```text
//! propose() ─► queue ─► batcher: everything that waits becomes one entry ─► raft here, or the leader's
//!    ▲                                                                          │ commit
//!    └───────────── waiters, by (proposer, sequence) ◄── apply on this member ◄─┘
//! ```
//!
//! The batcher clocks itself: only a few entries of this member are in flight, and what arrives
//! meanwhile shares the next one, so that batches grow with the load and an idle member never lingers.
//! A command that certainly did not enter a log is offered again; one whose fate is unknown never is.
//! `batcher` is that task; `waiters` knows who waits for which answer.

mod batcher;
mod waiters;

use std::sync::Arc;
use std::time::Duration;

use conclave_proto::internal;
use conclave_state_machine::response::Applied;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub(crate) use batcher::Batcher;
pub(crate) use waiters::Waiters;

/// Commands that wait for a batch.
const QUEUE_MAX: usize = 32 * 1024;
/// Bytes of commands between `propose` and their answer. Beyond: `too many requests`.
const IN_FLIGHT_BYTES_MAX: usize = 96 * 1024 * 1024;
/// What a command costs beside its own bytes.
const COMMAND_OVERHEAD_BYTES: usize = 256;
/// Beyond it a command never finds room, whatever larger size is configured.
const COMMAND_BYTES_MAX: usize = IN_FLIGHT_BYTES_MAX - COMMAND_OVERHEAD_BYTES;

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Too much is in flight; certainly not proposed.
    #[error("too many requests")]
    TooManyRequests,
    /// The command is larger than allowed; certainly not proposed.
    #[error("request is too large")]
    TooLarge,
    /// No answer in time: it may or may not take effect.
    #[error("request timed out")]
    Timeout,
    /// No answer in time, and the leader changed meanwhile: it may or may not take effect.
    #[error("request timed out, possibly due to previous leader failure")]
    LeaderLost,
    /// This member is stopping: it may or may not take effect.
    #[error("server stopped")]
    Stopped,
}

/// How soon a command has to be in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// At once: somebody waits for it.
    Prompt,
    /// With the next that is prompt, or a few milliseconds later without: nobody's turn depends on it.
    Patient,
}

/// With at least this many waiters ahead, a newcomer is not needed for the next hand-over and can wait for company.
const CROWD_MIN: usize = 2;

impl Haste {
    /// Of whoever enters a queue where so many wait for their turn.
    pub(crate) fn behind(waiting: usize) -> Self {
        if waiting < CROWD_MIN { Self::Prompt } else { Self::Patient }
    }
}

/// One command on its way into a batch.
pub(crate) struct Waiting {
    command: internal::Command,
    bytes: usize,
    room: OwnedSemaphorePermit,
    answer: Answer,
}

pub(crate) type Answer = oneshot::Sender<Result<Applied, ProposeError>>;

/// Accepts commands; clones are cheap.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Waiting>,
    patient: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    command_bytes_max: usize,
    timeout: Duration,
}

impl Proposer {
    /// Returns the accepting end and what the [`Batcher`]s drain, that of prompt commands first.
    pub(crate) fn new(
        command_bytes_max: usize,
        timeout: Duration,
    ) -> (Self, [(Haste, mpsc::Receiver<Waiting>); 2]) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let (patient, waiting_patiently) = mpsc::channel(QUEUE_MAX);
        let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX));
        let command_bytes_max = command_bytes_max.min(COMMAND_BYTES_MAX);
        let queues = [(Haste::Prompt, waiting), (Haste::Patient, waiting_patiently)];
        (Self { queue, patient, room, command_bytes_max, timeout }, queues)
    }

    /// Proposes a command and returns its answer once it is applied on this member.
    ///
    /// Not cancel-safe in the strict sense: a dropped call may take effect.
    ///
    /// # Errors
    /// [`ProposeError`]; its variants say whether the command may have taken effect.
    pub(crate) async fn propose(
        &self,
        command: internal::Command,
        haste: Haste,
    ) -> Result<Applied, ProposeError> {
        let bytes = command.encoded_len();
        if bytes > self.command_bytes_max {
            return Err(ProposeError::TooLarge);
        }
        let room = self.reserve(bytes).ok_or(ProposeError::TooManyRequests)?;
        let (answer, answered) = oneshot::channel();
        let queue = match haste {
            Haste::Prompt => &self.queue,
            Haste::Patient => &self.patient,
        };
        queue.try_send(Waiting { command, bytes, room, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        match tokio::time::timeout(self.timeout, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_dropped)) => Err(ProposeError::Stopped),
            Err(_elapsed) => Err(ProposeError::Timeout),
        }
    }

    /// Room for the bytes of a command or of a forwarded batch, `None` if too much is in flight.
    pub(crate) fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes.saturating_add(COMMAND_OVERHEAD_BYTES)).ok()?;
        self.room.clone().try_acquire_many_owned(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_is_in_flight_than_the_bound() {
        // Nobody drains the queue.
        let (proposer, _waiting) = Proposer::new(1 << 20, Duration::from_secs(60));
        let large = IN_FLIGHT_BYTES_MAX / 4;
        let rooms: Vec<_> = std::iter::from_fn(|| proposer.reserve(large)).take(9).collect();
        assert_eq!(rooms.len(), 3, "each costs a little beside its bytes");
        let rest: Vec<_> = std::iter::from_fn(|| proposer.reserve(large / 2)).take(9).collect();
        assert_eq!(rest.len(), 1);
        assert!(proposer.reserve(usize::MAX).is_none());
        let refused = {
            let _small: Vec<_> = std::iter::from_fn(|| proposer.reserve(0)).collect();
            proposer.propose(internal::Command::default(), Haste::Prompt).await
        };
        assert_eq!(refused.unwrap_err(), ProposeError::TooManyRequests);
        drop((rooms, rest));
        assert!(proposer.reserve(large).is_some(), "what is answered gives room");
        let whole = internal::Command {
            caller: Some(internal::Caller {
                user: "u".repeat(2 << 20).into(),
                ..Default::default()
            }),
            command: None,
        };
        assert_eq!(
            proposer.propose(whole, Haste::Patient).await.unwrap_err(),
            ProposeError::TooLarge
        );
    }

    #[tokio::test]
    async fn what_never_finds_room_is_too_large_and_not_too_much_at_once() {
        let (proposer, _waiting) = Proposer::new(usize::MAX, Duration::from_millis(1));
        let of = |bytes: usize| internal::Command {
            caller: Some(internal::Caller { user: "u".repeat(bytes).into(), ..Default::default() }),
            command: None,
        };
        let refused = proposer.propose(of(IN_FLIGHT_BYTES_MAX), Haste::Prompt).await;
        assert_eq!(refused.unwrap_err(), ProposeError::TooLarge);
        let taken = proposer.propose(of(IN_FLIGHT_BYTES_MAX - 1024), Haste::Prompt).await;
        assert_eq!(taken.unwrap_err(), ProposeError::Timeout, "nobody drains the queue");
    }
}
