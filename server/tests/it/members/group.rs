//! Members that come and go by number, and somebody who writes meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use conclave_server::config::{self, Invocation, Settings};
use conclave_server::node::{MemberInfo, Node, TransferError};
use conclave_server::raft::ChangeError;
use conclave_state_machine::command::Caller;
use conclave_state_machine::members::rules::{MemberChange, MemberRefusal};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::cluster::{eventually, flags_of, free_ports, get, put_again_and_again, within};

/// Members by number, each with a port of its own.
pub(crate) struct Group {
    pub(super) ports: Vec<u16>,
    flags: Vec<String>,
    pub(crate) nodes: BTreeMap<usize, Arc<Node>>,
    // Last: members that lose their directory first end slowly.
    dir: TempDir,
}

impl Group {
    /// A cluster of the first `size` of `ports` members.
    pub(crate) async fn start(size: usize, ports: usize, flags: &[&str]) -> Group {
        let mut group = Group {
            ports: free_ports(ports),
            flags: flags_of(ports, flags),
            nodes: BTreeMap::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        let first: Vec<usize> = (0..size).collect();
        let starts = first.iter().map(|i| Node::start(group.settings(*i, &first, &[])));
        let started = futures::future::join_all(starts).await;
        group.nodes = started.into_iter().map(Result::unwrap).enumerate().collect();
        for node in group.nodes.values() {
            within("a member is ready", node.wait_ready()).await.unwrap();
        }
        group
    }

    pub(super) fn url(&self, i: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[i])
    }

    pub(crate) fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("n{i}"))
    }

    pub(crate) fn settings(&self, i: usize, all: &[usize], flags: &[&str]) -> Arc<Settings> {
        let url = self.url(i);
        let all: Vec<String> = all.iter().map(|i| format!("n{i}={}", self.url(*i))).collect();
        let mut arguments = vec![
            format!("--name=n{i}"),
            format!("--data-dir={}", self.data_dir(i).display()),
            format!("--listen-peer-urls={url}"),
            format!("--initial-advertise-peer-urls={url}"),
            format!("--initial-cluster={}", all.join(",")),
        ];
        arguments.extend(self.flags.iter().cloned());
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        match config::parse(arguments, []).unwrap() {
            Invocation::Run(settings) => Arc::new(*settings),
            _ => panic!("not a start"),
        }
    }

    pub(crate) fn node(&self, i: usize) -> &Arc<Node> {
        &self.nodes[&i]
    }

    pub(crate) fn id(&self, i: usize) -> u64 {
        self.node(i).member_id()
    }

    /// Number of the member that leads.
    pub(crate) async fn leader(&self) -> usize {
        let mut place = None;
        eventually("somebody leads", || {
            place = self.nodes.iter().find(|(_, node)| node.is_leader()).map(|(i, _)| *i);
            place.is_some_and(|i| {
                let leader = Some(self.id(i));
                self.nodes.values().all(|node| node.status().leader == leader)
            })
        })
        .await;
        place.unwrap()
    }

    /// Makes a member the leader, asking again if somebody else was elected meanwhile.
    pub(crate) async fn hand_over(&self, to: usize) {
        let id = self.id(to);
        let handed = async {
            loop {
                let leader = self.leader().await;
                if leader == to {
                    return;
                }
                let done = self.node(leader).transfer_leader(id).await;
                assert!(!matches!(done, Err(TransferError::BadTarget)), "{done:?}");
            }
        };
        within("a hand-over", handed).await;
    }

    /// Makes a change through a member, asking again while the cluster is not healthy yet, or if an answer
    /// was lost: what is refused then may be what the attempt before has made.
    pub(super) async fn change(&self, through: usize, change: MemberChange) -> u64 {
        let node = self.node(through).clone();
        let attempts = async move {
            let mut may_be_made = false;
            loop {
                match node.change_members(&Caller::Inside, &change).await {
                    Ok(id) => return id,
                    Err(ChangeError::Refused(
                        MemberRefusal::Unhealthy | MemberRefusal::LearnerNotReady,
                    )) => {}
                    Err(ChangeError::Timeout | ChangeError::Unknown) => may_be_made = true,
                    Err(ChangeError::Refused(refusal)) if may_be_made => {
                        return made(&node, &change, refusal).await;
                    }
                    Err(error) => panic!("{change:?}: {error}"),
                }
            }
        };
        within("a change", attempts).await
    }

    pub(super) fn addition(&self, i: usize, is_learner: bool) -> MemberChange {
        MemberChange::Add { peer_urls: vec![self.url(i)], is_learner }
    }

    /// Adds a member through another and starts it; returns once it is ready.
    pub(crate) async fn join(&mut self, i: usize, through: usize, is_learner: bool) {
        let id = self.change(through, self.addition(i, is_learner)).await;
        let mut all: Vec<usize> = self.nodes.keys().copied().collect();
        all.push(i);
        let settings = self.settings(i, &all, &["--initial-cluster-state=existing"]);
        let node = within("a member joins", Node::start(settings)).await.unwrap();
        assert_eq!(node.member_id(), id);
        within("a new member is ready", node.wait_ready()).await.unwrap();
        self.nodes.insert(i, node);
    }

    /// Removes a member through another; it must notice and stop.
    pub(super) async fn remove(&mut self, i: usize, through: usize) {
        let id = self.id(i);
        self.change(through, MemberChange::Remove { id }).await;
        let node = self.nodes.remove(&i).unwrap();
        within("a removed member notices", node.removed()).await;
        within("a removed member stops", node.shutdown()).await;
    }

    pub(super) fn members(&self, seen_by: usize) -> Vec<MemberInfo> {
        self.node(seen_by).members().unwrap()
    }

    pub(crate) async fn voters_are(&self, count: usize) {
        eventually("all members vote", || {
            self.nodes.values().all(|node| {
                let membership = node.reader().membership();
                membership.membership().voter_ids().count() == count
            })
        })
        .await;
    }

    pub(super) async fn converge(&self) {
        eventually("members converge", || {
            let mut states = self.nodes.values().map(|node| {
                let head = node.reader().head();
                (head.revision, head.digest)
            });
            let first = states.next().unwrap();
            states.all(|state| state == first)
        })
        .await;
    }
}

/// The member of a change that is refused because it was made already, once `node` sees it.
async fn made(node: &Node, change: &MemberChange, refusal: MemberRefusal) -> u64 {
    match (change, refusal) {
        (MemberChange::Remove { id }, MemberRefusal::NotFound)
        | (MemberChange::Promote { id }, MemberRefusal::NotLearner) => *id,
        (MemberChange::Add { peer_urls, .. }, MemberRefusal::PeerUrlExists) => {
            let mut id = None;
            eventually("an added member is seen", || {
                let members = node.members().unwrap();
                id = members.iter().find(|member| member.peer_urls == *peer_urls).map(|m| m.id);
                id.is_some()
            })
            .await;
            id.unwrap()
        }
        _ => panic!("{change:?}: {refusal}"),
    }
}

/// Writes numbers through one member until it is stopped; all must be there afterwards.
pub(super) struct Load {
    written: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Load {
    pub(super) fn start(node: &Arc<Node>, prefix: &'static str) -> Load {
        let (node, written) = (node.clone(), Arc::new(AtomicU64::new(0)));
        let count = written.clone();
        let task = tokio::spawn(async move {
            loop {
                let number = count.load(Ordering::Relaxed);
                put_again_and_again(&node, &format!("{prefix}{number:08}"), b"v").await;
                count.store(number + 1, Ordering::Relaxed);
            }
        });
        Load { written, task }
    }

    /// Waits until it has gone on.
    pub(super) async fn goes_on(&self) {
        let before = self.written.load(Ordering::Relaxed);
        eventually("writes go on", || self.written.load(Ordering::Relaxed) >= before + 5).await;
    }

    pub(super) async fn stop(self, prefix: &str, seen_by: &Node) {
        self.task.abort();
        self.task.await.unwrap_err();
        within("a read barrier", seen_by.read_barrier()).await.unwrap();
        for number in 0..self.written.load(Ordering::Relaxed) {
            let key = format!("{prefix}{number:08}");
            assert!(get(seen_by, &key).await.is_some(), "acknowledged and lost: {key}");
        }
    }
}
