//! The Auth service: users, roles, permissions and logins.
//!
//! Changes are commands; passwords are hashed before they are proposed. Reads are local, after a
//! read barrier.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::{authpb, etcdserverpb as etcd};
use conclave_raft_store::Reader;
use conclave_state_machine::auth::{self, ROOT_ROLE};
use conclave_state_machine::command::{Caller, Permission};
use conclave_state_machine::response::{AuthChange, Halt, Response as Answer};
use etcd::auth_server::Auth;
use tonic::{Request, Response, Status};

use super::context::{Context, mismatch};
use super::kv::off_thread;
use crate::auth::{NO_PASSWORD_USER, caller_of};
use crate::metrics::Method;
use crate::status::{self, Fault};

/// Answers auth calls.
#[derive(Clone)]
pub(crate) struct AuthService {
    pub(crate) context: Context,
}

type Header = Option<etcd::ResponseHeader>;

impl AuthService {
    fn reader(&self) -> &Reader {
        self.context.node.reader()
    }

    /// Checks the metadata of a call; returns the caller and the request.
    fn open<T>(&self, request: Request<T>) -> Result<(Caller, T), Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        Ok((caller, request.into_inner()))
    }

    /// Proposes a change on behalf of `caller`; returns the header of the answer.
    async fn change(&self, caller: &Caller, message: Message) -> Result<Header, Status> {
        match self.context.propose(caller, message).await? {
            (Answer::Auth(change), revision) => {
                self.log(&change);
                Ok(Some(self.context.header(revision)))
            }
            _ => Err(mismatch()),
        }
    }

    fn log(&self, change: &AuthChange) {
        let auth_revision = self.context.auth.head().revision;
        match change {
            AuthChange::Enabled => tracing::info!(auth_revision, "enabled authentication"),
            AuthChange::Disabled => tracing::warn!(auth_revision, "disabled authentication"),
            AuthChange::Nothing
            | AuthChange::Changed
            | AuthChange::TokensVoid { .. }
            | AuthChange::Token { .. } => tracing::debug!(auth_revision, "changed users or roles"),
        }
    }

    async fn enable(
        &self,
        request: Request<etcd::AuthEnableRequest>,
    ) -> Result<etcd::AuthEnableResponse, Status> {
        let (caller, request) = self.open(request)?;
        let header = self.change(&caller, Message::AuthEnable(request)).await?;
        Ok(etcd::AuthEnableResponse { header })
    }

    async fn disable(
        &self,
        request: Request<etcd::AuthDisableRequest>,
    ) -> Result<etcd::AuthDisableResponse, Status> {
        let (caller, request) = self.open(request)?;
        let header = self.change(&caller, Message::AuthDisable(request)).await?;
        Ok(etcd::AuthDisableResponse { header })
    }

    async fn status(
        &self,
        request: Request<etcd::AuthStatusRequest>,
    ) -> Result<etcd::AuthStatusResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        self.context.read_barrier().await?;
        let head = self.reader().head();
        Ok(etcd::AuthStatusResponse {
            header: Some(self.context.header(head.revision)),
            enabled: head.auth.enabled,
            auth_revision: head.auth.revision,
        })
    }

    async fn log_in(
        &self,
        request: Request<etcd::AuthenticateRequest>,
    ) -> Result<etcd::AuthenticateResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let etcd::AuthenticateRequest { name, password } = request.into_inner();
        let token = self.context.auth.log_in(&self.context, &name, password).await?;
        Ok(etcd::AuthenticateResponse { header: Some(self.context.current_header()), token })
    }

    async fn add_user(
        &self,
        request: Request<etcd::AuthUserAddRequest>,
    ) -> Result<etcd::AuthUserAddResponse, Status> {
        let (caller, request) = self.open(request)?;
        let no_password = request.options.is_some_and(|options| options.no_password);
        let password_hash = if no_password {
            Default::default()
        } else {
            self.context.auth.passwords().hash(request.password).await?
        };
        let add = internal::AuthUserAdd { name: request.name, password_hash, no_password };
        let header = self.change(&caller, Message::AuthUserAdd(add)).await?;
        Ok(etcd::AuthUserAddResponse { header })
    }

    async fn change_password(
        &self,
        request: Request<etcd::AuthUserChangePasswordRequest>,
    ) -> Result<etcd::AuthUserChangePasswordResponse, Status> {
        let (caller, request) = self.open(request)?;
        let password_hash = if request.password.is_empty() {
            given_hash(&request.hashed_password)?
        } else {
            self.context.auth.passwords().hash(request.password).await?
        };
        let change = internal::AuthChangePassword { name: request.name, password_hash };
        let header = self.change(&caller, Message::AuthChangePassword(change)).await?;
        Ok(etcd::AuthUserChangePasswordResponse { header })
    }

    async fn delete_user(
        &self,
        request: Request<etcd::AuthUserDeleteRequest>,
    ) -> Result<etcd::AuthUserDeleteResponse, Status> {
        let (caller, request) = self.open(request)?;
        let header = self.change(&caller, Message::AuthUserDelete(request)).await?;
        Ok(etcd::AuthUserDeleteResponse { header })
    }

    async fn grant_role(
        &self,
        request: Request<etcd::AuthUserGrantRoleRequest>,
    ) -> Result<etcd::AuthUserGrantRoleResponse, Status> {
        let (caller, request) = self.open(request)?;
        let header = self.change(&caller, Message::AuthUserGrantRole(request)).await?;
        Ok(etcd::AuthUserGrantRoleResponse { header })
    }

    async fn revoke_role(
        &self,
        request: Request<etcd::AuthUserRevokeRoleRequest>,
    ) -> Result<etcd::AuthUserRevokeRoleResponse, Status> {
        let (caller, request) = self.open(request)?;
        let header = self.change(&caller, Message::AuthUserRevokeRole(request)).await?;
        Ok(etcd::AuthUserRevokeRoleResponse { header })
    }

    async fn add_role(
        &self,
        request: Request<etcd::AuthRoleAddRequest>,
    ) -> Result<etcd::AuthRoleAddResponse, Status> {
        let (caller, request) = self.open(request)?;
        let header = self.change(&caller, Message::AuthRoleAdd(request)).await?;
        Ok(etcd::AuthRoleAddResponse { header })
    }

    async fn delete_role(
        &self,
        request: Request<etcd::AuthRoleDeleteRequest>,
    ) -> Result<etcd::AuthRoleDeleteResponse, Status> {
        let (caller, request) = self.open(request)?;
        let header = self.change(&caller, Message::AuthRoleDelete(request)).await?;
        Ok(etcd::AuthRoleDeleteResponse { header })
    }

    async fn grant_permission(
        &self,
        request: Request<etcd::AuthRoleGrantPermissionRequest>,
    ) -> Result<etcd::AuthRoleGrantPermissionResponse, Status> {
        let (caller, request) = self.open(request)?;
        self.context.check_size(&request)?;
        let header = self.change(&caller, Message::AuthRoleGrant(request)).await?;
        Ok(etcd::AuthRoleGrantPermissionResponse { header })
    }

    async fn revoke_permission(
        &self,
        request: Request<etcd::AuthRoleRevokePermissionRequest>,
    ) -> Result<etcd::AuthRoleRevokePermissionResponse, Status> {
        let (caller, request) = self.open(request)?;
        let header = self.change(&caller, Message::AuthRoleRevoke(request)).await?;
        Ok(etcd::AuthRoleRevokePermissionResponse { header })
    }

    async fn get_user(
        &self,
        request: Request<etcd::AuthUserGetRequest>,
    ) -> Result<etcd::AuthUserGetResponse, Status> {
        let (caller, etcd::AuthUserGetRequest { name }) = self.open(request)?;
        self.context.read_barrier().await?;
        if !matches!(&caller, Caller::User { name: own, .. } if own.as_str() == name) {
            self.context.auth.check_root(&caller)?;
        }
        let user = found(auth::user(self.reader(), &name))?.ok_or(Fault::UserNotFound)?;
        Ok(etcd::AuthUserGetResponse {
            header: Some(self.context.current_header()),
            roles: user.roles,
        })
    }

    async fn list_users(
        &self,
        request: Request<etcd::AuthUserListRequest>,
    ) -> Result<etcd::AuthUserListResponse, Status> {
        let (caller, _) = self.open(request)?;
        self.context.read_barrier().await?;
        self.context.auth.check_root(&caller)?;
        let reader = self.reader().clone();
        let users = found(off_thread(move || auth::users(&reader)).await?)?;
        Ok(etcd::AuthUserListResponse { header: Some(self.context.current_header()), users })
    }

    async fn get_role(
        &self,
        request: Request<etcd::AuthRoleGetRequest>,
    ) -> Result<etcd::AuthRoleGetResponse, Status> {
        let (caller, etcd::AuthRoleGetRequest { role }) = self.open(request)?;
        self.context.read_barrier().await?;
        if !self.has_role(&caller, &role)? {
            self.context.auth.check_root(&caller)?;
        }
        let row = found(auth::role(self.reader(), &role))?.ok_or(Fault::RoleNotFound)?;
        let perm = if role == ROOT_ROLE {
            vec![everything()]
        } else {
            row.permissions.into_iter().map(permission).collect()
        };
        Ok(etcd::AuthRoleGetResponse { header: Some(self.context.current_header()), perm })
    }

    async fn list_roles(
        &self,
        request: Request<etcd::AuthRoleListRequest>,
    ) -> Result<etcd::AuthRoleListResponse, Status> {
        let (caller, _) = self.open(request)?;
        self.context.read_barrier().await?;
        self.context.auth.check_root(&caller)?;
        let reader = self.reader().clone();
        let roles = found(off_thread(move || auth::roles(&reader)).await?)?;
        Ok(etcd::AuthRoleListResponse { header: Some(self.context.current_header()), roles })
    }

    fn has_role(&self, caller: &Caller, role: &str) -> Result<bool, Status> {
        let Caller::User { name, .. } = caller else { return Ok(false) };
        let user = found(auth::user(self.reader(), name.as_str()))?;
        Ok(user.is_some_and(|user| user.has_role(role)))
    }
}

/// Decodes a password hash that a client sent instead of a password (etcd 3.5 and later). As in
/// etcd, nobody can log in if it is empty or not a valid hash. Only a password change takes one:
/// etcd's `UserAdd` ignores it.
fn given_hash(base64: &str) -> Result<Bytes, Status> {
    // etcd's answer to invalid Base64.
    STANDARD.decode(base64).map(Bytes::from).map_err(|_| status::unknown(NO_PASSWORD_USER))
}

fn found<T>(read: Result<T, Halt>) -> Result<T, Status> {
    read.map_err(|_halt| status::halted())
}

/// The permission that etcd reports for the root role.
fn everything() -> authpb::Permission {
    authpb::Permission {
        perm_type: authpb::permission::Type::Readwrite as i32,
        key: Default::default(),
        range_end: Bytes::from_static(b"\0"),
    }
}

fn permission(granted: Permission) -> authpb::Permission {
    authpb::Permission {
        perm_type: granted.kind.number().into(),
        key: granted.key,
        range_end: granted.range_end,
    }
}

/// Implements the methods of the service: each call is counted, then answered.
macro_rules! serve {
    ($($name:ident($request:ident) -> $response:ident = $method:ident, $answer:ident;)*) => {
        #[tonic::async_trait]
        impl Auth for AuthService {
            $(
                async fn $name(
                    &self,
                    request: Request<etcd::$request>,
                ) -> Result<Response<etcd::$response>, Status> {
                    self.context.metrics.call(Method::$method, self.$answer(request)).await
                }
            )*
        }
    };
}

serve! {
    auth_enable(AuthEnableRequest) -> AuthEnableResponse = AuthEnable, enable;
    auth_disable(AuthDisableRequest) -> AuthDisableResponse = AuthDisable, disable;
    auth_status(AuthStatusRequest) -> AuthStatusResponse = AuthStatus, status;
    authenticate(AuthenticateRequest) -> AuthenticateResponse = Authenticate, log_in;
    user_add(AuthUserAddRequest) -> AuthUserAddResponse = UserAdd, add_user;
    user_get(AuthUserGetRequest) -> AuthUserGetResponse = UserGet, get_user;
    user_list(AuthUserListRequest) -> AuthUserListResponse = UserList, list_users;
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse = UserDelete, delete_user;
    user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse
        = UserChangePassword, change_password;
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse
        = UserGrantRole, grant_role;
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse
        = UserRevokeRole, revoke_role;
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse = RoleAdd, add_role;
    role_get(AuthRoleGetRequest) -> AuthRoleGetResponse = RoleGet, get_role;
    role_list(AuthRoleListRequest) -> AuthRoleListResponse = RoleList, list_roles;
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse = RoleDelete, delete_role;
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse
        = RoleGrantPermission, grant_permission;
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse
        = RoleRevokePermission, revoke_permission;
}
