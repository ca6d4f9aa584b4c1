//! Sets of keys as disjoint intervals, with etcd's meaning of `key` and `range_end`.
//!
//! One function, `bounds`, reads a pair of byte strings, both for granted permissions and for
//! requests: a permission that is read differently from the request it allows would be a security
//! hole.

use bytes::Bytes;

/// The smallest possible key: keys are not empty.
const FIRST_KEY: &[u8] = &[0];

/// Keys from `start` on, before `end` if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    start: Bytes,
    pub(super) end: Option<Bytes>,
}

/// A set of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    /// Ascending, neither overlapping nor touching.
    intervals: Vec<Interval>,
}

/// The meaning of a pair of `key` and `range_end`.
enum Bounds<'a> {
    One(&'a [u8]),
    From(&'a [u8]),
    Between(&'a [u8], &'a [u8]),
}

fn bounds<'a>(key: &'a [u8], range_end: &'a [u8]) -> Bounds<'a> {
    let start = if key.is_empty() { FIRST_KEY } else { key };
    match range_end {
        [] => Bounds::One(start),
        [0] => Bounds::From(start),
        end => Bounds::Between(start, end),
    }
}

impl KeySet {
    /// The union of `[key, range_end)` pairs as etcd writes them.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) -> KeySet {
        let mut all: Vec<Interval> = pairs
            .into_iter()
            .map(|(key, range_end)| match bounds(key, range_end) {
                Bounds::One(key) => {
                    let end = Bytes::from([key, FIRST_KEY].concat());
                    Interval { start: Bytes::copy_from_slice(key), end: Some(end) }
                }
                Bounds::From(key) => Interval { start: Bytes::copy_from_slice(key), end: None },
                Bounds::Between(key, end) => Interval {
                    start: Bytes::copy_from_slice(key),
                    end: Some(Bytes::copy_from_slice(end)),
                },
            })
            .filter(|interval| interval.end.as_ref().is_none_or(|end| interval.start < end))
            .collect();
        all.sort_by(|a, b| a.start.cmp(&b.start));
        let mut intervals: Vec<Interval> = Vec::with_capacity(all.len());
        for next in all {
            match intervals.last_mut() {
                Some(last) if last.reaches(&next.start) => last.extend(next.end),
                Some(_) | None => intervals.push(next),
            }
        }
        KeySet { intervals }
    }

    /// Whether every key that a request names is in the set. An empty range, whose end is not after
    /// its start, must at least start inside.
    #[must_use]
    pub fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        match bounds(key, range_end) {
            Bounds::One(key) => self.around(key).is_some(),
            Bounds::From(key) => self.around(key).is_some_and(|found| found.end.is_none()),
            Bounds::Between(key, end) => self
                .around(key)
                .is_some_and(|found| found.end.as_ref().is_none_or(|limit| end <= limit)),
        }
    }

    /// The interval that contains `key`.
    pub(super) fn around(&self, key: &[u8]) -> Option<&Interval> {
        let behind = self.intervals.partition_point(|interval| interval.start.as_ref() <= key);
        let found = self.intervals.get(behind.checked_sub(1)?)?;
        found.end.as_ref().is_none_or(|end| key < end.as_ref()).then_some(found)
    }
}

impl Interval {
    /// Whether there is no gap between the end of this interval and `start`.
    fn reaches(&self, start: &Bytes) -> bool {
        self.end.as_ref().is_none_or(|end| start <= end)
    }

    fn extend(&mut self, to: Option<Bytes>) {
        self.end = match (self.end.take(), to) {
            (Some(end), Some(to)) => Some(end.max(to)),
            (None, _) | (_, None) => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::span::Span;
    use crate::watcher_set::KeyRange;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(0xff)], 1..4)
            .prop_map(Bytes::from)
    }

    fn range_end() -> impl Strategy<Value = Bytes> {
        prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(b"\0")), key()]
    }

    fn pairs() -> impl Strategy<Value = Vec<(Bytes, Bytes)>> {
        prop::collection::vec((key(), range_end()), 0..6)
    }

    fn set(pairs: &[(Bytes, Bytes)]) -> KeySet {
        KeySet::new(pairs.iter().map(|(key, end)| (key, end)))
    }

    proptest! {
        /// The set agrees with execution: `Span` decides which keys a range touches.
        #[test]
        fn one_key_is_covered_if_any_granted_span_holds_it(pairs in pairs(), key in key()) {
            let granted = pairs.iter().any(|(start, end)| Span::new(start, end).contains(&key));
            prop_assert_eq!(set(&pairs).covers(&key, b""), granted);
        }

        /// A user who may read a range may read each key of it, for every sentinel.
        #[test]
        fn a_covered_range_holds_only_covered_keys(
            pairs in pairs(), start in key(), end in range_end(), key in key(),
        ) {
            let set = set(&pairs);
            if set.covers(&start, &end) && Span::new(&start, &end).contains(&key) {
                prop_assert!(set.covers(&key, b""));
            }
        }

        /// A watch is checked by the key pair of the range that it matches events with.
        #[test]
        fn a_covered_watch_sees_only_covered_keys(
            pairs in pairs(), start in key(), end in range_end(), key in key(),
        ) {
            let set = set(&pairs);
            if let Ok(range) = KeyRange::new(start, end) {
                let (from, to) = range.pair();
                if set.covers(from, to) && range.contains(&key) {
                    prop_assert!(set.covers(&key, b""));
                }
                let again = KeyRange::new(Bytes::copy_from_slice(from), Bytes::copy_from_slice(to));
                prop_assert_eq!(again, Ok(range));
            }
        }

        /// The converse: nothing is rejected that the grants together allow.
        #[test]
        fn a_granted_span_is_covered(pairs in pairs(), more in pairs()) {
            let all: Vec<_> = pairs.iter().chain(&more).cloned().collect();
            for (start, end) in &pairs {
                let is_empty = !matches!(end.as_ref(), [] | [0]) && end <= start;
                prop_assert!(is_empty || set(&all).covers(start, end));
            }
        }
    }

    #[test]
    fn touching_intervals_are_one() {
        let pairs = [("a", "c"), ("c", "e"), ("x", ""), ("x\0", "y")];
        let pairs: Vec<(Bytes, Bytes)> =
            pairs.iter().map(|(key, end)| (Bytes::from(*key), Bytes::from(*end))).collect();
        let set = set(&pairs);
        assert!(set.covers(b"b", b"d") && set.covers(b"a", b"e") && set.covers(b"x", b"y"));
        assert!(!set.covers(b"a", b"f") && !set.covers(b"a", b"\0") && !set.covers(b"e", b""));
        assert!(!set.covers(b"z", b"b"), "an empty range begins outside");
    }

    #[test]
    fn the_empty_key_is_the_first_one() {
        let zero = Bytes::from_static(b"\0");
        let all = KeySet::new([(&zero, &zero)]);
        assert!(all.covers(b"", b"\0") && all.covers(b"\0", b"\0") && all.covers(b"\xff", b"\0"));
        let one = Bytes::from_static(b"a");
        let none = Bytes::new();
        let one = KeySet::new([(&one, &none)]);
        assert!(one.covers(b"a", b"") && !one.covers(b"a", b"\0") && !one.covers(b"", b"\0"));
    }
}
