//! The one binary: server, local clusters, and a client for every verb.
//!
//! Called `etcd` (by copy or link) it is the server with etcd's flags; called `etcdctl` or
//! `etcdutl`, the client verbs. This file only parses the flags; the modules do the work.
//!
//! | module | what |
//! |---|---|
//! | `arguments` | the command line |
//! | `parse` | parses it as Go's flag packages do |
//! | `command` | the client verbs |
//! | `output` | the forms of their output |
//! | `prompt` | questions at the terminal |
//! | `progress` | a progress bar |
//! | `failure` | exit codes and messages |
//! | `server` | one server as a process |
//! | `dev` | one server to try things out |
//! | `cluster` | three servers on this machine |
//! | `hint` | suggested commands, in the form that works for the reader |
//! | `stop` | signals that ask the process to stop |
//! | `word` | arguments that need not be valid text |

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
use tokio::runtime::{Builder, Runtime};

use crate::{
    arguments::{Conclave, Etcdctl, Flavor, Task},
    failure::Failure,
    parse::parse,
    server::Program,
};

/// Faster than the system's allocator with many threads. It returns freed memory to the system from
/// threads of its own (feature `background_threads`): on the threads of requests that took 40 % of
/// the time of a 10 MB answer.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let program = arguments.first().map(Path::new).and_then(Path::file_stem);
    match program.and_then(|name| name.to_str()) {
        Some("etcd") => server::main(texts(&arguments, 1), Program::Etcd),
        Some("etcdctl" | "etcdutl") => match parse::<Etcdctl>(arguments) {
            Ok(Etcdctl { global, verb }) => finish(block_on(verb.run(&global, Flavor::Etcdctl))),
            // etcdctl's own exit code for a command line that it cannot parse.
            Err(error) => refuse(&error, 1),
        },
        _ => match arguments.get(1).and_then(|argument| argument.to_str()) {
            Some("server") => server::main(texts(&arguments, 2), Program::Conclave),
            Some("--version" | "-V") => {
                server::main(vec!["--version".to_owned()], Program::Conclave)
            }
            _ => match parse::<Conclave>(arguments) {
                Ok(conclave) => finish(conclave.run()),
                Err(error) => refuse(&error, 2),
            },
        },
    }
}

/// The server's arguments from index `first` on; bytes that are not UTF-8 are replaced, even in
/// paths.
fn texts(arguments: &[OsString], first: usize) -> Vec<String> {
    let arguments = arguments.get(first..).unwrap_or_default();
    arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

impl Conclave {
    fn run(self) -> Result<(), Failure> {
        match self.task {
            // Reached only if `server` follows other flags; as the first argument it is handled
            // earlier.
            Task::Server { .. } => {
                Err(Failure::bad_arguments("`server` must be the first argument"))
            }
            Task::Dev(arguments) => runtime()?.block_on(dev::run(arguments)),
            Task::Cluster(arguments) => block_on(cluster::run(arguments)),
            Task::Client(verb) => block_on(verb.run(&self.global, Flavor::Conclave)),
        }
    }
}

/// Runs a client task on the current thread.
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
    // A failure to print cannot be reported anywhere.
    error.print().ok();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            ExitCode::SUCCESS
        }
        // etcdctl's verbs count their arguments themselves, with another exit code.
        ErrorKind::UnknownArgument if !is_flag(error) => ExitCode::from(128),
        _ => ExitCode::from(code),
    }
}

/// Whether the argument that clap complains about begins like a flag.
fn is_flag(error: &clap::Error) -> bool {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return true };
    word.starts_with('-')
}
