//! Reads that are given up where they turn out to be long, and then answered all the same.

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::command::Command;
use conclave_raft_store::ReadError;
use conclave_state_machine::command::{Range, SortOrder};
use conclave_state_machine::response::Rejection;

use crate::harness::{ENGINES, State, crash_image, entry, put};

/// More rows than are looked at without a pause.
const MANY: i64 = 8_000;

fn keys(start: &'static str, end: &'static str) -> Range {
    Range { key: start.into(), range_end: end.into(), ..Range::default() }
}

/// Whether the request was answered at once. The answer is that of a read that takes its time.
fn is_brief(state: &State, request: &Range) -> bool {
    let whole = state.reader.range(request).unwrap();
    let brief = state.reader.range_briefly(request).unwrap();
    let is_brief = brief.is_some();
    assert_eq!(brief.unwrap_or_else(|| whole.clone()), whole, "{request:?}");
    is_brief
}

/// Some of everything that could make a read long: tombstones, changes of one key, large values.
async fn fill(state: &mut State) {
    let few = (0..100).map(|n| put(format!("few{n:03}"), "v"));
    let dead = (0..MANY).map(|n| put(format!("dead{n:05}"), "v"));
    let changed = (0..MANY).map(|n| put("changed", n.to_string()));
    let large = (0..5).map(|n| put(format!("large{n}"), vec![b'v'; 1 << 20]));
    state.apply([entry(1, few.collect()), entry(2, dead.collect())]).await;
    state.apply([entry(3, changed.collect()), entry(4, large.collect())]).await;
    let delete = Command::DeleteRange(etcd::DeleteRangeRequest {
        key: "dead".into(),
        range_end: "deae".into(),
        prev_kv: false,
    });
    state.apply([entry(5, vec![delete])]).await;
}

#[tokio::test]
async fn a_read_is_given_up_where_it_turns_out_to_be_long() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        fill(&mut state).await;
        assert!(is_brief(&state, &keys("few", "fex")));
        assert!(is_brief(&state, &Range { limit: 10, ..keys("few", "fex") }));
        assert!(is_brief(&state, &Range { count_only: true, ..keys("\0", "\0") }), "it is known");
        assert!(is_brief(&state, &keys("changed", "")));
        assert!(is_brief(&state, &keys("large1", "")));
        let dead = keys("dead", "deae");
        assert!(is_brief(&state, &dead), "nothing lives there, which is known");
        assert!(is_brief(&state, &Range { limit: 1, ..dead.clone() }));
        assert!(is_brief(&state, &Range { count_only: true, ..dead.clone() }));
        let before = Range { revision: state.reader.head().revision - 1, ..dead };
        assert!(!is_brief(&state, &before));
        let often = Range { revision: 110 + MANY, ..keys("changed", "") };
        assert!(is_brief(&state, &often), "links lead over many changes");
        assert!(!is_brief(&state, &keys("large", "largf")));
        assert!(is_brief(&state, &Range { keys_only: true, ..keys("large", "largf") }));
    }
}

#[tokio::test]
async fn a_brief_read_is_refused_like_any() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        state.apply([entry(1, vec![put("k", "v")])]).await;
        let beyond = Range { revision: 9, ..keys("k", "") };
        let refused = state.reader.range_briefly(&beyond);
        assert!(
            matches!(refused, Err(ReadError::Rejected(Rejection::FutureRevision))),
            "{refused:?}"
        );
        let nothing = Range { key: Bytes::new(), ..Range::default() };
        let refused = state.reader.range_briefly(&nothing);
        assert!(matches!(refused, Err(ReadError::Rejected(Rejection::EmptyKey))), "{refused:?}");
    }
}

/// First keys, last keys and the number of keys.
fn ends(start: &'static str, end: &'static str) -> [Range; 3] {
    let last = Range { sort_order: SortOrder::Descend, limit: 1, ..keys(start, end) };
    let count = Range { count_only: true, ..keys(start, end) };
    [Range { limit: 1, ..keys(start, end) }, last, count]
}

#[tokio::test]
async fn dead_keys_do_not_make_a_read_long() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        let name = |n: i64| format!("dead{n:05}");
        let dead = (0..3 * MANY).map(|n| put(name(n), "v"));
        let behind = (0..100).map(|n| put(format!("e{n:03}"), "v"));
        state.apply([entry(1, dead.collect()), entry(2, behind.collect())]).await;
        // One key of each many stays.
        for part in 0..3 {
            let delete = Command::DeleteRange(etcd::DeleteRangeRequest {
                key: name(part * MANY).into(),
                range_end: name((part + 1) * MANY - 1).into(),
                prev_kv: false,
            });
            state.apply([entry(u64::try_from(part).unwrap() + 3, vec![delete])]).await;
        }
        let check = |state: &State, when: &str| {
            for request in ends("dead", "deae").into_iter().chain(ends("c", "f")) {
                assert!(is_brief(state, &request), "{when}: {request:?}");
            }
            assert!(is_brief(state, &keys("dead", "deae")), "{when}");
        };
        check(&state, "before the compaction");
        let revision = state.reader.head().revision;
        let mut index = 6;
        // One step of the sweep each.
        while index == 6 || state.reader.head().has_dead_rows() {
            let compact = etcd::CompactionRequest { revision, physical: false };
            state.apply([entry(index, vec![Command::Compact(compact)])]).await;
            index += 1;
        }
        check(&state, "after the compaction");
        // A member that starts finds the runs of dead keys by their rows. It cannot find what the engine still has
        // of rows that are gone, which goes before long.
        state.reader.flush().unwrap();
        state.reader.defragment().unwrap();
        let image = crash_image(dir.path());
        check(&State::open(image.path(), engine), "after a restart");
    }
}
