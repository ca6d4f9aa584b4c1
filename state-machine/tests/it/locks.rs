//! Invariants of locks under random programs, against a queue kept in a plain list.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use conclave_state_machine::command::{
    Caller, Campaign, Command, Compare, CompareResult, CompareTarget, DeleteRange, HandOver,
    LeaseExpire, LeaseRevoke, Leave, LockAcquire, LockBreak, LockCommand, LockConvert, LockRelease,
    Put, SessionBegin, Txn, TxnOp,
};
use conclave_state_machine::locks::queue::{self, Place};
use conclave_state_machine::machine::{Machine, Position};
use conclave_state_machine::memory::MemoryRows;
use conclave_state_machine::overlay::Overlay;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::{Halt, LockResponse, LockState, Rejection, Response};
use proptest::prelude::*;

use crate::store::Store;

const NAMES: [&str; 3] = ["a", "a/b", "c"];
/// What one request locks, as indices.
const TOGETHER: [&[usize]; 6] = [&[0], &[1], &[2], &[0, 1], &[1, 2], &[0, 1, 2]];
const SHARES: [(u32, u32); 4] = [(1, 1), (1, u32::MAX), (1, 2), (2, 3)];
const SESSIONS: i64 = 4;
/// A child of every name that never is a place.
const LATE: &str = "late";

#[derive(Clone, Debug)]
enum Step {
    Begin(i64),
    Acquire {
        names: &'static [usize],
        session: i64,
        request: u8,
        share: (u32, u32),
        /// Whether it can wait, and whether it is re-entrant.
        how: (bool, bool),
        delay: u32,
    },
    Release {
        names: &'static [usize],
        session: i64,
        request: u8,
    },
    Convert {
        name: usize,
        session: i64,
        request: u8,
        share: (u32, u32),
    },
    Campaign {
        name: usize,
        session: i64,
        value: u8,
    },
    Leave {
        name: usize,
        session: i64,
    },
    /// Whoever is first hands over to one further behind.
    HandOver {
        name: usize,
        to: usize,
    },
    Break {
        name: usize,
    },
    Expire(i64),
    Revoke(i64),
    /// All delays end.
    DelaysEnd,
    /// A key that exists gets a lease.
    Attach {
        name: usize,
        session: i64,
    },
    /// A place loses its lease.
    Detach {
        name: usize,
        session: i64,
    },
    /// etcd's recipe takes a place.
    Recipe {
        name: usize,
        session: i64,
    },
    /// Anybody deletes keys.
    Delete {
        name: usize,
        session: i64,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    let names = prop::sample::select(TOGETHER.to_vec());
    let session = 1..=SESSIONS;
    let at = (name.clone(), session.clone());
    let share = prop::sample::select(SHARES.to_vec());
    let how = (any::<bool>(), any::<bool>());
    prop_oneof![
        4 => session.clone().prop_map(Step::Begin),
        8 => (names.clone(), session.clone(), 0..6_u8, share.clone(), how, 0..2_u32).prop_map(
            |(names, session, request, share, how, delay)| {
                Step::Acquire { names, session, request, share, how, delay }
            }
        ),
        6 => (names, session.clone(), 0..6_u8)
            .prop_map(|(names, session, request)| Step::Release { names, session, request }),
        2 => (name.clone(), session.clone(), 0..6_u8, share).prop_map(
            |(name, session, request, share)| Step::Convert { name, session, request, share }
        ),
        4 => (at.clone(), 0..2_u8).prop_map(
            |((name, session), value)| Step::Campaign { name, session, value }
        ),
        1 => at.clone().prop_map(|(name, session)| Step::Leave { name, session }),
        1 => (name.clone(), 1..4_usize).prop_map(|(name, to)| Step::HandOver { name, to }),
        1 => name.prop_map(|name| Step::Break { name }),
        2 => session.clone().prop_map(Step::Expire),
        1 => session.prop_map(Step::Revoke),
        1 => Just(Step::DelaysEnd),
        1 => at.clone().prop_map(|(name, session)| Step::Attach { name, session }),
        1 => at.clone().prop_map(|(name, session)| Step::Detach { name, session }),
        2 => at.clone().prop_map(|(name, session)| Step::Recipe { name, session }),
        1 => at.prop_map(|(name, session)| Step::Delete { name, session }),
        1 => Just(Step::Restart),
    ]
}

fn request_id(session: i64, request: u8) -> Bytes {
    Bytes::from(format!("{session}-{request}"))
}

fn locked(names: &[usize]) -> Vec<Bytes> {
    names.iter().map(|at| Bytes::from_static(NAMES[*at].as_bytes())).collect()
}

fn command(step: &Step, number: usize) -> Option<LockCommand> {
    Some(match step {
        Step::Acquire { names, session, request, share, how, delay } => {
            LockCommand::Acquire(LockAcquire {
                names: locked(names),
                session: *session,
                request_id: request_id(*session, *request),
                permits: share.0,
                limit: share.1,
                can_wait: how.0,
                is_reentrant: how.1 && names.len() == 1,
                delay_seconds: *delay,
                attempt: number as u64,
                ..LockAcquire::default()
            })
        }
        Step::Release { names, session, request } => LockCommand::Release(LockRelease {
            names: locked(names),
            session: *session,
            request_id: request_id(*session, *request),
            attempt: 0,
        }),
        Step::Convert { name, session, request, share } => LockCommand::Convert(LockConvert {
            name: NAMES[*name].into(),
            session: *session,
            request_id: request_id(*session, *request),
            permits: share.0,
            limit: share.1,
        }),
        Step::Campaign { name, session, value } => LockCommand::Campaign(Campaign {
            name: NAMES[*name].into(),
            session: *session,
            value: vec![*value].into(),
            attempt: number as u64 + 1,
            number: number as u64,
            ..Campaign::default()
        }),
        Step::Leave { name, session } => LockCommand::Leave(Leave {
            name: NAMES[*name].into(),
            session: *session,
            ..Leave::default()
        }),
        Step::Break { name } => {
            LockCommand::Break(LockBreak { name: NAMES[*name].into(), fence: 0 })
        }
        _ => return None,
    })
}

/// Everything that a step does.
fn commands(store: &Store, step: &Step, number: usize) -> Vec<Command> {
    if let Some(command) = command(step, number) {
        return vec![Command::Lock(command)];
    }
    let own = |name: &usize, session: &i64| queue::key(NAMES[*name].as_bytes(), *session);
    let one = match step {
        Step::Begin(id) => Command::SessionBegin(SessionBegin {
            id: *id,
            ttl: 60,
            request_id: Bytes::from(format!("begin-{number}")),
            ..SessionBegin::default()
        }),
        Step::HandOver { name, to } => {
            let places = places(store, NAMES[*name]);
            let (Some(leader), Some(to)) = (places.first(), places.get(*to)) else {
                return Vec::new();
            };
            let (session, fence, to) = (leader.session, leader.fence, to.key.clone());
            let name = NAMES[*name].into();
            Command::Lock(LockCommand::HandOver(HandOver { name, session, fence, to }))
        }
        Step::Expire(id) => {
            Command::LeaseExpire(LeaseExpire { term: 1, ids: vec![*id], ..LeaseExpire::default() })
        }
        Step::Revoke(id) => Command::LeaseRevoke(LeaseRevoke { id: *id }),
        Step::DelaysEnd => {
            let delays = leases(store).into_iter().filter(|id| *id > SESSIONS);
            let ids = delays.collect();
            Command::LeaseExpire(LeaseExpire { term: 1, ids, ..LeaseExpire::default() })
        }
        Step::Attach { name, session } => {
            let put = |lease| {
                let key = Bytes::from(format!("{}/{LATE}", NAMES[*name]));
                Command::Put(Put { key, lease, ..Put::default() })
            };
            return vec![put(0), put(*session)];
        }
        Step::Detach { name, session } => {
            Command::Put(Put { key: own(name, session), ..Put::default() })
        }
        Step::Recipe { name, session } => Command::Txn(recipe(own(name, session), *session)),
        Step::Delete { name, session } => {
            Command::DeleteRange(DeleteRange { key: own(name, session), ..DeleteRange::default() })
        }
        _ => return Vec::new(),
    };
    vec![one]
}

/// As etcd's client takes a place.
fn recipe(key: Bytes, lease: i64) -> Txn {
    Txn {
        compare: vec![Compare {
            key: key.clone(),
            range_end: Bytes::new(),
            result: CompareResult::Equal,
            target: CompareTarget::Create(0),
        }],
        success: vec![TxnOp::Put(Put { key, lease, ..Put::default() })],
        failure: Vec::new(),
    }
}

fn leases(store: &Store) -> Vec<i64> {
    let leases = conclave_state_machine::leases::all(&store.rows).expect("memory does not fail");
    leases.into_iter().map(|(id, _)| id).collect()
}

fn places(store: &Store, name: &str) -> Vec<Place> {
    let mut places = Vec::new();
    queue::visit(&store.rows, store.head().revision, name.as_bytes(), &mut |place| {
        places.push(place);
        ControlFlow::Continue(())
    })
    .expect("memory does not fail");
    places
}

fn holders(store: &Store, name: &str) -> Vec<Place> {
    let at = store.head().revision;
    queue::holders(&store.rows, at, name.as_bytes()).expect("memory does not fail")
}

/// What all steps so far have shown.
#[derive(Default)]
struct Seen {
    /// Highest fence that ever held a name.
    highest: BTreeMap<&'static str, i64>,
    /// Places that hold, by name.
    held: BTreeMap<&'static str, BTreeSet<i64>>,
}

impl Seen {
    fn check(&mut self, store: &Store) -> Result<(), TestCaseError> {
        for name in NAMES {
            let (places, holders) = (places(store, name), holders(store, name));
            check_queue(store, name, &places)?;
            prop_assert_eq!(&places[..holders.len()], &holders[..], "holders come first");
            let exclusive = holders.iter().any(|place| place.share() == (1, 1));
            prop_assert!(!exclusive || holders.len() == 1, "an exclusive holder is alone");
            let used: u32 = holders.iter().map(|place| place.share().0).sum();
            prop_assert!(holders.iter().all(|place| used <= place.share().1 || holders.len() == 1));
            prop_assert_eq!(holders.is_empty(), places.is_empty(), "a lock with a queue is held");
            let held: BTreeSet<i64> = holders.iter().map(|place| place.fence).collect();
            for Place { fence, .. } in &places {
                // By what is kept beside the places, and by asking each of them.
                let alive = holders.iter().any(|place| place.fence == *fence && !place.is_lost());
                let holds = queue::holds(&store.rows, i64::MAX, name.as_bytes(), *fence);
                prop_assert_eq!(holds.expect("memory does not fail"), alive, "fence {}", fence);
            }
            let before = self.held.insert(name, held.clone()).unwrap_or_default();
            let highest = self.highest.entry(name).or_default();
            for fence in held.difference(&before) {
                prop_assert!(fence > highest, "fence {fence} after {highest}");
                *highest = *fence;
            }
            // What an exclusive holder writes may not be taken for older than what others wrote before.
            prop_assert!(!exclusive || held.last() == Some(highest), "exclusive after {highest}");
        }
        Ok(())
    }
}

/// The queue is exactly the leased children, oldest first, and nothing else is kept for it.
fn check_queue(store: &Store, name: &str, places: &[Place]) -> Result<(), TestCaseError> {
    let mut expected: Vec<(i64, Bytes)> = Vec::new();
    let all = conclave_state_machine::command::Range {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..Default::default()
    };
    for kv in store.range(&all).expect("nothing is compacted").kvs {
        let child = kv.key.strip_prefix(format!("{name}/").as_bytes());
        let is_late = child == Some(LATE.as_bytes());
        if kv.lease != 0 && !is_late && child.is_some_and(|child| !child.contains(&b'/')) {
            expected.push((kv.create_revision, kv.key));
        }
    }
    expected.sort();
    let found: Vec<_> = places.iter().map(|place| (place.fence, place.key.clone())).collect();
    prop_assert_eq!(found, expected);
    for place in places {
        let lease = conclave_state_machine::leases::lease(&store.rows, place.session);
        prop_assert!(lease.expect("memory does not fail").is_some(), "its session lives");
    }
    Ok(())
}

/// What was told to one that asked for locks is so, and asking again changes nothing.
fn check_acquire(
    store: &mut Store,
    command: &Command,
    outcome: &Result<Response, Rejection>,
) -> Result<(), TestCaseError> {
    let Ok(Response::Lock(LockResponse::Places { state, taken })) = outcome else { return Ok(()) };
    prop_assert_eq!(taken.is_empty(), matches!(state, LockState::Busy | LockState::Cancelled));
    let held = taken.iter().filter(|place| {
        let name = std::str::from_utf8(&place.name).expect("names are text");
        holders(store, name).iter().any(|holder| holder.fence == place.fence)
    });
    let is_held = held.count() == taken.len() && !taken.is_empty();
    prop_assert_eq!(is_held, *state == LockState::Held);
    let revision = store.head().revision;
    let again = store.apply(command);
    prop_assert_eq!(&again.outcome, outcome);
    if !matches!(command, Command::Lock(LockCommand::Convert(_))) {
        prop_assert_eq!(store.head().revision, revision);
    }
    Ok(())
}

fn run(store: &mut Store, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut seen = Seen::default();
    for (number, step) in steps.iter().enumerate() {
        if matches!(step, Step::Restart) {
            store.restart();
        }
        for command in commands(store, step, number) {
            let first = store.apply(&command);
            seen.check(store)?;
            check_acquire(store, &command, &first.outcome)?;
            if matches!(step, Step::Release { .. }) {
                let revision = store.head().revision;
                let again = store.apply(&command);
                prop_assert!(again.outcome.is_ok());
                prop_assert_eq!(store.head().revision, revision, "a release has one effect");
            }
        }
    }
    // Nothing stays behind when everybody is gone.
    for id in leases(store) {
        store.apply(&Command::LeaseRevoke(LeaseRevoke { id }));
    }
    prop_assert_eq!(store.rows.rows(Table::Place).count(), 0);
    prop_assert_eq!(store.rows.rows(Table::Lease).count(), 0);
    Ok(())
}

/// What keeps one lock in the hands of many.
fn crowd_step() -> impl Strategy<Value = Step> {
    let session = || 1..=SESSIONS;
    let share = prop_oneof![
        30 => Just((1, u32::MAX)),
        4 => Just((1, 30)),
        1 => Just((3, 20)),
        1 => Just((1, 1)),
    ];
    let shares = share.clone();
    prop_oneof![
        30 => (session(), any::<u8>(), share, (any::<bool>(), any::<bool>()), 0..2_u32).prop_map(
            |(session, request, share, how, delay)| {
                Step::Acquire { names: &[0], session, request, share, how, delay }
            }
        ),
        8 => (session(), any::<u8>())
            .prop_map(|(session, request)| Step::Release { names: &[0], session, request }),
        2 => (session(), any::<u8>(), shares).prop_map(
            |(session, request, share)| Step::Convert { name: 0, session, request, share }
        ),
        1 => session().prop_map(|session| Step::Attach { name: 0, session }),
        1 => session().prop_map(|session| Step::Detach { name: 0, session }),
        1 => session().prop_map(|session| Step::Delete { name: 0, session }),
        1 => session().prop_map(Step::Expire),
        2 => session().prop_map(Step::Begin),
        1 => Just(Step::DelaysEnd),
        1 => Just(Step::Break { name: 0 }),
    ]
}

proptest! {
    #[test]
    fn locks_keep_their_invariants(steps in prop::collection::vec(step(), 1..80)) {
        run(&mut Store::new(), &steps)?;
    }

    #[test]
    fn a_crowd_keeps_them_too(steps in prop::collection::vec(crowd_step(), 40..120)) {
        let mut all: Vec<Step> = (1..=SESSIONS).map(Step::Begin).collect();
        all.extend(steps);
        run(&mut Store::new(), &all)?;
    }
}

/// Rows of a store, and how many of them were looked at.
struct Counting<'a> {
    rows: &'a MemoryRows,
    looked_at: Cell<usize>,
}

impl Counting<'_> {
    fn count(&self) {
        self.looked_at.set(self.looked_at.get() + 1);
    }
}

impl Read for Counting<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        self.count();
        self.rows.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        self.rows.scan(table, start, end, &mut |key, row| {
            self.count();
            visit(key, row)
        })
    }
}

/// How many rows a command looks at; it leaves no trace.
fn looked_at(store: &Store, command: &Command) -> usize {
    let counting = Counting { rows: &store.rows, looked_at: Cell::new(0) };
    let mut machine = Machine::load(&store.rows).expect("memory does not fail");
    let mut overlay = Overlay::new(&counting);
    let position = Position { term: 1, index: 0 };
    let applied = machine.apply(&mut overlay, position, &Caller::Inside, command);
    applied.expect("memory does not fail");
    counting.looked_at.get()
}

#[test]
fn what_is_asked_of_a_crowd_does_not_cost_its_size() {
    const CROWD: i64 = 600;
    let mut store = Store::new();
    let acquire = |session: i64, request: &str| {
        Command::Lock(LockCommand::Acquire(LockAcquire {
            names: locked(&[0, 1, 2]),
            session,
            request_id: Bytes::from(request.to_owned()),
            permits: 1,
            limit: u32::MAX,
            can_wait: true,
            ..LockAcquire::default()
        }))
    };
    for id in 1..=CROWD {
        let request_id = Bytes::from(format!("begin-{id}"));
        let begin = SessionBegin { id, ttl: 60, request_id, ..SessionBegin::default() };
        store.apply(&Command::SessionBegin(begin));
        store.apply(&acquire(id, "r"));
    }
    let release = |session: i64, request: &'static str| {
        Command::Lock(LockCommand::Release(LockRelease {
            names: locked(&[0, 1, 2]),
            session,
            request_id: request.into(),
            attempt: 0,
        }))
    };
    // Some have come and gone since.
    for id in [3, 300, CROWD] {
        store.apply(&release(id, "r"));
    }
    for command in
        [acquire(3, "new"), acquire(9, "r"), acquire(9, "s"), release(9, "none"), release(9, "r")]
    {
        let rows = looked_at(&store, &command);
        assert!(rows < 150, "{rows} rows for {command:?}");
    }
    let mut writer = acquire(3, "writer");
    if let Command::Lock(LockCommand::Acquire(acquire)) = &mut writer {
        acquire.limit = 1;
    }
    store.apply(&writer);
    let rows = looked_at(&store, &acquire(300, "behind"));
    assert!(rows < 150, "{rows} rows behind a writer");
}
