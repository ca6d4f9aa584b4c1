//! Records of members: the names and URLs they published.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::command::MemberRecord;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::rows;

/// Lists all published members, by id.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn all<R: Read>(rows: &R) -> Result<Vec<MemberRecord>, Halt> {
    let mut members = Vec::new();
    rows.scan(Table::Member, &[], None, &mut |_, row| {
        members.push(rows::member::decode(row)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(members)
}

pub(crate) fn publish<R: Read>(rows: &mut Overlay<'_, R>, member: &MemberRecord) {
    let key = Bytes::copy_from_slice(&rows::member::row_key(member.id));
    rows.put(Table::Member, key, rows::member::encode(member));
}
