//! The faults: which members are killed, paused, restarted, cut off or without power, and for how long.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use conclave_benches::cluster::Cluster;
use conclave_benches::connection::Connection;
use conclave_proto::etcdserverpb::StatusRequest;
use conclave_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::disk::{self, Disk};
use crate::network::Network;
use crate::network::cut::{self, Way};

const STATUS_TIMEOUT: Duration = Duration::from_millis(300);
const TERMINATE_PATIENCE: Duration = Duration::from_secs(10);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Nemesis {
    /// kill -9 of a random node.
    Kill,
    /// kill -9 of the leader.
    KillLeader,
    /// kill -9 of a majority at once.
    KillMajority,
    /// kill -9 of all nodes at once.
    KillAll,
    /// SIGSTOP of a random node.
    Pause,
    /// SIGSTOP of the leader.
    PauseLeader,
    /// SIGSTOP of all nodes at once.
    PauseAll,
    /// SIGTERM of a random node, which has to end well.
    Restart,
    /// No way between a random node and the others.
    Isolate,
    /// No way between the leader and the others.
    IsolateLeader,
    /// The leader hears the others and is not heard.
    MuteLeader,
    /// The leader is heard by the others and does not hear them.
    DeafenLeader,
    /// The others hear nobody but a random node, which hears them all.
    Bridge,
    /// A random node loses power: what it did not sync is gone.
    PowerCut,
    /// The leader loses power.
    PowerCutLeader,
    /// All nodes lose power at once.
    PowerCutAll,
}

/// What the faults happen to.
pub struct Targets<'a> {
    /// The processes.
    pub cluster: &'a mut Cluster,
    /// The network between them, for partitions.
    pub network: Option<Network>,
    /// The disks of all nodes in order, for power cuts; else empty.
    pub disks: Vec<Disk>,
}

impl Nemesis {
    /// Whether it needs a [`Network`] between the nodes.
    #[must_use]
    pub fn is_partition(self) -> bool {
        match self {
            Self::Isolate
            | Self::IsolateLeader
            | Self::MuteLeader
            | Self::DeafenLeader
            | Self::Bridge => true,
            Self::Kill
            | Self::KillLeader
            | Self::KillMajority
            | Self::KillAll
            | Self::Pause
            | Self::PauseLeader
            | Self::PauseAll
            | Self::Restart
            | Self::PowerCut
            | Self::PowerCutLeader
            | Self::PowerCutAll => false,
        }
    }

    /// Whether it needs a [`Disk`] under every node, which only root can make.
    #[must_use]
    pub fn is_power_cut(self) -> bool {
        matches!(self, Self::PowerCut | Self::PowerCutLeader | Self::PowerCutAll)
    }
}

/// Chooses and does faults.
pub struct Adversary {
    kinds: Vec<Nemesis>,
    rng: StdRng,
    /// Kinds not yet used in this round: all kinds come before any comes again.
    left: Vec<Nemesis>,
    done: BTreeMap<Nemesis, u32>,
}

impl Adversary {
    /// An adversary with these kinds of faults.
    #[must_use]
    pub fn new(kinds: Vec<Nemesis>, seed: u64) -> Self {
        Self { kinds, rng: StdRng::seed_from_u64(seed), left: Vec::new(), done: BTreeMap::new() }
    }

    /// How often each kind was done.
    #[must_use]
    pub fn done(&self) -> &BTreeMap<Nemesis, u32> {
        &self.done
    }

    /// Time without a fault before the next one.
    pub fn calm(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(500..3000))
    }

    /// Does one fault, keeps it up for a while, and heals it.
    ///
    /// # Errors
    /// If a process cannot be signalled or started, or a node asked to end does not end well; or for a partition
    /// without a network, or a power cut without disks.
    pub async fn strike(&mut self, targets: &mut Targets<'_>) -> Result<()> {
        let Targets { cluster, network, disks } = targets;
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
            self.left.shuffle(&mut self.rng);
        }
        let Some(kind) = self.left.pop() else { return Ok(()) };
        let victims = self.victims(kind, cluster).await;
        let hold = self.hold(kind);
        match kind {
            Nemesis::Kill | Nemesis::KillLeader | Nemesis::KillMajority | Nemesis::KillAll => {
                cluster.kill_together(&victims)?;
                tokio::time::sleep(hold).await;
                victims.iter().try_for_each(|&node| cluster.start(node))?;
            }
            Nemesis::Pause | Nemesis::PauseLeader | Nemesis::PauseAll => {
                victims.iter().try_for_each(|&node| cluster.pause(node))?;
                tokio::time::sleep(hold).await;
                victims.iter().try_for_each(|&node| cluster.resume(node))?;
            }
            Nemesis::Restart => {
                victims.iter().try_for_each(|&node| cluster.terminate(node, TERMINATE_PATIENCE))?;
                tokio::time::sleep(hold).await;
                victims.iter().try_for_each(|&node| cluster.start(node))?;
            }
            Nemesis::Isolate
            | Nemesis::IsolateLeader
            | Nemesis::MuteLeader
            | Nemesis::DeafenLeader
            | Nemesis::Bridge => {
                let network = network.as_ref().context("a network that can be cut")?;
                let size = cluster.nodes().len();
                network.cut(victims.iter().flat_map(|&node| ways(kind, node, size)).collect());
                tokio::time::sleep(hold).await;
                if self.rng.random() { network.heal() } else { network.heal_broken() }
            }
            Nemesis::PowerCut | Nemesis::PowerCutLeader | Nemesis::PowerCutAll => {
                let cut: Option<Vec<&Disk>> = victims.iter().map(|&node| disks.get(node)).collect();
                let cut = cut.context("disks that can lose power")?;
                disk::cut_power(&cut)?;
                cluster.kill_together(&victims)?;
                tokio::time::sleep(hold).await;
                cut.iter().try_for_each(|disk| disk.restore())?;
                victims.iter().try_for_each(|&node| cluster.start(node))?;
            }
        }
        *self.done.entry(kind).or_default() += 1;
        Ok(())
    }

    /// How long a fault is kept up. A leader that hears nobody is silent only after some election timeouts.
    fn hold(&mut self, kind: Nemesis) -> Duration {
        let range = if kind.is_partition() { 500..8000 } else { 100..3000 };
        Duration::from_millis(self.rng.random_range(range))
    }

    async fn victims(&mut self, kind: Nemesis, cluster: &Cluster) -> Vec<usize> {
        let mut all: Vec<usize> = (0..cluster.nodes().len()).collect();
        match kind {
            Nemesis::KillAll | Nemesis::PauseAll | Nemesis::PowerCutAll => all,
            Nemesis::KillMajority => {
                all.shuffle(&mut self.rng);
                all.truncate(cluster.nodes().len() / 2 + 1);
                all
            }
            Nemesis::KillLeader
            | Nemesis::PauseLeader
            | Nemesis::IsolateLeader
            | Nemesis::MuteLeader
            | Nemesis::DeafenLeader
            | Nemesis::PowerCutLeader => {
                let leader = leader(&cluster.endpoints()).await;
                leader.or_else(|| all.choose(&mut self.rng).copied()).into_iter().collect()
            }
            Nemesis::Kill
            | Nemesis::Pause
            | Nemesis::Restart
            | Nemesis::Isolate
            | Nemesis::Bridge
            | Nemesis::PowerCut => all.choose(&mut self.rng).copied().into_iter().collect(),
        }
    }
}

/// What a partition around a node takes away.
fn ways(kind: Nemesis, node: usize, size: usize) -> Vec<Way> {
    match kind {
        Nemesis::Isolate | Nemesis::IsolateLeader => cut::isolated(node, size),
        Nemesis::MuteLeader => cut::mute(node, size),
        Nemesis::DeafenLeader => cut::deaf(node, size),
        Nemesis::Bridge => cut::bridge(node, size),
        Nemesis::Kill
        | Nemesis::KillLeader
        | Nemesis::KillMajority
        | Nemesis::KillAll
        | Nemesis::Pause
        | Nemesis::PauseLeader
        | Nemesis::PauseAll
        | Nemesis::Restart
        | Nemesis::PowerCut
        | Nemesis::PowerCutLeader
        | Nemesis::PowerCutAll => Vec::new(),
    }
}

/// The member that says it leads, if one answers soon.
pub async fn leader(endpoints: &[String]) -> Option<usize> {
    for (index, endpoint) in endpoints.iter().enumerate() {
        let status = tokio::time::timeout(STATUS_TIMEOUT, status(endpoint)).await;
        if let Ok(Ok(true)) = status {
            return Some(index);
        }
    }
    None
}

async fn status(endpoint: &str) -> Result<bool> {
    let connection = Connection::open(endpoint).await?;
    let origin = connection.origin();
    let mut client = MaintenanceClient::with_origin(connection, origin);
    let status = client.status(StatusRequest {}).await?.into_inner();
    Ok(status.header.is_some_and(|header| header.member_id == status.leader))
}
