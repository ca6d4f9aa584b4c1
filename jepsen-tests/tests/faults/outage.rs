//! The whole cluster is gone for a while: clients go on with the instances and the settings that they know,
//! say so, and recover by themselves; a process that starts meanwhile begins with what it had stored.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use conclave_client::Client;
use conclave_client::balance::{BalancedChannel, RoundRobin};
use conclave_client::config::{self, Config, Source};
use conclave_client::registry::{self, Directory, Registration};
use conclave_proto::v3lockpb::lock_client::LockClient;
use conclave_proto::v3lockpb::lock_server::{Lock, LockServer};
use conclave_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::support::{HASTY, Nodes, START_TIMEOUT, eventually, is_long};

const SERVICE: &str = "shop/api";
const SETTING: &str = "settings/workers";
const INSTANCES: usize = 3;
const CALL_EVERY: Duration = Duration::from_millis(50);

/// An instance of a service: any gRPC service does, so one that counts the calls of etcd's Lock.
struct Counted(Arc<AtomicUsize>);

#[tonic::async_trait]
impl Lock for Counted {
    async fn lock(&self, _: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(LockResponse::default()))
    }

    async fn unlock(&self, _: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        Ok(Response::new(UnlockResponse::default()))
    }
}

/// Starts an instance; where it is.
async fn instance(calls: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let server = tonic::transport::Server::builder().add_service(LockServer::new(Counted(calls)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// What a process of a service's client has.
struct Process {
    client: Client,
    directory: Directory,
    settings: Config<Value>,
}

impl Process {
    async fn start(endpoints: &[String], dir: &Path) -> Self {
        let client = Client::builder(endpoints.to_vec()).build().expect("a client");
        let directory = client.service(SERVICE).discover().cache(dir.join("instances")).start();
        let settings = client.config::<Value>().app(Source::prefix("settings/"));
        let settings = settings.cache(dir.join("settings")).start().await.expect("settings");
        Self { client, directory, settings }
    }

    fn workers(&self) -> Value {
        self.settings.current()["workers"].clone()
    }

    fn is_connected(&self) -> (bool, bool) {
        (self.directory.current().is_connected, self.settings.status().borrow().is_connected)
    }
}

/// Calls through the channel for a while; how often, and every call is answered.
async fn call(channel: &BalancedChannel, time: Duration) -> usize {
    let end = Instant::now() + time;
    let mut calls = 0;
    while Instant::now() < end {
        let mut service = LockClient::new(channel.clone());
        service.lock(LockRequest::default()).await.expect("an answer of an instance");
        calls += 1;
        tokio::time::sleep(CALL_EVERY).await;
    }
    calls
}

async fn register(client: &Client, calls: &[Arc<AtomicUsize>]) -> Vec<Registration> {
    let mut kept = Vec::new();
    for calls in calls {
        let address = instance(Arc::clone(calls)).await;
        kept.push(client.service(SERVICE).register(address).await.expect("registered"));
    }
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_live_through_the_loss_of_the_cluster() {
    let outage = Duration::from_secs(if is_long() { 60 } else { 5 });
    let mut nodes = Nodes::serving(3, &[HASTY]).await;
    let endpoints = nodes.cluster.endpoints();
    let dir = tempfile::tempdir().expect("a directory");
    let process = Process::start(&endpoints, dir.path()).await;
    process.client.put(SETTING, "4").await.expect("a put");
    let counts: Vec<_> = (0..INSTANCES).map(|_| Arc::<AtomicUsize>::default()).collect();
    let kept = register(&process.client, &counts).await;
    let channel =
        process.directory.channel(BalancedChannel::builder().policy(RoundRobin::default()));
    eventually("all is known, and stored", START_TIMEOUT, async || {
        let stored = |name| {
            let bytes = std::fs::read(dir.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let instances = stored("instances");
        process.directory.current().records.len() == INSTANCES
            && kept.iter().all(|kept| instances.contains(&kept.record().id))
            && process.workers() == "4"
            && stored("settings").contains("workers")
    })
    .await;

    let begun = Instant::now();
    nodes.cluster.kill_together(&[0, 1, 2]).expect("they can be killed");
    let calls = call(&channel, outage).await;
    eventually("it is said", START_TIMEOUT, async || process.is_connected() == (false, false))
        .await;
    assert_eq!(process.directory.current().records.len(), INSTANCES);
    assert_eq!(process.workers(), "4");
    let late = Process::start(&endpoints, dir.path()).await;
    let mut listing = late.directory.listing();
    let listing = listing.wait_for(|listing| !listing.records.is_empty()).await;
    assert_eq!(listing.expect("a directory").records.len(), INSTANCES);
    assert_eq!(late.directory.current().basis, registry::Basis::Cache);
    assert_eq!(late.settings.status().borrow().basis, config::Basis::Cache);
    assert_eq!(late.workers(), "4");
    let late_channel = late.directory.channel(BalancedChannel::builder());
    let late_calls = call(&late_channel, Duration::from_secs(1)).await;
    let away = begun.elapsed();

    nodes.cluster.start_all().expect("the programs start");
    nodes.all_serve().await;
    process.client.put(SETTING, "5").await.expect("a put");
    let fourth = Arc::<AtomicUsize>::default();
    let joined = register(&process.client, std::slice::from_ref(&fourth)).await;
    let back = Instant::now();
    for process in [&process, &late] {
        eventually("all is as the cluster says", START_TIMEOUT, async || {
            let is_known = process.directory.current().records.len() == INSTANCES + 1;
            is_known && process.workers() == "5" && process.is_connected() == (true, true)
        })
        .await;
    }
    let recovered = back.elapsed();
    for registration in kept.iter().chain(&joined) {
        let mut state = registration.is_registered();
        state.wait_for(|is_registered| *is_registered).await.expect("it is registered");
    }
    eventually("the new instance is called", START_TIMEOUT, async || {
        call(&channel, CALL_EVERY).await;
        fourth.load(Ordering::SeqCst) > 0
    })
    .await;
    println!(
        "cluster away for {away:?}: {calls} calls, and {late_calls} of a process that started meanwhile"
    );
    println!("{recovered:?} after it served again all was known");
    let counts: Vec<usize> = counts.iter().map(|calls| calls.load(Ordering::SeqCst)).collect();
    assert!(counts.iter().all(|calls| *calls > 0), "all were called: {counts:?}");
}
