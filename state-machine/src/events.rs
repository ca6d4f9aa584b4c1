//! The events of one command, and how much of its outcome is worth memory.
//!
//! A command may delete more than memory holds. The state before each change is kept only for those who watch,
//! who can read it from the store as well, and what a transaction reads only for the one who waits for it. So
//! both are bounded by what whoever applies asks for; the rows never depend on it.

use crate::response::{Event, KeyValue};

/// What of the outcomes of some commands is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Somebody waits for the answers; otherwise those of puts, deletes and transactions come without keys.
    pub answers: bool,
    /// Bytes of keys and values that the states before changes may still take, all together.
    pub prev_bytes: usize,
}

impl Default for Wanted {
    /// All of it.
    fn default() -> Wanted {
        Wanted { answers: true, prev_bytes: usize::MAX }
    }
}

/// The events of one command while it is carried out.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) wanted: Wanted,
    pub(crate) list: Vec<Event>,
    /// Some events came without the state before them.
    pub(crate) lack_prev: bool,
    /// See [`Position::unix_ms`](crate::machine::Position::unix_ms).
    pub(crate) unix_ms: i64,
}

impl Events {
    pub(crate) fn new(wanted: Wanted, unix_ms: i64) -> Events {
        Events { wanted, unix_ms, ..Events::default() }
    }

    /// Keeps a state before a change, or leaves it out.
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

    /// Leaves out all states before changes from now on.
    pub(crate) fn leave_out(&mut self) {
        self.wanted.prev_bytes = 0;
        self.lack_prev = true;
    }

    /// Whether a state before a change may still be kept.
    pub(crate) fn has_room(&self) -> bool {
        self.wanted.prev_bytes > 0
    }
}
