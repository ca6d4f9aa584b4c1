//! What each RPC asks of its caller, tried on all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use prost::Message as _;
use tonic::{Code, Status};

use super::{FAST, add_user, by, denied, enable, log_in, text};
use crate::support::{Server, server};

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
        // etcd's recipes run as clients of the store, whose words they repeat without the code.
        let is_recipe = path.starts_with("v3lockpb.") || path.starts_with("v3electionpb.");
        let said = |(code, text): &(Code, String)| match is_recipe {
            true => (Code::Unknown, text.clone()),
            false => (*code, text.clone()),
        };
        assert_eq!(refusal(path, "").await, said(&nobody), "{path} without a user");
        assert_eq!(refusal(path, "stolen.1").await, said(&unknown), "{path} with a wrong token");
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
