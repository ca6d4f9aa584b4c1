//! A server made of the model, with a switch for every bug that the checkers have to find.

use conclave_jepsen_tests::history::{
    Compare, Event, History, KeyValue, Nanos, Operand, Operation, Outcome, Range, Relation,
    Request, Response, Revision, Txn, WatchNews, WatchResponse, WatchSession,
};
use conclave_jepsen_tests::model::{EMPTY_REVISION, State};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const CLIENTS: u32 = 4;
const OPERATIONS_PER_CLIENT: usize = 60;
const KEYS: usize = 5;

/// What the simulated server does wrong, once, in the middle of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// Acknowledges a write, then forgets it; its revision is given to the next write.
    LoseWrite,
    /// Answers a linearizable read from a state before the last writes.
    StaleRead,
    /// Answers with old data under the current revision.
    OldDataNewHeader,
    /// Applies a request of unknown outcome twice.
    ApplyTwice,
    /// Applies a request it refused.
    ApplyRefused,
    /// Starts over from an older state and revision.
    RevisionBack,
    /// Applies half a transaction.
    HalfTransaction,
}

/// A history and the plain facts behind it.
pub(crate) struct Simulation {
    pub(crate) history: History,
    /// Changes by revision, with previous values and the moment they happened.
    pub(crate) log: Vec<(Revision, Nanos, Vec<Event>)>,
}

struct Planned {
    client: u32,
    start: Nanos,
    point: Nanos,
    end: Nanos,
    request: Request,
}

/// Runs the simulated server with one bug.
pub(crate) fn simulate(seed: u64, bug: Bug) -> Simulation {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut planned = plan(&mut rng);
    planned.sort_by_key(|planned| planned.point);
    let mut server = Server {
        state: State::default(),
        revision: EMPTY_REVISION,
        old: Vec::new(),
        log: Vec::new(),
        bug: Some(bug),
        trigger: planned.len() / 2,
    };
    let mut operations = Vec::new();
    for (step, planned) in planned.into_iter().enumerate() {
        let outcome = server.handle(step, &planned, &mut rng);
        let Planned { client, start, end, request, .. } = planned;
        operations.push(Operation { client, session: 0, node: 0, start, end, request, outcome });
    }
    assert!(bug == Bug::None || server.bug.is_none(), "the bug {bug:?} was never triggered");
    let sessions = sessions(&server.log, &mut rng);
    Simulation { history: History { operations, sessions }, log: server.log }
}

fn plan(rng: &mut StdRng) -> Vec<Planned> {
    let mut planned = Vec::new();
    for client in 0..CLIENTS {
        let mut now: Nanos = 0;
        for number in 0..OPERATIONS_PER_CLIENT {
            let start = now + rng.random_range(1..50);
            let point = start + rng.random_range(1..200);
            let end = point + rng.random_range(1..50);
            let request = request(rng, &format!("{client}-{number}"));
            planned.push(Planned { client, start, point, end, request });
            now = end;
        }
    }
    planned
}

fn key(rng: &mut StdRng) -> String {
    format!("k{}", rng.random_range(0..KEYS))
}

fn request(rng: &mut StdRng, unique: &str) -> Request {
    let put = |rng: &mut StdRng, tag: &str| Request::Put {
        key: key(rng),
        value: format!("{unique}{tag}"),
    };
    match rng.random_range(0..10) {
        0..4 => put(rng, ""),
        4 => Request::Delete { start: key(rng), end: String::new() },
        5 => Request::Delete { start: key(rng), end: "k3".into() },
        6..8 => Request::Range(Range {
            start: "k".into(),
            end: "l".into(),
            revision: 0,
            limit: 0,
            serializable: false,
        }),
        _ => {
            let compare = Compare {
                key: key(rng),
                relation: Relation::Less,
                operand: Operand::Version(rng.random_range(0..4)),
            };
            let read = Range {
                start: key(rng),
                end: String::new(),
                revision: 0,
                limit: 0,
                serializable: false,
            };
            let one = Request::Put { key: "k0".into(), value: format!("{unique}a") };
            let two = Request::Put { key: "k1".into(), value: format!("{unique}b") };
            Request::Txn(Txn {
                compares: vec![compare],
                success: vec![one, two],
                failure: vec![Request::Range(read)],
            })
        }
    }
}

struct Server {
    state: State,
    revision: Revision,
    /// Earlier states.
    old: Vec<(Revision, State)>,
    log: Vec<(Revision, Nanos, Vec<Event>)>,
    bug: Option<Bug>,
    trigger: usize,
}

impl Server {
    fn handle(&mut self, step: usize, planned: &Planned, rng: &mut StdRng) -> Outcome {
        if step >= self.trigger
            && let Some(outcome) = self.misbehave(planned)
        {
            return outcome;
        }
        match rng.random_range(0..20) {
            0 => Outcome::Unknown("lost before it arrived".into()),
            1 => {
                self.apply(planned);
                Outcome::Unknown("lost answer".into())
            }
            2 => Outcome::Failed("refused".into()),
            _ => self.apply(planned),
        }
    }

    fn apply(&mut self, planned: &Planned) -> Outcome {
        let effect = self.state.preview(&planned.request, self.revision + 1);
        if !effect.events.is_empty() {
            self.old.push((self.revision, self.state.clone()));
            self.state.apply(&planned.request, self.revision + 1);
            self.revision += 1;
            self.log.push((self.revision, planned.point, effect.events));
        }
        Outcome::Ok { revision: self.revision, response: effect.response }
    }

    /// Does the bug if this request allows it.
    fn misbehave(&mut self, planned: &Planned) -> Option<Outcome> {
        let writes = !self.state.preview(&planned.request, 0).events.is_empty();
        let is_put = matches!(planned.request, Request::Put { .. });
        let outcome = match self.bug? {
            Bug::LoseWrite if writes => {
                let (revision, state) = (self.revision, self.state.clone());
                let outcome = self.apply(planned);
                self.log.pop();
                (self.revision, self.state) = (revision, state);
                outcome
            }
            Bug::StaleRead if matches!(planned.request, Request::Range(_)) => {
                let (revision, mut state) = self.old[self.old.len() - 20].clone();
                Outcome::Ok { revision, response: state.apply(&planned.request, 0).response }
            }
            Bug::OldDataNewHeader if matches!(planned.request, Request::Range(_)) => {
                let (_, mut state) = self.old[self.old.len() - 20].clone();
                Outcome::Ok {
                    revision: self.revision,
                    response: state.apply(&planned.request, 0).response,
                }
            }
            Bug::ApplyTwice if is_put => {
                self.apply(planned);
                self.apply(planned);
                Outcome::Unknown("lost answer".into())
            }
            Bug::ApplyRefused if is_put => {
                self.apply(planned);
                Outcome::Failed("refused".into())
            }
            Bug::RevisionBack => {
                let (revision, state) = self.old[self.old.len() - 20].clone();
                self.log.retain(|(logged, _, _)| *logged <= revision);
                (self.revision, self.state) = (revision, state);
                self.apply(planned)
            }
            Bug::HalfTransaction if writes && matches!(planned.request, Request::Txn(_)) => {
                let whole = self.state.preview(&planned.request, self.revision + 1);
                self.state.follow(&whole.events[..1]);
                self.revision += 1;
                self.log.push((self.revision, planned.point, whole.events[..1].to_vec()));
                Outcome::Ok { revision: self.revision, response: whole.response }
            }
            _ => return None,
        };
        self.bug = None;
        Some(outcome)
    }
}

/// Watchers of everything and of single keys, from the start and from the middle.
fn sessions(log: &[(Revision, Nanos, Vec<Event>)], rng: &mut StdRng) -> Vec<WatchSession> {
    let middle = log[log.len() / 2].0;
    let mut sessions =
        vec![session(0, ("\0", "\0"), 1, log, rng), session(1, ("\0", "\0"), middle, log, rng)];
    for index in 0..KEYS {
        let id = 2 + index as u32;
        sessions.push(session(id, (&format!("k{index}"), ""), 1, log, rng));
    }
    sessions
}

fn session(
    watcher: u32,
    (start, end): (&str, &str),
    from: Revision,
    log: &[(Revision, Nanos, Vec<Event>)],
    rng: &mut StdRng,
) -> WatchSession {
    let mut session = WatchSession {
        watcher,
        node: 0,
        start: start.into(),
        end: end.into(),
        from,
        with_previous: watcher != 1,
        no_puts: false,
        no_deletes: false,
        responses: vec![WatchResponse {
            time: 0,
            revision: EMPTY_REVISION,
            news: WatchNews::Created,
        }],
    };
    let mut batch: Vec<Event> = Vec::new();
    for (revision, at, events) in log.iter().filter(|(revision, _, _)| *revision >= from) {
        let wanted = events.iter().filter(|event| session.wants(event)).cloned();
        batch.extend(wanted.map(|event| if session.with_previous { event } else { event.bare() }));
        let news = match rng.random_range(0..4) {
            0 => continue,
            1 if batch.is_empty() => WatchNews::Progress,
            _ if batch.is_empty() => continue,
            _ => WatchNews::Events(std::mem::take(&mut batch)),
        };
        session.responses.push(WatchResponse { time: at + 1, revision: *revision, news });
    }
    if let (Some((revision, at, _)), false) = (log.last(), batch.is_empty()) {
        let news = WatchNews::Events(batch);
        session.responses.push(WatchResponse { time: at + 1, revision: *revision, news });
    }
    session
}

/// An earlier value of a key, for spoiling events.
pub(crate) fn stranger(kv: &KeyValue) -> KeyValue {
    KeyValue { value: "nobody wrote this".into(), ..kv.clone() }
}

/// Whether an answer shows more than a revision.
pub(crate) fn tells_keys(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Ok { response: Response::Range { kvs, .. }, .. } if !kvs.is_empty())
}
