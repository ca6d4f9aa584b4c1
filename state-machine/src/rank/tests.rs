//! Compares the index with rows that are counted one by one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The index and the rows it counts, with whether each key is live.
#[derive(Default)]
struct Pair {
    index: RankIndex,
    rows: BTreeMap<Vec<u8>, bool>,
    rows_read: usize,
}

impl Pair {
    fn create(&mut self, key: &[u8]) {
        if self.rows.insert(key.to_vec(), true) != Some(true) {
            let overfull = self.index.created(key);
            self.cut(overfull);
        }
    }

    fn delete(&mut self, key: &[u8]) {
        if let Some(is_live) = self.rows.get_mut(key)
            && std::mem::replace(is_live, false)
        {
            let overfull = self.index.deleted(key);
            self.cut(overfull);
        }
    }

    fn cut(&mut self, mut overfull: Option<Rest>) {
        while let Some((first, end)) = overfull {
            let bucket = self.within(&first, end.as_deref());
            self.rows_read += bucket.len().min(CUT_ROWS);
            let live = bucket.iter().take(CUT_ROWS).filter(|(_, is_live)| *is_live).count();
            let next = bucket.get(CUT_ROWS).map(|(key, _)| Bytes::copy_from_slice(key));
            let dead = bucket.len().min(CUT_ROWS) - live;
            let behind = self.index.cut(&first, FirstRows { live, dead, next });
            overfull = behind.and_then(|behind| self.index.overfull(&behind));
        }
    }

    /// Deletes the rows of dead keys, as a compaction does.
    fn sweep(&mut self) {
        self.rows.retain(|_, is_live| *is_live);
    }

    fn within(&self, start: &[u8], end: Option<&[u8]>) -> Vec<(Vec<u8>, bool)> {
        let inside = |(key, _): &(&Vec<u8>, &bool)| {
            key.as_slice() >= start && end.is_none_or(|end| key.as_slice() < end)
        };
        self.rows.iter().filter(inside).map(|(key, is_live)| (key.clone(), *is_live)).collect()
    }

    fn live(&self, start: &[u8], end: Option<&[u8]>) -> usize {
        self.within(start, end).iter().filter(|(_, is_live)| *is_live).count()
    }

    fn check(&self, start: &[u8], end: Option<&[u8]>) {
        let counted = self.index.count(start, end);
        assert!(counted.rest.len() <= 2);
        let mut keys = counted.keys;
        for (from, to) in &counted.rest {
            let rest = self.live(from, to.as_deref());
            assert!(rest <= BUCKET_KEYS_MAX, "a rest lies within one bucket");
            keys += rest;
        }
        let live = self.live(start, end);
        assert_eq!(keys, live, "{start:?}..{end:?}");
        assert_eq!(self.index.len(), self.live(b"", None));
        for (from, to) in self.index.gaps(start, end, usize::MAX) {
            assert_eq!(self.live(&from, to.as_deref()), 0, "nothing lives in a gap");
            assert!(&from[..] >= start, "{from:?} {start:?}");
            assert!(end.is_none_or(|end| to.is_some_and(|to| &to[..] <= end)));
        }
        for keys_min in [1, 100, 1_000] {
            let tail = self.index.tail(start, end, keys_min);
            let tail_keys = tail.map(|tail| {
                assert!(&tail[..] >= start);
                self.live(&tail, end)
            });
            assert!(tail_keys.is_none_or(|keys| keys >= keys_min));
        }
    }

    /// Rows that a scan reads, without the gaps, before it has the first `keys` live keys.
    fn rows_passed(&self, keys: usize) -> usize {
        let gaps = self.index.gaps(b"", None, keys);
        let is_passed = |key: &[u8]| {
            !gaps.iter().any(|(from, to)| key >= from && to.as_ref().is_none_or(|to| key < to))
        };
        let mut live = 0;
        let passed = self.rows.iter().filter(|(key, _)| is_passed(key));
        passed
            .take_while(|(_, is_live)| {
                live += usize::from(**is_live);
                live < keys
            })
            .count()
    }
}

fn key(n: u32) -> Vec<u8> {
    format!("{n:07}").into_bytes()
}

#[test]
fn a_pushed_index_counts_like_one_that_grew() {
    let mut index = RankIndex::default();
    let keys: Vec<String> = (0..5_000).map(|n| format!("k{n:05}")).collect();
    for key in &keys {
        index.push(key.as_bytes(), true);
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

#[test]
fn few_live_keys_among_many_dead_ones_are_found_at_once() {
    let mut pair = Pair::default();
    let lives = |n: u32| n % 10_000 == 9_999;
    (0..40_000).for_each(|n| pair.create(&key(n)));
    (0..40_000).filter(|n| !lives(*n)).for_each(|n| pair.delete(&key(n)));
    let mut pushed = Pair { rows: pair.rows.clone(), ..Pair::default() };
    (0..40_000).for_each(|n| pushed.index.push(&key(n), lives(n)));
    for pair in [pair, pushed] {
        assert!(pair.index.buckets.len() < 12, "{:?}", pair.index);
        assert!(pair.rows_passed(2) <= 2 * BUCKET_KEYS_MAX);
        assert!(pair.rows_passed(4) <= 4 * BUCKET_KEYS_MAX);
        pair.check(&key(1), Some(&key(39_000)));
    }
}

#[test]
fn the_head_of_a_queue_is_found_at_once() {
    const WAITING: u32 = 100;
    for waiting in [1, WAITING] {
        let mut pair = Pair::default();
        (0..500).for_each(|n| pair.create(&[b"zzz", &key(n)[..]].concat()));
        for n in 0..10_000 {
            pair.create(&key(n));
            if let Some(first) = n.checked_sub(waiting) {
                pair.delete(&key(first));
            }
        }
        assert!(pair.rows_passed(2) <= BUCKET_KEYS_MAX, "{}", pair.rows_passed(2));
        assert!(pair.index.buckets.len() < 8, "{:?}", pair.index);
        assert!(pair.rows_read < 30_000, "{}", pair.rows_read);
    }
}

#[test]
fn a_key_that_comes_and_goes_costs_few_rows() {
    let mut pair = Pair::default();
    (0..511).for_each(|n| pair.create(&key(n)));
    for _ in 0..5_000 {
        pair.delete(&key(77));
        pair.create(&key(77));
    }
    assert!(pair.rows_read < 3 * 5_000, "{}", pair.rows_read);
}

#[test]
fn dead_rows_do_not_take_more_buckets_than_there_may_be() {
    let index = RankIndex { spare_buckets: 10, ..RankIndex::default() };
    let mut pair = Pair { index, ..Pair::default() };
    (0..30_000).rev().for_each(|n| pair.create(&key(n)));
    (0..30_000).filter(|n| n % 300 > 0).for_each(|n| pair.delete(&key(n)));
    assert!(pair.index.buckets.len() <= 12, "{}", pair.index.buckets.len());
    pair.check(&key(10), Some(&key(20_000)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn counts_equal_brute_force(
        spare_buckets in prop::sample::select(vec![0, 8, SPARE_BUCKETS]),
        steps in prop::collection::vec((0_u8..100, 0_u32..4_000), 1..4_000),
        ranges in prop::collection::vec((0_u32..4_100, prop::option::of(0_u32..4_100)), 1..40),
    ) {
        let index = RankIndex { spare_buckets, ..RankIndex::default() };
        let mut pair = Pair { index, ..Pair::default() };
        for n in 0..2_000 {
            pair.create(&key(n * 2));
        }
        for (step, n) in steps {
            match step {
                0 => pair.sweep(),
                1..4 => (n..n + 400).for_each(|n| pair.delete(&key(n))),
                4..50 => pair.delete(&key(n)),
                _ => pair.create(&key(n)),
            }
        }
        let mut pushed = Pair { rows: pair.rows.clone(), ..Pair::default() };
        for (key, is_live) in &pair.rows {
            pushed.index.push(key, *is_live);
        }
        for (start, end) in ranges {
            for pair in [&pair, &pushed] {
                pair.check(&key(start), end.map(key).as_deref());
            }
        }
        pair.check(b"", None);
        for n in 0..4_000 {
            pair.delete(&key(n));
        }
        pair.check(b"", None);
        prop_assert_eq!(pair.index.buckets.len(), 1, "gaps become one");
    }
}
