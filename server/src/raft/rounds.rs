//! Lets proposals into the leader's log in rounds.
//!
//! Batches come from every member at any time. Appended one by one, each would cost its own append to
//! every follower, its own sync on every member and its own commit. Instead, what arrives while a
//! round is in flight enters together when that round is applied, and raft makes one append of it.
//! Nothing lingers: with no round in flight a batch enters at once.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The gate before the leader's log.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Batches of the present round that are not applied yet.
    inside: Mutex<usize>,
    /// The present round is over.
    over: Notify,
}

/// Membership in a round; the round is over when all of these are dropped.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Rounds);

impl Rounds {
    /// Waits for the next round. Cancel-safe.
    pub(crate) async fn enter(&self) -> Pass<'_> {
        let over = self.over.notified();
        tokio::pin!(over);
        // From here on the end of the round is not missed.
        over.as_mut().enable();
        let is_open = {
            let mut inside = self.inside.lock();
            let is_open = *inside == 0;
            *inside += usize::from(is_open);
            is_open
        };
        if !is_open {
            over.await;
            *self.inside.lock() += 1;
        }
        Pass(self)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let is_over = {
            let mut inside = self.0.inside.lock();
            *inside -= 1;
            *inside == 0
        };
        if is_over {
            self.0.over.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn what_arrives_during_a_round_enters_together_after_it() {
        let rounds = Rounds::default();
        let first = rounds.enter().now_or_never().expect("nothing is in flight");
        let mut second = pin!(rounds.enter());
        let mut third = pin!(rounds.enter());
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.now_or_never().expect("the round is over");
        let third = third.now_or_never().expect("the round is over");
        let mut fourth = pin!(rounds.enter());
        assert!(fourth.as_mut().now_or_never().is_none());
        drop(second);
        assert!(fourth.as_mut().now_or_never().is_none());
        drop(third);
        assert!(fourth.now_or_never().is_some());
    }

    #[test]
    fn one_that_gives_up_while_waiting_holds_up_nobody() {
        let rounds = Rounds::default();
        let first = rounds.enter().now_or_never().expect("nothing is in flight");
        {
            let mut second = pin!(rounds.enter());
            assert!(second.as_mut().now_or_never().is_none());
            drop(first);
        }
        assert!(rounds.enter().now_or_never().is_some());
    }
}
