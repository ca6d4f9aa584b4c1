//! Commands of the registry (`conclave.v1`).

use bytes::Bytes;

use super::Once;
use crate::registry::record::{Health, State};

/// A change of instances of services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryCommand {
    /// Registers an instance, or changes its record.
    Register(Register),
    /// Removes an instance.
    Deregister(Deregister),
    /// Changes some fields of an instance.
    Update(InstanceUpdate),
    /// Records what the leader's health checks found.
    Checked(CheckResult),
    /// Carries out what is due because a time has passed.
    Settle(Settle),
    /// Sets the switches of a service.
    Configure(Configure),
}

/// What a registration does if its id is already registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegisterMode {
    /// Replaces the instance, whoever registered it.
    #[default]
    Replace,
    /// Is rejected, unless the session itself registered the instance.
    IfAbsent,
}

/// Registers an instance. A repetition right after it changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// Name of the service.
    pub service: Bytes,
    /// Id of the instance.
    pub id: String,
    /// Lease that the instance is attached to.
    pub session: i64,
    /// Record of the instance, in the layout of [`crate::registry::record`].
    pub record: Bytes,
    /// What happens if the id is already registered.
    pub mode: RegisterMode,
    /// Only if the instance was last changed at this revision; 0 for any.
    pub mod_revision: i64,
    /// Only change the instance that the session registered with this create revision; 0 for any.
    pub fence: i64,
    /// With [`RegisterMode::IfAbsent`]: an instance that may be replaced nevertheless.
    pub former: Former,
    /// Also replaces an instance of the same session, so that it gets a new fence.
    pub is_anew: bool,
    /// Session and number of the request.
    pub once: Once,
    /// Wall clock of the member that took the request, in milliseconds.
    pub now_ms: i64,
    /// Whether an instance that came and went too often is damped.
    pub is_damping: bool,
}

/// What an owner registered before it lost its session; the default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// Lease that it was attached to.
    pub session: i64,
    /// Its create revision.
    pub fence: i64,
}

/// Removes an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deregister {
    /// Name of the service.
    pub service: Bytes,
    /// Id of the instance.
    pub id: String,
    /// Only if it belongs to this session; 0 for an operator.
    pub session: i64,
    /// Only the instance with this create revision; 0 for any.
    pub fence: i64,
    /// Session and number of the request. A request that undoes another removes only what that one
    /// registered.
    pub once: Once,
}

/// Changes an instance; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceUpdate {
    /// Name of the service.
    pub service: Bytes,
    /// Id of the instance.
    pub id: String,
    /// Only if it belongs to this session; 0 for an operator.
    pub session: i64,
    /// Only the instance with this create revision; 0 for any.
    pub fence: i64,
    /// State as set by the owner.
    pub state: Option<State>,
    /// State as set by an operator; `Some(None)` removes the override.
    pub override_state: Option<Option<State>>,
    /// Time to drain before the instance is removed; 0 for no limit.
    pub drain_ms: Option<u64>,
    /// Health as reported by the owner, with a text.
    pub health: Option<(Health, String)>,
    /// Load-balancing weight.
    pub weight: Option<u32>,
    /// Session and number of the request.
    pub once: Once,
    /// See [`Register::now_ms`].
    pub now_ms: i64,
    /// See [`Register::is_damping`].
    pub is_damping: bool,
}

/// A health verdict that enough checks in a row agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// Name of the service.
    pub service: Bytes,
    /// Id of the instance.
    pub id: String,
    /// Create revision of the instance that was checked.
    pub fence: i64,
    /// Name of the check; empty for an unnamed one.
    pub check: String,
    /// The verdict.
    pub health: Health,
    /// Output of the check.
    pub output: String,
    /// See [`Register::now_ms`].
    pub now_ms: i64,
    /// See [`Register::is_damping`].
    pub is_damping: bool,
}

/// What the leader of `term` found due; a no-op when applied in another term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settle {
    /// Term in which it was decided.
    pub term: u64,
    /// See [`Register::now_ms`].
    pub now_ms: i64,
    /// The due changes.
    pub items: Vec<SettleItem>,
}

/// One due change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleItem {
    /// Name of the service.
    pub service: Bytes,
    /// Id of the instance.
    pub id: String,
    /// When the state that the leader saw began, according to the instance's record. The change is
    /// skipped if the record says otherwise now.
    pub stamp: i64,
    /// What to do.
    pub what: Settlement,
}

/// What to do when a time has passed; the numbers are part of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Settlement {
    /// Ends the damping of an instance.
    Undamp = 1,
    /// Removes a lost instance that was kept for a while.
    DropLost = 2,
    /// Removes an instance that has been critical for too long.
    RemoveCritical = 3,
    /// Removes an instance whose time to drain is over.
    RemoveDrained = 4,
    /// Forgets a penalty that has decayed.
    Forget = 5,
}

impl Settlement {
    /// The number in the wire format.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Settlement::Undamp => 1,
            Settlement::DropLost => 2,
            Settlement::RemoveCritical => 3,
            Settlement::RemoveDrained => 4,
            Settlement::Forget => 5,
        }
    }

    /// The inverse of [`Settlement::number`].
    #[must_use]
    pub fn from_number(number: i32) -> Option<Settlement> {
        [
            Settlement::Undamp,
            Settlement::DropLost,
            Settlement::RemoveCritical,
            Settlement::RemoveDrained,
            Settlement::Forget,
        ]
        .into_iter()
        .find(|what| i32::from(what.number()) == number)
    }
}

/// Sets switches of a service; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configure {
    /// Name of the service.
    pub service: Bytes,
    /// The guard against mass loss.
    pub is_guarded: Option<bool>,
    /// Flap damping.
    pub is_damped: Option<bool>,
}
