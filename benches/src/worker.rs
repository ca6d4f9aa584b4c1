//! One client of a unary workload: chooses the next request, and checks its answer.

use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::etcdserverpb::{
    Compare, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
    compare, request_op, response_op,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tonic::Status;

use crate::connection::Connection;
use crate::options::{Load, Workload};

const KEY_PREFIX: &str = "/bench/";
const GRANT_TTL_SECONDS: i64 = 3600;

/// The keys and the value of a run, created once and shared.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) keys: Vec<Bytes>,
    pub(crate) value: Bytes,
    pub(crate) range_end: Bytes,
}

impl Material {
    pub(crate) fn new(load: &Load) -> Self {
        let keys = (0..load.keys).map(|number| Bytes::from(key_name(number))).collect();
        let mut rng = SmallRng::seed_from_u64(1);
        let value: Vec<u8> = (0..load.value_bytes).map(|_| rng.random()).collect();
        Self { keys, value: Bytes::from(value), range_end: Bytes::from_static(b"/bench0") }
    }
}

fn key_name(number: usize) -> String {
    // 32 bytes, as in the published measurements.
    format!("{KEY_PREFIX}{number:025}")
}

/// Sends one request after the other.
pub(crate) struct Worker {
    workload: Workload,
    kv: KvClient<Connection>,
    lease: LeaseClient<Connection>,
    material: Arc<Material>,
    rng: SmallRng,
    read_percent: u32,
    limit: usize,
    /// The part of the keys that only this client updates with compares; `own_revisions` are their
    /// last known mod revisions.
    own_keys: std::ops::Range<usize>,
    own_revisions: Vec<i64>,
}

impl Worker {
    pub(crate) fn new(
        (workload, load): (Workload, &Load),
        index: usize,
        connection: Connection,
        material: Arc<Material>,
    ) -> Self {
        let share = (material.keys.len() / load.clients).max(1);
        let first = (index * share) % material.keys.len();
        let own_keys = first..(first + share).min(material.keys.len());
        let origin = connection.origin();
        Self {
            workload,
            kv: KvClient::with_origin(connection.clone(), origin.clone()),
            lease: LeaseClient::with_origin(connection, origin),
            rng: SmallRng::seed_from_u64(index as u64),
            read_percent: load.read_percent,
            limit: load.limit,
            own_revisions: vec![0; own_keys.len()],
            own_keys,
            material,
        }
    }

    /// Sends the next request and waits for its answer.
    pub(crate) async fn step(&mut self) -> Result<(), Status> {
        match self.workload {
            Workload::Put => self.put().await,
            Workload::Get => self.get(false).await,
            Workload::GetSerializable => self.get(true).await,
            Workload::Range => self.range().await,
            Workload::Txn => self.txn().await,
            Workload::Mixed if self.rng.random_range(0..100) < self.read_percent => {
                self.get(false).await
            }
            Workload::Mixed => self.put().await,
            Workload::LeaseGrant => self.grant().await,
            Workload::WatchFanout
            | Workload::WatchLatency
            | Workload::KeepAlive
            | Workload::Heartbeats
            | Workload::Lock
            | Workload::LockContended
            | Workload::LockNative
            | Workload::LockNativeContended => {
                Err(Status::internal("streams and locks are driven elsewhere"))
            }
        }
    }

    fn random_key(&mut self) -> Bytes {
        let index = self.rng.random_range(0..self.material.keys.len());
        self.material.keys[index].clone()
    }

    async fn put(&mut self) -> Result<(), Status> {
        let request = PutRequest {
            key: self.random_key(),
            value: self.material.value.clone(),
            ..Default::default()
        };
        self.kv.put(request).await.map(drop)
    }

    async fn get(&mut self, serializable: bool) -> Result<(), Status> {
        let request = RangeRequest { key: self.random_key(), serializable, ..Default::default() };
        let answer = self.kv.range(request).await?.into_inner();
        expect(answer.kvs.len() == 1, "the key was loaded")
    }

    async fn range(&mut self) -> Result<(), Status> {
        let last = self.material.keys.len().saturating_sub(self.limit);
        let key = self.material.keys[self.rng.random_range(0..=last)].clone();
        let limit = self.limit as i64;
        let range_end = self.material.range_end.clone();
        let request = RangeRequest { key, range_end, limit, ..Default::default() };
        let answer = self.kv.range(request).await?.into_inner();
        expect(answer.kvs.len() == self.limit.min(self.material.keys.len()), "a full range")
    }

    async fn grant(&mut self) -> Result<(), Status> {
        let request = LeaseGrantRequest { ttl: GRANT_TTL_SECONDS, id: 0 };
        self.lease.lease_grant(request).await.map(drop)
    }

    async fn txn(&mut self) -> Result<(), Status> {
        let slot = self.rng.random_range(0..self.own_revisions.len());
        let key = self.material.keys[self.own_keys.start + slot].clone();
        let request = update(key, self.material.value.clone(), self.own_revisions[slot]);
        let answer = self.kv.txn(request).await?.into_inner();
        self.own_revisions[slot] = revision_after(&answer)?;
        Ok(())
    }
}

fn update(key: Bytes, value: Bytes, mod_revision: i64) -> TxnRequest {
    let compare = Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(compare::TargetUnion::ModRevision(mod_revision)),
        ..Default::default()
    };
    let put = PutRequest { key: key.clone(), value, ..Default::default() };
    let get = RangeRequest { key, ..Default::default() };
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(request_op::Request::RequestRange(get)) }],
    }
}

fn revision_after(answer: &TxnResponse) -> Result<i64, Status> {
    if answer.succeeded {
        return Ok(answer.header.as_ref().map_or(0, |header| header.revision));
    }
    let Some(response_op::Response::ResponseRange(range)) =
        answer.responses.first().and_then(|op| op.response.as_ref())
    else {
        return Err(Status::internal("the failure branch answers with a range"));
    };
    Ok(range.kvs.first().map_or(0, |kv| kv.mod_revision))
}

fn expect(holds: bool, what: &str) -> Result<(), Status> {
    if holds { Ok(()) } else { Err(Status::internal(format!("wrong answer: expected {what}"))) }
}

/// Writes all keys of `material` in transactions, `in_flight` at a time.
///
/// # Errors
/// If a write fails.
pub(crate) async fn load_keys(
    connections: &[Connection],
    material: Arc<Material>,
    in_flight: usize,
) -> anyhow::Result<()> {
    const KEYS_PER_TXN: usize = 100;
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..in_flight {
        let connection = connections[index % connections.len()].clone();
        let (material, next) = (material.clone(), next.clone());
        tasks.spawn(async move {
            let origin = connection.origin();
            let mut kv = KvClient::with_origin(connection, origin);
            loop {
                let first = next.fetch_add(KEYS_PER_TXN, std::sync::atomic::Ordering::Relaxed);
                let Some(keys) = material.keys.get(first..) else { break };
                let success: Vec<RequestOp> = keys
                    .iter()
                    .take(KEYS_PER_TXN)
                    .map(|key| put_op(key.clone(), material.value.clone()))
                    .collect();
                if success.is_empty() {
                    break;
                }
                kv.txn(TxnRequest { success, ..Default::default() }).await?;
            }
            Ok::<(), Status>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn put_op(key: Bytes, value: Bytes) -> RequestOp {
    let put = PutRequest { key, value, ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestPut(put)) }
}
