//! The Lease service. Grants and revocations are commands. Keep-alives and remaining TTLs are known
//! to the leader only; on any member the lessor asks the leader for them.

use std::time::Duration;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::command::Command as Message;
use conclave_state_machine::command::Caller;
use conclave_state_machine::leases;
use conclave_state_machine::response::Response as Answer;
use etcd::lease_server::Lease;
use futures::stream::{self, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::context::{Context, mismatch};
use super::kv::off_thread;
use super::limits;
use crate::auth::{RightsCheck, caller_of};
use crate::metrics::{Answers, Method, is_failure};
use crate::status::{self, Fault};

/// Most keep-alives of one stream that are renewed together if they arrive together.
const RENEWALS_AT_ONCE_MAX: usize = 256;

/// Answers lease calls.
#[derive(Clone)]
pub(crate) struct LeaseService {
    pub(crate) context: Context,
}

type KeepAlives = Answers<etcd::LeaseKeepAliveResponse>;

impl LeaseService {
    async fn answer_grant(
        &self,
        request: Request<etcd::LeaseGrantRequest>,
    ) -> Result<etcd::LeaseGrantResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        self.grant(&caller, request).await
    }

    /// Grants a lease on behalf of `caller`.
    pub(super) async fn grant(
        &self,
        caller: &Caller,
        mut request: etcd::LeaseGrantRequest,
    ) -> Result<etcd::LeaseGrantResponse, Status> {
        self.context.check_quota(limits::LEASE_COST_BYTES).await?;
        if request.ttl > leases::TTL_SECONDS_MAX {
            return Err(Fault::LeaseTtlTooLarge.into());
        }
        request.ttl = request.ttl.max(ttl_seconds_min(&self.context));
        if request.id == 0 {
            request.id = random_lease_id();
        }
        self.context.grants.check(self.context.node.lessor(), request.id)?;
        match self.context.propose(caller, Message::LeaseGrant(request)).await? {
            (Answer::LeaseGrant { id, ttl }, revision) => Ok(etcd::LeaseGrantResponse {
                header: Some(self.context.header(revision)),
                id,
                ttl,
                error: String::new(),
            }),
            _ => Err(mismatch()),
        }
    }

    async fn answer_revoke(
        &self,
        request: Request<etcd::LeaseRevokeRequest>,
    ) -> Result<etcd::LeaseRevokeResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let message = Message::LeaseRevoke(request);
        let (_, revision) = self.context.propose(&caller, message).await?;
        Ok(etcd::LeaseRevokeResponse { header: Some(self.context.header(revision)) })
    }

    async fn answer_time_to_live(
        &self,
        request: Request<etcd::LeaseTimeToLiveRequest>,
    ) -> Result<etcd::LeaseTimeToLiveResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        // This member must have applied at least what the leader's answer is based on.
        self.context.read_barrier().await?;
        let remaining = self.context.node.lessor().remaining(request.id).await;
        let remaining = remaining.map_err(|error| status::from_lessor(&error))?;
        if !request.keys {
            self.context.auth.check(&caller, &RightsCheck::User)?;
            return self.time_to_live(request, remaining);
        }
        // A lease may have a million keys.
        let service = self.clone();
        let answer = off_thread(move || {
            let wanted = RightsCheck::LeaseKeys(request.id);
            service.context.auth.check(&caller, &wanted)?;
            let answer = service.time_to_live(request, remaining)?;
            // Keys attached since the first check are in the answer, too.
            service.context.auth.check(&caller, &wanted)?;
            Ok(answer)
        });
        answer.await?
    }

    fn time_to_live(
        &self,
        request: etcd::LeaseTimeToLiveRequest,
        remaining: Option<Duration>,
    ) -> Result<etcd::LeaseTimeToLiveResponse, Status> {
        let etcd::LeaseTimeToLiveRequest { id, keys } = request;
        let reader = self.context.node.reader();
        let row = leases::lease(reader, id).map_err(|_halt| status::halted())?;
        let header = Some(self.context.current_header());
        let (Some(remaining), Some(row)) = (remaining, row) else {
            return Ok(etcd::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() });
        };
        let keys = if keys {
            leases::lease_keys(reader, id).map_err(|_halt| status::halted())?
        } else {
            Vec::new()
        };
        let ttl = i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX);
        Ok(etcd::LeaseTimeToLiveResponse { header, id, ttl, granted_ttl: row.ttl, keys })
    }

    async fn answer_leases(
        &self,
        request: Request<etcd::LeaseLeasesRequest>,
    ) -> Result<etcd::LeaseLeasesResponse, Status> {
        let (caller, _) = self.context.accept(request)?;
        let leases = self.context.node.lessor().leases().await;
        let leases = leases.map_err(|error| status::from_lessor(&error))?;
        let leases: Vec<_> = leases.into_iter().map(|(id, _)| etcd::LeaseStatus { id }).collect();
        let context = self.context.clone();
        let answer = off_thread(move || {
            // As in etcd, a caller that may not read the keys of one lease sees no leases at all.
            for lease in &leases {
                context.auth.check(&caller, &RightsCheck::LeaseKeys(lease.id))?;
            }
            Ok(etcd::LeaseLeasesResponse { header: Some(context.current_header()), leases })
        });
        answer.await?
    }
}

/// Shortest TTL of a lease, in seconds. It must outlive a leader election, during which nobody can
/// renew it: as in etcd one and a half election timeouts, rounded up.
pub(crate) fn ttl_seconds_min(context: &Context) -> i64 {
    let timeout = context.node.settings().raft.election_timeout;
    i64::try_from((timeout * 3 / 2).as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

/// A random lease id, positive like etcd's: clients print ids as signed numbers.
pub(crate) fn random_lease_id() -> i64 {
    i64::try_from(rand::random::<u64>() >> 1).unwrap_or(i64::MAX).max(1)
}

/// Renews leases in the order of the requests; requests that arrived together are renewed together.
fn keep_alives(
    context: Context,
    caller: Caller,
    requests: Streaming<etcd::LeaseKeepAliveRequest>,
) -> KeepAlives {
    let answers = requests.ready_chunks(RENEWALS_AT_ONCE_MAX).then(move |requests| {
        let (context, caller) = (context.clone(), caller.clone());
        async move { stream::iter(renew(&context, &caller, requests).await) }
    });
    // A failure ends the stream; answers after it are dropped.
    let mut has_failed = false;
    Box::pin(answers.flatten().take_while(move |answer| {
        let is_wanted = !has_failed;
        has_failed |= answer.is_err();
        std::future::ready(is_wanted)
    }))
}

/// Checks for each of these leases whether the caller may renew it. The caller's name when the
/// stream was opened counts: a token that expires meanwhile, or changes of other users, must not
/// let a lease die.
///
/// # Errors
/// If the caller is not a known user.
pub(crate) async fn may_renew(
    context: &Context,
    caller: &Caller,
    ids: &[i64],
) -> Result<Vec<Result<(), Status>>, Status> {
    if context.auth.rights(caller)?.is_none_or(|rights| rights.is_root) {
        return Ok(vec![Ok(()); ids.len()]);
    }
    // Each lease may have a million keys.
    let (context, caller, ids) = (context.clone(), caller.clone(), ids.to_vec());
    let check = move |id| context.auth.check_by_name(&caller, &RightsCheck::LeaseWrite(id));
    off_thread(move || ids.into_iter().map(check).collect()).await
}

async fn renew(
    context: &Context,
    caller: &Caller,
    requests: Vec<Result<etcd::LeaseKeepAliveRequest, Status>>,
) -> Vec<Result<etcd::LeaseKeepAliveResponse, Status>> {
    let (mut ids, mut failure) = (Vec::with_capacity(requests.len()), None);
    for request in requests {
        if request.as_ref().is_err_and(is_failure) {
            context.metrics.requests.broken_keep_alives().inc();
        }
        match request {
            Ok(request) => ids.push(request.id),
            Err(status) => {
                failure = Some(status);
                break;
            }
        }
    }
    let checks = may_renew(context, caller, &ids).await;
    let checks = checks.unwrap_or_else(|status| vec![Err(status)]);
    // As in etcd the stream ends at the first lease that the caller may not renew.
    if let Some((allowed, Err(status))) = checks.into_iter().enumerate().find(|(_, it)| it.is_err())
    {
        ids.truncate(allowed);
        failure = Some(status);
    }
    context.metrics.received(Method::LeaseKeepAlive, ids.len());
    // As in etcd the header has the revision before the renewal.
    let header = context.current_header();
    let mut answers = Vec::with_capacity(ids.len() + 1);
    match context.node.lessor().renew_all(&ids).await {
        Ok(ttls) => {
            let answer = |(id, ttl)| etcd::LeaseKeepAliveResponse { header: Some(header), id, ttl };
            answers.extend(ids.into_iter().zip(ttls).map(answer).map(Ok));
        }
        Err(error) => failure = Some(status::from_lessor(&error)),
    }
    answers.extend(failure.map(Err));
    answers
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = KeepAlives;

    async fn lease_grant(
        &self,
        request: Request<etcd::LeaseGrantRequest>,
    ) -> Result<Response<etcd::LeaseGrantResponse>, Status> {
        self.context.metrics.call(Method::LeaseGrant, self.answer_grant(request)).await
    }

    async fn lease_revoke(
        &self,
        request: Request<etcd::LeaseRevokeRequest>,
    ) -> Result<Response<etcd::LeaseRevokeResponse>, Status> {
        self.context.metrics.call(Method::LeaseRevoke, self.answer_revoke(request)).await
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<etcd::LeaseKeepAliveRequest>>,
    ) -> Result<Response<KeepAlives>, Status> {
        let answer = async {
            self.context.check_metadata(request.metadata())?;
            let must_have_leader = super::context::must_have_leader(request.metadata());
            let caller = caller_of(request.extensions());
            let answers = keep_alives(self.context.clone(), caller, request.into_inner());
            Ok(super::stream_end::guard(&self.context, answers, must_have_leader))
        };
        self.context.metrics.stream(Method::LeaseKeepAlive, answer).await
    }

    async fn lease_time_to_live(
        &self,
        request: Request<etcd::LeaseTimeToLiveRequest>,
    ) -> Result<Response<etcd::LeaseTimeToLiveResponse>, Status> {
        let answer = Box::pin(self.answer_time_to_live(request));
        self.context.metrics.call(Method::LeaseTimeToLive, answer).await
    }

    async fn lease_leases(
        &self,
        request: Request<etcd::LeaseLeasesRequest>,
    ) -> Result<Response<etcd::LeaseLeasesResponse>, Status> {
        self.context.metrics.call(Method::LeaseLeases, self.answer_leases(request)).await
    }
}
