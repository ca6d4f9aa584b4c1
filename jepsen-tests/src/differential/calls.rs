//! Calls about users, roles, locks, elections, members and maintenance, each with the part of its answer
//! that must be equal.

use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_proto::etcdserverpb::cluster_client::ClusterClient;
use conclave_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use conclave_proto::etcdserverpb::{
    AlarmRequest, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest, AuthRoleListRequest,
    AuthRoleRevokePermissionRequest, AuthStatusRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest, DefragmentRequest,
    DowngradeRequest, HashKvRequest, HashKvResponse, HashRequest, HashResponse, Member,
    MemberAddRequest, MemberListRequest, MemberListResponse, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest, StatusRequest, StatusResponse,
};
use conclave_proto::v3electionpb::election_client::ElectionClient;
use conclave_proto::v3electionpb::{LeaderRequest, ProclaimRequest, ResignRequest};
use conclave_proto::v3lockpb::lock_client::LockClient;
use conclave_proto::v3lockpb::{LockRequest, UnlockRequest};
use tonic::Status;

use super::normal::anonymous;
use super::session::Session;

/// Makes the enum of the calls: name, client, method, request, and what makes two right answers equal.
macro_rules! calls {
    ($($name:ident, $client:ident . $method:ident, $request:ty, $tidy:expr;)*) => {
        /// A call with one answer.
        #[derive(Clone, Debug)]
        pub enum Call {
            $(#[doc = stringify!($client . $method)] $name($request),)*
        }

        impl Call {
            pub(super) fn kind(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($method),)*
                }
            }

            /// Makes the call; what must be equal of the answer.
            pub(super) async fn ask(self, session: Session) -> Result<String, Status> {
                let origin = session.origin();
                match self {
                    $(Self::$name(request) => {
                        let mut client = $client::with_origin(session, origin);
                        let mut answer = client.$method(request).await?.into_inner();
                        anonymous(&mut answer.header);
                        let tidy: fn(&mut _) = $tidy;
                        tidy(&mut answer);
                        Ok(format!("{answer:?}"))
                    })*
                }
            }
        }
    };
}

calls! {
    Enable, AuthClient.auth_enable, AuthEnableRequest, |_| {};
    Disable, AuthClient.auth_disable, AuthDisableRequest, |_| {};
    AuthStatus, AuthClient.auth_status, AuthStatusRequest, |_| {};
    UserAdd, AuthClient.user_add, AuthUserAddRequest, |_| {};
    UserGet, AuthClient.user_get, AuthUserGetRequest, |_| {};
    UserList, AuthClient.user_list, AuthUserListRequest, |_| {};
    UserDelete, AuthClient.user_delete, AuthUserDeleteRequest, |_| {};
    UserPassword, AuthClient.user_change_password, AuthUserChangePasswordRequest, |_| {};
    UserGrant, AuthClient.user_grant_role, AuthUserGrantRoleRequest, |_| {};
    UserRevoke, AuthClient.user_revoke_role, AuthUserRevokeRoleRequest, |_| {};
    RoleAdd, AuthClient.role_add, AuthRoleAddRequest, |_| {};
    RoleGet, AuthClient.role_get, AuthRoleGetRequest, same_role;
    RoleList, AuthClient.role_list, AuthRoleListRequest, |_| {};
    RoleDelete, AuthClient.role_delete, AuthRoleDeleteRequest, |_| {};
    RoleGrant, AuthClient.role_grant_permission, AuthRoleGrantPermissionRequest, |_| {};
    RoleRevoke, AuthClient.role_revoke_permission, AuthRoleRevokePermissionRequest, |_| {};
    Lock, LockClient.lock, LockRequest, |_| {};
    Unlock, LockClient.unlock, UnlockRequest, |_| {};
    Proclaim, ElectionClient.proclaim, ProclaimRequest, |_| {};
    Leader, ElectionClient.leader, LeaderRequest, |_| {};
    Resign, ElectionClient.resign, ResignRequest, |_| {};
    MemberList, ClusterClient.member_list, MemberListRequest, same_members;
    MemberAdd, ClusterClient.member_add, MemberAddRequest, |_| {};
    MemberRemove, ClusterClient.member_remove, MemberRemoveRequest, |_| {};
    MemberUpdate, ClusterClient.member_update, MemberUpdateRequest, |_| {};
    Alarm, MaintenanceClient.alarm, AlarmRequest, |_| {};
    Status, MaintenanceClient.status, StatusRequest, same_status;
    HashKv, MaintenanceClient.hash_kv, HashKvRequest, same_hash;
    Hash, MaintenanceClient.hash, HashRequest, |answer: &mut HashResponse| answer.hash = 0;
    Downgrade, MaintenanceClient.downgrade, DowngradeRequest, |_| {};
    Defragment, MaintenanceClient.defragment, DefragmentRequest, |_| {};
    MoveLeader, MaintenanceClient.move_leader, MoveLeaderRequest, |_| {};
}

/// Rights on ranges that begin with the same key may come in any order.
fn same_role(role: &mut AuthRoleGetResponse) {
    role.perm.sort_by(|one, other| (&one.key, &one.range_end).cmp(&(&other.key, &other.range_end)));
}

/// Ids and addresses are each cluster's own, and the order is that of the ids.
fn same_members(list: &mut MemberListResponse) {
    list.members.sort_by_key(|member| member.is_learner);
    for member in &mut list.members {
        *member = Member { is_learner: member.is_learner, ..Member::default() };
    }
}

/// The sum is one of each store's own form.
fn same_hash(answer: &mut HashKvResponse) {
    (answer.hash, answer.hash_revision) = (0, 0);
}

/// Whether there is a leader, whether it is a learner, and what is wrong.
fn same_status(status: &mut StatusResponse) {
    let mut errors = std::mem::take(&mut status.errors);
    errors.sort();
    let header = status.header.take();
    *status = StatusResponse {
        header,
        leader: u64::from(status.leader != 0),
        is_learner: status.is_learner,
        errors,
        ..StatusResponse::default()
    };
}
