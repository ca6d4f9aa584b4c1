//! What a request holds. When dropped it is undone in the background, for as long as its session
//! lives.

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

/// What a request did or may have done.
#[derive(Debug, Clone)]
pub(crate) enum Did {
    /// It raised a barrier with this fence; 0 if only the cluster knows it.
    Raise(i64),
    /// It entered a double barrier.
    Enter,
    /// It joined a group as this member.
    Join(Bytes),
    /// It became a candidate of an election.
    Campaign,
    /// It acquired a lock, which this request releases.
    Acquire(ReleaseRequest),
}

/// What a request holds under a name. Dropping it undoes the request, if its session lives.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) session: Session,
    pub(crate) name: Bytes,
    /// Number of the request.
    pub(crate) sequence: u64,
    pub(crate) did: Did,
    /// The open request, while only its answer tells what it did.
    pub(crate) open: Option<Ticket>,
    /// Whether nothing is left to undo.
    pub(crate) is_over: bool,
}

impl Kept {
    /// Undoes the request; true if there was something to undo. If that fails, it goes on in the
    /// background. Does not wait once the session is lost: to the owner it makes no difference how
    /// long others still see it.
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
        // The request stays open until it is undone, so its undo must not wait for room.
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

/// A request that undoes another one. Undoing twice does no harm.
#[derive(Debug)]
pub(crate) struct Undo {
    requests: Arc<Requests>,
    /// Its own number, which stays the same however often it is tried.
    ticket: OnceCell<Ticket>,
    pub(crate) session: i64,
    undoes: u64,
    name: Bytes,
    did: Did,
    /// Keeps the cluster from forgetting what the request did.
    _open: Option<Ticket>,
}

impl Undo {
    /// Sends the undo; true if there was something to undo.
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
                // A caller that does not wait for the others needs no news of them.
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
