//! Locks that are held or being requested, so that their guards learn when they are taken away.
//!
//! The heartbeat stream reports what is taken from a session, from the moment when the session is
//! attached to the stream. What was taken before that is not reported: everything held at that
//! moment is checked once by a request.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::v1::{CheckFenceRequest, CheckFenceResponse, HeldLock, PlaceTaken};
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Heart;
use crate::backoff::Backoff;
use crate::client::Client;
use crate::error::Error;
use crate::loss::{Loss, Standing};

/// Locks checked at the same time.
const ASKED_MAX: usize = 16;

/// Lock requests by their ids.
#[derive(Debug, Default)]
pub(super) struct Places {
    by_request: Mutex<HashMap<Bytes, Place>>,
    /// Notified when there is something to check.
    doubts: Notify,
}

/// What is known about one lock request.
#[derive(Debug)]
struct Place {
    session: i64,
    standing: Arc<Standing>,
    /// What it holds; `None` while that is not known, because an answer is awaited.
    locks: Option<Vec<HeldLock>>,
    /// It may have been taken away without a report.
    is_doubtful: bool,
}

/// A subscription to the loss of what a request holds; ends when dropped.
#[derive(Debug)]
pub(crate) struct Hearing {
    heart: Arc<Heart>,
    request_id: Bytes,
    standing: Arc<Standing>,
}

impl Hearing {
    /// Whether it was lost.
    pub(crate) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Records what the request holds from now on; `None` while that is not known.
    pub(crate) fn holds(&self, locks: Option<&[HeldLock]>) {
        let places = &self.heart.places;
        if let Some(place) = places.by_request.lock().get_mut(&self.request_id) {
            place.locks = locks.map(<[HeldLock]>::to_vec);
            if place.locks.is_some() && place.is_doubtful {
                places.doubts.notify_one();
            }
        }
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.heart.places.by_request.lock().remove(&self.request_id);
    }
}

impl Heart {
    /// Subscribes to the loss of what a request of a session holds; `standing` receives the loss.
    pub(crate) fn hear(
        self: &Arc<Self>,
        session: i64,
        request_id: &Bytes,
        standing: Standing,
    ) -> Hearing {
        let (request_id, standing) = (request_id.clone(), Arc::new(standing));
        let place =
            Place { session, standing: Arc::clone(&standing), locks: None, is_doubtful: false };
        self.places.by_request.lock().insert(request_id.clone(), place);
        Hearing { heart: Arc::clone(self), request_id, standing }
    }

    /// Handles the report that a place was taken away.
    pub(super) fn taken(&self, taken: PlaceTaken) {
        let loss = Loss::of(taken.broken);
        let places = self.places.by_request.lock();
        for place in taken.request_ids.iter().filter_map(|request| places.get(request)) {
            place.standing.lose(loss.clone());
        }
    }

    /// Marks what these sessions hold as possibly taken away without a report.
    pub(super) fn doubt(&self, is_meant: impl Fn(i64) -> bool) {
        let mut places = self.places.by_request.lock();
        for place in places.values_mut().filter(|place| is_meant(place.session)) {
            place.is_doubtful = true;
        }
        self.places.doubts.notify_one();
    }

    /// Checks what may have been taken away. Never returns.
    pub(super) async fn ask(&self, client: &Client) {
        let mut backoff = Backoff::default();
        loop {
            let doubtful = self.doubtful();
            if doubtful.is_empty() {
                self.places.doubts.notified().await;
                continue;
            }
            let asked = doubtful.into_iter().map(|asked| async move {
                let loss = loss_of(client, &asked).await;
                if matches!(loss, Ok(Some(Loss::Session))) {
                    self.ended(&[asked.session], &mut HashSet::new());
                    self.wake();
                }
                self.answered_for(&asked, loss)
            });
            let mut asked = stream::iter(asked).buffer_unordered(ASKED_MAX);
            let mut is_again = false;
            while let Some(is_open) = asked.next().await {
                is_again |= is_open;
            }
            if is_again { sleep(backoff.next()).await } else { backoff.reset() }
        }
    }

    /// What has to be checked. It no longer counts as doubtful unless something new happens.
    fn doubtful(&self) -> Vec<Asked> {
        let mut places = self.places.by_request.lock();
        let doubtful = places.iter_mut().filter(|(_, place)| place.is_doubtful);
        let doubtful = doubtful.filter_map(|(request_id, place)| {
            let locks = place.locks.clone()?;
            place.is_doubtful = false;
            Some(Asked { request_id: request_id.clone(), session: place.session, locks })
        });
        doubtful.collect()
    }

    /// Handles the result of a check; true if it has to be made again.
    fn answered_for(&self, asked: &Asked, loss: Result<Option<Loss>, Error>) -> bool {
        let mut places = self.places.by_request.lock();
        let Some(place) = places.get_mut(&asked.request_id) else { return false };
        match loss {
            Ok(None) => false,
            // The request holds something else by now, so this result does not apply to it.
            Ok(Some(_)) if place.locks.as_ref() != Some(&asked.locks) => {
                place.is_doubtful = true;
                place.locks.is_some()
            }
            Ok(Some(loss)) => {
                place.standing.lose(loss);
                false
            }
            Err(error) => {
                tracing::debug!(%error, "asking whether a lock is held failed");
                place.is_doubtful = error.is_passing();
                place.is_doubtful
            }
        }
    }
}

/// One lock request to check.
#[derive(Debug, PartialEq)]
struct Asked {
    request_id: Bytes,
    session: i64,
    locks: Vec<HeldLock>,
}

/// The reason for the loss if one of these locks is no longer held.
async fn loss_of(client: &Client, asked: &Asked) -> Result<Option<Loss>, Error> {
    let Some(lost) = first_lost(client, &asked.locks).await? else { return Ok(None) };
    if lost.broken.is_some() {
        return Ok(Some(Loss::of(lost.broken)));
    }
    let lease = client.lease_time_to_live(asked.session, false).await;
    let has_ended = lease.is_ok_and(|lease| lease.ttl <= 0);
    Ok(Some(if has_ended { Loss::Session } else { Loss::Removed }))
}

/// Whether all of these locks are held at this moment.
pub(crate) async fn are_held(client: &Client, locks: &[HeldLock]) -> Result<bool, Error> {
    Ok(first_lost(client, locks).await?.is_none())
}

/// The answer for the first of these locks that is not held at this moment.
async fn first_lost(
    client: &Client,
    locks: &[HeldLock],
) -> Result<Option<CheckFenceResponse>, Error> {
    for lock in locks {
        let HeldLock { name, key, fence } = lock.clone();
        let answer = client.ask_fence(CheckFenceRequest { name, key, fence }).await?;
        if !answer.held {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::Broken;
    use tokio_util::sync::CancellationToken;

    use super::*;

    const SESSION: i64 = 7;

    fn hear(heart: &Arc<Heart>, request: &'static str) -> Hearing {
        let standing = Standing::under(&CancellationToken::new());
        heart.hear(SESSION, &Bytes::from_static(request.as_bytes()), standing)
    }

    fn lock(fence: i64) -> HeldLock {
        HeldLock { name: "l".into(), key: "l/7".into(), fence }
    }

    #[test]
    fn whoever_held_a_place_hears_that_it_is_taken_and_nobody_else_does() {
        let heart = Arc::new(Heart::default());
        let [first, again, other] = ["a", "b", "c"].map(|request| hear(&heart, request));
        let broken = Broken { by: "ann".to_owned(), reason: "stuck".to_owned() };
        let request_ids = vec!["a".into(), "b".into(), "gone".into()];
        heart.taken(PlaceTaken { request_ids, broken: Some(broken), ..PlaceTaken::default() });
        for hearing in [&first, &again] {
            let loss = hearing.standing().loss().expect("a reason");
            assert_eq!(loss.to_string(), "ann took it away by force: stuck");
            assert!(hearing.standing().lost().is_cancelled());
        }
        assert!(other.standing().loss().is_none() && !other.standing().lost().is_cancelled());
        drop((first, again, other));
        assert!(heart.places.by_request.lock().is_empty());
    }

    fn asked(request: &'static str, fence: i64) -> Asked {
        Asked { request_id: request.into(), session: SESSION, locks: vec![lock(fence)] }
    }

    #[test]
    fn only_what_is_held_is_asked_for_and_only_once() {
        let heart = Arc::new(Heart::default());
        let (held, waiting) = (hear(&heart, "held"), hear(&heart, "waiting"));
        held.holds(Some(&[lock(5)]));
        assert!(heart.doubtful().is_empty(), "there is no doubt");
        heart.doubt(|session| session == SESSION + 1);
        assert!(heart.doubtful().is_empty(), "that is another session");
        heart.doubt(|session| session == SESSION);
        assert_eq!(heart.doubtful(), [asked("held", 5)]);
        assert!(heart.doubtful().is_empty());
        waiting.holds(Some(&[lock(6)]));
        assert_eq!(heart.doubtful(), [asked("waiting", 6)], "it was doubtful, too");
    }

    #[test]
    fn an_answer_about_an_older_token_says_nothing() {
        let heart = Arc::new(Heart::default());
        let hearing = hear(&heart, "r");
        let lost = || Ok(Some(Loss::Removed));
        hearing.holds(None);
        assert!(!heart.answered_for(&asked("r", 5), lost()), "not before it is known");
        hearing.holds(Some(&[lock(6)]));
        assert_eq!(heart.doubtful(), [asked("r", 6)]);
        assert!(heart.answered_for(&asked("r", 5), lost()), "to be asked again");
        let final_one = Error::lost("not that");
        assert!(!heart.answered_for(&asked("r", 6), Err(final_one)), "asking would not help");
        assert!(!heart.answered_for(&asked("r", 6), Ok(None)));
        assert!(hearing.standing().loss().is_none());
        assert!(!heart.answered_for(&asked("r", 6), lost()));
        assert_eq!(hearing.standing().loss(), Some(&Loss::Removed));
    }
}
