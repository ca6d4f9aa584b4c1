//! Starts the tasks that a member runs beside raft, and what answers its peers.

use std::sync::Arc;

use conclave_raft_store::Reader;
use conclave_raft_store::log::LogStore;
use tokio::sync::{Mutex, watch};
use tokio_util::task::TaskTracker;

use super::start::request_timeout;
use crate::config::Settings;
use crate::lessor::{Leases, Lessor, LessorParts};
use crate::metrics::Counts;
use crate::propose::{Batcher, Proposer, Waiters};
use crate::raft::change::{self, Changer};
use crate::raft::compactor::{self, Retention};
use crate::raft::corruption::{Comparer, Digests};
use crate::raft::loss::Loss;
use crate::raft::route::Route;
use crate::raft::service::Serving;
use crate::raft::snapshot_receive::SnapshotReceiver;
use crate::raft::standing::{self, Standing};
use crate::raft::{Raft, quorum};
use crate::read_index::{self, ReadIndex};
use crate::{auto_compaction, sweeper};

/// Largest command that a member proposes itself, such as the end of a thousand leases. It must
/// pass even if the limit for clients is lower.
const OWN_COMMAND_BYTES_MAX: usize = 64 * 1024;

/// What the tasks of a member work with.
pub(super) struct Tasks<'a> {
    pub(super) settings: &'a Settings,
    pub(super) route: Route,
    pub(super) reader: Reader,
    pub(super) waiters: Arc<Waiters>,
    pub(super) leases: Arc<Leases>,
    pub(super) log: LogStore,
    pub(super) standing: Arc<Standing>,
    pub(super) digests: Arc<Digests>,
    pub(super) counts: Counts,
}

impl Tasks<'_> {
    /// Starts the tasks; returns what peers and clients talk to.
    pub(super) fn start(
        self,
        tasks: &TaskTracker,
        failed: &watch::Sender<Option<String>>,
    ) -> Serving {
        let (proposer, read_index) = self.propose(tasks);
        let Self { settings, route, reader, waiters, leases, log, standing, digests, counts } =
            self;
        let timeout = request_timeout(settings);
        let lessor = LessorParts {
            leases,
            route: route.clone(),
            reader: reader.clone(),
            proposer: proposer.clone(),
            election_timeout: settings.raft.election_timeout,
            timeout,
            registry: settings.registry,
        };
        let lessor = Lessor::start(lessor, tasks);
        housekeep(settings, (&route.raft, &reader, &proposer), tasks);
        let retention = Retention {
            snapshot_count: settings.raft.snapshot_count,
            catchup_entries: settings.raft.snapshot_catchup_entries,
        };
        tasks.spawn(quorum::guard(route.raft.clone(), settings.raft.election_timeout));
        tasks.spawn(compactor::run(route.clone(), log.clone(), retention));
        let candidate = route.raft.clone();
        let abstain = move || candidate.runtime_config().elect(false);
        let loss = Arc::new(Loss::new(log.clone(), abstain, failed.clone()));
        let comparer = Comparer {
            route: route.clone(),
            reader: reader.clone(),
            proposer: proposer.clone(),
            digests,
            loss: loss.clone(),
            checks: settings.checks,
        };
        tasks.spawn(comparer.clone().run());
        let changer = Arc::new(Changer {
            route: route.clone(),
            reader: reader.clone(),
            settings: settings.membership.clone(),
            election_timeout: settings.raft.election_timeout,
            timeout,
            promotions: counts.promotions.clone(),
            busy: Mutex::default(),
        });
        let snapshots = SnapshotReceiver::new(route.raft.clone(), log, reader.clone(), counts);
        tasks.spawn(change::promote(changer.clone()));
        tasks.spawn(standing::watch(route.clone(), standing.clone(), waiters));
        Serving {
            route,
            reader,
            proposer,
            read_index,
            lessor,
            snapshots,
            loss,
            comparer,
            standing,
            changer,
        }
    }

    /// Starts the tasks that bring commands into the log and confirm reads.
    fn propose(&self, tasks: &TaskTracker) -> (Proposer, ReadIndex) {
        let Self { settings, route, .. } = self;
        let timeout = request_timeout(settings);
        let command_bytes_max = settings.limits.request_bytes_max.max(OWN_COMMAND_BYTES_MAX);
        let (proposer, queues) = Proposer::new(command_bytes_max, timeout);
        let (read_index, unconfirmed) = ReadIndex::new(timeout);
        tasks.spawn(read_index::run(route.clone(), unconfirmed, self.counts.clone()));
        for (haste, waiting) in queues {
            let batcher = Batcher {
                haste,
                waiting,
                waiters: self.waiters.clone(),
                route: route.clone(),
                read_index: read_index.clone(),
                reader: self.reader.clone(),
                member_id: route.links.member_id(),
                timeout,
                tasks: tasks.clone(),
            };
            tasks.spawn(batcher.run());
        }
        (proposer, read_index)
    }
}

/// Starts compaction and the sweeper that deletes compacted history.
fn housekeep(
    settings: &Settings,
    (raft, reader, proposer): (&Raft, &Reader, &Proposer),
    tasks: &TaskTracker,
) {
    let parts = || (raft.clone(), reader.clone(), proposer.clone());
    let (sweeping, compacting) = (parts(), parts());
    tasks.spawn(sweeper::run(sweeping.0, sweeping.1, sweeping.2));
    let mode = settings.checks.auto_compaction;
    tasks.spawn(auto_compaction::run(mode, compacting.0, compacting.1, compacting.2));
}
