//! Answers of commands, and what the commands changed.
//!
//! | module | what |
//! |---|---|
//! | `event` | one change of a key |
//! | `rejection` | why a command was rejected, or why the node must stop |

mod event;
mod rejection;

use bytes::Bytes;

use crate::command::{AlarmKind, MemberRecord};
use crate::registry::index::ServiceRow;

pub use event::{Cause, Event, EventKind, KeyValue};
pub use rejection::{Halt, Rejection};

/// The outcome of one command, with everything it changed.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Answer for the client. Equal on every replica, except that key-values are left out where
    /// nobody waits for the answer.
    pub outcome: Result<Response, Rejection>,
    /// Store revision after the command.
    pub revision: i64,
    /// Changes in (revision, sub-revision) order. One command may span several revisions
    /// (`LeaseExpire`); each event's revision is its `kv.mod_revision`.
    pub events: Vec<Event>,
    /// Some events lack the previous key-value because there was no room for it. It can be read
    /// from the history until that is compacted.
    pub lack_prev: bool,
    /// Leases that began or ended.
    pub leases: Vec<LeaseChange>,
}

/// A lease that began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The lease exists from now on.
    Granted {
        /// Lease id.
        id: i64,
        /// Seconds.
        ttl: i64,
        /// Log index of the grant; 0 if that is not known.
        at: u64,
    },
    /// The lease and its keys are gone.
    Ended {
        /// Lease id.
        id: i64,
    },
}

/// Answer of a command that was not rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Answer to [`crate::command::Put`].
    Put(PutResponse),
    /// Answer to [`crate::command::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// Answer to [`crate::command::Txn`].
    Txn(TxnResponse),
    /// Answer to [`crate::command::Compact`].
    Compact {
        /// [`crate::head::Head::digest`] at this log index.
        digest: u64,
    },
    /// Answer to [`crate::command::LeaseGrant`].
    LeaseGrant {
        /// Lease id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// Answer to [`crate::command::LeaseRevoke`].
    LeaseRevoke,
    /// Answer to [`crate::command::LeaseExpire`].
    LeaseExpire {
        /// How many leases ended; 0 if the term had changed.
        ended: usize,
    },
    /// Answer to [`crate::command::AlarmChange`]: the alarms it changed or listed, as (member,
    /// kind).
    Alarm(Vec<(u64, AlarmKind)>),
    /// Answer to [`crate::command::Command::MemberPublish`].
    MemberPublish(MemberRecord),
    /// Answer to [`crate::command::SessionBegin`].
    SessionBegin {
        /// Lease id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// Answer to [`crate::command::LockCommand`].
    Lock(LockResponse),
    /// Answer to [`crate::command::GuardedTxn`]: `None` if a guard is not held, so nothing was
    /// done.
    GuardedTxn(Option<TxnResponse>),
    /// Answer to [`crate::command::AuthCommand`].
    Auth(AuthChange),
    /// Answer to [`crate::command::Primitive`].
    Primitive(PrimitiveResponse),
    /// Answer to [`crate::command::RegistryCommand`].
    Registry(RegistryResponse),
    /// Answer to [`crate::command::Write`].
    Write(WriteResponse),
}

/// Answer to a write that may be retried: every attempt gets the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteResponse {
    /// Revision at which the write took effect or was refused.
    pub revision: i64,
    /// What became of the write.
    pub answer: WriteAnswer,
}

/// What became of a write that may be retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteAnswer {
    /// A guard was not held, so nothing was done.
    NotHeld,
    /// The write was carried out.
    Done(TxnResponse),
    /// The write was carried out by an earlier attempt, whose answer was too large to be kept.
    Unkept,
    /// The write is not carried out. Whether an earlier attempt carried it out is no longer known.
    Forgotten,
}

/// Answer to a change of a counter, latch, barrier, group or instance. A session remembers it for
/// retries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrimitiveResponse {
    /// Whether there was something to do. For an entry into a double barrier: whether the
    /// participant is in. For the registration of an instance: whether the id was free.
    pub is_done: bool,
    /// The number of a counter or latch, or the fence of a barrier, participant, member or
    /// instance. For a departure from a double barrier: the fence up to which other participants
    /// are waited for.
    pub number: i64,
    /// Revision of the last change of the key.
    pub revision: i64,
}

/// What a command changed about users, for what each member keeps in memory about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthChange {
    /// Nothing: it was like that already.
    Nothing,
    /// Users, roles or permissions changed.
    Changed,
    /// Authentication was enabled: every call needs a user from now on.
    Enabled,
    /// Authentication was disabled: no call needs a user any more, and all tokens are void.
    Disabled,
    /// The tokens of a user are void: the password was changed or the user was deleted.
    TokensVoid {
        /// Name of the user.
        user: String,
    },
    /// A token is valid from now on.
    Token {
        /// Name of the user.
        user: String,
        /// Hash of the token.
        fingerprint: Bytes,
        /// Log index of the command.
        index: u64,
        /// When it was issued, in milliseconds since 1970; 0 if that is not known.
        issued_ms: i64,
    },
}

/// Answer to a command of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryResponse {
    /// Answer to a registration.
    Registered {
        /// Create revision of the instance's key.
        fence: i64,
        /// Revision of its last change.
        mod_revision: i64,
        /// The id was free.
        is_new: bool,
    },
    /// Answer to an update, or to the result of a check.
    Updated {
        /// Create revision of the instance's key.
        fence: i64,
        /// Revision of its last change.
        mod_revision: i64,
    },
    /// Answer to a deregistration.
    Removed {
        /// Whether there was something to remove.
        was_there: bool,
    },
    /// Answer to `Settle`: how many of its items still applied.
    Settled {
        /// Number of instances.
        done: usize,
    },
    /// Answer to a change of a service's switches: what is stored about the service now.
    Configured(ServiceRow),
}

/// Answer to a command that changes queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockResponse {
    /// Answer to an acquisition or conversion.
    Places {
        /// State of the request.
        state: LockState,
        /// The queue entries, in the order of the names; empty if the request took nothing.
        taken: Vec<Taken>,
    },
    /// Answer to a release.
    Released {
        /// Whether everything that was to be released was there (for several locks: each of them).
        was_held: bool,
    },
    /// Answer to a hand-over: the next holder.
    HandedOver(Taken),
    /// Answer to a break.
    Seized {
        /// The queue entries that were removed.
        places: Vec<Taken>,
        /// See [`crate::command::LockBreak::by`].
        by: String,
        /// See [`crate::command::LockBreak::reason`].
        reason: String,
    },
}

/// State of a request for locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// All its queue entries hold.
    Held,
    /// At least one entry has to wait.
    Queued,
    /// At least one entry would have to wait, but the request may not wait: nothing is taken.
    Busy,
    /// The request was cancelled, or one of its several entries was broken: nothing is taken.
    Cancelled,
}

/// One entry in the queue of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Name of the lock.
    pub name: Bytes,
    /// Key of the entry.
    pub key: Bytes,
    /// Its fencing token: the create revision of the key.
    pub fence: i64,
}

/// Answer to a put. The revision is in the surrounding [`Applied`] or [`TxnResponse`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutResponse {
    /// Set if it was asked for and the key existed.
    pub prev_kv: Option<KeyValue>,
}

/// Answer to a range delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeResponse {
    /// Number of keys deleted.
    pub deleted: i64,
    /// Filled if it was asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// Answer to a range read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// Key-values found, cut to the limit.
    pub kvs: Vec<KeyValue>,
    /// Whether there are more than the limit allowed.
    pub more: bool,
    /// Number of live keys in the range, regardless of limit and filters.
    pub count: i64,
}

/// Answer to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResponse {
    /// Whether all compares held.
    pub succeeded: bool,
    /// One answer for each operation of the branch taken, with the store revision after it.
    pub responses: Vec<(i64, OpResponse)>,
}

/// Answer to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResponse {
    /// Answer to a read.
    Range(RangeResponse),
    /// Answer to a put.
    Put(PutResponse),
    /// Answer to a delete.
    DeleteRange(DeleteRangeResponse),
    /// Answer to a nested transaction.
    Txn(TxnResponse),
}
