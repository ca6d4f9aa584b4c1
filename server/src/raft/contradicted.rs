//! Removes a log tail that the applied state contradicts.
//!
//! Entries are applied before the log is durable: a follower may flush a state that includes an
//! entry of a new leader, and lose power before it has removed the old tail which that entry
//! replaced. Nothing is lost, but the old tail must go, because raft takes a log whose last entry
//! is older than the state for corrupt.

use std::io;

use conclave_raft_store::log::LogStore;
use conclave_raft_store::types::LogId;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};

/// Removes the log from the index of `applied` on, if the log's last entry is older than `applied`.
/// What follows an entry that contradicts a committed one was never committed.
///
/// # Errors
/// If the log cannot be read or written.
pub(crate) async fn drop_tail(log: &mut LogStore, applied: Option<LogId>) -> io::Result<()> {
    let state = log.get_log_state().await?;
    let (Some(applied), Some(last)) = (applied, state.last_log_id) else { return Ok(()) };
    if applied <= last || applied.index > last.index {
        return Ok(());
    }
    let before = match applied.index.checked_sub(1) {
        Some(index) => log.try_get_log_entries(index..applied.index).await?,
        None => Vec::new(),
    };
    let before = before.first().map(|entry| entry.log_id).or(state.last_purged_log_id);
    tracing::warn!(%last, %applied, "the log ends in entries that were replaced; removing them");
    log.truncate_after(before).await?;
    log.purge(applied).await
}

#[cfg(test)]
mod tests {
    use conclave_raft_store::log::LogOptions;
    use conclave_raft_store::types::{CommittedLeaderId, Entry, EntryPayload, Vote};
    use openraft::storage::RaftLogStorageExt as _;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term), index)
    }

    async fn log_of(dir: &std::path::Path, ids: impl Iterator<Item = LogId>) -> LogStore {
        let mut log = LogStore::open(dir, LogOptions::new(1)).unwrap();
        log.save_vote(&Vote::new(5, 2)).await.unwrap();
        let entries = ids.map(|log_id| Entry { log_id, payload: EntryPayload::Blank });
        log.blocking_append(entries.collect::<Vec<_>>()).await.unwrap();
        log
    }

    #[tokio::test]
    async fn a_tail_that_was_replaced_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for (place, applied, last) in [
            ("none", None, id(4, 20)),
            ("older", Some(id(4, 10)), id(4, 20)),
            ("ahead", Some(id(5, 30)), id(4, 20)),
            ("inside", Some(id(5, 10)), id(5, 10)),
            ("first", Some(id(5, 0)), id(5, 0)),
            ("last", Some(id(5, 20)), id(5, 20)),
        ] {
            let mut log = log_of(&dir.path().join(place), (0..=20).map(|at| id(4, at))).await;
            drop_tail(&mut log, applied).await.unwrap();
            let state = log.get_log_state().await.unwrap();
            assert_eq!(state.last_log_id, Some(last), "{place}");
            let next = Entry { log_id: id(5, last.index + 1), payload: EntryPayload::Blank };
            log.blocking_append([next]).await.unwrap();
        }
    }
}
