//! `user`: who may call, and with which roles.

use clap::{Args, Subcommand};
use conclave_client::pb::ResponseHeader;

use super::Context;
use crate::{
    failure::Failure,
    output::{Done, Names, Role, User, write},
    prompt,
};

/// What to do with users.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Add a user: NAME or NAME:PASSWORD.
    Add(AddArguments),
    /// Delete a user.
    Delete {
        /// The user.
        #[arg(value_name = "USER")]
        name: Vec<String>,
    },
    /// Print the roles of a user.
    Get(GetArguments),
    /// Print all users.
    List {
        #[arg(hide = true)]
        unexpected: Vec<String>,
    },
    /// Change the password of a user.
    Passwd(PasswordArguments),
    /// Give a role to a user.
    GrantRole {
        /// The user and the role.
        #[arg(value_names = ["USER", "ROLE"])]
        names: Vec<String>,
    },
    /// Take a role from a user.
    RevokeRole {
        /// The user and the role.
        #[arg(value_names = ["USER", "ROLE"])]
        names: Vec<String>,
    },
}

/// Flags and arguments of `user add`.
#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// The user, optionally with the password.
    // Not `user`, which is the name of a flag of all verbs.
    #[arg(value_name = "USER[:PASSWORD]")]
    added: Vec<String>,
    /// Ask for the password; `--interactive=false` reads it from standard input.
    #[arg(long, default_value_t = true)]
    interactive: bool,
    /// Add the user without a password, to be authenticated by certificate only.
    #[arg(long)]
    no_password: bool,
    /// The password.
    #[arg(long, value_name = "PASSWORD", default_value = "")]
    new_user_password: String,
}

/// Flags and arguments of `user passwd`.
#[derive(Debug, Args)]
pub(crate) struct PasswordArguments {
    /// The user.
    #[arg(value_name = "USER")]
    name: Vec<String>,
    /// Ask for the password; `--interactive=false` reads it from standard input.
    #[arg(long, default_value_t = true)]
    interactive: bool,
}

/// Flags and arguments of `user get`.
#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    /// The user.
    #[arg(value_name = "USER")]
    name: Vec<String>,
    /// Also print the permissions of the roles.
    #[arg(long)]
    detail: bool,
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let auth = context.client.auth();
    match verb {
        Verb::Add(arguments) => add(context, arguments).await,
        Verb::Delete { name } => {
            let [name] = only(name, "user delete command requires user name as its argument")?;
            let reply = auth.user_delete(&name).await?;
            done(context, reply.into_inner().header, format!("User {name} deleted"))
        }
        Verb::Get(arguments) => get(context, arguments).await,
        Verb::List { unexpected } => {
            let [] = only(unexpected, "user list command requires no arguments")?;
            context.print(&Names::from(auth.user_list().await?.into_inner()))
        }
        Verb::Passwd(arguments) => {
            let usage = "user passwd command requires user name as its argument";
            let [name] = only(arguments.name, usage)?;
            let password = new_password(&name, arguments.interactive)?;
            let reply = auth.user_change_password(&name, &password).await?;
            done(context, reply.into_inner().header, "Password updated".to_owned())
        }
        Verb::GrantRole { names } => {
            let usage = "user grant command requires user name and role name as its argument";
            let [user, role] = only(names, usage)?;
            let reply = auth.user_grant_role(&user, &role).await?;
            let sentence = format!("Role {role} is granted to user {user}");
            done(context, reply.into_inner().header, sentence)
        }
        Verb::RevokeRole { names } => {
            let usage = "user revoke-role requires user name and role name as its argument";
            let [user, role] = only(names, usage)?;
            let reply = auth.user_revoke_role(&user, &role).await?;
            let sentence = format!("Role {role} is revoked from user {user}");
            done(context, reply.into_inner().header, sentence)
        }
    }
}

async fn add(context: &Context, arguments: AddArguments) -> Result<(), Failure> {
    let AddArguments { added, interactive, no_password, new_user_password } = arguments;
    let [user] = only(added, "user add command requires user name as its argument")?;
    let (name, password) = match user.split_once(':') {
        _ if no_password => (user.as_str(), None),
        _ if !new_user_password.is_empty() => (user.as_str(), Some(new_user_password)),
        Some(("", _)) => return Err(Failure::bad_arguments("empty user name is not allowed")),
        Some((name, password)) => (name, Some(password.to_owned())),
        None => (user.as_str(), Some(new_password(&user, interactive)?)),
    };
    let reply = context.client.auth().user_add(name, password.as_deref()).await?;
    done(context, reply.into_inner().header, format!("User {name} created"))
}

/// Asks twice at the terminal, or reads one line.
fn new_password(name: &str, interactive: bool) -> Result<String, Failure> {
    if !interactive {
        return prompt::line();
    }
    let password = prompt::password(&format!("Password of {name}: "))?;
    if password.is_empty() {
        return Err(Failure::bad_arguments("empty password"));
    }
    let again = format!("Type password of {name} again for confirmation: ");
    if prompt::password(&again)? != password {
        return Err(Failure::bad_arguments("given passwords are different"));
    }
    Ok(password)
}

async fn get(context: &Context, arguments: GetArguments) -> Result<(), Failure> {
    let usage = "user get command requires user name as its argument";
    let [name] = only(arguments.name, usage)?;
    let auth = context.client.auth();
    let response = auth.user_get(&name).await?.into_inner();
    if !arguments.detail {
        return context.print(&User { name, response });
    }
    // As etcdctl, whatever the output form.
    write(format!("User: {name}\n").as_bytes())?;
    for name in response.roles {
        write(b"\n")?;
        let response = auth.role_get(&name).await?.into_inner();
        context.print(&Role { name, response })?;
    }
    Ok(())
}

/// Exactly `N` arguments.
pub(super) fn only<const N: usize>(
    arguments: Vec<String>,
    usage: &str,
) -> Result<[String; N], Failure> {
    arguments.try_into().map_err(|_| Failure::bad_arguments(usage))
}

pub(super) fn done(
    context: &Context,
    header: Option<ResponseHeader>,
    sentence: String,
) -> Result<(), Failure> {
    context.print(&Done { header, sentence })
}
