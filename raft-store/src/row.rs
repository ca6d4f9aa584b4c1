//! The rows that raft stores beside the data, in table `Meta` under `raft/`.
//!
//! `applied` and `membership` are written in the same batch as the data they describe; `format` and
//! `identity` once per directory.

use std::io;

use bytes::Bytes;
use conclave_proto::internal;
use conclave_state_machine::read::Table;
use prost::Message;

use crate::codec;
use crate::engine::{Engine, RowWrite};
use crate::types::{LogId, StoredMembership};

const APPLIED: &[u8] = b"raft/applied";
const MEMBERSHIP: &[u8] = b"raft/membership";
const IDENTITY: &[u8] = b"raft/identity";
const FORMAT: &[u8] = b"raft/format";

/// Format of the rows that this version of the code writes.
pub(crate) const FORMAT_VERSION: u32 = 3;

/// The cluster and member that own a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Cluster id.
    pub cluster: u64,
    /// Member id.
    pub member: u64,
}

pub(crate) fn applied_row(applied: &LogId) -> RowWrite {
    put(APPLIED, codec::log_id_message(applied).encode_to_vec())
}

pub(crate) fn membership_row(membership: &StoredMembership) -> RowWrite {
    let message = internal::SnapshotMeta {
        last_log_id: None,
        membership_log_id: membership.log_id().as_ref().map(codec::log_id_message),
        membership: Some(codec::membership_message(membership.membership())),
    };
    put(MEMBERSHIP, message.encode_to_vec())
}

pub(crate) fn identity_row(identity: Identity) -> RowWrite {
    let mut value = identity.cluster.to_le_bytes().to_vec();
    value.extend_from_slice(&identity.member.to_le_bytes());
    put(IDENTITY, value)
}

pub(crate) fn format_row() -> RowWrite {
    put(FORMAT, FORMAT_VERSION.to_le_bytes().to_vec())
}

fn put(key: &'static [u8], value: Vec<u8>) -> RowWrite {
    (Table::Meta, Bytes::from_static(key), Some(value.into()))
}

/// Which state a row is read from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// The present state.
    Now,
    /// The state that a crash now would leave.
    Flushed,
}

/// Last applied log id, `None` before the first entry.
pub(crate) fn applied(engine: &dyn Engine, moment: Moment) -> io::Result<Option<LogId>> {
    let Some(row) = get(engine, moment, APPLIED)? else { return Ok(None) };
    let message = internal::LogId::decode(row).map_err(|e| damaged(APPLIED, &e))?;
    Ok(Some(codec::log_id(&message)))
}

/// Last applied membership.
pub(crate) fn membership(engine: &dyn Engine, moment: Moment) -> io::Result<StoredMembership> {
    let Some(row) = get(engine, moment, MEMBERSHIP)? else {
        return Ok(StoredMembership::default());
    };
    let message = internal::SnapshotMeta::decode(row).map_err(|e| damaged(MEMBERSHIP, &e))?;
    Ok(codec::snapshot_meta(&message).map_err(|e| damaged(MEMBERSHIP, &e))?.last_membership)
}

/// The owner of the directory, `None` if it has none yet.
pub(crate) fn identity(engine: &dyn Engine) -> io::Result<Option<Identity>> {
    let Some(row) = get(engine, Moment::Now, IDENTITY)? else { return Ok(None) };
    let half = |at: usize| row.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    match (row.len(), half(0), half(8)) {
        (16, Some(cluster), Some(member)) => Ok(Some(Identity { cluster, member })),
        _ => Err(damaged(IDENTITY, &"not 16 bytes")),
    }
}

/// Format of the rows, `None` if there is no such row.
pub(crate) fn format(engine: &dyn Engine) -> io::Result<Option<u32>> {
    let Some(row) = get(engine, Moment::Now, FORMAT)? else { return Ok(None) };
    let bytes = row.as_ref().try_into().map_err(|_| damaged(FORMAT, &"not 4 bytes"))?;
    Ok(Some(u32::from_le_bytes(bytes)))
}

fn get(engine: &dyn Engine, moment: Moment, key: &[u8]) -> io::Result<Option<Bytes>> {
    match moment {
        Moment::Now => engine.get(Table::Meta, key).map_err(crate::engine::halt_to_io),
        Moment::Flushed => engine.get_flushed(Table::Meta, key),
    }
}

fn damaged(key: &[u8], why: &dyn std::fmt::Display) -> io::Error {
    let text = format!("row {}: {why}", String::from_utf8_lossy(key));
    io::Error::new(io::ErrorKind::InvalidData, text)
}
