//! The instances of one service at a revision, and what each revision changes.
//!
//! A snapshot is the result of all changes before it: a watcher that starts from one and applies
//! the following changes has the same state as one that applied all changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::record::Record;
use super::{LOST, Name, span};
use crate::live::{self, Values};
use crate::locks::queue::NEWEST;
use crate::read::Read;
use crate::response::{Event, EventKind, Halt, KeyValue};
use crate::span::Span;

/// An instance as it is shown to clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// The decoded record.
    pub record: Record,
    /// The record as stored, without the marker of a lost one.
    pub value: Bytes,
    /// Create revision of the key: larger for each new registration of this id.
    pub fence: i64,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Lease that it is attached to; 0 for none.
    pub session: i64,
}

/// What a revision did to one instance; at least one of the two is `Some`.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Id of the instance.
    pub id: String,
    /// How it was shown before.
    pub before: Option<Arc<Shown>>,
    /// How it is shown now.
    pub after: Option<Arc<Shown>>,
}

/// A change of a key: its new state, or its deletion.
#[derive(Clone, Debug)]
pub enum KeyChange {
    /// The key was written.
    Put(KeyValue),
    /// The key was deleted.
    Delete(Bytes),
}

impl From<&Event> for KeyChange {
    fn from(event: &Event) -> KeyChange {
        match event.kind {
            EventKind::Put => KeyChange::Put(event.kv.clone()),
            EventKind::Delete => KeyChange::Delete(Bytes::clone(&event.kv.key)),
        }
    }
}

/// The instances of a service.
#[derive(Clone, Debug)]
pub struct View {
    service: Bytes,
    live: BTreeMap<String, Arc<Shown>>,
    /// Lost instances that are kept; a registered one with the same id takes precedence.
    lost: BTreeMap<String, Arc<Shown>>,
}

impl View {
    /// A view without instances.
    #[must_use]
    pub fn new(service: Bytes) -> View {
        View { service, live: BTreeMap::new(), lost: BTreeMap::new() }
    }

    /// A view of all instances, from the keys of [`span`].
    #[must_use]
    pub fn load(service: Bytes, kvs: impl IntoIterator<Item = KeyValue>) -> View {
        let mut view = View::new(service);
        for kv in kvs {
            view.apply(KeyChange::Put(kv));
        }
        view
    }

    /// A view of only those instances that the events concern, as they were before the first event:
    /// applying the events to it gives the same deltas as applying them to the whole view. `read`
    /// reads a key as it was at that time.
    ///
    /// # Errors
    /// Any error of `read`.
    pub fn before<E>(
        service: Bytes,
        events: &[Event],
        mut read: impl FnMut(&Bytes) -> Result<Option<KeyValue>, E>,
    ) -> Result<View, E> {
        let mut states: BTreeMap<Bytes, Option<KeyValue>> = BTreeMap::new();
        for event in events {
            let key = Bytes::clone(&event.kv.key);
            states.entry(key).or_insert_with(|| event.prev_kv.clone());
        }
        // An instance is shown from one of its two keys, depending on whether the other exists, so
        // both are needed.
        let twins: Vec<Bytes> =
            states.keys().filter_map(|key| Name::of(key).map(Name::twin)).collect();
        for twin in twins {
            if let Entry::Vacant(unknown) = states.entry(twin) {
                let state = read(unknown.key())?;
                unknown.insert(state);
            }
        }
        Ok(View::load(service, states.into_values().flatten()))
    }

    /// Returns an instance by its id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Shown>> {
        self.live.get(id).or_else(|| self.lost.get(id))
    }

    /// All instances, by id.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Shown>> {
        self.after(None)
    }

    /// Instances with ids after this one, by id; all for `None`.
    pub fn after(&self, id: Option<&str>) -> impl Iterator<Item = &Arc<Shown>> {
        let ids = (id.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut live = self.live.range::<str, _>(ids).peekable();
        let mut lost = self.lost.range::<str, _>(ids).peekable();
        std::iter::from_fn(move || {
            let is_live = match (live.peek(), lost.peek()) {
                (Some((live, _)), Some((lost, _))) => live <= lost,
                (live, _) => live.is_some(),
            };
            let next = if is_live { live.next() } else { lost.next() };
            let (id, shown) = next?;
            if is_live {
                lost.next_if(|(other, _)| *other == id);
            }
            Some(shown)
        })
    }

    /// Applies all changes of one revision to the service's keys. Returns the changed instances, by
    /// id.
    pub fn step(&mut self, changes: impl IntoIterator<Item = KeyChange>) -> Vec<Delta> {
        let mut before: BTreeMap<String, Option<Arc<Shown>>> = BTreeMap::new();
        for change in changes {
            if let Some(id) = self.id_of(&change) {
                let shown = self.get(&id).map(Arc::clone);
                before.entry(id).or_insert(shown);
            }
            self.apply(change);
        }
        let deltas = before.into_iter().map(|(id, before)| {
            let after = self.get(&id).map(Arc::clone);
            Delta { id, before, after }
        });
        deltas.filter(|delta| delta.before != delta.after).collect()
    }

    fn id_of(&self, change: &KeyChange) -> Option<String> {
        let key = match change {
            KeyChange::Put(kv) => &kv.key,
            KeyChange::Delete(key) => key,
        };
        self.name(key).map(|name| name.id.to_owned())
    }

    fn name<'k>(&self, key: &'k [u8]) -> Option<Name<'k>> {
        Name::of(key).filter(|name| name.service == self.service)
    }

    fn apply(&mut self, change: KeyChange) {
        let (key, kv) = match change {
            KeyChange::Put(kv) => (Bytes::clone(&kv.key), Some(kv)),
            KeyChange::Delete(key) => (key, None),
        };
        let Some(name) = self.name(&key) else { return };
        let shown = kv.and_then(|kv| shown(name, &kv));
        let (id, is_lost) = (name.id.to_owned(), name.is_lost);
        let instances = if is_lost { &mut self.lost } else { &mut self.live };
        match shown {
            Some(shown) => _ = instances.insert(id, Arc::new(shown)),
            // Also if the value is not an instance.
            None => _ = instances.remove(&id),
        }
    }
}

fn shown(name: Name<'_>, kv: &KeyValue) -> Option<Shown> {
    // Values in another form than Go's, but with the same contents, count here, too.
    let record = if name.is_lost {
        Record::decode_lost(name.id, &kv.value)?
    } else {
        Record::decode(name.id, &kv.value)?
    };
    let value = if name.is_lost { record.encode().into() } else { Bytes::clone(&kv.value) };
    let (fence, mod_revision, session) = (kv.create_revision, kv.mod_revision, kv.lease);
    Some(Shown { record, value, fence, mod_revision, session })
}

/// Ids of the first `limit` lost instances of a service that are kept.
pub(super) fn lost_ids<R: Read>(
    rows: &R,
    service: &[u8],
    limit: usize,
) -> Result<Vec<String>, Halt> {
    let start = [service, LOST].concat();
    let (_, end) = span(service);
    let mut ids = Vec::new();
    let span = Span::Keys { start: &start, end: Some(&end) };
    live::visit(rows, NEWEST, span, Values::Ignored, &mut |found| match Name::of(found.key) {
        Some(name) if name.is_lost && name.service == service && ids.len() < limit => {
            ids.push(name.id.to_owned());
            Ok(ControlFlow::Continue(()))
        }
        _ => Ok(ControlFlow::Break(())),
    })?;
    Ok(ids)
}
