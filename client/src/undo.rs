//! What is held by a request: taken back when it is dropped, in the background, for as long as its
//! session lives.

use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::v1::{
    BarrierLiftRequest, DoubleBarrierLeaveRequest, GroupLeaveRequest, ReleaseRequest,
    ResignRequest, barrier_service_client::BarrierServiceClient,
    double_barrier_service_client::DoubleBarrierServiceClient,
    election_service_client::ElectionServiceClient, group_service_client::GroupServiceClient,
    lock_service_client::LockServiceClient,
};
use tokio::sync::OnceCell;
use tonic::{Response, Status};

use crate::login::Channel;
use crate::{
    client::Client,
    error::Error,
    once::{Requests, Ticket},
    session::{Cleanup, Session},
};

/// What a request did, or may have done.
#[derive(Debug, Clone)]
pub(crate) enum Did {
    /// It raised a barrier; its fence, 0 if only the cluster knows that.
    Raise(i64),
    /// It entered a double barrier.
    Enter,
    /// It joined a group as this member.
    Join(Bytes),
    /// It is a candidate of an election.
    Campaign,
    /// It acquired what this gives back.
    Acquire(ReleaseRequest),
}

/// What a request holds under a name, for as long as this exists and its session lives.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) session: Session,
    pub(crate) name: Bytes,
    /// Number of the request.
    pub(crate) sequence: u64,
    pub(crate) did: Did,
    /// The request, while only its answer tells what it did.
    pub(crate) open: Option<Ticket>,
    /// Whether there is nothing left to take back.
    pub(crate) is_over: bool,
}

impl Kept {
    /// Takes it back; says whether there was something. If that fails it goes on in the background, and if the session is lost
    /// nobody waits for it: whether it may still be there for others makes no difference to its owner.
    pub(crate) async fn undo(mut self) -> Result<bool, Error> {
        if self.session.is_lost() {
            return Err(Error::session_lost());
        }
        let lost = self.session.lost();
        let undo = self.take_undo();
        let done = tokio::select! {
            done = undo.carry_out(self.session.client()) => done?,
            () = lost.cancelled() => return Err(Error::session_lost()),
        };
        self.is_over = true;
        Ok(done)
    }

    fn take_undo(&mut self) -> Undo {
        let (session, open) = (self.session.id(), self.open.take());
        let requests = Arc::clone(self.session.requests());
        // What is open until this is done must not make it wait.
        let ticket = open.as_ref().map(|_| requests.begin_undo(session).undoing(self.sequence));
        let ticket = OnceCell::new_with(ticket);
        let (name, did, undoes) = (self.name.clone(), self.did.clone(), self.sequence);
        Undo { requests, ticket, session, undoes, name, did, _open: open }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.is_over {
            let undo = Arc::new(self.take_undo());
            self.session.heart().clean(Cleanup::Undo(undo));
        }
    }
}

/// A request that takes another one back. Doing that twice does no harm.
#[derive(Debug)]
pub(crate) struct Undo {
    requests: Arc<Requests>,
    /// Its own number, which it keeps however often it is tried.
    ticket: OnceCell<Ticket>,
    pub(crate) session: i64,
    undoes: u64,
    name: Bytes,
    did: Did,
    /// Keeps the cluster from forgetting what the request did.
    _open: Option<Ticket>,
}

impl Undo {
    /// Says whether there was something to take back.
    pub(crate) async fn carry_out(&self, client: &Client) -> Result<bool, Error> {
        let begin = async || {
            let ticket = self.requests.begin(self.session, client.timeout()).await?;
            Ok::<_, Error>(ticket.undoing(self.undoes))
        };
        let ticket = self.ticket.get_or_try_init(begin).await?;
        client.repeat(|channel| self.call(channel, ticket)).await
    }

    async fn call(&self, channel: Channel, ticket: &Ticket) -> Result<Response<bool>, Status> {
        let (once, name) = (Some(ticket.once()), self.name.clone());
        match &self.did {
            Did::Raise(fence) => {
                let request = BarrierLiftRequest { once, name, fence: *fence };
                let answer = BarrierServiceClient::new(channel).lift(request).await?;
                Ok(answer.map(|answer| answer.lifted))
            }
            Did::Enter => {
                // Who does not wait for the others need not hear of them.
                let request = DoubleBarrierLeaveRequest { once, name, ..Default::default() };
                let mut answers =
                    DoubleBarrierServiceClient::new(channel).leave(request).await?.into_inner();
                let broken = || Status::unavailable("the stream of a request ended");
                answers.message().await?.map(|_end| Response::new(true)).ok_or_else(broken)
            }
            Did::Join(member) => {
                let request = GroupLeaveRequest { once, name, member: member.clone() };
                let answer = GroupServiceClient::new(channel).leave(request).await?;
                Ok(answer.map(|answer| answer.left))
            }
            Did::Campaign => {
                let session = self.session;
                let request = ResignRequest { name, session, once, ..ResignRequest::default() };
                let answer = ElectionServiceClient::new(channel).resign(request).await?;
                Ok(answer.map(|answer| answer.resigned))
            }
            Did::Acquire(release) => {
                let request = ReleaseRequest { once, ..release.clone() };
                let answer = LockServiceClient::new(channel).release(request).await?;
                Ok(answer.map(|answer| answer.released))
            }
        }
    }
}
