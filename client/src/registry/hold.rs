//! The session or lease behind an instance, and how the instance is registered in it.
//!
//! Only an owner's first registration replaces whatever has the id. All later requests name what
//! the owner registered, and the cluster checks when it applies them whether that still exists.

use bytes::Bytes;
use conclave_proto::etcdserverpb::Compare;
use conclave_proto::v1::{
    FormerInstance, RegisterRequest, register_request::Mode,
    registry_service_client::RegistryServiceClient,
};
use tonic::{Code, Status};

use super::{Record, Service, entry::Entry};
use crate::{error::Error, kv::put, lease::Lease, pulse::Pulse, session::Session, txn::key};

/// Identifies a registration: the id of its session or lease, and its fence (0 with a lease).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) session: i64,
    pub(super) fence: i64,
}

/// What must be true for an instance to be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// No condition.
    Any,
    /// The registration that this guard made.
    Still(Mark),
    /// The id is free, or still held by our registration from before the loss.
    Free(Mark),
}

/// A session or lease, for one instance.
pub(super) struct Hold {
    kind: Kind,
    /// Lost with the session or lease, or when the instance is taken away.
    pulse: Pulse,
}

enum Kind {
    /// A session, in Conclave's registry; true if it was begun for this instance.
    Session(Entry, bool),
    /// A lease, on a server that only speaks etcd's API.
    Lease(Lease),
}

/// The error if [`Condition::Still`] does not hold.
pub(super) fn replaced() -> Error {
    let text = "conclave: the instance was taken over or removed";
    Error::Refused(Status::aborted(text))
}

pub(super) fn is_replaced(error: &Error) -> bool {
    matches!(error, Error::Refused(status) if status.code() == Code::Aborted)
}

/// The error if [`Condition::Free`] does not hold; the server uses the same text.
const TAKEN: &str = "conclave: the instance belongs to another session";

pub(super) fn taken() -> Error {
    Error::Refused(Status::failed_precondition(TAKEN))
}

pub(super) fn is_taken(error: &Error) -> bool {
    matches!(error, Error::Refused(status) if status.message() == TAKEN)
}

/// Whether the record itself was refused, and will be each time it is sent.
pub(super) fn is_wrong(error: &Error) -> bool {
    match error {
        Error::Invalid(_) => true,
        // A kind of check that the cluster does not make.
        Error::Refused(status) => status.message().ends_with(CHECKS_FLAG),
        _ => false,
    }
}

/// The end of the error text of a server that does not make such checks.
const CHECKS_FLAG: &str = "(--registry-checks)";

impl Hold {
    pub(super) fn session(session: Session, is_own: bool, service: &Service, id: &str) -> Self {
        let pulse = session.pulse().child();
        let entry = Entry::new(session, &service.name, id);
        Self { kind: Kind::Session(entry, is_own), pulse }
    }

    pub(super) fn lease(lease: Lease) -> Self {
        let pulse = lease.pulse().child();
        Self { kind: Kind::Lease(lease), pulse }
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    pub(super) fn is_native(&self) -> bool {
        matches!(self.kind, Kind::Session(..))
    }

    /// Whether another guard of the session registered the id later.
    pub(super) fn is_overtaken(&self) -> bool {
        matches!(&self.kind, Kind::Session(entry, _) if entry.is_overtaken())
    }

    /// Returns when another guard of the session has registered the id later.
    pub(super) async fn overtaken(&self) {
        match &self.kind {
            Kind::Session(entry, _) => entry.overtaken().await,
            Kind::Lease(_) => std::future::pending().await,
        }
    }

    /// Whether the outcome of a registering request is unknown.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(&self.kind, Kind::Session(entry, _) if entry.is_asked())
    }

    /// Whether the instance found may be the result of our unanswered request.
    pub(super) fn may_have_put(&self, found: Mark) -> bool {
        match &self.kind {
            Kind::Session(entry, is_own) => {
                // A session that was begun for the instance has no other guards.
                found.session == self.id() && (*is_own || entry.may_have_registered(found.fence))
            }
            Kind::Lease(lease) => found.session == lease.id(),
        }
    }

    /// Id of the session or lease.
    pub(super) fn id(&self) -> i64 {
        match &self.kind {
            Kind::Session(entry, _) => entry.session().id(),
            Kind::Lease(lease) => lease.id(),
        }
    }

    /// Puts the instance.
    ///
    /// # Errors
    /// See [`Error`]; [`replaced`] or [`taken`] if the condition does not hold, [`Error::NotFound`]
    /// if the session or lease is lost.
    pub(super) async fn put(
        &self,
        service: &Service,
        record: &Record,
        condition: Condition,
    ) -> Result<Mark, Error> {
        let fence = match &self.kind {
            Kind::Session(entry, _) => register(entry, service, record, condition).await?,
            Kind::Lease(lease) => {
                put_leased(lease, service, record, condition).await.map(|()| 0)?
            }
        };
        Ok(Mark { session: self.id(), fence })
    }

    /// Drops this without deregistering: the instance no longer belongs to its owner.
    pub(super) fn leave(self) {
        self.pulse.lost().cancel();
        if let Kind::Session(entry, _) = self.kind {
            entry.leave();
        }
    }

    /// Deregisters the instance, and ends the session or lease if it was begun for it.
    ///
    /// # Errors
    /// See [`Error`]. It then goes on in the background.
    pub(super) async fn end(self) -> Result<(), Error> {
        let done = match self.kind {
            Kind::Session(entry, is_own) => {
                let session = entry.session().clone();
                let removed = entry.take_out().await;
                // The instance ends with its session.
                if is_own { session.close().await } else { removed }
            }
            Kind::Lease(lease) => lease.revoke().await,
        };
        match done {
            // It had ended already, which is as good.
            Err(Error::NotFound(_)) => Ok(()),
            done => done,
        }
    }
}

/// Registers in a session; returns the fence. Cancel-safe: an unfinished request is undone with the
/// entry.
async fn register(
    entry: &Entry,
    service: &Service,
    record: &Record,
    condition: Condition,
) -> Result<i64, Error> {
    let mode = match condition {
        Condition::Any => Mode::Replace,
        // For servers that do not know the fields set below.
        Condition::Still(_) | Condition::Free(_) => Mode::IfAbsent,
    };
    let mut request = RegisterRequest {
        service: service.name.clone(),
        id: record.id.clone(),
        session: entry.session().id(),
        record: record.encode().into(),
        mode: mode.into(),
        ..RegisterRequest::default()
    };
    match condition {
        Condition::Any => request.anew = true,
        Condition::Still(Mark { fence, .. }) => request.fence = fence,
        Condition::Free(Mark { session, fence }) => {
            request.anew = true;
            request.former = Some(FormerInstance { session, fence });
        }
    }
    let call = |channel, once| {
        let request = RegisterRequest { once, ..request.clone() };
        async move { RegistryServiceClient::new(channel).register(request).await }
    };
    let (client, ticket) = (entry.session().client(), entry.begin().await?);
    let before = ticket.once().undoes;
    if !request.anew {
        let answer = client.repeat(|channel| call(channel, Some(ticket.once()))).await;
        entry.settled(before, answer.as_ref().err());
        let fence = answer?.fence;
        entry.confirmed(fence);
        return Ok(fence);
    }
    entry.ask(ticket);
    let answer = client.repeat(|channel| call(channel, entry.once())).await;
    entry.settled(before, answer.as_ref().err());
    let answer = answer.map(|registered| registered.fence);
    entry.answered(&answer);
    if condition == Condition::Any
        && let Ok(fence) = answer
    {
        entry.took(fence);
    }
    answer
}

/// Registers with a lease. A successor continues with the same key: the key's lease tells whose it
/// is.
async fn put_leased(
    lease: &Lease,
    service: &Service,
    record: &Record,
    condition: Condition,
) -> Result<(), Error> {
    let client = &service.client;
    let name = Bytes::from([&service.prefix()[..], record.id.as_bytes()].concat());
    let write = put(&name[..], record.encode()).lease(lease.id());
    let put_if = async |compare: Compare| {
        let txn = client.txn().when(compare).then(write.clone());
        txn.commit().await.map(|answer| answer.succeeded)
    };
    let is_of = |lease: i64| key(&name[..]).lease().equal(lease);
    match condition {
        Condition::Any => {
            client.put(&name[..], record.encode()).lease(lease.id()).await?;
            Ok(())
        }
        Condition::Still(_) => {
            if put_if(is_of(lease.id())).await? {
                return Ok(());
            }
            match client.lease_time_to_live(lease.id(), false).await?.ttl {
                ..0 => Err(Error::NotFound(Status::not_found("the lease has ended"))),
                _ => Err(replaced()),
            }
        }
        Condition::Free(mark) => {
            // If our former key disappears meanwhile, the id is free; if an earlier attempt
            // succeeded, the key has our lease.
            let is_free = key(&name[..]).create_revision().equal(0);
            let is_put = put_if(is_of(mark.session)).await?
                || put_if(is_free).await?
                || put_if(is_of(lease.id())).await?;
            if is_put { Ok(()) } else { Err(taken()) }
        }
    }
}
