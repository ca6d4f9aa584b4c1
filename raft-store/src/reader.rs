//! Reads of the state while it is being written.
//!
//! A reader takes the published head and reads at its revision by MVCC while apply continues,
//! without a snapshot of the storage. Only a compaction can delete what it needs, so it checks
//! afterwards whether one came in between, and if so reads again. If that happens twice, it reads
//! from a snapshot of the storage, where it cannot happen. Queues of locks are always read from
//! such a snapshot, because their rows have no history.
//!
//! | module | what |
//! |---|---|
//! | `brief` | reads that are abandoned when they turn out to be long |
//! | `consistent` | reads of one moment while apply continues |
//! | `upkeep` | sizes, identity, flushes, backups, snapshots |

mod brief;
mod consistent;
mod upkeep;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use conclave_state_machine::auth::AuthHead;
use conclave_state_machine::command::{Range, Txn, TxnOp};
use conclave_state_machine::head::Head;
use conclave_state_machine::locks::arrival;
use conclave_state_machine::locks::queue::{self, Place};
use conclave_state_machine::locks::tenure::Tenure;
use conclave_state_machine::range::Page;
use conclave_state_machine::read::{Read, Table};
use conclave_state_machine::response::{
    Cause, Event, Halt, KeyValue, RangeResponse, Rejection, TxnResponse,
};
use conclave_state_machine::span::Span;
use conclave_state_machine::{history, kv, range};

use self::brief::Allowance;
use crate::counts::{Counts, Known};
use crate::engine::View;
use crate::store::{ReadError, Shared};
use crate::types::{LogId, StoredMembership};

pub use conclave_state_machine::history::EventSpan;
pub use upkeep::Sizes;

/// A handle to the state for everyone except raft; clones are cheap.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

/// Checksum of the history up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C.
    pub hash: u32,
    /// Compacted revision at that time; hashes are comparable only if it is equal.
    pub compacted: i64,
    /// Revision up to which history is included.
    pub revision: i64,
    /// Revision of the store at that time.
    pub current: i64,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Counters after the last applied entry.
    #[must_use]
    pub fn head(&self) -> Arc<Head> {
        self.shared.show(|published| Arc::clone(&published.head))
    }

    /// Whether authentication is enabled, and the auth revision, after the last applied entry.
    #[must_use]
    pub fn auth(&self) -> AuthHead {
        self.shared.show(|published| published.head.auth)
    }

    /// Last applied log id, `None` before the first entry.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.shared.show(|published| published.applied)
    }

    /// Last applied membership.
    #[must_use]
    pub fn membership(&self) -> Arc<StoredMembership> {
        self.shared.show(|published| Arc::clone(&published.membership))
    }

    /// Waits until the entry at `index` is applied. Cancel-safe.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.shared.applied_index.subscribe();
        // The sender is in `shared`, which this handle keeps alive.
        applied.wait_for(|at| *at >= index).await.map(drop).unwrap_or_default();
    }

    /// Waits until a read finds damage. Returns why the member must stop.
    pub async fn failed(&self) -> String {
        let mut failed = self.shared.failed.subscribe();
        // The sender is in `shared`, which this handle keeps alive.
        let reason = failed.wait_for(Option::is_some).await;
        reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }

    /// Answers a range read. Also returns the current revision at which it was answered.
    ///
    /// # Errors
    /// [`ReadError::Rejected`] if the revision cannot be read; [`ReadError::Halt`] if storage fails.
    pub fn range(&self, request: &Range) -> Result<(RangeResponse, i64), ReadError> {
        let look = |counts: &Counts, head: &Head| counts.known(head, request);
        self.consistent_known(look, |rows, head, known| {
            let answer = answer(rows, head, request, known)?;
            let answer = answer.map_err(ReadError::Rejected);
            Ok((oldest(head, request), answer.map(|answer| (answer, head.revision))))
        })
    }

    /// As [`Reader::range`] if the read is short. Returns `None` if the caller must use that
    /// instead, on a thread that may block: because the read needs more rows or bytes than a thread
    /// that serves others has time for, or because a compaction came in between.
    ///
    /// # Errors
    /// Those of [`Reader::range`].
    pub fn range_briefly(
        &self,
        request: &Range,
    ) -> Result<Option<(RangeResponse, i64)>, ReadError> {
        let (seen, known) = self.shared.look(|counts, head| counts.known(head, request));
        let head = &seen.head;
        let allowance = Allowance::new(&seen.rows);
        let answer = answer(&allowance, head, request, known);
        // An incomplete answer does not count, not even as an error: a read cut short can look like
        // damage.
        if allowance.is_spent() || !self.shared.is_complete(&seen, oldest(head, request)) {
            return Ok(None);
        }
        let answer = self.shared.note_halt(answer).map_err(ReadError::Halt)?;
        answer.map(|answer| Some((answer, head.revision))).map_err(ReadError::Rejected)
    }

    /// Answers a read-only transaction. Also returns the current revision at which it was answered.
    ///
    /// # Errors
    /// [`ReadError::Rejected`] if a revision cannot be read or an operation writes;
    /// [`ReadError::Halt`] if storage fails.
    pub fn read_txn(&self, txn: &Txn) -> Result<(TxnResponse, i64), ReadError> {
        self.consistent(|rows, head| {
            let asked = txn.success.iter().chain(&txn.failure).filter_map(|op| match op {
                TxnOp::Range(range) if range.revision > 0 => Some(range.revision),
                TxnOp::Range(_) | TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) => None,
            });
            let oldest = asked.min().unwrap_or(head.revision).min(head.revision);
            let answer = kv::read_txn(rows, head, txn)?.map_err(ReadError::Rejected);
            Ok((oldest, answer.map(|answer| (answer, head.revision))))
        })
    }

    /// Reads the first `keys_max` live keys of the range of `request` at revision `at`, with or
    /// without values as it says. Its other options are ignored.
    ///
    /// # Errors
    /// [`Rejection::Compacted`] if `at` is compacted; [`ReadError::Halt`] if storage fails.
    pub fn page(
        &self,
        request: &Range,
        at: i64,
        keys_max: usize,
    ) -> Result<Vec<KeyValue>, ReadError> {
        self.piece(request, at, (keys_max, usize::MAX))
    }

    /// As [`Reader::page`], but ends with the key whose bytes, value included, reach `bytes_max` in
    /// total: for reading a large range in pieces.
    ///
    /// # Errors
    /// Those of [`Reader::page`].
    pub fn piece(
        &self,
        request: &Range,
        at: i64,
        (keys_max, bytes_max): (usize, usize),
    ) -> Result<Vec<KeyValue>, ReadError> {
        let Range { key, range_end, keys_only, .. } = request;
        self.consistent(|rows, head| {
            if at < head.compacted {
                return Ok((i64::MAX, Err(ReadError::Rejected(Rejection::Compacted))));
            }
            let behind_one: Vec<u8>;
            let (start, end) = match Span::new(key, range_end) {
                Span::Keys { start, end } => (start, end),
                Span::One(key) => {
                    behind_one = [key.as_ref(), &[0]].concat();
                    (key.as_ref(), Some(behind_one.as_slice()))
                }
            };
            let page = Page { start, end, keys_max, bytes_max, keys_only: *keys_only };
            Ok((at, Ok(range::page(rows, at, page)?)))
        })
    }

    /// Reads the events of whole revisions in order, within the bounds of [`EventSpan`].
    ///
    /// # Errors
    /// [`Rejection::Compacted`] if `from` is below the compacted revision; [`ReadError::Halt`] if
    /// storage fails.
    pub fn events(&self, span: EventSpan<'_>) -> Result<Vec<Event>, ReadError> {
        self.consistent(|rows, head| {
            if span.from < head.compacted {
                return Ok((i64::MAX, Err(ReadError::Rejected(Rejection::Compacted))));
            }
            let to = span.to.min(head.revision);
            let events = history::events(rows, EventSpan { to, ..span })?;
            Ok((span.from, Ok(events)))
        })
    }

    /// Returns why the keys with `prefix` that were deleted at `revision` were deleted.
    ///
    /// # Errors
    /// [`Rejection::Compacted`] if `revision` is compacted; [`ReadError::Halt`] if storage fails.
    pub fn causes(&self, revision: i64, prefix: &[u8]) -> Result<Vec<(Bytes, Cause)>, ReadError> {
        self.consistent(|rows, head| {
            if revision < head.compacted {
                return Ok((i64::MAX, Err(ReadError::Rejected(Rejection::Compacted))));
            }
            let causes = history::causes(rows, revision, prefix)?;
            Ok((revision, Ok(causes)))
        })
    }

    /// The places of a lock or election that hold, and the revision at which they do.
    ///
    /// # Errors
    /// [`ReadError::Halt`] if storage fails.
    pub fn holders(&self, name: &[u8]) -> Result<(Vec<Place>, i64), ReadError> {
        self.at_once(|rows, head| {
            let holders = queue::holders(rows, head.revision, name)?;
            Ok((holders, head.revision))
        })
    }

    /// The current revision, if the place of `key` with this fence is certainly first at it
    /// ([`queue::is_first`]); otherwise `None`.
    ///
    /// # Errors
    /// [`ReadError::Halt`] if storage fails.
    pub fn first_since(&self, key: &[u8], fence: i64) -> Result<Option<i64>, ReadError> {
        self.at_once(|rows, head| {
            let is_first = queue::is_first(rows, key, fence)?;
            Ok(is_first.then_some(head.revision))
        })
    }

    /// Key of the place before that of `key` in a queue, and the revision at which this is so, if
    /// only places precede it and the last few events tell: see [`arrival::behind`].
    ///
    /// # Errors
    /// [`ReadError::Halt`] if storage fails.
    pub fn behind_places(
        &self,
        place: (&[u8], i64),
        known: i64,
    ) -> Result<Option<(Bytes, i64)>, ReadError> {
        self.at_once(|rows, head| {
            let before = arrival::behind(rows, head.compacted, place, known)?;
            Ok(before.map(|key| (key, head.revision)))
        })
    }

    /// The first `limit` places of a lock or election, and the revision at which this is so.
    ///
    /// # Errors
    /// [`ReadError::Halt`] if storage fails.
    pub fn places(&self, name: &[u8], limit: usize) -> Result<(Vec<Place>, i64), ReadError> {
        self.at_once(|rows, head| Ok((first_places(rows, head, name, limit)?, head.revision)))
    }

    /// As [`Reader::places`], with what is known about since when they hold.
    ///
    /// # Errors
    /// [`ReadError::Halt`] if storage fails.
    pub fn timed_places(
        &self,
        name: &[u8],
        limit: usize,
    ) -> Result<(Vec<Place>, Tenure, i64), ReadError> {
        self.at_once(|rows, head| {
            let places = first_places(rows, head, name, limit)?;
            Ok((places, Tenure::load(rows, name)?, head.revision))
        })
    }

    /// Checksum of the history up to `revision` (0: the current one), equal on all members with the
    /// same compacted revision. Reads everything, so call it where blocking is allowed.
    ///
    /// # Errors
    /// [`ReadError::Rejected`] if the revision cannot be read; [`ReadError::Halt`] if storage fails.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, ReadError> {
        let rows = self.shared.published().rows;
        let mut answer = None;
        rows.with_snapshot(&mut |snapshot| {
            answer = Some(crate::hash::hash_kv(&View(snapshot), revision));
        });
        self.shared.note(answer.expect("with_snapshot calls its argument"))
    }
}

fn first_places(
    rows: &View<'_>,
    head: &Head,
    name: &[u8],
    limit: usize,
) -> Result<Vec<Place>, Halt> {
    let mut places = Vec::new();
    queue::visit(rows, head.revision, name, &mut |place| {
        places.push(place);
        let is_enough = places.len() >= limit;
        if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(places)
}

/// Answers a range from `rows`, using what is known about its keys.
fn answer(
    rows: &impl Read,
    head: &Head,
    request: &Range,
    known: Option<Known>,
) -> Result<Result<RangeResponse, Rejection>, Halt> {
    match known {
        Some(known) => known.answer(rows, head, request),
        None => range::range(rows, head, request),
    }
}

/// The oldest revision that an answer to `request` relies on.
fn oldest(head: &Head, request: &Range) -> i64 {
    if request.revision > 0 { request.revision } else { head.revision }
}

/// Reads single rows of the newest state: leases, members and the like, which have no history.
impl Read for Reader {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Halt> {
        self.shared.note_halt(self.shared.published().rows.get(table, key))
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Halt>,
    ) -> Result<(), Halt> {
        self.shared.note_halt(self.shared.published().rows.scan(table, start, end, visit))
    }
}
