//! Random requests over a few keys: most valid, some wrong in every way the interface has a word for.

use bytes::Bytes;
use conclave_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use conclave_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use conclave_proto::etcdserverpb::watch_create_request::FilterType;
use conclave_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    WatchCreateRequest, request_op,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::answer::Answer;
use super::step::Step;

const KEYS: [&[u8]; 14] = [
    b"a",
    b"aa",
    b"ab",
    b"b",
    b"b\0",
    b"b1",
    b"c",
    b"ca",
    b"cb",
    b"cc",
    b"d",
    b"\xff",
    b"\xff\xff",
    b"\0",
];
/// The watches that end at a known event watch this key, which only [`Generator::watch`] writes.
const MARKER: &[u8] = b"~marker";
const LEASES_MAX: usize = 8;
pub(super) const LEASE_TTL_SECONDS: i64 = 100_000;
const DEPTH_MAX: usize = 3;

/// Makes steps; knows roughly what the servers hold.
pub(super) struct Generator {
    rng: StdRng,
    revision: i64,
    compacted: i64,
    leases: Vec<i64>,
    next_lease: i64,
    /// A short lease that has to be revoked before it can expire.
    to_revoke: Option<i64>,
    /// What has to follow the marker of a watch.
    pending_watch: bool,
    values: u64,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            revision: 1,
            compacted: 0,
            leases: Vec::new(),
            next_lease: 1000,
            to_revoke: None,
            pending_watch: false,
            values: 0,
        }
    }

    /// Takes in what the reference answered.
    pub(super) fn learn(&mut self, step: &Step, answer: &Answer) {
        let revision =
            |header: &Option<ResponseHeader>| header.as_ref().map_or(0, |header| header.revision);
        let seen = match answer {
            Answer::Put(answer) => revision(&answer.header),
            Answer::Delete(answer) => revision(&answer.header),
            Answer::Range(answer) => revision(&answer.header),
            Answer::Txn(answer) => revision(&answer.header),
            Answer::Revoke(answer) => revision(&answer.header),
            _ => 0,
        };
        self.revision = self.revision.max(seen);
        match (step, answer) {
            // Of a marker that must not be written there is no event.
            (Step::Put(_), Answer::Error(..)) => self.pending_watch = false,
            (Step::Compact(request), Answer::Compact(_)) => self.compacted = request.revision,
            (Step::Grant(request), Answer::Grant(_)) if request.ttl >= LEASE_TTL_SECONDS => {
                self.leases.push(request.id);
            }
            (Step::Grant(_), Answer::Grant(answer)) => self.to_revoke = Some(answer.id),
            (Step::Revoke(request), Answer::Revoke(_)) => {
                self.leases.retain(|&id| id != request.id)
            }
            _ => {}
        }
    }

    /// The put of a marker, followed by a watch that ends at it.
    pub(super) fn watch(&mut self) -> Step {
        self.pending_watch = true;
        let value = self.value();
        Step::Put(PutRequest { key: Bytes::from_static(MARKER), value, ..Default::default() })
    }

    pub(super) fn next(&mut self) -> Step {
        if std::mem::take(&mut self.pending_watch) {
            return self.watch_request();
        }
        if let Some(id) = self.to_revoke.take() {
            return Step::Revoke(LeaseRevokeRequest { id });
        }
        match self.rng.random_range(0..1000) {
            0..300 => Step::Put(self.put()),
            300..380 => Step::Delete(self.delete()),
            380..620 => Step::Range(self.range()),
            620..910 => Step::Txn(self.txn(0)),
            910..925 => Step::Compact(self.compaction()),
            925..945 => Step::Grant(self.grant()),
            945..955 => Step::Revoke(LeaseRevokeRequest { id: self.lease_id() }),
            955..970 => Step::KeepAlive(self.lease_id()),
            970..990 => {
                let (id, keys) = (self.lease_id(), self.chance(70));
                Step::TimeToLive(LeaseTimeToLiveRequest { id, keys })
            }
            _ => Step::Leases,
        }
    }

    /// Whether the next step is decided already.
    pub(super) fn is_bound(&self) -> bool {
        self.pending_watch || self.to_revoke.is_some()
    }

    /// Whether the history begins just there.
    pub(super) fn is_compacted(&self, revision: i64) -> bool {
        revision > 0 && revision == self.compacted
    }

    /// A number below `below`.
    pub(super) fn roll(&mut self, below: usize) -> usize {
        self.rng.random_range(0..below)
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(&mut self.rng).expect("invariant: never empty")
    }

    pub(super) fn key(&mut self) -> Bytes {
        if self.chance(1) {
            return Bytes::new();
        }
        Bytes::from_static(self.pick(&KEYS))
    }

    pub(super) fn range_end(&mut self) -> Bytes {
        match self.rng.random_range(0..10) {
            0..5 => Bytes::new(),
            5 => Bytes::from_static(b"\0"),
            _ => self.key(),
        }
    }

    pub(super) fn value(&mut self) -> Bytes {
        // Unique, so that sorting by value has no ties; in an order unlike that of the keys.
        self.values += 1;
        let scattered = self.values.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        Bytes::from(format!("{scattered:08x}-{}", self.values))
    }

    pub(super) fn lease_id(&mut self) -> i64 {
        if self.leases.is_empty() || self.chance(10) {
            return self.pick(&[1, 77, -3]);
        }
        let leases = self.leases.clone();
        self.pick(&leases)
    }

    /// Current, past, compacted, future, negative.
    pub(super) fn some_revision(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0..8 => 0,
            8..16 => self.rng.random_range(self.compacted.min(self.revision)..=self.revision),
            16 => self.compacted,
            17 => self.compacted - 1,
            18 => self.revision + 1,
            _ => -1,
        }
    }

    fn put(&mut self) -> PutRequest {
        let (ignore_value, ignore_lease) = (self.chance(8), self.chance(8));
        let with_value = !ignore_value || self.chance(20);
        let with_lease = self.chance(20);
        PutRequest {
            key: self.key(),
            value: if with_value { self.value() } else { Bytes::new() },
            lease: if with_lease { self.lease_id() } else { 0 },
            prev_kv: self.chance(30),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            prev_kv: self.chance(50),
        }
    }

    fn range(&mut self) -> RangeRequest {
        let bound = |generator: &mut Self| {
            if generator.chance(10) {
                generator.rng.random_range(0..=generator.revision)
            } else {
                0
            }
        };
        let orders = [SortOrder::None, SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
        let targets = [
            SortTarget::Key,
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ];
        // Unknown numbers are not among them: 3.4 ignores them, 3.7 answers `invalid sort option`.
        RangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            limit: self.pick(&[0, 0, 0, 1, 2, 3, 5, 100, -1]),
            revision: self.some_revision(),
            sort_order: self.pick(&orders).into(),
            sort_target: self.pick(&targets).into(),
            serializable: self.chance(30),
            keys_only: self.chance(15),
            count_only: self.chance(10),
            min_mod_revision: bound(self),
            max_mod_revision: bound(self),
            min_create_revision: bound(self),
            max_create_revision: bound(self),
        }
    }

    fn txn(&mut self, depth: usize) -> TxnRequest {
        let compares = self.rng.random_range(0..3);
        TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.branch(depth),
            failure: self.branch(depth),
        }
    }

    fn branch(&mut self, depth: usize) -> Vec<RequestOp> {
        // Rarely too long for the limit of 128.
        let count =
            if self.rng.random_range(0..300) == 0 { 130 } else { self.rng.random_range(0..4) };
        (0..count).map(|_| RequestOp { request: self.operation(depth) }).collect()
    }

    fn operation(&mut self, depth: usize) -> Option<request_op::Request> {
        Some(match self.rng.random_range(0..100) {
            0..40 => request_op::Request::RequestPut(self.put()),
            40..52 => request_op::Request::RequestDeleteRange(self.delete()),
            52..82 => request_op::Request::RequestRange(self.range()),
            82..99 if depth < DEPTH_MAX => request_op::Request::RequestTxn(self.txn(depth + 1)),
            99 => return None,
            _ => request_op::Request::RequestPut(self.put()),
        })
    }

    fn compare(&mut self) -> Compare {
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ];
        let targets = [
            CompareTarget::Version,
            CompareTarget::Create,
            CompareTarget::Mod,
            CompareTarget::Value,
            CompareTarget::Lease,
        ];
        let target = self.pick(&targets);
        // Sometimes the operand of another target, or none.
        let operand = if self.chance(3) { self.pick(&targets) } else { target };
        let revision = self.rng.random_range(0..=self.revision);
        let union = match operand {
            CompareTarget::Version => TargetUnion::Version(self.rng.random_range(0..4)),
            CompareTarget::Create => TargetUnion::CreateRevision(revision),
            CompareTarget::Mod => TargetUnion::ModRevision(revision),
            CompareTarget::Value => TargetUnion::Value(self.value()),
            CompareTarget::Lease => TargetUnion::Lease(self.pick(&[0, 0, 1001, 1005])),
        };
        Compare {
            result: self.pick(&results).into(),
            target: target.into(),
            key: self.key(),
            target_union: (!self.chance(3)).then_some(union),
            range_end: if self.chance(20) { self.range_end() } else { Bytes::new() },
        }
    }

    fn compaction(&mut self) -> CompactionRequest {
        let revision = match self.rng.random_range(0..10) {
            0 => self.revision + 1,
            1 => self.compacted,
            2 => self.revision,
            _ => self.rng.random_range(self.compacted.min(self.revision)..=self.revision),
        };
        CompactionRequest { revision, physical: self.chance(50) }
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        self.next_lease += 1;
        if self.leases.len() >= LEASES_MAX || self.chance(20) {
            // Wrong: taken, too long, too short.
            let taken = self.leases.first().copied().unwrap_or(self.next_lease);
            let next = self.next_lease;
            let (id, ttl) = self.pick(&[
                (taken, LEASE_TTL_SECONDS),
                (next, 9_000_000_001),
                (next, -5),
                (next, 1),
            ]);
            return LeaseGrantRequest { ttl, id };
        }
        LeaseGrantRequest { ttl: LEASE_TTL_SECONDS, id: self.next_lease }
    }

    fn watch_request(&mut self) -> Step {
        // Version difference: before 3.4.34 a tombstone at the compacted revision itself is lost.
        let oldest = (self.compacted + 1).min(self.revision);
        let start = if self.chance(10) {
            self.compacted - 1
        } else {
            self.rng.random_range(oldest..=self.revision)
        };
        let filters = match self.rng.random_range(0..8) {
            0 => vec![FilterType::Nodelete.into()],
            // Without puts the marker would not come: such a watch is left to the watch tests.
            _ => Vec::new(),
        };
        let (key, range_end) = match self.rng.random_range(0..3) {
            0 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            1 => (Bytes::from_static(b"b"), Bytes::from_static(b"\x7f")),
            _ => (Bytes::from_static(b"c"), Bytes::from_static(b"\0")),
        };
        let prev_kv = self.chance(70);
        let request = WatchCreateRequest {
            key,
            range_end,
            start_revision: start.max(1),
            filters,
            prev_kv,
            fragment: self.chance(20),
            ..Default::default()
        };
        Step::Watch(request, self.revision)
    }
}
