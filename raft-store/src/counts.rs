//! Exact counts of live keys without visiting them, and the gaps without live keys, for readers.
//!
//! The index is local: it is built by one scan when a state is opened, then updated with the events
//! of every piece, under the same lock as the head it belongs to. If it ever disagrees with the
//! replicated count, it is dropped and counting scans again: slower, never wrong. The latest
//! creations and deletions (`recent`) turn a present count into one at a slightly older revision.

mod recent;

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::command::Range;
use conclave_state_machine::head::Head;
use conclave_state_machine::range;
use conclave_state_machine::rank::{CUT_ROWS, Counted, FirstRows, RankIndex, Rest};
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::{EventKind, Halt, RangeResponse, Rejection};
use conclave_state_machine::span::Span;

use self::recent::Recent;
use crate::sink::AppliedEntry;

/// What is known about the live keys.
#[derive(Debug)]
pub(crate) struct Counts {
    /// The index, unless it had to be dropped.
    index: Option<RankIndex>,
    recent: Recent,
}

impl Counts {
    /// Counts all keys that are live at `head`.
    pub(crate) fn build(rows: &impl Read, head: &Head) -> Result<Self, Halt> {
        let mut index = RankIndex::default();
        range::key_rows(rows, head.revision, (b"", None), &mut |key, lives| {
            index.push(key, lives);
            ControlFlow::Continue(())
        })?;
        let mut counts = Self { index: Some(index), recent: Recent::new(head.revision) };
        counts.check(head);
        Ok(counts)
    }

    /// Updates the index to `head`. Returns keys whose buckets outgrew their size. These must be
    /// split with [`Counts::overfull`], [`first_rows`] and [`Counts::cut`] after `head` was
    /// published: a split counts rows, which agree with the index only then.
    pub(crate) fn advance(&mut self, entries: &[AppliedEntry], head: &Head) -> Vec<Bytes> {
        let mut outgrown: Vec<(Bytes, Bytes)> = Vec::new();
        let Some(index) = &mut self.index else { return Vec::new() };
        for event in entries.iter().flat_map(|entry| &entry.results).flat_map(|r| &r.events) {
            let key = &event.kv.key;
            let is_created = match event.kind {
                EventKind::Delete => false,
                EventKind::Put if event.kv.version == 1 => true,
                EventKind::Put => continue,
            };
            self.recent.push(event.kv.mod_revision, key, is_created);
            let overfull = if is_created { index.created(key) } else { index.deleted(key) };
            if let Some((first, _)) = overfull
                && outgrown.last().is_none_or(|(known, _)| *known != first)
            {
                outgrown.push((first, key.clone()));
            }
        }
        self.check(head);
        outgrown.into_iter().map(|(_, key)| key).collect()
    }

    /// The bucket of `key`, if it is too big.
    pub(crate) fn overfull(&self, key: &[u8]) -> Option<Rest> {
        self.index.as_ref()?.overfull(key)
    }

    fn check(&mut self, head: &Head) {
        let Some(index) = &self.index else { return };
        let is_right = i64::try_from(index.len()) == Ok(head.key_count);
        debug_assert!(is_right, "the index counts {} keys, {head:?}", index.len());
        if !is_right {
            tracing::error!(
                counted = index.len(),
                key_count = head.key_count,
                "the index of key counts is wrong; counting by scans until the next start"
            );
            self.index = None;
        }
    }

    /// Splits the bucket that starts at `first`. Returns the first key of its second part.
    pub(crate) fn cut(&mut self, first: &Bytes, rows: FirstRows) -> Option<Bytes> {
        self.index.as_mut()?.cut(first, rows)
    }

    /// What the index knows about the keys of `request`, if that saves anything.
    pub(crate) fn known(&self, head: &Head, request: &Range) -> Option<Known> {
        let Span::Keys { start, end } = Span::new(&request.key, &request.range_end) else {
            return None;
        };
        let index = self.index.as_ref()?;
        let stops_early = request.limit > 0 || request.count_only;
        // A range within one bucket is read as a whole anyway.
        let counted = stops_early.then(|| index.count(start, end)).filter(|known| known.keys > 0);
        let is_current = request.revision <= 0 || request.revision == head.revision;
        if !is_current {
            // Gaps cannot be used, because a key that is dead now may have been live then.
            let growth =
                self.recent.growth(request.revision, start, end).filter(|_| counted.is_some())?;
            return Some(Known { counted, growth, ..Known::default() });
        }
        if request.count_only && counted.is_some() {
            return Some(Known { counted, ..Known::default() });
        }
        let from_the_end = range::limit_from_the_end(request).filter(|_| counted.is_some());
        let tail = from_the_end.and_then(|keys| index.tail(start, end, keys));
        let is_limited = request.limit > 0 && from_the_end.is_none();
        let limit = usize::try_from(request.limit).ok().filter(|_| is_limited);
        let keys_max = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
        let gaps = index.gaps(tail.as_deref().unwrap_or(start), end, keys_max);
        Some(Known { counted, gaps, tail, growth: 0 })
    }
}

/// What is known about a range before it is read.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Its number of live keys now.
    counted: Option<Counted>,
    /// How many more these are than at the requested revision.
    growth: i64,
    /// Parts of the range without live keys, in order.
    gaps: Vec<Rest>,
    /// The key to start from if only the last keys are requested.
    tail: Option<Bytes>,
}

impl Known {
    /// Answers `request`, with what was known about it at `head`.
    pub(crate) fn answer(
        &self,
        rows: &impl Read,
        head: &Head,
        request: &Range,
    ) -> Result<Result<RangeResponse, Rejection>, Halt> {
        let rows = &Lively { rows, gaps: &self.gaps };
        let Some(counted) = &self.counted else { return range::range(rows, head, request) };
        let keys = complete(rows, head, counted)?.saturating_sub(self.growth);
        let Some(tail) = &self.tail else {
            return range::range_counted(rows, head, request, keys);
        };
        let request = Range { key: tail.clone(), ..request.clone() };
        let answer = range::range(rows, head, &request)?;
        Ok(answer.map(|answer| RangeResponse { count: keys, ..answer }))
    }
}

/// Rows without those in gaps, so that the storage need not step over dead keys.
struct Lively<'a, R> {
    rows: &'a R,
    gaps: &'a [Rest],
}

impl<R: Read> Read for Lively<'_, R> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        self.rows.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        let gaps = if table == Table::Key { self.gaps } else { &[] };
        let is_over = Cell::new(false);
        let mut visit = |key: &[u8], row: &[u8]| {
            let flow = visit(key, row)?;
            is_over.set(flow.is_break());
            Ok(flow)
        };
        let mut from = start;
        for (gap, gap_end) in gaps {
            if gap_end.as_ref().is_some_and(|gap_end| &gap_end[..] <= from) {
                continue;
            }
            if end.is_some_and(|end| end <= &gap[..]) {
                break;
            }
            if from < &gap[..] {
                self.rows.scan(table, from, Some(gap), &mut visit)?;
                if is_over.get() {
                    return Ok(());
                }
            }
            let Some(gap_end) = gap_end else { return Ok(()) };
            from = gap_end;
        }
        if end.is_some_and(|end| end <= from) {
            return Ok(());
        }
        self.rows.scan(table, from, end, &mut visit)
    }
}

/// The first rows of a bucket at the published `revision`. Does not read values, because this runs
/// where entries are applied, and values may be large.
pub(crate) fn first_rows(
    rows: &impl Read,
    revision: i64,
    bucket: &Rest,
) -> Result<FirstRows, Halt> {
    let mut found = FirstRows::default();
    let interval = (&bucket.0[..], bucket.1.as_deref());
    range::key_rows(rows, revision, interval, &mut |key, lives| {
        if found.live.saturating_add(found.dead) >= CUT_ROWS {
            found.next = Some(Bytes::copy_from_slice(key));
            return ControlFlow::Break(());
        }
        let rows = if lives { &mut found.live } else { &mut found.dead };
        *rows = rows.saturating_add(1);
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Adds the keys that have to be counted in the rows.
fn complete(rows: &impl Read, head: &Head, counted: &Counted) -> Result<i64, Halt> {
    let mut keys = i64::try_from(counted.keys).unwrap_or(i64::MAX);
    for (start, end) in &counted.rest {
        let request = Range {
            key: start.clone(),
            // etcd's form of "no end".
            range_end: end.clone().unwrap_or_else(|| Bytes::from_static(&[0])),
            revision: head.revision,
            count_only: true,
            ..Range::default()
        };
        // A rejection here also applies to the whole request, which reports it.
        keys += range::range(rows, head, &request)?.map_or(0, |answer| answer.count);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use conclave_state_machine::memory::MemoryRows;
    use proptest::prelude::*;

    use super::*;

    /// Keys of `[start, end)` that a scan visits, up to `keys_max`.
    fn shown(
        rows: &impl Read,
        (start, end): (&[u8], Option<&[u8]>),
        keys_max: usize,
    ) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let mut visit = |key: &[u8], _: &[u8]| {
            assert!(keys.len() < keys_max, "it was told to stop");
            keys.push(key.to_vec());
            let is_enough = keys.len() == keys_max;
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        rows.scan(Table::Key, start, end, &mut visit).expect("memory does not fail");
        keys
    }

    proptest! {
        #[test]
        fn rows_in_gaps_are_left_out(
            keys in prop::collection::btree_set(0_u8..40, 0..40),
            bounds in prop::collection::btree_set(0_u8..42, 0..8),
            is_last_open in any::<bool>(),
            (start, end) in (0_u8..42, prop::option::of(0_u8..42)),
            keys_max in 1..20_usize,
        ) {
            let mut rows = MemoryRows::default();
            rows.write(keys.iter().map(|key| (Table::Key, vec![*key].into(), Some(Bytes::new()))));
            let bounds: Vec<u8> = bounds.into_iter().collect();
            let mut gaps: Vec<Rest> = Vec::new();
            for pair in bounds.chunks(2) {
                match pair {
                    [from, to] => gaps.push((vec![*from].into(), Some(vec![*to].into()))),
                    [from] if is_last_open => gaps.push((vec![*from].into(), None)),
                    _ => {}
                }
            }
            let is_in_gap = |key: &[u8]| {
                let is_in = |(from, to): &Rest| {
                    key >= &from[..] && to.as_ref().is_none_or(|to| key < &to[..])
                };
                gaps.iter().any(is_in)
            };
            let (start, end) = ([start], end.map(|end| [end]));
            let interval = (&start[..], end.as_ref().map(|end| &end[..]));
            let mut expected = shown(&rows, interval, usize::MAX);
            expected.retain(|key| !is_in_gap(key));
            expected.truncate(keys_max);
            let lively = Lively { rows: &rows, gaps: &gaps };
            prop_assert_eq!(shown(&lively, interval, keys_max), expected);
        }
    }
}
