//! Remembers the latest creations and deletions of keys, to turn a present count into one at a
//! slightly older revision.
//!
//! A list in pages is read at the revision of its first page, and the answer for each page includes
//! how many keys are left. Most writes meanwhile change existing keys, so there are few entries to
//! look at.

use std::collections::VecDeque;

use bytes::Bytes;

/// Most entries to remember: a reader looks at them, for some tens of microseconds, while writes
/// wait.
const ENTRIES_MAX: usize = 4_096;
/// Most bytes of their keys.
const KEYS_BYTES_MAX: usize = 1 << 20;

/// Creations and deletions after a revision, in order.
#[derive(Debug)]
pub(super) struct Recent {
    /// All changes after this revision are included.
    since: i64,
    entries: VecDeque<Entry>,
    keys_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    revision: i64,
    key: Box<[u8]>,
    is_created: bool,
}

impl Recent {
    /// Starts at `revision`, without changes.
    pub(super) fn new(revision: i64) -> Self {
        Self { since: revision, entries: VecDeque::new(), keys_bytes: 0 }
    }

    /// Adds the creation or deletion of a key at `revision`. Revisions must not decrease.
    pub(super) fn push(&mut self, revision: i64, key: &Bytes, is_created: bool) {
        self.keys_bytes = self.keys_bytes.saturating_add(key.len());
        self.entries.push_back(Entry { revision, key: key[..].into(), is_created });
        while self.entries.len() > ENTRIES_MAX || self.keys_bytes > KEYS_BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.since = oldest.revision;
            self.keys_bytes = self.keys_bytes.saturating_sub(oldest.key.len());
        }
    }

    /// How many more keys of `[start, end)` are live now than at `revision`; `None` if the changes
    /// since then are no longer all remembered.
    pub(super) fn growth(&self, revision: i64, start: &[u8], end: Option<&[u8]>) -> Option<i64> {
        if revision < self.since {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.revision <= revision);
        let is_within = |key: &[u8]| key >= start && end.is_none_or(|end| key < end);
        let within = self.entries.range(first..).filter(|entry| is_within(&entry.key));
        Some(within.map(|entry| if entry.is_created { 1 } else { -1 }).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_later_and_within_counts() {
        let mut recent = Recent::new(10);
        let changes = [(11, "a", true), (11, "b", true), (12, "a", false), (14, "c", true)];
        for (revision, key, is_created) in changes {
            recent.push(revision, &Bytes::from(key), is_created);
        }
        let growth = |revision| recent.growth(revision, b"", None);
        assert_eq!(
            [9, 10, 11, 12, 13, 14].map(growth),
            [None, Some(2), Some(0), Some(1), Some(1), Some(0),]
        );
        assert_eq!(recent.growth(10, b"b", Some(b"c")), Some(1));
        assert_eq!(recent.growth(10, b"c", None), Some(1));
        assert_eq!(recent.growth(11, b"a", Some(b"b")), Some(-1));
    }

    #[test]
    fn the_oldest_are_forgotten_by_number_and_by_bytes() {
        let mut recent = Recent::new(0);
        for revision in (1..).take(ENTRIES_MAX + 3) {
            recent.push(revision, &Bytes::from_static(b"key"), true);
        }
        assert_eq!(recent.growth(2, b"", None), None);
        assert_eq!(recent.growth(3, b"", None), Some(4_096));
        let revision = recent.entries.back().unwrap().revision + 1;
        recent.push(revision, &Bytes::from(vec![b'k'; KEYS_BYTES_MAX - 3]), true);
        assert_eq!(recent.entries.len(), 2, "all but one had to go");
        recent.push(revision, &Bytes::from(vec![b'k'; KEYS_BYTES_MAX + 1]), true);
        assert_eq!(recent.growth(revision, b"", None), Some(0));
        assert_eq!(recent.growth(revision - 1, b"", None), None, "too large to be remembered");
        assert_eq!(recent.keys_bytes, 0);
    }
}
