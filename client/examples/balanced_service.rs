//! A gRPC service that registers itself, and a client that balances over its instances.
//!
//! `make example-balanced_service` starts a server and runs this against it; with a server of your own:
//! `cargo run -p conclave-client --example balanced_service -- HOST:PORT,...`.
//!
//! Three instances run; one is killed without warning, one goes in order. The service here is one whose
//! code is at hand (etcd's Lock, which answers with its name): any generated service will do.

use std::{collections::BTreeMap, error::Error, io::Write, net::SocketAddr, time::Duration};

use conclave_client::{
    Client,
    balance::{BalancedChannel, RoundRobin},
    registry::Registration,
};
use conclave_proto::v3lockpb::{
    LockRequest, LockResponse, UnlockRequest, UnlockResponse,
    lock_client::LockClient,
    lock_server::{Lock, LockServer},
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

const CALLS: usize = 200;

/// Answers each call with its name.
struct Greeter {
    name: &'static str,
}

#[tonic::async_trait]
impl Lock for Greeter {
    async fn lock(&self, _: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        Ok(Response::new(LockResponse { header: None, key: self.name.into() }))
    }

    async fn unlock(&self, _: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        Err(Status::unimplemented("not part of this service"))
    }
}

/// One instance. It has a runtime of its own, so that it can be killed with all its connections as a
/// process would be; its registration is another's, so that it stays behind as after a crash.
struct Instance {
    registration: Registration,
    runtime: Runtime,
}

impl Instance {
    async fn start(client: &Client, name: &'static str) -> Result<Self, Box<dyn Error>> {
        let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener)?);
            let service = LockServer::new(Greeter { name });
            let served = Server::builder().add_service(service).serve_with_incoming(incoming);
            served.await.map_err(std::io::Error::other)
        });
        let register = client.service("demo/greeter").register(address).id(name).version("1");
        Ok(Self { registration: register.ttl(Duration::from_secs(60)).await?, runtime })
    }
}

/// Calls one after the other; returns who answered how often, and the number of failures.
async fn call(channel: &BalancedChannel) -> (BTreeMap<String, usize>, usize) {
    let (mut answers, mut failures) = (BTreeMap::new(), 0);
    let mut greeter = LockClient::new(channel.clone());
    for _ in 0..CALLS {
        match greeter.lock(LockRequest::default()).await {
            Ok(answer) => {
                let name = String::from_utf8_lossy(&answer.into_inner().key).into_owned();
                *answers.entry(name).or_default() += 1;
            }
            Err(_) => failures += 1,
        }
    }
    (answers, failures)
}

/// Plays three instances and a client; prints to `out`.
pub(crate) async fn run(endpoints: &str, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let client = Client::builder(endpoints.split(',')).build()?;
    let mut instances = Vec::new();
    for name in ["a", "b", "c"] {
        instances.push(Instance::start(&client, name).await?);
    }
    let directory = client.service("demo/greeter").discover().start();
    let mut listing = directory.listing();
    listing.wait_for(|listing| listing.records.len() == 3).await?;
    // In turn, so that three answer for certain: the default prefers whoever is fast just now.
    let channel = directory.channel(BalancedChannel::builder().policy(RoundRobin::default()));
    let (answers, failures) = call(&channel).await;
    writeln!(out, "{} instances answer, {failures} calls failed", answers.len())?;

    let Instance { registration, runtime } = instances.remove(1);
    runtime.shutdown_background();
    let (answers, failures) = call(&channel).await;
    let listed = directory.current().records.len();
    // Only what was on its way to it can be lost; everything else is tried elsewhere.
    writeln!(
        out,
        "b is killed and still listed ({listed}), at most 2 calls failed: {}",
        failures <= 2
    )?;
    let others = answers.keys().filter(|name| *name != "b").count();
    writeln!(out, "{others} others answer")?;
    // The cluster does this by itself when the TTL of the dead one has passed.
    registration.deregister().await?;

    let Instance { registration, runtime } = instances.remove(0);
    registration.drain(Duration::from_millis(100)).await?;
    listing.wait_for(|listing| listing.records.len() == 1).await?;
    let (answers, failures) = call(&channel).await;
    let names: Vec<&String> = answers.keys().collect();
    writeln!(out, "a has gone in order: {names:?} answers, {failures} calls failed")?;
    runtime.shutdown_background();
    for Instance { registration, runtime } in instances {
        registration.deregister().await?;
        runtime.shutdown_background();
    }
    Ok(())
}

#[cfg_attr(test, expect(dead_code, reason = "the tests call `run` instead"))]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoints = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_owned());
    run(&endpoints, &mut std::io::stdout()).await
}
