//! The session service: leases with owners, and one stream that keeps many of them alive.

use std::collections::BTreeSet;
use std::pin::Pin;

use conclave_proto::internal::command::Command as Message;
use conclave_proto::v1;
use conclave_raft_store::Reader;
use conclave_state_machine::command::Caller;
use conclave_state_machine::leases::{self, LeaseRow, TTL_SECONDS_MAX};
use conclave_state_machine::locks::check;
use conclave_state_machine::response::{Halt, Response as Answer};
use conclave_state_machine::sessions;
use futures::stream::{self, ReadyChunks, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};
use v1::session_service_server::SessionService;

use super::takings::{Followed, Told};
use crate::api::context::{Context, mismatch, must_have_leader};
use crate::api::kv::off_thread;
use crate::api::lease::{may_renew, random_lease_id, ttl_seconds_min};
use crate::api::{limits, stream_end};
use crate::auth::caller_of;
use crate::metrics::Method;
use crate::status::{self, Fault};

/// Most sessions on one stream.
const ATTACHED_MAX: usize = 100_000;
/// Most heartbeats that are answered together if they arrive together.
const HEARTBEATS_AT_ONCE_MAX: usize = 16;
/// Most sessions in one answer.
const LIST_MAX: usize = 1_000;

type Heartbeats =
    Pin<Box<dyn stream::Stream<Item = Result<v1::SessionOpenResponse, Status>> + Send>>;

/// Answers session calls.
#[derive(Clone)]
pub(super) struct SessionApi {
    pub(super) context: Context,
}

impl SessionApi {
    async fn answer_begin(
        &self,
        request: Request<v1::SessionBeginRequest>,
    ) -> Result<v1::SessionBeginResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let mut request = request.into_inner();
        self.context.check_quota(limits::LEASE_COST_BYTES).await?;
        if request.ttl_seconds > TTL_SECONDS_MAX {
            return Err(Fault::LeaseTtlTooLarge.into());
        }
        if request.id < 0 {
            return Err(Status::invalid_argument("conclave: session ids are positive"));
        }
        if request.id == 0 {
            request.id = random_lease_id();
        }
        request.ttl_seconds = request.ttl_seconds.max(ttl_seconds_min(&self.context));
        let command = conclave_raft_store::command::lock::session_begin(request.clone());
        check::session(&command).map_err(|rejection| status::from_rejection(&rejection))?;
        self.context.grants.check(self.context.node.lessor(), request.id)?;
        match self.context.propose(&caller, Message::SessionBegin(request)).await? {
            (Answer::SessionBegin { id, ttl }, _) => {
                Ok(v1::SessionBeginResponse { id, ttl_seconds: ttl })
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_end(
        &self,
        request: Request<v1::SessionEndRequest>,
    ) -> Result<v1::SessionEndResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let id = request.into_inner().id;
        let revoke = conclave_proto::etcdserverpb::LeaseRevokeRequest { id };
        self.context.propose(&caller, Message::LeaseRevoke(revoke)).await?;
        Ok(v1::SessionEndResponse {})
    }

    async fn answer_list(
        &self,
        request: Request<v1::SessionListRequest>,
    ) -> Result<v1::SessionListResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let v1::SessionListRequest { from, limit } = request.into_inner();
        let limit = usize::try_from(limit).unwrap_or(LIST_MAX);
        let limit = if limit == 0 { LIST_MAX } else { limit.min(LIST_MAX) };
        self.context.read_barrier().await?;
        let reader = self.context.node.reader().clone();
        // There may be many leases that are no sessions, and many keys per session.
        let found = off_thread(move || list_now(&reader, from.max(1), limit)).await?;
        let (mut sessions, next) = found.map_err(|halt| status::internal(&halt))?;
        let ids: Vec<i64> = sessions.iter().map(|session| session.id).collect();
        let remaining = self.context.node.lessor().remaining_ms(&ids).await;
        let remaining = remaining.map_err(|error| status::from_lessor(&error))?;
        for (session, remaining_ms) in sessions.iter_mut().zip(remaining) {
            session.remaining_ms = remaining_ms;
        }
        Ok(v1::SessionListResponse { sessions, next })
    }
}

/// Lists sessions from lease id `from` on, without their remaining time. Also returns the id to
/// continue with, 0 at the end.
fn list_now(reader: &Reader, from: i64, limit: usize) -> Result<(Vec<v1::SessionInfo>, i64), Halt> {
    let mut found = sessions::list(reader, from, limit + 1)?;
    let next = if found.len() > limit { found.pop().map_or(0, |(id, _)| id) } else { 0 };
    let info = |(id, row): (i64, LeaseRow)| {
        Ok(v1::SessionInfo {
            id,
            ttl_seconds: row.ttl,
            remaining_ms: 0,
            owner: row.owner,
            metadata: tags(row.metadata),
            keys: leases::lease_keys(reader, id)?,
        })
    };
    Ok((found.into_iter().map(info).collect::<Result<_, Halt>>()?, next))
}

/// Converts pairs to messages.
pub(super) fn tags(metadata: Vec<(String, String)>) -> Vec<v1::SessionTag> {
    metadata.into_iter().map(|(name, value)| v1::SessionTag { name, value }).collect()
}

/// The state of one stream of heartbeats.
struct Stream {
    context: Context,
    caller: Caller,
    requests: ReadyChunks<Streaming<v1::SessionOpenRequest>>,
    attached: BTreeSet<i64>,
    /// Set if the client asked to be told what others take from its sessions.
    followed: Option<Followed>,
}

/// Answers heartbeats in order; those that arrived together get one answer.
fn heartbeats(
    context: Context,
    caller: Caller,
    requests: Streaming<v1::SessionOpenRequest>,
) -> Heartbeats {
    let requests = requests.ready_chunks(HEARTBEATS_AT_ONCE_MAX);
    let (attached, followed) = (BTreeSet::new(), None);
    let stream = Stream { context, caller, requests, attached, followed };
    Box::pin(stream::unfold(Some(stream), async |stream| {
        let mut stream = stream?;
        match stream.next().await? {
            Ok(answer) => Some((Ok(answer), Some(stream))),
            // An error ends the stream.
            Err(status) => Some((Err(status), None)),
        }
    }))
}

impl Stream {
    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Result<v1::SessionOpenResponse, Status>> {
        let told = async {
            match &self.followed {
                Some(followed) => followed.next().await,
                None => std::future::pending().await,
            }
        };
        let requests = tokio::select! {
            requests = self.requests.next() => requests?,
            told = told => return Some(Ok(self.tell(told))),
        };
        Some(self.heartbeat(requests).await)
    }

    fn tell(&mut self, told: Told) -> v1::SessionOpenResponse {
        for id in &told.ended {
            self.attached.remove(id);
        }
        let Told { taken, ended: lost, is_unsure: unsure } = told;
        v1::SessionOpenResponse { sequence: 0, lost, taken, unsure }
    }

    async fn heartbeat(
        &mut self,
        requests: Vec<Result<v1::SessionOpenRequest, Status>>,
    ) -> Result<v1::SessionOpenResponse, Status> {
        let mut sequence = 0;
        for request in requests {
            let request = request?;
            sequence = request.sequence;
            self.attached.extend(request.attach);
            for id in &request.detach {
                self.attached.remove(id);
            }
            if request.tell_taken && self.followed.is_none() {
                self.followed = Some(self.context.node.takings().follow());
            }
        }
        if self.attached.len() > ATTACHED_MAX {
            return Err(Status::resource_exhausted("conclave: too many sessions on one stream"));
        }
        let mut ids: Vec<i64> = self.attached.iter().copied().collect();
        // A session that the user may not renew (any more) does not affect the others.
        let mut lost = refused(&self.context, &self.caller, &ids).await?;
        ids.retain(|id| lost.binary_search(id).is_err());
        // Before the answer: a client that asks after it finds everything that was taken earlier.
        if let Some(followed) = &mut self.followed {
            followed.set(&ids);
        }
        let ttls = self.context.node.lessor().renew_all(&ids).await;
        let ttls = ttls.map_err(|error| status::from_lessor(&error))?;
        let ended = ids.into_iter().zip(ttls).filter(|(_, ttl)| *ttl <= 0);
        lost.extend(ended.map(|(id, _)| id));
        for id in &lost {
            self.attached.remove(id);
        }
        Ok(v1::SessionOpenResponse { sequence, lost, ..v1::SessionOpenResponse::default() })
    }
}

/// The sessions that the caller may not renew, in the order of `ids`.
async fn refused(context: &Context, caller: &Caller, ids: &[i64]) -> Result<Vec<i64>, Status> {
    let mut refused = Vec::new();
    for (id, check) in ids.iter().zip(may_renew(context, caller, ids).await?) {
        match check {
            Ok(()) => {}
            Err(status) if status.code() == Code::PermissionDenied => refused.push(*id),
            Err(status) => return Err(status),
        }
    }
    Ok(refused)
}

#[tonic::async_trait]
impl SessionService for SessionApi {
    type OpenStream = Heartbeats;

    async fn begin(
        &self,
        request: Request<v1::SessionBeginRequest>,
    ) -> Result<Response<v1::SessionBeginResponse>, Status> {
        self.context.metrics.call(Method::SessionBegin, self.answer_begin(request)).await
    }

    async fn end(
        &self,
        request: Request<v1::SessionEndRequest>,
    ) -> Result<Response<v1::SessionEndResponse>, Status> {
        self.context.metrics.call(Method::SessionEnd, self.answer_end(request)).await
    }

    async fn open(
        &self,
        request: Request<Streaming<v1::SessionOpenRequest>>,
    ) -> Result<Response<Heartbeats>, Status> {
        let answer = async {
            self.context.check_metadata(request.metadata())?;
            let must_have_leader = must_have_leader(request.metadata());
            let caller = caller_of(request.extensions());
            let answers = heartbeats(self.context.clone(), caller, request.into_inner());
            Ok(stream_end::guard(&self.context, answers, must_have_leader))
        };
        self.context.metrics.call(Method::SessionOpen, answer).await
    }

    async fn list(
        &self,
        request: Request<v1::SessionListRequest>,
    ) -> Result<Response<v1::SessionListResponse>, Status> {
        self.context.metrics.call(Method::SessionList, self.answer_list(request)).await
    }
}
