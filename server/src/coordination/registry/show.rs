//! Instances as messages, and which of them a client wants.

use bytes::Bytes;
use conclave_proto::v1;
use conclave_state_machine::registry::coalesce::Change;
use conclave_state_machine::registry::index::ServiceRow;
use conclave_state_machine::registry::record::{Details, Health, State};
use conclave_state_machine::registry::view::Shown;
use conclave_state_machine::response::Cause;
use serde_json::Value;
use v1::instance_change::{Kind, Reason};

/// An instance as a message.
pub(super) fn instance(shown: &Shown) -> v1::Instance {
    let record = &shown.record;
    v1::Instance {
        id: record.id.clone(),
        address: record.address.clone(),
        record: Bytes::clone(&shown.value),
        state: state(record.state_shown()).into(),
        health: health(record.health_shown()).into(),
        healthy: record.is_healthy(),
        stale: record.is_stale(),
        damped: record.details.is_damped,
        fence: shown.fence,
        mod_revision: shown.mod_revision,
        session: shown.session,
        checks: record.details.all_checks().map(|(name, _)| check(name, &record.details)).collect(),
        schema_version: record.details.layout(),
    }
}

fn check(name: &str, details: &Details) -> v1::InstanceCheck {
    let found = details.result(name);
    v1::InstanceCheck {
        name: name.to_owned(),
        health: health(found.map_or(Health::Unknown, |found| found.health)).into(),
        output: found.map(|found| found.output.clone()).unwrap_or_default(),
    }
}

fn state(state: State) -> v1::InstanceState {
    match state {
        State::Up => v1::InstanceState::Up,
        State::Draining => v1::InstanceState::Draining,
        State::Down => v1::InstanceState::Down,
        State::Starting => v1::InstanceState::Starting,
        State::OutOfService => v1::InstanceState::OutOfService,
    }
}

/// A health as it travels.
pub(super) fn health(health: Health) -> v1::InstanceHealth {
    match health {
        Health::Passing => v1::InstanceHealth::Passing,
        Health::Warning => v1::InstanceHealth::Warning,
        Health::Critical => v1::InstanceHealth::Critical,
        Health::Unknown => v1::InstanceHealth::Unknown,
    }
}

/// A service as a message.
pub(super) fn summary(name: String, row: &ServiceRow) -> v1::ServiceSummary {
    v1::ServiceSummary {
        name,
        live: row.live,
        stale: row.lost,
        guard_off: row.is_guard_off,
        damping_off: row.is_damping_off,
    }
}

/// Which instances a client wants.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    wanted: v1::InstanceFilter,
}

impl Filter {
    pub(super) fn new(wanted: Option<v1::InstanceFilter>) -> Self {
        Self { wanted: wanted.unwrap_or_default() }
    }

    /// Whether it lets everything through.
    pub(super) fn is_open(&self) -> bool {
        self.wanted == v1::InstanceFilter::default()
    }

    pub(super) fn admits(&self, shown: &Shown) -> bool {
        let (wanted, record) = (&self.wanted, &shown.record);
        (!wanted.healthy || record.is_healthy())
            && (wanted.version.is_empty() || wanted.version == record.version)
            && (wanted.zone.is_empty() || wanted.zone == record.zone)
            && wanted.tags.iter().all(|tag| record.tags.contains(tag))
            && wanted.metadata.iter().all(|(name, text)| {
                record.metadata.get(name).and_then(Value::as_str) == Some(text.as_str())
            })
    }

    /// What a change is to a client that sees only what the filter lets through.
    pub(super) fn change(&self, change: &Change) -> Option<v1::InstanceChange> {
        let wanted = |shown: &Option<_>| {
            shown.as_ref().is_some_and(|shown: &std::sync::Arc<Shown>| self.admits(shown))
        };
        let after = change.delta.after.as_ref();
        let (kind, reason) = match (wanted(&change.delta.before), wanted(&change.delta.after)) {
            (false, false) => return None,
            (false, true) => (Kind::Added, Reason::Unspecified),
            (true, true) => (Kind::Updated, replaced(change)),
            (true, false) if after.is_some() => (Kind::Removed, Reason::Filtered),
            (true, false) => (Kind::Removed, reason(change.cause)),
        };
        let gone = || v1::Instance { id: change.delta.id.clone(), ..v1::Instance::default() };
        let shown = after.filter(|_| kind != Kind::Removed);
        Some(v1::InstanceChange {
            kind: kind.into(),
            reason: reason.into(),
            instance: Some(shown.map_or_else(gone, |shown| instance(shown))),
        })
    }
}

/// Whether the instance became another's, or the one that was kept after its loss lives again.
fn replaced(change: &Change) -> Reason {
    let (Some(before), Some(after)) = (&change.delta.before, &change.delta.after) else {
        return Reason::Unspecified;
    };
    if after.record.is_stale() {
        return reason(change.cause);
    }
    let is_same = (before.session, before.fence) == (after.session, after.fence);
    if is_same { Reason::Unspecified } else { Reason::Replaced }
}

/// A reason as it travels.
pub(super) fn reason(cause: Option<Cause>) -> Reason {
    match cause {
        None => Reason::Unspecified,
        Some(Cause::Deleted) => Reason::Deleted,
        Some(Cause::Deregistered) => Reason::Deregistered,
        Some(Cause::SessionExpired) => Reason::SessionExpired,
        Some(Cause::SessionEnded) => Reason::SessionEnded,
        Some(Cause::CriticalTooLong) => Reason::Critical,
        Some(Cause::Drained) => Reason::Drained,
        Some(Cause::Admin) => Reason::Admin,
    }
}
