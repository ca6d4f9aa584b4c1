//! Finds the watchers that get an event.
//!
//! A map from ranges of keys to a value per range (on a node: the streams that watch it), looked up
//! by key. Single keys are in a hash map, ranges in an interval tree, so that an event costs `O(log
//! ranges + matches)` however many watchers there are. Watchers of the same range share one entry.
//! Local to a node and never part of apply: nothing depends on the order of the hash map.
#![expect(
    clippy::disallowed_types,
    reason = "one lookup for each event; local to a node, and nobody sees the order"
)]

mod interval_tree;

use std::collections::HashMap;

use bytes::Bytes;

use self::interval_tree::IntervalTree;

/// The keys that a watcher asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyRange {
    /// One key.
    Key(Bytes),
    /// Every key from `start` on, before `end`.
    Span {
        /// First key.
        start: Bytes,
        /// Where it ends.
        end: End,
    },
}

/// End of a span of keys, ordered by how far it reaches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Exclusive end.
    Before(Bytes),
    /// No end.
    Infinity,
}

/// The error for a range that contains no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mvcc: watcher range is empty")]
pub struct EmptyRange;

impl KeyRange {
    /// Reads etcd's pair: an empty `range_end` means only `key`, `"\0"` every key from `key` on,
    /// and an empty `key` means `"\0"`, the smallest key.
    ///
    /// # Errors
    /// [`EmptyRange`] if `key >= range_end`.
    pub fn new(key: Bytes, range_end: Bytes) -> Result<Self, EmptyRange> {
        let start = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
        match &range_end[..] {
            b"" => Ok(KeyRange::Key(start)),
            b"\0" => Ok(KeyRange::Span { start, end: End::Infinity }),
            end if &start[..] < end => Ok(KeyRange::Span { start, end: End::Before(range_end) }),
            _ => Err(EmptyRange),
        }
    }

    /// etcd's pair for the range, the inverse of [`KeyRange::new`].
    #[must_use]
    pub fn pair(&self) -> (&[u8], &[u8]) {
        match self {
            KeyRange::Key(only) => (only, b""),
            KeyRange::Span { start, end: End::Infinity } => (start, b"\0"),
            KeyRange::Span { start, end: End::Before(end) } => (start, end),
        }
    }

    /// Whether the range contains `key`.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::Key(only) => only == key,
            KeyRange::Span { start, end } => start <= key && end.is_after(key),
        }
    }
}

impl End {
    /// Whether `key` lies before this end.
    #[must_use]
    pub fn is_after(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => key < end,
            End::Infinity => true,
        }
    }
}

/// A map from key ranges to `V` that finds all entries whose range contains a key.
#[derive(Clone, Debug)]
pub struct WatcherSet<V> {
    keys: HashMap<Bytes, V>,
    spans: IntervalTree<V>,
}

impl<V> Default for WatcherSet<V> {
    fn default() -> Self {
        WatcherSet { keys: HashMap::new(), spans: IntervalTree::default() }
    }
}

impl<V> WatcherSet<V> {
    /// Returns the entry of exactly this range, made by `make` if there is none. `O(log ranges)`.
    pub fn get_or_insert_with(&mut self, range: &KeyRange, make: impl FnOnce() -> V) -> &mut V {
        match range {
            // Copied, because the key may be a slice of a large request.
            KeyRange::Key(key) if !self.keys.contains_key(key) => {
                self.keys.entry(Bytes::copy_from_slice(key)).or_insert_with(make)
            }
            KeyRange::Key(key) => self.keys.get_mut(key).expect("invariant: found just above"),
            KeyRange::Span { start, end } => self.spans.get_or_insert_with(start, end, make),
        }
    }

    /// Returns the entry of exactly this range.
    pub fn get_mut(&mut self, range: &KeyRange) -> Option<&mut V> {
        match range {
            KeyRange::Key(key) => self.keys.get_mut(key),
            KeyRange::Span { start, end } => self.spans.get_mut(start, end),
        }
    }

    /// Takes out the entry of exactly this range. `O(log ranges)`.
    pub fn remove(&mut self, range: &KeyRange) -> Option<V> {
        match range {
            KeyRange::Key(key) => self.keys.remove(key),
            KeyRange::Span { start, end } => self.spans.remove(start, end),
        }
    }

    /// Visits every entry whose range contains `key`, each once, in no particular order.
    pub fn matching<'a>(&'a self, key: &[u8], mut visit: impl FnMut(&'a V)) {
        if let Some(value) = self.keys.get(key) {
            visit(value);
        }
        self.spans.stab(key, visit);
    }

    /// Visits every entry, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.keys.values().chain(self.spans.values())
    }

    /// Number of distinct ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len() + self.spans.len()
    }

    /// Whether there is no range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_follow_etcd_sentinels() {
        let range = |key: &'static str, end: &'static str| {
            KeyRange::new(Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
        };
        assert!(range("a", "").unwrap().contains(b"a"));
        assert!(!range("a", "").unwrap().contains(b"aa"));
        assert!(range("a", "\0").unwrap().contains(b"\xff\xff"));
        assert!(!range("b", "\0").unwrap().contains(b"a"));
        assert!(range("", "\0").unwrap().contains(b"\0"));
        assert_eq!(range("", "").unwrap(), range("\0", "").unwrap());
        assert!(range("a", "b").unwrap().contains(b"a\xff"));
        assert!(!range("a", "b").unwrap().contains(b"b"));
        assert_eq!(range("b", "a"), Err(EmptyRange));
        assert_eq!(range("b", "b"), Err(EmptyRange));
        // "\0" as both ends is everything, not an empty range.
        assert!(range("\0", "\0").unwrap().contains(b"z"));
    }

    /// An operation on the set; ranges are over a small alphabet, so that they collide.
    #[derive(Clone, Debug)]
    enum Step {
        Insert(KeyRange),
        Remove(KeyRange),
        /// Removes the nth range present, so that removals hit.
        RemoveNth(usize),
        Stab(Bytes),
    }

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(prop::sample::select(vec![0u8, b'a', b'b', b'c', 0xff]), 0..4)
            .prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), key()).prop_filter_map("empty range", |(key, end)| KeyRange::new(key, end).ok())
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => range().prop_map(Step::Insert),
            1 => range().prop_map(Step::Remove),
            2 => any::<usize>().prop_map(Step::RemoveNth),
            3 => key().prop_map(Step::Stab),
        ]
    }

    fn check_stab(set: &WatcherSet<u32>, model: &BTreeMap<KeyRange, u32>, key: &[u8]) {
        let mut found = Vec::new();
        set.matching(key, |value| found.push(*value));
        found.sort_unstable();
        let mut expected: Vec<u32> =
            model.iter().filter(|(range, _)| range.contains(key)).map(|(_, v)| *v).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "entries that hold {key:?}");
    }

    proptest! {
        #[test]
        fn matches_brute_force(steps in prop::collection::vec(step(), 1..300)) {
            let mut set = WatcherSet::default();
            let mut model = BTreeMap::new();
            for (number, step) in (0u32..).zip(steps) {
                match step {
                    Step::Insert(range) => {
                        let value = *set.get_or_insert_with(&range, || number);
                        prop_assert_eq!(value, *model.entry(range).or_insert(number));
                    }
                    Step::Remove(range) => {
                        prop_assert_eq!(set.remove(&range), model.remove(&range));
                    }
                    Step::RemoveNth(nth) if !model.is_empty() => {
                        let range = model.keys().nth(nth % model.len()).unwrap().clone();
                        prop_assert_eq!(set.get_mut(&range).copied(), model.get(&range).copied());
                        prop_assert_eq!(set.remove(&range), model.remove(&range));
                    }
                    Step::RemoveNth(_) => {}
                    Step::Stab(key) => check_stab(&set, &model, &key),
                }
                set.spans.check_invariants();
                prop_assert_eq!(set.len(), model.len());
            }
            for key in [&b""[..], b"\0", b"a", b"ab", b"b\0", b"c", b"\xff\xff"] {
                check_stab(&set, &model, key);
            }
        }
    }

    #[test]
    fn stays_balanced_when_ranges_come_in_order() {
        let mut set = WatcherSet::default();
        let range = |n: u32| {
            let start = Bytes::from(format!("/{n:08}/"));
            KeyRange::new(start, Bytes::from(format!("/{n:08}0"))).unwrap()
        };
        for n in 0..10_000 {
            set.get_or_insert_with(&range(n), || n);
        }
        set.spans.check_invariants();
        let mut found = Vec::new();
        set.matching(b"/00004711/key", |n| found.push(*n));
        assert_eq!(found, [4711]);
        for n in 0..9_999 {
            assert_eq!(set.remove(&range(n)), Some(n));
        }
        set.spans.check_invariants();
        assert_eq!(set.len(), 1);
    }
}
