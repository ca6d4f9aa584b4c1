//! Which calls are retried after which errors, and the error they end with.

use crate::error::{Error, Outcome};

/// Decides after which errors a call is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// The call changes nothing.
    Read,
    /// The call changes something.
    Write,
    /// The call changes something, and the cluster recognises it when it is sent again.
    Once,
}

impl Retry {
    /// Whether a call of this class is retried after this error.
    pub(crate) fn covers(self, error: &Error) -> bool {
        match self {
            Self::Read => error.is_unavailable() || matches!(error, Error::Deadline { .. }),
            Self::Write => error.is_unavailable() && error.outcome() == Outcome::NotApplied,
            Self::Once => error.is_unavailable() || error.outcome() == Outcome::Unknown,
        }
    }

    /// Number of attempts among which the remaining time is divided.
    pub(crate) fn shares(self, endpoints: usize) -> usize {
        if self == Self::Write { 1 } else { endpoints }
    }

    /// The error that a call ends with. If a retry was refused, an earlier attempt (`doubt`) may
    /// still take effect, so its error is returned. If the last attempt of a read timed out, the
    /// error of an earlier attempt that certainly did not arrive (`reason`) says more than the
    /// timeout.
    pub(crate) fn verdict(
        self,
        doubt: Option<Error>,
        reason: Option<Error>,
        error: Error,
    ) -> Error {
        match self {
            Self::Once if error.outcome() == Outcome::NotApplied => doubt.unwrap_or(error),
            Self::Read if matches!(error, Error::Deadline { .. }) => match reason {
                Some(Error::Unavailable { endpoint, status, .. }) => {
                    Error::Unavailable { outcome: error.outcome(), endpoint, status }
                }
                _ => error,
            },
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Status;

    use super::*;

    #[test]
    fn a_read_that_runs_out_of_time_tells_why_it_failed_before() {
        let endpoint = || "a:1".to_owned();
        let refused = || Error::Unavailable {
            outcome: Outcome::NotApplied,
            endpoint: endpoint(),
            status: Status::unavailable("no such certificate"),
        };
        let late = || Error::Deadline {
            outcome: Outcome::Unknown,
            endpoint: endpoint(),
            timeout: Duration::from_secs(1),
        };
        let verdict = Retry::Read.verdict(None, Some(refused()), late());
        assert!(matches!(verdict, Error::Unavailable { .. }), "{verdict}");
        let verdict = Retry::Read.verdict(Some(late()), None, late());
        assert!(matches!(verdict, Error::Deadline { .. }), "{verdict}");
        // An error of a write that may have taken effect must say so.
        for retry in [Retry::Write, Retry::Once] {
            let verdict = retry.verdict(None, Some(refused()), late());
            assert_eq!(verdict.outcome(), Outcome::Unknown);
        }
        let verdict = Retry::Once.verdict(Some(late()), None, refused());
        assert_eq!(verdict.outcome(), Outcome::Unknown);
    }
}
