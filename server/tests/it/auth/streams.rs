//! Streams end, or go on without what is hidden, when their user loses a right.

use bytes::Bytes;
use conclave_proto::authpb::Permission;
use conclave_proto::etcdserverpb::watch_client::WatchClient;
use conclave_proto::v1::discovery_service_client::DiscoveryServiceClient;
use conclave_proto::v1::registry_service_client::RegistryServiceClient;
use conclave_proto::v1::session_service_client::SessionServiceClient;
use conclave_proto::{etcdserverpb as etcd, v1, v3electionpb as election};
use conclave_state_machine::registry::record::Record;
use etcd::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{FAST, add_user, auth, by, denied, enable, log_in};
use crate::api_http::{http, http_with};
use crate::cluster::within;
use crate::support::{Server, put, refused, server};

/// One watch stream.
struct Watching {
    requests: mpsc::Sender<etcd::WatchRequest>,
    answers: tonic::Streaming<etcd::WatchResponse>,
}

impl Watching {
    async fn open(server: &Server, token: &str) -> Self {
        let (requests, stream) = mpsc::channel(4);
        let mut client = WatchClient::new(server.channel.clone());
        let answers = client.watch(by(token, ReceiverStream::new(stream))).await.unwrap();
        Self { requests, answers: answers.into_inner() }
    }

    /// Asks for a watcher; its first answer.
    async fn create(&mut self, key: &str, range_end: &str) -> etcd::WatchResponse {
        let create = etcd::WatchCreateRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(range_end.as_bytes()),
            ..Default::default()
        };
        let request_union = Some(RequestUnion::CreateRequest(create));
        self.requests.send(etcd::WatchRequest { request_union }).await.unwrap();
        self.next().await
    }

    async fn next(&mut self) -> etcd::WatchResponse {
        within("an answer of a watch", self.answers.message()).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_is_cancelled_when_its_right_is_gone() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    let mut watching = Watching::open(&server, &ann).await;
    for (key, end) in [("b", ""), ("a/1", "\0"), ("", "\0"), ("a", "b")] {
        let answer = watching.create(key, end).await;
        assert!(answer.created && answer.canceled && answer.watch_id == -1, "{key:?} {end:?}");
        assert_eq!(answer.cancel_reason, reason);
    }
    let (wide, narrow) = (watching.create("a/", "a0").await, watching.create("a/1", "").await);
    assert!(wide.created && !wide.canceled && narrow.created && !narrow.canceled);
    server.kv().put(by(&root, put("a/1", "x"))).await.unwrap();
    assert_eq!(watching.next().await.events.len(), 1);
    assert_eq!(watching.next().await.events.len(), 1);

    let perm = Some(Permission { perm_type: 0, key: "a/1".into(), range_end: Bytes::new() });
    let grant = etcd::AuthRoleGrantPermissionRequest { name: "a".to_owned(), perm };
    auth(&server).role_grant_permission(by(&root, grant)).await.unwrap();
    let revoke = etcd::AuthRoleRevokePermissionRequest {
        role: "a".to_owned(),
        key: "a/".into(),
        range_end: "a0".into(),
    };
    auth(&server).role_revoke_permission(by(&root, revoke)).await.unwrap();
    server.kv().put(by(&root, put("a/1", "y"))).await.unwrap();
    let ended = watching.next().await;
    assert!(ended.canceled && ended.events.is_empty(), "before the next event: {ended:?}");
    assert_eq!((ended.watch_id, ended.cancel_reason.as_str()), (wide.watch_id, reason));
    let goes_on = watching.next().await;
    assert_eq!((goes_on.watch_id, goes_on.events.len()), (narrow.watch_id, 1));

    let name = "ann".to_owned();
    auth(&server).user_delete(by(&root, etcd::AuthUserDeleteRequest { name })).await.unwrap();
    let ended = watching.next().await;
    assert!(ended.canceled, "nothing happened to its keys, yet it is over: {ended:?}");
    let reason = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
    assert_eq!(Watching::open(&server, "").await.create("a/1", "").await.cancel_reason, reason);
    let reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert_eq!(Watching::open(&server, &ann).await.create("a/1", "").await.cancel_reason, reason);
}

/// As in etcd, where each new watcher asks for the token of its stream again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_watches_nothing_new_after_a_new_password_and_nothing_of_another_user() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    let mut watching = Watching::open(&server, &ann).await;
    let before = watching.create("a/1", "").await;
    assert!(before.created && !before.canceled, "{before:?}");
    let change = etcd::AuthUserChangePasswordRequest {
        name: "ann".to_owned(),
        password: "other".to_owned(),
        ..Default::default()
    };
    auth(&server).user_change_password(by(&root, change)).await.unwrap();
    let refused = watching.create("a/2", "").await;
    let reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
    assert_eq!(refused.cancel_reason, reason);
    server.kv().put(by(&root, put("a/1", "x"))).await.unwrap();
    let event = watching.next().await;
    assert_eq!((event.watch_id, event.events.len()), (before.watch_id, 1), "what was there stays");

    let name = "ann".to_owned();
    auth(&server).user_delete(by(&root, etcd::AuthUserDeleteRequest { name })).await.unwrap();
    add_user(&server, &root, "ann", &["a"]).await;
    server.kv().put(by(&root, put("a/1", "y"))).await.unwrap();
    let ended = watching.next().await;
    assert!(ended.canceled && ended.events.is_empty(), "another one has its name: {ended:?}");
    let again = log_in(&server, "ann", "ann-password").await.unwrap();
    let mut watching = Watching::open(&server, &again).await;
    assert!(!watching.create("a/2", "").await.canceled);
}

/// The heartbeats of a user go on with a new password, and end with the user, whoever has the name then.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_for_the_user_that_was() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    let grant = etcd::LeaseGrantRequest { ttl: 600, id: 7 };
    server.lease().lease_grant(by(&ann, grant)).await.unwrap();
    server.kv().put(by(&ann, etcd::PutRequest { lease: 7, ..put("a/1", "x") })).await.unwrap();
    let (beats, stream) = mpsc::channel(4);
    let mut lease = server.lease();
    let answers = lease.lease_keep_alive(by(&ann, ReceiverStream::new(stream)));
    let mut answers = answers.await.unwrap().into_inner();
    let beat = etcd::LeaseKeepAliveRequest { id: 7 };
    beats.send(beat).await.unwrap();
    assert_eq!(within("a renewal", answers.message()).await.unwrap().unwrap().ttl, 600);
    let change =
        etcd::AuthUserChangePasswordRequest { name: "ann".to_owned(), ..Default::default() };
    auth(&server).user_change_password(by(&root, change)).await.unwrap();
    beats.send(beat).await.unwrap();
    assert_eq!(within("a renewal", answers.message()).await.unwrap().unwrap().ttl, 600);
    let name = "ann".to_owned();
    auth(&server).user_delete(by(&root, etcd::AuthUserDeleteRequest { name })).await.unwrap();
    add_user(&server, &root, "ann", &["a"]).await;
    beats.send(beat).await.unwrap();
    let refused = within("a refusal", answers.message()).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: revision of auth store is old");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_hears_nothing_after_its_right_is_gone() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    let name = Bytes::from_static(b"a/job");
    let leader = || election::LeaderRequest { name: name.clone() };
    let secret = election::LeaderRequest { name: "b".into() };
    let refusal = refused(server.election().leader(by(&ann, secret.clone())).await);
    assert_eq!(refusal, (Code::Unknown, denied().1));
    let refusal = refused(server.election().observe(by(&ann, secret)).await);
    assert_eq!(refusal, (Code::Unknown, denied().1));
    let mut leaders = server.election().observe(by(&ann, leader())).await.unwrap().into_inner();
    let campaign = election::CampaignRequest { name: name.clone(), lease: 0, value: "me".into() };
    server.election().campaign(by(&root, campaign)).await.unwrap();
    let seen = within("a leader", leaders.message()).await.unwrap().unwrap();
    assert_eq!(seen.kv.unwrap().value, "me");
    let revoke = etcd::AuthUserRevokeRoleRequest { name: "ann".to_owned(), role: "a".to_owned() };
    auth(&server).user_revoke_role(by(&root, revoke)).await.unwrap();
    assert_eq!(refused(within("the end", leaders.message()).await), denied());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_seen_by_who_may_read_its_keys() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    let mut registry = RegistryServiceClient::new(server.channel.clone());
    for (service, lease, token) in [("a/api", 1, &ann), ("b/api", 2, &root)] {
        let grant = etcd::LeaseGrantRequest { id: lease, ttl: 600 };
        server.lease().lease_grant(by(token, grant)).await.unwrap();
        let request = v1::RegisterRequest {
            service: service.to_owned(),
            id: "one".to_owned(),
            session: lease,
            record: Record::new("h:1").encode().into(),
            ..Default::default()
        };
        registry.register(by(token, request.clone())).await.unwrap();
        let foreign = v1::RegisterRequest { service: "b/api".to_owned(), ..request };
        assert_eq!(refused(registry.register(by(&ann, foreign)).await), denied());
    }
    let find =
        |service: &str| v1::DiscoverRequest { service: service.to_owned(), ..Default::default() };
    assert_eq!(refused(registry.discover(by(&ann, find("b/api"))).await), denied());
    let found = registry.discover(by(&ann, find("a/api"))).await.unwrap();
    assert_eq!(found.get_ref().instances.len(), 1);
    for (prefix, services) in [("a/", Some(1)), ("a/a", Some(1)), ("", None), ("a", None)] {
        let list = v1::ServiceListRequest { prefix: prefix.to_owned(), ..Default::default() };
        let answer = registry.list_services(by(&ann, list)).await;
        let answer = answer.map(|list| list.into_inner().services.len());
        assert_eq!(answer.as_ref().ok().copied(), services, "{prefix:?}: {answer:?}");
    }
    let off = v1::ServiceConfigureRequest {
        service: "b/api".to_owned(),
        guard: Some(false),
        damping: None,
    };
    assert_eq!(refused(registry.configure(by(&ann, off)).await), denied());

    let page = async |query: &str, token: &str| {
        let headers = format!("Authorization: Bearer {token}\r\n");
        let target = format!("GET /v1/discovery/prometheus{query}");
        http_with(&server, &target, &headers).await[9..12].to_owned()
    };
    assert_eq!(page("", "stolen.1").await, "401");
    assert_eq!(page("", &ann).await, "403", "all services");
    assert_eq!(page("?service=a%2Fapi&service=b%2Fapi", &ann).await, "403");
    assert_eq!(page("?service=a%2Fapi", &ann).await, "200");
    assert_eq!(page("", &root).await, "200");
    let nobody = http(&server, "GET /v1/discovery/prometheus").await;
    assert!(nobody.starts_with("HTTP/1.1 401 "), "{nobody}");

    let mut discovery = DiscoveryServiceClient::new(server.channel.clone());
    let watch = |service: &str| v1::InstanceWatchRequest {
        service: service.to_owned(),
        ..Default::default()
    };
    assert_eq!(refused(discovery.watch(by(&ann, watch("b/api"))).await), denied());
    let mut changes = discovery.watch(by(&ann, watch("a/api"))).await.unwrap().into_inner();
    let snapshot = within("a snapshot", changes.message()).await.unwrap().unwrap();
    assert_eq!(snapshot.changes.len(), 1);
    let revoke = etcd::AuthUserRevokeRoleRequest { name: "ann".to_owned(), role: "a".to_owned() };
    auth(&server).user_revoke_role(by(&root, revoke)).await.unwrap();
    assert_eq!(refused(within("the end", changes.message()).await), denied());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_may_not_be_renewed_ends_no_other() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    let mut sessions = SessionServiceClient::new(server.channel.clone());
    for (id, key) in [(1, "a/key"), (2, "b/key"), (3, "")] {
        let (ttl_seconds, request_id) = (600, Bytes::from(vec![1; 16]));
        let begin = v1::SessionBeginRequest { id, ttl_seconds, request_id, ..Default::default() };
        sessions.begin(by(&ann, begin)).await.unwrap();
        if !key.is_empty() {
            let put = etcd::PutRequest { lease: id, ..put(key, "x") };
            server.kv().put(by(&root, put)).await.unwrap();
        }
    }
    let (requests, outgoing) = mpsc::channel(1);
    let mut answers =
        sessions.open(by(&ann, ReceiverStream::new(outgoing))).await.unwrap().into_inner();
    let mut beat = async |sequence, attach: &[i64]| {
        let attach = attach.to_vec();
        let request = v1::SessionOpenRequest { sequence, attach, ..Default::default() };
        requests.send(request).await.unwrap();
        within("an answer", answers.message()).await.map(|answer| answer.unwrap().lost)
    };
    assert_eq!(beat(1, &[1, 2, 3]).await.unwrap(), [2], "somebody else's key is attached to it");
    assert!(beat(2, &[]).await.unwrap().is_empty());
    let revoke = etcd::AuthUserRevokeRoleRequest { name: "ann".to_owned(), role: "a".to_owned() };
    auth(&server).user_revoke_role(by(&root, revoke)).await.unwrap();
    assert_eq!(beat(3, &[]).await.unwrap(), [1]);
    assert!(beat(4, &[]).await.unwrap().is_empty(), "the third has no keys");
    let delete = etcd::AuthUserDeleteRequest { name: "ann".to_owned() };
    auth(&server).user_delete(by(&root, delete)).await.unwrap();
    assert_eq!(refused(beat(5, &[]).await), denied(), "a user that there is not");
}
