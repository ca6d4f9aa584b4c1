//! Users, roles and permissions.

use bytes::Bytes;
use conclave_client::{
    auth::authpb::{Permission, permission::Type},
    key::prefix_end,
    pb::{
        AuthRoleAddResponse, AuthRoleGetResponse, AuthRoleListResponse, AuthStatusResponse,
        AuthUserGetResponse, AuthUserListResponse, ResponseHeader,
    },
};
use prost::Message as _;

use super::{Answer, Style, go::quote, header_fields, header_json, json::Writer, line};

/// A change, reported in one sentence.
pub(crate) struct Done {
    pub(crate) header: Option<ResponseHeader>,
    pub(crate) sentence: String,
}

impl Answer for Done {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "{}", self.sentence);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| header_json(self.header.as_ref(), out));
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.header.as_ref(), out);
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        // The answers to all changes have the same message fields.
        Some(AuthRoleAddResponse { header: self.header }.encode_to_vec())
    }
}

/// A user.
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) response: AuthUserGetResponse,
}

impl Answer for User {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        let roles: String = self.response.roles.iter().map(|role| format!(" {role}")).collect();
        line!(out, "User: {}", self.name);
        line!(out, "Roles:{roles}");
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.response.header.as_ref(), out);
            out.texts("roles", &self.response.roles);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.response.header.as_ref(), out);
        quoted("Roles", &self.response.roles, out);
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.response.encode_to_vec())
    }
}

/// A role with its permissions.
pub(crate) struct Role {
    pub(crate) name: String,
    pub(crate) response: AuthRoleGetResponse,
}

impl Answer for Role {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "Role {}", self.name);
        for (title, other) in [("KV Read:", Type::Write), ("KV Write:", Type::Read)] {
            line!(out, "{title}");
            let granted = self.response.perm.iter().filter(|one| one.perm_type() != other);
            granted.for_each(|permission| {
                out.push(b'\t');
                range(permission, out);
                out.push(b'\n');
            });
        }
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.response.header.as_ref(), out);
            if self.response.perm.is_empty() {
                return;
            }
            out.name("perm");
            out.array(&self.response.perm, |out, permission| {
                out.object(|out| {
                    out.signed("permType", permission.perm_type.into());
                    out.bytes("key", &permission.key);
                    out.bytes("range_end", &permission.range_end);
                });
            });
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.response.header.as_ref(), out);
        for permission in &self.response.perm {
            line!(out, "\"PermType\" :  {}", permission.perm_type().as_str_name());
            line!(out, "\"Key\" : {}", quote(&permission.key));
            line!(out, "\"RangeEnd\" : {}", quote(&permission.range_end));
        }
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.response.encode_to_vec())
    }
}

/// Prints a granted range as etcdctl does.
fn range(permission: &Permission, out: &mut Vec<u8>) {
    let Permission { key, range_end, .. } = permission;
    if range_end.is_empty() {
        out.extend_from_slice(key);
        return;
    }
    let is_open = range_end.as_ref() == [0];
    let end = if is_open { Bytes::from_static(b"<open ended>") } else { range_end.clone() };
    out.push(b'[');
    out.extend_from_slice(key);
    out.extend_from_slice(b", ");
    out.extend_from_slice(&end);
    if !is_open {
        out.push(b')');
    }
    if prefix_end(key) == *range_end {
        out.extend_from_slice(b" (prefix ");
        out.extend_from_slice(key);
        out.push(b')');
    }
}

/// Names of users or roles.
pub(crate) struct Names {
    header: Option<ResponseHeader>,
    /// Titles for JSON and for fields.
    titles: [&'static str; 2],
    names: Vec<String>,
}

impl From<AuthUserListResponse> for Names {
    fn from(list: AuthUserListResponse) -> Self {
        Self { header: list.header, titles: ["users", "Users"], names: list.users }
    }
}

impl From<AuthRoleListResponse> for Names {
    fn from(list: AuthRoleListResponse) -> Self {
        Self { header: list.header, titles: ["roles", "Roles"], names: list.roles }
    }
}

impl Answer for Names {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        self.names.iter().for_each(|name| line!(out, "{name}"));
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.header.as_ref(), out);
            out.texts(self.titles[0], &self.names);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.header.as_ref(), out);
        quoted(self.titles[1], &self.names, out);
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        // The message for users has the same fields as that for roles.
        let (header, roles) = (self.header, self.names.clone());
        Some(AuthRoleListResponse { header, roles }.encode_to_vec())
    }
}

fn quoted(title: &str, names: &[String], out: &mut Vec<u8>) {
    let names: String = names.iter().map(|name| format!(" {}", quote(name.as_bytes()))).collect();
    line!(out, "\"{title}\" :{names}");
}

/// Whether authentication is enabled.
pub(crate) struct AuthStatus(pub(crate) AuthStatusResponse);

impl Answer for AuthStatus {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "Authentication Status: {}", self.0.enabled);
        line!(out, "AuthRevision: {}", self.0.auth_revision);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.0.header.as_ref(), out);
            out.boolean("enabled", self.0.enabled);
            out.unsigned("authRevision", self.0.auth_revision);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.0.header.as_ref(), out);
        line!(out, "\"Enabled\" : {}", self.0.enabled);
        line!(out, "\"AuthRevision\" : {}", self.0.auth_revision);
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.0.encode_to_vec())
    }
}
