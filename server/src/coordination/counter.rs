//! The counter and latch services.

use bytes::Bytes;
use conclave_proto::internal::{self, primitive::Action};
use conclave_proto::v1;
use conclave_state_machine::command::Caller;
use conclave_state_machine::locks::check;
use conclave_state_machine::primitives::number;
use conclave_state_machine::response::{PrimitiveResponse, Rejection};
use internal::counter_set::Condition;
use tonic::{Request, Response, Status};
use v1::counter_service_server::CounterService;
use v1::counter_set_request::Condition as Asked;
use v1::latch_service_server::LatchService;

use super::change::{change, key_at};
use super::wait::{self, Until, Waiter, Waits};
use crate::api::context::Context;
use crate::auth::{RightsCheck, caller_of};
use crate::metrics::Method;
use crate::status;

/// Answers counter and latch calls.
#[derive(Clone)]
pub(super) struct CounterApi {
    pub(super) context: Context,
}

impl CounterApi {
    async fn answer_add(
        &self,
        request: Request<v1::CounterAddRequest>,
    ) -> Result<v1::CounterResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::CounterAddRequest { once, name, delta } = request.into_inner();
        change((&self.context, &caller), once, name, Action::Add(delta)).await.map(counter)
    }

    async fn answer_set(
        &self,
        request: Request<v1::CounterSetRequest>,
    ) -> Result<v1::CounterResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::CounterSetRequest { once, name, value, condition } = request.into_inner();
        let condition = condition.map(|condition| match condition {
            Asked::IfValue(value) => Condition::IfValue(value),
            Asked::IfRevision(revision) => Condition::IfRevision(revision),
        });
        let set = internal::CounterSet { value, condition };
        change((&self.context, &caller), once, name, Action::Set(set)).await.map(counter)
    }

    async fn answer_get(
        &self,
        request: Request<v1::CounterGetRequest>,
    ) -> Result<v1::CounterResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let found = self.number(&caller, &request.into_inner().name).await?;
        let (value, revision) = found.unwrap_or_default();
        Ok(v1::CounterResponse { changed: false, value, revision })
    }

    async fn answer_create(
        &self,
        request: Request<v1::LatchCreateRequest>,
    ) -> Result<v1::LatchResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::LatchCreateRequest { once, name, count } = request.into_inner();
        change((&self.context, &caller), once, name, Action::Create(count)).await.map(latch)
    }

    async fn answer_count_down(
        &self,
        request: Request<v1::LatchCountDownRequest>,
    ) -> Result<v1::LatchResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::LatchCountDownRequest { once, name, by } = request.into_inner();
        let by = if by == 0 { 1 } else { by };
        change((&self.context, &caller), once, name, Action::CountDown(by)).await.map(latch)
    }

    async fn answer_remaining(
        &self,
        request: Request<v1::LatchGetRequest>,
    ) -> Result<v1::LatchResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let found = self.number(&caller, &request.into_inner().name).await?;
        let found = found.ok_or_else(|| status::from_rejection(&Rejection::NoLatch))?;
        let (remaining, revision) = found;
        Ok(v1::LatchResponse { changed: false, remaining, revision })
    }

    async fn answer_wait(&self, request: Request<v1::WaitRequest>) -> Result<Waits, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        check::name(&request.name).map_err(|rejection| status::from_rejection(&rejection))?;
        let who = (caller, RightsCheck::key(&request.name));
        Waiter::start(&self.context, who, request.patience, |waiter| {
            wait::key(waiter, request, Until::Zero)
        })
    }

    /// The number stored under a name and the revision of its last change; `None` if the key does
    /// not exist.
    async fn number(&self, caller: &Caller, name: &Bytes) -> Result<Option<(i64, i64)>, Status> {
        check::name(name).map_err(|rejection| status::from_rejection(&rejection))?;
        self.context.read_barrier().await?;
        let look = async { key_at(&self.context, name, 0) };
        let found = self.context.auth.checked(caller, &RightsCheck::key(name), look).await?;
        let Some(kv) = found else { return Ok(None) };
        let number = number::parse(&kv.value).ok_or(number::NOT_A_NUMBER);
        let number = number.map_err(|rejection| status::from_rejection(&rejection))?;
        Ok(Some((number, kv.mod_revision)))
    }
}

fn counter(answer: PrimitiveResponse) -> v1::CounterResponse {
    let PrimitiveResponse { is_done, number, revision } = answer;
    v1::CounterResponse { changed: is_done, value: number, revision }
}

fn latch(answer: PrimitiveResponse) -> v1::LatchResponse {
    let PrimitiveResponse { is_done, number, revision } = answer;
    v1::LatchResponse { changed: is_done, remaining: number, revision }
}

#[tonic::async_trait]
impl CounterService for CounterApi {
    async fn add(
        &self,
        request: Request<v1::CounterAddRequest>,
    ) -> Result<Response<v1::CounterResponse>, Status> {
        self.context.metrics.call(Method::CounterAdd, self.answer_add(request)).await
    }

    async fn set(
        &self,
        request: Request<v1::CounterSetRequest>,
    ) -> Result<Response<v1::CounterResponse>, Status> {
        self.context.metrics.call(Method::CounterSet, self.answer_set(request)).await
    }

    async fn get(
        &self,
        request: Request<v1::CounterGetRequest>,
    ) -> Result<Response<v1::CounterResponse>, Status> {
        self.context.metrics.call(Method::CounterGet, self.answer_get(request)).await
    }
}

#[tonic::async_trait]
impl LatchService for CounterApi {
    type WaitStream = Waits;

    async fn create(
        &self,
        request: Request<v1::LatchCreateRequest>,
    ) -> Result<Response<v1::LatchResponse>, Status> {
        self.context.metrics.call(Method::LatchCreate, self.answer_create(request)).await
    }

    async fn count_down(
        &self,
        request: Request<v1::LatchCountDownRequest>,
    ) -> Result<Response<v1::LatchResponse>, Status> {
        self.context.metrics.call(Method::LatchCountDown, self.answer_count_down(request)).await
    }

    async fn get(
        &self,
        request: Request<v1::LatchGetRequest>,
    ) -> Result<Response<v1::LatchResponse>, Status> {
        self.context.metrics.call(Method::LatchGet, self.answer_remaining(request)).await
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<Waits>, Status> {
        self.context.metrics.call(Method::LatchWait, self.answer_wait(request)).await
    }
}
