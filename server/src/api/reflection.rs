//! gRPC's server reflection: lists the services and their message types for tools such as
//! `grpcurl`. etcd has none. It reveals nothing beyond the public .proto files.

use std::sync::LazyLock;

use conclave_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::service::Routes;
use tonic_reflection::server::Builder;

/// The services that [`add`] registers.
pub(crate) const SERVICES: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// Package of the messages between members and on disk, which no client sends.
const NOT_FOR_CLIENTS: &str = "conclave.internal.";

/// The descriptors that clients may see.
static FILES: LazyLock<FileDescriptorSet> = LazyLock::new(|| {
    let mut files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)
        .expect("invariant: the descriptors were made with the code");
    files.file.retain(|file| !file.package().starts_with(NOT_FOR_CLIENTS));
    files
});

/// Adds both versions of the reflection service.
pub(super) fn add(routes: Routes) -> Routes {
    let builder = || {
        Builder::configure()
            .register_file_descriptor_set(FILES.clone())
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let whole = "invariant: files that clients see refer to none that they do not see";
    routes
        .add_service(builder().build_v1().expect(whole))
        .add_service(builder().build_v1alpha().expect(whole))
}
