//! `make-mirror`: copies the keys of this cluster to another, and then every change, each revision
//! as one transaction. Keys are deleted there only when they are deleted here in the meantime.

use std::{cell::Cell, ffi::OsString, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use conclave_client::{
    Client,
    mvccpb::{Event, event::EventType},
    pb::{
        DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
    },
};
use tokio::time::{Instant, interval_at};

use super::{Context, get};
use crate::{arguments::TlsArguments, failure::Failure, output::write, word::Word};

/// Keys read per page.
const PAGE_KEYS: i64 = 1000;
/// Larger transactions are divided; servers accept 1.5 MiB.
const TXN_BYTES_MAX: usize = 1 << 20;
/// How often the number of copied changes is printed.
const REPORT_EVERY: Duration = Duration::from_secs(30);

/// Flags and arguments of `make-mirror`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Address of a server of the other cluster.
    #[arg(value_name = "DESTINATION")]
    destination: Vec<String>,
    /// Copy only keys that begin with this.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Prefix in the other cluster that replaces --prefix.
    #[arg(long, default_value = "")]
    dest_prefix: String,
    /// Remove the prefix from the keys in the other cluster.
    #[arg(long)]
    no_dest_prefix: bool,
    /// Do not copy the current keys; start with the changes of this revision.
    #[arg(long, default_value_t = 0)]
    rev: i64,
    /// Most changes per transaction in the other cluster.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_txn_ops: u32,
    #[command(flatten)]
    identity: Identity,
}

/// How to be known to the other cluster.
#[derive(Debug, Args)]
struct Identity {
    /// CA certificates that verify the other cluster's servers (PEM).
    #[arg(long, value_name = "FILE")]
    dest_cacert: Option<PathBuf>,
    /// Certificate to present to the other cluster (PEM).
    #[arg(long, value_name = "FILE", requires = "dest_key")]
    dest_cert: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long, value_name = "FILE", requires = "dest_cert")]
    dest_key: Option<PathBuf>,
    /// Connect to the other cluster without TLS if its address has no scheme and no certificates
    /// are given.
    #[arg(long, default_value_t = true)]
    dest_insecure_transport: bool,
    /// User in the other cluster, optionally with the password: NAME or NAME:PASSWORD.
    #[arg(long)]
    dest_user: Option<String>,
    /// Password of that user.
    #[arg(long)]
    dest_password: Option<String>,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let [destination] = arguments.destination.as_slice() else {
        return Err(Failure::bad_arguments("make-mirror takes one destination argument"));
    };
    if arguments.no_dest_prefix && !arguments.dest_prefix.is_empty() {
        return Err(Failure::bad_arguments(
            "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
        ));
    }
    let has_same_prefix = !arguments.no_dest_prefix && arguments.dest_prefix.is_empty();
    let mirror = Mirror {
        source: context.client.clone(),
        target: arguments.identity.client(context, destination)?,
        new_prefix: if has_same_prefix { &arguments.prefix } else { &arguments.dest_prefix },
        prefix: &arguments.prefix,
        operations_max: usize::try_from(arguments.max_txn_ops).unwrap_or(usize::MAX),
        copied: Cell::new(0),
    };
    tokio::select! {
        done = mirror.run(arguments.rev) => done,
        failed = mirror.report() => Err(failed),
    }
}

impl Identity {
    fn client(self, context: &Context, destination: &str) -> Result<Client, Failure> {
        let tls = TlsArguments {
            cacert: self.dest_cacert,
            cert: self.dest_cert,
            key: self.dest_key,
            insecure_transport: self.dest_insecure_transport,
            insecure_skip_tls_verify: false,
        };
        let global = context.global.elsewhere(tls, self.dest_user, self.dest_password)?;
        global.client(&[destination.to_owned()])
    }
}

/// Copies keys from one cluster to another.
struct Mirror<'a> {
    source: Client,
    target: Client,
    prefix: &'a str,
    new_prefix: &'a str,
    operations_max: usize,
    copied: Cell<u64>,
}

impl Mirror<'_> {
    async fn run(&self, revision: i64) -> Result<(), Failure> {
        let from = if revision > 0 { revision } else { self.copy().await? + 1 };
        self.follow(from).await
    }

    /// Prints the number of copied changes at intervals.
    async fn report(&self) -> Failure {
        let mut ticks = interval_at(Instant::now() + REPORT_EVERY, REPORT_EVERY);
        loop {
            ticks.tick().await;
            if let Err(failure) = write(format!("{}\n", self.copied.get()).as_bytes()) {
                return failure;
            }
        }
    }

    /// Copies the current keys; returns their revision.
    async fn copy(&self) -> Result<i64, Failure> {
        let prefix = [Word::from(OsString::from(self.prefix))];
        let (mut key, range_end) = get::range(&prefix, true, false, "")?;
        let mut revision = 0;
        loop {
            let (limit, range_end) = (PAGE_KEYS, range_end.clone());
            let request =
                RangeRequest { key, range_end, limit, revision, ..RangeRequest::default() };
            let page = self.source.send_range(request).await?;
            if revision == 0 {
                revision = page.revision();
            }
            let puts = page.kvs.iter().map(|kv| self.put(&kv.key, &kv.value));
            self.write(puts.collect()).await?;
            let Some(last) = page.kvs.last().filter(|_| page.more) else { return Ok(revision) };
            key = [&last.key[..], &[0]].concat().into();
        }
    }

    /// Copies every change from a revision on.
    async fn follow(&self, from: i64) -> Result<(), Failure> {
        let mut watcher = self.source.watch(self.prefix).prefix().from_revision(from).start();
        while let Some(response) = watcher.next().await? {
            let is_one = |one: &Event, next: &Event| revision(one) == revision(next);
            for change in response.events.chunk_by(is_one) {
                self.write(change.iter().filter_map(|event| self.change(event)).collect()).await?;
            }
        }
        Err(Failure::interrupted("watch is canceled by the server"))
    }

    /// The same change for the other cluster.
    fn change(&self, event: &Event) -> Option<Operation> {
        let kv = event.kv.as_ref()?;
        Some(match event.r#type() {
            EventType::Put => self.put(&kv.key, &kv.value),
            EventType::Delete => {
                let key = self.renamed(&kv.key);
                let size = key.len();
                let request = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
                Operation { size, request: Request::RequestDeleteRange(request) }
            }
        })
    }

    fn put(&self, key: &Bytes, value: &Bytes) -> Operation {
        let (key, value) = (self.renamed(key), value.clone());
        let size = key.len() + value.len();
        let request = Request::RequestPut(PutRequest { key, value, ..PutRequest::default() });
        Operation { size, request }
    }

    /// The name of a key in the other cluster.
    fn renamed(&self, key: &Bytes) -> Bytes {
        let rest = key.get(self.prefix.len()..).unwrap_or_default();
        [self.new_prefix.as_bytes(), rest].concat().into()
    }

    /// Writes in order, in as few transactions as possible.
    async fn write(&self, operations: Vec<Operation>) -> Result<(), Failure> {
        for batch in batches(operations, self.operations_max) {
            let count = batch.len();
            let success = batch.into_iter().map(|request| RequestOp { request: Some(request) });
            let txn = TxnRequest { success: success.collect(), ..TxnRequest::default() };
            self.target.send_txn(txn).await?;
            self.copied.set(self.copied.get() + u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

/// A change to make, and its approximate size in bytes.
struct Operation {
    size: usize,
    request: Request,
}

/// Divides changes into transactions.
fn batches(operations: Vec<Operation>, count_max: usize) -> Vec<Vec<Request>> {
    let mut batches: Vec<Vec<Request>> = Vec::new();
    let mut bytes = 0;
    for Operation { size, request } in operations {
        bytes += size;
        match batches.last_mut() {
            Some(batch) if batch.len() < count_max && bytes <= TXN_BYTES_MAX => batch.push(request),
            _ => {
                bytes = size;
                batches.push(vec![request]);
            }
        }
    }
    batches
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(sizes: &[usize], count_max: usize) -> Vec<usize> {
        let operations = sizes.iter().map(|&size| {
            let request = Request::RequestPut(PutRequest::default());
            Operation { size, request }
        });
        batches(operations.collect(), count_max).iter().map(Vec::len).collect()
    }

    #[test]
    fn transactions_are_neither_too_long_nor_too_large() {
        assert_eq!(sizes(&[], 3), [0; 0]);
        assert_eq!(sizes(&[1; 7], 3), [3, 3, 1]);
        let half = TXN_BYTES_MAX / 2;
        assert_eq!(sizes(&[half, half, 1, half, 3 * half, 1], 100), [2, 2, 1, 1]);
    }
}
