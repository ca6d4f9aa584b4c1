//! Why a lock or leadership was lost.

use std::{fmt, sync::OnceLock};

use conclave_proto::v1::Broken;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Why a lock or leadership was lost.
///
/// ```no_run
/// # async fn example(leadership: conclave_client::Leadership) -> Result<(), conclave_client::Error> {
/// use conclave_client::election::Loss;
///
/// leadership.lost().cancelled().await;
/// match leadership.loss() {
///     Some(Loss::Broken { by, reason }) => println!("{by} wants another leader: {reason}"),
///     Some(Loss::Removed) => println!("somebody wants another leader: do not campaign at once"),
///     _ => println!("the network or this machine: campaign again"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// The session ended, or may have.
    Session,
    /// An operator took it away by force.
    Broken {
        /// Name of the user who did it; empty if the user was not authenticated.
        by: String,
        /// The reason that was given.
        reason: String,
    },
    /// Its key was deleted or attached to another lease, as by an etcd client, or it was taken away
    /// by an unknown party.
    Removed,
}

impl Loss {
    /// The loss for what a server reports about something taken away.
    pub(crate) fn of(broken: Option<Broken>) -> Self {
        broken.map_or(Self::Removed, |Broken { by, reason }| Self::Broken { by, reason })
    }

    /// The error of a call that needs what was lost.
    pub(crate) fn error(&self) -> Error {
        match self {
            Self::Session => Error::session_lost(),
            Self::Broken { .. } | Self::Removed => Error::lost(self.to_string()),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => f.write_str("the session ended, or may have"),
            Self::Removed => {
                f.write_str("its key was deleted, or given another lease, and by whom is not known")
            }
            Self::Broken { by, reason } => {
                let by = if by.is_empty() { "an operator" } else { by };
                let colon = if reason.is_empty() { "" } else { ": " };
                write!(f, "{by} took it away by force{colon}{reason}")
            }
        }
    }
}

/// The loss signal of something held through a session. Records whether it was taken away, in
/// addition to the end of the session itself.
#[derive(Debug)]
pub(crate) struct Standing {
    lost: CancellationToken,
    loss: OnceLock<Loss>,
}

impl Standing {
    /// The signal of something that is also lost when `lost` is cancelled.
    pub(crate) fn under(lost: &CancellationToken) -> Self {
        Self { lost: lost.child_token(), loss: OnceLock::new() }
    }

    /// Cancelled when it is lost in any way.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Records that it was taken away; the first reason counts.
    pub(crate) fn lose(&self, loss: Loss) {
        self.loss.get_or_init(|| loss);
        self.lost.cancel();
    }

    /// Why it was taken away, if it was.
    pub(crate) fn loss(&self) -> Option<&Loss> {
        self.loss.get()
    }
}
