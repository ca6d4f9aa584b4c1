//! The client verbs, with etcdctl's names, flags and messages.

mod auth;
mod check;
mod child;
mod cluster;
mod completion;
mod config;
mod count;
mod downgrade;
mod elect;
mod endpoint;
mod get;
mod lease;
mod load;
mod lock;
mod meet;
mod member;
mod mirror;
mod native;
mod put;
mod role;
mod service;
mod snapshot;
mod txn;
mod user;
mod watch;
mod words;

pub(crate) use watch::{KEY as WATCH_KEY, RANGE_END as WATCH_RANGE_END};

use clap::Subcommand;
use conclave_client::Client;

use crate::{
    arguments::{Flavor, Global},
    failure::Failure,
    output::{Answer, Printer, complain, write},
    parse,
};

/// What a verb needs: the client and the printer.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) printer: Printer,
    pub(crate) global: Global,
    pub(crate) flavor: Flavor,
}

impl Context {
    fn print(&self, answer: &impl Answer) -> Result<(), Failure> {
        self.printer.print(answer)
    }
}

/// A client verb.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Read a key or a range of keys.
    Get(get::Arguments),
    /// Write a key.
    Put(put::Arguments),
    /// Delete a key or a range of keys.
    Del(put::DelArguments),
    /// Do several things in one transaction, read from standard input.
    Txn(txn::Arguments),
    /// Print changes of a key or a range of keys as they happen.
    Watch(watch::Arguments),
    /// Forget the history below a revision.
    #[command(visible_alias = "compact")]
    Compaction(put::CompactionArguments),
    /// Leases: keys that vanish when nobody renews them.
    #[command(subcommand, arg_required_else_help = true)]
    Lease(lease::Verb),
    /// Hold a lock, or run a command while it is held.
    Lock(lock::Arguments),
    /// Sessions: who holds what.
    #[command(subcommand, arg_required_else_help = true)]
    Session(Session),
    /// Campaign in an election, or observe it.
    Elect(elect::Arguments),
    /// Counters: numbers that many change.
    #[command(subcommand, arg_required_else_help = true)]
    Counter(count::Counter),
    /// Latches: count down to 0, and wait for that.
    #[command(subcommand, arg_required_else_help = true)]
    Latch(count::Latch),
    /// Barriers: wait for others.
    #[command(subcommand, arg_required_else_help = true)]
    Barrier(meet::Barrier),
    /// Join a group, or list its members.
    #[command(subcommand, arg_required_else_help = true)]
    Group(meet::Group),
    /// Services: who offers what, and where.
    #[command(subcommand, arg_required_else_help = true)]
    Service(service::Verb),
    /// Settings: documents and keys that services follow.
    #[command(subcommand, arg_required_else_help = true)]
    Config(config::Verb),
    /// The servers at the endpoints.
    Endpoint(endpoint::Arguments),
    /// The members of the cluster.
    #[command(subcommand, arg_required_else_help = true)]
    Member(member::Verb),
    /// Alarms, such as that space is used up.
    #[command(subcommand, arg_required_else_help = true)]
    Alarm(cluster::Alarm),
    /// Whether calls need a user.
    #[command(subcommand, arg_required_else_help = true)]
    Auth(auth::Verb),
    /// Users, and which roles they have.
    #[command(subcommand, arg_required_else_help = true)]
    User(user::Verb),
    /// Roles, and what they may do.
    #[command(subcommand, arg_required_else_help = true)]
    Role(role::Verb),
    /// Give free space of the servers' stores back to the file system.
    Defrag(endpoint::DefragArguments),
    /// Snapshots: the whole state as a file, and a new cluster made of one.
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(snapshot::Verb),
    /// Hand leadership to another member.
    MoveLeader(cluster::MoveLeaderArguments),
    /// Copy keys to another cluster, and then every change of them.
    MakeMirror(mirror::Arguments),
    /// Whether the cluster is fast enough, and how much memory keys take.
    #[command(subcommand, arg_required_else_help = true)]
    Check(check::Verb),
    /// Going back to an older version.
    #[command(subcommand, arg_required_else_help = true)]
    Downgrade(downgrade::Verb),
    /// Print what a shell needs to complete command lines.
    Completion(completion::Arguments),
    /// Print the version.
    Version,
}

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum Session {
    /// Print all sessions with their owners.
    Ls,
}

impl Verb {
    /// Runs the verb.
    ///
    /// # Errors
    /// The failure, with etcdctl's exit code.
    pub(crate) async fn run(self, global: &Global, flavor: Flavor) -> Result<(), Failure> {
        match self {
            Self::Version => return version(),
            Self::Completion(arguments) => return completion::run(arguments, flavor),
            _ => {}
        }
        for name in parse::unknown_variables() {
            complain(&format!("unrecognized environment variable {name}"));
        }
        let context = global.context(flavor)?;
        match self {
            Self::Get(arguments) => get::run(&context, arguments).await,
            Self::Put(arguments) => put::run(&context, arguments).await,
            Self::Del(arguments) => put::del(&context, arguments).await,
            Self::Txn(arguments) => txn::run(&context, arguments).await,
            Self::Watch(arguments) => watch::run(&context, arguments).await,
            Self::Compaction(arguments) => put::compact(&context, arguments).await,
            Self::Lease(verb) => lease::run(&context, verb).await,
            Self::Lock(arguments) => match flavor {
                Flavor::Conclave => native::run(&context, arguments).await,
                Flavor::Etcdctl => lock::run(&context, arguments).await,
            },
            Self::Session(Session::Ls) => native::sessions(&context).await,
            Self::Elect(arguments) => elect::run(&context, arguments).await,
            Self::Counter(verb) => count::counter(&context, verb).await,
            Self::Latch(verb) => count::latch(&context, verb).await,
            Self::Barrier(verb) => meet::barrier(&context, verb).await,
            Self::Group(verb) => meet::group(&context, verb).await,
            Self::Service(verb) => service::run(&context, verb).await,
            Self::Config(verb) => config::run(&context, verb).await,
            Self::Endpoint(arguments) => endpoint::run(&context, arguments).await,
            Self::Member(verb) => member::run(&context, verb).await,
            Self::Alarm(cluster::Alarm::List) => cluster::alarms(&context).await,
            Self::Alarm(cluster::Alarm::Disarm) => cluster::disarm(&context).await,
            Self::Auth(verb) => auth::run(&context, verb).await,
            Self::User(verb) => user::run(&context, verb).await,
            Self::Role(verb) => role::run(&context, verb).await,
            Self::Defrag(arguments) => endpoint::defrag(&context, arguments).await,
            Self::Snapshot(verb) => snapshot::run(&context, verb).await,
            Self::MoveLeader(arguments) => cluster::move_leader(&context, arguments).await,
            Self::MakeMirror(arguments) => mirror::run(&context, arguments).await,
            Self::Check(verb) => check::run(&context, verb).await,
            Self::Downgrade(verb) => downgrade::run(&context, verb).await,
            Self::Version | Self::Completion(_) => unreachable!("done above"),
        }
    }
}

fn version() -> Result<(), Failure> {
    let etcd = conclave_server::version::ETCD;
    let api = etcd.rsplit_once('.').map_or(etcd, |(api, _patch)| api);
    let own = conclave_server::version::CONCLAVE;
    write(
        format!("etcdctl version: {etcd}\nAPI version: {api}\nconclave version: {own}\n")
            .as_bytes(),
    )
}

/// Says on standard error why the printed data is out of date, or that the connection is back.
fn tell_connection(trouble: Option<&str>) {
    match trouble {
        Some(why) => complain(&format!(
            "the connection is lost, and tried again: what was printed may be out of date ({why})"
        )),
        None => complain("the connection is back"),
    }
}
