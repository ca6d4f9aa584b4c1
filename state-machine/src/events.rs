//! Collects the events of one command, within a memory budget.
//!
//! A command may delete more than fits in memory. Previous key-values are kept only for watchers,
//! which can also read them from the store; results of a transaction's reads only for the client
//! that waits for them. So the caller of `apply` bounds both. The rows never depend on it.

use crate::response::{Event, KeyValue};

/// Which parts of the outcomes of some commands are needed.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Whether a client waits for the answers. If not, answers of puts, deletes and transactions
    /// come without key-values.
    pub answers: bool,
    /// Bytes of keys and values that all previous key-values together may still take.
    pub prev_bytes: usize,
}

impl Default for Wanted {
    /// Everything.
    fn default() -> Wanted {
        Wanted { answers: true, prev_bytes: usize::MAX }
    }
}

/// The events of one command while it is carried out.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) wanted: Wanted,
    pub(crate) list: Vec<Event>,
    /// Some events lack the previous key-value.
    pub(crate) lack_prev: bool,
    /// See [`Position::unix_ms`](crate::machine::Position::unix_ms).
    pub(crate) unix_ms: i64,
}

impl Events {
    pub(crate) fn new(wanted: Wanted, unix_ms: i64) -> Events {
        Events { wanted, unix_ms, ..Events::default() }
    }

    /// Takes `prev` out of the budget, or leaves it out if it does not fit.
    pub(crate) fn admit(&mut self, prev: KeyValue) -> Option<KeyValue> {
        let bytes = prev.key.len().saturating_add(prev.value.len());
        match self.wanted.prev_bytes.checked_sub(bytes) {
            Some(left) => {
                self.wanted.prev_bytes = left;
                Some(prev)
            }
            None => {
                self.leave_out();
                None
            }
        }
    }

    /// Leaves out all previous key-values from now on.
    pub(crate) fn leave_out(&mut self) {
        self.wanted.prev_bytes = 0;
        self.lack_prev = true;
    }

    /// Whether a previous key-value may still be kept.
    pub(crate) fn has_room(&self) -> bool {
        self.wanted.prev_bytes > 0
    }
}
