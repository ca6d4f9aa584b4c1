//! The cost and contents of one applied piece of the log, for metrics.

use std::time::Duration;

use conclave_state_machine::command::Command;
use conclave_state_machine::compaction::Swept;

/// Kinds of commands that metrics distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes one key.
    Put,
    /// Deletes a range of keys.
    DeleteRange,
    /// Several operations at once, under conditions or guards.
    Txn,
    /// Forgets history, or sweeps a step.
    Compaction,
    /// Creates a lease or session.
    LeaseGrant,
    /// Ends leases, including expired ones.
    LeaseRevoke,
    /// Raises or clears an alarm.
    Alarm,
    /// Changes users, roles and permissions.
    Auth,
    /// Changes locks and elections.
    Lock,
    /// Changes counters, latches, barriers and groups.
    Primitive,
    /// Changes instances of services.
    Registry,
    /// Anything else, and what cannot be decoded.
    Other,
}

impl Operation {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Put,
        Self::DeleteRange,
        Self::Txn,
        Self::Compaction,
        Self::LeaseGrant,
        Self::LeaseRevoke,
        Self::Alarm,
        Self::Auth,
        Self::Lock,
        Self::Primitive,
        Self::Registry,
        Self::Other,
    ];

    /// etcd's name, where etcd has this kind.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "Put",
            Self::DeleteRange => "DeleteRange",
            Self::Txn => "Txn",
            Self::Compaction => "Compaction",
            Self::LeaseGrant => "LeaseGrant",
            Self::LeaseRevoke => "LeaseRevoke",
            Self::Alarm => "Alarm",
            Self::Auth => "Auth",
            Self::Lock => "Lock",
            Self::Primitive => "Primitive",
            Self::Registry => "Registry",
            Self::Other => "Other",
        }
    }

    /// The kind of a command.
    #[must_use]
    pub fn of(command: &Command) -> Self {
        match command {
            Command::Put(_) => Self::Put,
            Command::DeleteRange(_) => Self::DeleteRange,
            Command::Txn(_) | Command::GuardedTxn(_) | Command::Write(_) => Self::Txn,
            Command::Compact(_) => Self::Compaction,
            Command::LeaseGrant(_) | Command::SessionBegin(_) => Self::LeaseGrant,
            Command::LeaseRevoke(_) | Command::LeaseExpire(_) => Self::LeaseRevoke,
            Command::Alarm(_) => Self::Alarm,
            Command::MemberPublish(_) => Self::Other,
            Command::Lock(_) => Self::Lock,
            Command::Primitive(_) => Self::Primitive,
            Command::Auth(_) => Self::Auth,
            Command::Registry(_) => Self::Registry,
        }
    }
}

/// How many commands of each kind took effect, and how many were rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations([[u64; 2]; Operation::ALL.len()]);

impl Operations {
    /// Counts one command.
    pub fn count(&mut self, operation: Operation, is_success: bool) {
        self.0[operation as usize][usize::from(is_success)] += 1;
    }

    /// How many commands of a kind took effect, or were rejected.
    #[must_use]
    pub fn counted(&self, operation: Operation, is_success: bool) -> u64 {
        self.0[operation as usize][usize::from(is_success)]
    }
}

/// The cost of one piece of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Time from its first command until all of it was visible to readers.
    pub whole: Duration,
    /// Part of that time for writing it to the state.
    pub write: Duration,
    /// Its commands by kind.
    pub operations: Operations,
    /// What the sweep deleted with it.
    pub swept: Swept,
    /// Whether rows that a compaction made dead are still stored.
    pub has_dead_rows: bool,
}
