//! Limits how much JSON is received, per message and over all messages. Calls that need no user
//! have a budget of their own, so that they cannot use up that of others.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::route::Hearing;
use crate::config::Limits;

/// JSON is larger than the message in it: Base64 adds a third, and field names are written out.
const JSON_PER_MESSAGE: usize = 3;
/// Largest JSON message, however large gRPC messages may be.
const JSON_BYTES_MAX: usize = 1 << 30;
/// Number of largest bodies that fit into the budget at a time (of smaller ones more). Beyond,
/// callers are refused.
const FULL_BODIES_MAX: usize = 8;
/// Size limit of a message that needs no user, such as a login, or whose caller is refused.
const LITTLE_BYTES_MAX: usize = 64 * 1024;
/// Like [`FULL_BODIES_MAX`], for these.
const LITTLE_BODIES_MAX: usize = 256;
/// How long a message may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Byte budget for messages of one kind of caller.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// Size limit of one message in JSON.
    pub(super) bytes_max: usize,
    /// Size limit named in errors: the limit for gRPC messages.
    pub(super) message_bytes_max: usize,
    /// How long a message may take from its first byte on.
    pub(super) patience: Duration,
    /// One permit per byte that may still be received, over all messages together.
    pub(super) permits: Arc<Semaphore>,
}

impl Room {
    fn new(bytes_max: usize, message_bytes_max: usize, messages_max: usize) -> Self {
        let permits = bytes_max.saturating_mul(messages_max).min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(permits));
        Self { bytes_max, message_bytes_max, patience: PATIENCE, permits }
    }

    /// Adds `bytes` permits to `held`; `false` if the budget is used up.
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

/// Budgets for the messages of all callers.
#[derive(Debug)]
pub(in crate::http) struct Rooms {
    whole: Room,
    little: Room,
}

impl Rooms {
    /// Budgets for the given size limits.
    pub(in crate::http) fn new(limits: &Limits) -> Self {
        let message_bytes_max = limits.receive_bytes_max();
        let bytes_max = message_bytes_max.saturating_mul(JSON_PER_MESSAGE).min(JSON_BYTES_MAX);
        Self {
            whole: Room::new(bytes_max, message_bytes_max, FULL_BODIES_MAX),
            little: Room::new(LITTLE_BYTES_MAX, LITTLE_BYTES_MAX, LITTLE_BODIES_MAX),
        }
    }

    /// The budget for messages of such a caller.
    pub(super) fn of(&self, hearing: Hearing) -> &Room {
        match hearing {
            Hearing::Whole => &self.whole,
            Hearing::Little | Hearing::Nothing => &self.little,
        }
    }
}
