//! The versions this server states: its own, and those of etcd whose interface it speaks.

/// Version of this project.
pub const CONCLAVE: &str = env!("CARGO_PKG_VERSION");
/// Version of etcd whose interface and behaviour this server follows.
pub const ETCD: &str = "3.7.1";
/// What etcd calls the cluster version: the lowest minor of all members.
pub const CLUSTER: &str = "3.7.0";
/// What etcd calls the storage version.
pub const STORAGE: &str = "3.7.0";
