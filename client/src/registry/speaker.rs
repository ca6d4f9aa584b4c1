//! When what an owner reports is to be passed on by the keeper of its registration: at once to the heart, which says
//! it with heartbeats, and by a request of its own where nobody listens to those.

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::word::Word;
use crate::backoff::Backoff;

/// What the keeper of a registration knows of its owner's word.
#[derive(Debug)]
pub(super) struct Speaker {
    word: watch::Receiver<Word>,
    /// What a request has carried, or is not to carry any more.
    carried: Word,
    /// Not before is it tried again.
    next: Option<Instant>,
    backoff: Backoff,
}

impl Speaker {
    pub(super) fn new(word: watch::Receiver<Word>) -> Self {
        Self { word, carried: Word::default(), next: None, backoff: Backoff::default() }
    }

    /// The last word.
    pub(super) fn hear(&mut self) -> Word {
        self.word.borrow_and_update().clone()
    }

    /// A request has carried this.
    pub(super) fn carried(&mut self, word: Word) {
        self.carried = word;
        self.next = None;
        self.backoff.reset();
    }

    /// It has to be tried again.
    pub(super) fn postpone(&mut self) {
        self.next = Some(Instant::now() + self.backoff.next());
    }

    /// Whether a request has to carry the last word to a server that takes reports with heartbeats, or not, or of
    /// which that is not known.
    pub(super) fn must_carry(&self, takes_reports: Option<bool>) -> bool {
        takes_reports == Some(false) && *self.word.borrow() != self.carried
    }

    /// Waits until there is something to hear or to carry. Cancel-safe.
    pub(super) async fn due(&self, mut takes_reports: watch::Receiver<Option<bool>>) {
        let mut word = self.word.clone();
        loop {
            let must_carry = self.must_carry(*takes_reports.borrow_and_update());
            let at = self.next.unwrap_or_else(Instant::now);
            tokio::select! {
                Ok(()) = word.changed() => return,
                () = sleep_until(at), if must_carry => return,
                Ok(()) = takes_reports.changed() => {}
                // Nobody speaks any more.
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_request_carries_what_heartbeats_do_not() {
        let (owner, word) = watch::channel(Word::default());
        let (server, takes_reports) = watch::channel(None);
        let mut speaker = Speaker::new(word);
        let is_due =
            |speaker: &Speaker| speaker.due(takes_reports.clone()).now_or_never().is_some();
        assert!(!is_due(&speaker));
        owner.send_modify(|word| assert!(word.set_weight(7)));
        assert!(is_due(&speaker), "there is something to hear");
        let word = speaker.hear();
        assert!(!is_due(&speaker), "it may go with heartbeats");
        server.send_replace(Some(true));
        assert!(!is_due(&speaker));
        server.send_replace(Some(false));
        speaker.due(takes_reports.clone()).await;
        speaker.postpone();
        speaker.due(takes_reports.clone()).await;
        speaker.carried(word);
        assert!(!is_due(&speaker));
        drop(owner);
        assert!(!is_due(&speaker), "whoever waits for orders ends, too");
    }
}
