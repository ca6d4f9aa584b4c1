//! `member`: who belongs to the cluster.

use clap::{Args, Subcommand};
use conclave_client::pb::Member;

use super::Context;
use crate::{
    failure::Failure,
    output::{Changed, Format, Members, parse_uint, quote, write},
};

/// What to do with members.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Print all members.
    List,
    /// Add a member; start it afterwards with the settings printed.
    Add(AddArguments),
    /// Remove a member permanently, even if it is dead.
    Remove(IdArguments),
    /// Change the peer URLs of a member.
    Update(UpdateArguments),
    /// Promote a learner that is in sync to voter.
    Promote(IdArguments),
}

/// Arguments of `member add`.
#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// Name of the new member.
    #[arg(value_name = "NAME")]
    name: Vec<String>,
    /// Peer URLs of the new member, comma separated.
    #[arg(long, value_name = "URLS", default_value = "")]
    peer_urls: String,
    /// Add it as a learner, which does not vote until it is promoted.
    #[arg(long)]
    learner: bool,
}

/// Arguments of `member remove` and `member promote`.
#[derive(Debug, Args)]
pub(crate) struct IdArguments {
    /// The member, in hexadecimal.
    #[arg(value_name = "MEMBER_ID")]
    id: Vec<String>,
}

/// Arguments of `member update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// The member, in hexadecimal.
    #[arg(value_name = "MEMBER_ID")]
    id: Vec<String>,
    /// New peer URLs of the member, comma separated.
    #[arg(long, value_name = "URLS", default_value = "")]
    peer_urls: String,
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List => {
            let reply = context.client.members().await?;
            context.print(&Members(reply.into_inner()))
        }
        Verb::Add(arguments) => add(context, arguments).await,
        Verb::Remove(arguments) => {
            let id = member_id(&arguments.id)?;
            let reply = context.client.remove_member(id).await?.into_inner();
            changed(context, id, "removed from", (reply.header, reply.members))
        }
        Verb::Update(arguments) => {
            let id = member_id(&arguments.id)?;
            let urls = urls(&arguments.peer_urls)?;
            let reply = context.client.update_member(id, urls).await?.into_inner();
            changed(context, id, "updated in", (reply.header, reply.members))
        }
        Verb::Promote(arguments) => {
            let id = member_id(&arguments.id)?;
            let reply = context.client.promote_member(id).await?.into_inner();
            changed(context, id, "promoted in", (reply.header, reply.members))
        }
    }
}

type Reply = (Option<conclave_client::pb::ResponseHeader>, Vec<Member>);

fn changed(
    context: &Context,
    id: u64,
    verb: &'static str,
    (header, members): Reply,
) -> Result<(), Failure> {
    context.print(&Changed { header, id, verb, added: None, members })
}

async fn add(context: &Context, arguments: AddArguments) -> Result<(), Failure> {
    let name = match arguments.name.as_slice() {
        [name] => name,
        [] => return Err(Failure::bad_arguments("member name not provided")),
        _ => return Err(Failure::bad_arguments("too many arguments")),
    };
    let peer_urls = urls(&arguments.peer_urls)?;
    let reply = context.client.add_member(peer_urls, arguments.learner).await?.into_inner();
    let id = reply.member.as_ref().map_or(0, |member| member.id);
    let cluster = initial_cluster(&reply.members, id, name);
    let (added, members) = (reply.member, reply.members);
    context.print(&Changed { header: reply.header, id, verb: "added to", added, members })?;
    if context.printer.format != Format::Simple {
        return Ok(());
    }
    let quoted = |text: &str| quote(text.as_bytes());
    write(
        format!(
            "\nETCD_NAME={}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_ADVERTISE_PEER_URLS={}\n\
             ETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
            quoted(name),
            quoted(&cluster),
            quoted(&arguments.peer_urls),
        )
        .as_bytes(),
    )
}

/// The `--initial-cluster` value for the new member.
fn initial_cluster(members: &[Member], added: u64, name: &str) -> String {
    let urls = members.iter().flat_map(|member| {
        let name = if member.id == added { name } else { &member.name };
        member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
    });
    urls.collect::<Vec<_>>().join(",")
}

fn member_id(arguments: &[String]) -> Result<u64, Failure> {
    let [id] = arguments else {
        return Err(Failure::bad_arguments("member ID is not provided"));
    };
    parse_uint(id, 16).map_err(|error| {
        Failure::bad_arguments(format!("bad member ID arg ({error}), expecting ID in Hex"))
    })
}

fn urls(list: &str) -> Result<Vec<String>, Failure> {
    if list.is_empty() {
        return Err(Failure::bad_arguments("member peer urls not provided"));
    }
    Ok(list.split(',').map(str::to_owned).collect())
}
