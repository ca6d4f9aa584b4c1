//! Converts requests of the registry from messages to commands.

use conclave_proto::v1::register_request::Mode;
use conclave_proto::{internal, v1};
use conclave_state_machine::command::{
    CheckResult, Configure, Deregister, Former, InstanceUpdate, Register, RegisterMode,
    RegistryCommand, Settle, SettleItem, Settlement,
};
use conclave_state_machine::registry::record::{Health, State};
use conclave_state_machine::response::Rejection;

use super::primitive::once;

/// Converts a registration.
#[must_use]
pub fn register(message: internal::RegistryRegister) -> RegistryCommand {
    let request = message.request.unwrap_or_default();
    let v1::FormerInstance { session, fence } = request.former.unwrap_or_default();
    RegistryCommand::Register(Register {
        mode: match request.mode() {
            Mode::Replace => RegisterMode::Replace,
            Mode::IfAbsent => RegisterMode::IfAbsent,
        },
        service: request.service.into(),
        id: request.id,
        session: request.session,
        record: request.record,
        mod_revision: request.mod_revision,
        fence: request.fence,
        former: Former { session, fence },
        is_anew: request.anew,
        once: once(request.once),
        now_ms: message.now_unix_ms,
        is_damping: message.damping,
    })
}

/// Converts a deregistration.
#[must_use]
pub fn deregister(request: v1::DeregisterRequest) -> RegistryCommand {
    let v1::DeregisterRequest { service, id, session, fence, once: asked } = request;
    let (service, once) = (service.into(), once(asked));
    RegistryCommand::Deregister(Deregister { service, id, session, fence, once })
}

/// Converts an update of an instance.
///
/// # Errors
/// [`Rejection::Malformed`] for an unknown number.
pub fn update(message: internal::RegistryUpdate) -> Result<RegistryCommand, Rejection> {
    let request = message.request.unwrap_or_default();
    let override_state = match state(request.override_state)? {
        _ if request.clear_override => Some(None),
        Some(state) => Some(Some(state)),
        None => None,
    };
    Ok(RegistryCommand::Update(InstanceUpdate {
        state: state(request.state)?,
        override_state,
        health: health(request.health)?.map(|health| (health, request.output)),
        drain_ms: request.drain_ms,
        weight: request.weight,
        service: request.service.into(),
        id: request.id,
        session: request.session,
        fence: request.fence,
        once: once(request.once),
        now_ms: message.now_unix_ms,
        is_damping: message.damping,
    }))
}

/// Converts the result of a health check, proposed by the leader.
///
/// # Errors
/// [`Rejection::Malformed`] for an unknown number.
pub fn checked(message: internal::RegistryChecked) -> Result<RegistryCommand, Rejection> {
    Ok(RegistryCommand::Checked(CheckResult {
        health: health(message.health)?.unwrap_or_default(),
        service: message.service.into(),
        id: message.id,
        fence: message.fence,
        check: message.check,
        output: message.output,
        now_ms: message.now_unix_ms,
        is_damping: message.damping,
    }))
}

/// Converts the items that the leader found due.
///
/// # Errors
/// [`Rejection::Malformed`] for an unknown number.
pub fn settle(message: internal::RegistrySettle) -> Result<RegistryCommand, Rejection> {
    let item = |item: internal::RegistrySettleItem| {
        let what = Settlement::from_number(item.what);
        let what = what.ok_or(Rejection::Malformed("unknown settlement"))?;
        let (service, id, stamp) = (item.service.into(), item.id, item.stamp);
        Ok(SettleItem { service, id, stamp, what })
    };
    let items = message.items.into_iter().map(item).collect::<Result<_, _>>()?;
    let internal::RegistrySettle { term, now_unix_ms: now_ms, .. } = message;
    Ok(RegistryCommand::Settle(Settle { term, now_ms, items }))
}

/// Converts a change of a service's switches.
#[must_use]
pub fn configure(request: v1::ServiceConfigureRequest) -> RegistryCommand {
    let v1::ServiceConfigureRequest { service, guard, damping } = request;
    let service = service.into();
    RegistryCommand::Configure(Configure { service, is_guarded: guard, is_damped: damping })
}

fn state(number: i32) -> Result<Option<State>, Rejection> {
    let message = v1::InstanceState::try_from(number);
    Ok(match message.map_err(|_| Rejection::Malformed("unknown state of an instance"))? {
        v1::InstanceState::Unspecified => None,
        v1::InstanceState::Up => Some(State::Up),
        v1::InstanceState::Draining => Some(State::Draining),
        v1::InstanceState::Down => Some(State::Down),
        v1::InstanceState::Starting => Some(State::Starting),
        v1::InstanceState::OutOfService => Some(State::OutOfService),
    })
}

fn health(number: i32) -> Result<Option<Health>, Rejection> {
    let message = v1::InstanceHealth::try_from(number);
    Ok(match message.map_err(|_| Rejection::Malformed("unknown health of an instance"))? {
        v1::InstanceHealth::Unspecified => None,
        v1::InstanceHealth::Passing => Some(Health::Passing),
        v1::InstanceHealth::Warning => Some(Health::Warning),
        v1::InstanceHealth::Critical => Some(Health::Critical),
        v1::InstanceHealth::Unknown => Some(Health::Unknown),
    })
}
