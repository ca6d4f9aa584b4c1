//! Watchers that follow the load through every fault, resume where they were cut off, and record each session.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use conclave_benches::connection::Connection;
use conclave_proto::etcdserverpb::watch_client::WatchClient;
use conclave_proto::etcdserverpb::{WatchRequest, WatchResponse as Answer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::history::{Event, Revision, WatchNews, WatchResponse, WatchSession};
use crate::load::{KEY_COUNT, KEYS_END, KEYS_START, Stage, key_name};
use crate::watch_check::resume_revision;
use crate::wire;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// Events arrive within this time of a healthy member, or the watcher tries anew (its node may be frozen).
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How a watcher behaves when it is not cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Stays on its member and resumes there.
    Pinned,
    /// Changes members every few seconds and resumes.
    Roaming,
    /// Every session begins at a random revision, mostly past, sometimes future.
    Wandering,
}

/// One logical watcher.
pub struct Watcher {
    stage: Arc<Stage>,
    habit: Habit,
    asks_progress: bool,
    template: WatchSession,
    rng: StdRng,
    /// The next revision the watcher would deliver: what the end of the run waits for.
    next: Arc<AtomicI64>,
    sessions: Vec<WatchSession>,
}

impl Watcher {
    /// Watcher `id` of a run: the first few see everything, the others a key or a part, with various options.
    #[must_use]
    pub fn new(stage: Arc<Stage>, id: u32, habit: Habit, asks_progress: bool, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let members = stage.endpoints.len();
        let everything = (id as usize) < members || habit == Habit::Wandering;
        let (start, end) = match id % 3 {
            _ if everything => ("\0".to_owned(), "\0".to_owned()),
            0 => (key_name(rng.random_range(0..KEY_COUNT)), String::new()),
            1 => (key_name(3), key_name(7)),
            _ => (KEYS_START.to_owned(), KEYS_END.to_owned()),
        };
        let filter = if everything { 0 } else { rng.random_range(0..4) };
        let template = WatchSession {
            watcher: id,
            node: id as usize % members,
            start,
            end,
            from: 1,
            with_previous: rng.random(),
            no_puts: filter == 1,
            no_deletes: filter == 2,
            responses: Vec::new(),
        };
        let next = Arc::new(AtomicI64::new(1));
        Self { stage, habit, asks_progress, template, rng, next, sessions: Vec::new() }
    }

    /// The next revision to be delivered, and what is watched.
    #[must_use]
    pub fn position(&self) -> (Arc<AtomicI64>, WatchSession) {
        (self.next.clone(), self.template.clone())
    }

    /// Whether the run should wait for it to see everything.
    #[must_use]
    pub fn must_finish(&self) -> bool {
        self.habit != Habit::Wandering
    }

    /// Watches until told to stop; gives the recorded sessions.
    pub async fn run(mut self, mut stop: tokio::sync::watch::Receiver<bool>) -> Vec<WatchSession> {
        let mut from = 1;
        loop {
            // Dropping a session at the end of the run loses nothing: what it received is recorded already.
            let began = tokio::select! {
                began = self.session(from) => began,
                _ = stop.wait_for(|stop| *stop) => return self.sessions,
            };
            match began {
                Some(index) => from = resume_revision(&self.sessions[index]).unwrap_or(from),
                None => tokio::time::sleep(RECONNECT_PAUSE).await,
            }
            self.move_on(&mut from);
        }
    }

    fn move_on(&mut self, from: &mut Revision) {
        if self.habit != Habit::Pinned {
            self.template.node = (self.template.node + 1) % self.stage.endpoints.len();
        }
        if self.habit == Habit::Wandering {
            let newest = self.stage.newest.load(Ordering::Relaxed);
            *from = self.rng.random_range(1..=newest + 20);
        }
    }

    /// Runs one session to its end; gives its place in the record, `None` if it never began.
    async fn session(&mut self, from: Revision) -> Option<usize> {
        let session = WatchSession { from, ..self.template.clone() };
        let endpoint = self.stage.endpoints[session.node].clone();
        let connection =
            tokio::time::timeout(CONNECT_TIMEOUT, Connection::open(&endpoint)).await.ok()?.ok()?;
        let (requests, receiver) = mpsc::channel(4);
        requests.send(wire::watch_request(&session)).await.ok()?;
        let origin = connection.origin();
        let mut client = WatchClient::with_origin(connection, origin);
        let opening =
            tokio::time::timeout(SILENCE_MAX, client.watch(ReceiverStream::new(receiver)));
        let mut answers = opening.await.ok()?.ok()?.into_inner();
        let index = self.sessions.len();
        self.sessions.push(session);
        let until = Instant::now() + self.patience();
        while let Some(answer) = self.next_answer(&requests, &mut answers, until).await {
            let response = WatchResponse {
                time: self.stage.now(),
                revision: answer.header.map_or(0, |header| header.revision),
                news: wire::watch_news(&answer),
            };
            let is_over = matches!(response.news, WatchNews::Canceled { .. });
            self.next.fetch_max(delivered_up_to(&response) + 1, Ordering::Relaxed);
            self.sessions[index].responses.push(response);
            if is_over {
                break;
            }
        }
        Some(index)
    }

    fn patience(&mut self) -> Duration {
        match self.habit {
            Habit::Pinned => Duration::from_secs(3600),
            Habit::Roaming => Duration::from_millis(self.rng.random_range(500..5000)),
            Habit::Wandering => Duration::from_millis(self.rng.random_range(200..2000)),
        }
    }

    /// The next answer; `None` when the stream or the watcher's patience has ended.
    async fn next_answer(
        &self,
        requests: &mpsc::Sender<WatchRequest>,
        answers: &mut Streaming<Answer>,
        until: Instant,
    ) -> Option<Answer> {
        let silent_until = Instant::now() + SILENCE_MAX;
        loop {
            let deadline = until.min(silent_until).min(Instant::now() + PROGRESS_INTERVAL);
            match tokio::time::timeout_at(deadline, answers.message()).await {
                Ok(answer) => return answer.ok().flatten(),
                Err(_) if Instant::now() >= until.min(silent_until) => return None,
                Err(_) if self.asks_progress => requests.try_send(wire::progress_request()).ok()?,
                Err(_) => {}
            }
        }
    }
}

/// The revision up to which a response says everything was delivered.
fn delivered_up_to(response: &WatchResponse) -> Revision {
    match &response.news {
        WatchNews::Events(events) => events.last().map_or(0, Event::revision),
        WatchNews::Progress => response.revision,
        WatchNews::Created | WatchNews::Canceled { .. } => 0,
    }
}
