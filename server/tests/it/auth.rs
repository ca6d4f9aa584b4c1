//! Users and roles over real ports: logins, tokens on other members, rights to reads and watches.

mod later;
mod rows;
mod streams;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use conclave_proto::authpb::permission::Type;
use conclave_proto::authpb::{Permission, UserAddOptions};
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_proto::etcdserverpb::cluster_client::ClusterClient;
use conclave_proto::internal::{self, command::Command};
use conclave_raft_store::command::auth::inside;
use conclave_state_machine::response::{AuthChange, Response};
use ring::digest::{SHA256, digest};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cluster::within;
use crate::support::{Plan, Server, delete, op, put, range, refused, server, servers, then};

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

/// As etcd from 3.5 on, which was asked the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_may_be_changed_by_its_hash() {
    let server = server(&[FAST]).await;
    let [root, _] = enable(&server).await;
    // Of "hello".
    let hash = b"$2b$04$abcdefghijklmnopqrstuuwHJMEGjfAzmL1lWmUmlphguIbWfjYey";
    let change = |password: &str, hash: &str| etcd::AuthUserChangePasswordRequest {
        name: "ann".to_owned(),
        password: password.to_owned(),
        hashed_password: hash.to_owned(),
    };
    let hash = STANDARD.encode(hash);
    let (server, root) = (&server, &root);
    let changed = async |password: &str, hash: &str| {
        auth(server).user_change_password(by(root, change(password, hash))).await.map(drop)
    };
    let failed = text(Code::InvalidArgument, "authentication failed, invalid user ID or password");
    changed("", &hash).await.unwrap();
    log_in(server, "ann", "hello").await.unwrap();
    let refusal = "auth: authentication failed, password was given for no password user";
    let malformed = refused(changed("", "no Base64").await);
    assert_eq!(malformed, (Code::Unknown, refusal.to_owned()));
    log_in(server, "ann", "hello").await.unwrap();
    changed("counts", &hash).await.unwrap();
    log_in(server, "ann", "counts").await.unwrap();
    assert_eq!(refused(log_in(server, "ann", "hello").await), failed);
    let add = etcd::AuthUserAddRequest {
        name: "eve".to_owned(),
        hashed_password: hash,
        ..Default::default()
    };
    auth(server).user_add(by(root, add)).await.unwrap();
    assert_eq!(refused(log_in(server, "eve", "hello").await), failed, "a hash adds no user");
}

/// It has not applied yet that calls need a user, and must not take who shows a token for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_on_a_member_that_lags() {
    let plan = Plan::new(3, &[FAST]);
    let (first, second) = tokio::join!(plan.start(0), plan.start(1));
    for server in [&first, &second] {
        within("a server is ready", server.running.ready()).await.unwrap();
    }
    let [_, ann] = enable(&first).await;
    let late = plan.start(2).await;
    late.kv().put(by(&ann, put("a/1", "x"))).await.unwrap();
    assert_eq!(refused(late.kv().put(by(&ann, put("b", "x"))).await), denied());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_whatever_the_clock_of_who_gave_it_out() {
    let server = server(&[FAST]).await;
    let [root, _] = enable(&server).await;
    let status = auth(&server).auth_status(by(&root, etcd::AuthStatusRequest {})).await.unwrap();
    // Long ago, in the future, and not said, as by a member of before.
    for issued_unix_ms in [1_000, i64::MAX, 0] {
        let secret = format!("secret{issued_unix_ms}");
        let fingerprint = Bytes::copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
        let issue = internal::AuthToken {
            user: "root".to_owned(),
            fingerprint,
            auth_revision: status.get_ref().auth_revision,
            issued_unix_ms,
        };
        let applied = server.running.node().propose(inside(Command::AuthToken(issue))).await;
        let outcome = applied.unwrap().outcome;
        let Ok(Response::Auth(AuthChange::Token { index, .. })) = outcome else {
            panic!("{outcome:?}")
        };
        let list = by(&format!("{secret}.{index}"), etcd::AuthUserListRequest {});
        auth(&server).user_list(list).await.unwrap();
    }
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
    // What others may does not end an administrator's token, and a new password of its own does.
    let user_list = etcd::AuthUserListRequest {};
    let member_list = etcd::MemberListRequest { linearizable: true };
    auth(&servers[2]).user_list(by(&root, user_list)).await.unwrap();
    let change = etcd::AuthUserChangePasswordRequest {
        name: "root".to_owned(),
        password: "other".to_owned(),
        ..Default::default()
    };
    auth(&servers[0]).user_change_password(by(&root, change)).await.unwrap();
    assert_eq!(refused(auth(&servers[0]).user_list(by(&root, user_list)).await), old);
    for server in &servers {
        let add = etcd::AuthRoleAddRequest { name: "r".to_owned() };
        let late = auth(server).role_add(by(&root, add)).await;
        assert_eq!(refused(late), old, "whatever this member has heard");
        within("the token to be old", async {
            let mut cluster = ClusterClient::new(server.channel.clone());
            while cluster.member_list(by(&root, member_list)).await.is_ok() {}
        })
        .await;
        log_in(server, "root", "other").await.unwrap();
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
