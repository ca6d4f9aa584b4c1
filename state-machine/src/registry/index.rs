//! Rows beside the instances: which services exist, which instances have health checks, what is
//! due.
//!
//! They follow the keys: the only code that writes keys calls `note`, so the rows are right
//! whatever registers or removes an instance.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::Name;
use super::damping::Flaps;
use super::record::{Health, Record, State, may_be_instance, may_be_lost};
use crate::command::Settlement;
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::response::Halt;
use crate::rows::place;
use crate::rows::{RowReader, RowWriter};

/// First byte of the key of each kind of row.
const SERVICE: u8 = 1;
const CHECK: u8 = 2;
const FLAP: u8 = 3;
const DUE: u8 = 4;
const LOST_DUE: u8 = 5;
const END: u8 = 6;

const FORM: u8 = 1;
const LENGTH_BYTES: usize = 4;

/// What is stored about a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceRow {
    /// Number of registered instances.
    pub live: u64,
    /// Number of lost instances that are kept.
    pub lost: u64,
    /// The guard against mass loss is off: no lost instance is kept.
    pub is_guard_off: bool,
    /// Flap damping is off.
    pub is_damping_off: bool,
    /// When the present window of losses began, in milliseconds since 1970.
    pub(super) window_ms: i64,
    /// Instances registered at that time.
    pub(super) window_live: u64,
    /// Instances lost since then.
    pub(super) window_lost: u64,
}

impl ServiceRow {
    fn encode(&self) -> Bytes {
        let mut row = RowWriter::new(FORM);
        row.uint(self.live);
        row.uint(self.lost);
        row.byte(u8::from(self.is_guard_off));
        row.byte(u8::from(self.is_damping_off));
        row.int(self.window_ms);
        row.uint(self.window_live);
        row.uint(self.window_lost);
        row.finish()
    }

    fn decode(row: &[u8]) -> Result<ServiceRow, Halt> {
        let mut row = RowReader::new("instance", row);
        match row.form()? {
            FORM => Ok(ServiceRow {
                live: row.uint()?,
                lost: row.uint()?,
                is_guard_off: row.uint()? != 0,
                is_damping_off: row.uint()? != 0,
                window_ms: row.int()?,
                window_live: row.uint()?,
                window_lost: row.uint()?,
            }),
            _ => Err(row.corrupt("unknown form")),
        }
    }

    fn is_worth_keeping(&self) -> bool {
        self.live > 0 || self.lost > 0 || self.is_guard_off || self.is_damping_off
    }
}

fn service_key(service: &[u8]) -> Bytes {
    [&[SERVICE], service].concat().into()
}

fn instance_key(kind: u8, service: &[u8], id: &str) -> Bytes {
    [&[kind], place::prefix(service).as_slice(), id.as_bytes()].concat().into()
}

pub(super) fn flap_key(service: &[u8], id: &str) -> Bytes {
    instance_key(FLAP, service, id)
}

/// Reads what is stored about a service; the default if nothing is.
///
/// # Errors
/// [`Halt`] if the storage fails or the row is damaged.
pub fn service<R: Read>(rows: &R, service: &[u8]) -> Result<ServiceRow, Halt> {
    let row = rows.get(Table::Instance, &service_key(service))?;
    row.map_or(Ok(ServiceRow::default()), |row| ServiceRow::decode(&row))
}

pub(super) fn set_service<R: Read>(rows: &mut Overlay<'_, R>, service: &[u8], row: &ServiceRow) {
    if row.is_worth_keeping() {
        rows.put(Table::Instance, service_key(service), row.encode());
    } else {
        rows.delete(Table::Instance, service_key(service));
    }
}

/// Lists the first `limit` services whose names begin with `prefix`, from the name `from` on.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn services<R: Read>(
    rows: &R,
    prefix: &[u8],
    from: &[u8],
    limit: usize,
) -> Result<Vec<(Bytes, ServiceRow)>, Halt> {
    let mut found = Vec::new();
    let start = service_key(prefix.max(from));
    rows.scan(Table::Instance, &start, Some(&[SERVICE.saturating_add(1)]), &mut |key, row| {
        let name = key.get(1..).unwrap_or_default();
        if found.len() >= limit || !name.starts_with(prefix) {
            return Ok(ControlFlow::Break(()));
        }
        found.push((Bytes::copy_from_slice(name), ServiceRow::decode(row)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// An instance that the leader has to check or settle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its service.
    pub service: Bytes,
    /// Its id.
    pub id: String,
    /// Whether it is lost, and only kept for a while.
    pub is_lost: bool,
}

impl Entry {
    fn of(row_key: &[u8]) -> Result<Entry, Halt> {
        let broken =
            || Halt::CorruptRow { table: "instance", detail: format!("{} bytes", row_key.len()) };
        let (kind, rest) = row_key.split_first().ok_or_else(broken)?;
        let (length, rest) = rest.split_at_checked(LENGTH_BYTES).ok_or_else(broken)?;
        let length = u32::from_be_bytes(length.try_into().map_err(|_| broken())?);
        let length = usize::try_from(length).map_err(|_| broken())?;
        let (service, id) = rest.split_at_checked(length).ok_or_else(broken)?;
        let id = String::from_utf8(id.to_vec()).map_err(|_| broken())?;
        let service = Bytes::copy_from_slice(service);
        Ok(Entry { service, id, is_lost: *kind == LOST_DUE })
    }
}

/// A page of a list: the items found, and the row to continue from, if there are more.
pub type Page<T> = (Vec<T>, Option<Bytes>);

/// Lists at most `limit` instances that have a health check, from the row `from` on (empty: the
/// first).
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn checks<R: Read>(rows: &R, from: &[u8], limit: usize) -> Result<Page<Entry>, Halt> {
    page(rows, (&[CHECK], &[FLAP]), from, limit, |key, _| Entry::of(key))
}

/// Lists the instances with something due: lost, damped, critical or draining ones. Pages as
/// [`checks`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn due<R: Read>(rows: &R, from: &[u8], limit: usize) -> Result<Page<(Entry, Vec<Due>)>, Halt> {
    page(rows, (&[DUE], &[END]), from, limit, |key, row| Ok((Entry::of(key)?, decode_due(row)?)))
}

/// Lists the instances with a penalty. Pages as [`checks`].
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn flapping<R: Read>(
    rows: &R,
    from: &[u8],
    limit: usize,
) -> Result<Page<(Entry, Flaps)>, Halt> {
    page(rows, (&[FLAP], &[DUE]), from, limit, |key, row| {
        Ok((Entry::of(key)?, Flaps::decode(row)?))
    })
}

fn page<R: Read, T>(
    rows: &R,
    (first, end): (&[u8], &[u8]),
    from: &[u8],
    limit: usize,
    decode: impl Fn(&[u8], &[u8]) -> Result<T, Halt>,
) -> Result<Page<T>, Halt> {
    let (mut found, mut next) = (Vec::new(), None);
    rows.scan(Table::Instance, first.max(from), Some(end), &mut |key, row| {
        if found.len() >= limit {
            next = Some(Bytes::copy_from_slice(key));
            return Ok(ControlFlow::Break(()));
        }
        found.push(decode(key, row)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((found, next))
}

/// Bounds for how long a lost instance is kept, in milliseconds; within them, the TTL of its
/// session.
const LOST_MS_MIN: u64 = 10_000;
const LOST_MS_MAX: u64 = 120_000;

/// Something that has to be done with an instance after a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// What to do.
    pub what: Settlement,
    /// When the state in question began, according to the record.
    pub stamp: i64,
    /// How long after that, in milliseconds. 0 for [`Settlement::Undamp`], whose time follows from
    /// the penalty.
    pub wait_ms: u64,
}

fn encode_due(dues: &[Due]) -> Bytes {
    let mut row = RowWriter::new(FORM);
    row.size(dues.len());
    for due in dues {
        row.byte(due.what.number());
        row.int(due.stamp);
        row.uint(due.wait_ms);
    }
    row.finish()
}

fn decode_due(row: &[u8]) -> Result<Vec<Due>, Halt> {
    let mut row = RowReader::new("instance", row);
    if row.form()? != FORM {
        return Err(row.corrupt("unknown form"));
    }
    let mut dues = Vec::new();
    // Each item takes at least a byte, so a corrupt count ends with the row.
    for _ in 0..row.size()? {
        let what = i32::try_from(row.uint()?).ok().and_then(Settlement::from_number);
        let what = what.ok_or_else(|| row.corrupt("unknown settlement"))?;
        dues.push(Due { what, stamp: row.int()?, wait_ms: row.uint()? });
    }
    Ok(dues)
}

/// What the index stores about an instance.
#[derive(Default, PartialEq, Eq)]
struct Facts {
    has_check: bool,
    dues: Vec<Due>,
}

impl Facts {
    fn of(record: &Record) -> Facts {
        let details = &record.details;
        if record.is_stale() {
            let ttl_ms = u64::try_from(details.ttl_seconds).unwrap_or(0).saturating_mul(1_000);
            let wait_ms = ttl_ms.clamp(LOST_MS_MIN, LOST_MS_MAX);
            let lost = Due { what: Settlement::DropLost, stamp: details.lost_ms, wait_ms };
            return Facts { has_check: false, dues: vec![lost] };
        }
        let due = |what, wait_ms| Due { what, stamp: details.changed_ms, wait_ms };
        let mut dues = Vec::new();
        if details.is_damped {
            dues.push(due(Settlement::Undamp, 0));
        }
        dues.extend(removals(record));
        if details.drain_ms > 0 && record.state_shown() == State::Draining {
            dues.push(due(Settlement::RemoveDrained, details.drain_ms));
        }
        let has_check = details.all_checks().next().is_some();
        Facts { has_check, dues }
    }
}

/// The times after which an instance is removed because it is critical: one for each check that
/// asks for it. A named check counts from its own result, the unnamed one from when the instance
/// became critical.
pub(super) fn removals(record: &Record) -> impl Iterator<Item = Due> {
    let details = &record.details;
    details.all_checks().filter(|(_, check)| check.remove_after_ms > 0).filter_map(
        |(name, check)| {
            let stamp = if name.is_empty() {
                (record.health_known() == Health::Critical).then_some(details.changed_ms)?
            } else {
                details.results.get(name).filter(|found| found.health == Health::Critical)?.since_ms
            };
            Some(Due { what: Settlement::RemoveCritical, stamp, wait_ms: check.remove_after_ms })
        },
    )
}

/// Updates the index after a key changed from one value to another. Returns whether the key is a
/// registered instance now.
pub(crate) fn note<R: Read>(
    rows: &mut Overlay<'_, R>,
    key: &[u8],
    before: Option<&[u8]>,
    after: Option<&[u8]>,
) -> Result<bool, Halt> {
    let is_candidate = |value: Option<&[u8]>| {
        value.is_some_and(|value| may_be_instance(value) || may_be_lost(value))
    };
    if !is_candidate(before) && !is_candidate(after) {
        return Ok(false);
    }
    let Some(name) = Name::of(key) else { return Ok(false) };
    let facts = |value: Option<&[u8]>| {
        value.and_then(|value| name.decode(value)).map(|record| Facts::of(&record))
    };
    let (was, is) = (facts(before), facts(after));
    let is_alive = is.is_some() && !name.is_lost;
    if was == is {
        return Ok(is_alive);
    }
    if was.is_some() != is.is_some() {
        count(rows, name, is.is_some())?;
    }
    let (was, is) = (was.unwrap_or_default(), is.unwrap_or_default());
    let check_key = instance_key(CHECK, name.service, name.id);
    match (was.has_check, is.has_check) {
        (false, true) => rows.put(Table::Instance, check_key, Bytes::new()),
        (true, false) => rows.delete(Table::Instance, check_key),
        (true, true) | (false, false) => {}
    }
    if was.dues != is.dues {
        let kind = if name.is_lost { LOST_DUE } else { DUE };
        let due_key = instance_key(kind, name.service, name.id);
        if is.dues.is_empty() {
            rows.delete(Table::Instance, due_key);
        } else {
            rows.put(Table::Instance, due_key, encode_due(&is.dues));
        }
    }
    Ok(is_alive)
}

fn count<R: Read>(
    rows: &mut Overlay<'_, R>,
    name: Name<'_>,
    is_one_more: bool,
) -> Result<(), Halt> {
    let mut row = service(rows, name.service)?;
    let counted = if name.is_lost { &mut row.lost } else { &mut row.live };
    *counted = if is_one_more { counted.saturating_add(1) } else { counted.saturating_sub(1) };
    set_service(rows, name.service, &row);
    Ok(())
}
