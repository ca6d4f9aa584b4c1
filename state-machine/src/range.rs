//! Range reads: every option of etcd's `RangeRequest`, at the current or an older revision.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::command::{Range, SortOrder, SortTarget};
use crate::head::Head;
use crate::live::{self, Arena, Live, Values};
use crate::outcome::{Stop, split};
use crate::read::Read;
use crate::response::{Halt, KeyValue, RangeResponse, Rejection};
use crate::span::Span;
use crate::validate;

/// Answers `request` as of `head`, or of the older revision it names.
///
/// `rows` may be newer than `head` (a live store rather than a snapshot). In that case the caller
/// must check afterwards that no compaction above the revision it read at has *begun* meanwhile,
/// and otherwise answer [`Rejection::Compacted`] or read again.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged. In the inner result, as an answer for the
/// client: [`Rejection::EmptyKey`], [`Rejection::Compacted`], [`Rejection::FutureRevision`]. As in
/// etcd, no alarm stops a read.
pub fn range<R: Read>(
    rows: &R,
    head: &Head,
    request: &Range,
) -> Result<Result<RangeResponse, Rejection>, Halt> {
    split(read_counted(rows, head, request, None))
}

/// Like [`range`], for a caller that knows how many keys of the range are live at the revision to
/// read (see [`crate::rank`]): a limited read can then stop at its limit.
///
/// # Errors
/// As [`range`].
pub fn range_counted<R: Read>(
    rows: &R,
    head: &Head,
    request: &Range,
    live_keys: i64,
) -> Result<Result<RangeResponse, Rejection>, Halt> {
    split(read_counted(rows, head, request, Some(live_keys)))
}

pub(crate) fn read<R: Read>(rows: &R, head: &Head, request: &Range) -> Result<RangeResponse, Stop> {
    read_counted(rows, head, request, None)
}

fn read_counted<R: Read>(
    rows: &R,
    head: &Head,
    request: &Range,
    live_keys: Option<i64>,
) -> Result<RangeResponse, Stop> {
    validate::key(&request.key)?;
    let at = revision_to_read(head, request.revision)?;
    let span = Span::new(&request.key, &request.range_end);
    let is_counted = span.is_everything() && at == head.revision;
    let live_keys = live_keys.or_else(|| is_counted.then_some(head.key_count));
    if request.count_only {
        let count = match live_keys {
            Some(live_keys) => live_keys,
            None => count(rows, at, span)?,
        };
        return Ok(RangeResponse { count, ..Default::default() });
    }
    let mut found = match span {
        Span::One(key) => find_one(rows, at, key, request)?,
        Span::Keys { .. } => find_many(rows, at, request, live_keys)?,
    };
    sort(&mut found.kvs, request);
    cut(&mut found, request);
    Ok(found)
}

fn revision_to_read(head: &Head, asked: i64) -> Result<i64, Rejection> {
    let at = if asked <= 0 { head.revision } else { asked };
    if at > head.revision {
        return Err(Rejection::FutureRevision);
    }
    if at < head.compacted {
        return Err(Rejection::Compacted);
    }
    Ok(at)
}

/// Counts live keys by visiting them: for the partial buckets at the ends of a range in
/// [`crate::rank`], and where there is no index.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn count<R: Read>(rows: &R, at: i64, span: Span<'_>) -> Result<i64, Halt> {
    live::count(rows, at, span)
}

fn find_one<R: Read>(
    rows: &R,
    at: i64,
    key: &Bytes,
    request: &Range,
) -> Result<RangeResponse, Halt> {
    let Some(kv) = live::get(rows, at, key)? else { return Ok(RangeResponse::default()) };
    let kvs = if passes_filters(request, kv.mod_revision, kv.create_revision) {
        vec![kv]
    } else {
        Vec::new()
    };
    Ok(RangeResponse { kvs, more: false, count: 1 })
}

fn find_many<R: Read>(
    rows: &R,
    at: i64,
    request: &Range,
    live_keys: Option<i64>,
) -> Result<RangeResponse, Halt> {
    let span = Span::new(&request.key, &request.range_end);
    let limit = limit_in_key_order(request);
    let with_values = !request.keys_only || request.sort_target == SortTarget::Value;
    let values = if with_values { Values::Wanted } else { Values::Ignored };
    let mut arena = Arena::default();
    let mut kvs: Vec<KeyValue> = Vec::new();
    let mut count = 0_i64;
    let is_full = |found: usize| limit.is_some_and(|limit| found >= limit);
    live::visit(rows, at, span, values, &mut |live: Live<'_>| {
        count = count.saturating_add(1);
        if passes_filters(request, live.mod_revision, live.state.create_revision) {
            kvs.push(live.to_key_value(&mut arena, with_values));
        }
        Ok(if is_full(kvs.len()) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    if let (Some(last), true) = (kvs.last(), is_full(kvs.len())) {
        // A request with filters has no limit here, so every key up to the last one found was
        // counted.
        count = match live_keys {
            Some(live_keys) => live_keys,
            None => count.saturating_add(count_behind(rows, at, &last.key, &request.range_end)?),
        };
    }
    Ok(RangeResponse { kvs, more: false, count })
}

fn count_behind<R: Read>(rows: &R, at: i64, last: &Bytes, range_end: &Bytes) -> Result<i64, Halt> {
    let start = Bytes::from([last.as_ref(), &[0]].concat());
    live::count(rows, at, Span::new(&start, range_end))
}

/// After how many keys a read in key order may stop: one more than the limit, to know whether there
/// are more. `None` if all keys must be read before the limit can be applied.
fn limit_in_key_order(request: &Range) -> Option<usize> {
    let is_in_key_order = match (request.sort_order, request.sort_target) {
        // etcd's quirk: without an order, the limit comes before the sort.
        (SortOrder::None, _) | (SortOrder::Ascend, SortTarget::Key) => true,
        (SortOrder::Ascend | SortOrder::Descend, _) => false,
    };
    limit_of_keys(request).filter(|_| is_in_key_order)
}

/// How many keys from the end of the range are needed: one more than the limit, to know whether
/// there are more. `None` if the request does not ask for the last keys in key order.
#[must_use]
pub fn limit_from_the_end(request: &Range) -> Option<usize> {
    let is_backwards =
        matches!((request.sort_order, request.sort_target), (SortOrder::Descend, SortTarget::Key));
    limit_of_keys(request).filter(|_| is_backwards)
}

/// One more key than the limit, unless filters skip keys of the range.
fn limit_of_keys(request: &Range) -> Option<usize> {
    let has_filters = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    if request.limit <= 0 || has_filters {
        return None;
    }
    Some(usize::try_from(request.limit).unwrap_or(usize::MAX).saturating_add(1))
}

fn passes_filters(request: &Range, mod_revision: i64, create_revision: i64) -> bool {
    let bounds = [
        (mod_revision, request.min_mod_revision, request.max_mod_revision),
        (create_revision, request.min_create_revision, request.max_create_revision),
    ];
    bounds.iter().all(|(revision, min, max)| {
        (*min == 0 || revision >= min) && (*max == 0 || revision <= max)
    })
}

fn sort(kvs: &mut [KeyValue], request: &Range) {
    let compare: fn(&KeyValue, &KeyValue) -> Ordering = match request.sort_target {
        // Already in this order.
        SortTarget::Key if request.sort_order != SortOrder::Descend => return,
        SortTarget::Key => |a, b| a.key.cmp(&b.key),
        SortTarget::Version => |a, b| a.version.cmp(&b.version),
        SortTarget::Create => |a, b| a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => |a, b| a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => |a, b| a.value.cmp(&b.value),
    };
    // Stable, so that ties stay in key order in both directions.
    match request.sort_order {
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(compare),
        SortOrder::Descend => kvs.sort_by(|a, b| compare(b, a)),
    }
}

fn cut(found: &mut RangeResponse, request: &Range) {
    if let Ok(limit) = usize::try_from(request.limit)
        && limit > 0
        && found.kvs.len() > limit
    {
        found.kvs.truncate(limit);
        found.more = true;
    }
    if request.keys_only {
        for kv in &mut found.kvs {
            kv.value = Bytes::new();
            // etcd 3.7 answers from its index, which does not contain leases, unless it must sort
            // by value.
            if request.sort_target != SortTarget::Value {
                kv.lease = 0;
            }
        }
    }
}

/// Visits the keys of `[start, end)` that have a row, in key order, until `visit` breaks, and tells
/// for each whether it is live at revision `at`. One scan, which does not read values. `end` of
/// `None` means no bound. Same condition on compaction as [`range`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn key_rows<R: Read>(
    rows: &R,
    at: i64,
    interval: (&[u8], Option<&[u8]>),
    visit: &mut dyn FnMut(&[u8], bool) -> ControlFlow<()>,
) -> Result<(), Halt> {
    live::visit_rows(rows, at, interval, visit)
}

/// Visits every live key at revision `at` with its value, in key order, in one scan that holds one
/// of them at a time. Same condition on compaction as [`range`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn key_values<R: Read>(rows: &R, at: i64, visit: &mut dyn FnMut(KeyValue)) -> Result<(), Halt> {
    let all = Span::Keys { start: &[], end: None };
    live::visit(rows, at, all, Values::Wanted, &mut |live: Live<'_>| {
        visit(live.to_key_value(&mut Arena::default(), true));
        Ok(ControlFlow::Continue(()))
    })
}

/// A part of a large range, for [`page`]. The default is everything.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// First key.
    pub start: &'a [u8],
    /// End of the range, exclusive; `None` for no bound.
    pub end: Option<&'a [u8]>,
    /// Maximum number of keys.
    pub keys_max: usize,
    /// The page ends with the key whose bytes, value included, reach this total.
    pub bytes_max: usize,
    /// Leave out values, which are then not read, and leases, as [`range`] does.
    pub keys_only: bool,
}

impl Default for Page<'_> {
    fn default() -> Self {
        let (keys_max, bytes_max) = (usize::MAX, usize::MAX);
        Page { start: &[], end: None, keys_max, bytes_max, keys_only: false }
    }
}

/// Reads the first live keys of `page` at revision `at`, in key order, without counting the rest.
/// Same condition on compaction as [`range`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn page<R: Read>(rows: &R, at: i64, page: Page<'_>) -> Result<Vec<KeyValue>, Halt> {
    let Page { start, end, keys_max, bytes_max, keys_only } = page;
    let mut arena = Arena::default();
    let (mut kvs, mut bytes) = (Vec::new(), 0_usize);
    if keys_max == 0 {
        return Ok(kvs);
    }
    let values = if keys_only { Values::Ignored } else { Values::Wanted };
    live::visit(rows, at, Span::Keys { start, end }, values, &mut |live: Live<'_>| {
        let mut kv = live.to_key_value(&mut arena, !keys_only);
        if keys_only {
            kv.lease = 0;
        }
        bytes = bytes.saturating_add(kv.key.len()).saturating_add(kv.value.len());
        kvs.push(kv);
        let is_full = kvs.len() >= keys_max || bytes >= bytes_max;
        Ok(if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(kvs)
}
