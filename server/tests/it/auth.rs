//! Users and roles over real ports: logins, tokens on other members, rights to reads and watches.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::authpb::{Permission, UserAddOptions, permission::Type};
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_proto::etcdserverpb::watch_client::WatchClient;
use conclave_proto::v1::{
    self, discovery_service_client::DiscoveryServiceClient,
    registry_service_client::RegistryServiceClient, session_service_client::SessionServiceClient,
};
use conclave_proto::v3electionpb as election;
use conclave_state_machine::registry::record::Record;
use etcd::watch_request::RequestUnion;
use futures::StreamExt as _;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::api_http::{http, http_with};
use crate::cluster::within;
use crate::support::{Server, delete, op, put, range, refused, server, servers, then};

/// Hashing need not be slow in tests.
pub(crate) const FAST: &str = "--bcrypt-cost=4";

pub(crate) fn auth(server: &Server) -> AuthClient<Channel> {
    AuthClient::new(server.channel.clone())
}

/// A request with a token.
pub(crate) fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    request
}

pub(crate) async fn log_in(server: &Server, name: &str, password: &str) -> Result<String, Status> {
    let (name, password) = (name.to_owned(), password.to_owned());
    let answer = auth(server).authenticate(etcd::AuthenticateRequest { name, password }).await;
    Ok(answer?.into_inner().token)
}

pub(crate) async fn add_user(server: &Server, token: &str, name: &str, roles: &[&str]) {
    let add = etcd::AuthUserAddRequest {
        name: name.to_owned(),
        password: format!("{name}-password"),
        ..Default::default()
    };
    auth(server).user_add(by(token, add)).await.unwrap();
    for role in roles {
        let grant =
            etcd::AuthUserGrantRoleRequest { user: name.to_owned(), role: (*role).to_owned() };
        auth(server).user_grant_role(by(token, grant)).await.unwrap();
    }
}

async fn add_role(server: &Server, token: &str, name: &str, grants: &[(Type, &str, &str)]) {
    let add = etcd::AuthRoleAddRequest { name: name.to_owned() };
    auth(server).role_add(by(token, add)).await.unwrap();
    for (kind, key, range_end) in grants {
        let perm = Some(Permission {
            perm_type: *kind as i32,
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(range_end.as_bytes()),
        });
        let grant = etcd::AuthRoleGrantPermissionRequest { name: name.to_owned(), perm };
        auth(server).role_grant_permission(by(token, grant)).await.unwrap();
    }
}

/// Enables auth with `root`, and `ann` who may read and write what begins with `a/`. Returns their tokens.
pub(crate) async fn enable(server: &Server) -> [String; 2] {
    add_user(server, "", "root", &["root"]).await;
    add_role(server, "", "a", &[(Type::Readwrite, "a/", "a0")]).await;
    add_user(server, "", "ann", &["a"]).await;
    auth(server).auth_enable(etcd::AuthEnableRequest {}).await.unwrap();
    let root = log_in(server, "root", "root-password").await.unwrap();
    let ann = log_in(server, "ann", "ann-password").await.unwrap();
    [root, ann]
}

fn text(code: Code, text: &str) -> (Code, String) {
    (code, format!("etcdserver: {text}"))
}

pub(crate) fn denied() -> (Code, String) {
    text(Code::PermissionDenied, "permission denied")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_on_every_member_and_dies_with_its_password() {
    let servers = servers(3, &[FAST]).await;
    let [root, ann] = enable(&servers[0]).await;
    for server in &servers {
        server.kv().put(by(&ann, put("a/1", "x"))).await.unwrap();
        assert_eq!(server.kv().range(by(&ann, range("a/1", ""))).await.unwrap().get_ref().count, 1);
        assert_eq!(refused(server.kv().put(by(&ann, put("b", "x"))).await), denied());
        assert_eq!(refused(server.kv().range(by(&ann, range("b", ""))).await), denied());
        let nobody = text(Code::InvalidArgument, "user name is empty");
        assert_eq!(refused(server.kv().put(put("a/1", "x")).await), nobody);
        assert_eq!(refused(server.kv().range(range("a/1", "")).await), nobody);
        let wrong = text(Code::Unauthenticated, "invalid auth token");
        assert_eq!(refused(server.kv().put(by("wrong.1", put("a/1", "x"))).await), wrong);
        let bearer = format!("Bearer {ann}");
        let mut request = Request::new(range("a/1", ""));
        request.metadata_mut().insert("authorization", bearer.parse().unwrap());
        assert_eq!(server.kv().range(request).await.unwrap().get_ref().count, 1);
    }
    let change = etcd::AuthUserChangePasswordRequest {
        name: "ann".to_owned(),
        password: "other".to_owned(),
        ..Default::default()
    };
    auth(&servers[1]).user_change_password(by(&root, change)).await.unwrap();
    let wrong = text(Code::Unauthenticated, "invalid auth token");
    let late = servers[1].kv().put(by(&ann, put("a/1", "x"))).await;
    assert_eq!(refused(late), wrong, "where the change was answered it is void at once");
    for server in &servers {
        // A member that has not heard of it yet is behind the others, not wrong for ever.
        within("the token is void", async {
            while server.kv().range(by(&ann, range("a/1", ""))).await.is_ok() {}
        })
        .await;
        let failed =
            text(Code::InvalidArgument, "authentication failed, invalid user ID or password");
        assert_eq!(refused(log_in(server, "ann", "ann-password").await), failed);
        assert_eq!(refused(log_in(server, "eve", "ann-password").await), failed);
        log_in(server, "ann", "other").await.unwrap();
    }
    let change =
        etcd::AuthUserChangePasswordRequest { name: "ann".to_owned(), ..Default::default() };
    auth(&servers[2]).user_change_password(by(&root, change)).await.unwrap();
    let failed = text(Code::InvalidArgument, "authentication failed, invalid user ID or password");
    assert_eq!(refused(log_in(&servers[2], "ann", "").await), failed, "an empty one is none");
    auth(&servers[2]).auth_disable(by(&root, etcd::AuthDisableRequest {})).await.unwrap();
    within("everybody may", async { while servers[0].kv().put(put("b", "x")).await.is_err() {} })
        .await;
    let off = text(Code::FailedPrecondition, "authentication is not enabled");
    assert_eq!(refused(log_in(&servers[2], "ann", "other").await), off);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_request_hides_escapes_the_rights() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    server.kv().put(by(&root, put("secret", "x"))).await.unwrap();
    let mut nested = then(vec![op(put("secret", "y"))]);
    for _ in 0..5 {
        let refusal = server.kv().txn(by(&ann, nested.clone())).await;
        assert_eq!(refused(refusal), denied());
        nested = then(vec![op(nested)]);
    }
    let read = then(vec![op(range("secret", ""))]);
    assert_eq!(refused(server.kv().txn(by(&ann, read)).await), denied());
    let all = [range("\0", "\0"), range("a/1", "\0"), range("a", "a0"), range("a/", "b")];
    for request in all {
        assert_eq!(refused(server.kv().range(by(&ann, request.clone())).await), denied());
        assert_eq!(refused(server.kv().range_stream(by(&ann, request)).await), denied());
    }
    assert_eq!(refused(server.kv().delete_range(by(&ann, delete("a/", "\0"))).await), denied());
    let untouched = server.kv().range(by(&root, range("secret", ""))).await.unwrap();
    assert_eq!(untouched.get_ref().kvs[0].value, "x");

    // A lease on which somebody else's key hangs.
    let grant = etcd::LeaseGrantRequest { id: 5, ttl: 600 };
    server.lease().lease_grant(by(&ann, grant)).await.unwrap();
    let attached = |key: &str| etcd::PutRequest { lease: 5, ..put(key, "x") };
    server.kv().put(by(&ann, attached("a/l"))).await.unwrap();
    let time = |keys| etcd::LeaseTimeToLiveRequest { id: 5, keys };
    let own = server.lease().lease_time_to_live(by(&ann, time(true))).await.unwrap();
    assert_eq!(own.get_ref().keys, ["a/l"]);
    server.kv().put(by(&root, attached("secret"))).await.unwrap();
    server.lease().lease_time_to_live(by(&ann, time(false))).await.unwrap();
    let hidden = server.lease().lease_time_to_live(by(&ann, time(true))).await;
    assert_eq!(refused(hidden), denied());
    let list = etcd::LeaseLeasesRequest {};
    assert_eq!(refused(server.lease().lease_leases(by(&ann, list)).await), denied());
    let revoke = etcd::LeaseRevokeRequest { id: 5 };
    assert_eq!(refused(server.lease().lease_revoke(by(&ann, revoke)).await), denied());
    assert_eq!(refused(server.kv().put(by(&ann, attached("a/m"))).await), denied());
    let renew = futures::stream::iter([etcd::LeaseKeepAliveRequest { id: 5 }]);
    let mut renewals = server.lease().lease_keep_alive(by(&ann, renew)).await.unwrap().into_inner();
    assert_eq!(refused(renewals.message().await), denied());
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_user_sees_itself_and_its_roles_only() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    let user = |name: &str| etcd::AuthUserGetRequest { name: name.to_owned() };
    let role = |role: &str| etcd::AuthRoleGetRequest { role: role.to_owned() };
    let own = auth(&server).user_get(by(&ann, user("ann"))).await.unwrap();
    assert_eq!(own.get_ref().roles, ["a"]);
    assert_eq!(refused(auth(&server).user_get(by(&ann, user("root"))).await), denied());
    let own = auth(&server).role_get(by(&ann, role("a"))).await.unwrap();
    assert_eq!(own.get_ref().perm.len(), 1);
    assert_eq!(refused(auth(&server).role_get(by(&ann, role("root"))).await), denied());
    auth(&server)
        .role_add(by(&root, etcd::AuthRoleAddRequest { name: "root".to_owned() }))
        .await
        .unwrap();
    let everything = auth(&server).role_get(by(&root, role("root"))).await.unwrap().into_inner();
    let [perm] = everything.perm.as_slice() else { panic!("one permission") };
    assert_eq!(
        (perm.perm_type(), &perm.key[..], &perm.range_end[..]),
        (Type::Readwrite, &b""[..], &b"\0"[..])
    );

    let bare = etcd::AuthUserAddRequest {
        name: "cert".to_owned(),
        options: Some(UserAddOptions { no_password: true }),
        ..Default::default()
    };
    auth(&server).user_add(by(&root, bare)).await.unwrap();
    let refusal = refused(log_in(&server, "cert", "").await);
    let reason = "auth: authentication failed, password was given for no password user";
    assert_eq!(refusal, (Code::Unknown, reason.to_owned()));
    let status = auth(&server).auth_status(etcd::AuthStatusRequest {}).await.unwrap().into_inner();
    assert!(status.enabled);
    assert_eq!(status.auth_revision, 9, "3 users, 2 roles, a permission and 2 grants after 1");
}

/// What each RPC asks of its caller, as operators are told (docs/auth.md).
const OPEN: [&str; 2] = ["etcdserverpb.Auth/Authenticate", "etcdserverpb.Auth/AuthStatus"];
const USER: [&str; 8] = [
    "etcdserverpb.Lease/LeaseGrant",
    "etcdserverpb.Lease/LeaseTimeToLive",
    "etcdserverpb.Cluster/MemberList",
    "etcdserverpb.Maintenance/Alarm",
    "etcdserverpb.Maintenance/Status",
    "etcdserverpb.Auth/UserGet",
    "etcdserverpb.Auth/RoleGet",
    "conclave.v1.SessionService/Begin",
];
const ROOT: [&str; 25] = [
    "etcdserverpb.KV/Compact",
    "etcdserverpb.Cluster/MemberAdd",
    "etcdserverpb.Cluster/MemberRemove",
    "etcdserverpb.Cluster/MemberUpdate",
    "etcdserverpb.Cluster/MemberPromote",
    "etcdserverpb.Maintenance/Defragment",
    "etcdserverpb.Maintenance/Hash",
    "etcdserverpb.Maintenance/HashKV",
    "etcdserverpb.Maintenance/Snapshot",
    "etcdserverpb.Maintenance/MoveLeader",
    "etcdserverpb.Maintenance/Downgrade",
    "etcdserverpb.Auth/AuthEnable",
    "etcdserverpb.Auth/AuthDisable",
    "etcdserverpb.Auth/UserAdd",
    "etcdserverpb.Auth/UserList",
    "etcdserverpb.Auth/UserDelete",
    "etcdserverpb.Auth/UserChangePassword",
    "etcdserverpb.Auth/UserGrantRole",
    "etcdserverpb.Auth/UserRevokeRole",
    "etcdserverpb.Auth/RoleAdd",
    "etcdserverpb.Auth/RoleList",
    "etcdserverpb.Auth/RoleDelete",
    "etcdserverpb.Auth/RoleGrantPermission",
    "etcdserverpb.Auth/RoleRevokePermission",
    "conclave.v1.SessionService/List",
];
/// Rights to the keys of the request.
const KEYS: [&str; 53] = [
    "etcdserverpb.KV/Range",
    "etcdserverpb.KV/RangeStream",
    "etcdserverpb.KV/Put",
    "etcdserverpb.KV/DeleteRange",
    "etcdserverpb.KV/Txn",
    "etcdserverpb.Lease/LeaseRevoke",
    "etcdserverpb.Lease/LeaseKeepAlive",
    "etcdserverpb.Lease/LeaseLeases",
    "v3lockpb.Lock/Lock",
    "v3lockpb.Lock/Unlock",
    "v3electionpb.Election/Campaign",
    "v3electionpb.Election/Proclaim",
    "v3electionpb.Election/Leader",
    "v3electionpb.Election/Observe",
    "v3electionpb.Election/Resign",
    "conclave.v1.SessionService/Open",
    "conclave.v1.SessionService/End",
    "conclave.v1.LockService/Acquire",
    "conclave.v1.LockService/Release",
    "conclave.v1.LockService/Convert",
    "conclave.v1.LockService/CheckFence",
    "conclave.v1.LockService/Commit",
    "conclave.v1.LockService/List",
    "conclave.v1.LockService/Inspect",
    "conclave.v1.LockService/ForceRelease",
    "conclave.v1.ElectionService/Campaign",
    "conclave.v1.ElectionService/Proclaim",
    "conclave.v1.ElectionService/Resign",
    "conclave.v1.ElectionService/Observe",
    "conclave.v1.CounterService/Add",
    "conclave.v1.CounterService/Set",
    "conclave.v1.CounterService/Get",
    "conclave.v1.LatchService/Create",
    "conclave.v1.LatchService/CountDown",
    "conclave.v1.LatchService/Get",
    "conclave.v1.LatchService/Wait",
    "conclave.v1.BarrierService/Raise",
    "conclave.v1.BarrierService/Lift",
    "conclave.v1.BarrierService/Wait",
    "conclave.v1.DoubleBarrierService/Enter",
    "conclave.v1.DoubleBarrierService/Leave",
    "conclave.v1.GroupService/Join",
    "conclave.v1.GroupService/Leave",
    "conclave.v1.GroupService/List",
    "conclave.v1.RegistryService/Register",
    "conclave.v1.RegistryService/Update",
    "conclave.v1.RegistryService/Deregister",
    "conclave.v1.RegistryService/Discover",
    "conclave.v1.RegistryService/ListServices",
    "conclave.v1.RegistryService/Configure",
    "conclave.v1.DiscoveryService/Watch",
    "conclave.v1.WriteService/Write",
    // Watcher by watcher; the stream opens.
    "etcdserverpb.Watch/Watch",
];

/// RPCs of all .proto files that clients reach.
fn rpcs() -> BTreeSet<String> {
    let files = prost_types::FileDescriptorSet::decode(conclave_proto::FILE_DESCRIPTOR_SET);
    let mut rpcs = BTreeSet::new();
    for file in files.unwrap().file.iter().filter(|file| file.package() != "conclave.internal.v1") {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                rpcs.insert(format!("{package}.{service}/{}", method.name()));
            }
        }
    }
    rpcs
}

/// Calls an RPC with one empty message; its first answer, as far as it has one.
async fn call(server: &Server, path: &str, token: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = format!("/{path}").parse().unwrap();
    let mut request = by(token, futures::stream::iter([()]));
    request.set_timeout(Duration::from_secs(20));
    let mut answers = client.streaming(request, path, codec).await?.into_inner();
    // A stream that is open and has nothing to say was not refused either.
    tokio::time::timeout(Duration::from_millis(300), answers.next())
        .await
        .ok()
        .flatten()
        .transpose()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_asks_for_what_its_row_says() {
    let rows: BTreeSet<String> =
        [&OPEN[..], &USER, &ROOT, &KEYS].concat().into_iter().map(str::to_owned).collect();
    assert_eq!(rows, rpcs(), "every RPC has one row");
    let server = server(&[FAST]).await;
    let [root, _] = enable(&server).await;
    add_user(&server, &root, "weak", &[]).await;
    let weak = log_in(&server, "weak", "weak-password").await.unwrap();
    let refusal = async |path: &str, token: &str| match call(&server, path, token).await {
        Ok(()) => (Code::Ok, String::new()),
        Err(status) => (status.code(), status.message().to_owned()),
    };
    let nobody = text(Code::InvalidArgument, "user name is empty");
    let unknown = text(Code::Unauthenticated, "invalid auth token");
    for path in USER.iter().chain(&ROOT).chain(&KEYS) {
        if *path == "etcdserverpb.Watch/Watch" {
            continue;
        }
        assert_eq!(refusal(path, "").await, nobody, "{path} without a user");
        assert_eq!(refusal(path, "stolen.1").await, unknown, "{path} with a wrong token");
    }
    for path in ROOT {
        assert_eq!(refusal(path, &weak).await, denied(), "{path} by a user without roles");
    }
    for path in USER {
        let (_, text) = refusal(path, &weak).await;
        // An empty message names no user or role, which is not the caller's own.
        let is_own = path.ends_with("/UserGet") || path.ends_with("/RoleGet");
        assert_eq!(text == denied().1, is_own, "{path} by a user without roles: {text}");
    }
    for path in OPEN {
        let (code, text) = refusal(path, "").await;
        assert!(code == Code::Ok || text.contains("authentication failed"), "{path}: {text}");
    }
    let list = "etcdserverpb.Auth/UserList";
    assert_eq!(refusal(list, &root).await.0, Code::Ok, "root may");
    let (code, _) = refusal("etcdserverpb.Auth/NoSuchMethod", "").await;
    assert_eq!(code, Code::Unimplemented, "what is not there is nobody's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_token_is_good_until_users_change() {
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut secret, b"known to all members").unwrap();
    let flag = format!("--auth-token=jwt,sign-method=HS256,priv-key={}", secret.path().display());
    let servers = servers(3, &[FAST, &flag]).await;
    let [root, ann] = enable(&servers[0]).await;
    assert_eq!(ann.split('.').count(), 3, "{ann}");
    for server in &servers {
        server.kv().put(by(&ann, put("a/1", "x"))).await.unwrap();
        assert_eq!(server.kv().range(by(&ann, range("a/1", ""))).await.unwrap().get_ref().count, 1);
        assert_eq!(refused(server.kv().put(by(&ann, put("b", "x"))).await), denied());
        let forged = format!("{}x", &ann[..ann.len() - 1]);
        let wrong = text(Code::Unauthenticated, "invalid auth token");
        assert_eq!(refused(server.kv().put(by(&forged, put("a/1", "x"))).await), wrong);
    }
    add_user(&servers[1], &root, "bob", &[]).await;
    let old = text(Code::InvalidArgument, "revision of auth store is old");
    for server in &servers {
        assert_eq!(refused(server.kv().put(by(&ann, put("a/1", "y"))).await), old);
        assert_eq!(refused(server.kv().range(by(&ann, range("a/1", ""))).await), old);
        let again = log_in(server, "ann", "ann-password").await.unwrap();
        server.kv().put(by(&again, put("a/1", "y"))).await.unwrap();
    }
}

/// Users, roles and rights change without a pause while their owners write: a member that decided otherwise
/// about one of these writes would have other data.
#[tokio::test(flavor = "multi_thread")]
async fn users_that_come_and_go_leave_members_equal() {
    const ROUNDS: usize = 12;
    const WRITERS: usize = 4;
    let servers = servers(3, &[FAST]).await;
    let [mut root, _] = enable(&servers[0]).await;
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let writing = (0..WRITERS).map(|writer| {
        let (servers, is_over) = (&servers, &is_over);
        async move {
            let server = &servers[writer % 3];
            let (mut written, mut refused) = (0, 0);
            let mut token = String::new();
            for number in 0.. {
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let key = format!("a/{writer}-{number}");
                match server.kv().put(by(&token, put(&key, "v"))).await {
                    Ok(_) => written += 1,
                    Err(_) => {
                        refused += 1;
                        token = log_in(server, "ann", "ann-password").await.unwrap_or_default();
                    }
                }
            }
            (written, refused)
        }
    });
    let changing = async {
        for round in 0..ROUNDS {
            let mut auth = auth(&servers[round % 3]);
            let role = || etcd::AuthUserRevokeRoleRequest { name: "ann".into(), role: "a".into() };
            auth.user_revoke_role(by(&root, role())).await.unwrap();
            add_user(&servers[round % 3], &root, &format!("guest-{round}"), &["a"]).await;
            let grant = etcd::AuthUserGrantRoleRequest { user: "ann".into(), role: "a".into() };
            auth.user_grant_role(by(&root, grant)).await.unwrap();
            if round % 3 == 2 {
                auth.auth_disable(by(&root, etcd::AuthDisableRequest {})).await.unwrap();
                auth.auth_enable(etcd::AuthEnableRequest {}).await.unwrap();
                // All tokens are void now.
                root = log_in(&servers[0], "root", "root-password").await.unwrap();
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (counts, ()) = tokio::join!(futures::future::join_all(writing), changing);
    let refused: usize = counts.iter().map(|(_, refused)| refused).sum();
    println!("{counts:?} writes and refusals");
    assert!(refused > 0, "rights came and went");
    let root = log_in(&servers[0], "root", "root-password").await.unwrap();
    let mut states = Vec::new();
    for server in &servers {
        // Linearizable, so that the member has applied all of it.
        let all = server.kv().range(by(&root, range("a/", "a0"))).await.unwrap().into_inner();
        let revision = all.header.unwrap().revision;
        let hash = etcd::HashKvRequest { revision };
        let hash = server.maintenance().hash_kv(by(&root, hash)).await.unwrap().into_inner().hash;
        let list = by(&root, etcd::AuthUserListRequest {});
        let users = auth(server).user_list(list).await.unwrap().into_inner().users;
        let written: usize = counts.iter().map(|(written, _)| written).sum();
        assert!(all.count >= i64::try_from(written).unwrap(), "acknowledged puts are there");
        states.push((revision, hash, all.count, users));
    }
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "{states:?}");
}
