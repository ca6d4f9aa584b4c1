//! Checks that `bolt` reads back what `pages` writes, whatever the sizes, and that every page is in
//! use.

use std::collections::BTreeSet;
use std::io::Write as _;

use proptest::prelude::*;

use super::super::bolt::{Bolt, ELEMENT_BYTES, PAGE_HEADER_BYTES};
use super::{PAGE_BYTES, Pages, Root, Tree, first_pages};

type Elements = Vec<(Vec<u8>, Vec<u8>)>;

/// Writes buckets whose elements are added in turn, reads them back, and checks every page.
fn check(buckets: &[(&'static str, Elements)]) {
    let mut pages = Pages::new();
    let mut trees: Vec<Tree> = buckets.iter().map(|_| Tree::default()).collect();
    let longest = buckets.iter().map(|(_, elements)| elements.len()).max().unwrap_or(0);
    for place in 0..longest {
        for (tree, (_, elements)) in trees.iter_mut().zip(buckets) {
            if let Some((key, value)) = elements.get(place) {
                tree.push(&mut pages, key, value);
            }
        }
    }
    let mut root = Root::default();
    for (tree, (name, _)) in trees.into_iter().zip(buckets) {
        let page = tree.finish(&mut pages);
        root.push(&mut pages, name, page);
    }
    let root = root.finish(&mut pages);
    let mut bytes = first_pages(root, pages.count());
    bytes.extend(pages.take());
    assert_eq!(bytes.len() as u64, pages.count() * PAGE_BYTES as u64);
    assert_every_page_is_used(&bytes, root);

    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let bolt = Bolt::open(file, bytes.len() as u64).unwrap().unwrap();
    let found = bolt.buckets().unwrap();
    assert_eq!(found.len(), buckets.len());
    for (name, elements) in buckets {
        let bucket = &found[name.as_bytes()];
        let mut read = Elements::new();
        bolt.visit(bucket, &mut |element| {
            read.push((element.key.to_vec(), element.value.to_vec()));
            Ok(())
        })
        .unwrap();
        assert!(read == *elements, "{name}: {} elements of {}", read.len(), elements.len());
        for (key, value) in elements.iter().step_by(1 + elements.len() / 50) {
            assert_eq!(bolt.find(bucket, key).unwrap().as_ref(), Some(value));
        }
        assert_eq!(bolt.find(bucket, b"\xff\xff nothing has this key").unwrap(), None);
        assert_eq!(bolt.find(bucket, b"").unwrap(), None);
    }
}

/// As bbolt's own check: no page outside the trees, none used twice, no branch with fewer than two
/// children.
fn assert_every_page_is_used(bytes: &[u8], root: u64) {
    let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut used: BTreeSet<u64> = [0, 1, 2].into();
    let mut open = vec![root];
    while let Some(page) = open.pop() {
        let at = page as usize * PAGE_BYTES;
        assert_eq!(u64_at(at), page);
        let count = usize::from(u16_at(at + 10));
        for more in 0..=u64::from(u32_at(at + 12)) {
            assert!(used.insert(page + more), "page {page} is used twice");
        }
        let elements = (0..count).map(|place| at + PAGE_HEADER_BYTES + place * ELEMENT_BYTES);
        match u16_at(at + 8) {
            1 => {
                assert!(count >= 2, "a branch has {count} pages");
                open.extend(elements.map(|element| u64_at(element + 8)));
            }
            2 => open.extend(elements.filter(|element| u32_at(*element) == 1).map(|element| {
                let (position, key) = (u32_at(element + 4), u32_at(element + 8));
                u64_at(element + position as usize + key as usize)
            })),
            flags => panic!("a page of kind {flags}"),
        }
    }
    let pages = (bytes.len() / PAGE_BYTES) as u64;
    assert_eq!(used, (0..pages).collect(), "every page is in use");
}

fn keys(count: usize, key_bytes: usize, value_bytes: usize) -> Elements {
    let element = |i: usize| {
        let mut key = format!("{i:09}").into_bytes();
        key.resize(key_bytes.max(9), b'k');
        (key, vec![i as u8; value_bytes])
    };
    (0..count).map(element).collect()
}

#[test]
fn empty_buckets_and_single_rows_come_back() {
    check(&[]);
    check(&[("a", vec![])]);
    check(&[("a", keys(1, 9, 0)), ("b", vec![]), ("c", keys(1, 9, 5_000_000))]);
}

#[test]
fn rows_around_the_borders_of_pages_come_back() {
    let room = PAGE_BYTES - PAGE_HEADER_BYTES - ELEMENT_BYTES - 9;
    for bytes in [room - 1, room, room + 1, room + PAGE_BYTES - 1, room + PAGE_BYTES, 100_000] {
        check(&[("a", keys(1, 9, bytes)), ("b", keys(5, 9, bytes))]);
    }
    let half = room / 2 - (ELEMENT_BYTES + 9) / 2;
    for bytes in half - 2..half + 3 {
        check(&[("a", keys(7, 9, bytes))]);
    }
}

#[test]
fn branches_have_branches_above_them() {
    // One row per leaf and few keys per branch make several levels.
    for count in [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 63, 64, 65, 300] {
        check(&[("a", keys(count, 1_300, 3_000)), ("b", keys(count, 5_000, 1))]);
    }
    // Like the events of an etcd.
    check(&[("key", keys(60_000, 17, 30))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn what_is_written_is_read(
        rows in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 1..2_500),
            prop_oneof![
                5 => prop::collection::vec(any::<u8>(), 0..100),
                2 => prop::collection::vec(any::<u8>(), 3_900..4_200),
                1 => prop::collection::vec(any::<u8>(), 8_000..20_000),
            ],
            0..80,
        ),
        small in 0..600_usize,
    ) {
        check(&[("a", rows.into_iter().collect()), ("b", keys(small, 17, 40)), ("c", vec![])]);
    }
}
