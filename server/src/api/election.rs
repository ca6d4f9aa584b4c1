//! etcd's Election service: a queue whose first contender leads, and whose value anybody can
//! observe.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::mvccpb;
use conclave_proto::v3electionpb as pb;
use conclave_state_machine::command::{Caller, Range, SortOrder, SortTarget};
use etcd::request_op::Request as Operation;
use etcd::watch_create_request::FilterType;
use futures::stream::{self, Stream};
use pb::election_server::Election;
use tonic::{Request, Response, Status};

use super::context::{self, Context};
use super::kv::read;
use super::queue::{
    Contender, Place, Queue, answer_in_time, delete_of, end_of, if_created_at, prefix_of,
};
use super::{convert, stream_end};
use crate::auth::{RightsCheck, caller_of};
use crate::metrics::Method;
use crate::status;
use crate::watch::LocalWatch;

/// Error texts of etcd's own recipe.
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";
const NO_LEADER_KEY: &str = "\"leader\" field must be provided";
/// etcd has no such text: there a candidate whose key is gone keeps waiting, and may believe that
/// it leads.
const LOST: &str = "election: session is expired";

/// Answers election calls.
#[derive(Clone)]
pub(crate) struct ElectionService {
    pub(super) queue: Arc<Queue>,
}

type Leaders = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

impl ElectionService {
    async fn answer_campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<pb::CampaignResponse, Status> {
        let (caller, deadline, request) = self.queue.accept(request)?;
        let pb::CampaignRequest { name, lease, value } = request;
        let contender = Contender { name: name.clone(), lease, value: value.clone() };
        let elected = async {
            let waiter = self.queue.enter(&caller, contender).await?;
            let found = waiter.place().found.as_ref();
            if found.is_some_and(|found| *found != value) {
                self.say_anew(&caller, waiter.place(), value).await?;
            }
            let (place, _) = waiter.first(LOST).await?;
            let Place { key, create_revision: rev, lease, entered, .. } = place;
            let leader = pb::LeaderKey { name, key, rev, lease };
            Ok(pb::CampaignResponse { header: Some(entered), leader: Some(leader) })
        };
        answer_in_time(deadline, elected).await
    }

    /// Updates the value of a candidate that campaigns again; it keeps its place in the queue.
    async fn say_anew(&self, caller: &Caller, place: &Place, value: Bytes) -> Result<(), Status> {
        let (key, lease) = (place.key.clone(), place.lease);
        let put = etcd::PutRequest { key, value, lease, ..Default::default() };
        let txn = place.if_unchanged(Operation::RequestPut(put));
        if self.queue.txn(caller, txn).await?.succeeded {
            Ok(())
        } else {
            Err(status::unknown(NOT_LEADER))
        }
    }

    async fn answer_proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<pb::ProclaimResponse, Status> {
        let (caller, deadline, request) = self.queue.accept(request)?;
        let pb::ProclaimRequest { leader, value } = request;
        let leader = leader.ok_or_else(|| status::unknown(NO_LEADER_KEY))?;
        let proclaimed = async {
            let lease = self.queue.lease_or_new(&caller, leader.lease).await?;
            let key = leader.key.clone();
            let put = etcd::PutRequest { key, value, lease, ..Default::default() };
            let txn = if_created_at(&leader.key, leader.rev, Operation::RequestPut(put));
            let answer = self.queue.txn(&caller, txn).await?;
            if !answer.succeeded {
                return Err(status::unknown(NOT_LEADER));
            }
            Ok(pb::ProclaimResponse { header: answer.header })
        };
        answer_in_time(deadline, proclaimed).await
    }

    /// As in etcd, it is no error to resign a leadership that is held by somebody else by now.
    async fn answer_resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<pb::ResignResponse, Status> {
        let (caller, deadline, request) = self.queue.accept(request)?;
        let pb::ResignRequest { leader } = request;
        let leader = leader.ok_or_else(|| status::unknown(NO_LEADER_KEY))?;
        let txn = if_created_at(&leader.key, leader.rev, delete_of(&leader.key));
        let answer = answer_in_time(deadline, self.queue.txn(&caller, txn)).await?;
        Ok(pb::ResignResponse { header: answer.header })
    }

    async fn answer_leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<pb::LeaderResponse, Status> {
        let context = self.queue.context();
        let (caller, deadline, pb::LeaderRequest { name }) = self.queue.accept(request)?;
        let read = async {
            context.read_barrier().await?;
            let prefix = prefix_of(&name);
            let look = first_of(context, &prefix);
            let wanted = RightsCheck::queue(&name);
            let (leader, revision) = context.auth.checked(&caller, &wanted, look).await?;
            let kv = leader.ok_or_else(|| status::unknown(NO_LEADER))?;
            Ok(pb::LeaderResponse { header: Some(context.header(revision)), kv: Some(kv) })
        };
        answer_in_time(deadline, read).await
    }

    async fn answer_observe(&self, request: Request<pb::LeaderRequest>) -> Result<Leaders, Status> {
        let context = self.queue.context();
        context.check_metadata(request.metadata())?;
        let must_have_leader = context::must_have_leader(request.metadata());
        let caller = caller_of(request.extensions());
        let name = request.into_inner().name;
        let observer = Observer {
            context: context.clone(),
            prefix: prefix_of(&name),
            watch: None,
            due: VecDeque::new(),
        };
        let barrier = answer_in_time(None, context.read_barrier());
        barrier.await?;
        let wanted = RightsCheck::queue(&name);
        context.auth.check(&caller, &wanted).map_err(|status| status::unknown(status.message()))?;
        let leaders = stream::try_unfold(observer, |mut observer| async move {
            let next = observer.next().await?;
            Ok(Some((next, observer)))
        });
        let leaders = context.auth.guard(caller, wanted, Box::pin(leaders));
        Ok(stream_end::guard(context, leaders, must_have_leader))
    }
}

/// The key with `prefix` that was created first, and the revision of that answer.
async fn first_of(
    context: &Context,
    prefix: &Bytes,
) -> Result<(Option<mvccpb::KeyValue>, i64), Status> {
    let range = Range {
        key: prefix.clone(),
        range_end: end_of(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend,
        sort_target: SortTarget::Create,
        ..Default::default()
    };
    let (found, revision) = read(context, range).await?;
    Ok((found.kvs.into_iter().next().map(convert::key_value), revision))
}

/// Observes an election: every leader and every value it proclaims, beginning with the current
/// leader.
struct Observer {
    context: Context,
    prefix: Bytes,
    /// Watches the leader's key, or all candidates' keys while there is no leader.
    watch: Option<Following>,
    /// Observed but not yet yielded.
    due: VecDeque<pb::LeaderResponse>,
}

/// What an [`Observer`] waits for.
struct Following {
    watch: LocalWatch,
    /// The watch follows the leader's key; if false, it waits for a candidate, who will lead.
    has_leader: bool,
}

impl Observer {
    /// Waits for the next leader, or for the next value of the current one.
    async fn next(&mut self) -> Result<pb::LeaderResponse, Status> {
        loop {
            if let Some(next) = self.due.pop_front() {
                return Ok(next);
            }
            match &mut self.watch {
                None => self.look().await?,
                Some(following) => {
                    let seen = following.watch.next().await.map_err(status::from_watch_end)?;
                    self.take(seen);
                }
            }
        }
    }

    /// Finds the current leader in the applied state. No barrier is needed: what made it look again
    /// is applied.
    async fn look(&mut self) -> Result<(), Status> {
        let (leader, revision) = first_of(&self.context, &self.prefix).await?;
        match leader {
            Some(kv) => self.follow(kv, self.context.header(revision)),
            None => {
                let create = etcd::WatchCreateRequest {
                    key: self.prefix.clone(),
                    range_end: end_of(&self.prefix),
                    start_revision: revision + 1,
                    filters: vec![FilterType::Nodelete as i32],
                    ..Default::default()
                };
                self.watch = Some(self.following(create, false));
            }
        }
        Ok(())
    }

    /// Yields a leader and watches its key from there on.
    fn follow(&mut self, kv: mvccpb::KeyValue, header: etcd::ResponseHeader) {
        let create = etcd::WatchCreateRequest {
            key: kv.key.clone(),
            start_revision: header.revision + 1,
            ..Default::default()
        };
        self.watch = Some(self.following(create, true));
        self.due.push_back(pb::LeaderResponse { header: Some(header), kv: Some(kv) });
    }

    fn following(&self, create: etcd::WatchCreateRequest, has_leader: bool) -> Following {
        let mut watch = LocalWatch::open(self.context.node.watch());
        watch.add(create);
        Following { watch, has_leader }
    }

    fn take(&mut self, seen: etcd::WatchResponse) {
        let has_leader = self.watch.as_ref().is_some_and(|following| following.has_leader);
        if seen.canceled {
            // The watch was compacted. The missed values are gone, but the current leader can still
            // be read.
            self.watch = None;
        }
        for event in seen.events {
            let is_put = event.r#type() == mvccpb::event::EventType::Put;
            let Some(kv) = event.kv else { continue };
            if !is_put {
                self.watch = None;
                return;
            }
            let header = self.context.header(kv.mod_revision);
            if !has_leader {
                return self.follow(kv, header);
            }
            self.due.push_back(pb::LeaderResponse { header: Some(header), kv: Some(kv) });
        }
    }
}

#[tonic::async_trait]
impl Election for ElectionService {
    type ObserveStream = Leaders;

    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        self.queue.context().metrics.call(Method::Campaign, self.answer_campaign(request)).await
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        self.queue.context().metrics.call(Method::Proclaim, self.answer_proclaim(request)).await
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        self.queue.context().metrics.call(Method::Leader, self.answer_leader(request)).await
    }

    async fn observe(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<Leaders>, Status> {
        self.queue.context().metrics.call(Method::Observe, self.answer_observe(request)).await
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        self.queue.context().metrics.call(Method::Resign, self.answer_resign(request)).await
    }
}
