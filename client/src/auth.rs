//! User, role and permission management. To call as a user, see [`crate::Builder::user`].

use conclave_proto::{
    authpb::{Permission, UserAddOptions},
    etcdserverpb::{
        AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
        AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
        AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
        AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
        AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
        AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
        AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
        AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest,
        AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse,
        AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse, auth_client::AuthClient,
    },
};

pub use conclave_proto::authpb;

use crate::{client::Client, error::Error, reply::Reply};

/// Manages users and roles; see [`Client::auth`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::auth::authpb::{Permission, permission::Type};
/// use conclave_client::key::prefix_end;
///
/// let config = "config/";
/// let auth = client.auth();
/// auth.user_add("app", Some("correct horse")).await?;
/// auth.role_add("reader").await?;
/// let (key, range_end) = (config.into(), prefix_end(config.as_bytes()));
/// let may_read = Permission { perm_type: Type::Read.into(), key, range_end };
/// auth.role_grant_permission("reader", may_read).await?;
/// auth.user_grant_role("app", "reader").await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Auth<'a>(&'a Client);

impl Client {
    /// Manages users and roles.
    #[must_use]
    pub fn auth(&self) -> Auth<'_> {
        Auth(self)
    }
}

/// Defines one method for each call: its documentation, retry class, request and generated method.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) -> $response:ident
        = $kind:ident $method:ident($request:expr);)*) => {
        impl Auth<'_> {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// See [`Error`].
                pub async fn $name(&self, $($argument: $type),*) -> Result<Reply<$response>, Error> {
                    let request = $request;
                    let call = |channel| {
                        let request = request.clone();
                        async move { AuthClient::new(channel).$method(request).await }
                    };
                    self.0.$kind(call).await.map(Reply::new)
                }
            )*
        }
    };
}

calls! {
    /// Enables authentication: every call needs a user. The user `root` with the role `root` must
    /// exist.
    enable() -> AuthEnableResponse = write auth_enable(AuthEnableRequest {});

    /// Disables authentication.
    disable() -> AuthDisableResponse = write auth_disable(AuthDisableRequest {});

    /// Whether authentication is enabled, and how often users and roles changed. etcd before 3.5
    /// does not implement it.
    status() -> AuthStatusResponse = read auth_status(AuthStatusRequest {});

    /// Adds a user; without a password it can only authenticate by certificate.
    user_add(name: &str, password: Option<&str>) -> AuthUserAddResponse = write user_add(
        AuthUserAddRequest {
            name: name.to_owned(),
            password: password.unwrap_or_default().to_owned(),
            options: Some(UserAddOptions { no_password: password.is_none() }),
            ..Default::default()
        }
    );

    /// Lists the roles of a user.
    user_get(name: &str) -> AuthUserGetResponse =
        read user_get(AuthUserGetRequest { name: name.to_owned() });

    /// Lists the names of all users.
    user_list() -> AuthUserListResponse = read user_list(AuthUserListRequest {});

    /// Deletes a user.
    user_delete(name: &str) -> AuthUserDeleteResponse =
        write user_delete(AuthUserDeleteRequest { name: name.to_owned() });

    /// Changes the password of a user; its tokens become invalid.
    user_change_password(name: &str, password: &str) -> AuthUserChangePasswordResponse
        = write user_change_password(
        AuthUserChangePasswordRequest {
            name: name.to_owned(),
            password: password.to_owned(),
            ..Default::default()
        }
    );

    /// Grants a role to a user.
    user_grant_role(user: &str, role: &str) -> AuthUserGrantRoleResponse = write user_grant_role(
        AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() }
    );

    /// Revokes a role from a user.
    user_revoke_role(user: &str, role: &str) -> AuthUserRevokeRoleResponse = write user_revoke_role(
        AuthUserRevokeRoleRequest { name: user.to_owned(), role: role.to_owned() }
    );

    /// Adds a role.
    role_add(name: &str) -> AuthRoleAddResponse =
        write role_add(AuthRoleAddRequest { name: name.to_owned() });

    /// Lists the permissions of a role.
    role_get(role: &str) -> AuthRoleGetResponse =
        read role_get(AuthRoleGetRequest { role: role.to_owned() });

    /// Lists the names of all roles.
    role_list() -> AuthRoleListResponse = read role_list(AuthRoleListRequest {});

    /// Deletes a role, and revokes it from all users.
    role_delete(role: &str) -> AuthRoleDeleteResponse =
        write role_delete(AuthRoleDeleteRequest { role: role.to_owned() });

    /// Grants a permission to a role, replacing one for the same keys.
    role_grant_permission(role: &str, permission: Permission) -> AuthRoleGrantPermissionResponse
        = write role_grant_permission(
        AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(permission) }
    );

    /// Revokes a permission from a role; key and range end as they were granted.
    role_revoke_permission(role: &str, key: &[u8], range_end: &[u8])
        -> AuthRoleRevokePermissionResponse = write role_revoke_permission(
        AuthRoleRevokePermissionRequest {
            role: role.to_owned(),
            key: key.to_vec().into(),
            range_end: range_end.to_vec().into(),
        }
    );
}
