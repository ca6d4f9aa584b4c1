//! Invariants of counters and double barriers under random programs in which requests come late, come
//! again, and sessions end.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::command::{
    Action, Command, LeaseRevoke, Once, Primitive, Range, SessionBegin,
};
use conclave_state_machine::locks::queue;
use conclave_state_machine::primitives::number;
use conclave_state_machine::primitives::rendezvous::{self, Gate};
use conclave_state_machine::response::{PrimitiveResponse, Rejection, Response};
use proptest::prelude::*;

use crate::store::Store;

const SESSIONS: i64 = 3;
const NAME: Bytes = Bytes::from_static(b"n");

type Outcome = Result<PrimitiveResponse, Rejection>;

fn apply(store: &mut Store, once: Once, action: Action) -> Outcome {
    let command = Command::Primitive(Primitive { once, name: NAME, action });
    match store.apply(&command).outcome {
        Ok(Response::Primitive(answer)) => Ok(answer),
        Ok(other) => panic!("{other:?}"),
        Err(rejection) => Err(rejection),
    }
}

fn begin(store: &mut Store, id: i64) {
    let request_id = Bytes::from_static(b"r");
    let begin = SessionBegin { id, ttl: 60, request_id, ..SessionBegin::default() };
    store.apply(&Command::SessionBegin(begin));
}

fn value(store: &Store) -> Option<Bytes> {
    let range = Range { key: NAME, ..Range::default() };
    store.range(&range).expect("nothing is compacted").kvs.pop().map(|kv| kv.value)
}

/// Something that a client does with its requests, by number.
#[derive(Clone, Debug)]
enum Step {
    /// Makes a request and sends it, or lets it come later.
    Ask {
        session: i64,
        delta: i64,
        is_late: bool,
    },
    /// A request arrives, perhaps once more.
    Arrive(prop::sample::Index),
    /// A request is answered or given up.
    Settle(prop::sample::Index),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..=SESSIONS, -9..9_i64, any::<bool>())
            .prop_map(|(session, delta, is_late)| Step::Ask { session, delta, is_late }),
        6 => any::<prop::sample::Index>().prop_map(Step::Arrive),
        3 => any::<prop::sample::Index>().prop_map(Step::Settle),
        1 => Just(Step::Restart),
    ]
}

/// A request as its client knows it.
struct Asked {
    once: Once,
    delta: i64,
    answer: Option<PrimitiveResponse>,
    is_settled: bool,
}

/// The smallest number that a session still waits for.
fn settled_below(asked: &[Asked], session: i64, next: u64) -> u64 {
    let open = asked.iter().filter(|asked| asked.once.session == session && !asked.is_settled);
    open.map(|asked| asked.once.sequence).min().unwrap_or(next)
}

fn arrive(store: &mut Store, asked: &mut Asked) -> Result<(), TestCaseError> {
    let revision = store.head().revision;
    let outcome = apply(store, asked.once, Action::Add(asked.delta));
    match (outcome, asked.answer) {
        (Ok(answer), Some(first)) => {
            prop_assert_eq!(answer, first, "the same answer");
            prop_assert_eq!(store.head().revision, revision, "and no second effect");
        }
        (Ok(answer), None) => asked.answer = Some(answer),
        (Err(rejection), _) => {
            prop_assert_eq!(rejection, Rejection::Overtaken);
            prop_assert!(asked.is_settled, "only what nobody waits for is refused");
            prop_assert_eq!(store.head().revision, revision);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_request_counts_once(steps in prop::collection::vec(step(), 1..120)) {
        let mut store = Store::new();
        (1..=SESSIONS).for_each(|id| begin(&mut store, id));
        let mut asked: Vec<Asked> = Vec::new();
        for step in steps {
            match step {
                Step::Ask { session, delta, is_late } => {
                    let own = asked.iter().filter(|asked| asked.once.session == session);
                    let sequence = own.count() as u64 + 1;
                    let settled = settled_below(&asked, session, sequence);
                    let once = Once { session, sequence, settled, undoes: 0 };
                    asked.push(Asked { once, delta, answer: None, is_settled: false });
                    if !is_late {
                        arrive(&mut store, asked.last_mut().expect("just pushed"))?;
                    }
                }
                Step::Arrive(_) | Step::Settle(_) if asked.is_empty() => {}
                Step::Arrive(which) => arrive(&mut store, which.get_mut(&mut asked))?,
                Step::Settle(which) => which.get_mut(&mut asked).is_settled = true,
                Step::Restart => store.restart(),
            }
            let sum: i64 = asked.iter().filter(|asked| asked.answer.is_some()).map(|asked| asked.delta).sum();
            let number = value(&store).map_or(0, |value| number::parse(&value).expect("a number"));
            prop_assert_eq!(number, sum);
        }
    }
}

#[derive(Clone, Debug)]
enum Move {
    Enter {
        session: i64,
        count: u32,
    },
    Exit {
        who: prop::sample::Index,
        is_only_waiting: bool,
    },
    /// A session ends, and begins anew.
    Lose(i64),
}

fn movement() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => (1..=SESSIONS, 1..4_u32).prop_map(|(session, count)| Move::Enter { session, count }),
        4 => (any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(who, is_only_waiting)| Move::Exit { who, is_only_waiting }),
        1 => (1..=SESSIONS).prop_map(Move::Lose),
    ]
}

/// Keys of those who wait, and of those who are in.
fn participants(store: &Store) -> (BTreeSet<Bytes>, BTreeSet<Bytes>) {
    let gate = value(store).map(|value| Gate::parse(&value)).unwrap_or_default();
    let (mut waiting, mut inside) = (BTreeSet::new(), BTreeSet::new());
    queue::visit(&store.rows, store.head().revision, &NAME, &mut |place| {
        let side = if place.fence <= gate.opened { &mut inside } else { &mut waiting };
        side.insert(place.key);
        ControlFlow::Continue(())
    })
    .expect("memory does not fail");
    (waiting, inside)
}

proptest! {
    #[test]
    fn nobody_goes_in_alone(moves in prop::collection::vec(movement(), 1..80)) {
        let mut store = Store::new();
        (1..=SESSIONS).for_each(|id| begin(&mut store, id));
        let mut sequences: BTreeMap<i64, u64> = BTreeMap::new();
        let mut entered: Vec<(i64, u64)> = Vec::new();
        for movement in moves {
            let (waited, was_in) = participants(&store);
            let mut next = |session| {
                let sequence = sequences.entry(session).or_default();
                *sequence += 1;
                Once { session, sequence: *sequence, settled: 1, undoes: 0 }
            };
            let mut count_now = 0;
            match movement {
                Move::Enter { session, count } => {
                    let once = next(session);
                    match apply(&mut store, once, Action::Enter { count, note: Bytes::new() }) {
                        Ok(answer) => {
                            let (_, inside) = participants(&store);
                            let key = rendezvous::key(&NAME, session, once.sequence);
                            prop_assert_eq!(answer.is_done, inside.contains(&key));
                            entered.push((session, once.sequence));
                            count_now = count;
                        }
                        Err(rejection) => {
                            prop_assert!(matches!(rejection, Rejection::Refused(_)));
                            prop_assert!(!waited.is_empty() || !was_in.is_empty());
                        }
                    }
                }
                Move::Exit { who, is_only_waiting } if !entered.is_empty() => {
                    let (session, undoes) = *who.get(&entered);
                    let once = Once { undoes, ..next(session) };
                    let key = rendezvous::key(&NAME, session, undoes);
                    // The session may have ended since, and count anew.
                    if once.sequence > undoes {
                        let answer = apply(&mut store, once, Action::Exit { is_only_waiting }).unwrap();
                        let stays = is_only_waiting && was_in.contains(&key);
                        let was_there = waited.contains(&key) || was_in.contains(&key);
                        prop_assert_eq!(answer.is_done, was_there && !stays);
                        prop_assert_eq!(answer.number > 0, was_in.contains(&key));
                    }
                }
                Move::Exit { .. } => {}
                Move::Lose(id) => {
                    store.apply(&Command::LeaseRevoke(LeaseRevoke { id }));
                    begin(&mut store, id);
                    sequences.remove(&id);
                    entered.retain(|(session, _)| *session != id);
                }
            }
            let (waiting, inside) = participants(&store);
            prop_assert!(waiting.is_empty() || inside.is_empty(), "all are in, or all wait");
            prop_assert!(was_in.is_disjoint(&waiting), "who is in stays in");
            let went_in = inside.difference(&was_in).count();
            prop_assert!(went_in == 0 || !was_in.is_empty() || inside.len() >= count_now as usize);
            prop_assert!(waited.is_disjoint(&inside) || waited.is_subset(&inside), "together");
        }
        (1..=SESSIONS).for_each(|id| {
            store.apply(&Command::LeaseRevoke(LeaseRevoke { id }));
        });
        prop_assert_eq!(participants(&store), (BTreeSet::new(), BTreeSet::new()));
    }
}
