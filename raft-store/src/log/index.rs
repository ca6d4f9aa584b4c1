//! Where each entry is: in the tail cache, in a segment file, or both.
//!
//! The cache contains the encoded bytes of the newest entries. An entry is evicted only after its
//! record was written, oldest first, so every entry is readable from the moment it was appended.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

/// Where the record of an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// Sequence of the record, which tells an entry from one it replaced at the same index.
    pub(super) sequence: u64,
    /// Number of the segment; 0 until the record is written.
    pub(super) segment: u64,
    /// Offset of the record in the segment.
    pub(super) offset: u32,
    /// Length of the body.
    pub(super) body_bytes: u32,
}

impl Slot {
    fn is_written(&self) -> bool {
        self.segment != 0
    }
}

/// An entry as found in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The encoded entry.
    Cached(Bytes),
    /// Must be read from a segment.
    Stored(Slot),
}

/// The entries that the log contains: consecutive indexes from `first`.
#[derive(Debug)]
pub(super) struct Index {
    first: u64,
    slots: VecDeque<Slot>,
    /// Encoded bytes of the last `cache.len()` entries.
    cache: VecDeque<Bytes>,
    cached_bytes: usize,
    cache_bytes_max: usize,
}

impl Index {
    /// An index without entries that caches up to `cache_bytes_max` bytes of written ones.
    pub(super) fn new(cache_bytes_max: usize) -> Self {
        Self {
            first: 0,
            slots: VecDeque::new(),
            cache: VecDeque::new(),
            cached_bytes: 0,
            cache_bytes_max,
        }
    }

    /// The indexes of all entries.
    pub(super) fn range(&self) -> Range<u64> {
        self.first..self.first + self.slots.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Adds an entry that is not written yet. `index` must be the next one; any if there are no
    /// entries.
    pub(super) fn push(&mut self, index: u64, sequence: u64, body: Bytes) {
        let body_bytes =
            u32::try_from(body.len()).expect("bodies are bounded when they are queued");
        self.push_slot(index, Slot { sequence, segment: 0, offset: 0, body_bytes });
        self.cached_bytes += body.len();
        self.cache.push_back(body);
    }

    /// Adds an entry that is written and not cached. Allowed only while nothing is cached.
    pub(super) fn push_slot(&mut self, index: u64, slot: Slot) {
        if self.slots.is_empty() {
            self.first = index;
        }
        assert!(index == self.range().end, "entries are consecutive");
        self.slots.push_back(slot);
    }

    /// Records where an entry was written, unless it was replaced or removed meanwhile.
    pub(super) fn written(&mut self, index: u64, slot: Slot) {
        let Some(at) = index.checked_sub(self.first) else { return };
        let Some(known) = self.slots.get_mut(at as usize) else { return };
        if known.sequence == slot.sequence {
            *known = slot;
        }
    }

    /// Evicts written entries while the cache is above its limit.
    pub(super) fn evict(&mut self) {
        while self.cached_bytes > self.cache_bytes_max {
            let oldest = self.slots.len() - self.cache.len();
            if !self.slots.get(oldest).is_some_and(Slot::is_written) {
                return;
            }
            let body = self.cache.pop_front().expect("what is counted is cached");
            self.cached_bytes -= body.len();
        }
    }

    /// Removes the entries with `index` and later.
    pub(super) fn truncate(&mut self, index: u64) {
        while self.range().end > index && self.slots.pop_back().is_some() {
            if let Some(body) = self.cache.pop_back() {
                self.cached_bytes -= body.len();
            }
        }
    }

    /// Removes the entries before `index`.
    pub(super) fn purge(&mut self, index: u64) {
        while self.first < index && self.slots.pop_front().is_some() {
            self.first += 1;
            if self.cache.len() > self.slots.len() {
                let body = self.cache.pop_front().expect("longer than the entries");
                self.cached_bytes -= body.len();
            }
        }
    }

    /// The first index of a tail that ends before `end` and has at most this many entries and
    /// bytes.
    pub(super) fn tail_start(&self, end: u64, entries_max: u64, bytes_max: u64) -> u64 {
        let own = self.range();
        let end = end.clamp(own.start, own.end);
        let first = end.saturating_sub(entries_max).max(own.start);
        let mut bytes = 0_u64;
        let mut start = end;
        while start > first {
            bytes += u64::from(self.slots[(start - 1 - own.start) as usize].body_bytes);
            if bytes > bytes_max {
                break;
            }
            start -= 1;
        }
        start
    }

    /// The existing entries of `range`, from the first on: at least one, then as many as stay
    /// within `bytes_max`.
    pub(super) fn select(&self, range: Range<u64>, bytes_max: usize) -> Vec<Source> {
        let own = self.range();
        let (start, end) = (range.start.max(own.start), range.end.min(own.end));
        if start >= end {
            return Vec::new();
        }
        let uncached = self.slots.len() - self.cache.len();
        let mut total = 0_usize;
        let mut sources = Vec::new();
        for at in (start - own.start) as usize..(end - own.start) as usize {
            let slot = self.slots[at];
            total = total.saturating_add(slot.body_bytes as usize);
            if total > bytes_max && !sources.is_empty() {
                break;
            }
            sources.push(match at.checked_sub(uncached) {
                Some(cached) => Source::Cached(self.cache[cached].clone()),
                None => Source::Stored(slot),
            });
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(sequence: u64) -> Slot {
        Slot { sequence, segment: 1, offset: 512, body_bytes: 10 }
    }

    fn filled(cache_bytes_max: usize, indexes: Range<u64>) -> Index {
        let mut index = Index::new(cache_bytes_max);
        for i in indexes {
            index.push(i, 100 + i, Bytes::from(vec![i as u8; 10]));
        }
        index
    }

    #[test]
    fn only_written_entries_leave_the_cache() {
        let mut index = filled(25, 5..10);
        index.evict();
        assert_eq!(index.cache.len(), 5);
        index.written(5, slot(105));
        index.written(6, slot(999));
        index.evict();
        assert_eq!(index.cache.len(), 4, "6 was replaced, so its record is not written");
        for i in 6..10 {
            index.written(i, slot(100 + i));
        }
        index.evict();
        assert_eq!((index.cache.len(), index.cached_bytes), (2, 20));
        let all = index.select(0..u64::MAX, usize::MAX);
        assert_eq!(all[0], Source::Stored(slot(105)));
        assert_eq!(all[4], Source::Cached(Bytes::from(vec![9; 10])));
    }

    #[test]
    fn truncate_and_purge_keep_cache_and_entries_together() {
        let mut index = filled(1000, 0..10);
        index.truncate(8);
        index.purge(3);
        assert_eq!(index.range(), 3..8);
        assert_eq!((index.cache.len(), index.cached_bytes), (5, 50));
        index.truncate(100);
        index.purge(1);
        assert_eq!(index.range(), 3..8);
        index.truncate(0);
        assert!(index.is_empty());
        assert_eq!(index.cached_bytes, 0);
        index.push(50, 1, Bytes::new());
        assert_eq!(index.range(), 50..51);
        index.purge(1000);
        assert!(index.is_empty());
    }

    #[test]
    fn a_tail_is_bounded_by_entries_and_bytes() {
        let index = filled(1000, 5..10);
        assert_eq!(index.tail_start(9, 3, 1000), 6);
        assert_eq!(index.tail_start(9, 3, 20), 7);
        assert_eq!(index.tail_start(9, 3, 0), 9);
        assert_eq!(index.tail_start(100, 100, 1000), 5);
        assert_eq!(index.tail_start(1, 100, 1000), 5);
        assert_eq!(Index::new(0).tail_start(7, 1, 1), 0);
    }

    #[test]
    fn a_selection_has_at_least_one_entry_and_then_obeys_the_limit() {
        let index = filled(1000, 5..10);
        assert_eq!(index.select(0..5, 100).len(), 0);
        assert_eq!(index.select(0..6, 100).len(), 1);
        assert_eq!(index.select(6..100, 1).len(), 1);
        assert_eq!(index.select(6..100, 20).len(), 2);
        assert_eq!(index.select(10..100, 20).len(), 0);
        #[expect(clippy::reversed_empty_ranges, reason = "must be harmless")]
        let none = index.select(8..6, 20);
        assert_eq!(none.len(), 0);
    }
}
