//! Commands of sessions and locks (`conclave.v1`).

use bytes::Bytes;

use super::{Once, Txn};

/// Creates a lease that has an owner. A retry finds the same session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionBegin {
    /// Lease id, not 0.
    pub id: i64,
    /// Seconds.
    pub ttl: i64,
    /// Identifies retries of this request; not empty.
    pub request_id: Bytes,
    /// Name of the owner, for display.
    pub owner: String,
    /// More about the owner, for display.
    pub metadata: Vec<(String, String)>,
}

/// A change of the queue of a lock or election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockCommand {
    /// Takes an entry in one or more queues.
    Acquire(LockAcquire),
    /// Releases what a request has acquired, or would acquire later.
    Release(LockRelease),
    /// Changes how an entry holds the lock.
    Convert(LockConvert),
    /// Removes an entry, whoever owns it.
    Break(LockBreak),
    /// Becomes a candidate of an election.
    Campaign(Campaign),
    /// Withdraws a candidate.
    Leave(Leave),
    /// Makes the leader resign in favour of one candidate.
    HandOver(HandOver),
}

/// Takes an entry in the queue of each name, all in one revision or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockAcquire {
    /// Names, ascending, without duplicates.
    pub names: Vec<Bytes>,
    /// Lease that the entries are attached to.
    pub session: i64,
    /// Identifies retries of this request; unique within the session.
    pub request_id: Bytes,
    /// Share of `limit` that is requested: 1 of 1 is exclusive, 1 of [`u32::MAX`] is shared.
    pub permits: u32,
    /// Permits that all holders together may have.
    pub limit: u32,
    /// Whether to queue if the lock is not free.
    pub can_wait: bool,
    /// A session that holds the lock with the same permits and limit acquires it once more.
    pub is_reentrant: bool,
    /// Lock delay in seconds: if the session expires while it holds the lock, nobody else gets it
    /// for this long.
    pub delay_seconds: u32,
    /// The stream that waits for the grant: the last one that asked.
    pub attempt: u64,
    /// Wall clock of the member that took the request, in milliseconds; for display.
    pub asked_ms: i64,
    /// What the holder says about itself, for display.
    pub note: Bytes,
    /// Number of the request. With sequence 0 the session remembers only the last few requests that
    /// were cancelled.
    pub once: Once,
}

/// Releases the entries of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockRelease {
    /// Names, as acquired.
    pub names: Vec<Bytes>,
    /// Session, as acquired.
    pub session: i64,
    /// Request id, as acquired. If that request has no entry yet, it will never get one.
    pub request_id: Bytes,
    /// Release only if this stream was the last that asked; 0: whichever stream asked.
    pub attempt: u64,
    /// Number of this request, which gets the same answer however often it arrives; `undoes` is the
    /// number of the request that acquired.
    pub once: Once,
}

/// Changes permits and limit of an entry that holds: to less at any time, to more only if no other
/// entry holds the lock. The fence stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockConvert {
    /// Name of the lock.
    pub name: Bytes,
    /// Session, as acquired.
    pub session: i64,
    /// Request id, as acquired.
    pub request_id: Bytes,
    /// See [`LockAcquire::permits`].
    pub permits: u32,
    /// See [`LockAcquire::limit`].
    pub limit: u32,
    /// Number of this request, which takes effect once and gets the same answer however often it
    /// arrives.
    pub once: Once,
}

/// Deletes queue entries, whoever owns them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockBreak {
    /// Name of the lock.
    pub name: Bytes,
    /// Fence of the entry; 0 for all that hold.
    pub fence: i64,
    /// User who asked for it; empty without authentication. Has no effect; it is returned in the
    /// answer.
    pub by: String,
    /// Reason. Like `by`, it is only returned in the answer.
    pub reason: String,
}

/// Enters a session in an election, or changes the value of its candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Campaign {
    /// Name of the election.
    pub name: Bytes,
    /// Lease that the candidate is attached to.
    pub session: i64,
    /// What it announces as leader: the value of its key, which etcd's observers see too.
    pub value: Bytes,
    /// The stream that follows the candidate: the last one that asked.
    pub attempt: u64,
    /// The client's number of that stream. A request with a smaller number than one already seen is
    /// too late. 0 for a client that does not number its streams.
    pub number: u64,
    /// Identifies the candidacy, so that a retry does not begin it again after it was withdrawn.
    /// Sequence 0 for a candidacy that ends with its stream.
    pub once: Once,
    /// Only if the candidate exists already.
    pub resumes: bool,
}

/// Withdraws the candidate of a session from an election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leave {
    /// Name of the election.
    pub name: Bytes,
    /// Session, as campaigned.
    pub session: i64,
    /// Only the candidate with this fence; 0 for any.
    pub fence: i64,
    /// Only if this stream was the last that asked; 0: whichever stream asked.
    pub attempt: u64,
    /// Makes the request take effect once, and undoes the candidacy's request; sequence 0 for
    /// neither.
    pub once: Once,
}

/// The leader of an election resigns, and the candidate `to` is next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandOver {
    /// Name of the election.
    pub name: Bytes,
    /// Session of the leader.
    pub session: i64,
    /// Fence of the leader.
    pub fence: i64,
    /// Key of the candidate.
    pub to: Bytes,
}

/// A transaction that runs only while every guard is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardedTxn {
    /// All of them must be held.
    pub guards: Vec<Guard>,
    /// Runs if they are.
    pub txn: Txn,
}

/// Condition: the queue entry with this fence holds the lock of this name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Name of a lock or election.
    pub name: Bytes,
    /// Create revision of the queue entry.
    pub fence: i64,
}
