//! What a checker found wrong, named after the guarantee that was broken.

use std::fmt;

use serde::Serialize;

/// A broken guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Fault {
    /// An acknowledged write is not in the history of the store.
    LostWrite,
    /// Two acknowledged writes have one revision, or one write has two.
    RevisionReused,
    /// A change that nobody asked for.
    Phantom,
    /// A revision without a change.
    Hole,
    /// An answer that differs from the state at its revision.
    WrongAnswer,
    /// An answer older than something known before the request was sent.
    StaleRead,
    /// A write at or below a revision known before it was sent.
    RevisionBack,
    /// A connection's answers went back to an older revision.
    SessionBack,
    /// Something was seen before anybody asked for it.
    FromTheFuture,
    /// Two watchers saw different changes at one revision.
    Divergence,
    /// Watch: events out of revision order.
    Unordered,
    /// Watch: an event delivered twice.
    Duplicated,
    /// Watch: an event missing.
    Skipped,
    /// Watch: one revision split over responses.
    Torn,
    /// Watch: a progress notice ahead of events, or events behind it.
    Progress,
    /// Watch: a wrong previous value.
    PreviousValue,
    /// Watch: wrong content, such as create revision or version.
    WrongEvent,
    /// Watch: an event outside the range or the filters.
    Unfiltered,
    /// Watch: ended by the server without a reason that allows it.
    Canceled,
    /// Watch: never delivered the last revision although the cluster was healthy.
    Incomplete,
    /// The members disagree at the end.
    Diverged,
    /// A node ended on its own, or complained of something fatal.
    NodeDied,
    /// The cluster did not serve again after all faults were healed.
    NotHealed,
    /// The history does not say enough to judge; counts as a failure.
    Inconclusive,
}

/// One thing found wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The broken guarantee.
    pub fault: Fault,
    /// What was seen and what should have been.
    pub detail: String,
}

impl Violation {
    /// A violation with its explanation.
    pub fn new(fault: Fault, detail: impl Into<String>) -> Self {
        Self { fault, detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.fault, self.detail)
    }
}
