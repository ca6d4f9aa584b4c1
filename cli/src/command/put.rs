//! `put`, `del` and `compaction`.

use std::io::Read;

use bytes::Bytes;
use clap::Args;
use conclave_client::pb::{CompactionRequest, DeleteRangeRequest, PutRequest};

use super::{Context, get::range};
use crate::{
    arguments::Flavor,
    failure::Failure,
    output::{parse_int, write},
    word::Word,
};

/// Flags and arguments of `put`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The key and the value; without a value it is read from standard input.
    #[arg(value_name = "KEY [VALUE]")]
    pair: Vec<Word>,
    /// The lease to attach to the key, in hexadecimal.
    #[arg(long, default_value = "0", allow_hyphen_values = true)]
    lease: String,
    /// Also print the pair as it was before.
    #[arg(long)]
    prev_kv: bool,
    /// Keep the value the key has.
    #[arg(long)]
    ignore_value: bool,
    /// Keep the lease the key has.
    #[arg(long)]
    ignore_lease: bool,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let value = |key: &str| {
        let mut value = Vec::new();
        std::io::stdin()
            .read_to_end(&mut value)
            .map_err(|error| Failure::input_output(format!("reading the value of {key}: {error}")))
            .and_then(|length| if length > 0 { Ok(value) } else { Err(no_value()) })
    };
    let reply =
        context.client.send_put(arguments.called_as(context.flavor).request(value)?).await?;
    context.print(&*reply)
}

impl Arguments {
    /// Applies the rules of the program name: etcdctl ignores extra arguments.
    pub(super) fn called_as(mut self, flavor: Flavor) -> Self {
        if flavor == Flavor::Etcdctl {
            self.pair.truncate(2);
        }
        self
    }

    /// Builds the request. `read_value` is called if the arguments hold no value.
    ///
    /// # Errors
    /// If the arguments are incomplete or contradict each other.
    pub(super) fn request(
        self,
        read_value: impl FnOnce(&str) -> Result<Vec<u8>, Failure>,
    ) -> Result<PutRequest, Failure> {
        let lease = parse_int(&self.lease, 16).map_err(|error| {
            Failure::bad_arguments(format!("bad lease ID ({error}), expecting ID in Hex"))
        })?;
        let (key, value) = match self.pair.as_slice() {
            [_, _] if self.ignore_value => {
                let message = "put command needs only 1 argument when 'ignore-value' is set";
                return Err(Failure::bad_arguments(message));
            }
            [key] if self.ignore_value => (key, Bytes::new()),
            [key] => (key, read_value(&key.text())?.into()),
            [key, value] => (key, value.bytes()),
            _ => return Err(no_value()),
        };
        Ok(PutRequest {
            key: key.bytes(),
            value,
            lease,
            prev_kv: self.prev_kv,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        })
    }
}

/// etcdctl's error for a missing value, or an empty one on standard input.
pub(super) fn no_value() -> Failure {
    Failure::bad_arguments("put command needs 1 argument and input from stdin or 2 arguments")
}

/// Flags and arguments of `del`.
#[derive(Debug, Args)]
pub(crate) struct DelArguments {
    /// The key, and the end of a range of keys.
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<Word>,
    /// All keys that start with the key.
    #[arg(long)]
    prefix: bool,
    /// All keys from the key on.
    #[arg(long)]
    from_key: bool,
    /// Also print the deleted pairs.
    #[arg(long)]
    prev_kv: bool,
    /// Delete all keys of an empty prefix without asking (nothing asks here).
    #[arg(long, hide = true)]
    yes: bool,
}

impl DelArguments {
    /// Builds the request.
    ///
    /// # Errors
    /// If they contradict each other.
    pub(super) fn request(self) -> Result<DeleteRangeRequest, Failure> {
        let usage = "del command needs one argument as key and an optional argument as range_end";
        let (key, range_end) = range(&self.keys, self.prefix, self.from_key, usage)?;
        Ok(DeleteRangeRequest { key, range_end, prev_kv: self.prev_kv })
    }
}

pub(super) async fn del(context: &Context, arguments: DelArguments) -> Result<(), Failure> {
    let reply = context.client.send_delete(arguments.request()?).await?;
    context.print(&*reply)
}

/// Flags and arguments of `compaction`.
#[derive(Debug, Args)]
pub(crate) struct CompactionArguments {
    /// The oldest revision that stays readable.
    #[arg(value_name = "REVISION")]
    revision: Vec<String>,
    /// Wait until the space has been reclaimed.
    #[arg(long)]
    physical: bool,
}

pub(super) async fn compact(
    context: &Context,
    arguments: CompactionArguments,
) -> Result<(), Failure> {
    let [revision] = arguments.revision.as_slice() else {
        return Err(Failure::bad_arguments("compaction command needs 1 argument"));
    };
    let revision = parse_int(revision, 10).map_err(Failure::error)?;
    let request = CompactionRequest { revision, physical: arguments.physical };
    context.client.send_compact(request).await?;
    write(format!("compacted revision {revision}\n").as_bytes())
}
