//! Rights that go between a call and what it does: of what is no entry of the log, where apply would look at them.

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::cluster_client::ClusterClient;
use conclave_server::raft::{ChangeError, Denial};
use conclave_state_machine::command::{Caller, UserName};
use conclave_state_machine::members::rules::MemberChange;
use tonic::Code;

use super::{FAST, add_user, auth, by, denied, enable, log_in, text};
use crate::cluster::within;
use crate::support::{leader, put, refused, server, servers};

/// Nobody else is elected because a loaded machine let the leader stand still.
const PATIENT: &str = "--election-timeout=5000";

/// A user that was verified when the call came in.
fn user(name: &str, auth_revision: u64) -> Caller {
    Caller::User { name: UserName::from(name.to_owned()), auth_revision }
}

fn revoke_root(user: &str) -> etcd::AuthUserRevokeRoleRequest {
    etcd::AuthUserRevokeRoleRequest { name: user.to_owned(), role: "root".to_owned() }
}

/// The node is asked as the service asks it, after the first check.
#[tokio::test(flavor = "multi_thread")]
async fn members_are_changed_by_whom_the_leader_lets_when_it_does() {
    let servers = servers(3, &[FAST, PATIENT]).await;
    let [root, _] = enable(&servers[0]).await;
    add_user(&servers[0], &root, "second", &["root"]).await;
    let urls = |port: usize| vec![format!("http://127.0.0.1:{port}")];
    let members = async || {
        let list = by(&root, etcd::MemberListRequest { linearizable: true });
        let mut client = ClusterClient::new(servers[0].channel.clone());
        client.member_list(list).await.unwrap().into_inner().members
    };
    let before = members().await;
    let changes = [
        MemberChange::Add { peer_urls: urls(1), is_learner: true },
        MemberChange::Update { id: before[0].id, peer_urls: urls(2) },
        MemberChange::Remove { id: before[1].id },
        MemberChange::Promote { id: before[2].id },
    ];
    let refused_by_all = async |caller: &Caller, denial| {
        for server in &servers {
            for change in &changes {
                let refusal = server.running.node().change_members(caller, change).await;
                assert_eq!(refusal, Err(ChangeError::Denied(denial)), "{caller:?} {change:?}");
            }
        }
    };
    refused_by_all(&Caller::Anonymous, Denial::NoUser).await;
    refused_by_all(&user("ann", u64::MAX), Denial::NoRight).await;
    refused_by_all(&user("nobody", u64::MAX), Denial::NoRight).await;
    refused_by_all(&user("second", 1), Denial::OldUser).await;
    let second = user("second", u64::MAX);
    let node = servers[1].running.node();
    let removal = MemberChange::Remove { id: 7 };
    let allowed = node.change_members(&second, &removal).await;
    assert!(
        matches!(allowed, Err(ChangeError::Refused(_))),
        "there is no such member: {allowed:?}"
    );
    auth(&servers[2]).user_revoke_role(by(&root, revoke_root("second"))).await.unwrap();
    refused_by_all(&second, Denial::NoRight).await;
    assert_eq!(members().await, before);
    auth(&servers[0]).auth_disable(by(&root, etcd::AuthDisableRequest {})).await.unwrap();
    let allowed = node.change_members(&Caller::Anonymous, &removal).await;
    assert!(matches!(allowed, Err(ChangeError::Refused(_))), "{allowed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_was_is_nothing_on_any_member_at_once() {
    let servers = servers(3, &[FAST, PATIENT]).await;
    let [root, _] = enable(&servers[0]).await;
    let at = leader(&servers).await;
    let (there, other) = (&servers[at], &servers[(at + 1) % 3]);
    let target_id = other.running.node().member_id();
    for round in 0..5 {
        let name = format!("admin{round}");
        add_user(other, &root, &name, &["root"]).await;
        let token = log_in(there, &name, &format!("{name}-password")).await.unwrap();
        there.maintenance().status(by(&token, etcd::StatusRequest {})).await.unwrap();
        auth(other).user_revoke_role(by(&root, revoke_root(&name))).await.unwrap();
        let transfer = by(&token, etcd::MoveLeaderRequest { target_id });
        assert_eq!(refused(there.maintenance().move_leader(transfer).await), denied());
        for server in &servers {
            let add = etcd::MemberAddRequest {
                peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()],
                is_learner: true,
            };
            let mut cluster = ClusterClient::new(server.channel.clone());
            assert_eq!(refused(cluster.member_add(by(&token, add)).await), denied());
        }
        let delete = etcd::AuthUserDeleteRequest { name };
        auth(other).user_delete(by(&root, delete)).await.unwrap();
        let mut cluster = ClusterClient::new(there.channel.clone());
        let nobodys = async {
            loop {
                let list = by(&token, etcd::MemberListRequest { linearizable: true });
                if let Err(status) = cluster.member_list(list).await {
                    break (status.code(), status.message().to_owned());
                }
            }
        };
        let unknown = text(Code::Unauthenticated, "invalid auth token");
        assert_eq!(within("the token to be nobody's", nobodys).await, unknown);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_ends_when_its_right_is_gone() {
    let server = server(&[FAST]).await;
    let [root, _] = enable(&server).await;
    add_user(&server, &root, "backup", &["root"]).await;
    let token = log_in(&server, "backup", "backup-password").await.unwrap();
    // More than a connection takes in advance.
    for i in 0..8 {
        let noise: String = (0..1_000_000).map(|_| rand::random_range('a'..='z')).collect();
        server.kv().put(by(&root, put(&format!("k{i}"), &noise))).await.unwrap();
    }
    let snapshot = by(&token, etcd::SnapshotRequest {});
    let mut pieces = server.maintenance().snapshot(snapshot).await.unwrap().into_inner();
    within("a piece", pieces.message()).await.unwrap().unwrap();
    auth(&server).user_revoke_role(by(&root, revoke_root("backup"))).await.unwrap();
    let end = async {
        loop {
            match pieces.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("all of it was sent"),
                Err(status) => break (status.code(), status.message().to_owned()),
            }
        }
    };
    assert_eq!(within("the end", end).await, denied());
}
