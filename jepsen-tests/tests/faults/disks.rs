//! Nodes on disks that lose power, fill up and fail.

use conclave_jepsen_tests::disk::{self, Disk};
use tokio::sync::{Mutex, MutexGuard};

use crate::support::{Nodes, skipped};

/// Room for the segments that a log keeps, and the state.
const DISK_MEGABYTES: u64 = 400;
/// Every node of a cluster of three.
pub(crate) const ALL: [usize; 3] = [0, 1, 2];

/// Waits until no other test uses such disks, for loop devices are few; hold what it returns while the disks live.
/// `None`, with a line that says why, where they cannot be made.
pub(crate) async fn turn(test: &str) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    if let Err(reason) = disk::available() {
        skipped(test, &reason);
        return None;
    }
    Some(turn)
}

impl Nodes {
    /// Nodes that do not run yet, each with its data on a disk of its own.
    pub(crate) fn on_disks(size: usize, flags: &[&str]) -> Self {
        let mut nodes = Self::create(size, flags);
        for node in nodes.cluster.nodes() {
            let home = node.data_dir().with_file_name("disk");
            let disk = Disk::create(&home, node.data_dir(), DISK_MEGABYTES).expect("a disk");
            nodes.disks.push(disk);
        }
        nodes
    }

    /// Cuts the power of these nodes at once, and ends what is left of their processes.
    pub(crate) fn cut_power(&mut self, victims: &[usize]) {
        let disks: Vec<&Disk> = victims.iter().map(|&node| &self.disks[node]).collect();
        disk::cut_power(&disks).expect("their power can be cut");
        self.cluster.kill_together(victims).expect("they can be killed");
    }

    /// Mounts the disks of these nodes, which do not run, again and starts the nodes.
    pub(crate) fn restore(&mut self, victims: &[usize]) {
        for &node in victims {
            self.disks[node].restore().expect("the disk can be mounted again");
            self.cluster.start(node).expect("the program starts");
        }
    }

    /// All nodes must have the same at the newest revision, while nobody writes.
    pub(crate) async fn must_be_equal(&self) {
        let (revision, _) = self.client(0).await.keys("k").await.expect("an answer");
        self.must_agree(revision).await;
    }
}
