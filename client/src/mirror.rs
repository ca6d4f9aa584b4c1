//! A local copy of all keys with a prefix: a snapshot, then each change since its revision, without
//! a gap.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::{RangeResponse, ResponseHeader},
    mvccpb::{Event, KeyValue, event::EventType},
};
use tokio::{sync::watch, time::sleep};

use crate::{
    backoff::Backoff,
    client::Client,
    connection::Reporter,
    error::Error,
    known_cluster::KnownCluster,
    watch::{Watcher, mod_revision},
};

/// The keys with a prefix, kept up to date by calling [`Mirror::next`].
#[derive(Debug)]
pub(crate) struct Mirror {
    client: Client,
    prefix: Bytes,
    /// Revision of the first snapshot; 0 for the current one.
    from: i64,
    keys: BTreeMap<Bytes, KeyValue>,
    header: ResponseHeader,
    /// Changes of later revisions that came in the same response: each revision is a state of its
    /// own.
    pending: VecDeque<Event>,
    watch: Option<(Watcher, watch::Receiver<bool>)>,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The keys have changed.
    Keys,
    /// Whether a server currently reports changes.
    Connected(bool),
}

impl Mirror {
    /// A mirror that is empty until [`Mirror::next`] has read a snapshot at revision `from` (0 for
    /// the current one).
    pub(crate) fn new(client: Client, prefix: Bytes, from: i64) -> Self {
        let (keys, header) = (BTreeMap::new(), ResponseHeader::default());
        Self { client, prefix, from, keys, header, pending: VecDeque::new(), watch: None }
    }

    /// Like [`Mirror::next`], for callers that only want the keys. Retries after passing errors,
    /// and reports the state of the connection.
    ///
    /// # Errors
    /// Errors that waiting cannot cure.
    pub(crate) async fn next_keys(&mut self, reporter: &Reporter) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            match self.next().await {
                Ok(Step::Keys) => {
                    reporter.is_there();
                    return Ok(());
                }
                Ok(Step::Connected(true)) => reporter.is_there(),
                Ok(Step::Connected(false)) => {
                    let why = || self.trouble().unwrap_or_else(|| "no server answers".into());
                    reporter.is_lost(why);
                }
                Err(error) if error.is_passing() => {
                    reporter.is_lost(|| error.to_string().into());
                    sleep(backoff.next()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the next state. Not cancel-safe.
    ///
    /// # Errors
    /// Why the snapshot could not be read, or what ended the watch. The next call reads a new
    /// snapshot.
    pub(crate) async fn next(&mut self) -> Result<Step, Error> {
        loop {
            if self.apply_next() {
                return Ok(Step::Keys);
            }
            let Some((watcher, connected)) = &mut self.watch else {
                self.read().await?;
                return Ok(Step::Keys);
            };
            let response = tokio::select! {
                biased;
                Ok(()) = connected.changed() => {
                    return Ok(Step::Connected(*connected.borrow_and_update()));
                }
                response = watcher.next() => response,
            };
            match response {
                Ok(Some(response)) => {
                    self.header = response.header.unwrap_or_default();
                    self.pending.extend(response.events);
                }
                // A store restored to an older state has other keys now.
                Ok(None) | Err(Error::Compacted { .. } | Error::FutureRevision(_)) => {
                    self.watch = None;
                }
                Err(error) => {
                    self.watch = None;
                    return Err(error);
                }
            }
        }
    }

    /// Applies the changes of one revision, if there are any.
    fn apply_next(&mut self) -> bool {
        let Some(revision) = self.pending.front().map(mod_revision) else { return false };
        while let Some(event) = self.pending.pop_front_if(|event| mod_revision(event) == revision) {
            let is_put = event.r#type() == EventType::Put;
            let Some(kv) = event.kv else { continue };
            if is_put {
                self.keys.insert(kv.key.clone(), kv);
            } else {
                self.keys.remove(&kv.key);
            }
        }
        self.header.revision = revision;
        true
    }

    async fn read(&mut self) -> Result<(), Error> {
        let get = self.client.get(&self.prefix[..]).prefix().revision(self.from);
        let answer = match get.await {
            Err(Error::Compacted { .. }) if self.from > 0 => {
                self.from = 0;
                self.client.get(&self.prefix[..]).prefix().await?
            }
            answer => answer?,
        };
        let RangeResponse { header, kvs, .. } = answer.into_inner();
        self.header = header.unwrap_or_default();
        if self.from > 0 {
            // The header has the current revision, not the one that was read.
            self.header.revision = self.header.revision.min(self.from);
        }
        self.from = 0;
        self.keys = kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let watch = self.client.watch(&self.prefix[..]).prefix();
        let revision = self.header.revision;
        let mut cluster = KnownCluster::default();
        cluster.meet(self.header.cluster_id)?;
        let watcher = watch.from_revision(revision + 1).known(revision, cluster).start();
        let mut connected = watcher.connected();
        connected.mark_unchanged();
        self.watch = Some((watcher, connected));
        Ok(())
    }

    /// Why no server currently reports changes, if it is known.
    pub(crate) fn trouble(&self) -> Option<Arc<str>> {
        self.watch.as_ref().and_then(|(watcher, _)| watcher.trouble())
    }

    /// The keys with the prefix.
    pub(crate) fn keys(&self) -> &BTreeMap<Bytes, KeyValue> {
        &self.keys
    }

    /// The header of the response that brought this state, with the revision of this state.
    pub(crate) fn header(&self) -> &ResponseHeader {
        &self.header
    }
}
