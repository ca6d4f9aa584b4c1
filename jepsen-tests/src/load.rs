//! Clients that read and write a few keys, pinned to one member or roaming, and record what they got.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use conclave_benches::connection::Connection;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::history::{
    Compare, Nanos, Operand, Operation, Outcome, Range, Relation, Request, Response, Revision, Txn,
};
use crate::wire;

/// All keys of the load lie in `[KEYS_START, KEYS_END)`.
pub const KEYS_START: &str = "k";
/// End of the keys.
pub const KEYS_END: &str = "l";
/// How many keys there are: few, so that clients meet.
pub const KEY_COUNT: usize = 10;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Reads of the past reach back this many revisions.
const PAST_REVISIONS: Revision = 200;

/// The name of key `index`.
#[must_use]
pub fn key_name(index: usize) -> String {
    format!("{KEYS_START}{index}")
}

/// What all clients and watchers of a run share.
#[derive(Debug)]
pub struct Stage {
    /// Client endpoints of the members.
    pub endpoints: Vec<String>,
    /// Zero of all times in the history.
    pub clock: Instant,
    /// Set when clients should finish.
    pub is_over: AtomicBool,
    /// The newest revision anybody saw.
    pub newest: AtomicI64,
    /// Requests that were answered.
    pub answered: AtomicUsize,
    /// Patience with one request.
    pub request_timeout: Duration,
    /// Mean pause of one client between requests.
    pub pause: Duration,
}

impl Stage {
    /// Time since the start of the run.
    #[must_use]
    pub fn now(&self) -> Nanos {
        Nanos::try_from(self.clock.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }
}

/// One client: one request at a time.
pub struct Client {
    stage: Arc<Stage>,
    id: u32,
    session: u32,
    node: usize,
    is_roaming: bool,
    kv: Option<KvClient<Connection>>,
    rng: StdRng,
    written: u64,
    /// The last mod revision this client saw of each key, for compares that often hold.
    seen: [Revision; KEY_COUNT],
    operations: Vec<Operation>,
}

impl Client {
    /// A client that begins at member `node` and stays there unless it is roaming.
    #[must_use]
    pub fn new(stage: Arc<Stage>, id: u32, node: usize, is_roaming: bool, seed: u64) -> Self {
        Self {
            stage,
            id,
            session: 0,
            node,
            is_roaming,
            kv: None,
            rng: StdRng::seed_from_u64(seed),
            written: 0,
            seen: [0; KEY_COUNT],
            operations: Vec::new(),
        }
    }

    /// Sends random requests until the run is over; gives what it recorded.
    pub async fn run(mut self) -> Vec<Operation> {
        while !self.stage.is_over.load(Ordering::Relaxed) {
            let request = self.request();
            if self.perform(request).await.is_none() {
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
            let pause = self.stage.pause.mul_f64(self.rng.random_range(0.0..2.0));
            tokio::time::sleep(pause).await;
        }
        self.operations
    }

    /// Sends one request and records it; `None` if there was no connection to send it on.
    pub async fn perform(&mut self, request: Request) -> Option<Outcome> {
        let Some(mut kv) = self.connected().await else {
            self.leave();
            return None;
        };
        let start = self.stage.now();
        let answer =
            tokio::time::timeout(self.stage.request_timeout, wire::send(&mut kv, &request)).await;
        let end = self.stage.now();
        let outcome = match answer {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(status)) => wire::failure(&status),
            Err(_) => Outcome::Unknown("no answer in time".into()),
        };
        let (client, session, node) = (self.id, self.session, self.node);
        match &outcome {
            Outcome::Ok { revision, response } => {
                self.stage.newest.fetch_max(*revision, Ordering::Relaxed);
                self.stage.answered.fetch_add(1, Ordering::Relaxed);
                self.learn(response);
            }
            Outcome::Failed(_) => {}
            Outcome::Unknown(_) => self.leave(),
        }
        let recorded = outcome.clone();
        self.operations.push(Operation {
            client,
            session,
            node,
            start,
            end,
            request,
            outcome: recorded,
        });
        Some(outcome)
    }

    /// What the client recorded.
    #[must_use]
    pub fn into_operations(self) -> Vec<Operation> {
        self.operations
    }

    async fn connected(&mut self) -> Option<KvClient<Connection>> {
        if let Some(kv) = &self.kv {
            return Some(kv.clone());
        }
        let endpoint = self.stage.endpoints[self.node].clone();
        let connection =
            tokio::time::timeout(CONNECT_TIMEOUT, Connection::open(&endpoint)).await.ok()?.ok()?;
        self.session += 1;
        let origin = connection.origin();
        let kv = KvClient::with_origin(connection, origin);
        self.kv = Some(kv.clone());
        Some(kv)
    }

    /// Gives the connection up; a roaming client goes to another member.
    fn leave(&mut self) {
        self.kv = None;
        if self.is_roaming {
            self.node = (self.node + 1) % self.stage.endpoints.len();
        }
    }

    fn learn(&mut self, response: &Response) {
        match response {
            Response::Range { kvs, .. } => {
                for kv in kvs {
                    if let Some(index) = (0..KEY_COUNT).find(|&index| key_name(index) == kv.key) {
                        self.seen[index] = kv.modified;
                    }
                }
            }
            Response::Txn { responses, .. } => {
                responses.iter().for_each(|response| self.learn(response))
            }
            Response::Put { .. } | Response::Delete { .. } => {}
        }
    }

    fn request(&mut self) -> Request {
        let (start, end) = (key_name(self.key()), String::new());
        match self.rng.random_range(0..100) {
            0..28 => self.put(),
            28..34 => Request::Delete { start, end },
            34..37 => Request::Delete { start, end: KEYS_END.into() },
            37..58 => self.read(start, end, 0, false),
            58..66 => self.read(KEYS_START.into(), KEYS_END.into(), 0, false),
            66..74 => self.read(KEYS_START.into(), KEYS_END.into(), 0, true),
            74..78 => {
                let newest = self.stage.newest.load(Ordering::Relaxed);
                let revision = (newest - self.rng.random_range(0..PAST_REVISIONS)).max(1);
                self.read(KEYS_START.into(), KEYS_END.into(), revision, false)
            }
            78..90 => self.update(),
            _ => self.nested(),
        }
    }

    fn key(&mut self) -> usize {
        self.rng.random_range(0..KEY_COUNT)
    }

    fn put(&mut self) -> Request {
        let key = key_name(self.key());
        self.put_of(key)
    }

    fn put_of(&mut self, key: String) -> Request {
        self.written += 1;
        Request::Put { key, value: format!("c{}-{}", self.id, self.written) }
    }

    fn read(
        &mut self,
        start: String,
        end: String,
        revision: Revision,
        serializable: bool,
    ) -> Request {
        let limit = if self.rng.random_range(0..4) == 0 { 3 } else { 0 };
        Request::Range(Range { start, end, revision, limit, serializable })
    }

    fn read_all(&mut self) -> Request {
        self.read(KEYS_START.into(), KEYS_END.into(), 0, false)
    }

    /// Kubernetes' update: put if unchanged since last seen, else get.
    fn update(&mut self) -> Request {
        let index = self.key();
        let key = key_name(index);
        let compare = Compare {
            key: key.clone(),
            relation: Relation::Equal,
            operand: Operand::Modified(self.seen[index]),
        };
        let success = vec![self.put_of(key.clone())];
        let failure = vec![self.read(key, String::new(), 0, false)];
        Request::Txn(Txn { compares: vec![compare], success, failure })
    }

    /// Several changes at one revision, reads among them, a transaction inside.
    fn nested(&mut self) -> Request {
        let first = self.key();
        let other = |step: usize| key_name((first + step) % KEY_COUNT);
        let relation = if self.rng.random() { Relation::Greater } else { Relation::Less };
        let compare =
            |key: String, bound: i64| Compare { key, relation, operand: Operand::Version(bound) };
        let inner = Txn {
            compares: vec![compare(other(0), 2)],
            success: vec![self.put_of(other(2)), self.read_all()],
            failure: vec![Request::Delete { start: other(3), end: String::new() }],
        };
        let success = vec![
            self.put_of(other(0)),
            Request::Delete { start: other(1), end: String::new() },
            self.read_all(),
            Request::Txn(inner),
        ];
        let failure = vec![self.read_all(), self.put_of(other(4))];
        Request::Txn(Txn { compares: vec![compare(other(5), 1)], success, failure })
    }
}
