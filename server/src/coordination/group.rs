//! The group service.

use bytes::Bytes;
use conclave_proto::internal::{self, primitive::Action};
use conclave_proto::v1;
use conclave_raft_store::Reader;
use conclave_raft_store::store::ReadError;
use conclave_state_machine::command::Range;
use conclave_state_machine::leases;
use conclave_state_machine::locks::{check, queue};
use conclave_state_machine::response::{Halt, KeyValue};
use tonic::{Request, Response, Status};
use v1::group_service_server::GroupService;

use super::change::change;
use super::session::tags;
use crate::api::context::Context;
use crate::api::kv::off_thread;
use crate::auth::{RightsCheck, caller_of};
use crate::metrics::Method;
use crate::status;

/// Most members in one answer.
const LIST_MAX: usize = 1_000;

/// Answers group calls.
#[derive(Clone)]
pub(super) struct GroupApi {
    pub(super) context: Context,
}

impl GroupApi {
    async fn answer_join(
        &self,
        request: Request<v1::GroupJoinRequest>,
    ) -> Result<v1::GroupJoinResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::GroupJoinRequest { once, name, member, value, of } = request.into_inner();
        let join = Action::Join(internal::GroupJoin { member, value, of });
        let answer = change((&self.context, &caller), once, name, join).await?;
        Ok(v1::GroupJoinResponse { fence: answer.number })
    }

    async fn answer_leave(
        &self,
        request: Request<v1::GroupLeaveRequest>,
    ) -> Result<v1::GroupLeaveResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::GroupLeaveRequest { once, name, member } = request.into_inner();
        let answer = change((&self.context, &caller), once, name, Action::Part(member)).await?;
        Ok(v1::GroupLeaveResponse { left: answer.is_done })
    }

    async fn answer_list(
        &self,
        request: Request<v1::GroupListRequest>,
    ) -> Result<v1::GroupListResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::GroupListRequest { name, from, limit } = request.into_inner();
        check::name(&name).map_err(|rejection| status::from_rejection(&rejection))?;
        let limit = usize::try_from(limit).unwrap_or(LIST_MAX);
        let limit = if limit == 0 { LIST_MAX } else { limit.min(LIST_MAX) };
        self.context.read_barrier().await?;
        let reader = self.context.node.reader().clone();
        let prefix = [&name, &b"/"[..]].concat();
        let range = Range {
            key: [&prefix, &from[..]].concat().into(),
            range_end: [&name, &b"0"[..]].concat().into(),
            ..Range::default()
        };
        let revision = reader.head().revision;
        let wanted = RightsCheck::queue(&name);
        let read = off_thread(move || {
            let mut found = reader.page(&range, revision, limit + 1)?;
            let member = |key: &Bytes| key.slice(prefix.len()..);
            let next = if found.len() > limit { found.pop() } else { None };
            let next = next.map(|kv| member(&kv.key)).unwrap_or_default();
            // A key without a lease is no member, nor is a key with further slashes.
            found.retain(|kv| kv.lease != 0 && queue::name_of(&kv.key) == Some(&name[..]));
            let shown = |kv: KeyValue| show(&reader, member(&kv.key), kv);
            let members = found.into_iter().map(shown).collect::<Result<_, Halt>>()?;
            Ok(v1::GroupListResponse { members, next, revision })
        });
        let answer = self.context.auth.checked(&caller, &wanted, read).await?;
        answer.map_err(|error: ReadError| status::from_read(&error))
    }
}

fn show(reader: &Reader, member: Bytes, kv: KeyValue) -> Result<v1::GroupMember, Halt> {
    let lease = leases::lease(reader, kv.lease)?.unwrap_or_default();
    Ok(v1::GroupMember {
        member,
        value: kv.value,
        session: kv.lease,
        fence: kv.create_revision,
        owner: lease.owner,
        metadata: tags(lease.metadata),
    })
}

#[tonic::async_trait]
impl GroupService for GroupApi {
    async fn join(
        &self,
        request: Request<v1::GroupJoinRequest>,
    ) -> Result<Response<v1::GroupJoinResponse>, Status> {
        self.context.metrics.call(Method::GroupJoin, self.answer_join(request)).await
    }

    async fn leave(
        &self,
        request: Request<v1::GroupLeaveRequest>,
    ) -> Result<Response<v1::GroupLeaveResponse>, Status> {
        self.context.metrics.call(Method::GroupLeave, self.answer_leave(request)).await
    }

    async fn list(
        &self,
        request: Request<v1::GroupListRequest>,
    ) -> Result<Response<v1::GroupListResponse>, Status> {
        self.context.metrics.call(Method::GroupList, self.answer_list(request)).await
    }
}
