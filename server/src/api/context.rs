//! What every service needs: the node, the checks that come before any work, and the way from a
//! failure inside to a status outside.

use std::sync::Arc;

use conclave_proto::{etcdserverpb as etcd, internal};
use conclave_state_machine::response::{Applied, Response as Answer};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::status::{self, Fault};

/// Shared by all services of one node; clones are cheap.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) node: Arc<Node>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    /// Logical size at which writes are refused; `None` for no quota.
    pub(crate) quota_bytes: Option<i64>,
}

impl Context {
    /// Refuses a call that asked (`hasleader: true`) to fail rather than wait for a leader.
    pub(crate) fn check_metadata(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if must_have_leader(metadata) && !self.node.has_leader() {
            return Err(Fault::NoLeader.into());
        }
        Ok(())
    }

    /// A header that states `revision`.
    pub(crate) fn header(&self, revision: i64) -> etcd::ResponseHeader {
        self.node.header(revision)
    }

    /// A header that states the current revision.
    pub(crate) fn current_header(&self) -> etcd::ResponseHeader {
        self.header(self.node.reader().head().revision)
    }

    /// Waits until this member has applied all that was acknowledged before the call.
    pub(crate) async fn read_barrier(&self) -> Result<(), Status> {
        self.node.read_barrier().await.map_err(|error| status::from_read_index(&error))
    }

    /// Proposes a command; returns its answer and the revision after it.
    pub(crate) async fn propose(
        &self,
        command: internal::command::Command,
    ) -> Result<(Answer, i64), Status> {
        let command = internal::Command { command: Some(command) };
        let applied = self.node.propose(command).await;
        let Applied { outcome, revision, .. } =
            applied.map_err(|error| status::from_propose(&error))?;
        match outcome {
            Ok(answer) => Ok((answer, revision)),
            Err(rejection) => Err(status::from_rejection(&rejection)),
        }
    }

    /// Refuses a request that would not fit into etcd's log.
    pub(crate) fn check_size(&self, request: &impl prost::Message) -> Result<(), Status> {
        let bytes = super::limits::logged_bytes(request, self.node.member_id());
        if bytes > self.limits.request_bytes_max {
            return Err(Fault::RequestTooLarge.into());
        }
        Ok(())
    }

    /// Refuses what would exceed the quota, and tells the cluster with an alarm.
    pub(crate) async fn check_quota(&self, cost_bytes: usize) -> Result<(), Status> {
        let Some(quota_bytes) = self.quota_bytes else { return Ok(()) };
        let cost_bytes = i64::try_from(cost_bytes).unwrap_or(i64::MAX);
        let used_bytes = self.node.reader().total_bytes();
        if cost_bytes == 0 || used_bytes.saturating_add(cost_bytes) < quota_bytes {
            return Ok(());
        }
        // As in etcd: the one request is refused whatever becomes of the alarm, and only an operator
        // clears it.
        let alarm = etcd::AlarmRequest {
            action: etcd::alarm_request::AlarmAction::Activate as i32,
            member_id: self.node.member_id(),
            alarm: etcd::AlarmType::Nospace as i32,
        };
        if let Err(error) = self.propose(internal::command::Command::Alarm(alarm)).await {
            tracing::warn!(error = error.message(), "failed to raise alarm");
        }
        Err(Fault::NoSpace.into())
    }
}

/// The answer of another command than was proposed cannot come back: the command decides it.
pub(crate) fn mismatch() -> Status {
    Status::internal("conclave: the answer does not belong to the request")
}

/// Whether the client asked (`hasleader: true`) to fail without a leader.
pub(crate) fn must_have_leader(metadata: &MetadataMap) -> bool {
    metadata.get("hasleader").is_some_and(|value| value.as_bytes() == b"true")
}
