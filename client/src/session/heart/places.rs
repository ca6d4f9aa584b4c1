//! Locks that are held or asked for, so that whoever holds one hears when it is taken away.
//!
//! The stream of heartbeats tells what others take from its sessions, from the moment on at which a session is
//! attached to it. What may have been taken before that is asked for, once, by those that hold something then.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::v1::{HeldLock, PlaceTaken};
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Heart;
use crate::backoff::Backoff;
use crate::client::Client;
use crate::error::Error;
use crate::loss::{Loss, Standing};

/// Locks that are asked for at the same time.
const ASKED_MAX: usize = 16;

/// Requests for locks by their ids.
#[derive(Debug, Default)]
pub(super) struct Places {
    by_request: Mutex<HashMap<Bytes, Place>>,
    /// There is something to ask for.
    doubts: Notify,
}

/// What is known of one request.
#[derive(Debug)]
struct Place {
    session: i64,
    standing: Arc<Standing>,
    /// What it holds; `None` while that is not known, because the answer to a request is awaited.
    locks: Option<Vec<HeldLock>>,
    /// It may have been taken away without a word.
    is_doubtful: bool,
}

/// Hears what becomes of a request until it is dropped.
#[derive(Debug)]
pub(crate) struct Hearing {
    heart: Arc<Heart>,
    request_id: Bytes,
    standing: Arc<Standing>,
}

impl Hearing {
    /// How it stands.
    pub(crate) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What the request holds from now on; nothing while that is not known.
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
    /// Hears from now on what becomes of a request of a session; `standing` is told.
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

    /// A place was taken away.
    pub(super) fn taken(&self, taken: PlaceTaken) {
        let loss = Loss::of(taken.broken);
        let places = self.places.by_request.lock();
        for place in taken.request_ids.iter().filter_map(|request| places.get(request)) {
            place.standing.lose(loss.clone());
        }
    }

    /// What these sessions hold may have been taken away without a word.
    pub(super) fn doubt(&self, is_meant: impl Fn(i64) -> bool) {
        let mut places = self.places.by_request.lock();
        for place in places.values_mut().filter(|place| is_meant(place.session)) {
            place.is_doubtful = true;
        }
        self.places.doubts.notify_one();
    }

    /// Asks for what may have been taken away. Never returns.
    pub(super) async fn ask(&self, client: &Client) {
        let mut backoff = Backoff::default();
        loop {
            let doubtful = self.doubtful();
            if doubtful.is_empty() {
                self.places.doubts.notified().await;
                continue;
            }
            let asked = doubtful.into_iter().map(|(request_id, locks)| async move {
                let held = are_held(client, &locks).await;
                self.answered_for(&request_id, &locks, held)
            });
            let mut asked = stream::iter(asked).buffer_unordered(ASKED_MAX);
            let mut is_again = false;
            while let Some(is_open) = asked.next().await {
                is_again |= is_open;
            }
            if is_again { sleep(backoff.next()).await } else { backoff.reset() }
        }
    }

    /// What is to be asked for, which is not in doubt then unless something new happens.
    fn doubtful(&self) -> Vec<(Bytes, Vec<HeldLock>)> {
        let mut places = self.places.by_request.lock();
        let doubtful = places.iter_mut().filter(|(_, place)| place.is_doubtful);
        let doubtful = doubtful.filter_map(|(request_id, place)| {
            let locks = place.locks.clone()?;
            place.is_doubtful = false;
            Some((request_id.clone(), locks))
        });
        doubtful.collect()
    }

    /// Takes an answer; whether it has to be asked again.
    fn answered_for(
        &self,
        request_id: &Bytes,
        locks: &[HeldLock],
        held: Result<bool, Error>,
    ) -> bool {
        let mut places = self.places.by_request.lock();
        let Some(place) = places.get_mut(request_id) else { return false };
        match held {
            Ok(true) => false,
            // It may hold something else meanwhile: then this was asked in vain.
            Ok(false) if place.locks.as_deref() != Some(locks) => {
                place.is_doubtful = true;
                place.locks.is_some()
            }
            Ok(false) => {
                place.standing.lose(Loss::Removed);
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

/// Whether all of these are held at this moment.
pub(crate) async fn are_held(client: &Client, locks: &[HeldLock]) -> Result<bool, Error> {
    for lock in locks {
        if !client.check_fence(lock.name.clone(), lock.fence).await? {
            return Ok(false);
        }
    }
    Ok(true)
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

    #[test]
    fn only_what_is_held_is_asked_for_and_only_once() {
        let heart = Arc::new(Heart::default());
        let (held, waiting) = (hear(&heart, "held"), hear(&heart, "waiting"));
        held.holds(Some(&[lock(5)]));
        assert!(heart.doubtful().is_empty(), "there is no doubt");
        heart.doubt(|session| session == SESSION + 1);
        assert!(heart.doubtful().is_empty(), "that is another session");
        heart.doubt(|session| session == SESSION);
        assert_eq!(heart.doubtful(), [("held".into(), vec![lock(5)])]);
        assert!(heart.doubtful().is_empty());
        waiting.holds(Some(&[lock(6)]));
        assert_eq!(heart.doubtful(), [("waiting".into(), vec![lock(6)])], "it was doubtful, too");
    }

    #[test]
    fn an_answer_about_an_older_token_says_nothing() {
        let heart = Arc::new(Heart::default());
        let hearing = hear(&heart, "r");
        let id = Bytes::from_static(b"r");
        hearing.holds(None);
        assert!(!heart.answered_for(&id, &[lock(5)], Ok(false)), "not before it is known");
        hearing.holds(Some(&[lock(6)]));
        assert_eq!(heart.doubtful(), [(id.clone(), vec![lock(6)])]);
        assert!(heart.answered_for(&id, &[lock(5)], Ok(false)), "to be asked again");
        let passing = Error::lost("not that");
        assert!(!heart.answered_for(&id, &[lock(6)], Err(passing)), "asking would not help");
        assert!(!heart.answered_for(&id, &[lock(6)], Ok(true)));
        assert!(hearing.standing().loss().is_none());
        assert!(!heart.answered_for(&id, &[lock(6)], Ok(false)));
        assert_eq!(hearing.standing().loss(), Some(&Loss::Removed));
    }
}
