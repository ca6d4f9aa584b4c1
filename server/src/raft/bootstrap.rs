//! How a member begins: from its data directory if it has one, else from flags and its peers.
//!
//! A directory alone decides; flags count only while it is empty. In that case the peers are asked
//! first: a voter that has lost its vote and log must not come back under its old id, because it
//! could help to elect a leader that lacks entries it once acknowledged.

mod judge;

use std::path::{Path, PathBuf};
use std::time::Duration;

use conclave_proto::internal::{DescribeRequest, DescribeResponse};
use conclave_raft_store::types::Nodes;
use conclave_raft_store::{Identity, Reader};
use futures::future::join_all;
use tonic::Code;

use self::judge::{judge_existing, judge_new};
use super::link::Dialer;
use super::service::Beginning;
use super::standing::REMOVED;
use crate::config::{ClusterState, ConfigError, Settings};
use crate::etcd_dir::TakeOverError;

/// How long one peer may take to describe the cluster.
const DESCRIBE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Pause between two rounds of asking.
const ROUND_PAUSE: Duration = Duration::from_millis(300);
/// Rounds between two log lines while waiting for peers.
const ROUNDS_PER_LINE: u32 = 20;
/// Rounds in which a running cluster is given time to elect a leader, whose answer is certain.
/// After them the members' own knowledge must do: they may need this member for a quorum.
const PATIENT_ROUNDS: u32 = 30;

/// Why a member cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The flags contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cluster has a record that this member was started, but its directory is empty.
    #[error(
        "member {id:x} ({name}) has been started before, but its data directory {dir} is empty: as a \
         voter without its vote and log it could undo acknowledged writes. Remove it (etcdctl member \
         remove {id:x}), add it again (etcdctl member add {name} --peer-urls={urls}) and start it with \
         --initial-cluster-state existing and an empty data directory"
    )]
    StartedBefore {
        /// Member id.
        id: u64,
        /// Its name.
        name: String,
        /// Its directory.
        dir: PathBuf,
        /// Its peer URLs.
        urls: String,
    },
    /// The running cluster does not know this member.
    #[error(
        "the running cluster {cluster:x} has no member with the peer URLs {urls}: add it first \
         (etcdctl member add {name} --peer-urls={urls}), then start it with --initial-cluster-state \
         existing"
    )]
    NotAMember {
        /// Cluster id.
        cluster: u64,
        /// Name of this member.
        name: String,
        /// Its peer URLs.
        urls: String,
    },
    /// The peers are a running cluster, but not the one that the flags describe.
    #[error(
        "the peers are the running cluster {cluster:x}, and --initial-cluster with --initial-cluster-token makes \
         {own:x}: give all members the same of both; a member that was added to a running cluster (etcdctl \
         member add {name} --peer-urls={urls}) is started with --initial-cluster-state existing"
    )]
    OtherCluster {
        /// Id of the running cluster.
        cluster: u64,
        /// Id of the cluster that the flags describe.
        own: u64,
        /// Name of this member.
        name: String,
        /// Its peer URLs.
        urls: String,
    },
    /// `--initial-cluster` does not match the running cluster.
    #[error("error validating peerURLs of cluster {cluster:x}: {reason}")]
    Unequal {
        /// Cluster id.
        cluster: u64,
        /// What differs.
        reason: String,
    },
    /// The member of this directory was removed.
    #[error(
        "{REMOVED}: the data directory {dir} belongs to member {id:x}, which never comes back. Delete the \
         directory; to join again, add a new member (etcdctl member add) and start it with \
         --initial-cluster-state existing"
    )]
    Removed {
        /// Member id.
        id: u64,
        /// Its directory.
        dir: PathBuf,
    },
    /// The program ended while the directory was being restored.
    #[error(
        "the data directory {0} holds what a restore left that did not end: delete it, and restore the \
         backup again"
    )]
    Unrestored(PathBuf),
    /// The directory belongs to an etcd that has run.
    #[error(
        "the data directory {dir} is that of an etcd that ran (it has {found}), and this is Conclave, which would begin \
         beside it with an empty store. To take the data over, start that etcd, save it (etcdctl snapshot \
         save FILE), and restore the file into a new directory (conclave snapshot restore FILE \
         --data-dir=DIR), see docs/backup.md; to begin without it, give another --data-dir"
    )]
    OfEtcd {
        /// The directory.
        dir: PathBuf,
        /// The file or directory of etcd's that was found.
        found: PathBuf,
    },
    /// The directory was restored by etcd's tools and cannot be taken over.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// One of the two stores is missing.
    #[error(
        "the data directory has a {present} but no {absent}: a member that has lost part of its \
         directory must not go on as the same voter; remove it from the cluster (etcdctl member \
         remove), delete the directory and add it again"
    )]
    Torn {
        /// What is there.
        present: &'static str,
        /// What is missing.
        absent: &'static str,
    },
    /// The directory cannot be read or marked.
    #[error("cannot read or mark the data directory: {0}")]
    Io(#[from] std::io::Error),
}

/// Who this member is, and whether it founds the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Founding {
    pub(crate) identity: Identity,
    /// All initial members if this member founds the cluster; `None` to wait for the leader.
    pub(crate) members: Option<Nodes>,
}

/// The identity stored in the directory; `None` if it is empty.
pub(crate) fn stored_identity(
    reader: &Reader,
    log_dir: &Path,
) -> Result<Option<Identity>, BootstrapError> {
    let identity = reader.identity()?;
    let has_log = match std::fs::read_dir(log_dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(error.into()),
    };
    match (identity, has_log) {
        (None, true) => Err(BootstrapError::Torn { present: "raft log", absent: "state store" }),
        (Some(_), false) if reader.applied().is_some() => {
            Err(BootstrapError::Torn { present: "state store", absent: "raft log" })
        }
        (identity, _) => Ok(identity),
    }
}

/// Decides from flags and peers what an empty directory becomes. Waits without limit until as many
/// peers answer as an election needs; nothing could be served earlier anyway.
pub(crate) async fn found(
    settings: &Settings,
    dialer: &Dialer,
    beginning: &Beginning,
) -> Result<Founding, BootstrapError> {
    let cluster = &settings.bootstrap.initial_cluster;
    if settings.bootstrap.state == ClusterState::New {
        let verifying = settings.clone();
        let verified = tokio::task::spawn_blocking(move || verifying.verify_bootstrap()).await;
        verified.map_err(std::io::Error::other)??;
    }
    let peers: Vec<&[String]> = cluster
        .members
        .iter()
        .filter(|(name, urls)| {
            **name != settings.name && **urls != settings.listen.advertise_peer_urls
        })
        .map(|(_, urls)| urls.as_slice())
        .collect();
    // Together with this member, a quorum.
    let answers_min = cluster.members.len() / 2;
    let mut round = 0u32;
    loop {
        let asked = join_all(peers.iter().map(|urls| ask(dialer, urls, beginning.run))).await;
        let unanswered = asked.iter().find_map(|answer| answer.as_ref().err().cloned());
        let answers: Vec<DescribeResponse> = asked.into_iter().flatten().collect();
        let is_patient = round < PATIENT_ROUNDS && !are_younger(&answers, beginning);
        match settings.bootstrap.state {
            ClusterState::New => {
                if let Some(founding) = judge_new(settings, &answers, answers_min, is_patient)? {
                    return Ok(founding);
                }
            }
            ClusterState::Existing => {
                if let Some(founding) = judge_existing(settings, &answers, is_patient)? {
                    return Ok(founding);
                }
            }
        }
        if round.is_multiple_of(ROUNDS_PER_LINE) {
            tracing::info!(
                answered = answers.len(),
                needed = answers_min,
                reason = unanswered,
                "waiting for peers before this member begins"
            );
        }
        round = round.saturating_add(1);
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// Whether every peer that is in a cluster by now began empty while this member was also beginning.
/// Then this member is a founder whose vote the others wait for, and they know all that is known of
/// any earlier life of it.
fn are_younger(answers: &[DescribeResponse], beginning: &Beginning) -> bool {
    let mut running = answers.iter().filter(|answer| answer.membership.is_some());
    running.all(|answer| beginning.is_older_than(answer.run))
}

/// Asks a peer by each of its URLs in turn.
///
/// # Errors
/// The reason why the last URL gave no answer.
async fn ask(dialer: &Dialer, urls: &[String], run: u64) -> Result<DescribeResponse, String> {
    let mut reason = String::new();
    for url in urls {
        let request = DescribeRequest { is_founding: true, run, ..DescribeRequest::default() };
        let status = match dialer.describe(url, request, DESCRIBE_TIMEOUT).await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        if status.code() != Code::Unavailable {
            tracing::warn!(%url, %status, "a peer cannot describe the cluster");
        }
        reason = format!("{url}: {}", causes(&status));
    }
    Err(reason)
}

/// The innermost cause of an error: the transport's own text says nothing.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use conclave_proto::internal::Membership;

    use super::*;

    #[test]
    fn only_those_who_began_later_are_believed_at_once() {
        let beginning = Beginning::default();
        let answer = |run| DescribeResponse {
            membership: Some(Membership::default()),
            run,
            ..DescribeResponse::default()
        };
        let founding = DescribeResponse::default();
        assert!(!are_younger(&[answer(7), founding.clone()], &beginning), "it may be an old one");
        beginning.hear(7);
        assert!(are_younger(&[answer(7), founding.clone()], &beginning));
        assert!(!are_younger(&[answer(7), answer(8)], &beginning), "one of them may be");
        // A peer whose version does not send its run.
        beginning.hear(0);
        assert!(!are_younger(&[answer(0)], &beginning));
    }
}
