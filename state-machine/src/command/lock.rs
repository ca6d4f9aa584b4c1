//! Commands of sessions and locks (`conclave.v1`).

use bytes::Bytes;

use super::{Once, Txn};

/// Creates a lease that has an owner. Sent twice, it is one session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionBegin {
    /// Lease id, not 0.
    pub id: i64,
    /// Seconds.
    pub ttl: i64,
    /// Recognises a repetition; not empty.
    pub request_id: Bytes,
    /// Who holds it, for people.
    pub owner: String,
    /// More about the owner, for people.
    pub metadata: Vec<(String, String)>,
}

/// What is done to the queue of a lock or election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockCommand {
    /// Takes places in queues.
    Acquire(LockAcquire),
    /// Gives up what a request has taken, or will take.
    Release(LockRelease),
    /// Changes how a place is held.
    Convert(LockConvert),
    /// Takes a place away from whoever has it.
    Break(LockBreak),
    /// Becomes a candidate of an election.
    Campaign(Campaign),
    /// Is a candidate no more.
    Leave(Leave),
    /// A leader resigns in favour of one candidate.
    HandOver(HandOver),
}

/// Takes a place in the queue of each name, all in one revision or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockAcquire {
    /// Names, ascending, without repetition.
    pub names: Vec<Bytes>,
    /// Lease that the places live and die with.
    pub session: i64,
    /// Recognises a repetition; unique within the session.
    pub request_id: Bytes,
    /// Share of `limit` that is wanted: 1 of 1 is exclusive, 1 of [`u32::MAX`] is shared.
    pub permits: u32,
    /// What all holders together may take.
    pub limit: u32,
    /// Take places also if they have to wait.
    pub can_wait: bool,
    /// A session that holds the lock alike holds it once more.
    pub is_reentrant: bool,
    /// After the session expires while it holds, nobody else holds for so many seconds.
    pub delay_seconds: u32,
    /// Which stream waits for the grant: the last one that asked.
    pub attempt: u64,
    /// Wall clock of the member that was asked, in milliseconds; for people.
    pub asked_ms: i64,
    /// What the holder says about itself, for people.
    pub note: Bytes,
    /// The number of the request; with 0 the session remembers only the last few that were given up.
    pub once: Once,
}

/// Gives up the places of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockRelease {
    /// As acquired.
    pub names: Vec<Bytes>,
    /// As acquired.
    pub session: i64,
    /// As acquired. If it has no place yet, it will never get one.
    pub request_id: Bytes,
    /// Only if no other stream asked for the request; 0 for whoever asked.
    pub attempt: u64,
    /// The number of this request, which is answered alike however often it arrives, and (`undoes`) of the one
    /// that acquired.
    pub once: Once,
}

/// Changes permits and limit of a place that is held: to less at any time, to more if no other place
/// of the lock is held. The fence stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockConvert {
    /// Name of the lock.
    pub name: Bytes,
    /// As acquired.
    pub session: i64,
    /// As acquired.
    pub request_id: Bytes,
    /// See [`LockAcquire::permits`].
    pub permits: u32,
    /// See [`LockAcquire::limit`].
    pub limit: u32,
    /// The number of this request, which is carried out once and answered alike however often it arrives.
    pub once: Once,
}

/// Deletes places whoever has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockBreak {
    /// Name of the lock.
    pub name: Bytes,
    /// Fence of the place; 0 for all that are held.
    pub fence: i64,
    /// User who asked for it; empty if nobody signed in. Changes nothing: it comes back in the answer.
    pub by: String,
    /// Why. As `by`.
    pub reason: String,
}

/// Takes the place of a session in an election, or changes what it says there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Campaign {
    /// Name of the election.
    pub name: Bytes,
    /// Lease that the candidate lives and dies with.
    pub session: i64,
    /// What it says as leader: the value of its key, for etcd's observers, too.
    pub value: Bytes,
    /// Which stream follows the candidate: the last one that asked.
    pub attempt: u64,
    /// The client's number of that stream: what has a smaller one than was seen comes too late. 0 for a
    /// client that counts nothing.
    pub number: u64,
    /// Recognises the candidacy, so that it does not begin again once it was left; sequence 0 for one that
    /// lives with its stream.
    pub once: Once,
    /// Only if the candidate is there already.
    pub resumes: bool,
}

/// Gives up the place of a session in an election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leave {
    /// Name of the election.
    pub name: Bytes,
    /// As campaigned.
    pub session: i64,
    /// Only the place with this fence; 0 for whichever there is.
    pub fence: i64,
    /// Only if this stream was the last that asked; 0 for whoever asked.
    pub attempt: u64,
    /// Makes it single, and takes the candidacy back; sequence 0 for neither.
    pub once: Once,
}

/// The leader of an election goes, and the candidate `to` comes next.
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
    /// All must be held.
    pub guards: Vec<Guard>,
    /// Runs then.
    pub txn: Txn,
}

/// "The place with this fence holds the lock of this name."
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Name of a lock or election.
    pub name: Bytes,
    /// Create revision of the place.
    pub fence: i64,
}
