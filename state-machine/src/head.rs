//! Counters of the store: changed by every command, needed for every answer.

use bytes::Bytes;

use crate::auth::AuthHead;
use crate::command::AlarmKind;
use crate::compaction::Sweep;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::rows;

/// Size that an empty store reports, as etcd's does. Never 0, because clients divide by it.
const EMPTY_STORE_BYTES: i64 = 20_480;
/// Sizes are reported in pages, as etcd's are.
const PAGE_BYTES: i64 = 4_096;
/// Bytes counted for an event besides its key and value.
const EVENT_BYTES: i64 = 64;
/// Bytes counted for a lease besides its owner's record.
const LEASE_BYTES: i64 = 64;

/// Counters of the store as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Newest revision; 1 in a fresh store.
    pub revision: i64,
    /// Revision of the last compaction, the oldest that can be read; -1 before the first.
    pub compacted: i64,
    /// Logical size of history and leases, exact; see [`Head::size_in_use`] for what to report.
    pub bytes_in_use: i64,
    /// Live keys.
    pub key_count: i64,
    /// Rolling hash over all events so far; equal on all replicas at equal revisions.
    pub digest: u64,
    /// How far dead rows have been deleted.
    pub sweep: Sweep,
    /// Active alarms as (member, kind), sorted.
    pub alarms: Vec<(u64, AlarmKind)>,
    /// Whether calls need a user, and the auth revision.
    pub auth: AuthHead,
}

impl Default for Head {
    fn default() -> Head {
        Head {
            revision: 1,
            compacted: -1,
            bytes_in_use: EMPTY_STORE_BYTES,
            key_count: 0,
            digest: 0,
            sweep: Sweep::default(),
            alarms: Vec::new(),
            auth: AuthHead::default(),
        }
    }
}

impl Head {
    /// Reads the head row; a store without one is fresh.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or the row is damaged.
    pub fn load(rows: &impl Read) -> Result<Head, Halt> {
        match rows.get(Table::Meta, rows::head::KEY)? {
            Some(row) => rows::head::decode(&row),
            None => Ok(Head::default()),
        }
    }

    /// Writes the head row.
    pub(crate) fn write<R: Read>(&self, rows: &mut Overlay<'_, R>) {
        let key = Bytes::from_static(rows::head::KEY);
        rows.put(Table::Meta, key, rows::head::encode(self));
    }

    /// Logical bytes in use, in whole pages: `dbSizeInUse`, and what a quota is measured against.
    #[must_use]
    pub fn size_in_use(&self) -> i64 {
        let pages = self.bytes_in_use.saturating_add(PAGE_BYTES - 1) / PAGE_BYTES;
        pages.saturating_mul(PAGE_BYTES).max(EMPTY_STORE_BYTES)
    }

    /// Whether rows that a compaction made dead are still stored. Each `Compact` command deletes
    /// some of them, even one that is rejected, so the leader removes the rest by repeatedly
    /// proposing `Compact` to the revision that is already compacted.
    #[must_use]
    pub fn has_dead_rows(&self) -> bool {
        self.sweep.is_pending(self.compacted)
    }

    /// Whether any member has raised `kind`.
    #[must_use]
    pub fn has_alarm(&self, kind: AlarmKind) -> bool {
        self.alarms.iter().any(|(_, active)| *active == kind)
    }

    pub(crate) fn add_event_bytes(&mut self, key_bytes: usize, value_bytes: usize) {
        let bytes = event_bytes(key_bytes, value_bytes);
        self.bytes_in_use = self.bytes_in_use.saturating_add(bytes);
    }

    pub(crate) fn remove_event_bytes(&mut self, key_bytes: usize, value_bytes: usize) {
        let bytes = event_bytes(key_bytes, value_bytes);
        self.bytes_in_use = self.bytes_in_use.saturating_sub(bytes);
    }

    pub(crate) fn add_lease_bytes(&mut self, owner_bytes: usize) {
        self.bytes_in_use = self.bytes_in_use.saturating_add(lease_bytes(owner_bytes));
    }

    pub(crate) fn remove_lease_bytes(&mut self, owner_bytes: usize) {
        self.bytes_in_use = self.bytes_in_use.saturating_sub(lease_bytes(owner_bytes));
    }
}

fn lease_bytes(owner_bytes: usize) -> i64 {
    LEASE_BYTES.saturating_add(i64::try_from(owner_bytes).unwrap_or(i64::MAX))
}

/// A small value is stored twice (`Key` and `Rev` row) but counted once, as in etcd.
fn event_bytes(key_bytes: usize, value_bytes: usize) -> i64 {
    let bytes = i64::try_from(key_bytes.saturating_add(value_bytes)).unwrap_or(i64::MAX);
    bytes.saturating_add(EVENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_pages_and_never_zero() {
        let mut head = Head::default();
        assert_eq!(head.size_in_use(), 20_480);
        head.add_event_bytes(3, 4_096);
        assert_eq!(head.size_in_use(), 20_480 + 2 * 4_096);
        head.remove_event_bytes(3, 4_096);
        assert_eq!(head.size_in_use(), 20_480);
        head.bytes_in_use = i64::MAX;
        assert!(head.size_in_use() > 0);
        head.bytes_in_use = i64::MIN;
        assert_eq!(head.size_in_use(), 20_480);
    }
}
