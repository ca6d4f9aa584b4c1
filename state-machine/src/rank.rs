//! Exact counts of live keys in a range without visiting them: buckets of neighbouring keys.
//!
//! A bucket holds the number of live keys from its first key up to the next bucket's. A count adds the
//! buckets that lie wholly inside the range and leaves at most two ends, which the caller counts in the
//! rows. The index is local to a node and rebuilt after a start; it is no part of the replicated state.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// A bucket that outgrows this is to be split.
pub const BUCKET_KEYS_MAX: usize = 512;
/// A bucket and the one before it become one when they hold no more than this together.
const MERGED_KEYS_MAX: usize = BUCKET_KEYS_MAX / 2;

/// Number of live keys by bucket.
#[derive(Clone, Debug)]
pub struct RankIndex {
    // First key -> live keys. The first bucket starts at the empty key, so every key has a bucket.
    buckets: BTreeMap<Bytes, usize>,
    keys: usize,
}

/// A part of a range that the caller has to count in the rows: `[start, end)`, `None` for no bound.
pub type Rest = (Bytes, Option<Bytes>);

/// A count, up to the keys in `rest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Live keys in whole buckets.
    pub keys: usize,
    /// At most two ends to count in the rows; each lies within one bucket.
    pub rest: Vec<Rest>,
}

impl Default for RankIndex {
    fn default() -> RankIndex {
        RankIndex { buckets: BTreeMap::from([(Bytes::new(), 0)]), keys: 0 }
    }
}

impl RankIndex {
    /// Adds a key that is greater than all before it; for building the index from one ordered scan.
    pub fn push(&mut self, key: &[u8]) {
        self.keys = self.keys.saturating_add(1);
        if let Some((_, count)) = self.buckets.iter_mut().next_back()
            && *count < MERGED_KEYS_MAX
        {
            *count = count.saturating_add(1);
            return;
        }
        self.buckets.insert(Bytes::copy_from_slice(key), 1);
    }

    /// Counts a key that was created. Returns its bucket if that is now too big: read the bucket's
    /// keys and call [`RankIndex::split`].
    pub fn created(&mut self, key: &[u8]) -> Option<Rest> {
        self.keys = self.keys.saturating_add(1);
        let (_, count) = self.bucket_mut(key)?;
        *count = count.saturating_add(1);
        self.overfull(key)
    }

    /// The bucket of `key`, if it is too big.
    #[must_use]
    pub fn overfull(&self, key: &[u8]) -> Option<Rest> {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        let (first, count) = self.buckets.range::<[u8], _>(bounds).next_back()?;
        (*count > BUCKET_KEYS_MAX).then(|| (first.clone(), self.end_of(first)))
    }

    /// Counts a key that was deleted.
    pub fn deleted(&mut self, key: &[u8]) {
        self.keys = self.keys.saturating_sub(1);
        let Some((first, count)) = self.bucket_mut(key) else { return };
        *count = count.saturating_sub(1);
        let count = *count;
        let before =
            self.buckets.range_mut::<[u8], _>((Bound::Unbounded, Bound::Excluded(&first[..])));
        if let Some((_, before)) = before.into_iter().next_back()
            && before.saturating_add(count) <= MERGED_KEYS_MAX
        {
            *before = before.saturating_add(count);
            self.buckets.remove(&first);
        }
    }

    /// Cuts the bucket that starts at `first` in two: `keys_before` of its live keys are below `middle`.
    pub fn split(&mut self, first: &Bytes, middle: Bytes, keys_before: usize) {
        if middle <= *first {
            return;
        }
        if let Some(count) = self.buckets.get_mut(first) {
            let after = count.saturating_sub(keys_before);
            *count = keys_before;
            self.buckets.insert(middle, after);
        }
    }

    /// Live keys in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys
    }

    /// Whether there is no live key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Counts `[start, end)` as far as whole buckets go.
    #[must_use]
    pub fn count(&self, start: &[u8], end: Option<&[u8]>) -> Counted {
        let mut counted = Counted::default();
        if end.is_some_and(|end| end <= start) {
            return counted;
        }
        let containing = self.buckets.range::<[u8], _>((Bound::Unbounded, Bound::Included(start)));
        let Some((first, _)) = containing.into_iter().next_back() else { return counted };
        let mut buckets = self
            .buckets
            .range::<[u8], _>((Bound::Included(&first[..]), Bound::Unbounded))
            .peekable();
        while let Some((first, count)) = buckets.next() {
            if end.is_some_and(|end| end <= &first[..]) {
                break;
            }
            let bucket_end = buckets.peek().map(|(next, _)| &next[..]);
            let ends_inside = match (end, bucket_end) {
                (Some(end), Some(bucket_end)) => end < bucket_end,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if &first[..] >= start && !ends_inside {
                counted.keys = counted.keys.saturating_add(*count);
            } else if *count > 0 {
                let from = if &first[..] < start { start } else { &first[..] };
                let to = if ends_inside { end } else { bucket_end };
                counted.rest.push((Bytes::copy_from_slice(from), to.map(Bytes::copy_from_slice)));
            }
        }
        counted
    }

    fn bucket_mut(&mut self, key: &[u8]) -> Option<(Bytes, &mut usize)> {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        let (first, count) = self.buckets.range_mut::<[u8], _>(bounds).next_back()?;
        Some((first.clone(), count))
    }

    fn end_of(&self, first: &[u8]) -> Option<Bytes> {
        let bounds = (Bound::Excluded(first), Bound::Unbounded);
        self.buckets.range::<[u8], _>(bounds).next().map(|(next, _)| next.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The index beside the keys it counts.
    #[derive(Default)]
    struct Pair {
        index: RankIndex,
        keys: BTreeSet<Vec<u8>>,
    }

    impl Pair {
        fn create(&mut self, key: &[u8]) {
            if !self.keys.insert(key.to_vec()) {
                return;
            }
            if let Some((first, end)) = self.index.created(key) {
                let bucket = self.within(&first, end.as_deref());
                let middle = bucket.len() / 2;
                let at = Bytes::copy_from_slice(&bucket[middle]);
                self.index.split(&first, at, middle);
            }
        }

        fn delete(&mut self, key: &[u8]) {
            if self.keys.remove(key) {
                self.index.deleted(key);
            }
        }

        fn within(&self, start: &[u8], end: Option<&[u8]>) -> Vec<Vec<u8>> {
            let inside = |key: &&Vec<u8>| {
                key.as_slice() >= start && end.is_none_or(|end| key.as_slice() < end)
            };
            self.keys.iter().filter(inside).cloned().collect()
        }

        fn check(&self, start: &[u8], end: Option<&[u8]>) {
            let counted = self.index.count(start, end);
            assert!(counted.rest.len() <= 2);
            let mut keys = counted.keys;
            for (from, to) in &counted.rest {
                let rest = self.within(from, to.as_deref()).len();
                assert!(rest <= BUCKET_KEYS_MAX, "a rest lies within one bucket");
                keys += rest;
            }
            assert_eq!(keys, self.within(start, end).len(), "{start:?}..{end:?}");
            assert_eq!(self.index.len(), self.keys.len());
        }
    }

    #[test]
    fn a_pushed_index_counts_like_one_that_grew() {
        let mut index = RankIndex::default();
        let keys: Vec<String> = (0..5_000).map(|n| format!("k{n:05}")).collect();
        for key in &keys {
            index.push(key.as_bytes());
        }
        let counted = index.count(b"k00100", Some(b"k04900"));
        let rest: usize = counted
            .rest
            .iter()
            .map(|(from, to)| {
                let to = to.as_deref().expect("bounded");
                keys.iter().filter(|k| k.as_bytes() >= &from[..] && k.as_bytes() < to).count()
            })
            .sum();
        assert_eq!(counted.keys + rest, 4_800);
        assert!(counted.keys > 4_000, "most of it comes from whole buckets");
        assert_eq!(index.count(b"", None), Counted { keys: 5_000, rest: Vec::new() });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn counts_equal_brute_force(
            steps in prop::collection::vec((any::<bool>(), 0_u16..4_000), 1..4_000),
            ranges in prop::collection::vec((0_u16..4_100, prop::option::of(0_u16..4_100)), 1..40),
        ) {
            let mut pair = Pair::default();
            let key = |n: u16| format!("{n:04}").into_bytes();
            for n in 0..2_000 {
                pair.create(&key(n * 2));
            }
            for (creates, n) in steps {
                if creates { pair.create(&key(n)) } else { pair.delete(&key(n)) }
            }
            for (start, end) in ranges {
                pair.check(&key(start), end.map(key).as_deref());
            }
            pair.check(b"", None);
            for n in 0..4_000 {
                pair.delete(&key(n));
            }
            pair.check(b"", None);
            prop_assert_eq!(pair.index.buckets.len(), 1, "empty buckets merge");
        }
    }
}
