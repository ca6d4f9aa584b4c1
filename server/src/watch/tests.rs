//! The hub and its streams against a model: whatever happens, every watcher sees exactly its events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Buf, Bytes, BytesMut};
use conclave_proto::etcdserverpb::{
    ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse, watch_create_request::FilterType, watch_request::RequestUnion,
};
use conclave_proto::mvccpb;
use conclave_state_machine::response::{Event, EventKind, Halt, KeyValue};
use conclave_state_machine::watcher_set::KeyRange;
use parking_lot::Mutex;
use proptest::prelude::*;
use prost::Message;

use super::{End, Hub, Limits, Output, Source, WatchStream};

const KEYS: [&str; 4] = ["a", "ab", "b", "c"];

/// The store of the model: every event, and how much of the past is readable.
#[derive(Debug)]
struct Store {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<Event>,
    revision: i64,
    compacted: i64,
    live: BTreeMap<Bytes, KeyValue>,
}

impl Store {
    fn new() -> Arc<Self> {
        let inner = Inner { revision: 1, compacted: -1, ..Inner::default() };
        Arc::new(Store { inner: Mutex::new(inner) })
    }

    /// One more revision that puts or deletes the keys of `mask`.
    fn write(&self, mask: u8) -> Vec<Event> {
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

    fn compact(&self, back: i64) {
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

    fn events(
        &self,
        from: i64,
        to: i64,
        revisions_max: usize,
        _: usize,
    ) -> Result<Option<Vec<Event>>, Halt> {
        let inner = self.inner.lock();
        if from < inner.compacted {
            return Ok(None);
        }
        let end = to.min(from + i64::try_from(revisions_max).unwrap() - 1);
        let inside = |event: &&Event| (from..=end).contains(&event.kv.mod_revision);
        Ok(Some(inner.events.iter().filter(inside).cloned().collect()))
    }

    fn has_leader(&self) -> bool {
        true
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader { cluster_id: 1, member_id: 2, revision, raft_term: 3 }
    }
}

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
struct Client {
    stream: WatchStream,
    output: Output,
    received: BytesMut,
    flag: Arc<Flag>,
    /// Creates that are not answered yet, oldest first.
    asked: Vec<WatchCreateRequest>,
    watchers: BTreeMap<i64, Seen>,
    canceled: Vec<Seen>,
}

impl Client {
    fn new(hub: &Arc<Hub>) -> Self {
        Client {
            stream: hub.open(),
            output: Output::default(),
            received: BytesMut::new(),
            flag: Arc::new(Flag(AtomicBool::new(true))),
            asked: Vec::new(),
            watchers: BTreeMap::new(),
            canceled: Vec::new(),
        }
    }

    fn request(&mut self, union: RequestUnion) {
        self.stream.request(WatchRequest { request_union: Some(union) }, &mut self.output);
        self.flag.0.store(true, Ordering::SeqCst);
    }

    /// Polls if woken, as a connection does, and reads one frame; says whether it got one.
    fn poll(&mut self, store: &Store) -> bool {
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
            return;
        }
        if response.watch_id == -1 {
            self.check_progress(header.revision, store);
            return;
        }
        let seen = self.watchers.get_mut(&response.watch_id).expect("only watchers get answers");
        if response.canceled {
            let mut seen = self.watchers.remove(&response.watch_id).unwrap();
            seen.canceled = true;
            if response.compact_revision != 0 {
                assert_eq!(header.revision, 0);
                let next = seen.events.last().map_or(seen.from, |e| revision(e).max(seen.from));
                assert!(next < response.compact_revision, "nothing needed was compacted");
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

#[derive(Clone, Debug)]
enum Step {
    /// Revisions by the keys they change, published together.
    Write(Vec<u8>),
    /// The same, but as a snapshot brings them: only the head is published.
    Install(Vec<u8>),
    Dispatch,
    Read,
    Poll(usize),
    Create {
        client: usize,
        create: WatchCreateRequest,
        offset: i64,
    },
    Cancel {
        client: usize,
        id: i64,
    },
    Progress(usize),
    Compact(i64),
    ForgetWindows,
    Reconnect(usize),
}

const CLIENTS: usize = 3;

fn mask() -> impl Strategy<Value = u8> {
    (1..16u8, 0..16u8).prop_map(|(keys, deletes)| keys | deletes << 4)
}

fn create() -> impl Strategy<Value = WatchCreateRequest> {
    let ranges =
        [("a", ""), ("a", "b"), ("", "\0"), ("b", "\0"), ("c", ""), ("b", "a"), ("ab", "c")];
    (
        prop::sample::select(ranges.to_vec()),
        prop::sample::subsequence(vec![0, 1], 0..=1),
        any::<(bool, bool)>(),
        prop_oneof![4 => Just(0i64), 1 => 1..4i64],
    )
        .prop_map(|((key, end), filters, (prev_kv, fragment), watch_id)| WatchCreateRequest {
            key: key.into(),
            range_end: end.into(),
            filters,
            prev_kv,
            fragment,
            watch_id,
            ..WatchCreateRequest::default()
        })
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..CLIENTS;
    prop_oneof![
        8 => prop::collection::vec(mask(), 1..4).prop_map(Step::Write),
        1 => prop::collection::vec(mask(), 1..4).prop_map(Step::Install),
        6 => Just(Step::Dispatch),
        4 => Just(Step::Read),
        8 => client().prop_map(Step::Poll),
        4 => (client(), create(), -8..4i64)
            .prop_map(|(client, create, offset)| Step::Create { client, create, offset }),
        1 => (client(), 0..5i64).prop_map(|(client, id)| Step::Cancel { client, id }),
        2 => client().prop_map(Step::Progress),
        1 => (0..10i64).prop_map(Step::Compact),
        1 => Just(Step::ForgetWindows),
        1 => client().prop_map(Step::Reconnect),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (1..4usize, 1..12usize, 1..4i64, 1..3usize, 3..40usize, 1..200usize).prop_map(
        |(mailbox, ring, window, windows, inbox, chunk)| Limits {
            mailbox_deliveries: mailbox,
            ring_events: ring,
            window_revisions: window,
            windows,
            inbox_events: inbox,
            chunk_bytes: chunk,
            response_bytes: 2_000,
            fragment_bytes: 300,
            ..Limits::default()
        },
    )
}

struct World {
    store: Arc<Store>,
    hub: Arc<Hub>,
    clients: Vec<Client>,
}

impl World {
    fn new(limits: Limits) -> Self {
        let store = Store::new();
        let hub = Hub::new(Arc::clone(&store) as Arc<dyn Source>, limits);
        let clients = (0..CLIENTS).map(|_| Client::new(&hub)).collect();
        World { store, hub, clients }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Write(masks) => {
                let events = masks.iter().flat_map(|mask| self.store.write(*mask)).collect();
                self.hub.publish(events, self.store.revision());
            }
            Step::Install(masks) => {
                masks.iter().for_each(|mask| drop(self.store.write(*mask)));
                self.hub.publish(Vec::new(), self.store.revision());
            }
            Step::Dispatch => self.hub.dispatch(),
            Step::Read => drop(self.hub.serve_read()),
            Step::Poll(client) => drop(self.clients[client].poll(&self.store)),
            Step::Create { client, mut create, offset } => {
                if offset != 0 {
                    create.start_revision = self.store.revision() + offset;
                }
                let client = &mut self.clients[client];
                client.asked.push(create.clone());
                client.request(RequestUnion::CreateRequest(create));
            }
            Step::Cancel { client, id } => self.clients[client]
                .request(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })),
            Step::Progress(client) => {
                self.clients[client].request(RequestUnion::ProgressRequest(WatchProgressRequest {}))
            }
            Step::Compact(back) => self.store.compact(back),
            Step::ForgetWindows => self.hub.forget_windows(),
            Step::Reconnect(client) => {
                self.clients[client].check(&self.store, true);
                self.clients[client] = Client::new(&self.hub);
            }
        }
    }

    /// Lets everybody finish, but polls only who was woken.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.hub.dispatch();
            let mut is_busy = false;
            for client in &mut self.clients {
                is_busy |= client.poll(&self.store);
            }
            if !self.hub.serve_read() && !is_busy {
                return;
            }
        }
        panic!("the hub never comes to rest");
    }
}

impl Client {
    fn check(&mut self, store: &Store, is_cut: bool) {
        for seen in self.watchers.values_mut() {
            seen.canceled |= is_cut;
            check_events(seen, store);
        }
        self.canceled.iter().for_each(|seen| check_events(seen, store));
    }
}

proptest! {
    // About a second; `PROPTEST_CASES` asks for more.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(2_000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_watcher_sees_exactly_its_events(
        limits in limits(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(limits);
        for step in steps {
            world.run(step);
        }
        world.settle();
        for client in &mut world.clients {
            prop_assert!(client.asked.is_empty(), "every create is answered");
            client.check(&world.store, false);
        }
        world.clients.clear();
        let stats = world.hub.stats();
        prop_assert_eq!((stats.watchers, stats.streams), (0, 0), "nobody is left behind");
    }
}

/// Found by the test above after 50,000 cases.
#[test]
fn a_watcher_made_while_a_window_is_delivered_misses_nothing() {
    let mut world = World::new(Limits { ring_events: 1, chunk_bytes: 20, ..Limits::default() });
    let create = |key: &'static str, end: &'static str, offset| Step::Create {
        client: 0,
        create: WatchCreateRequest {
            key: key.into(),
            range_end: end.into(),
            ..WatchCreateRequest::default()
        },
        offset,
    };
    let steps = [
        create("a", "", 0),
        Step::Poll(0),
        Step::Write(vec![3]),
        Step::Dispatch,
        // Gets the only event through a window that ends with the mail not looked at yet.
        Step::Poll(0),
        Step::Write(vec![8]),
        Step::Dispatch,
        create("", "\0", -1),
    ];
    steps.into_iter().for_each(|step| world.run(step));
    world.settle();
    world.clients[0].check(&world.store, false);
}

/// A cancelled watch is over for etcd's clients, which do not take it elsewhere; a stream that ends they do.
#[test]
fn a_watcher_keeps_nothing_of_the_message_that_made_it() {
    let mut world = World::new(Limits::default());
    let message = Bytes::from(vec![b'a'; 1 << 20]);
    for range_end in [Bytes::new(), Bytes::from_static(b"b")] {
        let key = message.slice(7..9);
        let create = WatchCreateRequest { key, range_end, ..WatchCreateRequest::default() };
        world.clients[0].request(RequestUnion::CreateRequest(create));
    }
    assert!(message.is_unique());
}

#[test]
fn a_stopping_server_ends_streams_and_cancels_no_watcher() {
    let world = World::new(Limits::default());
    world.hub.close();
    for mut stream in [world.clients.into_iter().next().unwrap().stream, world.hub.open()] {
        let mut output = Output::default();
        let create = WatchCreateRequest { key: "a".into(), ..WatchCreateRequest::default() };
        let create = RequestUnion::CreateRequest(create);
        stream.request(WatchRequest { request_union: Some(create) }, &mut output);
        let poll = stream.poll_output(&mut Context::from_waker(Waker::noop()), &mut output);
        assert!(matches!(poll, Poll::Ready(Err(End::Stopped))) && output.is_empty(), "{poll:?}");
    }
}
