//! What streams left behind whose member is gone.

use bytes::Bytes;
use conclave_state_machine::command::{
    Campaign, Command, LockAcquire, LockCommand, Once, SessionBegin,
};
use conclave_state_machine::locks::stranded::{self, Stranded};

use crate::store::Store;

/// A stream of the member that is gone, and one of another.
const GONE: u64 = 7;
const HERE: u64 = 8;

fn acquire(store: &mut Store, names: &[&'static str], session: i64, attempt: u64, sequence: u64) {
    let once =
        Once { session: if sequence == 0 { 0 } else { session }, sequence, ..Once::default() };
    let request = LockAcquire {
        names: names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect(),
        session,
        request_id: "r".into(),
        permits: 1,
        limit: 1,
        can_wait: true,
        attempt,
        once,
        ..LockAcquire::default()
    };
    let applied = store.apply(&Command::Lock(LockCommand::Acquire(request)));
    assert!(applied.outcome.is_ok(), "{applied:?}");
}

fn campaign(store: &mut Store, session: i64, attempt: u64, sequence: u64) {
    let once = Once { session, sequence, ..Once::default() };
    let name = "boss".into();
    let request = Campaign { name, session, attempt, once, ..Campaign::default() };
    let applied = store.apply(&Command::Lock(LockCommand::Campaign(request)));
    assert!(applied.outcome.is_ok(), "{applied:?}");
}

fn left(store: &Store) -> Vec<Stranded> {
    stranded::list(&store.rows, &|stream| stream == GONE).expect("memory does not fail")
}

#[test]
fn who_waits_is_left_behind_and_so_is_a_candidate_without_a_number() {
    let mut store = Store::new();
    for id in 1..=6 {
        let begin = SessionBegin { id, ttl: 60, request_id: "s".into(), ..SessionBegin::default() };
        store.apply(&Command::SessionBegin(begin));
    }
    // Holds all that it asked for: nobody knows whether it was told.
    acquire(&mut store, &["a"], 1, GONE, 0);
    acquire(&mut store, &["a", "b"], 2, GONE, 5);
    acquire(&mut store, &["a"], 3, HERE, 0);
    campaign(&mut store, 4, GONE, 0);
    campaign(&mut store, 5, GONE, 1);
    campaign(&mut store, 6, HERE, 0);
    let expected = [
        Stranded {
            names: vec!["a".into(), "b".into()],
            session: 2,
            request_id: "r".into(),
            stream: GONE,
            number: 5,
        },
        Stranded {
            names: vec!["boss".into()],
            session: 4,
            request_id: Bytes::new(),
            stream: GONE,
            number: 0,
        },
    ];
    assert_eq!(left(&store), expected);
    // Asked for again on other streams.
    acquire(&mut store, &["a", "b"], 2, HERE, 5);
    campaign(&mut store, 4, HERE, 0);
    assert_eq!(left(&store), []);
}
