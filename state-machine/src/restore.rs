//! Changes a restored store so that a new cluster can use it.
//!
//! Clients of the old cluster may have seen revisions that the backup does not contain. If the new
//! cluster used them again for other changes, their watches and caches would silently continue with
//! those. So the revision is raised beyond any that was seen, and everything up to it counts as
//! compacted: a client that asks for the old history is told that it is gone, and reads again. So
//! fencing tokens, which are revisions too, are never issued twice. The auth revision is raised as
//! well.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::head::Head;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::Halt;

/// Raises the revision by `by`, compacts up to the new revision if `by` is above 0, and deletes the
/// records of members. Keys, leases, users and alarms stay. Returns the new counters; returns
/// `None` and writes nothing if there are not enough revisions left or `by` is negative.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn begin_anew<R: Read>(rows: &mut Overlay<'_, R>, by: i64) -> Result<Option<Head>, Halt> {
    let mut head = Head::load(rows)?;
    let raised = head.revision.checked_add(by).filter(|raised| *raised >= head.revision);
    // The next change needs a revision, too.
    let Some(raised) = raised.filter(|raised| *raised < i64::MAX) else { return Ok(None) };
    if by > 0 {
        head.revision = raised;
        head.compacted = raised;
        // Invalidates tokens of the old cluster, which contain its auth revision.
        head.auth.revision = head.auth.revision.saturating_add(by.unsigned_abs());
    }
    let mut members = Vec::new();
    rows.scan(Table::Member, &[], None, &mut |key, _| {
        members.push(Bytes::copy_from_slice(key));
        Ok(ControlFlow::Continue(()))
    })?;
    for key in members {
        rows.delete(Table::Member, key);
    }
    head.write(rows);
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Before, Change};
    use crate::command::{MemberRecord, Range};
    use crate::events::Events;
    use crate::memory::MemoryRows;
    use crate::response::Rejection;
    use crate::{members, range};

    /// A store with one key at revision 2, and one member.
    fn store() -> MemoryRows {
        let mut rows = MemoryRows::default();
        let written = rows.update(|overlay| {
            let (mut head, mut events) = (Head::default(), Events::default());
            let key = Bytes::from_static(b"key");
            let mut change = Change::begin(overlay, &mut head, &mut events)?;
            change.put(&key, Before::nothing(), &key, 0)?;
            members::publish(overlay, &MemberRecord { id: 7, ..MemberRecord::default() })?;
            head.write(overlay);
            Ok::<_, Halt>(())
        });
        written.expect("memory does not fail");
        rows
    }

    fn key_at(rows: &MemoryRows, head: &Head, revision: i64) -> Result<usize, Rejection> {
        let request = Range { key: "key".into(), revision, ..Range::default() };
        let answer = range::range(rows, head, &request).expect("memory does not fail");
        answer.map(|answer| answer.kvs.len())
    }

    #[test]
    fn a_raised_revision_ends_the_old_history_and_members() {
        let mut rows = store();
        let head = rows.update(|overlay| begin_anew(overlay, 10)).unwrap().unwrap();
        assert_eq!((head.revision, head.compacted, head.key_count), (12, 12, 1));
        assert_eq!(head.auth.revision, 11);
        assert_eq!(Head::load(&rows).unwrap(), head);
        assert_eq!(members::all(&rows).unwrap(), []);
        assert_eq!(key_at(&rows, &head, 2), Err(Rejection::Compacted));
        assert_eq!(key_at(&rows, &head, 12), Ok(1));
        assert_eq!(key_at(&rows, &head, 13), Err(Rejection::FutureRevision));
    }

    #[test]
    fn a_revision_that_is_not_raised_keeps_its_history() {
        let mut rows = store();
        let head = rows.update(|overlay| begin_anew(overlay, 0)).unwrap().unwrap();
        assert_eq!((head.revision, head.compacted), (2, -1));
        assert_eq!(key_at(&rows, &head, 1), Ok(0));
    }

    #[test]
    fn a_revision_beyond_all_numbers_changes_nothing() {
        for by in [-1, i64::MAX - 2, i64::MAX] {
            let mut rows = store();
            assert_eq!(rows.update(|overlay| begin_anew(overlay, by)).unwrap(), None);
            assert_eq!(rows, store());
        }
    }
}
