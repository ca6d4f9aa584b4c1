//! Services whose implementation comes later. They answer Unimplemented with a text that says so,
//! rather than not being there, so that a client's user learns why.

use conclave_proto::etcdserverpb::auth_server::Auth;
use conclave_proto::etcdserverpb::*;
use tonic::{Request, Response, Status};

use crate::status::not_yet;

/// Answers every call of the Auth service.
#[derive(Clone, Copy)]
pub(crate) struct LaterService;

/// One method that refuses: its name, messages and what is missing.
macro_rules! refuse {
    ($($name:ident($request:ty) -> $response:ty = $what:literal;)*) => {
        $(
            fn $name<'life, 'result>(
                &'life self,
                _: Request<$request>,
            ) -> Refused<'result, $response>
            where
                'life: 'result,
                Self: 'result,
            {
                Box::pin(std::future::ready(Err(not_yet($what))))
            }
        )*
    };
}

/// What `async_trait` makes of an asynchronous method.
type Refused<'a, T> =
    std::pin::Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

impl Auth for LaterService {
    refuse! {
        auth_enable(AuthEnableRequest) -> AuthEnableResponse = "authentication";
        auth_disable(AuthDisableRequest) -> AuthDisableResponse = "authentication";
        auth_status(AuthStatusRequest) -> AuthStatusResponse = "authentication";
        authenticate(AuthenticateRequest) -> AuthenticateResponse = "authentication";
        user_add(AuthUserAddRequest) -> AuthUserAddResponse = "authentication";
        user_get(AuthUserGetRequest) -> AuthUserGetResponse = "authentication";
        user_list(AuthUserListRequest) -> AuthUserListResponse = "authentication";
        user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse = "authentication";
        user_change_password(AuthUserChangePasswordRequest)
            -> AuthUserChangePasswordResponse = "authentication";
        user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse = "authentication";
        user_revoke_role(AuthUserRevokeRoleRequest)
            -> AuthUserRevokeRoleResponse = "authentication";
        role_add(AuthRoleAddRequest) -> AuthRoleAddResponse = "authentication";
        role_get(AuthRoleGetRequest) -> AuthRoleGetResponse = "authentication";
        role_list(AuthRoleListRequest) -> AuthRoleListResponse = "authentication";
        role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse = "authentication";
        role_grant_permission(AuthRoleGrantPermissionRequest)
            -> AuthRoleGrantPermissionResponse = "authentication";
        role_revoke_permission(AuthRoleRevokePermissionRequest)
            -> AuthRoleRevokePermissionResponse = "authentication";
    }
}
