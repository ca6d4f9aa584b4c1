//! Calls about users, roles and alarms, made of a few words.

use bytes::Bytes;
use conclave_proto::authpb::permission::Type;
use conclave_proto::authpb::{Permission, UserAddOptions};
use conclave_proto::etcdserverpb::alarm_request::AlarmAction;
use conclave_proto::etcdserverpb::{
    AlarmRequest, AlarmType, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, AuthenticateRequest,
};

use super::calls::Call;
use super::step::Step;

/// A member that no cluster has.
pub(super) const NOBODY: u64 = 77;

pub(super) fn alarm(action: AlarmAction, alarm: AlarmType) -> Step {
    let (action, alarm) = (action.into(), alarm.into());
    Step::Call(Call::Alarm(AlarmRequest { action, member_id: NOBODY, alarm }))
}

pub(super) fn login(user: &str, password: &str) -> Step {
    Step::Login(AuthenticateRequest { name: user.to_owned(), password: password.to_owned() })
}

pub(super) fn user_add(name: &str, password: &str) -> Call {
    // One user has no password.
    let options = (name == "eve").then_some(UserAddOptions { no_password: true });
    let password = if name == "eve" { "" } else { password };
    let (name, password) = (name.to_owned(), password.to_owned());
    Call::UserAdd(AuthUserAddRequest { name, password, options, ..Default::default() })
}

pub(super) fn user_grant(user: &str, role: &str) -> Call {
    Call::UserGrant(AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() })
}

pub(super) fn role_grant(role: &str, key: Bytes, range_end: Bytes, kind: Type) -> Call {
    let perm = Some(Permission { perm_type: kind.into(), key, range_end });
    Call::RoleGrant(AuthRoleGrantPermissionRequest { name: role.to_owned(), perm })
}
