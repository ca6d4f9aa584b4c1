//! Exact counts of live keys without visiting them, kept beside what readers see.
//!
//! The index is local: built by one scan when a state is opened, then moved on with the events of
//! every piece, under the same lock as the head it belongs to. Should it ever disagree with the
//! replicated count it is dropped, and counting scans again: slower, never wrong.

use bytes::Bytes;
use conclave_state_machine::command::Range;
use conclave_state_machine::head::Head;
use conclave_state_machine::range;
use conclave_state_machine::rank::{Counted, RankIndex, Rest};
use conclave_state_machine::read::Read;
use conclave_state_machine::response::{EventKind, Halt};
use conclave_state_machine::span::Span;

use crate::sink::AppliedEntry;

/// The index, unless it had to be dropped.
#[derive(Debug)]
pub(crate) struct Counts(Option<RankIndex>);

impl Counts {
    /// Counts all keys that are live as of `head`.
    pub(crate) fn build(rows: &impl Read, head: &Head) -> Result<Self, Halt> {
        let mut index = RankIndex::default();
        range::keys(rows, head.revision, b"", None, &mut |key| index.push(key))?;
        let mut counts = Self(Some(index));
        counts.check(head);
        Ok(counts)
    }

    /// Moves on to `head`. Returns keys whose buckets outgrew their size, to be split by
    /// [`Counts::overfull`], [`cut`] and [`Counts::split`] when `head` is published: a cut counts rows,
    /// and only then do the rows agree with the index.
    pub(crate) fn advance(&mut self, entries: &[AppliedEntry], head: &Head) -> Vec<Bytes> {
        let mut outgrown: Vec<(Bytes, Bytes)> = Vec::new();
        let Some(index) = &mut self.0 else { return Vec::new() };
        for event in entries.iter().flat_map(|entry| &entry.results).flat_map(|r| &r.events) {
            match event.kind {
                EventKind::Delete => index.deleted(&event.kv.key),
                EventKind::Put if event.kv.version == 1 => {
                    if let Some((first, _)) = index.created(&event.kv.key)
                        && outgrown.last().is_none_or(|(known, _)| *known != first)
                    {
                        outgrown.push((first, event.kv.key.clone()));
                    }
                }
                EventKind::Put => {}
            }
        }
        self.check(head);
        outgrown.into_iter().map(|(_, key)| key).collect()
    }

    /// The bucket of `key`, if it is too big.
    pub(crate) fn overfull(&self, key: &[u8]) -> Option<Rest> {
        self.0.as_ref()?.overfull(key)
    }

    fn check(&mut self, head: &Head) {
        let Some(index) = &self.0 else { return };
        let is_right = i64::try_from(index.len()) == Ok(head.key_count);
        debug_assert!(is_right, "the index counts {} keys, {head:?}", index.len());
        if !is_right {
            tracing::error!(
                counted = index.len(),
                key_count = head.key_count,
                "the index of key counts is wrong; counting by scans until the next start"
            );
            self.0 = None;
        }
    }

    pub(crate) fn split(&mut self, cut: Cut) {
        let Cut { first, middle, keys_before } = cut;
        if let Some(index) = &mut self.0 {
            index.split(&first, middle, keys_before);
        }
    }

    /// What the index knows of the keys that `request` counts, if that saves anything.
    pub(crate) fn count(&self, head: &Head, request: &Range) -> Option<Counted> {
        let is_current = request.revision <= 0 || request.revision == head.revision;
        let stops_early = request.limit > 0 || request.count_only;
        if !is_current || !stops_early {
            return None;
        }
        let Span::Keys { start, end } = Span::new(&request.key, &request.range_end) else {
            return None;
        };
        // A range within a bucket is read as a whole anyway.
        self.0.as_ref().map(|index| index.count(start, end)).filter(|counted| counted.keys > 0)
    }
}

/// Where to cut a bucket.
pub(crate) struct Cut {
    first: Bytes,
    middle: Bytes,
    keys_before: usize,
}

/// The middle of a bucket, as of the published `revision`.
pub(crate) fn cut(rows: &impl Read, revision: i64, bucket: Rest) -> Result<Option<Cut>, Halt> {
    let (first, end) = bucket;
    let mut keys = Vec::new();
    // Without values: this runs where entries are applied, and they may be large.
    range::keys(rows, revision, &first, end.as_deref(), &mut |key| {
        keys.push(Bytes::copy_from_slice(key))
    })?;
    let keys_before = keys.len() / 2;
    if keys_before == 0 {
        return Ok(None);
    }
    let middle = keys.swap_remove(keys_before);
    Ok(Some(Cut { first, middle, keys_before }))
}

/// Adds what is left to be counted in the rows.
pub(crate) fn complete(rows: &impl Read, head: &Head, counted: &Counted) -> Result<i64, Halt> {
    let mut keys = i64::try_from(counted.keys).unwrap_or(i64::MAX);
    for (start, end) in &counted.rest {
        let request = Range {
            key: start.clone(),
            // Etcd's form of "no end".
            range_end: end.clone().unwrap_or_else(|| Bytes::from_static(&[0])),
            revision: head.revision,
            count_only: true,
            ..Range::default()
        };
        // Refusals are those of the whole request and met again there.
        keys += range::range(rows, head, &request)?.map_or(0, |answer| answer.count);
    }
    Ok(keys)
}
