//! Maps paths to methods: those of etcd's gateway, and for every method its gRPC path.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MethodDescriptor};

/// etcd's paths below `/v3/` and `/v3beta/`, by service.
const PATHS: &[(&str, &[(&str, &str)])] = &[
    (
        "etcdserverpb.KV",
        &[
            ("Range", "kv/range"),
            ("Put", "kv/put"),
            ("DeleteRange", "kv/deleterange"),
            ("Txn", "kv/txn"),
            ("Compact", "kv/compaction"),
        ],
    ),
    ("etcdserverpb.Watch", &[("Watch", "watch")]),
    (
        "etcdserverpb.Lease",
        &[
            ("LeaseGrant", "lease/grant"),
            ("LeaseRevoke", "lease/revoke"),
            ("LeaseRevoke", "kv/lease/revoke"),
            ("LeaseKeepAlive", "lease/keepalive"),
            ("LeaseTimeToLive", "lease/timetolive"),
            ("LeaseTimeToLive", "kv/lease/timetolive"),
            ("LeaseLeases", "lease/leases"),
            ("LeaseLeases", "kv/lease/leases"),
        ],
    ),
    (
        "etcdserverpb.Cluster",
        &[
            ("MemberAdd", "cluster/member/add"),
            ("MemberRemove", "cluster/member/remove"),
            ("MemberUpdate", "cluster/member/update"),
            ("MemberList", "cluster/member/list"),
            ("MemberPromote", "cluster/member/promote"),
        ],
    ),
    (
        "etcdserverpb.Maintenance",
        &[
            ("Alarm", "maintenance/alarm"),
            ("Status", "maintenance/status"),
            ("Defragment", "maintenance/defragment"),
            ("Hash", "maintenance/hash"),
            ("HashKV", "maintenance/hashkv"),
            ("Snapshot", "maintenance/snapshot"),
            ("MoveLeader", "maintenance/transfer-leadership"),
            ("Downgrade", "maintenance/downgrade"),
        ],
    ),
    (
        "etcdserverpb.Auth",
        &[
            ("AuthEnable", "auth/enable"),
            ("AuthDisable", "auth/disable"),
            ("AuthStatus", "auth/status"),
            ("Authenticate", "auth/authenticate"),
            ("UserAdd", "auth/user/add"),
            ("UserGet", "auth/user/get"),
            ("UserList", "auth/user/list"),
            ("UserDelete", "auth/user/delete"),
            ("UserChangePassword", "auth/user/changepw"),
            ("UserGrantRole", "auth/user/grant"),
            ("UserRevokeRole", "auth/user/revoke"),
            ("RoleAdd", "auth/role/add"),
            ("RoleGet", "auth/role/get"),
            ("RoleList", "auth/role/list"),
            ("RoleDelete", "auth/role/delete"),
            ("RoleGrantPermission", "auth/role/grant"),
            ("RoleRevokePermission", "auth/role/revoke"),
        ],
    ),
    ("v3lockpb.Lock", &[("Lock", "lock/lock"), ("Unlock", "lock/unlock")]),
    (
        "v3electionpb.Election",
        &[
            ("Campaign", "election/campaign"),
            ("Proclaim", "election/proclaim"),
            ("Leader", "election/leader"),
            ("Observe", "election/observe"),
            ("Resign", "election/resign"),
        ],
    ),
];

/// Package of the calls between members, which clients cannot make.
const NOT_FOR_CLIENTS: &str = "conclave.internal.v1";

static METHODS: LazyLock<HashMap<String, MethodDescriptor>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(conclave_proto::FILE_DESCRIPTOR_SET)
        .expect("invariant: the descriptors were made with the code");
    let mut methods = HashMap::new();
    for service in pool.services() {
        if service.parent_file().package_name() == NOT_FOR_CLIENTS {
            continue;
        }
        let paths = PATHS.iter().find(|(name, _)| *name == service.full_name());
        for method in service.methods() {
            let own = paths.into_iter().flat_map(|(_, paths)| *paths);
            for (_, path) in own.filter(|(name, _)| *name == method.name()) {
                for prefix in ["/v3/", "/v3beta/"] {
                    methods.insert(format!("{prefix}{path}"), method.clone());
                }
            }
            let path = format!("/{}/{}", service.full_name(), method.name());
            methods.insert(path, method);
        }
    }
    methods
});

/// The method for a path.
pub(in crate::http) fn find(path: &str) -> Option<MethodDescriptor> {
    METHODS.get(path).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_etcd_has_its_path() {
        let known = |path: &str| find(path).map(|method| method.full_name().to_owned());
        for (service, paths) in PATHS {
            for (method, path) in *paths {
                let name = Some(format!("{service}.{method}"));
                assert_eq!(known(&format!("/v3/{path}")), name);
                assert_eq!(known(&format!("/v3beta/{path}")), name);
            }
        }
        let count: usize = PATHS.iter().map(|(_, paths)| paths.len()).sum();
        let own = METHODS.keys().filter(|path| path.starts_with("/v3/")).count();
        assert_eq!(own, count, "no path stands for two methods");
        for path in METHODS.keys().filter(|path| !path.starts_with("/conclave.")) {
            let method = METHODS.get(path).unwrap();
            let has_path =
                METHODS.iter().any(|(path, other)| path.starts_with("/v3/") && other == method);
            // etcd itself has no path for it.
            assert!(has_path || method.name() == "RangeStream", "{path}");
        }
    }

    #[test]
    fn other_methods_are_found_where_grpc_has_them() {
        assert!(find("/conclave.v1.LockService/Acquire").is_some());
        assert!(find("/etcdserverpb.KV/RangeStream").unwrap().is_server_streaming());
        assert!(find("/v3/kv/none").is_none());
        assert!(!METHODS.keys().any(|path| path.contains(NOT_FOR_CLIENTS)));
    }
}
