//! Which changes of the configuration are allowed, in etcd's order of checks and in its words.
//!
//! Local to whoever leads: what is reachable and how far each member is are arguments.

use std::collections::BTreeSet;

/// A learner may be promoted once it has this many percent of the leader's log.
const IN_SYNC_PERCENT: u64 = 90;

/// A wish to change who is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member.
    Add {
        /// Where the others will reach it, not empty.
        peer_urls: Vec<String>,
        /// It is not to vote.
        is_learner: bool,
    },
    /// A member goes for good.
    Remove {
        /// Its id.
        id: u64,
    },
    /// A member moves.
    Update {
        /// Its id.
        id: u64,
        /// Where the others reach it from now on, not empty.
        peer_urls: Vec<String>,
    },
    /// A learner becomes a voter.
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
    /// There are as many learners as may be.
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
    /// Where the others reach it.
    pub peer_urls: Vec<String>,
    /// It was added as a learner and not promoted.
    pub is_learner: bool,
    /// It has published itself.
    pub is_started: bool,
    /// The leader heard from it just now, or is it.
    pub is_reachable: bool,
    /// Index of the last log entry that it is known to have.
    pub matched: u64,
}

/// All configured members, and how strict to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// The members.
    pub seats: Vec<Seat>,
    /// Index of the leader's last log entry.
    pub last_index: u64,
    /// Refuse what could cost the quorum (`--strict-reconfig-check`).
    pub is_strict: bool,
    /// Most learners at a time (`--max-learners`).
    pub learners_max: usize,
}

impl Roster {
    /// Whether the change may be made.
    ///
    /// # Errors
    /// [`MemberRefusal`]: of several reasons the one that etcd gives.
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
            // With one started voter a second may be added whatever comes of it: etcd's way to restore a
            // cluster.
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
            // Who is gone takes no quorum along.
            if seat.is_some_and(|seat| seat.is_reachable) {
                let left = others.iter().filter(|seat| seat.is_reachable).count();
                if left < quorum(others.len()) {
                    return Err(MemberRefusal::Unhealthy);
                }
            }
        }
        seat.ok_or(MemberRefusal::NotFound)?;
        // Whatever was asked for, a cluster of nobody is none.
        if others.is_empty() { Err(MemberRefusal::NotEnoughStarted) } else { Ok(()) }
    }

    fn check_promote(&self, id: u64) -> Result<(), MemberRefusal> {
        let seat = self.seat(id).ok_or(MemberRefusal::NotFound)?;
        let needed = self.last_index.saturating_mul(IN_SYNC_PERCENT);
        let is_in_sync = seat.matched.saturating_mul(100) >= needed;
        if !seat.is_learner {
            return Err(MemberRefusal::NotLearner);
        }
        // A learner that never said its name may lose what it has and come back empty.
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

    /// Refuses URLs of another member than `own`.
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
