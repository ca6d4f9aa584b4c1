//! Stops a member whose log lacks what it had acknowledged: a disk that forgot synced bytes, or a
//! directory replaced by an old copy.
//!
//! The log detects damage by itself except at its very end, which looks as if the process had died
//! just there. But the leader remembers what each member acknowledged to it under its vote
//! ([`Acknowledged`]) and says so with every append that begins there. A member that then finds a
//! conflict has lost records: only a leader with a higher vote may remove them, and under that vote
//! the append would be refused. The member must neither vote nor serve any more, and the leader's
//! raft must not see its answer: openraft takes a log that went back for a bug of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use conclave_raft_store::log::LogStore;
use conclave_raft_store::types::{LogId, Vote};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tonic::Status;

/// The last entry that a member acknowledged, and the vote of the leader it acknowledged it to.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    last: Mutex<Option<(Vote, LogId)>>,
}

impl Acknowledged {
    /// Notes that the member has everything up to `id`.
    pub(crate) fn note(&self, vote: Vote, id: LogId) {
        let mut last = self.last.lock();
        match &mut *last {
            Some((of, before)) if *of == vote => *before = (*before).max(id),
            _ => *last = Some((vote, id)),
        }
    }

    /// Whether the member acknowledged `id` to the leader of `vote`.
    pub(crate) fn covers(&self, vote: Vote, id: LogId) -> bool {
        self.last.lock().is_some_and(|(of, last)| of == vote && last >= id)
    }
}

/// Time for the answer that reports the loss to leave this member before it stops.
const ANSWER_GRACE: Duration = Duration::from_millis(200);

/// Stops this member once its log is known to lack records.
pub(crate) struct Loss {
    log: LogStore,
    abstain: Box<dyn Fn() + Send + Sync>,
    failed: watch::Sender<Option<String>>,
    is_noted: AtomicBool,
}

impl Loss {
    /// `abstain` keeps this member from standing for election; `failed` is told why it must stop.
    pub(crate) fn new(
        log: LogStore,
        abstain: impl Fn() + Send + Sync + 'static,
        failed: watch::Sender<Option<String>>,
    ) -> Self {
        Self { log, abstain: Box::new(abstain), failed, is_noted: AtomicBool::new(false) }
    }

    /// Condemns the log, which lacks `id` although `leader` knows that it was acknowledged, and
    /// stops this member. Returns the answer for the leader.
    pub(crate) async fn note(&self, leader: u64, id: LogId) -> Status {
        let reason = format!(
            "member {leader:x}, which leads, knows that this member had acknowledged entry {id}, but it \
             is not there"
        );
        let answer = Status::data_loss(reason.clone());
        self.condemn(reason).await;
        answer
    }

    /// Condemns the log for `reason` and stops this member.
    pub(crate) async fn condemn(&self, reason: String) {
        // Two calls may find out at the same time.
        if self.is_noted.swap(true, Ordering::Relaxed) {
            return;
        }
        // It accepts no leader from now on, so it must not campaign: another member may lack the
        // same records.
        (self.abstain)();
        let (log, failed) = (self.log.clone(), self.failed.clone());
        // Runs to its end even if the call that found out is given up.
        let condemned = tokio::task::spawn_blocking(move || match log.condemn(&reason) {
            Ok(refusal) => refusal.to_string(),
            Err(error) => format!("{reason}; this cannot be noted: {error}"),
        });
        let (noted, is_noted) = oneshot::channel();
        tokio::spawn(async move {
            // Fails only if the runtime ends, and this member with it.
            let Ok(text) = condemned.await else { return };
            drop(noted);
            // Lets the leader receive the answer, so that it can log the loss too.
            tokio::time::sleep(ANSWER_GRACE).await;
            failed.send_replace(Some(text));
        });
        is_noted.await.unwrap_or(());
    }

    /// Whether the log is condemned: this member then takes part in nothing until it stops.
    pub(crate) fn is_noted(&self) -> bool {
        self.is_noted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use conclave_raft_store::log::LogOptions;
    use conclave_raft_store::types::CommittedLeaderId;
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_call_that_is_given_up_stops_the_member_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("log"), LogOptions::new(1)).unwrap();
        let (failed, mut stops) = watch::channel(None);
        let abstained = Arc::new(AtomicBool::new(false));
        let noted = abstained.clone();
        let loss = Loss::new(log, move || noted.store(true, Ordering::Relaxed), failed);
        let id = LogId::new(CommittedLeaderId::new(1), 7);
        assert!(loss.note(3, id).now_or_never().is_none(), "a file is written meanwhile");
        let told = stops.wait_for(Option::is_some);
        let told = tokio::time::timeout(Duration::from_secs(60), told).await.unwrap().unwrap();
        assert!(told.as_ref().unwrap().contains("had acknowledged entry 1.7"), "{told:?}");
        assert!(abstained.load(Ordering::Relaxed));
    }

    #[test]
    fn what_was_acknowledged_holds_for_one_vote_and_only_grows() {
        let (first, second) = (Vote::new_committed(1, 7), Vote::new_committed(2, 7));
        let id = |term, index| LogId::new(CommittedLeaderId::new(term), index);
        let acknowledged = Acknowledged::default();
        assert!(!acknowledged.covers(first, id(1, 1)));
        acknowledged.note(first, id(1, 5));
        acknowledged.note(first, id(1, 3));
        assert!(acknowledged.covers(first, id(1, 5)) && acknowledged.covers(first, id(1, 2)));
        assert!(!acknowledged.covers(first, id(1, 6)));
        // Under another vote the member may have had to remove it.
        assert!(!acknowledged.covers(second, id(1, 2)));
        acknowledged.note(second, id(1, 2));
        assert!(acknowledged.covers(second, id(1, 2)) && !acknowledged.covers(first, id(1, 2)));
    }
}
