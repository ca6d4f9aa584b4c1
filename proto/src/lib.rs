//! The wire: etcd's v3 messages and services, and the messages between members and on disk.
//!
//! Everything here is generated from the `.proto` files beside it; there is no code of our own.
#![expect(missing_docs, reason = "generated; the .proto files carry the documentation")]
#![expect(
    unreachable_pub,
    unused_qualifications,
    clippy::missing_errors_doc,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]

/// Keys, values and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
/// Users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}
/// KV, Watch, Lease, Cluster, Maintenance and Auth.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
/// The Lock service.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
/// The Election service.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
/// Between members and on disk.
pub mod internal {
    tonic::include_proto!("conclave.internal.v1");
}
