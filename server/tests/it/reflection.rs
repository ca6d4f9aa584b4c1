//! Reflection, asked as `grpcurl` asks.

use futures::stream;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic_reflection::pb::{v1, v1alpha};

use crate::cluster::within;
use crate::support::{Server, server};

/// Services and the packages of the files that hold `symbols`; what is unknown is an error code.
macro_rules! ask {
    ($version:ident, $server:expr, $symbols:expr) => {{
        use $version::server_reflection_client::ServerReflectionClient;
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let request = |message_request| $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        };
        let symbols = $symbols
            .iter()
            .map(|symbol| request(MessageRequest::FileContainingSymbol((*symbol).to_owned())));
        let mut requests = vec![request(MessageRequest::ListServices(String::new()))];
        requests.extend(symbols);
        let mut client = ServerReflectionClient::new($server.channel.clone());
        let answers = client.server_reflection_info(stream::iter(requests));
        let mut answers = within("reflection", answers).await.unwrap().into_inner();
        let (mut services, mut packages) = (Vec::new(), Vec::new());
        while let Some(answer) = within("an answer", answers.message()).await.transpose() {
            let Ok(answer) = answer else { break };
            match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    services.extend(list.service.into_iter().map(|service| service.name));
                }
                MessageResponse::FileDescriptorResponse(files) => {
                    packages.extend(files.file_descriptor_proto.iter().map(|file| {
                        FileDescriptorProto::decode(file.as_slice()).unwrap().package().to_owned()
                    }));
                }
                other => panic!("{other:?}"),
            }
        }
        services.sort();
        (services, packages)
    }};
}

const SERVICES: [&str; 18] = [
    "conclave.v1.BarrierService",
    "conclave.v1.CounterService",
    "conclave.v1.DiscoveryService",
    "conclave.v1.DoubleBarrierService",
    "conclave.v1.ElectionService",
    "conclave.v1.GroupService",
    "conclave.v1.LatchService",
    "conclave.v1.LockService",
    "conclave.v1.RegistryService",
    "conclave.v1.SessionService",
    "conclave.v1.WriteService",
    "etcdserverpb.Auth",
    "etcdserverpb.Cluster",
    "etcdserverpb.KV",
    "etcdserverpb.Lease",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Watch",
    "grpc.health.v1.Health",
];

fn expected(own: &str) -> Vec<String> {
    let mut names: Vec<String> = SERVICES
        .iter()
        .chain(&["v3electionpb.Election", "v3lockpb.Lock", own])
        .map(|name| (*name).to_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_listed_and_their_files_are_told() {
    let server: Server = server(&[]).await;
    let symbols = ["etcdserverpb.KV", "mvccpb.KeyValue", "conclave.v1.AcquireRequest"];
    let packages = ["etcdserverpb", "mvccpb", "conclave.v1"];
    let (services, told) = ask!(v1, server, symbols);
    assert_eq!(services, expected("grpc.reflection.v1.ServerReflection"));
    assert_eq!(told, packages);
    let (services, told) = ask!(v1alpha, server, symbols);
    assert_eq!(services, expected("grpc.reflection.v1alpha.ServerReflection"));
    assert_eq!(told, packages);
    let (_, told) = ask!(v1, server, ["conclave.internal.v1.Batch"]);
    assert!(told.is_empty(), "what is not for clients is not told: {told:?}");
}
