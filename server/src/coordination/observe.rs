//! Streams every leader of an election from a revision on: the queue at that revision, then its
//! changes.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::mvccpb::{Event, event::EventType};
use conclave_proto::v1;
use conclave_raft_store::Reader;
use conclave_raft_store::store::ReadError;
use conclave_state_machine::command::{Caller, Range};
use conclave_state_machine::locks::check;
use conclave_state_machine::locks::queue::{self, Place};
use conclave_state_machine::response::{KeyValue, Rejection};
use futures::stream::{self, Stream};
use tonic::Status;

use super::turns::Admitted;
use crate::api::context::Context;
use crate::api::kv::off_thread;
use crate::auth::RightsCheck;
use crate::status::{self, Fault};
use crate::watch::LocalWatch;

/// Most candidates that one observer keeps in memory.
const CANDIDATES_MAX: usize = 10_000;

/// A stream of leaders.
pub(super) type Leaders = Pin<Box<dyn Stream<Item = Result<v1::ObserveResponse, Status>> + Send>>;

/// Observes from a revision on, or from now if it is 0.
pub(super) async fn start(
    context: &Context,
    caller: Caller,
    request: v1::ObserveRequest,
) -> Result<Leaders, Status> {
    let v1::ObserveRequest { name, start_revision } = request;
    check::name(&name).map_err(|rejection| status::from_rejection(&rejection))?;
    if start_revision < 0 {
        return Err(Status::invalid_argument("conclave: revisions are positive"));
    }
    let admitted = context.node.turns().admit();
    let _admitted = admitted.map_err(|_too_many| Status::from(Fault::TooManyRequests))?;
    context.read_barrier().await?;
    let wanted = RightsCheck::queue(&name);
    context.auth.check(&caller, &wanted)?;
    let reader = context.node.reader().clone();
    let mut candidates = Candidates::new(name);
    let found = off_thread(move || {
        let at = candidates.begin(&reader, start_revision)?;
        Ok((candidates, at))
    });
    let (candidates, at) = found.await?.map_err(|error: ReadError| status::from_read(&error))?;
    if candidates.places.len() > CANDIDATES_MAX {
        return Err(too_many());
    }
    let mut watch = LocalWatch::open(context.node.watch());
    let Range { key, range_end, .. } = candidates.range();
    let start_revision = at + 1;
    watch.add(etcd::WatchCreateRequest { key, range_end, start_revision, ..Default::default() });
    let auth = Arc::clone(&context.auth);
    let context = context.clone();
    let (told, due) = (candidates.leader(), VecDeque::new());
    let mut observer = Observer { context, candidates, watch, told, due, _admitted };
    observer.tell(at);
    let leaders = stream::try_unfold(observer, async |mut observer: Observer| {
        let next = observer.next().await?;
        Ok(Some((next, observer)))
    });
    Ok(auth.guard(caller, wanted, Box::pin(leaders)))
}

fn too_many() -> Status {
    Status::resource_exhausted("conclave: too many candidates")
}

/// A place in the queue.
struct Standing {
    fence: i64,
    session: i64,
    mod_revision: i64,
    version: i64,
    value: Bytes,
}

impl From<KeyValue> for Standing {
    fn from(kv: KeyValue) -> Self {
        let KeyValue { create_revision: fence, mod_revision, version, lease, value, .. } = kv;
        Self { fence, session: lease, mod_revision, version, value }
    }
}

/// Whether a key is a place: it has had a lease since its creation. If that is not known any more,
/// it counts as one.
fn is_candidate(reader: &Reader, name: &[u8], kv: &KeyValue) -> Result<bool, ReadError> {
    if kv.version == 1 {
        return Ok(true);
    }
    match was_created_with_lease(reader, kv)? {
        Some(is_place) => Ok(is_place),
        None => Ok(!is_known_as_none(reader, name, kv)?),
    }
}

/// Whether a key that still exists with the same lease is known to be no place, as a key that got
/// its lease later.
fn is_known_as_none(reader: &Reader, name: &[u8], kv: &KeyValue) -> Result<bool, ReadError> {
    let key = Bytes::clone(&kv.key);
    let (now, _) = reader.range(&Range { key, ..Range::default() })?;
    let lives = |now: &KeyValue| now.create_revision == kv.create_revision && now.lease == kv.lease;
    Ok(now.kvs.first().is_some_and(lives) && !queue::is_place(reader, name, &kv.key)?)
}

/// Whether a key has had a lease since its creation; `None` if that revision is compacted.
fn was_created_with_lease(reader: &Reader, kv: &KeyValue) -> Result<Option<bool>, ReadError> {
    let (key, revision) = (Bytes::clone(&kv.key), kv.create_revision);
    match reader.range(&Range { key, revision, ..Range::default() }) {
        Ok((found, _)) => Ok(found.kvs.first().map(|first| first.lease != 0)),
        Err(ReadError::Rejected(Rejection::Compacted)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All places of one name.
struct Candidates {
    name: Bytes,
    places: BTreeMap<Bytes, Standing>,
}

impl Candidates {
    fn new(name: Bytes) -> Self {
        Self { name, places: BTreeMap::new() }
    }

    /// The range of all keys that may be places.
    fn range(&self) -> Range {
        let key = Bytes::from([&self.name, &b"/"[..]].concat());
        let range_end = Bytes::from([&self.name, &b"0"[..]].concat());
        Range { key, range_end, ..Range::default() }
    }

    /// Loads the queue at a revision, 0 for now; returns that revision.
    fn begin(&mut self, reader: &Reader, at: i64) -> Result<i64, ReadError> {
        // One more than is kept, so that too many are noticed.
        let limit = CANDIDATES_MAX + 1;
        if at == 0 {
            let (places, at) = reader.places(&self.name, limit)?;
            for Place { key, fence, mod_revision, version, session, value, .. } in places {
                self.put(key, Standing { fence, session, mod_revision, version, value });
            }
            return Ok(at);
        }
        // The store's index has current places only; places of older revisions are found by their
        // keys.
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (found, _) = reader.range(&Range { revision: at, limit, ..self.range() })?;
        for kv in found.kvs {
            if is_candidate(reader, &self.name, &kv)? {
                self.put(kv.key.clone(), Standing::from(kv));
            }
        }
        Ok(at)
    }

    fn put(&mut self, key: Bytes, place: Standing) {
        if queue::name_of(&key) == Some(&self.name[..]) && place.session != 0 {
            self.places.insert(key, place);
        }
    }

    fn take(&mut self, event: Event) {
        let is_put = event.r#type() == EventType::Put;
        let Some(kv) = event.kv else { return };
        if !is_put || kv.lease == 0 {
            self.places.remove(&kv.key);
            return;
        }
        // A key that got its lease later is no place.
        if kv.create_revision == kv.mod_revision || self.places.contains_key(&kv.key) {
            let place = Standing {
                fence: kv.create_revision,
                session: kv.lease,
                mod_revision: kv.mod_revision,
                version: kv.version,
                value: kv.value,
            };
            self.put(kv.key, place);
        }
    }

    fn first(&self) -> Option<(&Bytes, &Standing)> {
        self.places.iter().min_by_key(|(_, place)| place.fence)
    }

    fn leader(&self) -> Option<v1::Leader> {
        let (key, first) = self.first()?;
        let Standing { fence, session, value, .. } = first;
        let (key, value) = (Bytes::clone(key), Bytes::clone(value));
        Some(v1::Leader { key, fence: *fence, session: *session, value })
    }
}

struct Observer {
    context: Context,
    candidates: Candidates,
    watch: LocalWatch,
    told: Option<v1::Leader>,
    /// Seen but not yet yielded.
    due: VecDeque<v1::ObserveResponse>,
    _admitted: Admitted,
}

impl Observer {
    async fn next(&mut self) -> Result<v1::ObserveResponse, Status> {
        loop {
            if let Some(next) = self.due.pop_front() {
                return Ok(next);
            }
            let seen = self.watch.next().await.map_err(status::from_watch_end)?;
            if seen.compact_revision != 0 {
                return Err(Fault::Compacted.into());
            }
            self.take(seen.events);
            if self.candidates.places.len() > CANDIDATES_MAX {
                return Err(too_many());
            }
        }
    }

    /// Applies events; all changes of one revision are one step.
    fn take(&mut self, events: Vec<Event>) {
        let revision_of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let mut events = events.into_iter().peekable();
        while let Some(event) = events.next() {
            let revision = revision_of(&event);
            self.candidates.take(event);
            if events.peek().is_some_and(|next| revision_of(next) == revision) {
                continue;
            }
            let leader = self.candidates.leader();
            if leader != self.told {
                self.told = leader;
                self.tell(revision);
            }
        }
    }

    /// Queues a message that says who leads.
    fn tell(&mut self, revision: i64) {
        let key = self.candidates.first().map(|(_, first)| (first.mod_revision, first.version));
        let (mod_revision, version) = key.unwrap_or_default();
        let (leader, header) = (self.told.clone(), Some(self.context.header(revision)));
        let next = v1::ObserveResponse { leader, revision, header, mod_revision, version };
        self.due.push_back(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_proto::mvccpb::KeyValue;

    fn event(kind: EventType, key: &'static str, created: i64, revision: i64) -> Event {
        let kv = KeyValue {
            key: key.into(),
            create_revision: created,
            mod_revision: revision,
            lease: 7,
            ..Default::default()
        };
        Event { r#type: kind as i32, kv: Some(kv), prev_kv: None }
    }

    #[test]
    fn the_oldest_candidate_leads() {
        let mut candidates = Candidates::new("boss".into());
        for key in ["boss/1", "boss/deep/1", "boss2/1"] {
            candidates.take(event(EventType::Put, key, 5, 5));
        }
        candidates.take(event(EventType::Put, "boss/2", 6, 6));
        candidates.take(event(EventType::Put, "boss/late", 2, 7));
        assert_eq!(candidates.places.len(), 2);
        assert_eq!(candidates.leader().unwrap().fence, 5);
        candidates.take(event(EventType::Delete, "boss/1", 0, 8));
        assert_eq!(candidates.leader().unwrap().key, "boss/2");
        let mut detached = event(EventType::Put, "boss/2", 6, 9);
        detached.kv.as_mut().unwrap().lease = 0;
        candidates.take(detached);
        assert_eq!(candidates.leader(), None);
    }
}
