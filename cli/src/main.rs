//! The one binary: server, local clusters, and a client for every verb.
//!
//! Called `etcd` (by copy or link) it is the server with etcd's flags; called `etcdctl` or `etcdutl`,
//! the client verbs. Flags are resolved here and once; what they ask for is done in the modules.
//!
//! | module | what |
//! |---|---|
//! | `arguments` | the command line |
//! | `parse` | how it is read, as Go's flag packages do |
//! | `command` | the client verbs |
//! | `output` | the forms of their output |
//! | `prompt` | questions at the terminal |
//! | `progress` | a bar for what takes a while |
//! | `failure` | exit codes and messages |
//! | `server` | one server as a process |
//! | `dev` | one server to try things out |
//! | `cluster` | three servers on this machine |
//! | `hint` | commands to try, as the reader can call them |
//! | `stop` | signals that ask a process to end |
//! | `word` | arguments that need not be text |

mod arguments;
mod cluster;
mod command;
mod dev;
mod failure;
mod hint;
mod output;
mod parse;
mod progress;
mod prompt;
mod server;
mod stop;
mod word;

use std::{env, ffi::OsString, path::Path, process::ExitCode};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use conclave_server::config::{etcd_version_text, version_text};
use tokio::runtime::{Builder, Runtime};

use crate::{
    arguments::{Conclave, Etcdctl, Flavor, Task},
    failure::Failure,
    parse::parse,
};

/// Faster than the system's under many threads, and it gives memory back.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let program = arguments.first().map(Path::new).and_then(Path::file_stem);
    match program.and_then(|name| name.to_str()) {
        Some("etcd") => server::main(texts(&arguments, 1), etcd_version_text),
        Some("etcdctl" | "etcdutl") => match parse::<Etcdctl>(arguments) {
            Ok(Etcdctl { global, verb }) => finish(block_on(verb.run(&global, Flavor::Etcdctl))),
            // etcdctl's own code for a command line it does not understand.
            Err(error) => refuse(&error, 1),
        },
        _ => match arguments.get(1).and_then(|argument| argument.to_str()) {
            Some("server") => server::main(texts(&arguments, 2), version_text),
            Some("--version" | "-V") => server::main(vec!["--version".to_owned()], version_text),
            _ => match parse::<Conclave>(arguments) {
                Ok(conclave) => finish(conclave.run()),
                Err(error) => refuse(&error, 2),
            },
        },
    }
}

/// The arguments of a server behind the first ones; bytes that are no text are replaced, also in paths.
fn texts(arguments: &[OsString], first: usize) -> Vec<String> {
    let arguments = arguments.get(first..).unwrap_or_default();
    arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

impl Conclave {
    fn run(self) -> Result<(), Failure> {
        match self.task {
            // `server` behind other flags; without those it never comes here.
            Task::Server { .. } => {
                Err(Failure::bad_arguments("`server` must be the first argument"))
            }
            Task::Dev(arguments) => runtime()?.block_on(dev::run(arguments)),
            Task::Cluster(arguments) => block_on(cluster::run(arguments)),
            Task::Client(verb) => block_on(verb.run(&self.global, Flavor::Conclave)),
        }
    }
}

/// Runs a client's work, which needs no threads of its own.
fn block_on(task: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(no_runtime)?;
    let result = runtime.block_on(task);
    // A thread may still be reading standard input: do not wait for it.
    runtime.shutdown_background();
    result
}

/// A runtime for servers.
fn runtime() -> Result<Runtime, Failure> {
    conclave_server::client_runtime().map_err(no_runtime)
}

fn no_runtime(error: std::io::Error) -> Failure {
    Failure::error(format!("the async runtime does not start: {error}"))
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Prints help, or what is wrong with the command line.
fn refuse(error: &clap::Error, code: u8) -> ExitCode {
    // There is nowhere to report that printing failed.
    error.print().ok();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            ExitCode::SUCCESS
        }
        // etcdctl's verbs count their arguments themselves.
        ErrorKind::UnknownArgument if !is_flag(error) => ExitCode::from(128),
        _ => ExitCode::from(code),
    }
}

/// Whether what is wrong with the command line begins like a flag.
fn is_flag(error: &clap::Error) -> bool {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return true };
    word.starts_with('-')
}
