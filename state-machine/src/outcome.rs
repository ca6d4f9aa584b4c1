//! Merges the two ways in which a rule can end early, so that `?` works inside this crate. The
//! public functions keep them apart.

use crate::response::{Halt, Rejection};

/// A rejection that every replica computes alike, or a failure of this node.
#[derive(Debug)]
pub(crate) enum Stop {
    Reject(Rejection),
    Halt(Halt),
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Stop {
        Stop::Reject(rejection)
    }
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Stop {
        Stop::Halt(halt)
    }
}

/// Takes the two apart again.
pub(crate) fn split<T>(result: Result<T, Stop>) -> Result<Result<T, Rejection>, Halt> {
    match result {
        Ok(answer) => Ok(Ok(answer)),
        Err(Stop::Reject(rejection)) => Ok(Err(rejection)),
        Err(Stop::Halt(halt)) => Err(halt),
    }
}
