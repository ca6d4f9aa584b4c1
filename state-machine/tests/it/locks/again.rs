//! Acquisitions with numbers, against a network that loses, delays, repeats and reorders what a client sends.

use std::collections::BTreeSet;

use bytes::Bytes;
use conclave_state_machine::command::{
    Command, LockAcquire, LockBreak, LockCommand, LockRelease, Once, SessionBegin,
};
use conclave_state_machine::response::{LockResponse, LockState, Response};
use proptest::prelude::*;

use super::places;
use crate::store::Store;

const SESSION: i64 = 7;
const NAMES: [&str; 2] = ["a", "b"];
/// How far a request may be ahead of the first one that the client waits for.
const WINDOW: u64 = 128;

#[derive(Clone, Debug)]
enum Step {
    /// Sends an acquisition of a name.
    Acquire(usize),
    /// Sends one of the acquisitions, or its release, once more.
    Again(usize),
    /// Gives one of the acquisitions up, be it answered or not.
    GiveUp(usize),
    /// Something that was sent arrives, for the first time or once more.
    Arrive(usize),
    /// An operator takes a lock away from whoever has it.
    Break(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let any = || 0..1_000_usize;
    prop_oneof![
        4 => (0..NAMES.len()).prop_map(Step::Acquire),
        2 => any().prop_map(Step::Again),
        3 => any().prop_map(Step::GiveUp),
        9 => any().prop_map(Step::Arrive),
        1 => (0..NAMES.len()).prop_map(Step::Break),
    ]
}

/// One acquisition, as the client knows it.
#[derive(Debug)]
struct Acquisition {
    name: usize,
    number: u64,
    /// The number of its release, once it was given up.
    release: Option<u64>,
    /// Whether it may take nothing any more: its release arrived, or its place was taken away.
    is_over: bool,
}

impl Acquisition {
    fn id(&self) -> Bytes {
        Bytes::from(format!("request-{}", self.number))
    }
}

#[derive(Debug)]
enum Message {
    Acquire(usize, LockAcquire),
    Release(usize, LockRelease),
}

struct World {
    store: Store,
    last: u64,
    /// Requests that the client waits for.
    open: BTreeSet<u64>,
    acquisitions: Vec<Acquisition>,
    sent: Vec<Message>,
}

impl World {
    fn new() -> Self {
        let mut store = Store::new();
        let begin = SessionBegin {
            id: SESSION,
            ttl: 60,
            request_id: "begin".into(),
            ..SessionBegin::default()
        };
        store.apply(&Command::SessionBegin(begin)).outcome.expect("a session");
        Self { store, last: 0, open: BTreeSet::new(), acquisitions: Vec::new(), sent: Vec::new() }
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.open.insert(self.last);
        self.last
    }

    fn once(&self, sequence: u64, undoes: u64) -> Once {
        let settled = self.open.first().copied().unwrap_or(sequence).min(sequence);
        Once { session: SESSION, sequence, settled, undoes }
    }

    fn send(&mut self, at: usize) {
        let acquisition = &self.acquisitions[at];
        let names = vec![Bytes::from_static(NAMES[acquisition.name].as_bytes())];
        let (session, request_id, number) = (SESSION, acquisition.id(), acquisition.number);
        let message = match acquisition.release {
            Some(release) => {
                let once = self.once(release, number);
                Message::Release(at, LockRelease { names, session, request_id, attempt: 0, once })
            }
            None => {
                let once = self.once(number, 0);
                let (permits, limit, attempt) = (1, 1, self.sent.len() as u64 + 1);
                let acquire = LockAcquire { names, session, request_id, ..LockAcquire::default() };
                let how = LockAcquire { permits, limit, can_wait: true, attempt, once, ..acquire };
                Message::Acquire(at, how)
            }
        };
        self.sent.push(message);
    }

    fn apply(&mut self, command: LockCommand) -> Option<LockResponse> {
        match self.store.apply(&Command::Lock(command)).outcome {
            Ok(Response::Lock(response)) => Some(response),
            Ok(other) => panic!("{other:?}"),
            // Settled long ago.
            Err(_) => None,
        }
    }

    fn arrive(&mut self, which: usize) {
        match &self.sent[which] {
            Message::Acquire(at, acquire) => {
                let (at, acquire) = (*at, acquire.clone());
                let response = self.apply(LockCommand::Acquire(acquire)).expect("an answer");
                let LockResponse::Places { state, .. } = response else { panic!("{response:?}") };
                let Acquisition { number, release, is_over, .. } = self.acquisitions[at];
                let is_wanted = release.is_none() && !is_over;
                assert!(!is_wanted || state != LockState::Cancelled, "nobody gave {number} up");
                if release.is_none() {
                    self.open.remove(&number);
                }
            }
            Message::Release(at, release) => {
                let (at, release) = (*at, release.clone());
                let number = release.once.sequence;
                self.apply(LockCommand::Release(release));
                self.acquisitions[at].is_over = true;
                self.open.remove(&number);
            }
        }
    }

    fn has_place(&self, acquisition: &Acquisition) -> bool {
        let claims = places(&self.store, NAMES[acquisition.name]).into_iter();
        let mut claims = claims.filter_map(|place| place.claim);
        claims.any(|claim| claim.requests.contains(&acquisition.id()))
    }

    fn run(&mut self, step: &Step) {
        let of = |at: usize, all: usize| if all == 0 { None } else { Some(at % all) };
        match step {
            Step::Acquire(name) => {
                let first = self.open.first().copied();
                if first.is_none_or(|first| self.last + 1 - first < WINDOW) {
                    let number = self.number();
                    let (name, release) = (*name, None);
                    self.acquisitions.push(Acquisition { name, number, release, is_over: false });
                    self.send(self.acquisitions.len() - 1);
                }
            }
            Step::Again(at) => {
                if let Some(at) = of(*at, self.acquisitions.len()) {
                    self.send(at);
                }
            }
            Step::GiveUp(at) => {
                let Some(at) = of(*at, self.acquisitions.len()) else { return };
                if self.acquisitions[at].release.is_none() {
                    let release = self.number();
                    self.open.remove(&self.acquisitions[at].number);
                    self.acquisitions[at].release = Some(release);
                    self.send(at);
                }
            }
            Step::Arrive(which) => {
                if let Some(which) = of(*which, self.sent.len()) {
                    self.arrive(which);
                }
            }
            Step::Break(name) => {
                let held = |world: &Self, acquisition: &Acquisition| {
                    acquisition.name == *name && world.has_place(acquisition)
                };
                let before: Vec<bool> =
                    self.acquisitions.iter().map(|one| held(self, one)).collect();
                let name = NAMES[*name].into();
                self.apply(LockCommand::Break(LockBreak { name, ..LockBreak::default() }));
                for (at, had) in before.into_iter().enumerate() {
                    let is_taken = had && !self.has_place(&self.acquisitions[at]);
                    self.acquisitions[at].is_over |= is_taken;
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn what_was_given_up_never_takes_a_place_again(
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
            for acquisition in world.acquisitions.iter().filter(|one| one.is_over) {
                prop_assert!(!world.has_place(acquisition), "{acquisition:?} after {step:?}");
            }
        }
    }
}
