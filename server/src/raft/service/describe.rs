//! Answers a starting member that asks about the cluster and cannot take part in it yet.

use std::sync::atomic::Ordering;
use std::time::Duration;

use conclave_proto::internal;
use conclave_raft_store::codec;
use conclave_state_machine::members;
use openraft::async_runtime::WatchReceiver;
use tonic::Status;

use super::{OTHER_CLUSTER, PeerService, Serving};

/// How long a member that knows a leader may take to learn what is committed, before it answers a
/// starting member. Less than the caller's own timeout.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

impl Serving {
    /// Applies all that a quorum has committed by now; `false` if that cannot be learned soon.
    async fn catch_up(&self) -> bool {
        if !self.route.has_leader() {
            return false;
        }
        let applied = async {
            let index = self.read_index.confirm().await.ok()?;
            self.reader.wait_applied(index).await;
            Some(())
        };
        matches!(tokio::time::timeout(CONFIRM_TIMEOUT, applied).await, Ok(Some(())))
    }
}

impl PeerService {
    /// What this member knows about its cluster, for a starting member.
    pub(super) async fn described(
        &self,
        request: internal::DescribeRequest,
    ) -> Result<internal::DescribeResponse, Status> {
        let internal::DescribeRequest { cluster_id: asked, from, is_founding, is_removal, run } =
            request;
        let Some(serving) = self.serving.get() else {
            self.beginning.hear(run);
            let is_starting = !self.is_founding.load(Ordering::Acquire);
            let answer = internal::DescribeResponse { is_starting, ..Default::default() };
            return Ok(answer);
        };
        let links = &serving.route.links;
        if asked != 0 && asked != links.cluster_id() {
            return Err(Status::failed_precondition(OTHER_CLUSTER));
        }
        if is_removal {
            serving.standing.hear_removal();
        }
        let is_confirmed = is_founding && serving.catch_up().await;
        let published = members::all(&serving.reader)
            .map_err(|halt| Status::internal(halt.to_string()))?
            .into_iter()
            .filter(|member| !member.client_urls.is_empty())
            .map(|member| member.id);
        let metrics = serving.route.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let is_initialised = membership.voter_ids().next().is_some();
        Ok(internal::DescribeResponse {
            cluster_id: links.cluster_id(),
            member_id: links.member_id(),
            leader: metrics.current_leader.unwrap_or(0),
            term: metrics.current_term,
            membership: is_initialised.then(|| codec::membership_message(membership)),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            published: published.collect(),
            caller_is_removed: serving.standing.is_removed(from),
            is_starting: false,
            is_confirmed,
            run: self.beginning.run,
        })
    }
}
