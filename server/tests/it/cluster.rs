//! A cluster of members in this process, each with its own directory and peer port.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_proto::etcdserverpb::{LeaseGrantRequest, PutRequest};
use conclave_proto::internal::{self, command};
use conclave_raft_store::log::OpenError;
use conclave_server::config::{self, Invocation, Settings};
use conclave_server::node::{Node, StartError};
use conclave_server::propose::ProposeError;
use conclave_state_machine::command::Range;
use conclave_state_machine::response::Applied;
use tempfile::TempDir;

use crate::port::free_port;

/// Longest wait for anything that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// The first leader is elected at once; after that no member misses it because a loaded machine let one of
/// them stand still for a second or two.
const PATIENT: &str = "--election-timeout=5000";
/// For tests of what becomes of a cluster without a leader, which would take longer otherwise.
pub(crate) const HASTY: &str = "--election-timeout=1000";

/// The flags of each of `size` members: patient ones, unless the test wants them to be otherwise.
pub(crate) fn flags_of(size: usize, flags: &[&str]) -> Vec<String> {
    let is_chosen = flags.iter().any(|flag| flag.starts_with("--election-timeout"));
    // Alone, a member has nobody to miss; and the shortest TTL of a lease would be longer.
    let patience = (size > 1 && !is_chosen).then_some(PATIENT);
    patience.iter().chain(flags).map(|&flag| flag.to_owned()).collect()
}

/// Members by place; a stopped one is `None`.
pub(crate) struct Cluster {
    ports: Vec<u16>,
    flags: Vec<String>,
    pub(crate) nodes: Vec<Option<Arc<Node>>>,
    // Last: members that lose their directory first end slowly.
    dir: TempDir,
}

impl Cluster {
    /// Starts `size` members together.
    pub(crate) async fn start(size: usize, flags: &[&str]) -> Self {
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            ports: free_ports(size),
            flags: flags_of(size, flags),
            nodes: vec![None; size],
        };
        let starts = (0..size).map(|i| Node::start(cluster.settings(i, "new")));
        let started = futures::future::join_all(starts).await;
        cluster.nodes = started.into_iter().map(|node| Some(node.unwrap())).collect();
        for node in cluster.nodes.iter().flatten() {
            within("a member is ready", node.wait_ready()).await.unwrap();
        }
        cluster
    }

    pub(crate) fn settings(&self, i: usize, state: &str) -> Arc<Settings> {
        let url = |i: usize| self.peer_url(i);
        let all: Vec<String> = (0..self.ports.len()).map(|i| format!("n{i}={}", url(i))).collect();
        let mut arguments = vec![
            format!("--name=n{i}"),
            format!("--data-dir={}", self.data_dir(i).display()),
            format!("--listen-peer-urls={}", url(i)),
            format!("--initial-advertise-peer-urls={}", url(i)),
            format!("--initial-cluster={}", all.join(",")),
            format!("--initial-cluster-state={state}"),
        ];
        arguments.extend(self.flags.iter().cloned());
        match config::parse(arguments, []).unwrap() {
            Invocation::Run(settings) => Arc::new(*settings),
            _ => panic!("not a start"),
        }
    }

    pub(crate) fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("n{i}"))
    }

    pub(crate) fn peer_url(&self, i: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[i])
    }

    pub(crate) fn node(&self, i: usize) -> &Arc<Node> {
        self.nodes[i].as_ref().unwrap()
    }

    /// Place of the member that leads, once all running members agree.
    pub(crate) async fn leader(&self) -> usize {
        let mut place = None;
        eventually("members agree on a leader", || {
            let running: Vec<_> = self.nodes.iter().flatten().collect();
            let leader = running[0].status().leader;
            place = self.nodes.iter().position(|node| {
                node.as_ref().is_some_and(|n| Some(n.member_id()) == leader && n.is_leader())
            });
            place.is_some() && running.iter().all(|node| node.status().leader == leader)
        })
        .await;
        place.unwrap()
    }

    /// A running member that does not lead.
    pub(crate) async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.nodes.len()).find(|i| *i != leader && self.nodes[*i].is_some()).unwrap()
    }

    /// Stops a member in order.
    pub(crate) async fn stop(&mut self, i: usize) {
        let node = self.nodes[i].take().unwrap();
        within("a member stops", node.shutdown()).await;
        assert_eq!(Arc::strong_count(&node), 1, "nobody else holds the member");
    }

    /// Ends a member as a crash would: nothing is handed over, stopped or flushed.
    pub(crate) fn crash(&mut self, i: usize) {
        drop(self.nodes[i].take().unwrap());
    }

    /// Starts a stopped member again on its directory.
    pub(crate) async fn restart(&mut self, i: usize) {
        let node = self.start_again(i).await;
        within("a restarted member is ready", node.wait_ready()).await.unwrap();
        self.nodes[i] = Some(node);
    }

    /// Starts all members again on their directories.
    pub(crate) async fn restart_all(&mut self) {
        for i in 0..self.nodes.len() {
            self.nodes[i] = Some(self.start_again(i).await);
        }
        for node in self.nodes.iter().flatten() {
            within("a restarted member is ready", node.wait_ready()).await.unwrap();
        }
    }

    async fn start_again(&self, i: usize) -> Arc<Node> {
        let node = start_again(&self.settings(i, "new")).await;
        node.unwrap_or_else(|error| panic!("cannot restart: {error}"))
    }

    /// Waits until all running members have applied the same and have the same digest.
    pub(crate) async fn converge(&self) {
        eventually("members converge", || {
            let mut states = self.nodes.iter().flatten().map(|node| {
                let head = node.reader().head();
                (head.revision, head.digest)
            });
            let first = states.next().unwrap();
            states.all(|state| state == first)
        })
        .await;
    }
}

/// Starts a member on the directory of one that has stopped; the error if it must not take part with it.
pub(crate) async fn start_again(settings: &Arc<Settings>) -> Result<Arc<Node>, StartError> {
    let until = Instant::now() + DEADLINE;
    loop {
        match Node::start(settings.clone()).await {
            // The old one may still be letting go of its files and port.
            Err(error) if !is_final(&error) && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

fn is_final(error: &StartError) -> bool {
    matches!(
        error,
        StartError::Bootstrap(_)
            | StartError::Log(OpenError::Lost { .. } | OpenError::Damaged { .. })
    )
}

pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    (0..count).map(|_| free_port()).collect()
}

/// Waits for a future that must end.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("not in {DEADLINE:?}: {what}"),
    }
}

/// Polls a condition that must become true.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(what, poll).await;
}

pub(crate) fn put(key: &str, value: &[u8]) -> internal::Command {
    let put = PutRequest {
        key: key.to_owned().into(),
        value: value.to_vec().into(),
        ..PutRequest::default()
    };
    internal::Command { command: Some(command::Command::Put(put)), ..Default::default() }
}

/// Puts on `node`; must be acknowledged.
pub(crate) async fn must_put(node: &Node, key: &str, value: &[u8]) -> Applied {
    let applied = within("a put", node.propose(put(key, value))).await.unwrap();
    assert!(applied.outcome.is_ok(), "{:?}", applied.outcome);
    applied
}

/// Puts on `node` until it is acknowledged; the outcome of earlier attempts may be unknown.
pub(crate) async fn put_again_and_again(node: &Node, key: &str, value: &[u8]) {
    let attempts = async {
        loop {
            match node.propose(put(key, value)).await {
                Ok(_) => return,
                Err(ProposeError::TooLarge) => panic!("too large"),
                Err(_) => {}
            }
        }
    };
    within("a put is acknowledged", attempts).await;
}

/// Grants a lease through `node`.
pub(crate) async fn must_grant(node: &Node, id: i64, ttl: i64) {
    let grant = LeaseGrantRequest { id, ttl };
    let command = Some(command::Command::LeaseGrant(grant));
    let granted =
        within("a grant", node.propose(internal::Command { command, ..Default::default() }))
            .await
            .unwrap();
    assert!(granted.outcome.is_ok(), "{:?}", granted.outcome);
}

/// A linearizable read on `node`.
pub(crate) async fn get(node: &Node, key: &str) -> Option<Vec<u8>> {
    within("a read barrier", node.read_barrier()).await.unwrap();
    let range = Range { key: key.to_owned().into(), ..Range::default() };
    let (answer, _) = node.reader().range(&range).unwrap();
    answer.kvs.first().map(|kv| kv.value.to_vec())
}
