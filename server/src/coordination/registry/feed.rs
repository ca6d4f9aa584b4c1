//! One view of each watched service, for all who watch it on this member.
//!
//! A feed follows the keys of its service by one local watch, whatever the number of watchers; what a
//! revision changes is worked out once, and turned into bytes once for all who watch without a filter.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use conclave_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use conclave_proto::mvccpb::{self, event::EventType};
use conclave_raft_store::Reader;
use conclave_raft_store::store::ReadError;
use conclave_state_machine::command::Range;
use conclave_state_machine::registry::view::{Delta, KeyChange, View};
use conclave_state_machine::registry::{key, lost_key, span};
use conclave_state_machine::response::{Cause, KeyValue};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::watch::encoded;
use crate::api::context::Context;
use crate::api::kv::off_thread;
use crate::status;
use crate::watch::LocalWatch;

/// Services that are watched on one member.
const FEEDS_MAX: usize = 10_000;
/// Steps that a watcher may be behind before it starts over with a snapshot.
const STEPS_MAX: usize = 1_024;
/// Clients that watch on one member.
const WATCHERS_MAX: usize = 100_000;

/// One change of one instance, and why it went.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) delta: Delta,
    /// `None` if nothing was deleted, or nobody knows any more.
    pub(super) cause: Option<Cause>,
}

/// What one revision changed.
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
        self.encoded.get_or_init(|| encoded::step(self, &super::show::Filter::default()))
    }
}

/// What a new watcher begins with.
pub(super) struct Subscription {
    /// Copied by the feed only if it changes while somebody holds it.
    pub(super) view: Arc<View>,
    pub(super) revision: i64,
    pub(super) steps: broadcast::Receiver<Arc<Step>>,
}

/// The feeds of one member, for as long as somebody holds them.
pub(super) struct Feeds {
    slots: Mutex<HashMap<Bytes, Weak<Slot>>>,
    watchers: Arc<Semaphore>,
}

impl Default for Feeds {
    fn default() -> Self {
        Self { slots: Mutex::default(), watchers: Arc::new(Semaphore::new(WATCHERS_MAX)) }
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
        slot.feed.get_or_try_init(|| Feed::open(context, Bytes::clone(service))).await?;
        Ok(slot)
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
        let Some(sender) = &state.steps else {
            return Err(Status::unavailable("conclave: the watch of the service ended"));
        };
        let (view, revision) = (Arc::clone(&state.view), state.revision);
        Ok(Subscription { view, revision, steps: sender.subscribe() })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a feed is used before it is open")]
struct NotOpen;

struct State {
    view: Arc<View>,
    revision: i64,
    /// `None` once the task has ended.
    steps: Option<broadcast::Sender<Arc<Step>>>,
}

/// One service that is followed.
struct Feed {
    state: Arc<Mutex<State>>,
    task: AbortOnDropHandle<()>,
}

impl Feed {
    async fn open(context: &Context, service: Bytes) -> Result<Self, Status> {
        let reader = context.node.reader().clone();
        let (view, revision) = view_at(&reader, &service, 0).await?;
        let mut watch = LocalWatch::open(context.node.watch());
        let (key, range_end) = span(&service);
        let start_revision = revision + 1;
        watch.add(WatchCreateRequest { key, range_end, start_revision, ..Default::default() });
        let (steps, _) = broadcast::channel(STEPS_MAX);
        let view = Arc::new(view);
        let state = Arc::new(Mutex::new(State { view, revision, steps: Some(steps) }));
        let follower = Follower { state: Arc::clone(&state), service, reader, watch };
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run()));
        Ok(Self { state, task })
    }
}

/// The instances of a service as of a revision; 0 for the current one, which is returned.
pub(super) async fn view_at(
    reader: &Reader,
    service: &Bytes,
    at: i64,
) -> Result<(View, i64), Status> {
    let (key, range_end) = span(service);
    let range = Range { key, range_end, revision: at, ..Range::default() };
    let (reader, service) = (reader.clone(), Bytes::clone(service));
    let load = move || {
        let (found, current) = reader.range(&range)?;
        Ok((View::load(service, found.kvs), if at == 0 { current } else { at }))
    };
    off_thread(load).await?.map_err(|error: ReadError| status::from_read(&error))
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
            let causes = causes(&self.reader, &self.service, (revision, &changes)).await;
            let mut state = self.state.lock();
            let view = Arc::make_mut(&mut state.view);
            let step = Arc::new(step(view, (revision, &self.service), changes, &causes));
            state.revision = revision;
            if !step.changes.is_empty()
                && let Some(steps) = &state.steps
            {
                // Nobody may be there just now.
                steps.send(step).ok();
            }
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

/// Why keys of a service were deleted at a revision. Nothing if none was, or if that is compacted.
pub(super) async fn causes(
    reader: &Reader,
    service: &Bytes,
    (revision, changes): (i64, &[KeyChange]),
) -> Causes {
    if !changes.iter().any(|change| matches!(change, KeyChange::Delete(_))) {
        return Causes::new();
    }
    let (reader, (start, _)) = (reader.clone(), span(service));
    let found = off_thread(move || reader.causes(revision, &start)).await;
    let found = found.and_then(|found| found.map_err(|error| status::from_read(&error)));
    let unknown = |status: Status| {
        // That it is gone is known still.
        tracing::debug!(error = status.message(), "why instances went is not known");
        Vec::new()
    };
    found.unwrap_or_else(unknown).into_iter().collect()
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
