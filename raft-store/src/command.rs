//! Converts requests from messages to the state machine's commands.
//!
//! Both users need the same result: the API, which converts before it validates and proposes, and
//! apply, which decodes entries of the log. The functions never panic: an unknown number or an
//! absent part is a [`Rejection`], the same on every replica.
//!
//! | module | what |
//! |---|---|
//! | `auth`, `lock`, `primitive`, `registry`, `write` | conversions of these kinds of commands |
//! | `length` | which commands may take long |

pub mod auth;
pub(crate) mod length;
pub mod lock;
pub mod primitive;
pub mod registry;
pub mod write;

use conclave_proto::{etcdserverpb as etcd, internal};
use conclave_state_machine::command::{
    AlarmAction, AlarmChange, AlarmKind, AuthCommand, Command, Compact, Compare, CompareResult,
    CompareTarget, DeleteRange, LeaseExpire, LeaseGrant, LeaseRevoke, MemberRecord, Put, Range,
    SortOrder, SortTarget, Txn, TxnOp,
};
use conclave_state_machine::response::Rejection;
use conclave_state_machine::validate::TXN_DEPTH_MAX;

/// Converts a message of a log entry to its command.
///
/// # Errors
/// [`Rejection::Malformed`] if it is of an unknown kind or contains an unknown number;
/// [`Rejection::InvalidSort`] if that is a sort order or target.
pub fn command(message: internal::Command) -> Result<Command, Rejection> {
    use internal::command::Command as Message;
    match message.command.ok_or(Rejection::Malformed("unknown command"))? {
        Message::Put(request) => Ok(Command::Put(put(request))),
        Message::DeleteRange(request) => Ok(Command::DeleteRange(delete_range(request))),
        Message::Txn(request) => Ok(Command::Txn(txn(request)?)),
        Message::Compact(request) => Ok(Command::Compact(compact(&request))),
        Message::LeaseGrant(request) => Ok(Command::LeaseGrant(lease_grant(&request))),
        Message::LeaseRevoke(request) => Ok(Command::LeaseRevoke(lease_revoke(&request))),
        Message::LeaseExpire(expire) => Ok(Command::LeaseExpire(lease_expire(expire))),
        Message::Alarm(request) => Ok(Command::Alarm(alarm(&request)?)),
        Message::MemberPublish(publish) => Ok(Command::MemberPublish(member_publish(publish))),
        Message::SessionBegin(request) => Ok(Command::SessionBegin(lock::session_begin(request))),
        Message::LockAcquire(message) => Ok(Command::Lock(lock::acquire(message))),
        Message::LockRelease(message) => Ok(Command::Lock(lock::release(message))),
        Message::LockConvert(request) => Ok(Command::Lock(lock::convert(request))),
        Message::LockBreak(message) => Ok(Command::Lock(lock::seize(message))),
        Message::Campaign(message) => Ok(Command::Lock(lock::campaign(message))),
        Message::Leave(message) => Ok(Command::Lock(lock::leave(message))),
        Message::HandOver(message) => Ok(Command::Lock(lock::hand_over(message))),
        Message::GuardedTxn(request) => Ok(Command::GuardedTxn(lock::guarded_txn(request)?)),
        Message::Primitive(message) => Ok(Command::Primitive(primitive::primitive(message)?)),
        Message::AuthEnable(_) => Ok(Command::Auth(AuthCommand::Enable)),
        Message::AuthDisable(_) => Ok(Command::Auth(AuthCommand::Disable)),
        Message::AuthUserAdd(add) => Ok(Command::Auth(auth::user_add(add))),
        Message::AuthUserDelete(delete) => Ok(Command::Auth(AuthCommand::UserDelete(delete.name))),
        Message::AuthChangePassword(change) => Ok(Command::Auth(auth::change_password(change))),
        Message::AuthUserGrantRole(grant) => Ok(Command::Auth(auth::user_grant_role(grant))),
        Message::AuthUserRevokeRole(revoke) => Ok(Command::Auth(auth::user_revoke_role(revoke))),
        Message::AuthRoleAdd(add) => Ok(Command::Auth(AuthCommand::RoleAdd(add.name))),
        Message::AuthRoleDelete(delete) => Ok(Command::Auth(AuthCommand::RoleDelete(delete.role))),
        Message::AuthRoleGrant(grant) => Ok(Command::Auth(auth::role_grant(grant)?)),
        Message::AuthRoleRevoke(revoke) => Ok(Command::Auth(auth::role_revoke(revoke))),
        Message::AuthToken(issue) => Ok(Command::Auth(auth::token(issue))),
        Message::RegistryRegister(message) => Ok(Command::Registry(registry::register(message))),
        Message::RegistryDeregister(request) => {
            Ok(Command::Registry(registry::deregister(request)))
        }
        Message::RegistryUpdate(message) => Ok(Command::Registry(registry::update(message)?)),
        Message::RegistryChecked(message) => Ok(Command::Registry(registry::checked(message)?)),
        Message::RegistrySettle(message) => Ok(Command::Registry(registry::settle(message)?)),
        Message::RegistryConfigure(request) => Ok(Command::Registry(registry::configure(request))),
        Message::Write(request) => Ok(Command::Write(write::write(request)?)),
    }
}

/// Converts a put.
#[must_use]
pub fn put(request: etcd::PutRequest) -> Put {
    Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

/// Converts a range delete.
#[must_use]
pub fn delete_range(request: etcd::DeleteRangeRequest) -> DeleteRange {
    DeleteRange { key: request.key, range_end: request.range_end, prev_kv: request.prev_kv }
}

/// Converts a range read.
///
/// # Errors
/// [`Rejection::InvalidSort`] for an unknown sort order or target.
pub fn range(request: etcd::RangeRequest) -> Result<Range, Rejection> {
    Ok(Range {
        sort_order: sort_order(request.sort_order)?,
        sort_target: sort_target(request.sort_target)?,
        key: request.key,
        range_end: request.range_end,
        limit: request.limit,
        revision: request.revision,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    })
}

fn sort_order(number: i32) -> Result<SortOrder, Rejection> {
    use etcd::range_request::SortOrder as Message;
    match Message::try_from(number).map_err(|_| Rejection::InvalidSort)? {
        Message::None => Ok(SortOrder::None),
        Message::Ascend => Ok(SortOrder::Ascend),
        Message::Descend => Ok(SortOrder::Descend),
    }
}

fn sort_target(number: i32) -> Result<SortTarget, Rejection> {
    use etcd::range_request::SortTarget as Message;
    match Message::try_from(number).map_err(|_| Rejection::InvalidSort)? {
        Message::Key => Ok(SortTarget::Key),
        Message::Version => Ok(SortTarget::Version),
        Message::Create => Ok(SortTarget::Create),
        Message::Mod => Ok(SortTarget::Mod),
        Message::Value => Ok(SortTarget::Value),
    }
}

/// Converts a transaction.
///
/// # Errors
/// [`Rejection::Malformed`] for nesting that no client sends; [`Rejection::KeyNotFound`] for an
/// operation without content, as in etcd; [`Rejection::InvalidSort`] for an unknown sort order or
/// target.
pub fn txn(request: etcd::TxnRequest) -> Result<Txn, Rejection> {
    txn_at(request, 1)
}

// Deeper nesting is never proposed, and prost decodes at most 100 levels of messages anyway.
fn txn_at(request: etcd::TxnRequest, depth: usize) -> Result<Txn, Rejection> {
    if depth > TXN_DEPTH_MAX {
        return Err(Rejection::Malformed("transaction nested too deep"));
    }
    let ops = |ops: Vec<etcd::RequestOp>| {
        ops.into_iter().map(|op| txn_op(op, depth)).collect::<Result<Vec<TxnOp>, Rejection>>()
    };
    Ok(Txn {
        compare: request.compare.into_iter().map(compare).collect(),
        success: ops(request.success)?,
        failure: ops(request.failure)?,
    })
}

fn txn_op(op: etcd::RequestOp, depth: usize) -> Result<TxnOp, Rejection> {
    use etcd::request_op::Request;
    match op.request.ok_or(Rejection::KeyNotFound)? {
        Request::RequestRange(request) => range(request).map(TxnOp::Range),
        Request::RequestPut(request) => Ok(TxnOp::Put(put(request))),
        Request::RequestDeleteRange(request) => Ok(TxnOp::DeleteRange(delete_range(request))),
        Request::RequestTxn(request) => txn_at(request, depth + 1).map(TxnOp::Txn),
    }
}

fn compare(message: etcd::Compare) -> Compare {
    use etcd::compare::{CompareResult as Relation, CompareTarget as Target, TargetUnion};
    // The target decides: an operand of another kind, or none, counts as zero, as in etcd.
    let target = match (Target::try_from(message.target), message.target_union) {
        (Ok(Target::Version), Some(TargetUnion::Version(n))) => CompareTarget::Version(n),
        (Ok(Target::Version), _) => CompareTarget::Version(0),
        (Ok(Target::Create), Some(TargetUnion::CreateRevision(n))) => CompareTarget::Create(n),
        (Ok(Target::Create), _) => CompareTarget::Create(0),
        (Ok(Target::Mod), Some(TargetUnion::ModRevision(n))) => CompareTarget::Mod(n),
        (Ok(Target::Mod), _) => CompareTarget::Mod(0),
        (Ok(Target::Value), Some(TargetUnion::Value(value))) => CompareTarget::Value(value),
        (Ok(Target::Value), _) => CompareTarget::Value(bytes::Bytes::new()),
        (Ok(Target::Lease), Some(TargetUnion::Lease(n))) => CompareTarget::Lease(n),
        (Ok(Target::Lease), _) => CompareTarget::Lease(0),
        (Err(_), _) => CompareTarget::Unknown,
    };
    let result = match Relation::try_from(message.result) {
        Ok(Relation::Equal) => CompareResult::Equal,
        Ok(Relation::Greater) => CompareResult::Greater,
        Ok(Relation::Less) => CompareResult::Less,
        Ok(Relation::NotEqual) => CompareResult::NotEqual,
        Err(_) => CompareResult::Unknown,
    };
    Compare { key: message.key, range_end: message.range_end, result, target }
}

/// Converts a compaction.
#[must_use]
pub fn compact(request: &etcd::CompactionRequest) -> Compact {
    Compact { revision: request.revision }
}

/// Converts a lease grant.
#[must_use]
pub fn lease_grant(request: &etcd::LeaseGrantRequest) -> LeaseGrant {
    LeaseGrant { id: request.id, ttl: request.ttl }
}

/// Converts a lease revocation.
#[must_use]
pub fn lease_revoke(request: &etcd::LeaseRevokeRequest) -> LeaseRevoke {
    LeaseRevoke { id: request.id }
}

fn lease_expire(expire: internal::LeaseExpire) -> LeaseExpire {
    LeaseExpire {
        term: expire.term,
        ids: expire.ids,
        granted: expire.granted,
        now_ms: expire.now_unix_ms,
        is_guarded: expire.guarded,
        is_damping: expire.damping,
    }
}

/// Converts an alarm request.
///
/// # Errors
/// [`Rejection::Malformed`] for an unknown action or kind.
pub fn alarm(request: &etcd::AlarmRequest) -> Result<AlarmChange, Rejection> {
    use etcd::AlarmType;
    use etcd::alarm_request::AlarmAction as Action;
    let action = match Action::try_from(request.action)
        .map_err(|_| Rejection::Malformed("unknown alarm action"))?
    {
        Action::Get => AlarmAction::Get,
        Action::Activate => AlarmAction::Activate,
        Action::Deactivate => AlarmAction::Deactivate,
    };
    let alarm = match AlarmType::try_from(request.alarm)
        .map_err(|_| Rejection::Malformed("unknown alarm"))?
    {
        AlarmType::None => AlarmKind::None,
        AlarmType::Nospace => AlarmKind::NoSpace,
        AlarmType::Corrupt => AlarmKind::Corrupt,
    };
    Ok(AlarmChange { action, member: request.member_id, alarm })
}

fn member_publish(publish: internal::MemberPublish) -> MemberRecord {
    MemberRecord {
        id: publish.id,
        name: publish.name,
        peer_urls: publish.peer_urls,
        client_urls: publish.client_urls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_are_rejected_not_panicked_on() {
        let sort = etcd::RangeRequest { sort_order: 7, ..Default::default() };
        assert_eq!(range(sort), Err(Rejection::InvalidSort));
        let sort = etcd::RangeRequest { sort_target: -1, ..Default::default() };
        assert_eq!(range(sort), Err(Rejection::InvalidSort));
        let empty = etcd::TxnRequest {
            success: vec![etcd::RequestOp { request: None }],
            ..Default::default()
        };
        assert_eq!(txn(empty), Err(Rejection::KeyNotFound));
        let unknown = internal::Command::default();
        assert!(matches!(command(unknown), Err(Rejection::Malformed(_))));
        let request = etcd::AlarmRequest { alarm: 99, ..Default::default() };
        assert!(matches!(alarm(&request), Err(Rejection::Malformed(_))));
    }

    #[test]
    fn an_operand_of_another_kind_counts_as_zero() {
        let message = etcd::Compare {
            target: etcd::compare::CompareTarget::Version as i32,
            target_union: Some(etcd::compare::TargetUnion::Lease(5)),
            ..Default::default()
        };
        assert_eq!(compare(message).target, CompareTarget::Version(0));
    }

    #[test]
    fn a_compare_of_unknown_numbers_goes_to_the_state_machine() {
        let message = etcd::Compare { result: 9, target: -1, ..Default::default() };
        let Compare { result, target, .. } = compare(message);
        assert_eq!((result, target), (CompareResult::Unknown, CompareTarget::Unknown));
    }

    #[test]
    fn endless_nesting_is_rejected() {
        let mut request = etcd::TxnRequest::default();
        for _ in 0..=TXN_DEPTH_MAX {
            let op =
                etcd::RequestOp { request: Some(etcd::request_op::Request::RequestTxn(request)) };
            request = etcd::TxnRequest { success: vec![op], ..Default::default() };
        }
        assert!(matches!(txn(request), Err(Rejection::Malformed(_))));
    }
}
