//! The checksum that members compare: equal at equal revision and compacted revision.
//!
//! It covers what clients can still observe: every live key at the revision, and every event after
//! the compacted revision up to it. Dead rows that the sweep of a compaction has not reached are
//! left out, because how far it got depends on the applied index and not on the revision.

use std::ops::ControlFlow;

use conclave_state_machine::head::Head;
use conclave_state_machine::range;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::{Halt, KeyValue, Rejection};

use crate::reader::HashKv;
use crate::store::ReadError;

/// Computes the checksum. `rows` must be a snapshot; a `revision` of 0 or below means the current
/// one.
pub(crate) fn hash_kv(rows: &impl Read, revision: i64) -> Result<HashKv, ReadError> {
    let head = Head::load(rows)?;
    let at = if revision <= 0 { head.revision } else { revision };
    if at > head.revision {
        return Err(ReadError::Rejected(Rejection::FutureRevision));
    }
    if at < head.compacted {
        return Err(ReadError::Rejected(Rejection::Compacted));
    }
    let hash = hash_events(rows, head.compacted, at, hash_keys(rows, at)?)?;
    Ok(HashKv { hash, compacted: head.compacted, revision: at, current: head.revision })
}

fn hash_keys(rows: &impl Read, at: i64) -> Result<u32, Halt> {
    let mut hash = 0;
    range::key_values(rows, at, &mut |kv| hash = hash_key(hash, &kv))?;
    Ok(hash)
}

fn hash_key(hash: u32, kv: &KeyValue) -> u32 {
    let mut fields = [0; 40];
    let lengths = [kv.key.len() as u64, kv.lease.cast_unsigned()];
    let numbers = [kv.create_revision, kv.mod_revision, kv.version].map(i64::cast_unsigned);
    for (field, number) in fields.chunks_exact_mut(8).zip(lengths.into_iter().chain(numbers)) {
        field.copy_from_slice(&number.to_le_bytes());
    }
    let hash = crc32c::crc32c_append(hash, &fields);
    let hash = crc32c::crc32c_append(hash, &kv.key);
    crc32c::crc32c_append(hash, &kv.value)
}

/// Events with `after < main revision <= to`; `Rev` keys begin with the main revision, big endian.
fn hash_events(rows: &impl Read, after: i64, to: i64, mut hash: u32) -> Result<u32, Halt> {
    let first = after.max(0).saturating_add(1).to_be_bytes();
    let end = to.saturating_add(1).to_be_bytes();
    rows.scan(Table::Rev, &first, Some(&end), &mut |key, row| {
        hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), row);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(hash)
}
