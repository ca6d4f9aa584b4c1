//! Counts of large ranges, which come from an index, against counting by hand.

use std::collections::BTreeSet;

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::command::Command;
use conclave_state_machine::command::{Range, SortOrder};

use crate::harness::{ENGINES, State, crash_image, entry, put};

fn key(n: u64) -> String {
    format!("{:05}", n.wrapping_mul(7_919) % 10_000)
}

fn delete(from: String, to: String) -> Command {
    Command::DeleteRange(etcd::DeleteRangeRequest {
        key: from.into(),
        range_end: to.into(),
        prev_kv: false,
    })
}

/// Whether each way to read a range finds the keys that are in it as of `revision`, 0 for now.
fn check(state: &State, keys: &BTreeSet<String>, revision: i64) {
    for (from, to) in [(0, 10_000), (1, 9_999), (300, 4_800), (4_000, 4_100), (9_990, 20_000)] {
        let (from, to) = (format!("{from:05}"), format!("{to:05}"));
        let within: Vec<&String> = keys.range(from.clone()..to.clone()).collect();
        for (limit, count_only) in [(0, false), (1, false), (5, false), (700, false), (0, true)] {
            for sort_order in [SortOrder::None, SortOrder::Descend] {
                let request = Range {
                    key: from.clone().into(),
                    range_end: to.clone().into(),
                    limit,
                    revision,
                    count_only,
                    sort_order,
                    ..Range::default()
                };
                let mut expected = if count_only { Vec::new() } else { within.clone() };
                if sort_order == SortOrder::Descend {
                    expected.reverse();
                }
                let limit = usize::try_from(limit).unwrap();
                let is_cut = limit > 0 && within.len() > limit;
                if is_cut {
                    expected.truncate(limit);
                }
                let (answer, _) = state.reader.range(&request).unwrap();
                assert_eq!(usize::try_from(answer.count).unwrap(), within.len(), "{request:?}");
                assert_eq!(answer.more, is_cut, "{request:?}");
                let found = answer.kvs.iter().map(|kv| &kv.key[..]);
                assert!(found.eq(expected.iter().map(|key| key.as_bytes())), "{request:?}");
            }
        }
    }
    let all = Range {
        key: Bytes::from_static(b"0"),
        range_end: Bytes::from_static(&[0]),
        revision,
        count_only: true,
        ..Range::default()
    };
    assert_eq!(usize::try_from(state.reader.range(&all).unwrap().0.count).unwrap(), keys.len());
}

#[tokio::test]
async fn large_ranges_are_counted_exactly() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        let mut keys = BTreeSet::new();
        let mut earlier = Vec::new();
        for i in 1..=40_u64 {
            let fresh: Vec<String> = (i * 100..(i + 1) * 100).map(key).collect();
            let mut commands: Vec<Command> = fresh.iter().map(|k| put(k.clone(), "v")).collect();
            keys.extend(fresh);
            if i % 5 == 0 {
                let (from, to) = (key(i * 31), format!("{:05}", (i * 311) % 10_000));
                keys.retain(|k| !(from.clone()..to.clone()).contains(k));
                commands.push(delete(from, to));
            }
            state.apply([entry(i, commands)]).await;
            if i % 4 == 0 {
                check(&state, &keys, 0);
                earlier.push((keys.clone(), state.reader.head().revision));
            }
        }
        // Of the last ones it is known what came and went since; of the first ones it is forgotten.
        for (keys, revision) in &earlier {
            check(&state, keys, *revision);
        }
        assert!(keys.len() > 1_500, "otherwise there are too few buckets");
        state.reader.flush().unwrap();
        let image = crash_image(dir.path());
        let reopened = State::open(image.path(), engine);
        check(&reopened, &keys, 0);
        for (keys, revision) in &earlier {
            check(&reopened, keys, *revision);
        }
    }
}
