//! Which changes of the configuration are allowed, with etcd's order of checks and error texts.
//!
//! Local to the leader: which members are reachable and how far each one's log is are arguments.

use std::collections::BTreeSet;

/// A learner may be promoted once it has this percentage of the leader's log.
const IN_SYNC_PERCENT: u64 = 90;

/// A requested change of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Add a new member.
    Add {
        /// URLs at which the others will reach it, not empty.
        peer_urls: Vec<String>,
        /// Add it as a learner, which does not vote.
        is_learner: bool,
    },
    /// Remove a member for good.
    Remove {
        /// Its id.
        id: u64,
    },
    /// Change the URLs of a member.
    Update {
        /// Its id.
        id: u64,
        /// URLs at which the others will reach it, not empty.
        peer_urls: Vec<String>,
    },
    /// Make a learner a voter.
    Promote {
        /// Its id.
        id: u64,
    },
}

/// Why a change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberRefusal {
    /// Too few members have started for the change to be safe.
    #[error("re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// Too few members are reachable for the change to be safe.
    #[error("unhealthy cluster")]
    Unhealthy,
    /// A URL belongs to another member.
    #[error("Peer URLs already exists")]
    PeerUrlExists,
    /// The maximum number of learners is reached.
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// No such member, or it was removed.
    #[error("member not found")]
    NotFound,
    /// Only a learner can be promoted.
    #[error("can only promote a learner member")]
    NotLearner,
    /// The learner lags or was never started.
    #[error("can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
}

/// One configured member, as the leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// Member id.
    pub id: u64,
    /// URLs at which the others reach it.
    pub peer_urls: Vec<String>,
    /// Whether it was added as a learner and not promoted.
    pub is_learner: bool,
    /// Whether it has published itself.
    pub is_started: bool,
    /// Whether the leader heard from it recently, or it is the leader.
    pub is_reachable: bool,
    /// Index of the last log entry that it is known to have.
    pub matched: u64,
}

/// All configured members, and the rules' settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// The members.
    pub seats: Vec<Seat>,
    /// Index of the leader's last log entry.
    pub last_index: u64,
    /// Whether to reject what could cost the quorum (`--strict-reconfig-check`).
    pub is_strict: bool,
    /// Maximum number of learners (`--max-learners`).
    pub learners_max: usize,
}

impl Roster {
    /// Checks whether the change may be made.
    ///
    /// # Errors
    /// [`MemberRefusal`]; if several apply, the one that etcd gives.
    pub fn check(&self, change: &MemberChange) -> Result<(), MemberRefusal> {
        match change {
            MemberChange::Add { peer_urls, is_learner } => self.check_add(peer_urls, *is_learner),
            MemberChange::Remove { id } => self.check_remove(*id),
            MemberChange::Update { id, peer_urls } => {
                self.seat(*id).ok_or(MemberRefusal::NotFound)?;
                self.check_urls(peer_urls, Some(*id))
            }
            MemberChange::Promote { id } => self.check_promote(*id),
        }
    }

    fn check_add(&self, peer_urls: &[String], is_learner: bool) -> Result<(), MemberRefusal> {
        if self.is_strict {
            let started = self.voters().filter(|seat| seat.is_started).count();
            let voters = self.voters().count();
            // With one started voter a second may always be added, which is how etcd lets a cluster
            // be restored.
            let is_second = started == 1 && voters == 1;
            if !is_learner && !is_second && started < quorum(voters.saturating_add(1)) {
                return Err(MemberRefusal::NotEnoughStarted);
            }
            if self.voters().any(|seat| !seat.is_reachable) {
                return Err(MemberRefusal::Unhealthy);
            }
        }
        self.check_urls(peer_urls, None)?;
        let learners = self.seats.iter().filter(|seat| seat.is_learner).count();
        if is_learner && learners >= self.learners_max {
            return Err(MemberRefusal::TooManyLearners);
        }
        Ok(())
    }

    fn check_remove(&self, id: u64) -> Result<(), MemberRefusal> {
        let seat = self.seat(id);
        if seat.is_some_and(|seat| seat.is_learner) {
            return Ok(());
        }
        let others: Vec<&Seat> = self.voters().filter(|seat| seat.id != id).collect();
        if self.is_strict {
            let started = others.iter().filter(|seat| seat.is_started).count();
            if started < quorum(others.len()) {
                return Err(MemberRefusal::NotEnoughStarted);
            }
            // Removing a member that is not reachable does not reduce the number of reachable
            // voters.
            if seat.is_some_and(|seat| seat.is_reachable) {
                let left = others.iter().filter(|seat| seat.is_reachable).count();
                if left < quorum(others.len()) {
                    return Err(MemberRefusal::Unhealthy);
                }
            }
        }
        seat.ok_or(MemberRefusal::NotFound)?;
        // A cluster needs at least one voter, even if the check is not strict.
        if others.is_empty() { Err(MemberRefusal::NotEnoughStarted) } else { Ok(()) }
    }

    fn check_promote(&self, id: u64) -> Result<(), MemberRefusal> {
        let seat = self.seat(id).ok_or(MemberRefusal::NotFound)?;
        let needed = self.last_index.saturating_mul(IN_SYNC_PERCENT);
        let is_in_sync = seat.matched.saturating_mul(100) >= needed;
        if !seat.is_learner {
            return Err(MemberRefusal::NotLearner);
        }
        // A learner that never published itself may lose its data and come back empty.
        if !is_in_sync || !seat.is_started {
            return Err(MemberRefusal::LearnerNotReady);
        }
        if self.is_strict {
            let started = self.voters().filter(|seat| seat.is_started).count();
            let voters = self.voters().count();
            if started.saturating_add(1) < quorum(voters.saturating_add(1)) {
                return Err(MemberRefusal::NotEnoughStarted);
            }
        }
        Ok(())
    }

    /// Rejects URLs of members other than `own`.
    fn check_urls(&self, peer_urls: &[String], own: Option<u64>) -> Result<(), MemberRefusal> {
        let others = self.seats.iter().filter(|seat| Some(seat.id) != own);
        let taken: BTreeSet<&String> = others.flat_map(|seat| &seat.peer_urls).collect();
        if peer_urls.iter().any(|url| taken.contains(url)) {
            return Err(MemberRefusal::PeerUrlExists);
        }
        Ok(())
    }

    fn seat(&self, id: u64) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.id == id)
    }

    fn voters(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|seat| !seat.is_learner)
    }
}

fn quorum(voters: usize) -> usize {
    (voters / 2).saturating_add(1)
}
