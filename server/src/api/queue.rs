//! The queue behind etcd's locks and elections: the first in it holds the name.
//!
//! A contender puts a key with its lease under `<name>/`. The key's create revision is its place in
//! the queue, as in the recipe of etcd's own client, so callers of this service and of the recipe
//! queue behind each other. A contender waits only for the deletion of the key just before its own,
//! so a hand-over wakes one waiter.
//!
//! All waiting is local. The contender's key was applied on this member before its put was
//! answered. So everything ahead of it is known here, nothing can get ahead of it later, and what
//! is deleted here stays deleted: neither polling nor asking the leader could tell more.
//!
//! `waiter` waits for its turn; `standing` finds what it waits behind; `crowd` tracks the waiters
//! of this member.

mod crowd;
mod standing;
mod waiter;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::command::Command as Message;
use conclave_state_machine::command::Caller;
use conclave_state_machine::leases;
use conclave_state_machine::locks::claim::Claim;
use conclave_state_machine::locks::queue;
use etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd::request_op::Request as Operation;
use etcd::watch_create_request::FilterType;
use tonic::{Request, Status};

use self::crowd::Crowd;
use self::waiter::Waiter;
use super::carried::Carried;
use super::context::{self, Context, mismatch};
use super::kv::KvService;
use super::lease::LeaseService;
use crate::auth::RightsCheck;
use crate::propose::Haste;
use crate::status;
use crate::watch::LocalWatch;

/// TTL in seconds of the lease granted to a caller that brings none. Nobody renews it.
const LEASE_TTL_SECONDS: i64 = 60;
/// The lease has a shared place in this queue already. It must not be reported as the only holder.
const SHARED: &str = "conclave: the lease has a share of this name already: release that, or lock with another lease";

/// Lets contenders wait for their turn.
pub(super) struct Queue {
    kv: KvService,
    lease: LeaseService,
    crowd: Arc<Crowd>,
}

/// What a caller wants to put into the queue.
#[derive(Clone)]
pub(super) struct Contender {
    /// The name of the lock or election.
    pub(super) name: Bytes,
    /// The lease that the contender's key is attached to; 0 to grant a new one.
    pub(super) lease: i64,
    /// The value of the contender's key.
    pub(super) value: Bytes,
}

/// A contender's key in the queue.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The caller that entered the queue.
    caller: Caller,
    prefix: Bytes,
    pub(super) key: Bytes,
    pub(super) create_revision: i64,
    pub(super) lease: i64,
    /// Header of the transaction that put or found the key.
    pub(super) entered: etcd::ResponseHeader,
    /// The value of the key, if the lease was in the queue already.
    pub(super) found: Option<Bytes>,
}

impl Queue {
    pub(super) fn new(context: Context) -> Self {
        let kv = KvService { context: context.clone() };
        Self { kv, lease: LeaseService { context }, crowd: Arc::default() }
    }

    pub(super) fn context(&self) -> &Context {
        &self.kv.context
    }

    /// Splits a call into caller, deadline and message. With `hasleader: true` the call is refused
    /// if there is no leader now; if the leader is lost later, the call just waits.
    pub(super) fn accept<T>(
        &self,
        call: Request<T>,
    ) -> Result<(Caller, Option<Duration>, T), Status> {
        let deadline = context::deadline(call.metadata());
        let (caller, message) = self.context().accept(call)?;
        Ok((caller, deadline, message))
    }

    /// Returns `lease`, or for 0 a new lease that nobody renews.
    pub(super) async fn lease_or_new(&self, caller: &Caller, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let grant = etcd::LeaseGrantRequest { ttl: LEASE_TTL_SECONDS, id: 0 };
        Ok(self.lease.grant(caller, grant).await?.id)
    }

    /// Proposes a transaction on behalf of `caller`.
    pub(super) async fn txn(
        &self,
        caller: &Caller,
        txn: etcd::TxnRequest,
    ) -> Result<etcd::TxnResponse, Status> {
        self.kv.transact(caller, txn, Haste::Prompt).await
    }

    /// Deletes a key on behalf of `caller`.
    pub(super) async fn delete(
        &self,
        caller: &Caller,
        key: Bytes,
    ) -> Result<etcd::DeleteRangeResponse, Status> {
        let request = etcd::DeleteRangeRequest { key, ..Default::default() };
        self.kv.delete(caller, request).await
    }

    /// Puts the contender's key unless it exists, and returns a waiter at its place in the queue.
    pub(super) async fn enter(
        self: &Arc<Self>,
        caller: &Caller,
        contender: Contender,
    ) -> Result<Waiter, Status> {
        let put = Arc::clone(self).put_key(caller.clone(), contender);
        // If the caller goes while the key is being put, the resulting waiter is dropped, which
        // deletes the key.
        Carried::new(put, &self.context().background).await
    }

    async fn put_key(
        self: Arc<Self>,
        caller: Caller,
        contender: Contender,
    ) -> Result<Waiter, Status> {
        let lease = self.lease_or_new(&caller, contender.lease).await?;
        let prefix = prefix_of(&contender.name);
        let key = queue::key(&contender.name, lease);
        let put = etcd::PutRequest {
            key: key.clone(),
            value: contender.value,
            lease,
            ..Default::default()
        };
        let get = etcd::RangeRequest { key: key.clone(), ..Default::default() };
        let txn = etcd::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![operation(Operation::RequestPut(put))],
            failure: vec![operation(Operation::RequestRange(get))],
        };
        let answer = self.kv.transact(&caller, txn, self.crowd.haste(&prefix)).await?;
        let entered = answer.header.unwrap_or_default();
        let (create_revision, found) = match answer.responses.into_iter().next() {
            _ if answer.succeeded => (entered.revision, None),
            Some(answer) => found_key(answer)?,
            None => return Err(mismatch()),
        };
        if found.as_deref().and_then(Claim::decode).is_some_and(|claim| !claim.is_exclusive()) {
            return Err(status::unknown(SHARED));
        }
        let place = Place { caller, prefix, key, create_revision, lease, entered, found };
        Ok(Waiter::new(self, place))
    }

    /// Whether the lease that `place` was entered with still exists.
    fn has_lease(&self, place: &Place) -> Result<bool, Status> {
        let lease = leases::lease(self.context().node.reader(), place.lease);
        Ok(lease.map_err(|halt| status::internal(&halt))?.is_some())
    }

    /// Waits until one of `keys` is deleted at revision `from` or later.
    async fn deletion(&self, keys: [Bytes; 2], from: i64) -> Result<(), Status> {
        let mut watch = LocalWatch::open(self.context().node.watch());
        for key in keys {
            watch.add(etcd::WatchCreateRequest {
                key,
                start_revision: from,
                filters: vec![FilterType::Noput as i32],
                ..Default::default()
            });
        }
        // If the watch fails because the history was compacted, it is time to look again, too.
        watch.next().await.map(drop).map_err(status::from_watch_end)
    }

    /// Deletes the key of `place` if it is still the one that was entered. No client asks for this,
    /// so no rights are checked.
    async fn leave(&self, place: &Place) {
        let leave = place.if_unchanged(delete_of(&place.key));
        // Not retried: a client that comes back with its lease finds its key and does not write it,
        // so a late deletion could remove a key that is in use again.
        if let Err(error) = self.context().propose(&Caller::Inside, Message::Txn(leave)).await {
            tracing::warn!(error = error.message(), "a waiter's key stays until its lease ends");
        }
    }
}

impl Place {
    /// A transaction that does `then` if the key is still the one that was entered.
    pub(super) fn if_unchanged(&self, then: Operation) -> etcd::TxnRequest {
        if_created_at(&self.key, self.create_revision, then)
    }

    /// The rights that the owner of this place needs.
    fn wanted(&self) -> RightsCheck {
        RightsCheck::Range(self.prefix.clone(), end_of(&self.prefix))
    }
}

/// Waits for `answer` at most until the client's own deadline: a client that vanished silently must
/// not keep its place for ever. All failures get code Unknown, as in etcd, where these services are
/// clients of the others.
pub(super) async fn answer_in_time<T>(
    deadline: Option<Duration>,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let answer = match deadline {
        Some(deadline) => tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or_else(|_elapsed| Err(status::unknown("context deadline exceeded"))),
        None => answer.await,
    };
    answer.map_err(|status| status::unknown(status.message()))
}

/// The prefix of all contenders' keys for `name`.
pub(super) fn prefix_of(name: &[u8]) -> Bytes {
    Bytes::from([name, b"/"].concat())
}

/// The end of the range of keys with `prefix`, which ends in a slash.
pub(super) fn end_of(prefix: &[u8]) -> Bytes {
    let name = prefix.strip_suffix(b"/").unwrap_or(prefix);
    Bytes::from([name, b"0"].concat())
}

/// A transaction that does `then` if the create revision of `key` is `revision`.
pub(super) fn if_created_at(key: &Bytes, revision: i64, then: Operation) -> etcd::TxnRequest {
    etcd::TxnRequest {
        compare: vec![created_at(key, revision)],
        success: vec![operation(then)],
        failure: Vec::new(),
    }
}

/// The deletion of one key.
pub(super) fn delete_of(key: &Bytes) -> Operation {
    Operation::RequestDeleteRange(etcd::DeleteRangeRequest {
        key: key.clone(),
        ..Default::default()
    })
}

fn created_at(key: &Bytes, revision: i64) -> etcd::Compare {
    etcd::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

fn operation(request: Operation) -> etcd::RequestOp {
    etcd::RequestOp { request: Some(request) }
}

/// Create revision and value of the key that existed already.
fn found_key(answer: etcd::ResponseOp) -> Result<(i64, Option<Bytes>), Status> {
    let Some(etcd::response_op::Response::ResponseRange(range)) = answer.response else {
        return Err(mismatch());
    };
    let kv = range.kvs.into_iter().next().ok_or_else(mismatch)?;
    Ok((kv.create_revision, Some(kv.value)))
}
