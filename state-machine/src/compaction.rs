//! Compaction: deletes history before a revision, in bounded steps.
//!
//! Compacting to C only moves a mark, after which reads below C are rejected. A sweep then walks
//! the events from the last mark to C in order and deletes what no read at C or later can reach:
//! the put that an event at or below C replaced, and tombstones strictly below C with their key
//! row. A tombstone exactly at C stays, because a watch from C must still see the delete. Every
//! `Compact` command, even one that is rejected, sweeps one step, which is small enough not to
//! delay writes noticeably. How far the sweep got is part of the replicated state. While dead rows
//! are left, the leader repeatedly proposes a compaction to the revision that is already compacted.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::command::Compact;
use crate::head::Head;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::{Halt, Rejection};
use crate::revision::Revision;
use crate::rows::key::KeyRow;
use crate::rows::rev::RevRow;

/// Most events that one step reads; takes a few milliseconds.
const STEP_EVENTS_MAX: usize = 1_000;
/// Most bytes of events that one step reads; an event that is larger alone is still read.
const STEP_BYTES_MAX: usize = 1 << 20;

/// How far dead rows have been deleted: two marks, because a tombstone outlives the put it
/// replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// First event whose replaced put may still be stored.
    pub replaced: Revision,
    /// First event that is still stored if it is a tombstone; not after `replaced`.
    pub tombstones: Revision,
}

impl Sweep {
    /// Whether rows that the compaction to `compacted` made dead are still stored.
    #[must_use]
    pub fn is_pending(&self, compacted: i64) -> bool {
        self.replaced.main <= compacted
    }
}

/// Moves the mark; deletes nothing.
pub(crate) fn apply(head: &mut Head, compact: Compact) -> Result<(), Rejection> {
    if compact.revision <= head.compacted {
        return Err(Rejection::Compacted);
    }
    if compact.revision > head.revision {
        return Err(Rejection::FutureRevision);
    }
    head.compacted = compact.revision;
    Ok(())
}

/// What steps of the sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Steps that found dead rows to look for.
    pub steps: u64,
    /// Events deleted.
    pub events: u64,
}

impl Swept {
    /// Adds what another step did.
    pub(crate) fn add(&mut self, step: Self) {
        self.steps = self.steps.saturating_add(step.steps);
        self.events = self.events.saturating_add(step.events);
    }
}

/// Sweeps one step and returns what it did.
pub(crate) fn sweep_step<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
) -> Result<Swept, Halt> {
    if !head.sweep.is_pending(head.compacted) {
        return Ok(Swept::default());
    }
    let events = sweep(rows, head, STEP_EVENTS_MAX, STEP_BYTES_MAX)?;
    Ok(Swept { steps: 1, events })
}

/// One event, reduced to what the sweep needs.
struct Walked {
    at: Revision,
    key: Bytes,
    is_tombstone: bool,
    replaced: Option<(Revision, usize)>,
}

/// Deletes what the next events up to the mark made dead, within bounds. Returns how many events it
/// deleted.
fn sweep<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events_max: usize,
    bytes_max: usize,
) -> Result<u64, Halt> {
    if !head.sweep.is_pending(head.compacted) {
        return Ok(0);
    }
    let mut deleted = 0_u64;
    let (events, is_complete) = next_events(rows, head, events_max, bytes_max)?;
    let Sweep { replaced, tombstones, .. } = head.sweep;
    for event in &events {
        if event.at >= replaced {
            deleted = deleted.saturating_add(drop_replaced(rows, head, event).into());
        }
        if event.is_tombstone && event.at >= tombstones && event.at.main < head.compacted {
            drop_tombstone(rows, head, event)?;
            deleted = deleted.saturating_add(1);
        }
    }
    let reached = match events.last() {
        Some(last) if !is_complete => last.at.next(),
        Some(_) | None => Revision::after(head.compacted),
    };
    head.sweep = Sweep {
        replaced: replaced.max(reached),
        tombstones: tombstones.max(reached.min(Revision::first_of(head.compacted))),
    };
    Ok(deleted)
}

/// Reads the events from the older mark that can still move, within bounds. The flag tells whether
/// these are all events up to the compacted revision.
fn next_events<R: Read>(
    rows: &Overlay<'_, R>,
    head: &Head,
    events_max: usize,
    bytes_max: usize,
) -> Result<(Vec<Walked>, bool), Halt> {
    // Tombstones at the compacted revision itself wait for the next compaction.
    let is_behind = head.sweep.tombstones.main < head.compacted;
    let start = if is_behind { head.sweep.tombstones } else { head.sweep.replaced }.row_key();
    let end = Revision::after(head.compacted).row_key();
    let mut events = Vec::new();
    let mut bytes = 0;
    let mut is_complete = true;
    rows.scan(Table::Rev, &start, Some(&end), &mut |row_key, row| {
        if events.len() >= events_max || bytes >= bytes_max {
            is_complete = false;
            return Ok(ControlFlow::Break(()));
        }
        let at = Revision::from_row_key(row_key).ok_or_else(|| Halt::CorruptRow {
            table: "rev",
            detail: format!("key of {} bytes", row_key.len()),
        })?;
        bytes = bytes.saturating_add(row_key.len()).saturating_add(row.len());
        let row = RevRow::decode(at, row)?;
        events.push(Walked {
            at,
            key: Bytes::copy_from_slice(row.key),
            is_tombstone: row.state.is_none(),
            replaced: row.replaced_put().map(|put| (put, row.previous_value_bytes)),
        });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((events, is_complete))
}

/// Returns whether there was something to delete.
fn drop_replaced<R: Read>(rows: &mut Overlay<'_, R>, head: &mut Head, event: &Walked) -> bool {
    let Some((put, value_bytes)) = event.replaced else { return false };
    rows.delete(Table::Rev, Bytes::copy_from_slice(&put.row_key()));
    head.remove_event_bytes(event.key.len(), value_bytes);
    true
}

fn drop_tombstone<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    event: &Walked,
) -> Result<(), Halt> {
    rows.delete(Table::Rev, Bytes::copy_from_slice(&event.at.row_key()));
    head.remove_event_bytes(event.key.len(), 0);
    // The key may have been created again since.
    if let Some(row) = rows.get(Table::Key, &event.key)?
        && KeyRow::decode(&row)?.modified == event.at
    {
        rows.delete(Table::Key, event.key.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::{Before, Change};
    use crate::command::Range;
    use crate::events::Events;
    use crate::memory::MemoryRows;
    use crate::range;
    use crate::response::RangeResponse;
    use crate::rows::key::VALUE_BYTES_MAX;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8),
        Delete(u8),
        DeleteAll,
        /// Compacts to this many revisions below the current one.
        Compact(i64),
        /// Sweeps this many events in the lazy store.
        Sweep(usize),
        /// Sweeps this many bytes of events in the lazy store.
        SweepBytes(usize),
    }

    #[derive(Default)]
    struct Store {
        rows: MemoryRows,
        head: Head,
    }

    impl Store {
        fn change(&mut self, keys: &[u8], is_delete: bool) {
            let Store { rows, head } = self;
            let mut events = Events::default();
            let changed = rows.update(|overlay| {
                let mut change = Change::begin(overlay, head, &mut events)?;
                for key in keys {
                    let key = Bytes::copy_from_slice(&[*key]);
                    let before = Before::load(change.rows, &key)?;
                    if is_delete {
                        change.delete(&key, before)?;
                    } else {
                        // Half of the keys have values too large for the `Key` row: only the `Rev`
                        // row has them.
                        let bytes = if key[0] < b'c' { 5 } else { VALUE_BYTES_MAX + 1 };
                        change.put(&key, before, &Bytes::from(vec![b'v'; bytes]), 0)?;
                    }
                }
                Ok::<_, Halt>(())
            });
            changed.unwrap();
        }

        fn sweep(&mut self, events_max: usize, bytes_max: usize) {
            let Store { rows, head } = self;
            rows.update(|overlay| sweep(overlay, head, events_max, bytes_max)).unwrap();
        }

        fn everything_at(&self, revision: i64) -> Result<RangeResponse, Rejection> {
            let zero = Bytes::from_static(b"\0");
            let request =
                Range { key: zero.clone(), range_end: zero, revision, ..Range::default() };
            range::range(&self.rows, &self.head, &request).unwrap()
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = || prop::sample::select(b"abcd".to_vec());
        let step = prop_oneof![
            6 => key().prop_map(Step::Put),
            3 => key().prop_map(Step::Delete),
            2 => Just(Step::DeleteAll),
            4 => (0..4_i64).prop_map(Step::Compact),
            4 => (1..9_usize).prop_map(Step::Sweep),
            4 => (1..9_000_usize).prop_map(Step::SweepBytes),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        /// However a sweep is cut into steps, and whatever happens between them, reads see no
        /// difference and the same rows are left in the end.
        #[test]
        fn sweeping_in_steps_equals_sweeping_at_once(steps in steps()) {
            let (mut at_once, mut lazy) = (Store::default(), Store::default());
            for step in steps {
                for store in [&mut at_once, &mut lazy] {
                    match step {
                        Step::Put(key) => store.change(&[key], false),
                        Step::Delete(key) => store.change(&[key], true),
                        Step::DeleteAll => store.change(b"abcd", true),
                        Step::Compact(back) => {
                            let revision = store.head.revision - back;
                            // Both stores reject it alike.
                            apply(&mut store.head, Compact { revision }).unwrap_or_default();
                        }
                        Step::Sweep(_) | Step::SweepBytes(_) => {}
                    }
                }
                at_once.sweep(usize::MAX, usize::MAX);
                match step {
                    Step::Sweep(events) => lazy.sweep(events, usize::MAX),
                    Step::SweepBytes(bytes) => lazy.sweep(usize::MAX, bytes),
                    Step::Put(_) | Step::Delete(_) | Step::DeleteAll | Step::Compact(_) => {}
                }
                prop_assert_eq!(at_once.head.compacted, lazy.head.compacted);
                for revision in at_once.head.compacted.max(0)..=at_once.head.revision {
                    prop_assert_eq!(at_once.everything_at(revision), lazy.everything_at(revision));
                }
            }
            let mut rounds = 0;
            while lazy.head.sweep.is_pending(lazy.head.compacted) {
                lazy.sweep(usize::MAX, 1);
                rounds += 1;
                prop_assert!(rounds < 1_000, "each step must get on");
            }
            prop_assert_eq!(at_once.head, lazy.head);
            prop_assert_eq!(at_once.rows, lazy.rows);
        }
    }
}
