//! One view of each watched service, for all who watch it on this member.
//!
//! A feed follows the keys of its service by one local watch, whatever the number of watchers; what a
//! revision changes is worked out once, and turned into bytes once for all who watch without a filter.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use bytes::Bytes;
use conclave_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use conclave_proto::mvccpb::{self, event::EventType};
use conclave_raft_store::Reader;
use conclave_raft_store::store::ReadError;
use conclave_state_machine::command::Range;
use conclave_state_machine::registry::coalesce::Change;
use conclave_state_machine::registry::view::{Delta, KeyChange, View};
use conclave_state_machine::registry::{key, lost_key, span};
use conclave_state_machine::response::{Cause, KeyValue};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::encoded;
use super::history::History;
use super::ring::Ring;
use super::window::{LARGE, Steps};
use crate::api::context::Context;
use crate::api::kv::off_thread;
use crate::status;
use crate::watch::LocalWatch;

/// Services that are watched on one member.
const FEEDS_MAX: usize = 10_000;
/// Clients that watch on one member.
const WATCHERS_MAX: usize = 100_000;
/// Reads for watchers that run at the same time: one may take as much memory as a service does.
const READS_MAX: usize = 4;

/// What one revision changed, or several in a row up to it.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) revision: i64,
    pub(super) changes: Vec<Change>,
    encoded: OnceLock<Vec<Bytes>>,
}

impl Step {
    pub(super) fn new(revision: i64, changes: Vec<Change>) -> Self {
        Self { revision, changes, encoded: OnceLock::new() }
    }

    /// As messages for those who watch without a filter.
    pub(super) fn messages(&self) -> &[Bytes] {
        self.encoded.get_or_init(|| encoded::step(self))
    }
}

/// What a new watcher begins with.
pub(super) struct Subscription {
    /// Goes when the service changes: nobody but the feed keeps a view, however slowly its client reads.
    pub(super) view: Weak<View>,
    pub(super) revision: i64,
    pub(super) steps: Steps,
}

/// The feeds of one member, for as long as somebody holds them.
pub(super) struct Feeds {
    slots: Mutex<HashMap<Bytes, Weak<Slot>>>,
    watchers: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    /// What watchers missed that resume.
    pub(super) history: History,
}

impl Default for Feeds {
    fn default() -> Self {
        let [watchers, reads] =
            [WATCHERS_MAX, READS_MAX].map(|most| Arc::new(Semaphore::new(most)));
        Self { slots: Mutex::default(), watchers, reads, history: History::default() }
    }
}

/// A feed that is being opened, or is open.
#[derive(Default)]
pub(super) struct Slot {
    feed: OnceCell<Feed>,
}

impl Feeds {
    /// Lets one more client watch.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit, Status> {
        let watchers = Arc::clone(&self.watchers);
        let too_many = |_| Status::resource_exhausted("conclave: too many clients watch services");
        watchers.try_acquire_owned().map_err(too_many)
    }

    /// The feed of a service.
    pub(super) async fn open(
        &self,
        context: &Context,
        service: &Bytes,
    ) -> Result<Arc<Slot>, Status> {
        let slot = self.slot(service)?;
        slot.feed.get_or_try_init(|| Feed::open(self, context, Bytes::clone(service))).await?;
        Ok(slot)
    }

    /// Runs `read`, which may block, when it is its turn.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = Arc::clone(&self.reads).acquire_owned().await;
        let turn = turn.expect("invariant: nobody closes it");
        let in_turn = move || {
            let found = read();
            // Not before: the read goes on if nobody waits for it any more.
            drop(turn);
            found
        };
        off_thread(in_turn).await?.map_err(|error| status::from_read(&error))
    }

    fn slot(&self, service: &Bytes) -> Result<Arc<Slot>, Status> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(service).and_then(Weak::upgrade)
            && !slot.is_over()
        {
            return Ok(slot);
        }
        if slots.len() >= FEEDS_MAX {
            slots.retain(|_, slot| slot.strong_count() > 0);
            if slots.len() >= FEEDS_MAX {
                return Err(Status::resource_exhausted("conclave: too many services are watched"));
            }
        }
        let slot = Arc::new(Slot::default());
        slots.insert(Bytes::clone(service), Arc::downgrade(&slot));
        Ok(slot)
    }
}

impl Slot {
    fn is_over(&self) -> bool {
        self.feed.get().is_some_and(|feed| feed.task.is_finished())
    }

    /// The view as of now, and all steps after it.
    pub(super) fn subscribe(&self) -> Result<Subscription, Status> {
        let feed = self.feed.get().ok_or_else(|| status::internal(&NotOpen))?;
        let state = feed.state.lock();
        let Some(steps) = &state.steps else {
            return Err(Status::unavailable("conclave: the watch of the service ended"));
        };
        let (view, revision) = (Arc::downgrade(&state.view), state.revision);
        Ok(Subscription { view, revision, steps: steps.subscribe() })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a feed is used before it is open")]
struct NotOpen;

struct State {
    view: Arc<View>,
    revision: i64,
    /// `None` once the task has ended.
    steps: Option<Ring>,
}

impl State {
    /// Applies what a revision changed, and tells it.
    fn advance(&mut self, at: (i64, &Bytes), changes: Vec<KeyChange>, causes: &Causes) {
        // Copied only while somebody makes a message of it at this moment.
        let step = Arc::new(step(Arc::make_mut(&mut self.view), at, changes, causes));
        self.revision = at.0;
        if !step.changes.is_empty()
            && let Some(steps) = &mut self.steps
        {
            steps.send(step, self.view.all().nth(LARGE - 1).is_some());
        }
    }
}

/// One service that is followed.
struct Feed {
    state: Arc<Mutex<State>>,
    task: AbortOnDropHandle<()>,
}

impl Feed {
    async fn open(feeds: &Feeds, context: &Context, service: Bytes) -> Result<Self, Status> {
        let reader = context.node.reader().clone();
        let view = view_now(reader.clone(), Bytes::clone(&service));
        let (view, revision) = feeds.read(view).await?;
        let mut watch = LocalWatch::open(context.node.watch());
        let (key, range_end) = span(&service);
        let start_revision = revision + 1;
        watch.add(WatchCreateRequest { key, range_end, start_revision, ..Default::default() });
        let view = Arc::new(view);
        let state =
            Arc::new(Mutex::new(State { view, revision, steps: Some(Ring::new(Instant::now())) }));
        let follower = Follower { state: Arc::clone(&state), service, reader, watch };
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run()));
        Ok(Self { state, task })
    }
}

/// Reads the instances of a service, and the revision as of which they are so.
fn view_now(
    reader: Reader,
    service: Bytes,
) -> impl FnOnce() -> Result<(View, i64), ReadError> + Send + 'static {
    move || {
        let (key, range_end) = span(&service);
        let (found, current) = reader.range(&Range { key, range_end, ..Range::default() })?;
        Ok((View::load(service, found.kvs), current))
    }
}

/// The task behind a feed.
struct Follower {
    state: Arc<Mutex<State>>,
    service: Bytes,
    reader: Reader,
    watch: LocalWatch,
}

impl Follower {
    /// Runs until the watch ends: then its watchers are told to begin again, here or elsewhere.
    async fn run(mut self) {
        loop {
            match self.watch.next().await {
                Ok(answer) if answer.compact_revision == 0 => {
                    self.take(answer).await;
                    continue;
                }
                Ok(_) => tracing::debug!("the watch of a service is compacted"),
                Err(error) => tracing::debug!(?error, "the watch of a service ended"),
            }
            self.state.lock().steps = None;
            return;
        }
    }

    async fn take(&mut self, answer: WatchResponse) {
        for (revision, changes) in revisions(answer.events) {
            let (reader, service) = (self.reader.clone(), Bytes::clone(&self.service));
            let causes = match has_causes(&changes) {
                true => off_thread(move || causes(&reader, &service, revision)).await,
                false => Ok(Causes::new()),
            };
            // Without a thread to look they are not known: the runtime ends.
            let causes = causes.unwrap_or_default();
            self.state.lock().advance((revision, &self.service), changes, &causes);
        }
    }
}

/// Events by revision, which are in order.
fn revisions(events: Vec<mvccpb::Event>) -> Vec<(i64, Vec<KeyChange>)> {
    let mut revisions: Vec<(i64, Vec<KeyChange>)> = Vec::new();
    for event in events {
        let is_put = event.r#type() == EventType::Put;
        let Some(kv) = event.kv else { continue };
        let revision = kv.mod_revision;
        let change = if is_put { KeyChange::Put(stored(kv)) } else { KeyChange::Delete(kv.key) };
        match revisions.last_mut() {
            Some((last, changes)) if *last == revision => changes.push(change),
            _ => revisions.push((revision, vec![change])),
        }
    }
    revisions
}

fn stored(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// Why keys were deleted.
pub(super) type Causes = HashMap<Bytes, Cause>;

/// Whether something was deleted, so that there are causes.
pub(super) fn has_causes(changes: &[KeyChange]) -> bool {
    changes.iter().any(|change| matches!(change, KeyChange::Delete(_)))
}

/// Why keys of a service were deleted at a revision. Nothing if that is compacted. Blocks.
pub(super) fn causes(reader: &Reader, service: &Bytes, revision: i64) -> Causes {
    let (start, _) = span(service);
    let unknown = |error: ReadError| {
        // That it is gone is known still.
        tracing::debug!(%error, "why instances went is not known");
        Vec::new()
    };
    reader.causes(revision, &start).unwrap_or_else(unknown).into_iter().collect()
}

/// Applies the changes of one revision to a view.
pub(super) fn step(
    view: &mut View,
    (revision, service): (i64, &Bytes),
    changes: Vec<KeyChange>,
    causes: &Causes,
) -> Step {
    let change = |delta: Delta| {
        let cause = causes.get(&key(service, &delta.id));
        let cause = cause.or_else(|| causes.get(&lost_key(service, &delta.id))).copied();
        Change { delta, cause }
    };
    Step::new(revision, view.step(changes).into_iter().map(change).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use parking_lot::Condvar;

    use super::*;

    fn put(revision: i64) -> KeyChange {
        let (key, value) = ("api/a".into(), r#"{"Op":0,"Addr":"h:1","Metadata":null}"#.into());
        KeyChange::Put(KeyValue { key, value, mod_revision: revision, ..KeyValue::default() })
    }

    #[tokio::test]
    async fn who_reads_slowly_keeps_no_view() {
        let service = Bytes::from_static(b"api");
        let view = Arc::new(View::new(Bytes::clone(&service)));
        let state = State { view, revision: 1, steps: Some(Ring::new(Instant::now())) };
        let state = Arc::new(Mutex::new(state));
        let task = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
        let slot =
            Slot { feed: OnceCell::new_with(Some(Feed { state: Arc::clone(&state), task })) };
        let mut slow = Vec::new();
        for revision in 2..100 {
            slow.push(slot.subscribe().unwrap());
            let changes = vec![put(revision)];
            state.lock().advance((revision, &service), changes, &Causes::new());
        }
        assert!(slow.iter().all(|slow| slow.view.upgrade().is_none()));
        let now = slot.subscribe().unwrap();
        assert_eq!((now.revision, now.view.upgrade().unwrap().all().count()), (99, 1));
        assert_eq!(slow[0].steps.told.len(), 98, "what follows is told to all of them");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn few_read_at_the_same_time() {
        let feeds = Arc::new(Feeds::default());
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let crowd = (0..64).map(|_| {
            let (feeds, gate) = (Arc::clone(&feeds), Arc::clone(&gate));
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            let read = move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let mut is_open = gate.0.lock();
                while !*is_open {
                    gate.1.wait(&mut is_open);
                }
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            };
            tokio::spawn(async move { feeds.read(read).await })
        });
        let crowd: Vec<_> = crowd.collect();
        let full = async {
            while running.load(Ordering::SeqCst) < READS_MAX {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), full).await.expect("as many as may read do");
        *gate.0.lock() = true;
        gate.1.notify_all();
        for read in crowd {
            read.await.unwrap().unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), READS_MAX);
    }
}
