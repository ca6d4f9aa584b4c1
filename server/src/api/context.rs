//! What every service needs: the node, the checks before any work, and the conversion of internal
//! failures to gRPC statuses.

use std::sync::Arc;
use std::time::Duration;

use conclave_proto::{etcdserverpb as etcd, internal};
use conclave_raft_store::Reader;
use conclave_raft_store::command::auth::caller_message;
use conclave_state_machine::command::Caller;
use conclave_state_machine::response::{Applied, Halt, Response as Answer};
use http::HeaderMap;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::grants::Grants;
use super::long_read::LongReads;
use crate::auth::{Auth, caller_of};
use crate::config::Limits;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::propose::Haste;
use crate::space;
use crate::status::{self, Fault};

/// Request header: a client sets it to `true` to fail instead of waiting for a leader.
const HAS_LEADER: &str = "hasleader";
/// How often the withdrawal of an abandoned place is proposed, and the pause between attempts.
const WITHDRAWALS_MAX: usize = 60;
const WITHDRAWAL_PAUSE: Duration = Duration::from_secs(1);
/// The unit letters of gRPC timeouts, in nanoseconds.
const UNITS: [(char, u64); 6] = [
    ('H', 3_600_000_000_000),
    ('M', 60_000_000_000),
    ('S', 1_000_000_000),
    ('m', 1_000_000),
    ('u', 1_000),
    ('n', 1),
];

/// Shared by all services of one node; clones are cheap.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) node: Arc<Node>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) limits: Limits,
    pub(crate) long_reads: LongReads,
    pub(crate) grants: Grants,
    /// Work that continues after its caller has gone; awaited when the node stops.
    pub(crate) background: TaskTracker,
}

impl Context {
    /// Checks the metadata of a call; returns the caller and the request.
    pub(crate) fn accept<T>(&self, request: Request<T>) -> Result<(Caller, T), Status> {
        self.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        Ok((caller, request.into_inner()))
    }

    /// Refuses a call that asked (`hasleader: true`) to fail if there is no leader.
    pub(crate) fn check_metadata(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if must_have_leader(metadata) && !self.node.has_leader() {
            return Err(Fault::NoLeader.into());
        }
        Ok(())
    }

    /// A response header with `revision`.
    pub(crate) fn header(&self, revision: i64) -> etcd::ResponseHeader {
        self.node.header(revision)
    }

    /// A response header with the current revision.
    pub(crate) fn current_header(&self) -> etcd::ResponseHeader {
        self.header(self.node.reader().head().revision)
    }

    /// Waits until this member has applied everything acknowledged before the call. Fails on a
    /// learner.
    pub(crate) async fn read_barrier(&self) -> Result<(), Status> {
        if self.node.is_learner() {
            return Err(Fault::NotSupportedForLearner.into());
        }
        self.node.read_barrier().await.map_err(|error| status::from_read_index(&error))
    }

    /// Proposes a command on behalf of `caller`, whose rights are checked by apply; returns the
    /// answer and the revision after it. [`Caller::Inside`] is only for commands that no client
    /// asks for.
    pub(crate) async fn propose(
        &self,
        caller: &Caller,
        command: internal::command::Command,
    ) -> Result<(Answer, i64), Status> {
        self.propose_with(caller, command, Haste::Prompt).await
    }

    /// Like [`Context::propose`]; `haste` says how soon.
    pub(crate) async fn propose_with(
        &self,
        caller: &Caller,
        command: internal::command::Command,
        haste: Haste,
    ) -> Result<(Answer, i64), Status> {
        let Applied { outcome, revision, .. } = self.offer(caller, command, haste).await?;
        match outcome {
            Ok(answer) => Ok((answer, revision)),
            Err(rejection) => Err(status::from_rejection(&rejection)),
        }
    }

    /// Like [`Context::propose_with`], but a rejection is part of the result.
    pub(crate) async fn offer(
        &self,
        caller: &Caller,
        command: internal::command::Command,
        haste: Haste,
    ) -> Result<Applied, Status> {
        let caller = caller_message(caller);
        let command = internal::Command { caller, command: Some(command) };
        let applied = self.node.propose_with(command, haste).await;
        applied.map_err(|error| status::from_propose(&error))
    }

    /// Proposes the removal of a place that nobody waits for any more, and retries while that
    /// fails: otherwise those behind it would wait until its session ends. `withdrawal` must be
    /// idempotent.
    pub(crate) async fn withdraw(&self, withdrawal: internal::command::Command) {
        for _ in 0..WITHDRAWALS_MAX {
            match self.offer(&Caller::Inside, withdrawal.clone(), Haste::Prompt).await {
                // It was applied; if it was rejected, a retry would be rejected, too.
                Ok(_) => return,
                Err(status) => tracing::debug!(error = status.message(), "not withdrawn yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(WITHDRAWAL_PAUSE) => {}
                () = self.node.stopping().cancelled() => return,
            }
        }
        tracing::warn!("a place that nobody waits for stays until its session ends");
    }

    /// Refuses a request that is too large for etcd's log.
    pub(crate) fn check_size(&self, request: &impl prost::Message) -> Result<(), Status> {
        let bytes = super::limits::logged_bytes(request, self.node.member_id());
        if bytes > self.limits.request_bytes_max {
            return Err(Fault::RequestTooLarge.into());
        }
        Ok(())
    }

    /// Refuses a write that would exceed the quota, and raises the NOSPACE alarm.
    pub(crate) async fn check_quota(&self, cost_bytes: usize) -> Result<(), Status> {
        if self.has_room(cost_bytes) { Ok(()) } else { self.refuse_for_space().await }
    }

    /// Like [`Context::check_quota`], but lets a retry through: it needs no space if `comes_again`
    /// finds that the store has its effect already.
    pub(crate) async fn check_quota_unless(
        &self,
        cost_bytes: usize,
        comes_again: impl FnOnce(&Reader) -> Result<bool, Halt>,
    ) -> Result<(), Status> {
        if self.has_room(cost_bytes) {
            return Ok(());
        }
        // The first attempt may have been answered by another member; after the barrier it is
        // applied here, too.
        self.read_barrier().await?;
        match comes_again(self.node.reader()) {
            Ok(true) => Ok(()),
            Ok(false) => self.refuse_for_space().await,
            Err(halt) => Err(status::internal(&halt)),
        }
    }

    fn has_room(&self, cost_bytes: usize) -> bool {
        self.node.space().has_room(self.node.reader().total_bytes(), cost_bytes)
    }

    /// As in etcd, only this request is refused, whether or not the alarm can be raised, and only an
    /// operator clears the alarm.
    async fn refuse_for_space(&self) -> Result<(), Status> {
        self.raise_no_space().await;
        Err(Fault::NoSpace.into())
    }

    /// Raises the NOSPACE alarm of this member unless it is active.
    pub(crate) async fn raise_no_space(&self) {
        let member_id = self.node.member_id();
        if space::is_raised(&self.node.reader().head(), member_id) {
            return;
        }
        let alarm = etcd::AlarmRequest {
            action: etcd::alarm_request::AlarmAction::Activate as i32,
            member_id,
            alarm: etcd::AlarmType::Nospace as i32,
        };
        let command = internal::command::Command::Alarm(alarm);
        match self.propose(&Caller::Inside, command).await {
            Ok(_) => tracing::warn!("alarm raised: the space quota is used up"),
            Err(error) => tracing::warn!(error = error.message(), "failed to raise alarm"),
        }
    }
}

/// Cannot happen: the command decides the kind of its answer.
pub(crate) fn mismatch() -> Status {
    Status::internal("conclave: the answer does not belong to the request")
}

/// Whether the client asked (`hasleader: true`) to fail if there is no leader.
pub(crate) fn must_have_leader(metadata: &MetadataMap) -> bool {
    metadata.get(HAS_LEADER).is_some_and(|value| value.as_bytes() == b"true")
}

/// The client's timeout (`grpc-timeout`), if it gave a valid one.
pub(crate) fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    deadline_in(metadata.as_ref())
}

/// Like [`deadline`], for plain HTTP headers.
pub(crate) fn deadline_in(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let (_, nanos) = UNITS.into_iter().find(|(letter, _)| unit.starts_with(*letter))?;
    number.parse().ok().map(|number: u64| Duration::from_nanos(nanos.saturating_mul(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline(&metadata)
        };
        assert_eq!(read("99999999H"), Some(Duration::from_nanos(u64::MAX)));
        assert_eq!(read("5M"), Some(Duration::from_secs(300)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        for text in ["", "S", "1", "1x", "-1S"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
