//! Real nodes for these tests, and clients of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use conclave_benches::cluster::{Cluster, Program};
use conclave_benches::connection::Connection;
use conclave_jepsen_tests::disk::Disk;
use conclave_jepsen_tests::network::Network;
use conclave_jepsen_tests::{members, nemesis};
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use conclave_proto::etcdserverpb::watch_client::WatchClient;
use conclave_proto::etcdserverpb::{PutRequest, RangeRequest, StatusRequest, StatusResponse};
use tempfile::TempDir;
use tonic::Status;

/// Patience with a start, on a machine that does other things too.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The first leader is elected at once; after that nobody misses it because a loaded machine let it stand still
/// for a second or two.
const PATIENT: &str = "--election-timeout=5000";
/// For tests that kill leaders: a second is what a cluster is without one usually.
pub(crate) const HASTY: &str = "--election-timeout=1000";
/// Patience with one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// Lines of each log shown when a test fails.
const SHOWN_LINES: usize = 4;

/// Whether the long variants are asked for.
pub(crate) fn is_long() -> bool {
    std::env::var("CONCLAVE_FAULTS").is_ok_and(|value| value == "long")
}

/// Says, where a passing test's output is visible too, that something could not be tested here.
pub(crate) fn skipped(test: &str, reason: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "SKIPPED {test}: {reason}").expect("stderr is open");
}

/// Waits until `is_true`.
pub(crate) async fn eventually(
    what: &str,
    patience: Duration,
    mut is_true: impl AsyncFnMut() -> bool,
) {
    let deadline = Instant::now() + patience;
    while !is_true().await {
        assert!(Instant::now() < deadline, "not in {patience:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A sample of the metrics that are served in the clear at `port`, by its name with labels; 0 if it is not there.
pub(crate) async fn sample(port: u16, name: &str) -> f64 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    let mut stream = stream.expect("a connection");
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("it is read");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("an answer");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.trim().parse().expect("a number"))
}

/// Nodes of one cluster in a temporary directory.
pub(crate) struct Nodes {
    pub(crate) cluster: Cluster,
    /// One for each node after [`Nodes::on_disks`]; unmounted after the nodes have ended.
    pub(crate) disks: Vec<Disk>,
    _dir: TempDir,
}

impl Nodes {
    /// Nodes that do not run yet.
    pub(crate) fn create(size: usize, flags: &[&str]) -> Self {
        let dir =
            tempfile::Builder::new().prefix("conclave-faults-").tempdir().expect("a directory");
        let is_chosen = flags.iter().any(|flag| flag.starts_with("--election-timeout"));
        let patience = (size > 1 && !is_chosen).then_some(PATIENT);
        let flags: Vec<String> = patience.iter().chain(flags).map(|&f| f.to_owned()).collect();
        let program = Program::new(&members::program()).with_flags(&flags);
        let cluster = Cluster::create(program, dir.path(), size).expect("free ports");
        Self { cluster, disks: Vec::new(), _dir: dir }
    }

    /// Nodes that serve.
    pub(crate) async fn serving(size: usize, flags: &[&str]) -> Self {
        let mut nodes = Self::create(size, flags);
        nodes.serve().await;
        nodes
    }

    /// Starts the nodes that do not run, and waits until all serve.
    pub(crate) async fn serve(&mut self) {
        self.cluster.start_all().expect("the program starts");
        self.all_serve().await;
    }

    /// Nodes that serve, with a network between them that can be cut.
    pub(crate) async fn parted(size: usize, flags: &[&str]) -> (Self, Network) {
        let mut nodes = Self::create(size, flags);
        let network = Network::between(&mut nodes.cluster).await.expect("a network");
        nodes.cluster.start_all().expect("the program starts");
        nodes.all_serve().await;
        (nodes, network)
    }

    /// Waits until every node answers a linearizable read.
    pub(crate) async fn all_serve(&self) {
        members::wait_until_serving(&self.cluster.endpoints(), START_TIMEOUT)
            .await
            .expect("it serves");
    }

    /// Waits until one node does.
    pub(crate) async fn serves(&self, node: usize) {
        let endpoint = [self.endpoint(node)];
        members::wait_until_serving(&endpoint, START_TIMEOUT).await.expect("it serves");
    }

    /// Waits until a node leads; which one.
    pub(crate) async fn leader(&self) -> usize {
        let all: Vec<usize> = (0..self.cluster.nodes().len()).collect();
        self.leader_of(&all).await
    }

    /// Waits until one of these nodes leads; which one.
    pub(crate) async fn leader_of(&self, nodes: &[usize]) -> usize {
        let endpoints: Vec<String> = nodes.iter().map(|&node| self.endpoint(node)).collect();
        let mut leader = None;
        eventually("there is a leader", START_TIMEOUT, async || {
            leader = nemesis::leader(&endpoints).await;
            leader.is_some()
        })
        .await;
        nodes[leader.expect("just found")]
    }

    /// All nodes must have the same at `revision`.
    pub(crate) async fn must_agree(&self, revision: i64) {
        let mut violations = Vec::new();
        members::compare(&self.cluster.endpoints(), revision, &mut violations).await;
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// Every node must have what was acknowledged of the keys with a prefix, each in its revision.
    pub(crate) async fn must_have(&self, prefix: &str, acknowledged: &BTreeMap<String, i64>) {
        for node in 0..self.cluster.nodes().len() {
            let (_, keys) = self.client(node).await.keys(prefix).await.expect("an answer");
            let is_lost = |(key, revision): &(&String, &i64)| keys.get(*key) != Some(*revision);
            let lost = acknowledged.iter().filter(is_lost).count();
            assert_eq!(lost, 0, "acknowledged puts lost on node {node}");
        }
    }

    pub(crate) fn endpoint(&self, node: usize) -> String {
        self.cluster.nodes()[node].endpoint()
    }

    pub(crate) fn data_dir(&self, node: usize) -> &Path {
        self.cluster.nodes()[node].data_dir()
    }

    pub(crate) async fn client(&self, node: usize) -> Client {
        Client::open(&self.endpoint(node)).await.expect("a connection")
    }

    /// Waits until a node has logged something.
    pub(crate) async fn says(&self, node: usize, text: &str) {
        eventually(text, START_TIMEOUT, async || self.log(node).contains(text)).await;
    }

    /// Everything a node logged so far.
    pub(crate) fn log(&self, node: usize) -> String {
        let bytes = std::fs::read(self.cluster.nodes()[node].log_path()).expect("a log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The message of the last line of a node's log.
    pub(crate) fn last_words(&self, node: usize) -> String {
        let log = self.log(node);
        let line = log.lines().last().expect("a line");
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let said = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        format!("{} {}", said("msg"), said("failure")).trim_end().to_owned()
    }

    /// Waits until a node ends by itself, which must not look like success.
    pub(crate) fn fails(&mut self, node: usize) {
        let ended = tokio::task::block_in_place(|| self.cluster.wait_for_end(node, START_TIMEOUT));
        let status = ended.expect("a process").expect("the node must end by itself");
        assert!(!status.success(), "{status}");
    }

    /// The files of a node's log, the oldest first.
    pub(crate) fn segments(&self, node: usize) -> Vec<PathBuf> {
        files(&self.data_dir(node).join("log"), "segment")
    }

    /// The table files of a node's state.
    pub(crate) fn tables(&self, node: usize) -> Vec<PathBuf> {
        let state = self.data_dir(node).join("state");
        let live = std::fs::read_to_string(state.join("CURRENT_DB")).expect("a pointer");
        files(&state.join(live.trim()), "sst")
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in self.cluster.nodes() {
            let log = std::fs::read_to_string(node.log_path()).unwrap_or_default();
            let mut tail: Vec<&str> = log.lines().rev().take(SHOWN_LINES).collect();
            tail.reverse();
            eprintln!("{} ended its log with {tail:#?}", node.endpoint());
        }
    }
}

/// The files in a directory with this extension, in the order of their names.
pub(crate) fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// Changes a file in place, which must exist.
pub(crate) fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("a file");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("a file that can be written");
}

/// One connection to one node.
#[derive(Clone)]
pub(crate) struct Client {
    connection: Connection,
}

impl Client {
    pub(crate) async fn open(endpoint: &str) -> anyhow::Result<Self> {
        Ok(Self { connection: Connection::open(endpoint).await? })
    }

    pub(crate) fn kv(&self) -> KvClient<Connection> {
        KvClient::with_origin(self.connection.clone(), self.connection.origin())
            .max_decoding_message_size(usize::MAX)
    }

    pub(crate) fn lease(&self) -> LeaseClient<Connection> {
        LeaseClient::with_origin(self.connection.clone(), self.connection.origin())
            .max_decoding_message_size(usize::MAX)
    }

    pub(crate) fn watch(&self) -> WatchClient<Connection> {
        WatchClient::with_origin(self.connection.clone(), self.connection.origin())
            .max_decoding_message_size(usize::MAX)
    }

    /// What the node says of itself.
    pub(crate) async fn status(&self) -> Result<StatusResponse, Status> {
        let (connection, origin) = (self.connection.clone(), self.connection.origin());
        let mut client = MaintenanceClient::with_origin(connection, origin);
        Ok(client.status(StatusRequest {}).await?.into_inner())
    }

    /// Puts and returns the revision.
    pub(crate) async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<i64, Status> {
        let value: Vec<u8> = value.into();
        let request =
            PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
        let mut kv = self.kv();
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, kv.put(request)).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("no answer"))??;
        Ok(answer.into_inner().header.expect("a header").revision)
    }

    /// Puts, again until it is acknowledged, and returns the revision: a member may be gone or electing.
    pub(crate) async fn insist(&self, key: &str, value: &[u8]) -> i64 {
        let mut revision = 0;
        eventually("a put is acknowledged", START_TIMEOUT, async || {
            let put = self.put(key, value).await;
            revision = put.as_ref().copied().unwrap_or(0);
            put.is_ok()
        })
        .await;
        revision
    }

    /// The store's revision, and every key under `prefix` with its mod revision.
    pub(crate) async fn keys(&self, prefix: &str) -> Result<(i64, BTreeMap<String, i64>), Status> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().expect("a prefix") += 1;
        let request = RangeRequest {
            key: prefix.to_owned().into(),
            range_end: end.into(),
            keys_only: true,
            ..Default::default()
        };
        let answer = self.kv().range(request).await?.into_inner();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let keys = answer.kvs.iter().map(|kv| (text(&kv.key), kv.mod_revision)).collect();
        Ok((answer.header.expect("a header").revision, keys))
    }

    /// The value of a key.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Status> {
        self.value(key, false).await
    }

    /// The value of a key as the node knows it, however old.
    pub(crate) async fn get_local(&self, key: &str) -> Result<Option<Vec<u8>>, Status> {
        self.value(key, true).await
    }

    async fn value(&self, key: &str, serializable: bool) -> Result<Option<Vec<u8>>, Status> {
        let request =
            RangeRequest { key: key.to_owned().into(), serializable, ..Default::default() };
        let answer = self.kv().range(request).await?.into_inner();
        Ok(answer.kvs.first().map(|kv| kv.value.to_vec()))
    }
}

/// Writers of ever new keys through several nodes, and what was acknowledged to them.
pub(crate) struct Writers {
    tasks: tokio::task::JoinSet<BTreeMap<String, i64>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Writers {
    /// Starts `count` of them, spread over `endpoints`; their keys begin with `prefix`.
    pub(crate) fn start(prefix: &str, endpoints: &[String], count: usize) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..count {
            let endpoint = endpoints[writer % endpoints.len()].clone();
            tasks.spawn(write(format!("{prefix}-{writer}"), endpoint, stopped.clone()));
        }
        Self { tasks, stop }
    }

    /// Ends them; everything acknowledged, with its revision.
    pub(crate) async fn stop(mut self) -> BTreeMap<String, i64> {
        self.stop.send_replace(true);
        let mut all = BTreeMap::new();
        while let Some(acknowledged) = self.tasks.join_next().await {
            all.append(&mut acknowledged.expect("a writer"));
        }
        all
    }
}

/// Writes one key after the other; none is tried twice, so none is of doubtful content.
async fn write(
    name: String,
    endpoint: String,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) -> BTreeMap<String, i64> {
    let mut acknowledged = BTreeMap::new();
    let mut client = None;
    let mut number = 0u64;
    while !*stopped.borrow_and_update() {
        let Some(connected) = &client else {
            client = Client::open(&endpoint).await.ok();
            if client.is_none() {
                tokio::time::sleep(POLL).await;
            }
            continue;
        };
        number += 1;
        let key = format!("{name}-{number:06}");
        let answer = tokio::select! {
            answer = connected.put(&key, "v") => answer,
            _ = stopped.changed() => break,
        };
        match answer {
            Ok(revision) => drop(acknowledged.insert(key, revision)),
            Err(_) => client = None,
        }
    }
    acknowledged
}
