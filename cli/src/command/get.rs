//! `get`.

use bytes::Bytes;
use clap::Args;
use conclave_client::{
    key::prefix_end,
    pb::{
        RangeRequest,
        range_request::{SortOrder, SortTarget},
    },
};

use super::Context;
use crate::{
    arguments::Flavor,
    failure::Failure,
    output::{Format, write},
    word::Word,
};

/// Flags and arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The key, and the end of a range of keys.
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<Word>,
    /// Linearizable(l) or Serializable(s).
    #[arg(long, default_value = "l")]
    consistency: String,
    /// Order of results: ASCEND or DESCEND.
    #[arg(long, default_value = "")]
    order: String,
    /// What to sort by: CREATE, KEY, MODIFY, VALUE or VERSION.
    #[arg(long, default_value = "")]
    sort_by: String,
    /// Maximum number of results.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    limit: i64,
    /// All keys that start with the key.
    #[arg(long)]
    prefix: bool,
    /// All keys from the key on.
    #[arg(long)]
    from_key: bool,
    /// The state as of this revision.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    rev: i64,
    /// Keys only.
    #[arg(long)]
    keys_only: bool,
    /// The number of keys only.
    #[arg(long)]
    count_only: bool,
    /// Have the server send the answer in pieces, for many keys (from etcd 3.7 on; no other order than by key).
    #[arg(long)]
    stream: bool,
    /// Values only, in the simple form.
    #[arg(long)]
    print_value_only: bool,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let mut printer = context.printer;
    if arguments.print_value_only && printer.format != Format::Simple {
        return Err(Failure::bad_arguments("print-value-only is only for `--write-out=simple`"));
    }
    printer.style.values_only = arguments.print_value_only;
    let is_count = arguments.count_only && printer.format == Format::Simple;
    let is_stream = arguments.stream;
    let request = arguments.called_as(context.flavor).request()?;
    let reply = match is_stream {
        true => context.client.send_range_stream(request).await?,
        false => context.client.send_range(request).await?,
    };
    if is_count {
        return write(format!("{}\n", reply.count).as_bytes());
    }
    printer.print(&*reply)
}

impl Arguments {
    /// Applies the rules of the program name: etcdctl ignores extra arguments.
    pub(super) fn called_as(mut self, flavor: Flavor) -> Self {
        if flavor == Flavor::Etcdctl {
            self.keys.truncate(2);
        }
        self
    }

    /// Builds the request.
    ///
    /// # Errors
    /// If they contradict each other.
    pub(super) fn request(self) -> Result<RangeRequest, Failure> {
        let usage = "get command needs one argument as key and an optional argument as range_end";
        let (key, range_end) = range(&self.keys, self.prefix, self.from_key, usage)?;
        let mut request = RangeRequest {
            key,
            range_end,
            limit: self.limit,
            revision: self.rev,
            keys_only: self.keys_only,
            count_only: self.count_only,
            ..RangeRequest::default()
        };
        request.serializable = match self.consistency.as_str() {
            "s" => true,
            "l" => false,
            other => {
                let message = format!("unknown consistency flag {other:?}");
                return Err(Failure::bad_feature(message));
            }
        };
        let order = match self.order.to_uppercase().as_str() {
            "ASCEND" => SortOrder::Ascend,
            "DESCEND" => SortOrder::Descend,
            "" => SortOrder::None,
            _ => return Err(Failure::bad_feature(format!("bad sort order {}", self.order))),
        };
        let target = match self.sort_by.to_uppercase().as_str() {
            "CREATE" => SortTarget::Create,
            "KEY" | "" => SortTarget::Key,
            "MODIFY" => SortTarget::Mod,
            "VALUE" => SortTarget::Value,
            "VERSION" => SortTarget::Version,
            _ => return Err(Failure::bad_feature(format!("bad sort target {}", self.sort_by))),
        };
        request.set_sort_order(order);
        request.set_sort_target(target);
        Ok(request)
    }
}

/// The key and range end of verbs that take both as arguments, or a flag for the end.
///
/// # Errors
/// If there are too few or too many; `usage` says what is expected.
pub(super) fn range(
    keys: &[Word],
    prefix: bool,
    from_key: bool,
    usage: &str,
) -> Result<(Bytes, Bytes), Failure> {
    if prefix && from_key {
        let message = "`--prefix` and `--from-key` cannot be set at the same time, choose one";
        return Err(Failure::bad_arguments(message));
    }
    match keys {
        [] => Err(Failure::bad_arguments(usage)),
        [key] if prefix && key.is_empty() => Ok((all(), all())),
        [key] if prefix => Ok((key.bytes(), prefix_end(&key.bytes()))),
        [key] if from_key && key.is_empty() => Ok((all(), all())),
        [key] if from_key => Ok((key.bytes(), all())),
        [key] => Ok((key.bytes(), Bytes::new())),
        [_, _] if prefix || from_key => Err(Failure::bad_arguments(
            "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
        )),
        [key, end] => Ok((key.bytes(), end.bytes())),
        _ => Err(Failure::bad_arguments(usage)),
    }
}

/// As a key: the first possible key. As a range end: no end.
fn all() -> Bytes {
    Bytes::from_static(b"\0")
}
