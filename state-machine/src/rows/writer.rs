//! `Writer` rows: the answers that each writer may still ask for, the writers by their last write,
//! and their number.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::response::{
    DeleteRangeResponse, Halt, KeyValue, OpResponse, PutResponse, RangeResponse, TxnResponse,
    WriteAnswer, WriteResponse,
};

const TABLE: &str = "writer";
const FORM: u8 = 1;

/// Largest answer that is kept, in bytes.
pub(crate) const ANSWER_BYTES_MAX: usize = 128;

const NOT_HELD: u8 = 0;
const DONE: u8 = 1;
const UNKEPT: u8 = 2;

const OP_RANGE: u8 = 0;
const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;
const OP_TXN: u8 = 3;

/// Key of the row with the number of writers.
pub(crate) const COUNT_KEY: &[u8] = b"n";
/// First byte of the keys that order writers by when they were last seen.
pub(crate) const TURN: u8 = b't';
/// First key after those.
pub(crate) const TURNS_END: &[u8] = b"u";
const WRITER: u8 = b'w';

/// Key of the row of a writer.
pub(crate) fn row_key(writer: &[u8]) -> Bytes {
    Bytes::from([&[WRITER], writer].concat())
}

/// Key that records that a writer was seen at this revision; it may have been seen later.
pub(crate) fn turn_key(seen: i64, writer: &[u8]) -> Bytes {
    Bytes::from([&[TURN], seen.to_be_bytes().as_slice(), writer].concat())
}

/// The inverse of [`turn_key`].
///
/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a key.
pub(crate) fn turn_of(key: &[u8]) -> Result<(i64, Bytes), Halt> {
    let turn = key.strip_prefix(&[TURN]).and_then(<[u8]>::split_first_chunk);
    let Some((seen, writer)) = turn else {
        return Err(Halt::CorruptRow { table: TABLE, detail: "broken turn".to_owned() });
    };
    Ok((i64::from_be_bytes(*seen), Bytes::copy_from_slice(writer)))
}

/// What is known about one writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WriterRow {
    /// A write that began at or before this revision may have been forgotten.
    pub(crate) reach: i64,
    /// Revision after its last write.
    pub(crate) seen: i64,
    /// Writes with smaller numbers are settled.
    pub(crate) settled: u64,
    /// Answers to unsettled writes.
    pub(crate) answered: Vec<(u64, WriteResponse)>,
}

impl WriterRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut row = RowWriter::new(FORM);
        row.int(self.reach);
        row.int(self.seen);
        row.uint(self.settled);
        row.size(self.answered.len());
        for (sequence, WriteResponse { revision, answer }) in &self.answered {
            row.uint(*sequence);
            row.int(*revision);
            match answer {
                WriteAnswer::NotHeld => row.byte(NOT_HELD),
                WriteAnswer::Unkept | WriteAnswer::Forgotten => row.byte(UNKEPT),
                WriteAnswer::Done(txn) => {
                    row.byte(DONE);
                    write_txn(&mut row, txn);
                }
            }
        }
        row.finish()
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &[u8]) -> Result<WriterRow, Halt> {
        let mut row = RowReader::new(TABLE, row);
        if row.form()? != FORM {
            return Err(row.corrupt("unknown form"));
        }
        Ok(WriterRow {
            reach: row.int()?,
            seen: row.int()?,
            settled: row.uint()?,
            // Each answer takes at least a byte, so a corrupt count ends with the row.
            answered: (0..row.size()?)
                .map(|_| Ok((row.uint()?, response(&mut row)?)))
                .collect::<Result<_, Halt>>()?,
        })
    }
}

/// Number of writers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CountRow {
    pub(crate) writers: u64,
    /// The last revision at which a forgotten writer was seen; 0 if none was forgotten.
    pub(crate) reach: i64,
}

impl CountRow {
    pub(crate) fn encode(self) -> Bytes {
        let mut row = RowWriter::new(FORM);
        row.uint(self.writers);
        row.int(self.reach);
        row.finish()
    }

    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are not such a row.
    pub(crate) fn decode(row: &[u8]) -> Result<CountRow, Halt> {
        let mut row = RowReader::new(TABLE, row);
        match row.form()? {
            FORM => Ok(CountRow { writers: row.uint()?, reach: row.int()? }),
            _ => Err(row.corrupt("unknown form")),
        }
    }
}

/// Whether an answer is small enough to be kept.
pub(crate) fn is_small(answer: &TxnResponse) -> bool {
    let mut row = RowWriter::new(FORM);
    write_txn(&mut row, answer);
    row.finish().len() <= ANSWER_BYTES_MAX
}

fn response(row: &mut RowReader<'_>) -> Result<WriteResponse, Halt> {
    let revision = row.int()?;
    let answer = match row.form()? {
        NOT_HELD => WriteAnswer::NotHeld,
        DONE => WriteAnswer::Done(txn(row)?),
        UNKEPT => WriteAnswer::Unkept,
        _ => return Err(row.corrupt("unknown answer")),
    };
    Ok(WriteResponse { revision, answer })
}

// The recursion is bounded, because validation bounds the nesting of transactions.
fn write_txn(row: &mut RowWriter, txn: &TxnResponse) {
    row.byte(u8::from(txn.succeeded));
    row.size(txn.responses.len());
    for (revision, op) in &txn.responses {
        row.int(*revision);
        match op {
            OpResponse::Range(found) => {
                row.byte(OP_RANGE);
                row.byte(u8::from(found.more));
                row.int(found.count);
                write_kvs(row, &found.kvs);
            }
            OpResponse::Put(put) => {
                row.byte(OP_PUT);
                write_kvs(row, put.prev_kv.as_slice());
            }
            OpResponse::DeleteRange(delete) => {
                row.byte(OP_DELETE);
                row.int(delete.deleted);
                write_kvs(row, &delete.prev_kvs);
            }
            OpResponse::Txn(nested) => {
                row.byte(OP_TXN);
                write_txn(row, nested);
            }
        }
    }
}

fn write_kvs(row: &mut RowWriter, kvs: &[KeyValue]) {
    row.size(kvs.len());
    for kv in kvs {
        row.bytes(&kv.key);
        row.bytes(&kv.value);
        for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease] {
            row.int(number);
        }
    }
}

// An undamaged row is nested no deeper than what was written.
fn txn(row: &mut RowReader<'_>) -> Result<TxnResponse, Halt> {
    let succeeded = row.form()? != 0;
    let count = row.size()?;
    let responses = (0..count).map(|_| Ok((row.int()?, op(row)?))).collect::<Result<_, Halt>>()?;
    Ok(TxnResponse { succeeded, responses })
}

fn op(row: &mut RowReader<'_>) -> Result<OpResponse, Halt> {
    Ok(match row.form()? {
        OP_RANGE => {
            let (more, count) = (row.form()? != 0, row.int()?);
            OpResponse::Range(RangeResponse { kvs: kvs(row)?, more, count })
        }
        OP_PUT => OpResponse::Put(PutResponse { prev_kv: kvs(row)?.pop() }),
        OP_DELETE => {
            let deleted = row.int()?;
            OpResponse::DeleteRange(DeleteRangeResponse { deleted, prev_kvs: kvs(row)? })
        }
        OP_TXN => OpResponse::Txn(txn(row)?),
        _ => return Err(row.corrupt("unknown operation")),
    })
}

fn kvs(row: &mut RowReader<'_>) -> Result<Vec<KeyValue>, Halt> {
    let count = row.size()?;
    (0..count)
        .map(|_| {
            Ok(KeyValue {
                key: Bytes::copy_from_slice(row.bytes()?),
                value: Bytes::copy_from_slice(row.bytes()?),
                create_revision: row.int()?,
                mod_revision: row.int()?,
                version: row.int()?,
                lease: row.int()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str) -> KeyValue {
        KeyValue {
            key: key.into(),
            create_revision: 2,
            mod_revision: 300,
            version: 4,
            value: "v".into(),
            lease: -7,
        }
    }

    fn everything() -> TxnResponse {
        let nested = TxnResponse {
            succeeded: false,
            responses: vec![(6, OpResponse::Put(PutResponse { prev_kv: Some(kv("a")) }))],
        };
        let range = RangeResponse { kvs: vec![kv("b"), kv("c")], more: true, count: 9 };
        let delete = DeleteRangeResponse { deleted: 2, prev_kvs: vec![kv("d")] };
        TxnResponse {
            succeeded: true,
            responses: vec![
                (5, OpResponse::Range(range)),
                (6, OpResponse::DeleteRange(delete)),
                (6, OpResponse::Put(PutResponse::default())),
                (7, OpResponse::Txn(nested)),
            ],
        }
    }

    #[test]
    fn rows_round_trip() {
        let answers = [WriteAnswer::NotHeld, WriteAnswer::Unkept, WriteAnswer::Done(everything())];
        let answered = answers.into_iter().zip(7..);
        let answered =
            answered.map(|(answer, n)| (n, WriteResponse { revision: 300, answer })).collect();
        let row = WriterRow { reach: 12, seen: 400, settled: u64::MAX, answered };
        let bytes = row.encode();
        assert_eq!(WriterRow::decode(&bytes).unwrap(), row);
        for end in 0..bytes.len() {
            assert!(WriterRow::decode(&bytes[..end]).is_err());
        }
        let count = CountRow { writers: 8, reach: i64::MAX };
        assert_eq!(CountRow::decode(&count.encode()).unwrap(), count);
        let (seen, writer) = turn_of(&turn_key(300, b"writer")).unwrap();
        assert_eq!((seen, writer.as_ref()), (300, b"writer".as_slice()));
        assert!(turn_of(b"t1234567").is_err());
    }

    #[test]
    fn an_answer_with_a_large_value_is_not_small() {
        assert!(is_small(&TxnResponse::default()));
        assert!(is_small(&everything()));
        let value = Bytes::from(vec![0; ANSWER_BYTES_MAX]);
        let prev_kv = Some(KeyValue { value, ..KeyValue::default() });
        let responses = vec![(1, OpResponse::Put(PutResponse { prev_kv }))];
        assert!(!is_small(&TxnResponse { succeeded: true, responses }));
    }
}
