//! openraft's log traits on [`LogStore`].
//!
//! All of [`RaftLogStorage`] runs on raft's own task, so nothing here accesses a file: every call
//! only enqueues, and only `save_vote` waits for the disk. A handle serves both as reader and as
//! writer.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use super::LogStore;
use crate::codec;
use crate::types::{Entry, LogId, TypeConfig, Vote};

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.owner.shared.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let saved = self.owner.shared.save_vote(*vote)?;
        saved.await.map_err(|_| io::Error::other("the raft log failed before the vote was durable"))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.owner.shared.save_committed(committed)
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.owner.shared.state().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded: Vec<(LogId, Bytes)> =
            entries.into_iter().map(|entry| (entry.log_id, codec::encode_entry(&entry))).collect();
        self.owner.shared.space().await;
        self.owner.shared.append(encoded, callback)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.owner.shared.truncate_after(last_log_id)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.owner.shared.purge(log_id)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        decode(self.encoded(indexes(&range), usize::MAX).await?)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.owner.shared.state().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        decode(self.encoded(start..end, self.owner.options.read_bytes_max).await?)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        let steps = stream::try_unfold((log, indexes(&range), false), next_step);
        steps.flat_map(|step| {
            let items: Vec<io::Result<Entry>> = match step {
                Ok(entries) => entries.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            stream::iter(items)
        })
    }
}

/// What is still to be streamed, and whether the stream has begun.
type Rest = (LogStore, Range<u64>, bool);

/// Reads the next entries of a stream, as many as one read may return.
async fn next_step((log, range, has_begun): Rest) -> io::Result<Option<(Vec<Entry>, Rest)>> {
    let entries = decode(log.encoded(range.clone(), log.owner.options.read_bytes_max).await?)?;
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(None) };
    // Entries may be missing at the beginning and at the end, but never in between.
    if has_begun && first.log_id.index != range.start {
        let reason = format!("entry {} was purged while it was being read", range.start);
        return Err(io::Error::other(reason));
    }
    let rest = last.log_id.index + 1..range.end;
    Ok(Some((entries, (log, rest, true))))
}

fn decode(encoded: Vec<Bytes>) -> io::Result<Vec<Entry>> {
    let entries =
        encoded.into_iter().map(|bytes| codec::decode_entry(bytes).map_err(io::Error::from));
    entries.collect()
}

fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
