//! The barrier and double barrier services.

use bytes::Bytes;
use conclave_proto::etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType};
use conclave_proto::internal::{self, command::Command as Message, primitive::Action};
use conclave_proto::mvccpb::event::EventType;
use conclave_proto::v1;
use conclave_state_machine::command::Caller;
use conclave_state_machine::locks::{check, queue};
use conclave_state_machine::primitives::rendezvous::{self, Gate};
use tonic::{Request, Response, Status};
use v1::barrier_service_server::BarrierService;
use v1::double_barrier_service_server::DoubleBarrierService;

use super::change::{change, key_at, propose};
use super::wait::{self, End, Until, Waiter, Waits};
use super::{is_denied, withdraw_unless_resumed};
use crate::api::context::Context;
use crate::auth::{RightsCheck, caller_of};
use crate::metrics::Method;
use crate::status;

/// Answers barrier and double barrier calls.
#[derive(Clone)]
pub(super) struct BarrierApi {
    pub(super) context: Context,
}

impl BarrierApi {
    async fn answer_raise(
        &self,
        request: Request<v1::BarrierRaiseRequest>,
    ) -> Result<v1::BarrierRaiseResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::BarrierRaiseRequest { once, name, note, bound } = request.into_inner();
        let raise = Action::Raise(internal::BarrierRaise { note, bound });
        let answer = change((&self.context, &caller), once, name, raise).await?;
        Ok(v1::BarrierRaiseResponse { raised: answer.is_done, fence: answer.number })
    }

    async fn answer_lift(
        &self,
        request: Request<v1::BarrierLiftRequest>,
    ) -> Result<v1::BarrierLiftResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::BarrierLiftRequest { once, name, fence } = request.into_inner();
        let answer = change((&self.context, &caller), once, name, Action::Lift(fence)).await?;
        Ok(v1::BarrierLiftResponse { lifted: answer.is_done })
    }

    async fn answer_wait(&self, request: Request<v1::WaitRequest>) -> Result<Waits, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        check::name(&request.name).map_err(|rejection| status::from_rejection(&rejection))?;
        let who = (caller, RightsCheck::key(&request.name));
        Waiter::start(&self.context, who, request.patience, |waiter| {
            wait::key(waiter, request, Until::Lifted)
        })
    }

    async fn answer_enter(
        &self,
        request: Request<v1::DoubleBarrierEnterRequest>,
    ) -> Result<Waits, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::DoubleBarrierEnterRequest { once, name, count, note, patience } =
            request.into_inner();
        let participant = Participant::new(once, name);
        let enter = Action::Enter(internal::DoubleBarrierEnter { count, note });
        let who = (caller, RightsCheck::below(&participant.name));
        Waiter::start(&self.context, who, patience, |waiter| participant.enter(waiter, enter))
    }

    async fn answer_leave(
        &self,
        request: Request<v1::DoubleBarrierLeaveRequest>,
    ) -> Result<Waits, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let v1::DoubleBarrierLeaveRequest { once, name, patience, until_fence } =
            request.into_inner();
        check::name(&name).map_err(|rejection| status::from_rejection(&rejection))?;
        let participant = Participant::new(once, name);
        let who = (caller, RightsCheck::below(&participant.name));
        Waiter::start(&self.context, who, patience, |waiter| participant.leave(waiter, until_fence))
    }
}

/// A participant of a double barrier that enters or leaves.
struct Participant {
    once: v1::Once,
    name: Bytes,
}

impl Participant {
    fn new(once: Option<v1::Once>, name: Bytes) -> Self {
        Self { once: once.unwrap_or_default(), name }
    }

    async fn enter(self, waiter: Waiter, enter: Action) {
        let entered = change(waiter.who(), Some(self.once), self.name.clone(), enter).await;
        let (end, fence) = match entered {
            Err(status) => (End::Failed(status), 0),
            // The entry was undone before it arrived.
            Ok(answer) if answer.number == 0 => (End::Gone, 0),
            Ok(answer) if answer.is_done => (End::Passed(answer.revision), answer.number),
            Ok(answer) => (self.until_in(&waiter, answer.number).await, answer.number),
        };
        // A participant that may not be told that it is in must not count as in.
        let revoked = match (end, waiter.check()) {
            (End::Revoked(status), _) | (End::Passed(_), Err(status)) if is_denied(&status) => {
                status
            }
            (end, _) => return waiter.end(end, (self.once.session, fence)).await,
        };
        let exit = self.exit(false);
        let is_out = propose((&waiter.context, &Caller::Inside), exit.clone()).await.is_ok();
        waiter.fail(revoked).await;
        if !is_out {
            withdraw_unless_resumed(&waiter.context, Message::Primitive(exit)).await;
        }
    }

    /// Waits until the participant with this fence is in. On timeout the participant is taken out.
    async fn until_in(&self, waiter: &Waiter, fence: i64) -> End {
        let end = match self.look(waiter, fence) {
            Err(status) => return End::Failed(status),
            Ok((_, Some(end))) => return end,
            Ok((_, None)) if waiter.is_impatient() => End::Timeout,
            Ok((at, None)) => {
                let keys = vec![wait::one(&self.key()), wait::one(&self.name)];
                let is_gate = |key: &Bytes| *key == self.name;
                let wait = waiter.wait(
                    v1::Waiting { revision: at, ..v1::Waiting::default() },
                    keys,
                    |change| {
                        let kv = change.kv.as_ref()?;
                        match (is_gate(&kv.key), change.r#type()) {
                            (true, EventType::Put) => is_in(&kv.value, fence, kv.mod_revision),
                            (false, EventType::Delete) => Some(End::Gone),
                            (true, EventType::Delete) | (false, EventType::Put) => None,
                        }
                    },
                );
                wait.await
            }
        };
        if matches!(end, End::Timeout) { self.withdraw(&waiter.context).await } else { end }
    }

    /// The participant's state, and the revision at which it was read.
    fn look(&self, waiter: &Waiter, fence: i64) -> Result<(i64, Option<End>), Status> {
        let at = waiter.context.node.reader().head().revision;
        let own = key_at(&waiter.context, &self.key(), at)?;
        if own.is_none_or(|kv| kv.create_revision != fence) {
            return Ok((at, Some(End::Gone)));
        }
        let gate = key_at(&waiter.context, &self.name, at)?;
        Ok((at, gate.and_then(|kv| is_in(&kv.value, fence, at))))
    }

    fn key(&self) -> Bytes {
        rendezvous::key(&self.name, self.once.session, self.once.sequence)
    }

    /// Takes the participant out, unless it got in at the last moment.
    async fn withdraw(&self, context: &Context) -> End {
        match propose((context, &Caller::Inside), self.exit(true)).await {
            Err(status) => End::Failed(status),
            Ok(answer) if answer.is_done => End::Timeout,
            Ok(answer) if answer.number > 0 => End::Passed(answer.revision),
            Ok(_) => End::Gone,
        }
    }

    /// The command that takes out the participant of this request; if `is_only_waiting`, only while
    /// it waits.
    fn exit(&self, is_only_waiting: bool) -> internal::Primitive {
        let v1::Once { session, sequence, .. } = self.once;
        let once = v1::Once { session, undoes: sequence, ..v1::Once::default() };
        let action = Some(Action::ExitIfWaiting(is_only_waiting));
        internal::Primitive { once: Some(once), name: self.name.clone(), action }
    }

    /// Leaves, unless it has left already (`until_fence`), and waits for the other participants.
    async fn leave(self, waiter: Waiter, until_fence: i64) {
        let fence = if until_fence > 0 {
            // After the barrier this member knows the participants that were there when it left.
            waiter.context.read_barrier().await.map(|()| until_fence)
        } else {
            let exit = Action::ExitIfWaiting(false);
            let left = change(waiter.who(), Some(self.once), self.name.clone(), exit).await;
            left.map(|answer| answer.number)
        };
        let end = match fence {
            Err(status) => End::Failed(status),
            Ok(fence) => self.until_out(&waiter, fence).await,
        };
        waiter.end(end, (self.once.session, 0)).await;
    }

    /// Waits until there is no participant with this fence or a smaller one.
    async fn until_out(&self, waiter: &Waiter, fence: i64) -> End {
        let reader = waiter.context.node.reader();
        let at = reader.head().revision;
        let is_out = || match queue::first(reader, &self.name) {
            Ok(first) => first.is_none_or(|first| first > fence),
            // Apply reads the same row and stops the member with the reason.
            Err(_damaged) => false,
        };
        if is_out() {
            return End::Passed(at);
        }
        if waiter.is_impatient() {
            return End::Timeout;
        }
        let range = WatchCreateRequest {
            key: [&self.name, &b"/"[..]].concat().into(),
            range_end: [&self.name, &b"0"[..]].concat().into(),
            filters: vec![FilterType::Noput as i32],
            ..WatchCreateRequest::default()
        };
        // A participant that left does not come back with the same fence.
        let judge = |change: &conclave_proto::mvccpb::Event| {
            let revision = change.kv.as_ref().map_or(at, |kv| kv.mod_revision);
            is_out().then_some(End::Passed(revision))
        };
        let waiting = v1::Waiting { revision: at, fence, ..v1::Waiting::default() };
        waiter.wait(waiting, vec![range], judge).await
    }
}

/// The end of the wait, if the gate has opened for participants with this fence.
fn is_in(gate: &[u8], fence: i64, revision: i64) -> Option<End> {
    (Gate::parse(gate).opened >= fence).then_some(End::Passed(revision))
}

#[tonic::async_trait]
impl BarrierService for BarrierApi {
    type WaitStream = Waits;

    async fn raise(
        &self,
        request: Request<v1::BarrierRaiseRequest>,
    ) -> Result<Response<v1::BarrierRaiseResponse>, Status> {
        self.context.metrics.call(Method::BarrierRaise, self.answer_raise(request)).await
    }

    async fn lift(
        &self,
        request: Request<v1::BarrierLiftRequest>,
    ) -> Result<Response<v1::BarrierLiftResponse>, Status> {
        self.context.metrics.call(Method::BarrierLift, self.answer_lift(request)).await
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<Waits>, Status> {
        self.context.metrics.call(Method::BarrierWait, self.answer_wait(request)).await
    }
}

#[tonic::async_trait]
impl DoubleBarrierService for BarrierApi {
    type EnterStream = Waits;
    type LeaveStream = Waits;

    async fn enter(
        &self,
        request: Request<v1::DoubleBarrierEnterRequest>,
    ) -> Result<Response<Waits>, Status> {
        self.context.metrics.call(Method::DoubleBarrierEnter, self.answer_enter(request)).await
    }

    async fn leave(
        &self,
        request: Request<v1::DoubleBarrierLeaveRequest>,
    ) -> Result<Response<Waits>, Status> {
        self.context.metrics.call(Method::DoubleBarrierLeave, self.answer_leave(request)).await
    }
}
