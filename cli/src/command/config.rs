//! `config`: settings as documents or as keys, their history and rollback.

use std::io::Read;

use clap::{Args, Subcommand, ValueEnum};
use conclave_client::{
    config::{self, Boot, Codec, Source},
    kv::put,
    txn::key,
};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;

use super::{Context, tell_connection};
use crate::{
    failure::Failure,
    output::{Releases, Settings, Written, complain},
};

/// What to do with settings.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Print the settings that keys hold, merged, as one JSON document.
    Get(GetArguments),
    /// Write a document of settings, or one setting; refuses values that cannot be read back.
    Set(SetArguments),
    /// Print how keys changed, the newest change first, back to the last compaction.
    History(HistoryArguments),
    /// Restore the values that keys had at a revision, in one new revision.
    Rollback(RollbackArguments),
    /// Print the settings that keys hold, and print them again whenever they change.
    Watch(Sources),
}

/// The form of a value.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    Json,
    Toml,
    Yaml,
    Text,
}

impl From<Form> for Codec {
    fn from(form: Form) -> Self {
        match form {
            Form::Json => Self::Json,
            Form::Toml => Self::Toml,
            Form::Yaml => Self::Yaml,
            Form::Text => Self::Text,
        }
    }
}

/// Which keys hold settings, and how.
#[derive(Debug, Args)]
pub(crate) struct Sources {
    /// The keys; if several have a setting, the last one wins.
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    /// All keys that start with a key; the rest of a name is the path of a setting.
    #[arg(long)]
    prefix: bool,
    /// Form of the values. By default the extension of the name tells it (.json, .toml, .yaml); without
    /// one, a document is JSON, and a value below a prefix is text.
    #[arg(long)]
    format: Option<Form>,
}

impl Sources {
    fn sources(&self) -> Vec<Source> {
        let source = |key: &String| {
            let source = if self.prefix { Source::prefix(key) } else { Source::document(key) };
            match self.format {
                Some(form) => source.codec(form.into()),
                None => source,
            }
        };
        self.keys.iter().map(source).collect()
    }
}

/// Flags and arguments of `config get`.
#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    #[command(flatten)]
    sources: Sources,
    /// Only the setting at this dotted path.
    #[arg(long, default_value = "")]
    path: String,
    /// The settings as of this revision.
    #[arg(long, default_value_t = 0)]
    rev: i64,
}

/// Flags and arguments of `config set`.
#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// The key.
    key: String,
    /// The value; without it, it is read from standard input.
    #[arg(allow_hyphen_values = true)]
    value: Option<String>,
    /// Form of the value. By default the extension of the name tells it; without one it is a JSON
    /// document if it begins with a brace, and text if not.
    #[arg(long)]
    format: Option<Form>,
    /// Only if the key was last changed in this revision; 0 for a key that does not exist.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<i64>,
}

/// Flags and arguments of `config history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArguments {
    /// The key.
    key: String,
    /// All keys that start with the key.
    #[arg(long)]
    prefix: bool,
    /// At most this many changes, newest first.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Also print the values.
    #[arg(long)]
    values: bool,
}

/// Flags and arguments of `config rollback`.
#[derive(Debug, Args)]
pub(crate) struct RollbackArguments {
    /// The key.
    key: String,
    /// The revision to go back to, see `config history`.
    revision: i64,
    /// All keys that start with the key.
    #[arg(long)]
    prefix: bool,
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Get(arguments) => get(context, arguments).await,
        Verb::Set(arguments) => set(context, arguments).await,
        Verb::History(arguments) => history(context, arguments).await,
        Verb::Rollback(arguments) => rollback(context, arguments).await,
        Verb::Watch(sources) => watch(context, &sources).await,
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        match error {
            config::Error::Cluster(error) => error.into(),
            error => Self::error(error.to_string()),
        }
    }
}

async fn get(context: &Context, arguments: GetArguments) -> Result<(), Failure> {
    let sources = arguments.sources.sources();
    let (tree, revision) = context.client.read_config(&sources, arguments.rev).await?;
    let Some(tree) = config::find(&tree, &arguments.path) else {
        return Err(Failure::error(format!("{} is not set", arguments.path)));
    };
    context.print(&Settings { revision, tree: tree.clone() })
}

async fn set(context: &Context, arguments: SetArguments) -> Result<(), Failure> {
    let SetArguments { key: name, value, format, if_revision } = arguments;
    let value = match value {
        Some(value) => value.into_bytes(),
        None => {
            let mut value = Vec::new();
            std::io::stdin().read_to_end(&mut value).map_err(|error| {
                Failure::input_output(format!("reading the value of {name}: {error}"))
            })?;
            value
        }
    };
    let source = readers(&name, &value, format.map(Codec::from));
    source
        .check(&name, &value)
        .map_err(|refused| Failure::invalid_input(format!("{name}: {}", refused.reason)))?;
    if format.is_none() && Source::document(&name).check(&name, &value).is_err() {
        complain(&format!(
            "{name} holds text, not a document: read it below a prefix, or with --format text"
        ));
    }
    let mut txn = context.client.txn().then(put(name.as_str(), value));
    if let Some(revision) = if_revision {
        txn = txn.when(key(name.as_str()).mod_revision().equal(revision));
    }
    let answer = txn.commit().await?;
    if !answer.succeeded {
        return Err(Failure::from(config::Error::Conflict));
    }
    context.print(&Written { revision: answer.revision(), changed: 1 })
}

/// How readers will interpret a value. A name without an extension may be a JSON document or one
/// setting below a prefix; it counts as a document if the value is a table.
fn readers(name: &str, value: &[u8], codec: Option<Codec>) -> Source {
    let is_document = value.trim_ascii_start().starts_with(b"{");
    match codec {
        Some(codec) if codec != Codec::Text => Source::document(name).codec(codec),
        None if is_document || Codec::of_name(name).is_some() => Source::document(name),
        _ => {
            let prefix_bytes = name.rfind('/').map_or(0, |slash| slash + 1);
            Source::prefix(&name[..prefix_bytes]).codec(Codec::Text)
        }
    }
}

async fn history(context: &Context, arguments: HistoryArguments) -> Result<(), Failure> {
    let history = context.client.history(arguments.key).limit(arguments.limit);
    let history = if arguments.prefix { history.prefix() } else { history };
    let releases = Releases { releases: history.await?, with_values: arguments.values };
    context.print(&releases)
}

async fn rollback(context: &Context, arguments: RollbackArguments) -> Result<(), Failure> {
    let rollback = context.client.rollback(arguments.key, arguments.revision);
    let rollback = if arguments.prefix { rollback.prefix() } else { rollback };
    let done = rollback.await?;
    context.print(&Written { revision: done.revision, changed: done.changed })
}

async fn watch(context: &Context, sources: &Sources) -> Result<(), Failure> {
    let builder = context.client.config::<Value>().boot(Boot::FailFast);
    let config = sources.sources().into_iter().fold(builder, config::Builder::app).start().await?;
    let mut changes = config.on_change("");
    let mut rejections = config.rejections();
    let mut status = config.status();
    let mut is_connected = true;
    let mut settings = Settings { revision: config.revision(), tree: config.tree() };
    loop {
        context.print(&settings)?;
        settings = loop {
            tokio::select! {
                Some(change) = changes.next() => {
                    let tree = change.new.unwrap_or_default();
                    break Settings { revision: change.revision, tree };
                }
                Ok(()) = status.changed() => {
                    let now = status.borrow_and_update().clone();
                    if now.is_connected != is_connected {
                        let why = now.trouble.unwrap_or_else(|| "no server answers".into());
                        tell_connection((!now.is_connected).then_some(&*why));
                    }
                    is_connected = now.is_connected;
                }
                rejection = rejections.recv() => match rejection {
                    Ok(rejection) => complain(&rejection.to_string()),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(Failure::interrupted("the watch ended")),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_checked_as_what_readers_take_it_for() {
        let cases: [(&str, &[u8], bool); 9] = [
            ("config/app", b"{", false),
            ("config/app", b"\n {\"port\": 1}", true),
            ("config/app/port", b"80", true),
            ("config/app/bind", b"[::1]:80", true),
            ("config/app.toml", b"{", false),
            ("config/app/greeting.txt", b"{name}", true),
            ("config/app/", b"80", false),
            ("port", b"80", true),
            ("config/port", b"\xff", false),
        ];
        for (name, value, is_taken) in cases {
            let taken = readers(name, value, None).check(name, value);
            assert_eq!(taken.is_ok(), is_taken, "{name}: {taken:?}");
        }
        let text =
            |value: &[u8]| readers("a.json", value, Some(Codec::Text)).check("a.json", value);
        assert!(text(b"{").is_ok() && text(b"\xff").is_err());
    }
}
