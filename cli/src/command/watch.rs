//! `watch`: prints changes until it is stopped, or runs a command for each.

use std::{env, ffi::OsString, process::Stdio};

use clap::{Args, Parser};
use conclave_client::{
    Error, Watcher,
    mvccpb::{Event, event::EventType},
    watch::Response,
};
use tokio::{
    process::Command,
    sync::{broadcast, mpsc},
    task::JoinSet,
};

use super::{Context, words};
use crate::{
    arguments::Flavor,
    failure::{Failure, describe},
    output::{Changes, complain, quote},
    parse::parse,
    word::Word,
};

/// Lines of interactive input waiting to be handled.
const LINES_MAX: usize = 1;
/// Progress requests waiting for a watch to pass them on.
const PROGRESS_REQUESTS_MAX: usize = 4;

/// Variable with the key to watch, if the command line has none.
pub(crate) const KEY: &str = "ETCDCTL_WATCH_KEY";
pub(crate) const RANGE_END: &str = "ETCDCTL_WATCH_RANGE_END";

/// Flags and arguments of `watch`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The key, and the end of a range of keys.
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<Word>,
    /// A command to run for each change, told about it by ETCD_WATCH_* variables.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Read `watch ...` and `progress` lines from standard input.
    #[arg(short, long)]
    interactive: bool,
    /// All keys that start with the key.
    #[arg(long)]
    prefix: bool,
    /// The revision to begin with.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    rev: i64,
    /// Also print pairs as they were before.
    #[arg(long)]
    prev_kv: bool,
    /// Also print from time to time how far the watch has come.
    #[arg(long)]
    progress_notify: bool,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    if arguments.interactive {
        return interactive(context).await;
    }
    if !arguments.keys.is_empty() && variable(KEY).is_some() {
        let message = "bad number of arguments (found conflicting environment key)";
        return Err(Failure::bad_arguments(message));
    }
    let command = arguments.command.clone();
    let (_progress, requests) = broadcast::channel(PROGRESS_REQUESTS_MAX);
    let watcher = start(context, arguments).map_err(Failure::bad_arguments)?;
    follow(context.clone(), watcher, command, requests).await
}

/// An environment variable that is set and not empty.
fn variable(name: &str) -> Option<Word> {
    env::var_os(name).map(Word::from).filter(|value| !value.is_empty())
}

/// Starts the watch that the arguments, or else the variables, ask for.
fn start(context: &Context, arguments: Arguments) -> Result<Watcher, String> {
    let mut keys = arguments.keys;
    if let Some(key) = variable(KEY)
        && keys.is_empty()
    {
        keys.push(key);
        keys.extend(variable(RANGE_END));
    }
    if context.flavor == Flavor::Etcdctl && keys.len() > 2 {
        // With too many, etcdctl uses only the first.
        keys.truncate(1);
    }
    let watch = match keys.as_slice() {
        [key] if arguments.prefix => context.client.watch(key.bytes()).prefix(),
        [key] => context.client.watch(key.bytes()),
        [_, _] if arguments.prefix => {
            return Err("`range_end` and `--prefix` are mutually exclusive".to_owned());
        }
        [key, end] => context.client.watch(key.bytes()).range(end.bytes()),
        _ => return Err("bad number of arguments".to_owned()),
    };
    let mut watch = watch.from_revision(arguments.rev);
    if arguments.prev_kv {
        watch = watch.prev_kv();
    }
    if arguments.progress_notify {
        watch = watch.progress_notify();
    }
    Ok(watch.start())
}

/// Prints the events of the watch until it ends.
async fn follow(
    context: Context,
    mut watcher: Watcher,
    command: Vec<String>,
    mut progress: broadcast::Receiver<()>,
) -> Result<(), Failure> {
    loop {
        let response = tokio::select! {
            response = watcher.next() => response,
            Ok(()) = progress.recv() => {
                watcher.request_progress();
                continue;
            }
        };
        match response {
            Ok(Some(response)) => {
                let changes = Changes { response, compacted: 0 };
                context.print(&changes)?;
                for event in &changes.response.events {
                    execute(&command, event, changes.response.revision()).await?;
                }
            }
            Ok(None) => return Err(Failure::interrupted("watch is canceled by the server")),
            Err(error) => return Err(canceled(&context, &watcher, &error)),
        }
    }
}

fn canceled(context: &Context, watcher: &Watcher, error: &Error) -> Failure {
    complain(&format!("watch was canceled ({})", describe(error)));
    if let Error::Compacted { revision } = error {
        let header = watcher.cancel_header().cloned();
        let response = Response { header, created: false, events: Vec::new(), snapshot: None };
        if let Err(failure) = context.print(&Changes { response, compacted: *revision }) {
            return failure;
        }
    }
    Failure::interrupted("watch is canceled by the server")
}

/// Runs the command for one event and waits for it: events are handled in order. As with etcdctl,
/// `revision` is that of the response: for live events their own, for older ones that of the store
/// when they were sent.
async fn execute(command: &[String], event: &Event, revision: i64) -> Result<(), Failure> {
    let [program, arguments @ ..] = command else { return Ok(()) };
    let kv = event.kv.clone().unwrap_or_default();
    let kind = match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    };
    let status = Command::new(program)
        .args(arguments)
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quote(kind.as_bytes()))
        .env("ETCD_WATCH_KEY", quote(&kv.key))
        .env("ETCD_WATCH_VALUE", quote(&kv.value))
        .stdin(Stdio::inherit())
        .status()
        .await;
    let reason = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    complain(&format!("command {} error ({reason})", quote(command.join(" ").as_bytes())));
    Err(Failure::reported())
}

/// A line of interactive input.
#[derive(Debug, Parser)]
#[command(name = "watch", no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

async fn interactive(context: &Context) -> Result<(), Failure> {
    let (progress, _) = broadcast::channel(PROGRESS_REQUESTS_MAX);
    let mut watches = JoinSet::new();
    let mut lines = lines();
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            Some(ended) = watches.join_next() => {
                ended.expect("invariant: a watch is neither aborted nor panics")?;
                continue;
            }
        };
        let Some(line) = line else {
            return Err(Failure::invalid_input("error reading watch request line: EOF"));
        };
        let words = words::split(&line);
        match words.first().map(|word| word.to_str().unwrap_or_default()) {
            None => {}
            Some("progress") => {
                // Fails if no watch is running yet.
                progress.send(()).ok();
            }
            Some("watch") => match begin(context, words) {
                Ok((watcher, command)) => {
                    watches.spawn(follow(context.clone(), watcher, command, progress.subscribe()));
                }
                Err(reason) => complain(&format!("Invalid command {line} ({reason})")),
            },
            Some(_) => {
                complain(&format!("Invalid command {line} (only support watch and progress)"));
            }
        }
    }
}

fn begin(context: &Context, words: Vec<OsString>) -> Result<(Watcher, Vec<String>), String> {
    let line: Line = parse(words.into_iter().skip(1)).map_err(|error| error.kind().to_string())?;
    if line.arguments.keys.is_empty() && variable(KEY).is_none() {
        return Err("command type or key is not provided".to_owned());
    }
    let command = line.arguments.command.clone();
    start(context, line.arguments).map(|watcher| (watcher, command))
}

/// The lines of standard input, read by a separate thread because reading blocks.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
