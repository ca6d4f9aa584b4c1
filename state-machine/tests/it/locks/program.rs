//! Random programs: what many do with a few locks, or a crowd with one.

use bytes::Bytes;
use conclave_state_machine::command::{
    Campaign, Command, Compare, CompareResult, CompareTarget, DeleteRange, HandOver, LeaseExpire,
    LeaseRevoke, Leave, LockAcquire, LockBreak, LockCommand, LockConvert, LockRelease, Put,
    SessionBegin, Txn, TxnOp,
};
use conclave_state_machine::locks::queue;
use proptest::prelude::*;

use super::places;
use crate::store::Store;

pub(super) const NAMES: [&str; 3] = ["a", "a/b", "c"];
/// What one request locks, as indices.
pub(super) const TOGETHER: [&[usize]; 6] = [&[0], &[1], &[2], &[0, 1], &[1, 2], &[0, 1, 2]];
pub(super) const SHARES: [(u32, u32); 4] = [(1, 1), (1, u32::MAX), (1, 2), (2, 3)];
pub(super) const SESSIONS: i64 = 4;
/// A child of every name that never is a place.
pub(super) const LATE: &str = "late";

#[derive(Clone, Debug)]
pub(super) enum Step {
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

pub(super) fn step() -> impl Strategy<Value = Step> {
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

pub(super) fn request_id(session: i64, request: u8) -> Bytes {
    Bytes::from(format!("{session}-{request}"))
}

pub(super) fn locked(names: &[usize]) -> Vec<Bytes> {
    names.iter().map(|at| Bytes::from_static(NAMES[*at].as_bytes())).collect()
}

/// When a step is taken.
pub(super) fn unix_ms(number: usize) -> i64 {
    1_000 + i64::try_from(number).expect("few steps")
}

pub(super) fn command(step: &Step, number: usize) -> Option<LockCommand> {
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
                asked_ms: unix_ms(number),
                ..LockAcquire::default()
            })
        }
        Step::Release { names, session, request } => LockCommand::Release(LockRelease {
            names: locked(names),
            session: *session,
            request_id: request_id(*session, *request),
            ..LockRelease::default()
        }),
        Step::Convert { name, session, request, share } => LockCommand::Convert(LockConvert {
            name: NAMES[*name].into(),
            session: *session,
            request_id: request_id(*session, *request),
            permits: share.0,
            limit: share.1,
            ..LockConvert::default()
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
            LockCommand::Break(LockBreak { name: NAMES[*name].into(), ..LockBreak::default() })
        }
        _ => return None,
    })
}

/// Everything that a step does.
pub(super) fn commands(store: &Store, step: &Step, number: usize) -> Vec<Command> {
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
pub(super) fn recipe(key: Bytes, lease: i64) -> Txn {
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

pub(super) fn leases(store: &Store) -> Vec<i64> {
    let leases = conclave_state_machine::leases::all(&store.rows).expect("memory does not fail");
    leases.into_iter().map(|(id, _)| id).collect()
}

/// What keeps one lock in the hands of many.
pub(super) fn crowd_step() -> impl Strategy<Value = Step> {
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
