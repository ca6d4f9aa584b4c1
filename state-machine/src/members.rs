//! Records of members: published names and URLs, and ids that were removed for good.
//!
//! Which members the cluster has is raft's business. [`reconfigure`] is told of each applied
//! configuration, so that the records change in the same batch.

pub mod rules;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::command::MemberRecord;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::rows::member::{self, MemberRow};

/// Lists all published members, by id.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn all<R: Read>(rows: &R) -> Result<Vec<MemberRecord>, Halt> {
    let mut members = Vec::new();
    visit(rows, |row| {
        if let MemberRow::Published(record) = row {
            members.push(record);
        }
    })?;
    Ok(members)
}

/// The ids of removed members, which are never used again.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn removed<R: Read>(rows: &R) -> Result<BTreeSet<u64>, Halt> {
    let mut removed = BTreeSet::new();
    visit(rows, |row| {
        if let MemberRow::Removed(id) = row {
            removed.insert(id);
        }
    })?;
    Ok(removed)
}

fn visit<R: Read>(rows: &R, mut visit: impl FnMut(MemberRow)) -> Result<(), Halt> {
    rows.scan(Table::Member, &[], None, &mut |_, row| {
        visit(member::decode(row)?);
        Ok(ControlFlow::Continue(()))
    })
}

/// Records a new configuration: members in `before` but not in `after` are removed for good.
pub fn reconfigure<R: Read>(
    rows: &mut Overlay<'_, R>,
    before: &BTreeSet<u64>,
    after: &BTreeSet<u64>,
) {
    for id in before.difference(after) {
        let key = Bytes::copy_from_slice(&member::row_key(*id));
        rows.put(Table::Member, key, member::encode_removed(*id));
    }
}

/// Records what a member published, unless it was removed.
pub(crate) fn publish<R: Read>(
    rows: &mut Overlay<'_, R>,
    record: &MemberRecord,
) -> Result<(), Halt> {
    let key = member::row_key(record.id);
    if let Some(row) = rows.get(Table::Member, &key)?
        && matches!(member::decode(&row)?, MemberRow::Removed(_))
    {
        return Ok(());
    }
    rows.put(Table::Member, Bytes::copy_from_slice(&key), member::encode(record));
    Ok(())
}
