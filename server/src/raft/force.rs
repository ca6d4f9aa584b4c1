//! `--force-new-cluster`: continues with this member alone, after the quorum is lost for good.
//!
//! A configuration of this member alone is appended to its log before raft starts. Applying it
//! marks all others as removed, so that none of them is heard again. Entries that may not have been
//! committed are kept: their clients may have been told that they were.

use std::collections::BTreeSet;
use std::io;

use conclave_raft_store::Reader;
use conclave_raft_store::log::LogStore;
use conclave_raft_store::types::{
    CommittedLeaderId, Entry, EntryPayload, LogId, Membership, NodeId, Nodes, Vote,
};
use futures::{StreamExt, TryStreamExt};
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _, RaftLogStorageExt as _};

/// Makes `own_id` the only member, unless it already is.
///
/// # Errors
/// If the log cannot be read or written, or `own_id` is not a member.
pub(crate) async fn alone(log: &mut LogStore, reader: &Reader, own_id: NodeId) -> io::Result<()> {
    let membership = last_membership(log, reader).await?;
    let others: Vec<String> = membership
        .nodes()
        .filter(|(id, _)| **id != own_id)
        .map(|(id, _)| format!("{id:x}"))
        .collect();
    let node = membership.get_node(&own_id).cloned();
    let node = node.ok_or_else(|| io::Error::other("this member is not in its own cluster"))?;
    if others.is_empty() {
        tracing::info!("--force-new-cluster: this is the only member already");
        return Ok(());
    }
    let applied = reader.applied();
    if applied > log.get_log_state().await?.last_log_id
        && let Some(applied) = applied
    {
        // What is applied was committed elsewhere; the log continues after it.
        log.purge(applied).await?;
    }
    let last = log.get_log_state().await?.last_log_id;
    let voted = log.read_vote().await?.map_or(0, |vote| vote.leader_id.term);
    let term = last.map_or(0, |id| id.leader_id.term).max(voted) + 1;
    let index = last.map_or(0, |id| id.index + 1);
    let log_id = LogId::new(CommittedLeaderId::new(term), index);
    let nodes: Nodes = [(own_id, node)].into();
    let alone = Membership::new(vec![BTreeSet::from([own_id])], nodes).map_err(io::Error::other)?;
    log.save_vote(&Vote::new(term, own_id)).await?;
    log.blocking_append([Entry { log_id, payload: EntryPayload::Membership(alone) }]).await?;
    tracing::warn!(removed = others.join(" "), "--force-new-cluster: this member goes on alone");
    Ok(())
}

/// The last configuration in the log, else the applied one.
async fn last_membership(log: &LogStore, reader: &Reader) -> io::Result<Membership> {
    let from = reader.applied().map_or(0, |id| id.index + 1);
    let mut log = log.clone();
    let entries = log.entries_stream(from..).await;
    let found = entries.try_filter_map(async |entry| {
        Ok(match entry.payload {
            EntryPayload::Membership(membership) => Some(membership),
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        })
    });
    let mut found = std::pin::pin!(found);
    let mut last = reader.membership().membership().clone();
    while let Some(membership) = found.next().await {
        last = membership?;
    }
    Ok(last)
}
