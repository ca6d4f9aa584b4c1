//! Invariants of the registry under random programs: the index and a view that follows events say what
//! the keys say.

use std::collections::BTreeSet;

use bytes::Bytes;
use conclave_state_machine::command::{
    CheckResult, Command, Configure, DeleteRange, Deregister, InstanceUpdate, LeaseExpire,
    LeaseGrant, LeaseRevoke, Put, Range, Register, RegistryCommand, Settle, SettleItem, Settlement,
};
use conclave_state_machine::read::Table;
use conclave_state_machine::registry::index::{self, Entry};
use conclave_state_machine::registry::record::{Check, Health, Record, State};
use conclave_state_machine::registry::view::{Delta, KeyChange, View};
use conclave_state_machine::registry::{self, span};
use conclave_state_machine::response::{Event, RegistryResponse, Response};
use proptest::prelude::*;

use crate::store::Store;

pub(crate) const SERVICES: [&str; 2] = ["s", "s/t"];
const SESSIONS: i64 = 4;
/// The check of some instances that has a name.
const NAMED: &str = "live";
/// What clients of etcd's API say, whether they should or not.
const PUT: [&str; 4] = [
    "text",
    r#"{"Op":0,"Addr":"go:1","Metadata":null}"#,
    r#"{"Op":0,"Addr":"go:1","Instance":{"conclave":{"lost_ms":1,"is_damped":true}}}"#,
    r#"{"Op":0,"Addr":"go:1","Instance":{"state":"draining","conclave":{"drain_ms":1,"health":"critical"}}}"#,
];
pub(crate) const NO_FAILURE: &str = "memory does not fail";

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Grant(i64),
    Register {
        service: usize,
        id: u8,
        session: i64,
        check: u64,
        health: Health,
    },
    Update {
        service: usize,
        id: u8,
        drain_ms: u64,
        health: Health,
    },
    Checked {
        service: usize,
        id: u8,
        is_named: bool,
        health: Health,
    },
    Deregister {
        service: usize,
        id: u8,
    },
    /// By a client of etcd's API.
    Put {
        service: usize,
        id: u8,
        session: i64,
        value: usize,
    },
    Delete(usize),
    Expire(Vec<i64>),
    Revoke(i64),
    /// Whatever is due.
    Settle(Settlement),
    Configure {
        service: usize,
        is_guarded: bool,
    },
}

fn health() -> impl Strategy<Value = Health> {
    prop_oneof![
        Just(Health::Passing),
        Just(Health::Unknown),
        Just(Health::Warning),
        Just(Health::Critical)
    ]
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let place = || (0..SERVICES.len(), 0..8_u8);
    let session = || 1..=SESSIONS;
    let settlement = prop_oneof![
        Just(Settlement::Undamp),
        Just(Settlement::DropLost),
        Just(Settlement::RemoveCritical),
        Just(Settlement::RemoveDrained),
    ];
    prop_oneof![
        4 => session().prop_map(Step::Grant),
        12 => (place(), session(), 0..3_u64, health()).prop_map(
            |((service, id), session, check, health)| Step::Register {
                service, id, session, check, health,
            }
        ),
        3 => (place(), 0..2_u64, health()).prop_map(|((service, id), drain_ms, health)| {
            Step::Update { service, id, drain_ms, health }
        }),
        4 => (place(), any::<bool>(), health()).prop_map(
            |((service, id), is_named, health)| Step::Checked { service, id, is_named, health }
        ),
        2 => place().prop_map(|(service, id)| Step::Deregister { service, id }),
        2 => (place(), 0..=SESSIONS, 0..PUT.len()).prop_map(
            |((service, id), session, value)| Step::Put { service, id, session, value }
        ),
        1 => (0..SERVICES.len()).prop_map(Step::Delete),
        4 => prop::collection::vec(session(), 1..4).prop_map(Step::Expire),
        1 => session().prop_map(Step::Revoke),
        3 => settlement.prop_map(Step::Settle),
        1 => (0..SERVICES.len(), any::<bool>())
            .prop_map(|(service, is_guarded)| Step::Configure { service, is_guarded }),
    ]
}

pub(crate) fn service(number: usize) -> Bytes {
    Bytes::from_static(SERVICES[number].as_bytes())
}

fn name(id: u8) -> String {
    format!("i{id}")
}

fn record(id: u8, check: u64, health: Health) -> Record {
    let mut record = Record::new(format!("h:{id}"));
    let check = Check { remove_after_ms: check - check.min(1), ..Check::default() };
    record.details.check =
        (check.remove_after_ms > 0 || health == Health::Warning).then_some(check);
    record.details.health = health;
    if id.is_multiple_of(2) {
        let named = Check { remove_after_ms: u64::from(id), ..Check::default() };
        record.details.checks.insert(NAMED.to_owned(), named);
    }
    record
}

pub(crate) fn command(store: &Store, step: &Step, now_ms: i64) -> Command {
    foreign(step, now_ms).unwrap_or_else(|| Command::Registry(native(store, step, now_ms)))
}

/// What clients of etcd's API, and the end of sessions, do.
fn foreign(step: &Step, now_ms: i64) -> Option<Command> {
    Some(match step {
        Step::Grant(id) => Command::LeaseGrant(LeaseGrant { id: *id, ttl: 10 }),
        Step::Put { service: number, id, session, value } => {
            let value = PUT[*value];
            let key = registry::key(&service(*number), &name(*id));
            let lease = *session;
            Command::Put(Put { key, value: value.into(), lease, ..Put::default() })
        }
        Step::Delete(number) => {
            let (key, range_end) = span(&service(*number));
            Command::DeleteRange(DeleteRange { key, range_end, prev_kv: false })
        }
        Step::Expire(ids) => {
            let (ids, is_guarded) = (ids.clone(), true);
            let expire = LeaseExpire { term: 1, ids, now_ms, is_guarded, ..LeaseExpire::default() };
            Command::LeaseExpire(LeaseExpire { is_damping: true, ..expire })
        }
        Step::Revoke(id) => Command::LeaseRevoke(LeaseRevoke { id: *id }),
        _ => return None,
    })
}

fn native(store: &Store, step: &Step, now_ms: i64) -> RegistryCommand {
    let is_damping = true;
    match step {
        Step::Register { service: number, id, session, check, health } => {
            RegistryCommand::Register(Register {
                service: service(*number),
                id: name(*id),
                session: *session,
                record: record(*id, *check, *health).encode().into(),
                now_ms,
                is_damping,
                ..Register::default()
            })
        }
        Step::Update { service: number, id, drain_ms, health } => {
            RegistryCommand::Update(InstanceUpdate {
                service: service(*number),
                id: name(*id),
                state: Some(if *drain_ms > 0 { State::Draining } else { State::Up }),
                drain_ms: Some(*drain_ms),
                health: Some((*health, String::new())),
                now_ms,
                is_damping,
                ..InstanceUpdate::default()
            })
        }
        Step::Checked { service: number, id, is_named, health } => {
            let view = view(store, *number);
            RegistryCommand::Checked(CheckResult {
                service: service(*number),
                id: name(*id),
                fence: view.get(&name(*id)).map_or(0, |shown| shown.fence),
                check: if *is_named { NAMED.to_owned() } else { String::new() },
                health: *health,
                now_ms,
                is_damping,
                ..CheckResult::default()
            })
        }
        Step::Deregister { service: number, id } => RegistryCommand::Deregister(Deregister {
            service: service(*number),
            id: name(*id),
            ..Deregister::default()
        }),
        Step::Settle(what) => {
            RegistryCommand::Settle(Settle { term: 1, now_ms, items: due(store, *what) })
        }
        Step::Configure { service: number, is_guarded } => RegistryCommand::Configure(Configure {
            service: service(*number),
            is_guarded: Some(*is_guarded),
            is_damped: None,
        }),
        _ => unreachable!("`foreign` takes all others"),
    }
}

fn view(store: &Store, number: usize) -> View {
    let (key, range_end) = span(&service(number));
    let range = Range { key, range_end, ..Range::default() };
    View::load(service(number), store.range(&range).expect("the current revision is there").kvs)
}

/// What is due of this kind; settling it must do something.
fn due(store: &Store, what: Settlement) -> Vec<SettleItem> {
    let (due, _) = index::due(&store.rows, b"", 1_000).expect(NO_FAILURE);
    let mut items = Vec::new();
    for (Entry { service, id, .. }, dues) in due {
        for found in dues.iter().filter(|due| due.what == what) {
            let (service, id, stamp) = (service.clone(), id.clone(), found.stamp);
            items.push(SettleItem { service, id, stamp, what });
        }
    }
    items
}

/// Follows events as a watcher does, revision by revision; what they mean.
fn follow(view: &mut View, events: &[Event]) -> Vec<Delta> {
    let mut deltas = Vec::new();
    for events in events.chunk_by(|one, next| one.kv.mod_revision == next.kv.mod_revision) {
        for delta in view.step(events.iter().map(KeyChange::from)) {
            assert!(delta.before.is_some() || delta.after.is_some());
            deltas.push(delta);
        }
    }
    deltas
}

/// What events mean to whoever knows only the instances that they speak of.
fn learn(store: &Store, number: usize, events: &[Event]) -> Vec<Delta> {
    let Some(first) = events.first() else { return Vec::new() };
    let revision = first.kv.mod_revision - 1;
    let read = |key: &Bytes| {
        let range = Range { key: key.clone(), revision, ..Range::default() };
        store.range(&range).map(|found| found.kvs.into_iter().next())
    };
    let mut view = View::before(service(number), events, read).expect("nothing is compacted");
    follow(&mut view, events)
}

fn check(store: &Store, views: &[View]) {
    let mut expected: BTreeSet<(Bytes, String, bool)> = BTreeSet::new();
    for (number, followed) in views.iter().enumerate() {
        let stored = view(store, number);
        let lost = stored.all().filter(|shown| shown.record.is_stale()).count();
        let live = stored.all().count() - lost;
        assert!(followed.all().eq(stored.all()), "a view that follows is a view that reads");
        let row = index::service(&store.rows, &service(number)).expect(NO_FAILURE);
        assert_eq!(row.live, live as u64, "of {}", SERVICES[number]);
        assert_eq!(row.lost, lost as u64, "nobody lives and is kept");
        for (place, shown) in stored.all().enumerate() {
            let after = stored.after(Some(&shown.record.id));
            assert!(after.eq(stored.all().skip(place + 1)), "pages fit together");
            let has_check = shown.record.details.all_checks().next().is_some();
            if has_check && !shown.record.is_stale() {
                expected.insert((service(number), shown.record.id.clone(), false));
            }
        }
    }
    let (checks, _) = index::checks(&store.rows, b"", 1_000).expect(NO_FAILURE);
    let checks: BTreeSet<_> =
        checks.into_iter().map(|entry| (entry.service, entry.id, entry.is_lost)).collect();
    assert_eq!(checks, expected);
}

proptest! {
    #[test]
    fn index_and_views_say_what_the_keys_say(steps in prop::collection::vec(step(), 1..80)) {
        let mut store = Store::new();
        let mut views: Vec<View> = (0..SERVICES.len()).map(|n| View::new(service(n))).collect();
        let mut deltas = vec![Vec::new(); SERVICES.len()];
        for (now_ms, step) in (1_000..).step_by(3_000).zip(&steps) {
            let command = command(&store, step, now_ms);
            let applied = store.apply(&command);
            if let (Command::Registry(RegistryCommand::Settle(settle)), Ok(answer)) =
                (&command, &applied.outcome)
            {
                // Two checks may ask for the removal of the same instance.
                let places = settle.items.iter().map(|item| (&item.service, &item.id));
                let done = places.collect::<BTreeSet<_>>().len();
                prop_assert_eq!(answer, &Response::Registry(RegistryResponse::Settled { done }));
            }
            for (view, deltas) in views.iter_mut().zip(&mut deltas) {
                deltas.extend(follow(view, &applied.events));
            }
            check(&store, &views);
        }
        let (last, middle) = (store.head().revision, store.head().revision / 2);
        let pieces = [store.history(1, middle), store.history(middle + 1, last)];
        for (number, deltas) in deltas.iter().enumerate() {
            let learned = pieces.each_ref().map(|events| learn(&store, number, events)).concat();
            prop_assert_eq!(&learned, deltas);
        }
        // In the end nothing is left of it.
        let ids: Vec<i64> = (1..=SESSIONS).collect();
        store.apply(&Command::LeaseExpire(LeaseExpire { term: 1, ids, ..LeaseExpire::default() }));
        for number in 0..SERVICES.len() {
            store.apply(&command(&store, &Step::Delete(number), 0));
            let switch = Step::Configure { service: number, is_guarded: true };
            store.apply(&command(&store, &switch, 0));
        }
        let (flapping, _) = index::flapping(&store.rows, b"", 1_000).expect(NO_FAILURE);
        let items = flapping.into_iter().map(|(Entry { service, id, .. }, _)| {
            SettleItem { service, id, stamp: 0, what: Settlement::Forget }
        });
        let settle = Settle { term: 1, now_ms: i64::MAX, items: items.collect() };
        store.apply(&Command::Registry(RegistryCommand::Settle(settle)));
        prop_assert_eq!(store.rows.rows(Table::Instance).count(), 0);
    }
}
