//! A store in memory: every event, and how much of the past is readable.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::etcdserverpb::ResponseHeader;
use conclave_raft_store::EventSpan;
use conclave_state_machine::response::{Event, EventKind, Halt, KeyValue};
use parking_lot::Mutex;

use crate::watch::Source;

const KEYS: [&str; 4] = ["a", "ab", "b", "c"];

/// The store of the model: every event, and how much of the past is readable.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) events: Vec<Event>,
    revision: i64,
    compacted: i64,
    live: BTreeMap<Bytes, KeyValue>,
}

impl Store {
    pub(super) fn new() -> Arc<Self> {
        let inner = Inner { revision: 1, compacted: -1, ..Inner::default() };
        Arc::new(Store { inner: Mutex::new(inner) })
    }

    /// One more revision that puts or deletes the keys of `mask`.
    pub(super) fn write(&self, mask: u8) -> Vec<Event> {
        let mut inner = self.inner.lock();
        inner.revision += 1;
        let revision = inner.revision;
        let mut events = Vec::new();
        for (bit, key) in KEYS.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0) {
            let key = Bytes::from_static(key.as_bytes());
            let prev_kv = inner.live.get(&key).cloned();
            let is_delete = mask & (1 << (4 + bit)) != 0 && prev_kv.is_some();
            let mut kv =
                KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
            if is_delete {
                inner.live.remove(&key);
            } else {
                kv.value = Bytes::from(vec![b'v'; usize::from(mask)]);
                kv.version = prev_kv.as_ref().map_or(1, |prev| prev.version + 1);
                kv.create_revision = prev_kv.as_ref().map_or(revision, |p| p.create_revision);
                inner.live.insert(key, kv.clone());
            }
            let kind = if is_delete { EventKind::Delete } else { EventKind::Put };
            events.push(Event { kind, kv, prev_kv });
        }
        inner.events.extend(events.iter().cloned());
        events
    }

    pub(super) fn compact(&self, back: i64) {
        let mut inner = self.inner.lock();
        inner.compacted = inner.compacted.max(inner.revision - back);
    }
}

impl Source for Store {
    fn revision(&self) -> i64 {
        self.inner.lock().revision
    }

    fn compacted(&self) -> i64 {
        self.inner.lock().compacted
    }

    fn events(&self, span: EventSpan<'_>) -> Result<Option<Vec<Event>>, Halt> {
        let EventSpan { from, to, revisions_max, prev_of, .. } = span;
        let inner = self.inner.lock();
        if from < inner.compacted {
            return Ok(None);
        }
        let end = to.min(from + i64::try_from(revisions_max).unwrap() - 1);
        let inside = |event: &&Event| (from..=end).contains(&event.kv.mod_revision);
        let mut events: Vec<Event> = inner.events.iter().filter(inside).cloned().collect();
        if prev_of.is_none() {
            events.iter_mut().for_each(|event| event.prev_kv = None);
        }
        Ok(Some(events))
    }

    fn has_leader(&self) -> bool {
        true
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader { cluster_id: 1, member_id: 2, revision, raft_term: 3 }
    }
}
