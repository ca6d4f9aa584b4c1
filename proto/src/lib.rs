//! The wire: etcd's v3 messages and services, and the messages between members and on disk.
//!
//! Everything here is generated from the `.proto` files beside it; there is no code of our own.
#![expect(missing_docs, reason = "generated; the .proto files carry the documentation")]
#![expect(
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
/// Packages of our own; generated code refers to other packages by this nesting.
pub mod conclave {
    /// The native API: sessions, locks and elections.
    pub mod v1 {
        tonic::include_proto!("conclave.v1");
    }
    /// Not for clients.
    pub mod internal {
        /// Between members and on disk.
        pub mod v1 {
            tonic::include_proto!("conclave.internal.v1");
        }
    }
}
pub use conclave::{internal::v1 as internal, v1};

/// All .proto files, as a `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
