//! Commands of counters, latches, barriers and groups (`conclave.v1`).

use bytes::Bytes;

/// Makes a request recognisable when it comes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Once {
    /// Lease of whoever asks; 0: the request is not remembered.
    pub session: i64,
    /// Counts the requests of the session, from 1.
    pub sequence: u64,
    /// All requests of the session with a smaller number are answered or given up.
    pub settled: u64,
    /// An earlier request that this one takes back; 0 for none.
    pub undoes: u64,
}

/// Changes what is kept under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Primitive {
    /// Who asks, and for which time.
    pub once: Once,
    /// The name.
    pub name: Bytes,
    /// What to do.
    pub action: Action,
}

/// What is done to a counter, latch, barrier or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Adds to a counter.
    Add(i64),
    /// Replaces the number of a counter.
    Set {
        /// The new number.
        value: i64,
        /// What must hold.
        condition: Condition,
    },
    /// Begins a latch with a count.
    Create(i64),
    /// Counts a latch down.
    CountDown(i64),
    /// Puts the key of a barrier.
    Raise {
        /// Its value.
        note: Bytes,
        /// Whether it is attached to the session.
        is_bound: bool,
    },
    /// Deletes the key of a barrier: the one with this fence, or (0) the one that the request
    /// [`Once::undoes`] raised, or if that is 0, whichever there is.
    Lift(i64),
    /// Takes a place in a double barrier.
    Enter {
        /// Participants that there have to be.
        count: u32,
        /// Value of the participant's key.
        note: Bytes,
    },
    /// Gives up the place that the request [`Once::undoes`] has taken.
    Exit {
        /// Only if it is not in yet.
        is_only_waiting: bool,
    },
    /// Becomes a member of a group, or says something else as one.
    Join {
        /// Id of the member.
        member: Bytes,
        /// Value of its key.
        value: Bytes,
        /// The request that joined, if this one only says something else; 0: this one joins.
        of: u64,
    },
    /// Gives up the membership that the request [`Once::undoes`] began, which ends with the last one of the session;
    /// or, if that is 0, all of them.
    Part {
        /// Id of the member.
        member: Bytes,
    },
}

/// When a counter is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// If it is this number.
    Value(i64),
    /// If its last change was in this revision; 0: if it is not there.
    Revision(i64),
}
