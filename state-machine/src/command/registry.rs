//! Commands of the registry (`conclave.v1`).

use bytes::Bytes;

use super::Once;
use crate::registry::record::{Health, State};

/// What is done to instances of services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryCommand {
    /// Registers an instance, or changes what it says.
    Register(Register),
    /// Removes an instance.
    Deregister(Deregister),
    /// Changes some of what is known about an instance.
    Update(InstanceUpdate),
    /// What the checks of the leader found.
    Checked(CheckResult),
    /// What is due because a time is over.
    Settle(Settle),
    /// Sets the switches of a service.
    Configure(Configure),
}

/// What a registration does if there is an instance with its id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegisterMode {
    /// Takes its place, whoever registered it.
    #[default]
    Replace,
    /// Is refused, unless the instance is the session's own.
    IfAbsent,
}

/// Registers an instance. Sent twice in a row, it is one change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// Name of the service.
    pub service: Bytes,
    /// Id of the instance.
    pub id: String,
    /// Lease that it lives and dies with.
    pub session: i64,
    /// What it says, in the layout of [`crate::registry::record`].
    pub record: Bytes,
    /// What happens if there is one with this id.
    pub mode: RegisterMode,
    /// Only if the instance was changed last at this revision; 0 for whatever there is.
    pub mod_revision: i64,
    /// Only a change of what the session registered with this create revision; 0 for whatever there is.
    pub fence: i64,
    /// With [`RegisterMode::IfAbsent`]: what may be replaced nevertheless.
    pub former: Former,
    /// It takes the place of what the same session registered, too.
    pub is_anew: bool,
    /// Who asks, and for which time.
    pub once: Once,
    /// Wall clock of the member that was asked, in milliseconds.
    pub now_ms: i64,
    /// Whoever came and went too often is damped.
    pub is_damping: bool,
}

/// What an owner registered before it lost its session; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// Lease that it lives and dies with.
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
    /// Who asks, and for which time. What takes a request back removes only what that one registered.
    pub once: Once,
}

/// Changes an instance; `None` is as before.
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
    /// The owner's word.
    pub state: Option<State>,
    /// The operator's word, or that there is none.
    pub override_state: Option<Option<State>>,
    /// Time to drain until it is removed; 0 for no limit.
    pub drain_ms: Option<u64>,
    /// The owner's word on its health.
    pub health: Option<(Health, String)>,
    /// How much it takes.
    pub weight: Option<u32>,
    /// Who asks, and for which time.
    pub once: Once,
    /// As of [`Register`].
    pub now_ms: i64,
    /// As of [`Register`].
    pub is_damping: bool,
}

/// What enough checks in a row agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// Name of the service.
    pub service: Bytes,
    /// Id of the instance.
    pub id: String,
    /// Create revision of the instance that was checked.
    pub fence: i64,
    /// Name of the check; empty for the one that has none.
    pub check: String,
    /// What they found.
    pub health: Health,
    /// In words.
    pub output: String,
    /// As of [`Register`].
    pub now_ms: i64,
    /// As of [`Register`].
    pub is_damping: bool,
}

/// Times that the leader of `term` saw pass; void in another term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settle {
    /// Term in which it was decided.
    pub term: u64,
    /// As of [`Register`].
    pub now_ms: i64,
    /// What is due.
    pub items: Vec<SettleItem>,
}

/// One thing that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleItem {
    /// Name of the service.
    pub service: Bytes,
    /// Id of the instance.
    pub id: String,
    /// When the state began that the leader saw, as its record says.
    pub stamp: i64,
    /// What is to be done.
    pub what: Settlement,
}

/// What is done when a time is over; the numbers travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Settlement {
    /// A damped instance is shown as it is.
    Undamp = 1,
    /// A lost instance is kept no longer.
    DropLost = 2,
    /// An instance that is critical is removed.
    RemoveCritical = 3,
    /// An instance that drains is removed.
    RemoveDrained = 4,
    /// A penalty that has faded is forgotten.
    Forget = 5,
}

impl Settlement {
    /// The number that travels.
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

    /// Reads back what [`Settlement::number`] gave.
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

/// Sets switches of a service; `None` is as before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configure {
    /// Name of the service.
    pub service: Bytes,
    /// The guard against mass loss.
    pub is_guarded: Option<bool>,
    /// Flap damping.
    pub is_damped: Option<bool>,
}
