//! The methods of the client port, with their metric labels.

/// Declares the methods with their kind, service and name.
macro_rules! methods {
    ($($variant:ident: $kind:literal, $service:literal, $name:literal;)*) => {
        /// A method of the client port.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Method {
            $($variant,)*
        }

        impl Method {
            /// All methods, in order of their numbers.
            pub(crate) const ALL: &'static [Method] = &[$(Method::$variant,)*];

            /// Kind, service and name, as labels.
            pub(crate) fn labels(self) -> [(&'static str, &'static str); 3] {
                let (kind, service, name) = match self {
                    $(Method::$variant => ($kind, $service, $name),)*
                };
                [("grpc_type", kind), ("grpc_service", service), ("grpc_method", name)]
            }
        }
    };
}

impl Method {
    /// Whether the method is unary.
    pub(crate) fn is_unary(self) -> bool {
        self.labels()[0].1 == "unary"
    }

    /// Whether its duration is always measured; etcd does so for key and lease requests.
    pub(super) fn is_measured(self) -> bool {
        let [_, (_, service), _] = self.labels();
        self.is_unary() && ["etcdserverpb.KV", "etcdserverpb.Lease"].contains(&service)
    }
}

methods! {
    Range: "unary", "etcdserverpb.KV", "Range";
    RangeStream: "server_stream", "etcdserverpb.KV", "RangeStream";
    Put: "unary", "etcdserverpb.KV", "Put";
    DeleteRange: "unary", "etcdserverpb.KV", "DeleteRange";
    Txn: "unary", "etcdserverpb.KV", "Txn";
    Compact: "unary", "etcdserverpb.KV", "Compact";
    Watch: "bidi_stream", "etcdserverpb.Watch", "Watch";
    LeaseGrant: "unary", "etcdserverpb.Lease", "LeaseGrant";
    LeaseRevoke: "unary", "etcdserverpb.Lease", "LeaseRevoke";
    LeaseKeepAlive: "bidi_stream", "etcdserverpb.Lease", "LeaseKeepAlive";
    LeaseTimeToLive: "unary", "etcdserverpb.Lease", "LeaseTimeToLive";
    LeaseLeases: "unary", "etcdserverpb.Lease", "LeaseLeases";
    MemberAdd: "unary", "etcdserverpb.Cluster", "MemberAdd";
    MemberRemove: "unary", "etcdserverpb.Cluster", "MemberRemove";
    MemberUpdate: "unary", "etcdserverpb.Cluster", "MemberUpdate";
    MemberList: "unary", "etcdserverpb.Cluster", "MemberList";
    MemberPromote: "unary", "etcdserverpb.Cluster", "MemberPromote";
    Alarm: "unary", "etcdserverpb.Maintenance", "Alarm";
    Status: "unary", "etcdserverpb.Maintenance", "Status";
    Defragment: "unary", "etcdserverpb.Maintenance", "Defragment";
    Hash: "unary", "etcdserverpb.Maintenance", "Hash";
    HashKv: "unary", "etcdserverpb.Maintenance", "HashKV";
    Snapshot: "server_stream", "etcdserverpb.Maintenance", "Snapshot";
    MoveLeader: "unary", "etcdserverpb.Maintenance", "MoveLeader";
    Downgrade: "unary", "etcdserverpb.Maintenance", "Downgrade";
    AuthEnable: "unary", "etcdserverpb.Auth", "AuthEnable";
    AuthDisable: "unary", "etcdserverpb.Auth", "AuthDisable";
    AuthStatus: "unary", "etcdserverpb.Auth", "AuthStatus";
    Authenticate: "unary", "etcdserverpb.Auth", "Authenticate";
    UserAdd: "unary", "etcdserverpb.Auth", "UserAdd";
    UserGet: "unary", "etcdserverpb.Auth", "UserGet";
    UserList: "unary", "etcdserverpb.Auth", "UserList";
    UserDelete: "unary", "etcdserverpb.Auth", "UserDelete";
    UserChangePassword: "unary", "etcdserverpb.Auth", "UserChangePassword";
    UserGrantRole: "unary", "etcdserverpb.Auth", "UserGrantRole";
    UserRevokeRole: "unary", "etcdserverpb.Auth", "UserRevokeRole";
    RoleAdd: "unary", "etcdserverpb.Auth", "RoleAdd";
    RoleGet: "unary", "etcdserverpb.Auth", "RoleGet";
    RoleList: "unary", "etcdserverpb.Auth", "RoleList";
    RoleDelete: "unary", "etcdserverpb.Auth", "RoleDelete";
    RoleGrantPermission: "unary", "etcdserverpb.Auth", "RoleGrantPermission";
    RoleRevokePermission: "unary", "etcdserverpb.Auth", "RoleRevokePermission";
    Lock: "unary", "v3lockpb.Lock", "Lock";
    Unlock: "unary", "v3lockpb.Lock", "Unlock";
    Campaign: "unary", "v3electionpb.Election", "Campaign";
    Proclaim: "unary", "v3electionpb.Election", "Proclaim";
    Leader: "unary", "v3electionpb.Election", "Leader";
    Observe: "server_stream", "v3electionpb.Election", "Observe";
    Resign: "unary", "v3electionpb.Election", "Resign";
    SessionBegin: "unary", "conclave.v1.SessionService", "Begin";
    SessionEnd: "unary", "conclave.v1.SessionService", "End";
    SessionOpen: "bidi_stream", "conclave.v1.SessionService", "Open";
    SessionList: "unary", "conclave.v1.SessionService", "List";
    LockAcquire: "server_stream", "conclave.v1.LockService", "Acquire";
    LockRelease: "unary", "conclave.v1.LockService", "Release";
    LockConvert: "unary", "conclave.v1.LockService", "Convert";
    LockCheckFence: "unary", "conclave.v1.LockService", "CheckFence";
    LockCommit: "unary", "conclave.v1.LockService", "Commit";
    LockList: "unary", "conclave.v1.LockService", "List";
    LockInspect: "unary", "conclave.v1.LockService", "Inspect";
    LockForceRelease: "unary", "conclave.v1.LockService", "ForceRelease";
    ElectionCampaign: "server_stream", "conclave.v1.ElectionService", "Campaign";
    ElectionProclaim: "unary", "conclave.v1.ElectionService", "Proclaim";
    ElectionResign: "unary", "conclave.v1.ElectionService", "Resign";
    ElectionObserve: "server_stream", "conclave.v1.ElectionService", "Observe";
    CounterAdd: "unary", "conclave.v1.CounterService", "Add";
    CounterSet: "unary", "conclave.v1.CounterService", "Set";
    CounterGet: "unary", "conclave.v1.CounterService", "Get";
    LatchCreate: "unary", "conclave.v1.LatchService", "Create";
    LatchCountDown: "unary", "conclave.v1.LatchService", "CountDown";
    LatchGet: "unary", "conclave.v1.LatchService", "Get";
    LatchWait: "server_stream", "conclave.v1.LatchService", "Wait";
    BarrierRaise: "unary", "conclave.v1.BarrierService", "Raise";
    BarrierLift: "unary", "conclave.v1.BarrierService", "Lift";
    BarrierWait: "server_stream", "conclave.v1.BarrierService", "Wait";
    DoubleBarrierEnter: "server_stream", "conclave.v1.DoubleBarrierService", "Enter";
    DoubleBarrierLeave: "server_stream", "conclave.v1.DoubleBarrierService", "Leave";
    GroupJoin: "unary", "conclave.v1.GroupService", "Join";
    GroupLeave: "unary", "conclave.v1.GroupService", "Leave";
    GroupList: "unary", "conclave.v1.GroupService", "List";
    RegistryRegister: "unary", "conclave.v1.RegistryService", "Register";
    RegistryUpdate: "unary", "conclave.v1.RegistryService", "Update";
    RegistryDeregister: "unary", "conclave.v1.RegistryService", "Deregister";
    RegistryDiscover: "unary", "conclave.v1.RegistryService", "Discover";
    RegistryListServices: "unary", "conclave.v1.RegistryService", "ListServices";
    RegistryConfigure: "unary", "conclave.v1.RegistryService", "Configure";
    DiscoveryWatch: "server_stream", "conclave.v1.DiscoveryService", "Watch";
    Write: "unary", "conclave.v1.WriteService", "Write";
}
