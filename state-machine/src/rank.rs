//! Counts live keys in a range exactly without visiting them, in buckets of neighbouring keys.
//!
//! A bucket holds the number of live keys from its first key up to the next bucket's. A count adds
//! the buckets that lie wholly inside the range and leaves at most two ends, which the caller
//! counts in the rows. The index is local to a node and rebuilt after a start; it is not part of
//! the replicated state.
//!
//! Deleted keys have rows too, until a compaction deletes them, and the storage may have to step
//! over those for a while longer. So a bucket also knows roughly how many keys were deleted in it,
//! and is split by rows: a run of dead keys ends up in buckets without a live key. Those are merged
//! into one *gap*, which readers skip however long it is.
//!
//! ```text
//!  rows     a a a a x x x x x x x x x x x x x a x a a   a: alive, x: dead
//!  buckets  [4     )[0, a gap          )[3          )
//! ```

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// A bucket with more keys than this is split.
pub const BUCKET_KEYS_MAX: usize = 512;
/// Rows that a split leaves in the first part.
pub const CUT_ROWS: usize = BUCKET_KEYS_MAX / 2;
/// Two neighbours may be merged if they have no more live keys than this together.
const MERGED_KEYS_MAX: usize = BUCKET_KEYS_MAX / 2;
/// A bucket with fewer rows is extended by a key created in the gap before it.
const SMALL_ROWS_MAX: usize = 64;
/// Buckets allowed besides one per [`KEYS_PER_BUCKET`] live keys. Above that, neighbours are merged
/// although they were split by rows.
const SPARE_BUCKETS: usize = 4_096;
const KEYS_PER_BUCKET: usize = 64;
/// Most gaps that one read is given; the rest of the range is looked up again when it is reached.
const GAPS_MAX: usize = 16;

/// Contents of a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    live: usize,
    /// Keys deleted here since its rows were last counted: at least the number of dead rows, not
    /// counting those that were part of a gap before.
    dead: usize,
}

impl Bucket {
    fn rows(self) -> usize {
        self.live.saturating_add(self.dead)
    }

    fn is_gap(self) -> bool {
        self.live == 0
    }
}

/// Number of live keys per bucket.
#[derive(Clone, Debug)]
pub struct RankIndex {
    // By first key. The first bucket starts at the empty key, so every key has a bucket.
    buckets: BTreeMap<Bytes, Bucket>,
    keys: usize,
    spare_buckets: usize,
}

/// A part of a range: `[start, end)`, `None` for no bound.
pub type Rest = (Bytes, Option<Bytes>);

/// A count, except for the keys in `rest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Live keys in whole buckets.
    pub keys: usize,
    /// At most two ends of the range to count in the rows; each lies within one bucket.
    pub rest: Vec<Rest>,
}

/// The first rows of a bucket, for [`RankIndex::cut`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstRows {
    /// Live keys among the first [`CUT_ROWS`] rows.
    pub live: usize,
    /// Dead keys among them.
    pub dead: usize,
    /// Key of the next row, if the bucket has more.
    pub next: Option<Bytes>,
}

impl Default for RankIndex {
    fn default() -> RankIndex {
        let buckets = BTreeMap::from([(Bytes::new(), Bucket::default())]);
        RankIndex { buckets, keys: 0, spare_buckets: SPARE_BUCKETS }
    }
}

impl RankIndex {
    /// Adds the row of a key that is greater than all before it; builds the index from one ordered
    /// scan.
    pub fn push(&mut self, key: &[u8], is_live: bool) {
        let live = usize::from(is_live);
        let row = Bucket { live, dead: 1_usize.saturating_sub(live) };
        self.keys = self.keys.saturating_add(live);
        let Some((first, last)) = self.buckets.iter_mut().next_back() else { return };
        if last.rows() < CUT_ROWS {
            last.live = last.live.saturating_add(row.live);
            last.dead = last.dead.saturating_add(row.dead);
            return;
        }
        let first = first.clone();
        self.join_gaps(&first);
        self.buckets.insert(Bytes::copy_from_slice(key), row);
    }

    /// Counts a created key. Returns its bucket if that is now too big: the caller then reads its
    /// first rows and calls [`RankIndex::cut`].
    pub fn created(&mut self, key: &[u8]) -> Option<Rest> {
        self.keys = self.keys.saturating_add(1);
        let is_crowded = self.is_crowded();
        let (first, bucket) = self.bucket_mut(key)?;
        if bucket.is_gap() && !is_crowded && first != key {
            self.end_gap(&first, key);
            return None;
        }
        bucket.live = bucket.live.saturating_add(1);
        let may_be_overfull = bucket.rows() > BUCKET_KEYS_MAX;
        if may_be_overfull { self.overfull(key) } else { None }
    }

    /// Starts a bucket at `key`, which was created in the gap that starts at `first`.
    fn end_gap(&mut self, first: &[u8], key: &[u8]) {
        let mut begun = Bucket { live: 1, dead: 0 };
        if let Some(next) = self.end_of(first)
            && let Some(bucket) = self.buckets.get(&next).copied()
            && !bucket.is_gap()
            && bucket.rows() < SMALL_ROWS_MAX
        {
            self.buckets.remove(&next);
            begun = Bucket { live: bucket.live.saturating_add(1), ..bucket };
        }
        self.buckets.insert(Bytes::copy_from_slice(key), begun);
    }

    /// The bucket of `key`, if it is too big.
    #[must_use]
    pub fn overfull(&self, key: &[u8]) -> Option<Rest> {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        let (first, bucket) = self.buckets.range::<[u8], _>(bounds).next_back()?;
        let rows = if self.is_crowded() || bucket.is_gap() { bucket.live } else { bucket.rows() };
        (rows > BUCKET_KEYS_MAX).then(|| (first.clone(), self.end_of(first)))
    }

    /// Counts a deleted key; returns the same as [`RankIndex::created`].
    pub fn deleted(&mut self, key: &[u8]) -> Option<Rest> {
        self.keys = self.keys.saturating_sub(1);
        let is_crowded = self.is_crowded();
        let (first, bucket) = self.bucket_mut(key)?;
        bucket.live = bucket.live.saturating_sub(1);
        bucket.dead = bucket.dead.saturating_add(1);
        let may_be_overfull = bucket.rows() > BUCKET_KEYS_MAX;
        if bucket.is_gap() {
            self.join_gaps(&first);
        }
        if is_crowded {
            self.join_before(key);
        }
        if may_be_overfull { self.overfull(key) } else { None }
    }

    /// Merges the gap that starts at `first`, if it is one, with neighbouring gaps.
    fn join_gaps(&mut self, first: &[u8]) {
        if !self.buckets.get(first).copied().is_some_and(Bucket::is_gap) {
            return;
        }
        if let Some(next) = self.end_of(first)
            && self.buckets.get(&next).copied().is_some_and(Bucket::is_gap)
        {
            self.buckets.remove(&next);
        }
        let before = (Bound::Unbounded, Bound::Excluded(first));
        let before = self.buckets.range::<[u8], _>(before).next_back();
        if before.is_some_and(|(_, bucket)| bucket.is_gap()) {
            self.buckets.remove(first);
        }
    }

    /// Merges the bucket of `key` with the one before it, if they have few live keys.
    fn join_before(&mut self, key: &[u8]) {
        let Some((first, bucket)) = self.bucket_mut(key) else { return };
        let live = bucket.live;
        let before = (Bound::Unbounded, Bound::Excluded(&first[..]));
        if let Some((_, before)) = self.buckets.range_mut::<[u8], _>(before).next_back()
            && before.live.saturating_add(live) <= MERGED_KEYS_MAX
        {
            // The count of dead rows is dropped, because it would get the bucket split again at
            // once.
            *before = Bucket { live: before.live.saturating_add(live), dead: 0 };
            self.buckets.remove(&first);
        }
    }

    /// Splits the bucket that starts at `first` after its first rows. Returns the first key of the
    /// second part.
    pub fn cut(&mut self, first: &Bytes, rows: FirstRows) -> Option<Bytes> {
        let FirstRows { live, dead, next } = rows;
        let bucket = self.buckets.get_mut(first)?;
        let Some(next) = next.filter(|next| next > first) else {
            bucket.dead = dead;
            return None;
        };
        let behind = Bucket {
            live: bucket.live.saturating_sub(live),
            dead: bucket.dead.saturating_sub(dead),
        };
        *bucket = Bucket { live, dead };
        self.buckets.insert(next.clone(), behind);
        self.join_gaps(&next);
        self.join_gaps(first);
        Some(next)
    }

    /// Total number of live keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys
    }

    /// Whether there is no live key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Counts the whole buckets of `[start, end)`.
    #[must_use]
    pub fn count(&self, start: &[u8], end: Option<&[u8]>) -> Counted {
        let mut counted = Counted::default();
        for part in self.parts(start, end) {
            if part.is_whole {
                counted.keys = counted.keys.saturating_add(part.bucket.live);
            } else if !part.bucket.is_gap() {
                counted.rest.push(part.copied());
            }
        }
        counted
    }

    /// Returns the first parts of `[start, end)` without live keys, as far as needed by a reader
    /// that wants the first `keys_max` live keys.
    #[must_use]
    pub fn gaps(&self, start: &[u8], end: Option<&[u8]>, keys_max: usize) -> Vec<Rest> {
        let mut gaps = Vec::new();
        let mut keys = 0_usize;
        for part in self.parts(start, end) {
            if part.bucket.is_gap() {
                gaps.push(part.copied());
            } else if part.is_whole {
                keys = keys.saturating_add(part.bucket.live);
            }
            if keys >= keys_max || gaps.len() >= GAPS_MAX {
                break;
            }
        }
        gaps
    }

    /// Returns a key from which on `[start, end)` has at least `keys_min` live keys and not many
    /// more; `None` if only the whole range has that many.
    #[must_use]
    pub fn tail(&self, start: &[u8], end: Option<&[u8]>, keys_min: usize) -> Option<Bytes> {
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        if end.is_some_and(|end| end <= start) {
            return None;
        }
        let mut keys = 0_usize;
        let mut is_whole = end.is_none();
        for (first, bucket) in self.buckets.range::<[u8], _>((Bound::Excluded(start), upper)).rev()
        {
            // The bucket in which the range ends may have all its keys behind that end, so it
            // counts as empty.
            if is_whole {
                keys = keys.saturating_add(bucket.live);
            }
            is_whole = true;
            if keys >= keys_min {
                return Some(first.clone());
            }
        }
        None
    }

    /// The parts of `[start, end)`, one per bucket.
    fn parts<'a>(
        &'a self,
        start: &'a [u8],
        end: Option<&'a [u8]>,
    ) -> impl Iterator<Item = Part<'a>> {
        let is_empty = end.is_some_and(|end| end <= start);
        let containing = self.buckets.range::<[u8], _>((Bound::Unbounded, Bound::Included(start)));
        let first = containing.into_iter().next_back().map_or(&[][..], |(first, _)| &first[..]);
        let buckets = self.buckets.range::<[u8], _>((Bound::Included(first), Bound::Unbounded));
        let mut buckets = buckets.peekable();
        std::iter::from_fn(move || {
            let (first, bucket) = buckets.next()?;
            if is_empty || end.is_some_and(|end| end <= &first[..]) {
                return None;
            }
            let bucket_end = buckets.peek().map(|(next, _)| &next[..]);
            let ends_inside = match (end, bucket_end) {
                (Some(end), Some(bucket_end)) => end < bucket_end,
                (Some(_), None) => true,
                (None, _) => false,
            };
            Some(Part {
                start: start.max(first),
                end: if ends_inside { end } else { bucket_end },
                bucket: *bucket,
                is_whole: &first[..] >= start && !ends_inside,
            })
        })
    }

    fn bucket_mut(&mut self, key: &[u8]) -> Option<(Bytes, &mut Bucket)> {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        let (first, bucket) = self.buckets.range_mut::<[u8], _>(bounds).next_back()?;
        Some((first.clone(), bucket))
    }

    fn end_of(&self, first: &[u8]) -> Option<Bytes> {
        let bounds = (Bound::Excluded(first), Bound::Unbounded);
        self.buckets.range::<[u8], _>(bounds).next().map(|(next, _)| next.clone())
    }

    /// Whether there are too many buckets to keep splitting them by dead rows.
    fn is_crowded(&self) -> bool {
        let buckets_max = self.spare_buckets.saturating_add(self.keys / KEYS_PER_BUCKET);
        self.buckets.len() > buckets_max
    }
}

/// A part of a range within one bucket.
struct Part<'a> {
    start: &'a [u8],
    end: Option<&'a [u8]>,
    bucket: Bucket,
    /// Whether it covers the whole bucket.
    is_whole: bool,
}

impl Part<'_> {
    fn copied(&self) -> Rest {
        (Bytes::copy_from_slice(self.start), self.end.map(Bytes::copy_from_slice))
    }
}

#[cfg(test)]
mod tests;
