//! An instance in a session: taken out when it is dropped, in the background, for as long as that session
//! lives. If others use it, too, nothing else would do it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, Ordering},
    },
};

use conclave_proto::v1::{self, DeregisterRequest, registry_service_client::RegistryServiceClient};
use parking_lot::Mutex;
use tonic::Status;

use crate::{
    client::Client,
    error::Error,
    once::{Caller, Requests, Ticket},
    session::{Cleanup, Session},
};

/// The instances of one session, by service and id, that somebody holds or that are to be taken out.
pub(crate) type Entries = Mutex<HashMap<(String, String), Weak<Exit>>>;

/// An instance that is registered, or may be, until this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    session: Session,
    exit: Arc<Exit>,
    /// What was to take out an instance of this id until then.
    before: Weak<Exit>,
    /// Whether there is nothing left to take out.
    is_over: bool,
}

impl Entry {
    /// To be made before the instance is registered. What was to take out an instance of this id leaves it
    /// alone from now on.
    pub(super) fn new(session: Session, service: &str, id: &str) -> Self {
        let (service, id) = (service.to_owned(), id.to_owned());
        let key = (service.clone(), id.clone());
        let request = DeregisterRequest {
            service,
            id,
            session: session.id(),
            ..DeregisterRequest::default()
        };
        let requests = Arc::clone(session.requests());
        let (number, fence) = (Mutex::new(Number::None), AtomicI64::new(0));
        let exit = Arc::new(Exit { request, fence, requests, number });
        let before = {
            let mut entries = session.entries().lock();
            entries.retain(|_, exit| exit.strong_count() > 0);
            entries.insert(key, Arc::downgrade(&exit)).unwrap_or_default()
        };
        if let Some(before) = before.upgrade() {
            before.overtake();
        }
        Self { session, exit, before, is_over: false }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Its fence as it was registered last; 0 if that is not known.
    pub(super) fn registered(&self, fence: i64) {
        self.exit.fence.store(fence, Ordering::Relaxed);
    }

    /// Whether the session registered the instance again, for somebody else.
    pub(super) fn is_overtaken(&self) -> bool {
        matches!(*self.exit.number.lock(), Number::Overtaken)
    }

    /// It was never registered: who registered an instance of this id before has it still.
    pub(super) fn forget(self) {
        if let Some(before) = self.before.upgrade() {
            let DeregisterRequest { service, id, .. } = self.exit.request.clone();
            let mut entries = self.session.entries().lock();
            let is_last = |exit: &Weak<Exit>| exit.ptr_eq(&Arc::downgrade(&self.exit));
            if let Some(last) = entries.get_mut(&(service, id)).filter(|exit| is_last(exit)) {
                *last = Weak::clone(&self.before);
                *before.number.lock() = Number::None;
            }
        }
        self.leave();
    }

    /// There is nothing to take out.
    pub(super) fn leave(mut self) {
        self.is_over = true;
    }

    /// Takes it out. If that fails it goes on in the background.
    pub(super) async fn take_out(mut self) -> Result<(), Error> {
        if self.is_overtaken() {
            self.leave();
            return Ok(());
        }
        let call = |channel, once| {
            let request = DeregisterRequest { once, ..self.exit.request() };
            async move { RegistryServiceClient::new(channel).deregister(request).await }
        };
        let done = Caller::session(&self.session).send(call).await.map(drop);
        self.is_over = matches!(done, Ok(()) | Err(Error::NotFound(_)));
        done
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Who registers it again after a loss does so in another session.
        if !self.is_over && !self.session.is_lost() {
            self.session.heart().clean(Cleanup::Deregister(Arc::clone(&self.exit)));
        }
    }
}

/// What takes an instance out, by a numbered request: should a copy of it come late, it finds that whoever
/// registered the instance again has settled its number.
#[derive(Debug)]
pub(crate) struct Exit {
    request: DeregisterRequest,
    /// Of what it takes out; 0: whatever the session has.
    fence: AtomicI64,
    requests: Arc<Requests>,
    number: Mutex<Number>,
}

/// Number of a request in the background.
#[derive(Debug)]
enum Number {
    /// It was not sent yet.
    None,
    /// Kept however often it is sent.
    Open(Ticket),
    /// The session registered the instance again: the request is none any more.
    Overtaken,
}

impl Exit {
    pub(crate) fn session(&self) -> i64 {
        self.request.session
    }

    fn request(&self) -> DeregisterRequest {
        let fence = self.fence.load(Ordering::Relaxed);
        DeregisterRequest { fence, ..self.request.clone() }
    }

    /// Gives it up. To be called before the request that registers the instance again gets its number.
    fn overtake(&self) {
        *self.number.lock() = Number::Overtaken;
    }

    /// Takes it out, unless it was registered again.
    pub(crate) async fn carry_out(&self, client: &Client) -> Result<(), Error> {
        if matches!(*self.number.lock(), Number::None) {
            let ticket = self.requests.begin(self.request.session, client.timeout()).await?;
            let mut number = self.number.lock();
            if matches!(*number, Number::None) {
                *number = Number::Open(ticket);
            }
        }
        let call = |channel| {
            // Asked for each attempt: it may be registered again between two.
            let once = self.once();
            async move {
                let again = || Status::not_found("conclave: the instance was registered again");
                let request =
                    DeregisterRequest { once: Some(once.ok_or_else(again)?), ..self.request() };
                RegistryServiceClient::new(channel).deregister(request).await
            }
        };
        client.repeat(call).await.map(drop)
    }

    /// What is sent with the request; `None` if it was overtaken.
    fn once(&self) -> Option<v1::Once> {
        match &*self.number.lock() {
            Number::Open(ticket) => Some(ticket.once()),
            Number::None | Number::Overtaken => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_comes_late_finds_its_number_settled() {
        let requests = Arc::<Requests>::default();
        let number = Mutex::new(Number::Open(requests.begin_undo(7)));
        let request = DeregisterRequest { session: 7, ..DeregisterRequest::default() };
        let fence = AtomicI64::new(9);
        let exit = Exit { request, fence, requests: Arc::clone(&requests), number };
        let sent = exit.once().expect("it is to be sent");
        assert_eq!((sent.session, sent.sequence), (7, 1));
        exit.overtake();
        assert_eq!(exit.once(), None, "not once more");
        let registers = requests.begin_undo(7).once();
        assert!(registers.settled > sent.sequence, "{registers:?}");
    }
}
