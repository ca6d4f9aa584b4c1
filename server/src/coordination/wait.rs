//! Waits until keys reach a wanted state. Costs no commits; each change of the keys wakes the
//! waiter once.

use std::time::Duration;

use bytes::Bytes;
use conclave_proto::etcdserverpb::WatchCreateRequest;
use conclave_proto::mvccpb::{Event as Change, event::EventType};
use conclave_proto::v1;
use conclave_state_machine::command::Caller;
use conclave_state_machine::leases;
use conclave_state_machine::primitives::number;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use v1::ended::Reason;
use v1::patience::Wait;
use v1::wait_response::Event;

use super::turns::Admitted;
use super::{ANSWERS_MAX, WAIT_MAX, change};
use crate::api::context::Context;
use crate::api::stream_end;
use crate::auth::RightsCheck;
use crate::status::{self, Fault};
use crate::watch::LocalWatch;

/// The stream of events for a waiter.
pub(super) type Waits = ReceiverStream<Result<v1::WaitResponse, Status>>;

/// A waiting call; a task of its own.
pub(super) struct Waiter {
    pub(super) context: Context,
    caller: Caller,
    /// The right that the caller needs to be told anything.
    wanted: RightsCheck,
    answers: mpsc::Sender<Result<v1::WaitResponse, Status>>,
    /// `None` to wait for ever.
    deadline: Option<Instant>,
    _admitted: Admitted,
}

/// How the wait ended.
pub(super) enum End {
    /// The condition holds, as of this revision.
    Passed(i64),
    /// What was waited for is gone.
    Gone,
    Timeout,
    /// The client is gone.
    Dropped,
    /// The caller lost the right to wait.
    Revoked(Status),
    Failed(Status),
}

impl Waiter {
    /// Starts `run` in the background; returns the stream of its events.
    pub(super) fn start<F: Future<Output = ()> + Send + 'static>(
        context: &Context,
        (caller, wanted): (Caller, RightsCheck),
        patience: Option<v1::Patience>,
        run: impl FnOnce(Self) -> F,
    ) -> Result<Waits, Status> {
        context.auth.check(&caller, &wanted)?;
        let wait = match patience.and_then(|patience| patience.wait) {
            Some(Wait::WaitForever(true)) => None,
            Some(Wait::WaitMs(ms)) => Some(Duration::from_millis(ms)),
            Some(Wait::WaitForever(false)) | None => Some(Duration::ZERO),
        };
        let deadline = wait.map(|wait| Instant::now() + wait.min(WAIT_MAX));
        let admitted = context.node.turns().admit();
        let _admitted = admitted.map_err(|_too_many| Status::from(Fault::TooManyRequests))?;
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let context = context.clone();
        let background = context.background.clone();
        let waiter = Self { context, caller, wanted, answers, deadline, _admitted };
        // The task ends by itself: with the wait, with the stream, or with the member.
        background.spawn(run(waiter));
        Ok(ReceiverStream::new(stream))
    }

    /// Tells the client that it waits, then waits until `judge` finds the end in one of the changes
    /// after that revision.
    pub(super) async fn wait(
        &self,
        mut waiting: v1::Waiting,
        keys: Vec<WatchCreateRequest>,
        mut judge: impl FnMut(&Change) -> Option<End>,
    ) -> End {
        let start_revision = waiting.revision + 1;
        waiting.cluster_id = self.context.header(waiting.revision).cluster_id;
        if let Err(end) = self.tell(Event::Waiting(waiting)).await {
            return end;
        }
        let mut watch = LocalWatch::open(self.context.node.watch());
        for key in keys {
            watch.add(WatchCreateRequest { start_revision, ..key });
        }
        // A member that is cut off would never hear of the end.
        let mut over = std::pin::pin!(stream_end::reason_to_end(self.context.clone(), true));
        let mut revoked = std::pin::pin!(self.context.auth.revoked(&self.caller, &self.wanted));
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + WAIT_MAX);
        loop {
            let seen = tokio::select! {
                seen = watch.next() => seen,
                () = tokio::time::sleep_until(deadline) => return End::Timeout,
                () = self.answers.closed() => return End::Dropped,
                status = &mut revoked => return End::Revoked(status),
                fault = &mut over => return End::Failed(fault.into()),
            };
            match seen {
                Ok(seen) if seen.compact_revision != 0 => {
                    return End::Failed(Fault::Compacted.into());
                }
                Ok(seen) => {
                    if let Some(end) = seen.events.iter().find_map(&mut judge) {
                        return end;
                    }
                }
                Err(end) => return End::Failed(status::from_watch_end(end)),
            }
        }
    }

    /// Whether the deadline has passed already: the caller does not want to wait.
    pub(super) fn is_impatient(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Tells the client the end of the wait. Session and fence of a participant; 0 for other waits.
    pub(super) async fn end(&self, end: End, (session, fence): (i64, i64)) {
        let ended =
            |reason: Reason| Event::Ended(v1::Ended { reason: reason as i32, broken: None });
        let event = match end {
            End::Passed(revision) => Event::Passed(v1::Passed { revision, fence }),
            End::Timeout => ended(Reason::Timeout),
            End::Gone if self.is_lost(session) => ended(Reason::SessionLost),
            End::Gone => ended(Reason::Cancelled),
            End::Dropped => return,
            End::Revoked(status) | End::Failed(status) => return self.fail(status).await,
        };
        if let Err(End::Revoked(status)) = self.tell(event).await {
            self.fail(status).await;
        }
    }

    /// Whether the caller still has the right to be told anything.
    pub(super) fn check(&self) -> Result<(), Status> {
        self.context.auth.check_by_name(&self.caller, &self.wanted)
    }

    fn is_lost(&self, session: i64) -> bool {
        session != 0 && matches!(leases::lease(self.context.node.reader(), session), Ok(None))
    }

    /// The context and the caller it waits for.
    pub(super) fn who(&self) -> (&Context, &Caller) {
        (&self.context, &self.caller)
    }

    /// Sends an event, if the caller still has the right to it.
    async fn tell(&self, event: Event) -> Result<(), End> {
        self.check().map_err(End::Revoked)?;
        let answer = v1::WaitResponse { event: Some(event) };
        self.answers.send(Ok(answer)).await.map_err(|_closed| End::Dropped)
    }

    pub(super) async fn fail(&self, status: Status) {
        // Fails only if the client is gone, which needs no answer.
        self.answers.send(Err(status)).await.ok();
    }
}

/// A watch of a single key.
pub(super) fn one(key: &Bytes) -> WatchCreateRequest {
    WatchCreateRequest { key: Bytes::clone(key), ..WatchCreateRequest::default() }
}

/// The state that a key is waited for.
#[derive(Clone, Copy)]
pub(super) enum Until {
    /// The key does not exist.
    Lifted,
    /// The value is a number of at most 0.
    Zero,
}

impl Until {
    /// The end of the wait, if `value` at `revision` is the wanted state.
    fn judge(self, value: Option<&[u8]>, revision: i64) -> Option<End> {
        let is_over = match (self, value) {
            (Until::Lifted, value) => value.is_none(),
            (Until::Zero, Some(value)) => match number::parse(value) {
                Some(number) => number <= 0,
                None => return Some(End::Failed(status::from_rejection(&number::NOT_A_NUMBER))),
            },
            (Until::Zero, None) => false,
        };
        is_over.then_some(End::Passed(revision))
    }

    fn judge_change(self, change: &Change) -> Option<End> {
        let kv = change.kv.as_ref()?;
        if change.r#type() == EventType::Put {
            return self.judge(Some(&kv.value), kv.mod_revision);
        }
        // A deleted latch will never get to 0.
        Some(self.judge(None, kv.mod_revision).unwrap_or(End::Gone))
    }
}

/// Waits for the state of one key.
pub(super) async fn key(waiter: Waiter, request: v1::WaitRequest, until: Until) {
    let end = match until_key(&waiter, request, until).await {
        Ok(end) => end,
        Err(status) => End::Failed(status),
    };
    waiter.end(end, (0, 0)).await;
}

async fn until_key(waiter: &Waiter, request: v1::WaitRequest, until: Until) -> Result<End, Status> {
    let v1::WaitRequest { name, start_revision, .. } = request;
    if start_revision < 0 {
        return Err(Status::invalid_argument("conclave: revisions are positive"));
    }
    let context = &waiter.context;
    context.read_barrier().await?;
    let now = context.node.reader().head().revision;
    if start_revision > now {
        return Err(Fault::FutureRevision.into());
    }
    // With a start revision the client has waited before, and has seen the state at that revision.
    if start_revision == 0 {
        let found = change::key_at(context, &name, now)?;
        if let Some(end) = until.judge(found.as_ref().map(|kv| &kv.value[..]), now) {
            return Ok(end);
        }
        if waiter.is_impatient() {
            return Ok(End::Timeout);
        }
    }
    let revision = if start_revision == 0 { now } else { start_revision };
    let waiting = v1::Waiting { revision, ..v1::Waiting::default() };
    Ok(waiter.wait(waiting, vec![one(&name)], |change| until.judge_change(change)).await)
}
