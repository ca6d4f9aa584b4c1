//! Events of consecutive revisions, shared by everyone who is to get some of them.
//!
//! Each event is turned into wire bytes once, on the first delivery; every watcher's answer is put
//! together from these bytes. Nothing here knows streams or watchers.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use conclave_proto::mvccpb;
use conclave_state_machine::response::{Event, EventKind, KeyValue};
use conclave_state_machine::watcher_set::{End, KeyRange};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};

/// Tag of `WatchResponse.events`: field 11, length-delimited.
const EVENTS_TAG: u8 = (11 << 3) | 2;
/// Bytes that an event costs beside its keys and values.
const EVENT_OVERHEAD: usize = 192;
/// Up to here a scan finds the events of a range faster than the index by key.
const SCAN_EVENTS_MAX: usize = 16;

/// One event with its wire bytes.
#[derive(Debug)]
pub(crate) struct SharedEvent {
    event: Event,
    bare: OnceLock<Bytes>,
    with_prev: OnceLock<Bytes>,
}

impl SharedEvent {
    pub(crate) fn new(event: Event) -> Self {
        SharedEvent { event, bare: OnceLock::new(), with_prev: OnceLock::new() }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.event.kv.mod_revision
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.event.kv.key
    }

    pub(crate) fn kind(&self) -> EventKind {
        self.event.kind
    }

    /// The event as an `events` field of a `WatchResponse`, tag and length included.
    pub(crate) fn field(&self, prev_kv: bool) -> &Bytes {
        match (prev_kv, &self.event.prev_kv) {
            (true, Some(prev)) => self.with_prev.get_or_init(|| self.encode(Some(prev))),
            _ => self.bare.get_or_init(|| self.encode(None)),
        }
    }

    fn encode(&self, prev: Option<&KeyValue>) -> Bytes {
        let event = mvccpb::Event {
            r#type: i32::from(self.event.kind as u8),
            kv: Some(key_value(&self.event.kv)),
            prev_kv: prev.map(key_value),
        };
        let length = event.encoded_len();
        let mut bytes = BytesMut::with_capacity(1 + encoded_len_varint(length as u64) + length);
        bytes.put_u8(EVENTS_TAG);
        encode_varint(length as u64, &mut bytes);
        event.encode_raw(&mut bytes);
        bytes.freeze()
    }
}

fn key_value(kv: &KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.clone(),
        lease: kv.lease,
    }
}

/// What an event keeps in memory before it is encoded.
pub(crate) fn event_bytes(event: &Event) -> usize {
    let prev = event.prev_kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    EVENT_OVERHEAD + event.kv.key.len() + event.kv.value.len() + prev
}

/// Every event of the revisions `first..=last`.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) events: Vec<Arc<SharedEvent>>,
    /// Sum of [`event_bytes`].
    pub(crate) bytes: usize,
    /// Whether the events tell the state before, where there was one.
    pub(crate) has_prev: bool,
    /// For each group of watchers that gets some of the events: which ones, ascending.
    pub(crate) blocks: Vec<Vec<u32>>,
    /// Positions of the events ordered by (key, position); made for the first range asked for.
    by_key: OnceLock<Vec<u32>>,
}

impl Batch {
    /// Shares `events`, which must be all events of `first..=last` in order.
    pub(crate) fn new(first: i64, last: i64, events: Vec<Event>) -> Self {
        let bytes = events.iter().map(event_bytes).sum();
        let events = events.into_iter().map(|event| Arc::new(SharedEvent::new(event))).collect();
        let (blocks, by_key) = (Vec::new(), OnceLock::new());
        Batch { first, last, events, bytes, has_prev: true, blocks, by_key }
    }

    /// Joins consecutive batches into one that shares their events.
    pub(crate) fn join(batches: &[&Arc<Batch>]) -> Option<Self> {
        let (first, last) = (batches.first()?.first, batches.last()?.last);
        let events = batches.iter().flat_map(|batch| batch.events.iter().map(Arc::clone)).collect();
        let bytes = batches.iter().map(|batch| batch.bytes).sum();
        let has_prev = batches.iter().all(|batch| batch.has_prev);
        let (blocks, by_key) = (Vec::new(), OnceLock::new());
        Some(Batch { first, last, events, bytes, has_prev, blocks, by_key })
    }

    /// Whether the batch says what happened at `revision`.
    pub(crate) fn covers(&self, revision: i64) -> bool {
        self.first <= revision && revision <= self.last
    }

    /// Puts the events of `range` into `found`, in order.
    pub(crate) fn matching<'a>(&'a self, range: &KeyRange, found: &mut Vec<&'a SharedEvent>) {
        if self.events.len() <= SCAN_EVENTS_MAX {
            found.extend(
                self.events.iter().map(|event| &**event).filter(|e| range.contains(e.key())),
            );
            return;
        }
        let by_key = self.by_key.get_or_init(|| self.sort_by_key());
        let key_at = |position: &u32| self.events[*position as usize].key();
        let (start, end) = match range {
            KeyRange::Key(key) => (
                by_key.partition_point(|at| key_at(at) < &key[..]),
                by_key.partition_point(|at| key_at(at) <= &key[..]),
            ),
            KeyRange::Span { start, end } => (
                by_key.partition_point(|at| key_at(at) < &start[..]),
                match end {
                    End::Before(end) => by_key.partition_point(|at| key_at(at) < &end[..]),
                    End::Infinity => by_key.len(),
                },
            ),
        };
        if start == 0 && end == by_key.len() {
            found.extend(self.events.iter().map(|event| &**event));
            return;
        }
        let mut positions = by_key[start..end].to_vec();
        positions.sort_unstable();
        found.extend(positions.iter().map(|at| &*self.events[*at as usize]));
    }

    /// About how many bytes the events of a block take.
    pub(crate) fn block_bytes(&self, block: u32) -> usize {
        let positions = &self.blocks[block as usize];
        positions.iter().map(|at| event_bytes(&self.events[*at as usize].event)).sum()
    }

    fn sort_by_key(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0u32..).take(self.events.len()).collect();
        order.sort_by_key(|at| self.events[*at as usize].key());
        order
    }
}

/// Cuts `events`, which are all events of `first..=last` in order, into batches of whole revisions
/// with at most `revisions` revisions and about `bytes` bytes.
pub(crate) fn cut(
    first: i64,
    last: i64,
    events: Vec<Event>,
    revisions: i64,
    bytes: usize,
) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut start = first;
    let (mut current, mut size) = (Vec::new(), 0);
    for event in events {
        let revision = event.kv.mod_revision;
        let is_new = current.last().is_some_and(|e: &Event| e.kv.mod_revision != revision);
        if is_new && (size >= bytes || revision - start >= revisions) {
            batches.push(Batch::new(start, revision - 1, std::mem::take(&mut current)));
            (start, size) = (revision, 0);
        }
        size += event_bytes(&event);
        current.push(owned(event));
    }
    batches.push(Batch::new(start, last, current));
    batches
}

/// Copies key and value out of the log entry whose slices they are: a small put of a large transaction
/// would keep all of it in memory, of which nobody has counted more than the put.
fn owned(mut event: Event) -> Event {
    let kv = &mut event.kv;
    let mut bytes = BytesMut::with_capacity(kv.key.len() + kv.value.len());
    bytes.extend_from_slice(&kv.key);
    bytes.extend_from_slice(&kv.value);
    let mut bytes = bytes.freeze();
    kv.key = bytes.split_to(kv.key.len());
    kv.value = bytes;
    event
}

#[cfg(test)]
mod tests {
    use conclave_proto::etcdserverpb::WatchResponse;

    use super::*;

    fn put(revision: i64, key: &'static str, prev: Option<&'static str>) -> Event {
        let kv = |mod_revision, value: &'static str| KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            create_revision: 2,
            mod_revision,
            version: 1,
            value: Bytes::from_static(value.as_bytes()),
            lease: 7,
        };
        Event {
            kind: EventKind::Put,
            kv: kv(revision, "new"),
            prev_kv: prev.map(|value| kv(revision - 1, value)),
        }
    }

    #[test]
    fn field_decodes_as_part_of_a_response() {
        let event = SharedEvent::new(put(5, "k", Some("old")));
        for prev_kv in [false, true] {
            let decoded = WatchResponse::decode(event.field(prev_kv).clone()).unwrap();
            assert_eq!(decoded.events.len(), 1);
            let got = &decoded.events[0];
            assert_eq!(got.kv.as_ref().unwrap(), &key_value(&event.event.kv));
            let prev = event.event.prev_kv.as_ref().map(key_value);
            assert_eq!(got.prev_kv, prev.filter(|_| prev_kv));
        }
    }

    #[test]
    fn batches_are_cut_between_revisions() {
        let revisions = [2, 2, 3, 4, 4, 4, 5, 9];
        let events: Vec<Event> = revisions.iter().map(|r| put(*r, "k", None)).collect();
        let batches = cut(2, 9, events, 2, usize::MAX);
        let spans: Vec<_> = batches.iter().map(|b| (b.first, b.last, b.events.len())).collect();
        assert_eq!(spans, [(2, 3, 3), (4, 8, 4), (9, 9, 1)]);
        assert_eq!(cut(3, 9, Vec::new(), 2, 1).len(), 1, "an empty span stays covered");
    }

    #[test]
    fn what_is_kept_is_no_slice_of_a_log_entry() {
        let entry = Bytes::from(vec![b'x'; 100]);
        let mut event = put(2, "k", None);
        (event.kv.key, event.kv.value) = (entry.slice(3..5), entry.slice(9..12));
        let batches = cut(2, 2, vec![event], 1, usize::MAX);
        assert!(entry.is_unique());
        let kept = &batches[0].events[0].event.kv;
        assert_eq!((&kept.key[..], &kept.value[..]), (&b"xx"[..], &b"xxx"[..]));
    }

    #[test]
    fn matching_agrees_with_a_scan() {
        let keys = ["a", "b", "ab", "c", "b", "ba", "d", "a", "bb", "b", "e", "f", "g", "h"];
        let events: Vec<Event> =
            (2..).zip(keys.iter().cycle().take(40)).map(|(r, key)| put(r, key, None)).collect();
        let batch = Batch::new(2, 41, events);
        for (key, end) in [("b", ""), ("a", "b"), ("b", "c"), ("c", "\0"), ("\0", "\0"), ("x", "")]
        {
            let range = KeyRange::new(key.into(), end.into()).unwrap();
            let mut found = Vec::new();
            batch.matching(&range, &mut found);
            let found: Vec<i64> = found.iter().map(|e| e.revision()).collect();
            let expected: Vec<i64> = batch
                .events
                .iter()
                .filter(|e| range.contains(e.key()))
                .map(|e| e.revision())
                .collect();
            assert_eq!(found, expected, "{range:?}");
        }
    }
}
