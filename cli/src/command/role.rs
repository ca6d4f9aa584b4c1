//! `role`: sets of permissions.

use bytes::Bytes;
use clap::{Args, Subcommand};
use conclave_client::{
    auth::authpb::{Permission, permission::Type},
    key::prefix_end,
};

use super::{
    Context,
    user::{done, only},
};
use crate::{
    failure::Failure,
    output::{Names, Role},
    word::Word,
};

/// As a range end: no end. As a key: the first possible key.
const ALL: &[u8] = b"\0";

/// What to do with roles.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Add a role.
    Add {
        /// The role.
        #[arg(value_name = "ROLE")]
        name: Vec<String>,
    },
    /// Delete a role, and take it from all users.
    Delete {
        /// The role.
        #[arg(value_name = "ROLE")]
        name: Vec<String>,
    },
    /// Print the permissions of a role.
    Get {
        /// The role.
        #[arg(value_name = "ROLE")]
        name: Vec<String>,
    },
    /// Print all roles.
    List {
        #[arg(hide = true)]
        unexpected: Vec<String>,
    },
    /// Grant read, write or readwrite permission on a key or a range of keys to a role.
    GrantPermission {
        /// The role; read, write or readwrite; a key; optionally the end of a range.
        #[arg(value_name = "ROLE KIND KEY [END]", num_args = 0..)]
        words: Vec<Word>,
        #[command(flatten)]
        range: RangeArguments,
    },
    /// Revoke a permission of a role, for exactly the granted key or range.
    RevokePermission {
        /// The role, a key, and optionally the end of a range.
        #[arg(value_name = "ROLE KEY [END]", num_args = 0..)]
        words: Vec<Word>,
        #[command(flatten)]
        range: RangeArguments,
    },
}

/// Which keys are meant.
#[derive(Debug, Args)]
pub(crate) struct RangeArguments {
    /// All keys that begin with the key.
    #[arg(long)]
    prefix: bool,
    /// All keys from the key on.
    #[arg(long)]
    from_key: bool,
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let auth = context.client.auth();
    match verb {
        Verb::Add { name } => {
            let [name] = only(name, "role add command requires role name as its argument")?;
            let reply = auth.role_add(&name).await?;
            done(context, reply.into_inner().header, format!("Role {name} created"))
        }
        Verb::Delete { name } => {
            let [name] = only(name, "role delete command requires role name as its argument")?;
            let reply = auth.role_delete(&name).await?;
            done(context, reply.into_inner().header, format!("Role {name} deleted"))
        }
        Verb::Get { name } => {
            let [name] = only(name, "role get command requires role name as its argument")?;
            let response = auth.role_get(&name).await?.into_inner();
            context.print(&Role { name, response })
        }
        Verb::List { unexpected } => {
            let [] = only(unexpected, "role list command requires no arguments")?;
            context.print(&Names::from(auth.role_list().await?.into_inner()))
        }
        Verb::GrantPermission { words, range } => grant(context, &words, &range).await,
        Verb::RevokePermission { words, range } => revoke(context, &words, &range).await,
    }
}

async fn grant(context: &Context, words: &[Word], range: &RangeArguments) -> Result<(), Failure> {
    let [role, kind, keys @ ..] = words else { return Err(no_grant()) };
    if keys.is_empty() {
        return Err(no_grant());
    }
    let (role, kind) = (&role.text(), kind.text());
    let kind_type = Type::from_str_name(&kind.to_uppercase());
    let invalid = || Failure::bad_arguments(format!("invalid permission type: {kind}"));
    let perm_type = kind_type.ok_or_else(invalid)?.into();
    let (key, range_end) = range.of(keys)?;
    let permission = Permission { perm_type, key, range_end };
    let reply = context.client.auth().role_grant_permission(role, permission).await?;
    done(context, reply.into_inner().header, format!("Role {role} updated"))
}

fn no_grant() -> Failure {
    Failure::bad_arguments(
        "role grant command requires role name, permission type, and key [endkey] as its argument",
    )
}

async fn revoke(context: &Context, words: &[Word], range: &RangeArguments) -> Result<(), Failure> {
    let (role, keys) = match words {
        [role, keys @ ..] if !keys.is_empty() => (&role.text(), keys),
        _ => {
            return Err(Failure::bad_arguments(
                "role revoke-permission command requires role name and key [endkey] as its argument",
            ));
        }
    };
    let (key, range_end) = range.of(keys)?;
    let reply = context.client.auth().role_revoke_permission(role, &key, &range_end).await?;
    // As typed by the user: an empty key stands for the first possible one.
    let text = keys[0].text();
    let what = match range_end.as_ref() {
        b"" => format!("key {text}"),
        ALL => format!("range [{text}, <open ended>"),
        end => format!("range [{text}, {})", String::from_utf8_lossy(end)),
    };
    let sentence = format!("Permission of {what} is revoked from role {role}");
    done(context, reply.into_inner().header, sentence)
}

impl RangeArguments {
    /// Key and range end of a permission, by etcdctl's rules.
    fn of(&self, keys: &[Word]) -> Result<(Bytes, Bytes), Failure> {
        let bad = |message: &str| Err(Failure::bad_arguments(message));
        if self.prefix && self.from_key {
            return bad("--from-key and --prefix flags are mutually exclusive");
        }
        let all = || Bytes::from_static(ALL);
        match keys {
            // The empty key cannot be granted; the range that begins with it or comes after it is
            // everything.
            [key, ..] if key.is_empty() && (self.prefix || self.from_key) => Ok((all(), all())),
            [key, ..] if key.is_empty() => Ok((all(), Bytes::new())),
            [key] if self.prefix => Ok((key.bytes(), prefix_end(&key.bytes()))),
            [key] if self.from_key => Ok((key.bytes(), all())),
            [key] => Ok((key.bytes(), Bytes::new())),
            _ if self.prefix => bad("unexpected endkey argument with --prefix flag"),
            _ if self.from_key => bad("unexpected endkey argument with --from-key flag"),
            [key, end, ..] => Ok((key.bytes(), end.bytes())),
            [] => Err(no_grant()),
        }
    }
}
