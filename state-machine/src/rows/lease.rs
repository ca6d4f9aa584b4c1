//! `Lease` and `LeaseKey` rows: id -> TTL and owner; and which keys are attached to which lease.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::response::{Halt, PrimitiveResponse};

/// Format of a lease with only a TTL.
const FORM_PLAIN: u8 = 1;
/// Format of a lease with an owner.
const FORM_SESSION: u8 = 2;
/// Format of a lease that remembers requests.
const FORM_REQUESTS: u8 = 3;
/// In the byte that tells whether a request was done (bit 0), the request's kind is shifted left by
/// this. Older rows have 0 there.
const KIND_SHIFT: u8 = 1;
/// Most requests that are over but not settled: twice as many as a session may have unsettled.
const ANSWERED_MAX: usize = 512;
/// Most broken places of one session of which it remembers who broke them: the last ones.
const BROKEN_MAX: usize = 4;
/// Added to these formats: the TTL is followed by the log index of the grant. Rows without it are
/// still read, but no longer written.
const NUMBERED: u8 = 3;
/// Added instead: that is followed by the name of the user.
const OWNED: u8 = 6;

/// A lease as granted, and what is stored with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseRow {
    /// TTL in seconds.
    pub ttl: i64,
    /// Log index of its grant, which tells apart leases that had the same id; 0 if that is not
    /// known.
    pub granted: u64,
    /// User who began the session; empty without authentication, or for a lease that is not a
    /// session.
    pub user: String,
    /// Id of the request that began the session; empty for a lease that is not a session.
    pub request_id: Bytes,
    /// Name of the session's owner, for display.
    pub owner: String,
    /// More about the owner.
    pub metadata: Vec<(String, String)>,
    /// Lock requests without a number that were cancelled before they arrived.
    pub cancelled: Vec<Bytes>,
    /// Requests with smaller numbers are answered or abandoned.
    pub settled: u64,
    /// Answers to other numbered requests.
    pub answered: Vec<Answered>,
    /// Places that an operator has broken.
    pub broken: Vec<Broken>,
}

/// What a session remembers about a numbered request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// The client's number.
    pub number: u64,
    /// Stable number of the kind of request, below 128; 0: not known, as for a request that was
    /// abandoned before it arrived.
    pub kind: u8,
    /// The answer.
    pub answer: PrimitiveResponse,
}

/// A place that an operator has taken from its session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    /// Key of the place.
    pub key: Bytes,
    /// Its fence when it was broken.
    pub fence: i64,
    /// User who broke it; empty without authentication.
    pub by: String,
    /// The reason given.
    pub reason: String,
}

impl LeaseRow {
    /// Whether the lease is a session.
    #[must_use]
    pub fn is_session(&self) -> bool {
        !self.request_id.is_empty()
    }

    /// Forgets requests with smaller numbers.
    pub(crate) fn settle(&mut self, settled: u64) {
        self.settled = self.settled.max(settled);
        self.answered.retain(|known| known.number >= self.settled);
    }

    /// Records that a request is over without an answer. Returns whether that is new. Above the
    /// bound, the oldest such request is settled, with all before it.
    pub(crate) fn end(&mut self, number: u64) -> bool {
        if number == 0 || self.is_settled(number) {
            return false;
        }
        self.answered.push(Answered { number, ..Answered::default() });
        if self.answered.len() > ANSWERED_MAX {
            let oldest = self.answered.iter().map(|known| known.number).min();
            self.settle(oldest.unwrap_or(number).saturating_add(1));
        }
        true
    }

    /// Remembers who broke a place, while the session lives and until [`BROKEN_MAX`] later ones
    /// were broken.
    pub(crate) fn note_broken(&mut self, broken: Broken) {
        if self.broken.len() >= BROKEN_MAX {
            self.broken.remove(0);
        }
        self.broken.push(broken);
    }

    /// Whether a request was answered or abandoned; never for number 0.
    pub(crate) fn is_settled(&self, number: u64) -> bool {
        number > 0 && (number < self.settled || self.answer(number).is_some())
    }

    /// What is remembered about an unsettled request.
    pub(crate) fn known(&self, number: u64) -> Option<Answered> {
        self.answered.iter().find(|known| known.number == number).copied()
    }

    /// The answer to an unsettled request.
    pub(crate) fn answer(&self, number: u64) -> Option<PrimitiveResponse> {
        self.known(number).map(|known| known.answer)
    }

    /// Bytes of owner and metadata, for the size of the store.
    pub(crate) fn owner_bytes(&self) -> usize {
        let pairs =
            self.metadata.iter().map(|(name, value)| name.len().saturating_add(value.len()));
        pairs.fold(self.owner.len(), usize::saturating_add)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let is_remembering = !self.answered.is_empty() || !self.broken.is_empty();
        let has_requests = self.settled > 0 || is_remembering;
        let is_plain = !self.is_session() && self.user.is_empty();
        if is_plain && self.cancelled.is_empty() && !has_requests {
            return self.begin(FORM_PLAIN).finish();
        }
        let mut row = self.begin(if has_requests { FORM_REQUESTS } else { FORM_SESSION });
        row.bytes(&self.request_id);
        row.bytes(self.owner.as_bytes());
        row.size(self.metadata.len());
        for (name, value) in &self.metadata {
            row.bytes(name.as_bytes());
            row.bytes(value.as_bytes());
        }
        row.size(self.cancelled.len());
        self.cancelled.iter().for_each(|request| row.bytes(request));
        if has_requests {
            row.uint(self.settled);
            row.size(self.answered.len());
            for Answered { number, kind, answer } in &self.answered {
                row.uint(*number);
                row.byte(kind << KIND_SHIFT | u8::from(answer.is_done));
                row.int(answer.number);
                row.int(answer.revision);
            }
            // At the end, so that it takes no bytes for nearly all sessions: this row is written
            // with each request.
            for Broken { key, fence, by, reason } in &self.broken {
                row.bytes(key);
                row.int(*fence);
                row.bytes(by.as_bytes());
                row.bytes(reason.as_bytes());
            }
        }
        row.finish()
    }

    fn begin(&self, form: u8) -> RowWriter {
        let is_owned = !self.user.is_empty();
        let mut row = RowWriter::new(form.saturating_add(if is_owned { OWNED } else { NUMBERED }));
        row.int(self.ttl);
        row.uint(self.granted);
        if is_owned {
            row.bytes(self.user.as_bytes());
        }
        row
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &[u8]) -> Result<LeaseRow, Halt> {
        let mut row = RowReader::new("lease", row);
        let Front { form, ttl, granted, is_owned } = front(&mut row)?;
        let user = if is_owned { row.string()? } else { String::new() };
        match form {
            FORM_PLAIN => Ok(LeaseRow { ttl, granted, user, ..LeaseRow::default() }),
            form => Ok(LeaseRow {
                ttl,
                granted,
                user,
                request_id: Bytes::copy_from_slice(row.bytes()?),
                owner: row.string()?,
                // Each item takes at least a byte, so a corrupt count ends with the row.
                metadata: (0..row.size()?)
                    .map(|_| Ok((row.string()?, row.string()?)))
                    .collect::<Result<_, Halt>>()?,
                cancelled: (0..row.size()?)
                    .map(|_| Ok(Bytes::copy_from_slice(row.bytes()?)))
                    .collect::<Result<_, Halt>>()?,
                settled: if form == FORM_REQUESTS { row.uint()? } else { 0 },
                answered: if form == FORM_REQUESTS { answered(&mut row)? } else { Vec::new() },
                broken: if form == FORM_REQUESTS { broken(&mut row)? } else { Vec::new() },
            }),
        }
    }

    /// Reads only the TTL and the log index of the grant.
    ///
    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode_front(row: &[u8]) -> Result<(i64, u64), Halt> {
        let Front { ttl, granted, .. } = front(&mut RowReader::new("lease", row))?;
        Ok((ttl, granted))
    }
}

/// The first fields of every row.
struct Front {
    /// One of the three formats above, without what was added.
    form: u8,
    ttl: i64,
    granted: u64,
    /// Whether the name of the user comes next.
    is_owned: bool,
}

fn front(row: &mut RowReader<'_>) -> Result<Front, Halt> {
    let written = row.form()?;
    let kinds = [OWNED, NUMBERED, 0].map(|added| (written.checked_sub(added), added));
    let kind = kinds.into_iter().find(|(form, _)| form.is_some_and(|form| form > 0));
    match kind {
        Some((Some(form @ FORM_PLAIN..=FORM_REQUESTS), added)) => Ok(Front {
            form,
            ttl: row.int()?,
            granted: if added > 0 { row.uint()? } else { 0 },
            is_owned: added == OWNED,
        }),
        _ => Err(row.corrupt("unknown form")),
    }
}

fn answered(row: &mut RowReader<'_>) -> Result<Vec<Answered>, Halt> {
    let count = row.size()?;
    let mut answered = Vec::new();
    for _ in 0..count {
        let number = row.uint()?;
        let done = row.form()?;
        let is_done = done & 1 != 0;
        let answer = PrimitiveResponse { is_done, number: row.int()?, revision: row.int()? };
        answered.push(Answered { number, kind: done >> KIND_SHIFT, answer });
    }
    Ok(answered)
}

fn broken(row: &mut RowReader<'_>) -> Result<Vec<Broken>, Halt> {
    let mut broken = Vec::new();
    while !row.is_empty() {
        let (key, fence) = (Bytes::copy_from_slice(row.bytes()?), row.int()?);
        broken.push(Broken { key, fence, by: row.string()?, reason: row.string()? });
    }
    Ok(broken)
}

/// Key of a `Lease` row, and prefix of its `LeaseKey` rows.
pub(crate) fn row_key(id: i64) -> [u8; 8] {
    id.to_be_bytes()
}

/// The inverse of [`row_key`].
///
/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a key.
pub(crate) fn id(row_key: &[u8]) -> Result<i64, Halt> {
    let bytes = row_key.try_into().map_err(|_| Halt::CorruptRow {
        table: "lease",
        detail: format!("key of {} bytes", row_key.len()),
    })?;
    Ok(i64::from_be_bytes(bytes))
}

/// Key of the `LeaseKey` row that attaches `key` to lease `id`.
pub(crate) fn attachment_key(id: i64, key: &[u8]) -> Bytes {
    Bytes::from([&row_key(id), key].concat())
}

/// First key after all attachments of lease `id`; `None` if it is the largest id.
pub(crate) fn attachments_end(id: i64) -> Option<[u8; 8]> {
    id.cast_unsigned().checked_add(1).map(u64::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let plain = LeaseRow { ttl: 9_000_000_000, granted: 300, ..LeaseRow::default() };
        let session = LeaseRow {
            request_id: "r".into(),
            owner: "worker-1".into(),
            metadata: vec![("zone".into(), "a".into())],
            cancelled: vec!["x".into(), "y".into()],
            ..plain.clone()
        };
        let answer = PrimitiveResponse { is_done: true, number: -3, revision: 9 };
        let known = |number, kind| Answered { number, kind, answer };
        let asked =
            LeaseRow { settled: 4, answered: vec![known(4, 0), known(7, 127)], ..session.clone() };
        let settled = LeaseRow { settled: 1, ..plain.clone() };
        let cancelled = LeaseRow { cancelled: vec!["z".into()], ..plain.clone() };
        let mut broken = asked.clone();
        for fence in 1..=i64::try_from(2 * BROKEN_MAX).unwrap() {
            let (by, reason) = ("ann".to_owned(), "stuck".to_owned());
            broken.note_broken(Broken { key: "l/1".into(), fence, by, reason });
        }
        assert_eq!(broken.broken.len(), BROKEN_MAX);
        let only_broken = LeaseRow { broken: broken.broken[..1].to_vec(), ..plain.clone() };
        let rows = [plain, session, asked, settled, cancelled, broken, only_broken];
        let owned = rows.clone().map(|row| LeaseRow { user: "ann".into(), ..row });
        for row in rows.into_iter().chain(owned) {
            assert_eq!(LeaseRow::decode(&row.encode()).unwrap(), row);
            assert_eq!(LeaseRow::decode_front(&row.encode()).unwrap(), (row.ttl, 300));
            assert!(LeaseRow::decode(&row.encode()[..1]).is_err());
        }
        assert!(LeaseRow::decode(&[]).is_err());
        for form in [0, 10, 255] {
            assert!(LeaseRow::decode(&[form, 1, 1, 1]).is_err());
        }
        assert_eq!(id(&row_key(-5)).unwrap(), -5);
        assert!(id(b"short").is_err());
    }

    #[test]
    fn rows_of_before_grants_were_told_apart_are_read() {
        let row = LeaseRow { ttl: 60, request_id: "r".into(), settled: 2, ..LeaseRow::default() };
        let new = row.encode();
        // The TTL and the log index take one byte each.
        let old = [&[FORM_REQUESTS, new[1]], &new[3..]].concat();
        assert_eq!(LeaseRow::decode(&old).unwrap(), row);
        assert_eq!(LeaseRow::decode_front(&old).unwrap(), (60, 0));
    }

    #[test]
    fn attachments_of_one_lease_are_together() {
        for id in [1, 255, i64::MAX, -2] {
            let key = attachment_key(id, b"\xff\xff");
            assert!(row_key(id).as_slice() < key.as_ref());
            assert!(key.as_ref() < attachments_end(id).unwrap().as_slice());
        }
        assert_eq!(attachments_end(-1), None, "the last id has no next one");
    }
}
