//! The table of RPCs and who may call them while auth is enabled. What has no row here is refused.
//!
//! A row is the first check of a call, not the last: writes are checked again by apply, with the rights
//! as of their place in the log, and reads by their service.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::metrics::Method;

/// Who may call an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody, also without a user.
    Open,
    /// Every user; what it may see of others is checked by the service.
    User,
    /// Users with rights to the keys of the request.
    Keys,
    /// As `Keys`, watcher by watcher: the stream opens for everybody.
    Watch,
    /// Users with the root role.
    Root,
}

/// Services that are open as a whole, and have no rows.
const OPEN_SERVICES: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let path = |method: &Method| {
        let [_, (_, service), (_, name)] = method.labels();
        (format!("/{service}/{name}"), *method)
    };
    Method::ALL.iter().map(path).collect()
});

/// The method with this path.
pub(crate) fn method_of(path: &str) -> Option<Method> {
    METHODS.get(path).copied()
}

/// Who may call the RPC with this path; `None` if it has no row.
pub(crate) fn of_path(path: &str) -> Option<Access> {
    if OPEN_SERVICES.iter().any(|service| path.starts_with(service)) {
        return Some(Access::Open);
    }
    method_of(path).map(of)
}

/// The table.
#[expect(clippy::too_many_lines, reason = "a table: one row for each RPC")]
pub(crate) fn of(method: Method) -> Access {
    match method {
        Method::Authenticate | Method::AuthStatus => Access::Open,

        Method::Range
        | Method::RangeStream
        | Method::Put
        | Method::DeleteRange
        | Method::Txn
        | Method::LeaseRevoke
        | Method::LeaseKeepAlive
        | Method::LeaseLeases
        | Method::Lock
        | Method::Unlock
        | Method::Campaign
        | Method::Proclaim
        | Method::Leader
        | Method::Observe
        | Method::Resign
        | Method::SessionEnd
        | Method::SessionOpen
        | Method::LockAcquire
        | Method::LockRelease
        | Method::LockConvert
        | Method::LockCheckFence
        | Method::LockCommit
        | Method::LockList
        | Method::LockInspect
        | Method::LockForceRelease
        | Method::ElectionCampaign
        | Method::ElectionProclaim
        | Method::ElectionResign
        | Method::ElectionObserve
        | Method::CounterAdd
        | Method::CounterSet
        | Method::CounterGet
        | Method::LatchCreate
        | Method::LatchCountDown
        | Method::LatchGet
        | Method::LatchWait
        | Method::BarrierRaise
        | Method::BarrierLift
        | Method::BarrierWait
        | Method::DoubleBarrierEnter
        | Method::DoubleBarrierLeave
        | Method::GroupJoin
        | Method::GroupLeave
        | Method::GroupList
        | Method::RegistryRegister
        | Method::RegistryUpdate
        | Method::RegistryDeregister
        | Method::RegistryDiscover
        | Method::RegistryListServices
        | Method::RegistryConfigure
        | Method::DiscoveryWatch
        | Method::Write => Access::Keys,

        Method::Watch => Access::Watch,

        // Of an alarm only the list; of a lease with keys only those that may be read; of users and
        // roles only one's own.
        Method::LeaseGrant
        | Method::LeaseTimeToLive
        | Method::MemberList
        | Method::Alarm
        | Method::Status
        | Method::UserGet
        | Method::RoleGet
        | Method::SessionBegin => Access::User,

        Method::Compact
        | Method::MemberAdd
        | Method::MemberRemove
        | Method::MemberUpdate
        | Method::MemberPromote
        | Method::Defragment
        | Method::Hash
        | Method::HashKv
        | Method::Snapshot
        | Method::MoveLeader
        | Method::Downgrade
        | Method::AuthEnable
        | Method::AuthDisable
        | Method::UserAdd
        | Method::UserList
        | Method::UserDelete
        | Method::UserChangePassword
        | Method::UserGrantRole
        | Method::UserRevokeRole
        | Method::RoleAdd
        | Method::RoleList
        | Method::RoleDelete
        | Method::RoleGrantPermission
        | Method::RoleRevokePermission
        // It shows the owners of all sessions, and the names of all their keys.
        | Method::SessionList => Access::Root,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    /// Paths of all RPCs of the .proto files that clients reach.
    fn paths_of_protos() -> BTreeSet<String> {
        let files = prost_types::FileDescriptorSet::decode(conclave_proto::FILE_DESCRIPTOR_SET);
        let mut paths = BTreeSet::new();
        for file in files.unwrap().file {
            let package = file.package().to_owned();
            if package == "conclave.internal.v1" {
                continue;
            }
            for service in &file.service {
                for method in &service.method {
                    paths.insert(format!("/{package}.{}/{}", service.name(), method.name()));
                }
            }
        }
        paths
    }

    #[test]
    fn every_rpc_has_a_row() {
        let rows: BTreeSet<String> = METHODS.keys().cloned().collect();
        let rpcs = paths_of_protos();
        assert!(rpcs.len() > 60, "the descriptors were read");
        assert_eq!(rpcs.difference(&rows).collect::<Vec<_>>(), Vec::<&String>::new(), "no row");
        assert_eq!(rows.difference(&rpcs).collect::<Vec<_>>(), Vec::<&String>::new(), "no RPC");
    }

    #[test]
    fn what_has_no_row_is_refused() {
        assert_eq!(of_path("/etcdserverpb.KV/Peek"), None);
        assert_eq!(of_path("/grpc.health.v1.Health/Check"), Some(Access::Open));
        assert_eq!(of_path("/etcdserverpb.KV/Compact"), Some(Access::Root));
    }
}
