//! Durable rows, one file per kind: key bytes, value, and who may delete it.
//!
//! Numbers are LEB128 varints (signed ones as their two's complement bits): most are small, and a
//! put writes two rows. The first byte of a row is its format, so that later formats can be told
//! apart.
//!
//! | file | table | key | value | exists until |
//! |---|---|---|---|---|
//! | `key.rs` | `Key` | user key | newest state (without a large value) or tombstone | compaction deletes its tombstone |
//! | `rev.rs` | `Rev` | main, sub (big endian) | the event | compaction reaches its successor |
//! | `skips.rs` | `Key`, `Rev` | | links over many changes of a key | the row |
//! | `lease.rs` | `Lease` | id (big endian) | TTL, owner, answers to requests | revoke or expiry |
//! | `lease.rs` | `LeaseKey` | id, user key | nothing | the key is detached |
//! | `place.rs` | `Place` | name, create revision, child | streams that wait for the place | the key `name/child` is deleted or loses its lease |
//! | `place.rs` | `Place` | name | summary of the queue: its first place, the share of its holders, flags | the last place is deleted |
//! | `place.rs` | `Place` | name, 0x80, session, request | child of the place that the request shares | the request is given up |
//! | `registry/index.rs`, `registry/damping.rs` | `Instance` | kind, service, id | what the registry stores about services and instances | the instance is deleted |
//! | `member.rs` | `Member` | id (big endian) | name, URLs | for ever |
//! | `auth.rs` | `Auth` | `u`, name | password hash, roles | the user is deleted |
//! | `auth.rs` | `Auth` | `r`, name | permissions | the role is deleted |
//! | `writer.rs` | `Writer` | `w`, writer | answers to writes that may be retried | too many others have written |
//! | `writer.rs` | `Writer` | `t`, revision (big endian), writer | nothing | as above |
//! | `writer.rs` | `Writer` | `n` | number of writers, and what may have been forgotten | for ever |
//! | `head.rs` | `Meta` | `head` | counters, alarms, digest | for ever |

pub(crate) mod auth;
pub(crate) mod head;
pub(crate) mod key;
pub(crate) mod lease;
pub(crate) mod member;
pub(crate) mod place;
pub(crate) mod rev;
pub(crate) mod skips;
pub(crate) mod writer;

use bytes::Bytes;

use crate::response::Halt;
use crate::revision::Revision;

/// First byte of a `Key` or `Rev` row that holds a value.
const FORM_PUT: u8 = 1;
/// First byte of a `Key` or `Rev` row that holds a deletion.
const FORM_TOMBSTONE: u8 = 2;
/// First byte of a `Key` row of a put whose value is only in its `Rev` row. (A `Rev` row with this
/// first byte is a tombstone with a cause.)
const FORM_PUT_APART: u8 = 3;

/// Set in the first byte of a `Key` or `Rev` row that has links of [`skips`] after it.
const WITH_SKIPS: u8 = 0x40;

/// The state after a put, as stored in a `Key` or `Rev` row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State<'a> {
    /// Revision of the put that (re)created the key.
    pub(crate) create_revision: i64,
    /// Puts since creation, from 1.
    pub(crate) version: i64,
    /// Attached lease, 0 for none.
    pub(crate) lease: i64,
    /// Value.
    pub(crate) value: &'a [u8],
}

impl<'a> State<'a> {
    /// Appends everything except the value.
    fn encode_fields(&self, row: &mut FieldWriter) {
        row.int(self.create_revision);
        row.int(self.version);
        row.int(self.lease);
    }

    /// Reads what [`State::encode_fields`] wrote; the caller fills in the value.
    fn decode_fields(row: &mut RowReader<'a>) -> Result<State<'a>, Halt> {
        Ok(State {
            create_revision: row.int()?,
            version: row.int()?,
            lease: row.int()?,
            value: &[],
        })
    }
}

/// Most bytes of a 64-bit varint.
const VARINT_BYTES_MAX: usize = 10;

/// Writes `number` byte by byte.
fn varint(mut number: u64, mut write: impl FnMut(u8)) {
    while number >= 0x80 {
        write(low_seven_bits(number) | 0x80);
        number >>= 7;
    }
    write(low_seven_bits(number));
}

fn low_seven_bits(number: u64) -> u8 {
    let [low, ..] = number.to_le_bytes();
    low & 0x7f
}

/// Space for the fields of a `Key` or `Rev` row: the format, links with their length, at most 8
/// numbers.
const FIELDS_BYTES_MAX: usize = 1 + 9 * VARINT_BYTES_MAX + skips::SKIPS_BYTES_MAX;

/// Builds a `Key` or `Rev` row: numbers first, on the stack, so that the row is one allocation of
/// the right size.
struct FieldWriter {
    fields: [u8; FIELDS_BYTES_MAX],
    length: usize,
}

impl FieldWriter {
    /// Begins a row of this format, with these links if there are any.
    fn new(form: u8, skips: &[u8]) -> FieldWriter {
        let mut fields = [0; FIELDS_BYTES_MAX];
        fields[0] = form;
        let mut writer = FieldWriter { fields, length: 1 };
        if !skips.is_empty() {
            writer.fields[0] |= WITH_SKIPS;
            writer.size(skips.len());
            skips.iter().for_each(|byte| writer.byte(*byte));
        }
        writer
    }

    fn byte(&mut self, byte: u8) {
        let place = self.fields.get_mut(self.length).expect("FIELDS_BYTES_MAX is enough");
        *place = byte;
        self.length = self.length.saturating_add(1);
    }

    fn uint(&mut self, number: u64) {
        varint(number, |byte| self.byte(byte));
    }

    fn int(&mut self, number: i64) {
        self.uint(number.cast_unsigned());
    }

    fn size(&mut self, size: usize) {
        self.uint(u64::try_from(size).unwrap_or(u64::MAX));
    }

    /// Main revision 0 means none: the first change of a store has revision 2.
    fn previous(&mut self, previous: Option<Revision>) {
        let Revision { main, sub } = previous.unwrap_or_default();
        self.int(main);
        if main != 0 {
            self.uint(u64::from(sub));
        }
    }

    /// Appends the two byte strings to the fields, without their lengths.
    fn finish(self, first: &[u8], second: &[u8]) -> Bytes {
        let (fields, _) = self.fields.split_at(self.length);
        Bytes::from([fields, first, second].concat())
    }
}

/// Space in which head, lease and most member rows fit.
const ROW_BYTES_LIKELY: usize = 96;

/// Builds a row of any length.
pub(crate) struct RowWriter {
    bytes: Vec<u8>,
}

impl RowWriter {
    pub(crate) fn new(form: u8) -> RowWriter {
        let mut bytes = Vec::with_capacity(ROW_BYTES_LIKELY);
        bytes.push(form);
        RowWriter { bytes }
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub(crate) fn uint(&mut self, number: u64) {
        varint(number, |byte| self.bytes.push(byte));
    }

    pub(crate) fn int(&mut self, number: i64) {
        self.uint(number.cast_unsigned());
    }

    pub(crate) fn size(&mut self, size: usize) {
        self.uint(u64::try_from(size).unwrap_or(u64::MAX));
    }

    /// Appends the length, then the bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.size(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn finish(self) -> Bytes {
        Bytes::from(self.bytes)
    }
}

/// Decodes a row; if bytes are missing, the result is a [`Halt::CorruptRow`] of the table.
pub(crate) struct RowReader<'a> {
    table: &'static str,
    rest: &'a [u8],
}

impl<'a> RowReader<'a> {
    pub(crate) fn new(table: &'static str, row: &'a [u8]) -> RowReader<'a> {
        RowReader { table, rest: row }
    }

    #[cold]
    pub(crate) fn corrupt(&self, detail: &str) -> Halt {
        Halt::CorruptRow { table: self.table, detail: detail.to_owned() }
    }

    pub(crate) fn form(&mut self) -> Result<u8, Halt> {
        let (form, rest) = self.rest.split_first().ok_or_else(|| self.corrupt("empty row"))?;
        self.rest = rest;
        Ok(*form)
    }

    /// Reads the format of a `Key` or `Rev` row, and its links.
    fn form_and_skips(&mut self) -> Result<(u8, &'a [u8]), Halt> {
        let form = self.form()?;
        if form & WITH_SKIPS == 0 {
            return Ok((form, &[]));
        }
        Ok((form & !WITH_SKIPS, self.bytes()?))
    }

    pub(crate) fn uint(&mut self) -> Result<u64, Halt> {
        match self.rest {
            [byte @ 0..0x80, rest @ ..] => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_uint(),
        }
    }

    pub(crate) fn long_uint(&mut self) -> Result<u64, Halt> {
        let mut number = 0_u64;
        for (place, byte) in self.rest.iter().take(VARINT_BYTES_MAX).enumerate() {
            let shift = u32::try_from(place).unwrap_or(u32::MAX).saturating_mul(7);
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                self.rest = self.rest.get(place.saturating_add(1)..).unwrap_or_default();
                return Ok(number);
            }
        }
        Err(self.corrupt("broken number"))
    }

    pub(crate) fn int(&mut self) -> Result<i64, Halt> {
        Ok(self.uint()?.cast_signed())
    }

    pub(crate) fn size(&mut self) -> Result<usize, Halt> {
        let size = self.uint()?;
        usize::try_from(size).map_err(|_| self.corrupt("size out of range"))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Halt> {
        let size = self.size()?;
        self.take(size)
    }

    pub(crate) fn take(&mut self, size: usize) -> Result<&'a [u8], Halt> {
        let (bytes, rest) =
            self.rest.split_at_checked(size).ok_or_else(|| self.corrupt("row is cut short"))?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn string(&mut self) -> Result<String, Halt> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.corrupt("text is not UTF-8"))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn tail(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn short(&mut self) -> Result<u32, Halt> {
        let number = self.uint()?;
        u32::try_from(number).map_err(|_| self.corrupt("number out of range"))
    }

    pub(crate) fn previous(&mut self) -> Result<Option<Revision>, Halt> {
        match self.int()? {
            0 => Ok(None),
            main => Ok(Some(Revision { main, sub: self.short()? })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        let mut row = RowWriter::new(FORM_PUT);
        let numbers = [0, 1, 127, 128, 300, -1, i64::MIN, i64::MAX];
        numbers.iter().for_each(|number| row.int(*number));
        let row = row.finish();
        let mut reader = RowReader::new("test", &row);
        assert_eq!(reader.form().unwrap(), FORM_PUT);
        for number in numbers {
            assert_eq!(reader.int().unwrap(), number);
        }
        assert!(reader.int().is_err(), "nothing left");
    }

    #[test]
    fn lengths_beyond_the_row_are_corrupt() {
        let mut row = RowWriter::new(FORM_PUT);
        row.uint(u64::MAX);
        let row = row.finish();
        let mut reader = RowReader::new("test", &row[1..]);
        assert!(matches!(reader.bytes(), Err(Halt::CorruptRow { table: "test", .. })));
        let mut endless = RowReader::new("test", &[0xff; 32]);
        assert!(endless.uint().is_err());
    }
}
