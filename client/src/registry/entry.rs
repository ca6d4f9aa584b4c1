//! An instance in a session: taken out when it is dropped, in the background, for as long as that session
//! lives. If others use it, too, nothing else would do it.
//!
//! What is registered first takes the id, also from another guard of the same session, and has a fence of its own
//! from then on. So whatever a guard sends later is about its own instance, however late it arrives; and while
//! nobody knows what became of a request that was to register one, it is that request which is taken back.

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

/// The ids of one session, by service, of which somebody holds an instance.
pub(crate) type Entries = Mutex<HashMap<(String, String), Weak<Seat>>>;

/// An id in a session, for all guards that register it there.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    /// Fence of the last one who took it, as far as known; 0: nobody has.
    taken: watch::Sender<i64>,
}

/// An instance that is registered, or may be, until this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    session: Session,
    seat: Arc<Seat>,
    exit: Arc<Exit>,
    /// Number of the last request of which nobody knows what became; 0: of none. What comes next takes it back, so that
    /// it does nothing if it arrives only then.
    doubt: Mutex<u64>,
    /// Whether there is nothing left to take out.
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

    /// The number of a request that changes it, in doubt until [`Entry::settled`].
    pub(super) async fn begin(&self) -> Result<Ticket, Error> {
        let ticket = self.session.request().await?;
        let before = std::mem::replace(&mut *self.doubt.lock(), ticket.sequence());
        Ok(ticket.undoing(before))
    }

    /// What became of that request, which took back the one with the number `before`: if it was refused, that one is
    /// still in doubt.
    pub(super) fn settled(&self, before: u64, error: Option<&Error>) {
        match error.map(Error::outcome) {
            None => *self.doubt.lock() = 0,
            Some(Outcome::NotApplied) => *self.doubt.lock() = before,
            Some(Outcome::Unknown | Outcome::Applied) => {}
        }
    }

    /// A request is about to register it that may take another place than the one it has. What it did counts from
    /// [`Entry::answered`] on; if that is never called, nobody knows what it did.
    pub(super) fn ask(&self, ticket: Ticket) {
        let mut stand = self.exit.stand.lock();
        let before = match *stand {
            Stand::Registered(fence) | Stand::Asked(_, fence) => fence,
            Stand::Out => 0,
        };
        *stand = Stand::Asked(ticket, before);
    }

    /// What is sent with that request.
    pub(super) fn once(&self) -> Option<v1::Once> {
        match &*self.exit.stand.lock() {
            Stand::Asked(ticket, _) => Some(ticket.once()),
            Stand::Out | Stand::Registered(_) => None,
        }
    }

    /// What became of that request: the fence of what it registered.
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

    /// It is there, with this fence.
    pub(super) fn confirmed(&self, fence: i64) {
        *self.exit.stand.lock() = Stand::Registered(fence);
    }

    /// It took the id, with this fence, from whoever had it.
    pub(super) fn took(&self, fence: i64) {
        self.seat.taken.send_if_modified(|taken| {
            // Of two who take it at the same time the answers may come in any order.
            let is_last = *taken < fence;
            *taken = fence.max(*taken);
            is_last
        });
    }

    /// Whether the session registered the id later, for another guard.
    pub(super) fn is_overtaken(&self) -> bool {
        self.is_before(*self.seat.taken.borrow())
    }

    /// Returns when it did.
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

    /// Whether an instance with this fence may be what a request registered that was not answered, for this guard.
    pub(super) fn may_have_registered(&self, fence: i64) -> bool {
        let is_asked = matches!(*self.exit.stand.lock(), Stand::Asked(..));
        is_asked && *self.seat.taken.borrow() < fence
    }

    /// Whether nobody knows what became of a request that was to register it anew. Its number stays open until that is
    /// known, and keeps the cluster from forgetting what other requests of the session were answered.
    pub(super) fn is_asked(&self) -> bool {
        matches!(*self.exit.stand.lock(), Stand::Asked(..))
    }

    /// There is nothing to take out.
    pub(super) fn leave(mut self) {
        self.is_over = true;
    }

    /// Takes it out. If that fails it goes on in the background.
    pub(super) async fn take_out(mut self) -> Result<(), Error> {
        let done = self.exit.carry_out(self.session.client()).await;
        self.is_over = matches!(done, Ok(()) | Err(Error::NotFound(_)));
        done
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let is_out = matches!(*self.exit.stand.lock(), Stand::Out);
        // Who registers it again after a loss does so in another session.
        if !self.is_over && !is_out && !self.session.is_lost() {
            self.session.heart().clean(Cleanup::Deregister(Arc::clone(&self.exit)));
        }
    }
}

/// How an instance stands in the cluster.
#[derive(Debug)]
enum Stand {
    /// Nothing was registered.
    Out,
    /// This request was sent and not answered; before it there was what has this fence, 0 for nothing. Kept open, so
    /// that the cluster can tell what it registered.
    Asked(Ticket, i64),
    /// With this fence.
    Registered(i64),
}

/// What takes an instance out: the one that was registered, and no other of its id, however late it is carried out.
#[derive(Debug)]
pub(crate) struct Exit {
    session: i64,
    service: String,
    id: String,
    requests: Arc<Requests>,
    stand: Mutex<Stand>,
    /// Of the request, which keeps it however often it is sent.
    number: OnceCell<Ticket>,
}

impl Exit {
    pub(crate) fn session(&self) -> i64 {
        self.session
    }

    /// Takes it out.
    pub(crate) async fn carry_out(&self, client: &Client) -> Result<(), Error> {
        let number = self.number.get_or_try_init(async || self.number(client).await).await?;
        let fence = match *self.stand.lock() {
            Stand::Out => return Ok(()),
            Stand::Registered(fence) => fence,
            // That of the request that is taken back.
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
            // What is open until this is done must not make it wait.
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
