//! Splits our history into one that another store with etcd's rules can keep and the rest, and
//! joins the two again without loss.
//!
//! An event is split into what such a store has too (a [`ForeignChange`]) and what only ours knows,
//! which is stored beside it. Joining the two gives exactly the rows that were split. Unlike
//! [`crate::import`], which follows rules, joining decides nothing: a `Key` row follows from the
//! newest event of its key, because the sweep of a compaction takes the events of a key in order,
//! and a tombstone together with its `Key` row. Only the skip links of the `Key` row are lost:
//! links over many changes (`crate::rows::skips`) are built from there on.

use bytes::Bytes;

use crate::import::{ForeignChange, ForeignPut};
use crate::response::{Cause, Halt};
use crate::revision::Revision;
use crate::rows::key::KeyRow;
use crate::rows::rev::RevRow;
use crate::rows::{RowReader, RowWriter, State};

/// First byte of [`Split::beside`]: its format.
const FORM: u8 = 1;

/// An event, split in two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// What any store with etcd's rules knows of the event.
    pub change: ForeignChange,
    /// What only our store knows of it, encoded.
    pub beside: Bytes,
}

/// The rows of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Row of table `Rev`.
    pub rev: Bytes,
    /// Row of table `Key`, valid unless a later event of the same key follows.
    pub key: Bytes,
}

/// Splits the row of table `Rev` that is stored at `at`.
///
/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a row.
pub fn split(at: Revision, row: &[u8]) -> Result<Split, Halt> {
    let row = RevRow::decode(at, row)?;
    let mut beside = RowWriter::new(FORM);
    let Revision { main, sub } = row.previous.unwrap_or_default();
    beside.int(main);
    if main != 0 {
        beside.uint(u64::from(sub));
    }
    beside.bytes(row.skips);
    beside.size(row.previous_value_bytes);
    beside.byte(row.cause.number());
    let put = row.state.map(|state| ForeignPut {
        create_revision: state.create_revision,
        version: state.version,
        lease: state.lease,
        value: Bytes::copy_from_slice(state.value),
    });
    let change = ForeignChange { at, key: Bytes::copy_from_slice(row.key), put };
    Ok(Split { change, beside: beside.finish() })
}

/// Joins what [`split`] returned.
///
/// # Errors
/// [`Halt::CorruptRow`] if the two cannot belong together.
pub fn join(change: &ForeignChange, beside: &[u8]) -> Result<Joined, Halt> {
    let mut beside = RowReader::new("beside", beside);
    if beside.form()? != FORM {
        return Err(beside.corrupt("unknown form"));
    }
    let previous = beside.previous()?;
    let skips = beside.bytes()?;
    let previous_value_bytes = beside.size()?;
    let cause = u8::try_from(beside.uint()?).ok().and_then(Cause::from_number);
    let cause = cause.ok_or_else(|| beside.corrupt("unknown cause"))?;
    if !beside.is_empty() || previous.is_some_and(|previous| previous >= change.at) {
        return Err(beside.corrupt("an event does not fit to what is known beside it"));
    }
    let state = change.put.as_ref().map(|put| State {
        create_revision: put.create_revision,
        version: put.version,
        lease: put.lease,
        value: &put.value,
    });
    let rev = RevRow { previous, skips, previous_value_bytes, key: &change.key, state, cause };
    let key = KeyRow::new(change.at, previous, &[], state);
    Ok(Joined { rev: rev.encode(), key: key.encode() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;

    use super::*;
    use crate::change::{Before, Change};
    use crate::command::Compact;
    use crate::compaction;
    use crate::events::Events;
    use crate::head::Head;
    use crate::memory::MemoryRows;
    use crate::read::{Read, Table};
    use crate::rows::key::VALUE_BYTES_MAX;

    fn table(rows: &MemoryRows, table: Table) -> BTreeMap<Bytes, Bytes> {
        let mut all = BTreeMap::new();
        rows.scan(table, &[], None, &mut |key, row| {
            all.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(row));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        all
    }

    fn change(rows: &mut MemoryRows, head: &mut Head, steps: &[(&'static str, Option<usize>)]) {
        let mut events = Events::default();
        let changed = rows.update(|overlay| {
            let mut change = Change::begin(overlay, head, &mut events)?;
            for (key, value_bytes) in steps {
                let key = Bytes::from_static(key.as_bytes());
                let before = Before::load(change.rows, &key)?;
                match value_bytes {
                    Some(bytes) => change.put(&key, before, &vec![7; *bytes].into(), 0)?,
                    None => change.delete(&key, before)?,
                }
            }
            Ok::<_, Halt>(())
        });
        changed.unwrap();
    }

    /// However far a sweep got, all `Key` rows follow from the events.
    #[test]
    fn what_is_split_is_joined_to_the_same_rows() {
        let (mut rows, mut head) = (MemoryRows::default(), Head::default());
        let large = Some(VALUE_BYTES_MAX + 1);
        for round in 0..40_i64 {
            change(&mut rows, &mut head, &[("a", Some(3)), ("b", large), ("a", large)]);
            change(&mut rows, &mut head, &[("c", Some(0)), ("b", None)]);
            change(&mut rows, &mut head, &[("c", None)]);
            change(&mut rows, &mut head, &[("d", Some(1))]);
            if round % 3 == 0 {
                let revision = head.revision - round % 5;
                compaction::apply(&mut head, Compact { revision }).unwrap();
                rows.update(|overlay| compaction::sweep_step(overlay, &mut head)).unwrap();
            }
            let (events, mut keys) = (table(&rows, Table::Rev), BTreeMap::new());
            for (at, row) in &events {
                let at = Revision::from_row_key(at).unwrap();
                let Split { change, beside } = split(at, row).unwrap();
                let joined = join(&change, &beside).unwrap();
                assert_eq!(joined.rev, *row);
                keys.insert(change.key, joined.key);
            }
            let mut expected = table(&rows, Table::Key);
            for row in expected.values_mut() {
                *row = KeyRow { skips: &[], ..KeyRow::decode(&row.clone()).unwrap() }.encode();
            }
            assert_eq!(keys, expected);
        }
    }

    #[test]
    fn what_does_not_belong_together_is_an_error() {
        let at = Revision { main: 9, sub: 0 };
        let state = State { create_revision: 3, version: 2, lease: 0, value: b"v" };
        let previous = Some(Revision { main: 3, sub: 1 });
        let cause = Cause::Deleted;
        let (previous_value_bytes, skips, key) = (1, &b"links"[..], &b"k"[..]);
        let row = RevRow { previous, skips, previous_value_bytes, key, state: Some(state), cause };
        let Split { change, beside } = split(at, &row.encode()).unwrap();
        assert_eq!(join(&change, &beside).unwrap().rev, row.encode());
        let older = ForeignChange { at: Revision { main: 3, sub: 1 }, ..change.clone() };
        assert!(join(&older, &beside).is_err(), "links must lead to older revisions");
        assert!(join(&change, &beside[..beside.len() - 1]).is_err(), "cut short");
        assert!(join(&change, &[&beside[..], &[0]].concat()).is_err(), "too long");
        assert!(join(&change, b"").is_err());
    }
}
