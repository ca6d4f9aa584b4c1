//! The naive model: a full copy of all live keys for every revision there ever was.

mod query;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave_state_machine::command::{
    AlarmAction, AlarmChange, AlarmKind, Command, DeleteRange, LeaseExpire, LeaseGrant, Put, Range,
    Txn, TxnOp,
};
use conclave_state_machine::response::{
    DeleteRangeResponse, Event, EventKind, KeyValue, LeaseChange, OpResponse, PutResponse,
    RangeResponse, Rejection, Response, TxnResponse,
};

use self::query::{check_compares, check_fields, has_put, holds, is_true, select};

pub(crate) type Snapshot = BTreeMap<Bytes, KeyValue>;

/// The whole history.
pub(crate) struct Model {
    /// `snapshots[revision]`; revision 0 never was.
    snapshots: Vec<Snapshot>,
    pub(crate) compacted: i64,
    pub(crate) events: Vec<Event>,
    leases: BTreeMap<i64, i64>,
    alarms: BTreeSet<(u64, AlarmKind)>,
    pub(crate) term: u64,
}

/// What is left of the history.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) rev_rows: usize,
    pub(crate) key_rows: usize,
    pub(crate) bytes: i64,
}

impl Model {
    pub(crate) fn new() -> Model {
        Model {
            snapshots: vec![Snapshot::new(), Snapshot::new()],
            compacted: -1,
            events: Vec::new(),
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            term: 1,
        }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.snapshots.len() as i64 - 1
    }

    pub(crate) fn live(&self) -> &Snapshot {
        self.snapshots.last().expect("there is always one")
    }

    fn has(&self, kind: AlarmKind) -> bool {
        self.alarms.iter().any(|alarm| alarm.1 == kind)
    }

    /// Carries out a command; the events it made are at the end of `events`.
    pub(crate) fn apply(
        &mut self,
        command: &Command,
    ) -> (Result<Response, Rejection>, Vec<LeaseChange>) {
        let is_about_members = matches!(command, Command::Alarm(_) | Command::MemberPublish(_));
        if self.has(AlarmKind::Corrupt) && !is_about_members {
            return (Err(Rejection::Corrupt), vec![]);
        }
        let grows = match command {
            Command::Put(_) | Command::LeaseGrant(_) => true,
            Command::Txn(txn) => has_put(txn),
            _ => false,
        };
        if grows && self.has(AlarmKind::NoSpace) {
            return (Err(Rejection::NoSpace), vec![]);
        }
        let mut leases = Vec::new();
        let outcome = match command {
            Command::Put(put) => self.put(put).map(Response::Put),
            Command::DeleteRange(delete) => self.delete(delete).map(Response::DeleteRange),
            Command::Txn(txn) => self.txn(txn).map(Response::Txn),
            // The model knows no digest.
            Command::Compact(compact) => {
                self.compact(compact.revision).map(|()| Response::Compact { digest: 0 })
            }
            Command::LeaseGrant(grant) => self.grant(*grant, &mut leases),
            Command::LeaseRevoke(revoke) if self.leases.contains_key(&revoke.id) => {
                self.end_lease(revoke.id, &mut leases);
                Ok(Response::LeaseRevoke)
            }
            Command::LeaseRevoke(_) => Err(Rejection::LeaseNotFound),
            Command::LeaseExpire(expire) => Ok(self.expire(expire, &mut leases)),
            Command::Alarm(change) => Ok(Response::Alarm(self.alarm(*change))),
            Command::MemberPublish(member) => Ok(Response::MemberPublish(member.clone())),
            // Queues have a model of their own.
            Command::SessionBegin(_)
            | Command::Lock(_)
            | Command::GuardedTxn(_)
            | Command::Write(_)
            | Command::Primitive(_)
            | Command::Auth(_)
            | Command::Registry(_) => unreachable!(),
        };
        (outcome, leases)
    }

    fn put(&mut self, put: &Put) -> Result<PutResponse, Rejection> {
        check_fields(put)?;
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Rejection::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && !self.live().contains_key(&put.key) {
            return Err(Rejection::KeyNotFound);
        }
        let mut next = self.live().clone();
        let answer = self.put_into(&mut next, put);
        self.snapshots.push(next);
        Ok(answer)
    }

    fn put_into(&mut self, next: &mut Snapshot, put: &Put) -> PutResponse {
        let revision = self.revision() + 1;
        let old = next.get(&put.key).cloned();
        let mut kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            value: put.value.clone(),
            lease: put.lease,
        };
        if let Some(old) = &old {
            kv.value = if put.ignore_value { old.value.clone() } else { kv.value };
            kv.lease = if put.ignore_lease { old.lease } else { kv.lease };
        }
        next.insert(put.key.clone(), kv.clone());
        let prev_kv = self.live().get(&put.key).cloned().filter(|_| kv.version > 1);
        self.events.push(Event { kind: EventKind::Put, kv, prev_kv });
        PutResponse { prev_kv: old.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, delete: &DeleteRange) -> Result<DeleteRangeResponse, Rejection> {
        if delete.key.is_empty() {
            return Err(Rejection::EmptyKey);
        }
        let mut next = self.live().clone();
        let answer = self.delete_from(&mut next, delete);
        if answer.deleted > 0 {
            self.snapshots.push(next);
        }
        Ok(answer)
    }

    fn delete_from(&mut self, next: &mut Snapshot, delete: &DeleteRange) -> DeleteRangeResponse {
        let mod_revision = self.revision() + 1;
        let mut answer = DeleteRangeResponse::default();
        let keys: Vec<_> =
            next.keys().filter(|key| holds(key, &delete.key, &delete.range_end)).cloned().collect();
        for key in keys {
            let old = next.remove(&key).expect("the key was just listed");
            let prev_kv = self.live().get(&key).cloned();
            let kv = KeyValue { key, mod_revision, ..KeyValue::default() };
            self.events.push(Event { kind: EventKind::Delete, kv, prev_kv });
            answer.deleted += 1;
            answer.prev_kvs.extend(Some(old).filter(|_| delete.prev_kv));
        }
        answer
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnResponse, Rejection> {
        check_compares(self.live(), txn)?;
        self.check_puts(txn)?;
        self.check_ranges(txn)?;
        let mut next = self.live().clone();
        let events = self.events.len();
        let answer = self.run(&mut next, events, txn);
        if self.events.len() > events {
            self.snapshots.push(next);
        }
        Ok(answer)
    }

    fn branch<'a>(&self, txn: &'a Txn) -> &'a [TxnOp] {
        if is_true(self.live(), txn) { &txn.success } else { &txn.failure }
    }

    fn check_puts(&self, txn: &Txn) -> Result<(), Rejection> {
        for op in self.branch(txn) {
            match op {
                TxnOp::Put(put) => {
                    check_fields(put)?;
                    let is_missing = !self.live().contains_key(&put.key);
                    if (put.ignore_value || put.ignore_lease) && is_missing {
                        return Err(Rejection::KeyNotFound);
                    }
                    if put.lease != 0 && !self.leases.contains_key(&put.lease) {
                        return Err(Rejection::LeaseNotFound);
                    }
                }
                TxnOp::DeleteRange(delete) if delete.key.is_empty() => {
                    return Err(Rejection::EmptyKey);
                }
                TxnOp::Txn(nested) => self.check_puts(nested)?,
                TxnOp::DeleteRange(_) | TxnOp::Range(_) => {}
            }
        }
        Ok(())
    }

    fn check_ranges(&self, txn: &Txn) -> Result<(), Rejection> {
        for op in self.branch(txn) {
            match op {
                TxnOp::Range(range) if range.key.is_empty() => return Err(Rejection::EmptyKey),
                TxnOp::Range(range) if range.revision > self.revision() => {
                    return Err(Rejection::FutureRevision);
                }
                TxnOp::Range(range) if range.revision != 0 && range.revision < self.compacted => {
                    return Err(Rejection::Compacted);
                }
                TxnOp::Txn(nested) => self.check_ranges(nested)?,
                TxnOp::Range(_) | TxnOp::Put(_) | TxnOp::DeleteRange(_) => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, next: &mut Snapshot, events_before: usize, txn: &Txn) -> TxnResponse {
        let mut responses = Vec::new();
        for op in self.branch(txn) {
            let response = match op {
                TxnOp::Put(put) => OpResponse::Put(self.put_into(next, put)),
                TxnOp::DeleteRange(delete) => {
                    OpResponse::DeleteRange(self.delete_from(next, delete))
                }
                TxnOp::Range(range) if range.revision > 0 => {
                    OpResponse::Range(select(&self.snapshots[range.revision as usize], range))
                }
                TxnOp::Range(range) => OpResponse::Range(select(next, range)),
                TxnOp::Txn(nested) => OpResponse::Txn(self.run(next, events_before, nested)),
            };
            let has_changed = self.events.len() > events_before;
            responses.push((self.revision() + i64::from(has_changed), response));
        }
        TxnResponse { succeeded: is_true(self.live(), txn), responses }
    }

    fn compact(&mut self, revision: i64) -> Result<(), Rejection> {
        if revision <= self.compacted {
            return Err(Rejection::Compacted);
        }
        if revision > self.revision() {
            return Err(Rejection::FutureRevision);
        }
        self.compacted = revision;
        Ok(())
    }

    fn grant(
        &mut self,
        grant: LeaseGrant,
        changes: &mut Vec<LeaseChange>,
    ) -> Result<Response, Rejection> {
        let LeaseGrant { id, ttl } = grant;
        if id == 0 {
            return Err(Rejection::LeaseNotFound);
        }
        if ttl > 9_000_000_000 {
            return Err(Rejection::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Rejection::LeaseExists);
        }
        self.leases.insert(id, ttl);
        changes.push(LeaseChange::Granted { id, ttl, at: 0 });
        Ok(Response::LeaseGrant { id, ttl })
    }

    fn expire(&mut self, expire: &LeaseExpire, changes: &mut Vec<LeaseChange>) -> Response {
        for id in &expire.ids {
            if expire.term == self.term && self.leases.contains_key(id) {
                self.end_lease(*id, changes);
            }
        }
        Response::LeaseExpire { ended: changes.len() }
    }

    fn end_lease(&mut self, id: i64, changes: &mut Vec<LeaseChange>) {
        let mut next = self.live().clone();
        let keys: Vec<_> =
            next.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
        for key in &keys {
            let delete = DeleteRange { key: key.clone(), ..DeleteRange::default() };
            self.delete_from(&mut next, &delete);
        }
        if !keys.is_empty() {
            self.snapshots.push(next);
        }
        self.leases.remove(&id);
        changes.push(LeaseChange::Ended { id });
    }

    pub(crate) fn lease_keys(&self) -> Vec<(i64, Vec<Bytes>)> {
        let keys = |id: i64| {
            let attached = self.live().values().filter(|kv| kv.lease == id);
            attached.map(|kv| kv.key.clone()).collect()
        };
        self.leases.keys().map(|id| (*id, keys(*id))).collect()
    }

    fn alarm(&mut self, change: AlarmChange) -> Vec<(u64, AlarmKind)> {
        let AlarmChange { action, member, alarm } = change;
        let is_kind = |kind: AlarmKind| alarm == AlarmKind::None || alarm == kind;
        match action {
            AlarmAction::Get => {
                self.alarms.iter().copied().filter(|(_, kind)| is_kind(*kind)).collect()
            }
            AlarmAction::Activate if alarm == AlarmKind::None => vec![],
            AlarmAction::Activate => {
                self.alarms.insert((member, alarm));
                vec![(member, alarm)]
            }
            AlarmAction::Deactivate => self.alarms.take(&(member, alarm)).into_iter().collect(),
        }
    }

    pub(crate) fn range(&self, range: &Range) -> Result<RangeResponse, Rejection> {
        if range.key.is_empty() {
            return Err(Rejection::EmptyKey);
        }
        let revision = if range.revision <= 0 { self.revision() } else { range.revision };
        if revision > self.revision() {
            return Err(Rejection::FutureRevision);
        }
        if revision < self.compacted {
            return Err(Rejection::Compacted);
        }
        Ok(select(&self.snapshots[revision as usize], range))
    }

    /// What a reader answers that took its head at `revision`, which is not compacted since.
    pub(crate) fn range_as_of(&self, revision: i64, range: &Range) -> RangeResponse {
        select(&self.snapshots[revision as usize], range)
    }

    /// Events from `from` on, as a watch that starts there sees them.
    pub(crate) fn history(&self, from: i64) -> Vec<Event> {
        let mut events = Vec::new();
        for (place, event) in self.events.iter().enumerate() {
            let is_last_of_key = self.next_of_key(place).is_none_or(|next| next > self.compacted);
            if event.kv.mod_revision < from || !is_last_of_key {
                continue;
            }
            let mut event = event.clone();
            event.prev_kv = event.prev_kv.filter(|_| event.kv.mod_revision > self.compacted);
            events.push(event);
        }
        events
    }

    fn next_of_key(&self, place: usize) -> Option<i64> {
        let key = &self.events[place].kv.key;
        let mut later = self.events[place + 1..].iter();
        later.find(|event| event.kv.key == key).map(|event| event.kv.mod_revision)
    }

    /// What compaction must have left.
    pub(crate) fn sizes(&self) -> Sizes {
        let mut sizes = Sizes { rev_rows: 0, key_rows: 0, bytes: 20_480 };
        for (place, event) in self.events.iter().enumerate() {
            let next = self.next_of_key(place);
            let is_kept = match event.kind {
                EventKind::Put => next.is_none_or(|next| next > self.compacted),
                EventKind::Delete => event.kv.mod_revision >= self.compacted,
            };
            if is_kept {
                sizes.rev_rows += 1;
                sizes.key_rows += usize::from(next.is_none());
                sizes.bytes += 64 + (event.kv.key.len() + event.kv.value.len()) as i64;
            }
        }
        sizes.bytes += 64 * self.leases.len() as i64;
        sizes
    }
}
