//! An instance registered in a session. Dropping it deregisters in the background while the session
//! lives; in a shared session nothing else would remove it.
//!
//! A first registration takes the id, even from another guard of the same session, and gets a new
//! fencing token (fence). Whatever a guard sends later names its own fence, so it affects only its
//! own instance however late it arrives. While the outcome of a registering request is unknown,
//! that request is undone by its number.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use conclave_proto::v1::{self, DeregisterRequest, registry_service_client::RegistryServiceClient};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, watch};

use crate::{
    client::Client,
    error::{Error, Outcome},
    once::{Requests, Ticket},
    session::{Cleanup, Session},
};

/// The ids, by service, that guards of one session have registered.
pub(crate) type Entries = Mutex<HashMap<(String, String), Weak<Seat>>>;

/// One id in a session, shared by all guards that register it there.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    /// Highest known fence with which a guard took the id; 0 if none has.
    taken: watch::Sender<i64>,
}

/// An instance that is registered or may be; deregistered when this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    session: Session,
    seat: Arc<Seat>,
    exit: Arc<Exit>,
    /// Number of the last request whose outcome is unknown; 0 if there is none. The next request
    /// undoes it, so that it has no effect if it arrives later.
    doubt: Mutex<u64>,
    /// Whether nothing is left to deregister.
    is_over: bool,
}

impl Entry {
    pub(super) fn new(session: Session, service: &str, id: &str) -> Self {
        let (service, id) = (service.to_owned(), id.to_owned());
        let seat = {
            let mut entries = session.entries().lock();
            entries.retain(|_, seat| seat.strong_count() > 0);
            let seat = entries.entry((service.clone(), id.clone())).or_default();
            seat.upgrade().unwrap_or_else(|| {
                let new = Arc::<Seat>::default();
                *seat = Arc::downgrade(&new);
                new
            })
        };
        let exit = Arc::new(Exit {
            session: session.id(),
            service,
            id,
            requests: Arc::clone(session.requests()),
            stand: Mutex::new(Stand::Out),
            number: OnceCell::new(),
        });
        Self { session, seat, exit, doubt: Mutex::default(), is_over: false }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Numbers a request that changes the instance; its outcome is unknown until
    /// [`Entry::settled`].
    pub(super) async fn begin(&self) -> Result<Ticket, Error> {
        let ticket = self.session.request().await?;
        let before = std::mem::replace(&mut *self.doubt.lock(), ticket.sequence());
        Ok(ticket.undoing(before))
    }

    /// Records the outcome of that request, which undid the request with number `before`. If it was
    /// refused, the outcome of `before` is still unknown.
    pub(super) fn settled(&self, before: u64, error: Option<&Error>) {
        match error.map(Error::outcome) {
            None => *self.doubt.lock() = 0,
            Some(Outcome::NotApplied) => *self.doubt.lock() = before,
            Some(Outcome::Unknown | Outcome::Applied) => {}
        }
    }

    /// Announces a request that registers the instance and may take a new place. Its effect counts
    /// from [`Entry::answered`] on; if that is never called, its outcome stays unknown.
    pub(super) fn ask(&self, ticket: Ticket) {
        let mut stand = self.exit.stand.lock();
        let before = match *stand {
            Stand::Registered(fence) | Stand::Asked(_, fence) => fence,
            Stand::Out => 0,
        };
        *stand = Stand::Asked(ticket, before);
    }

    /// The number to send with that request.
    pub(super) fn once(&self) -> Option<v1::Once> {
        match &*self.exit.stand.lock() {
            Stand::Asked(ticket, _) => Some(ticket.once()),
            Stand::Out | Stand::Registered(_) => None,
        }
    }

    /// Records the outcome of that request: the fence of the registered instance.
    pub(super) fn answered(&self, answer: &Result<i64, Error>) {
        let mut stand = self.exit.stand.lock();
        let Stand::Asked(_, before) = *stand else { return };
        match answer {
            Ok(fence) => *stand = Stand::Registered(*fence),
            Err(error) if error.outcome() != Outcome::NotApplied => {}
            Err(_) if before == 0 => *stand = Stand::Out,
            Err(_) => *stand = Stand::Registered(before),
        }
    }

    /// Records that the instance is registered with this fence.
    pub(super) fn confirmed(&self, fence: i64) {
        *self.exit.stand.lock() = Stand::Registered(fence);
    }

    /// Records that this guard took the id, with this fence, from its previous owner.
    pub(super) fn took(&self, fence: i64) {
        self.seat.taken.send_if_modified(|taken| {
            // If two guards take it at the same time, their answers may arrive in any order.
            let is_last = *taken < fence;
            *taken = fence.max(*taken);
            is_last
        });
    }

    /// Whether another guard of the session registered the id later.
    pub(super) fn is_overtaken(&self) -> bool {
        self.is_before(*self.seat.taken.borrow())
    }

    /// Returns when another guard of the session has registered the id later.
    pub(super) async fn overtaken(&self) {
        let mut taken = self.seat.taken.subscribe();
        let overtaken = taken.wait_for(|taken| self.is_before(*taken)).await;
        overtaken.expect("invariant: the sender is in `self`");
    }

    fn is_before(&self, taken: i64) -> bool {
        match *self.exit.stand.lock() {
            Stand::Registered(fence) => fence < taken,
            Stand::Out | Stand::Asked(..) => false,
        }
    }

    /// Whether the instance with this fence may be the result of this guard's unanswered request.
    pub(super) fn may_have_registered(&self, fence: i64) -> bool {
        let is_asked = matches!(*self.exit.stand.lock(), Stand::Asked(..));
        is_asked && *self.seat.taken.borrow() < fence
    }

    /// Whether a registering request is unanswered. Its number stays open until the outcome is
    /// known, which keeps the cluster from forgetting the answers to other requests of the session.
    pub(super) fn is_asked(&self) -> bool {
        matches!(*self.exit.stand.lock(), Stand::Asked(..))
    }

    /// Drops this without deregistering: there is nothing to remove.
    pub(super) fn leave(mut self) {
        self.is_over = true;
    }

    /// Deregisters the instance. If that fails, it goes on in the background.
    pub(super) async fn take_out(mut self) -> Result<(), Error> {
        let done = self.exit.carry_out(self.session.client()).await;
        self.is_over = matches!(done, Ok(()) | Err(Error::NotFound(_)));
        done
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let is_out = matches!(*self.exit.stand.lock(), Stand::Out);
        // A lost session takes the instance with it, and a re-registration uses another session.
        if !self.is_over && !is_out && !self.session.is_lost() {
            self.session.heart().clean(Cleanup::Deregister(Arc::clone(&self.exit)));
        }
    }
}

/// The state of an instance in the cluster, as far as known.
#[derive(Debug)]
enum Stand {
    /// Nothing was registered.
    Out,
    /// This request was sent and not answered. Before it, the instance had this fence; 0 if there
    /// was none. The number is kept open so that the cluster can tell what the request registered.
    Asked(Ticket, i64),
    /// Registered with this fence.
    Registered(i64),
}

/// Deregisters an instance: exactly the one that was registered and no other with its id, however
/// late it is carried out.
#[derive(Debug)]
pub(crate) struct Exit {
    session: i64,
    service: String,
    id: String,
    requests: Arc<Requests>,
    stand: Mutex<Stand>,
    /// Number of the request, which stays the same however often it is sent.
    number: OnceCell<Ticket>,
}

impl Exit {
    pub(crate) fn session(&self) -> i64 {
        self.session
    }

    /// Sends the request.
    pub(crate) async fn carry_out(&self, client: &Client) -> Result<(), Error> {
        let number = self.number.get_or_try_init(async || self.number(client).await).await?;
        let fence = match *self.stand.lock() {
            Stand::Out => return Ok(()),
            Stand::Registered(fence) => fence,
            // The fence is unknown; the request is undone by its number instead.
            Stand::Asked(..) => 0,
        };
        let call = |channel| {
            let (service, id) = (self.service.clone(), self.id.clone());
            let once = Some(number.once());
            let request = DeregisterRequest { service, id, session: self.session, fence, once };
            async move { RegistryServiceClient::new(channel).deregister(request).await }
        };
        client.repeat(call).await.map(drop)
    }

    async fn number(&self, client: &Client) -> Result<Ticket, Error> {
        let asked = match &*self.stand.lock() {
            Stand::Asked(ticket, _) => Some(ticket.sequence()),
            Stand::Out | Stand::Registered(_) => None,
        };
        match asked {
            // The number that is open until this is done must not make it wait.
            Some(asked) => Ok(self.requests.begin_undo(self.session).undoing(asked)),
            None => self.requests.begin(self.session, client.timeout()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(stand: Stand, requests: &Arc<Requests>) -> Exit {
        let (service, id) = ("s".to_owned(), "a".to_owned());
        let (stand, number) = (Mutex::new(stand), OnceCell::new());
        Exit { session: 7, service, id, requests: Arc::clone(requests), stand, number }
    }

    #[tokio::test]
    async fn what_was_not_answered_is_taken_back_by_its_number() {
        let requests = Arc::<Requests>::default();
        let client = Client::builder(["127.0.0.1:1"]).build().unwrap();
        let asked = requests.begin_undo(7);
        let unknown = exit(Stand::Asked(asked, 0), &requests);
        let once = unknown.number(&client).await.unwrap().once();
        assert_eq!((once.sequence, once.undoes), (2, 1));
        assert_eq!(once.settled, 1, "its answer is kept until it is taken back");
        let known = exit(Stand::Registered(9), &requests);
        assert_eq!(known.number(&client).await.unwrap().once().undoes, 0, "the fence tells");
    }
}
