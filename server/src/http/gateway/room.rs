//! How much JSON is received, of one caller and of all together. Calls without a user have room of their own, so that
//! they cannot take that of others.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::route::Hearing;
use crate::config::Limits;

/// JSON is larger than the message in it: bytes grow by a third, and names are written out.
const JSON_PER_MESSAGE: usize = 3;
/// Whatever larger messages gRPC may take.
const JSON_BYTES_MAX: usize = 1 << 30;
/// As many of the largest bodies are received at a time; of others more. Beyond, callers are refused.
const FULL_BODIES_MAX: usize = 8;
/// Bytes of a message that needs no user, such as a login, or whose caller is refused.
const LITTLE_BYTES_MAX: usize = 64 * 1024;
/// As [`FULL_BODIES_MAX`], of these.
const LITTLE_BODIES_MAX: usize = 256;
/// How long a message may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Room for messages of one kind of caller.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// Of one message in JSON.
    pub(super) bytes_max: usize,
    /// What a caller is told that the largest message is: that of gRPC.
    pub(super) message_bytes_max: usize,
    /// How long one may take from its first byte on.
    pub(super) patience: Duration,
    /// One for each byte of all messages together that may be received yet.
    pub(super) permits: Arc<Semaphore>,
}

impl Room {
    fn new(bytes_max: usize, message_bytes_max: usize, messages_max: usize) -> Self {
        let permits = bytes_max.saturating_mul(messages_max).min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(permits));
        Self { bytes_max, message_bytes_max, patience: PATIENCE, permits }
    }

    /// Takes room for this many more bytes beside what is held; `false` if there is none.
    pub(super) fn take(&self, bytes: usize, held: &mut Option<OwnedSemaphorePermit>) -> bool {
        let permits = Arc::clone(&self.permits);
        let more = u32::try_from(bytes).ok().and_then(|n| permits.try_acquire_many_owned(n).ok());
        match (more, held) {
            (None, _) => return false,
            (Some(more), Some(held)) => held.merge(more),
            (Some(more), held) => *held = Some(more),
        }
        true
    }
}

/// Room for messages of all callers.
#[derive(Debug)]
pub(in crate::http) struct Rooms {
    whole: Room,
    little: Room,
}

impl Rooms {
    /// For messages of these sizes.
    pub(in crate::http) fn new(limits: &Limits) -> Self {
        let message_bytes_max = limits.receive_bytes_max();
        let bytes_max = message_bytes_max.saturating_mul(JSON_PER_MESSAGE).min(JSON_BYTES_MAX);
        Self {
            whole: Room::new(bytes_max, message_bytes_max, FULL_BODIES_MAX),
            little: Room::new(LITTLE_BYTES_MAX, LITTLE_BYTES_MAX, LITTLE_BODIES_MAX),
        }
    }

    /// For what is received of a caller.
    pub(super) fn of(&self, hearing: Hearing) -> &Room {
        match hearing {
            Hearing::Whole => &self.whole,
            Hearing::Little | Hearing::Nothing => &self.little,
        }
    }
}
