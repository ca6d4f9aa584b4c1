//! What a command answers, and what it changed.
//!
//! | module | what |
//! |---|---|
//! | `event` | what changed |
//! | `rejection` | why there is no answer |

mod event;
mod rejection;

use bytes::Bytes;

use crate::command::{AlarmKind, MemberRecord};
use crate::registry::index::ServiceRow;

pub use event::{Cause, Event, EventKind, KeyValue};
pub use rejection::{Halt, Rejection};

/// The outcome of one command with everything it changed.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Answer for the client; equal on every replica, except that it lacks keys where nobody waits for it.
    pub outcome: Result<Response, Rejection>,
    /// Store revision after the command.
    pub revision: i64,
    /// Changes in (revision, sub-revision) order. One command may span several revisions
    /// (`LeaseExpire`); each event's revision is its `kv.mod_revision`.
    pub events: Vec<Event>,
    /// The state before was left out of some events, for it was too much; the history has it until it is compacted.
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
        /// Log index at which it was; 0 if that is not known.
        at: u64,
    },
    /// The lease and its keys are gone.
    Ended {
        /// Lease id.
        id: i64,
    },
}

/// Answer of a command that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Of [`crate::command::Put`].
    Put(PutResponse),
    /// Of [`crate::command::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// Of [`crate::command::Txn`].
    Txn(TxnResponse),
    /// Of [`crate::command::Compact`].
    Compact {
        /// [`crate::head::Head::digest`] at this place of the log.
        digest: u64,
    },
    /// Of [`crate::command::LeaseGrant`].
    LeaseGrant {
        /// Lease id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// Of [`crate::command::LeaseRevoke`].
    LeaseRevoke,
    /// Of [`crate::command::LeaseExpire`]: how many leases ended.
    LeaseExpire {
        /// Leases that ended; 0 when the term had changed.
        ended: usize,
    },
    /// Of [`crate::command::AlarmChange`]: the alarms it touched or listed, as (member, kind).
    Alarm(Vec<(u64, AlarmKind)>),
    /// Of [`crate::command::Command::MemberPublish`].
    MemberPublish(MemberRecord),
    /// Of [`crate::command::SessionBegin`].
    SessionBegin {
        /// Lease id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// Of [`crate::command::LockCommand`].
    Lock(LockResponse),
    /// Of [`crate::command::GuardedTxn`]: `None` if a guard is not held, so that nothing happened.
    GuardedTxn(Option<TxnResponse>),
    /// Of [`crate::command::AuthCommand`].
    Auth(AuthChange),
    /// Of [`crate::command::Primitive`].
    Primitive(PrimitiveResponse),
    /// Of [`crate::command::RegistryCommand`].
    Registry(RegistryResponse),
    /// Of [`crate::command::Write`].
    Write(WriteResponse),
}

/// Answer of a write that may come again: the same each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteResponse {
    /// Revision as of which it is so.
    pub revision: i64,
    /// What became of it.
    pub answer: WriteAnswer,
}

/// What became of a write that may come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteAnswer {
    /// A guard was not held, and nothing happened.
    NotHeld,
    /// It was carried out.
    Done(TxnResponse),
    /// It was carried out when it came first, and its answer was too large to be kept.
    Unkept,
    /// It is not carried out: whether it was before is not known any more.
    Forgotten,
}

/// Answer of a change of a counter, latch, barrier or group, or of an instance. A session remembers it for
/// repetitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrimitiveResponse {
    /// Whether there was something to do; of one who enters a double barrier, whether it is in; of an instance
    /// that registers, whether there was none.
    pub is_done: bool,
    /// The number of a counter or latch, the fence of a barrier, participant, member or instance; of one who leaves
    /// a double barrier, the fence up to which others are waited for.
    pub number: i64,
    /// Revision of the last change of the key.
    pub revision: i64,
}

/// What a command changed about users; what members keep in memory follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthChange {
    /// Nothing; it was so already.
    Nothing,
    /// Users, roles or permissions.
    Changed,
    /// Every call needs a user from now on.
    Enabled,
    /// No call needs a user any more; all tokens are void.
    Disabled,
    /// The tokens of a user are void: it has another password, or is no more.
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
        /// When it was given out, in milliseconds since 1970; 0 if that is not known.
        issued_ms: i64,
    },
}

/// Answer of a command of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryResponse {
    /// Of a registration.
    Registered {
        /// Create revision of the instance's key.
        fence: i64,
        /// Revision of its last change.
        mod_revision: i64,
        /// There was none with this id.
        is_new: bool,
    },
    /// Of an update, or the result of a check.
    Updated {
        /// Create revision of the instance's key.
        fence: i64,
        /// Revision of its last change.
        mod_revision: i64,
    },
    /// Of a deregistration.
    Removed {
        /// Whether there was something to remove.
        was_there: bool,
    },
    /// Of what was due: how many instances it was true of.
    Settled {
        /// Instances.
        done: usize,
    },
    /// Of switches of a service: what is kept about it now.
    Configured(ServiceRow),
}

/// Answer of a command that changes queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockResponse {
    /// Of an acquisition or conversion.
    Places {
        /// How it stands.
        state: LockState,
        /// The places, in the order of the names; none if nothing is taken.
        taken: Vec<Taken>,
    },
    /// Of a release.
    Released {
        /// Whether there was everything that is given up: of several locks, each of them.
        was_held: bool,
    },
    /// Of a hand-over: who is next.
    HandedOver(Taken),
    /// Of a break.
    Seized {
        /// What was taken away.
        places: Vec<Taken>,
        /// See [`crate::command::LockBreak::by`].
        by: String,
        /// See [`crate::command::LockBreak::reason`].
        reason: String,
    },
}

/// How a request for locks stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// All places hold.
    Held,
    /// At least one has to wait.
    Queued,
    /// At least one would have to wait, and the request may not: nothing is taken.
    Busy,
    /// The request was given up, or one of several places was broken: nothing is taken.
    Cancelled,
}

/// One place in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Name of the lock.
    pub name: Bytes,
    /// Key of the place.
    pub key: Bytes,
    /// Its fencing token: the create revision of the key.
    pub fence: i64,
}

/// Answer of a put. The revision is in the surrounding [`Applied`] or [`TxnResponse`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutResponse {
    /// Present when asked for and the key existed.
    pub prev_kv: Option<KeyValue>,
}

/// Answer of a range delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeResponse {
    /// Keys deleted.
    pub deleted: i64,
    /// Filled when asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// Answer of a range read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// Found key-values, cut to the limit.
    pub kvs: Vec<KeyValue>,
    /// There is more than the limit let through.
    pub more: bool,
    /// Live keys in the range, whatever the limit and filters.
    pub count: i64,
}

/// Answer of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResponse {
    /// Whether all compares held.
    pub succeeded: bool,
    /// One answer for each operation of the branch taken, with the store revision after it.
    pub responses: Vec<(i64, OpResponse)>,
}

/// Answer of one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResponse {
    /// Of a read.
    Range(RangeResponse),
    /// Of a write.
    Put(PutResponse),
    /// Of a delete.
    DeleteRange(DeleteRangeResponse),
    /// Of a nested transaction.
    Txn(TxnResponse),
}
