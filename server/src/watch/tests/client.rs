//! A client that reads its stream as a connection does, and holds every answer against the model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Buf, BytesMut};
use conclave_proto::etcdserverpb::watch_create_request::FilterType;
use conclave_proto::etcdserverpb::watch_request::RequestUnion;
use conclave_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use conclave_proto::mvccpb;
use conclave_state_machine::response::{Event, EventKind};
use conclave_state_machine::watcher_set::KeyRange;
use prost::Message;

use super::store::Store;
use crate::watch::{Hub, Output, WatchStream};

/// Remembers that somebody wants to be polled.
#[derive(Debug)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A watcher as its client knows it.
#[derive(Debug)]
struct Seen {
    create: WatchCreateRequest,
    range: KeyRange,
    /// First revision it is to see.
    from: i64,
    events: Vec<mvccpb::Event>,
    /// The last answer was a fragment.
    in_fragment: bool,
    canceled: bool,
}

/// A client: one stream and everything it heard on it.
pub(super) struct Client {
    pub(super) stream: WatchStream,
    output: Output,
    received: BytesMut,
    flag: Arc<Flag>,
    /// Creates that are not answered yet, oldest first.
    pub(super) asked: Vec<WatchCreateRequest>,
    watchers: BTreeMap<i64, Seen>,
    canceled: Vec<Seen>,
    /// Ids of watchers that a compaction cancelled, until they are cancelled again.
    spent: BTreeSet<i64>,
}

impl Client {
    pub(super) fn new(hub: &Arc<Hub>) -> Self {
        Client {
            stream: hub.open(),
            output: Output::default(),
            received: BytesMut::new(),
            flag: Arc::new(Flag(AtomicBool::new(true))),
            asked: Vec::new(),
            watchers: BTreeMap::new(),
            canceled: Vec::new(),
            spent: BTreeSet::new(),
        }
    }

    pub(super) fn request(&mut self, union: RequestUnion) {
        self.stream.request(WatchRequest { request_union: Some(union) }, &mut self.output);
        self.flag.0.store(true, Ordering::SeqCst);
    }

    /// Polls if woken, as a connection does, and reads one frame; says whether it got one.
    pub(super) fn poll(&mut self, store: &Store) -> bool {
        if self.output.is_empty() {
            if !self.flag.0.swap(false, Ordering::SeqCst) {
                return false;
            }
            let waker = Waker::from(Arc::clone(&self.flag));
            let poll = self.stream.poll_output(&mut Context::from_waker(&waker), &mut self.output);
            match poll {
                Poll::Pending => return self.flag.0.load(Ordering::SeqCst),
                Poll::Ready(result) => result.unwrap(),
            }
        }
        // Ready answers are followed by another poll.
        self.flag.0.store(true, Ordering::SeqCst);
        let frame = self.output.next_frame().expect("ready means that there is output");
        self.received.extend_from_slice(&frame);
        while let Some(response) = take_message(&mut self.received) {
            self.hear(&response, store);
        }
        true
    }

    /// What it heard is what it was to hear; with `is_cut` perhaps not all of it.
    pub(super) fn check(&mut self, store: &Store, is_cut: bool) {
        for seen in self.watchers.values_mut() {
            seen.canceled |= is_cut;
            check_events(seen, store);
        }
        self.canceled.iter().for_each(|seen| check_events(seen, store));
    }

    fn hear(&mut self, response: &WatchResponse, store: &Store) {
        let header = response.header.as_ref().expect("every answer has a header");
        if response.created {
            let create = self.asked.remove(0);
            if response.canceled {
                assert_eq!(response.watch_id, -1);
                assert!(!response.cancel_reason.is_empty());
                return;
            }
            let from = match create.start_revision {
                0 => header.revision + 1,
                start => start,
            };
            let range = KeyRange::new(create.key.clone(), create.range_end.clone()).unwrap();
            let seen = Seen {
                create,
                range,
                from,
                events: Vec::new(),
                in_fragment: false,
                canceled: false,
            };
            assert!(self.watchers.insert(response.watch_id, seen).is_none(), "ids are unique");
            assert!(
                !self.spent.contains(&response.watch_id),
                "an id is taken until it is cancelled"
            );
            return;
        }
        if response.watch_id == -1 {
            self.check_progress(header.revision, store);
            return;
        }
        let Some(seen) = self.watchers.get_mut(&response.watch_id) else {
            assert!(response.canceled && response.compact_revision == 0);
            assert!(self.spent.remove(&response.watch_id), "only watchers get answers");
            return;
        };
        if response.canceled {
            let mut seen = self.watchers.remove(&response.watch_id).unwrap();
            seen.canceled = true;
            if response.compact_revision != 0 {
                assert_eq!(header.revision, 0);
                let next = seen.events.last().map_or(seen.from, |e| revision(e).max(seen.from));
                assert!(next < response.compact_revision, "nothing needed was compacted");
                self.spent.insert(response.watch_id);
            }
            self.canceled.push(seen);
            return;
        }
        assert!(!response.events.is_empty(), "no watcher asked for progress");
        let first = revision(&response.events[0]);
        if let Some(last) = seen.events.last().map(revision) {
            assert!(last < first || seen.in_fragment, "one revision came in two answers");
        }
        assert!(seen.create.fragment || !response.fragment);
        seen.in_fragment = response.fragment;
        seen.events.extend(response.events.iter().cloned());
        assert!(header.revision >= seen.events.last().map_or(0, revision));
    }

    /// Everything up to `revision` must have come.
    fn check_progress(&self, at: i64, store: &Store) {
        assert!(!self.watchers.is_empty(), "a stream without watchers has no progress");
        for seen in self.watchers.values() {
            assert!(seen.from <= at + 1, "progress before the start");
            let due = expected(seen, store).filter(|event| event.kv.mod_revision <= at).count();
            assert!(due <= seen.events.len(), "progress {at} came before its events");
        }
    }
}

fn revision(event: &mvccpb::Event) -> i64 {
    event.kv.as_ref().unwrap().mod_revision
}

/// Cuts the next gRPC message off.
fn take_message(received: &mut BytesMut) -> Option<WatchResponse> {
    let length = usize::try_from(u32::from_be_bytes(received.get(1..5)?.try_into().unwrap()));
    let end = 5 + length.unwrap();
    if received.len() < end {
        return None;
    }
    let mut message = received.split_to(end);
    message.advance(5);
    Some(WatchResponse::decode(message).expect("answers decode"))
}

/// What a watcher is to see, from the model's history.
fn expected(seen: &Seen, store: &Store) -> impl Iterator<Item = Event> {
    let filters = &seen.create.filters;
    let no_put = filters.contains(&i32::from(FilterType::Noput));
    let no_delete = filters.contains(&i32::from(FilterType::Nodelete));
    let wanted = |event: &&Event| {
        let is_filtered = match event.kind {
            EventKind::Put => no_put,
            EventKind::Delete => no_delete,
        };
        !is_filtered && seen.range.contains(&event.kv.key) && event.kv.mod_revision >= seen.from
    };
    let events: Vec<Event> = store.inner.lock().events.iter().filter(wanted).cloned().collect();
    events.into_iter()
}

fn check_events(seen: &Seen, store: &Store) {
    let expected: Vec<Event> = expected(seen, store).collect();
    if !seen.canceled {
        assert_eq!(seen.events.len(), expected.len(), "reliable: every event arrives");
        assert!(!seen.in_fragment, "the last fragment says so");
    }
    for (got, event) in seen.events.iter().zip(&expected) {
        let kv = got.kv.as_ref().unwrap();
        assert_eq!(got.r#type, event.kind as i32);
        assert_eq!((&kv.key, kv.mod_revision), (&event.kv.key, event.kv.mod_revision));
        assert_eq!((&kv.value, kv.version), (&event.kv.value, event.kv.version));
        let prev = event.prev_kv.as_ref().filter(|_| seen.create.prev_kv);
        assert_eq!(got.prev_kv.as_ref().map(|kv| kv.version), prev.map(|kv| kv.version));
    }
    assert!(seen.events.len() <= expected.len(), "unique: no event arrives twice");
}
