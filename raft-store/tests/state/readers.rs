//! Readers on other threads while entries are applied, compacted and replaced by a snapshot.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::v1;
use conclave_raft_store::{EventSpan, ReadError, Reader};
use conclave_state_machine::command::Range;
use conclave_state_machine::response::Rejection;
use openraft::storage::RaftStateMachine;

use crate::harness::{ENGINES, State, compact, entry, put};

const KEYS: usize = 700;
const ROUNDS: u64 = 60;
/// Where readers are slow to be scheduled it takes more of them.
const ROUNDS_MAX: u64 = 100 * ROUNDS;
const READS_MIN: u64 = 20;
const LARGE_BYTES: usize = 3_000;

/// What readers have in common: when to stop, and how much they saw.
#[derive(Default)]
struct Watch {
    is_done: AtomicBool,
    reads: AtomicU64,
}

/// Every round writes all keys with its number, so a state in between rounds shows two numbers
/// that follow each other, the higher one first.
fn check_whole(reader: &Reader, limit: i64) {
    let request = Range { key: "k".into(), range_end: "l".into(), limit, ..Range::default() };
    let (answer, revision) = reader.range(&request).unwrap();
    assert_eq!(usize::try_from(answer.count).unwrap(), KEYS, "at revision {revision}");
    let rounds: Vec<u64> = answer
        .kvs
        .iter()
        .map(|kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap())
        .collect();
    assert!(rounds.is_sorted_by(|a, b| a == b || *a == b + 1), "{rounds:?} at {revision}");
    assert!(rounds[0] - rounds.last().unwrap() <= 1, "{rounds:?} at {revision}");
}

/// Follows all events; none may be missing, except across a compaction.
fn follow(reader: &Reader, watch: &Watch) {
    let mut next = reader.head().revision + 1;
    while !watch.is_done.load(Ordering::Relaxed) {
        let (revisions_max, bytes_max) = (90, 1 << 20);
        let span = EventSpan { revisions_max, bytes_max, ..EventSpan::whole(next, i64::MAX - 1) };
        match reader.events(span) {
            Ok(events) => {
                for event in events {
                    assert_eq!(event.kv.mod_revision, next, "one event a revision, none missing");
                    next += 1;
                }
            }
            Err(ReadError::Rejected(Rejection::Compacted)) => next = reader.head().revision + 1,
            Err(other) => panic!("{other}"),
        }
        watch.reads.fetch_add(1, Ordering::Relaxed);
    }
}

fn read_while(reader: &Reader, watch: &Watch, limit: i64) {
    while !watch.is_done.load(Ordering::Relaxed) {
        check_whole(reader, limit);
        watch.reads.fetch_add(1, Ordering::Relaxed);
    }
}

/// One round: all keys, and a compaction that leaves almost no history.
async fn round(state: &mut State, number: u64) {
    // Every seventh value is so large that it stands with its event only.
    let digits = |k: usize| if k.is_multiple_of(7) { LARGE_BYTES } else { 1 };
    let puts =
        (0..KEYS).map(|k| put(format!("k{k:04}"), format!("{number:0width$}", width = digits(k))));
    let mut commands: Vec<_> = puts.collect();
    if number > 1 {
        commands.insert(KEYS / 2, compact(state.reader.head().revision));
    }
    // Several pieces a round, so that readers see states within it.
    for (piece, commands) in commands.chunks(200).enumerate() {
        let index = number * 10 + piece as u64;
        state.apply([entry(index, commands.to_vec())]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reads_are_whole_while_history_is_compacted_below_them() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        round(&mut state, 1).await;
        let watch = std::sync::Arc::new(Watch::default());
        let start = |work: fn(&Reader, &Watch)| {
            let (reader, watch) = (state.reader.clone(), watch.clone());
            thread::spawn(move || work(&reader, &watch))
        };
        let readers = [
            start(|reader, watch| read_while(reader, watch, 0)),
            start(|reader, watch| read_while(reader, watch, 300)),
            start(follow),
        ];
        for number in 2..ROUNDS_MAX {
            let is_enough = || watch.reads.load(Ordering::Relaxed) > READS_MIN;
            if number >= ROUNDS && is_enough() {
                break;
            }
            round(&mut state, number).await;
            if number % 20 == 0 {
                reinstall(&mut state).await;
            }
        }
        watch.is_done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(watch.reads.load(Ordering::Relaxed) > READS_MIN, "the readers did not get to read");
    }
}

/// Replaces the database below the readers by a copy of itself.
async fn reinstall(state: &mut State) {
    let snapshot = state.machine.get_current_snapshot().await.unwrap().unwrap();
    state.machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
}

/// Damage that a start does not meet stops the member when a read does.
#[tokio::test]
async fn a_read_that_meets_damage_says_why_the_member_must_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = State::open(dir.path(), ENGINES[1]);
    for index in 1..=50 {
        // Hard to compress, so that the events fill several blocks.
        let value: Vec<u8> = (0..4096_u32).map(|at| (at.wrapping_mul(index) >> 3) as u8).collect();
        state.apply([entry(u64::from(index), vec![put("k", value)])]).await;
    }
    state.reader.flush().unwrap();
    drop(state);
    let database = dir.path().join("db-1");
    let tables = std::fs::read_dir(database).unwrap().map(|entry| entry.unwrap().path());
    let tables = tables.filter(|path| path.extension().is_some_and(|e| e == "sst"));
    // The events: the newest state is one key.
    let events = tables.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&events).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&events, bytes).unwrap();

    let state = State::open(dir.path(), ENGINES[1]);
    let read = state.reader.events(EventSpan::whole(2, 51));
    assert!(matches!(read, Err(ReadError::Halt(_))), "{read:?}");
    let reason = state.reader.failed().await;
    let root = dir.path().display();
    assert!(reason.starts_with(&format!("the state in {root} is damaged (")), "{reason}");
    assert!(reason.ends_with("or restore a backup if it is the only one"), "{reason}");
}

fn acquire(session: i64, round: u64, limit: u32) -> Message {
    Message::LockAcquire(internal::LockAcquire {
        names: vec!["n".into()],
        session,
        request_id: round.to_string().into(),
        permits: 1,
        limit,
        can_wait: true,
        ..Default::default()
    })
}

fn release(session: i64, round: u64) -> Message {
    Message::LockRelease(internal::LockRelease {
        names: vec!["n".into()],
        session,
        request_id: round.to_string().into(),
        ..internal::LockRelease::default()
    })
}

/// A reader becomes a writer in the step in which the writer behind it goes: the reader behind both has
/// no turn, unless places and what they ask for are read as of two moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_is_known_as_of_one_moment() {
    const QUEUES: u64 = 2_000;
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path(), engine);
        let begin = |id| {
            let request_id = "begin".into();
            let begin =
                v1::SessionBeginRequest { id, ttl_seconds: 60, request_id, ..Default::default() };
            Message::SessionBegin(begin)
        };
        state.apply([entry(1, (1..=3).map(begin).collect())]).await;
        let watch = Watch::default();
        let reader = state.reader.clone();
        thread::scope(|threads| {
            let reading = threads.spawn(|| {
                while !watch.is_done.load(Ordering::Relaxed) {
                    let (holders, revision) = reader.holders(b"n").unwrap();
                    let holders: Vec<i64> = holders.iter().map(|place| place.session).collect();
                    assert!(holders.len() <= 1, "{holders:?} at {revision}");
                    watch.reads.fetch_add(1, Ordering::Relaxed);
                }
            });
            // What is changed before somebody reads shows nothing.
            while watch.reads.load(Ordering::Relaxed) == 0 && !reading.is_finished() {
                thread::yield_now();
            }
            let runtime = tokio::runtime::Handle::current();
            let mut index = 1;
            for round in 0..QUEUES {
                let convert = Message::LockConvert(v1::ConvertRequest {
                    name: "n".into(),
                    session: 1,
                    request_id: round.to_string().into(),
                    permits: 1,
                    limit: 1,
                    once: None,
                });
                let (shared, alone) = (u32::MAX, 1);
                let queue = [
                    acquire(1, round, shared),
                    acquire(2, round, alone),
                    acquire(3, round, shared),
                ];
                for commands in [
                    queue.to_vec(),
                    vec![convert, release(2, round)],
                    vec![release(3, round), release(1, round)],
                ] {
                    index += 1;
                    let applied = state.apply([entry(index, commands)]);
                    tokio::task::block_in_place(|| runtime.block_on(applied));
                }
            }
            watch.is_done.store(true, Ordering::Relaxed);
        });
        assert!(watch.reads.load(Ordering::Relaxed) > 0);
    }
}
