//! Reads of one moment while apply continues: repeated if a compaction came in between, and finally
//! from a snapshot.

use conclave_state_machine::head::Head;
use conclave_state_machine::response::Halt;

use super::Reader;
use crate::counts::{Counts, Known};
use crate::engine::{Rows, View};
use crate::store::ReadError;

/// Number of reads without a snapshot before one is taken.
const FREE_READS_MAX: usize = 2;

/// An answer with the oldest revision that it relies on.
pub(super) type Attempt<T> = Result<(i64, Result<T, ReadError>), Halt>;

impl Reader {
    /// Reads rows without history, and what belongs to them, from one snapshot.
    pub(super) fn at_once<T>(
        &self,
        read: impl FnMut(&View<'_>, &Head) -> Result<T, Halt>,
    ) -> Result<T, ReadError> {
        let rows = self.shared.published().rows;
        self.shared.note(in_snapshot(&rows, read).map_err(ReadError::from))
    }

    /// Repeats `read` until no compaction came in between. `read` returns its answer with the
    /// oldest revision that it relied on.
    pub(super) fn consistent<T>(
        &self,
        mut read: impl FnMut(&View<'_>, &Head) -> Attempt<T>,
    ) -> Result<T, ReadError> {
        self.consistent_known(|_, _| None, |rows, head, _| read(rows, head))
    }

    /// As [`Reader::consistent`]; `read` also gets what `look` found in the counts at the same
    /// moment.
    pub(super) fn consistent_known<T>(
        &self,
        look: impl Fn(&Counts, &Head) -> Option<Known>,
        read: impl FnMut(&View<'_>, &Head, Option<Known>) -> Attempt<T>,
    ) -> Result<T, ReadError> {
        self.shared.note(self.read_consistently(look, read))
    }

    fn read_consistently<T>(
        &self,
        look: impl Fn(&Counts, &Head) -> Option<Known>,
        mut read: impl FnMut(&View<'_>, &Head, Option<Known>) -> Attempt<T>,
    ) -> Result<T, ReadError> {
        for _ in 0..FREE_READS_MAX {
            let (seen, known) = self.shared.look(&look);
            let answer = read(&View(&seen.rows), &seen.head, known);
            // A compaction during the read can look like damage, so only a complete read counts,
            // also if it failed.
            let oldest = answer.as_ref().map_or(seen.head.revision, |(oldest, _)| *oldest);
            if self.shared.is_complete(&seen, oldest) {
                return answer?.1;
            }
        }
        let rows = self.shared.published().rows;
        in_snapshot(&rows, |view, head| read(view, head, None))?.1
    }
}

/// Reads from a snapshot of the storage, with the head of the same moment.
fn in_snapshot<T>(
    rows: &Rows,
    mut read: impl FnMut(&View<'_>, &Head) -> Result<T, Halt>,
) -> Result<T, Halt> {
    let mut answer = None;
    rows.with_snapshot(&mut |snapshot| {
        let view = View(snapshot);
        answer = Some(Head::load(&view).and_then(|head| read(&view, &head)));
    });
    answer.expect("with_snapshot calls its argument")
}
