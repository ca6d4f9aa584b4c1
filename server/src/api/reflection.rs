//! gRPC's server reflection: which services there are, and what their messages look like, for tools such
//! as `grpcurl`. etcd has none; nothing is told that the .proto files do not say.

use std::sync::LazyLock;

use conclave_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::service::Routes;
use tonic_reflection::server::Builder;

/// The services whose calls [`add`] takes.
pub(crate) const SERVICES: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// Messages between members and on disk, which no client sends.
const NOT_FOR_CLIENTS: &str = "conclave.internal.";

/// The files that clients may see.
static FILES: LazyLock<FileDescriptorSet> = LazyLock::new(|| {
    let mut files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)
        .expect("invariant: the descriptors were made with the code");
    files.file.retain(|file| !file.package().starts_with(NOT_FOR_CLIENTS));
    files
});

/// Adds both versions of the service.
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
