//! The hub and its streams against a model: whatever happens, every watcher sees exactly its events.

mod client;
mod store;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use conclave_proto::etcdserverpb::watch_request::RequestUnion;
use conclave_proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
};
use proptest::prelude::*;

use self::client::Client;
use self::store::Store;
use super::{End, Hub, Limits, Output, Source};

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
    let windows = (1..3usize, prop_oneof![Just(1), 1_000..4_000usize]);
    (1..4usize, 1..12usize, 1..4i64, windows, 3..40usize, 1..200usize).prop_map(
        |(mailbox, ring, window, (windows, windows_bytes), inbox, chunk)| Limits {
            mailbox_deliveries: mailbox,
            ring_events: ring,
            window_revisions: window,
            windows,
            windows_bytes,
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

/// A cancelled watch is over for etcd's clients, which do not take it elsewhere; a stream that ends they do.
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
