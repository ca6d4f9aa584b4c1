//! Commands of counters, latches, barriers and groups (`conclave.v1`).

use bytes::Bytes;

/// Identifies a request when it is retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Once {
    /// Lease of the client's session; 0: the request is not remembered.
    pub session: i64,
    /// Counts the requests of the session, from 1.
    pub sequence: u64,
    /// All requests of the session with a smaller number are answered or abandoned, so that nothing
    /// needs to be remembered about them.
    pub settled: u64,
    /// An earlier request that this one undoes; 0 for none.
    pub undoes: u64,
}

/// Changes the counter, latch, barrier or group of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Primitive {
    /// Session and number of the request.
    pub once: Once,
    /// The name.
    pub name: Bytes,
    /// What to do.
    pub action: Action,
}

/// A change of a counter, latch, barrier or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Adds to a counter.
    Add(i64),
    /// Replaces the number of a counter.
    Set {
        /// The new number.
        value: i64,
        /// Condition for the change.
        condition: Condition,
    },
    /// Creates a latch with a count.
    Create(i64),
    /// Counts a latch down.
    CountDown(i64),
    /// Puts the key of a barrier.
    Raise {
        /// Its value.
        note: Bytes,
        /// Whether the key is attached to the session.
        is_bound: bool,
    },
    /// Deletes the key of a barrier: the one with this fence; with 0 the one that the request
    /// [`Once::undoes`] raised; if that is 0 too, any.
    Lift(i64),
    /// Enters a double barrier.
    Enter {
        /// Number of participants the barrier waits for.
        count: u32,
        /// Value of the participant's key.
        note: Bytes,
    },
    /// Undoes the entry that the request [`Once::undoes`] made.
    Exit {
        /// Only if the participant still waits for others.
        is_only_waiting: bool,
    },
    /// Joins a group, or changes the value of a member.
    Join {
        /// Id of the member.
        member: Bytes,
        /// Value of its key.
        value: Bytes,
        /// The request that joined, if this one only changes the value; 0: this one joins.
        of: u64,
    },
    /// Ends the membership that the request [`Once::undoes`] began; the member leaves when the
    /// session has no other left. If `undoes` is 0, ends all of them.
    Part {
        /// Id of the member.
        member: Bytes,
    },
}

/// Condition for setting a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// Only if the counter has this value.
    Value(i64),
    /// Only if its last change was at this revision; 0: only if it does not exist.
    Revision(i64),
}
