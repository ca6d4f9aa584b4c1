//! The bucket `conclave` of a backup in etcd's format, with everything that etcd has no place for.
//! etcd's programs ignore it.
//!
//! | key | value |
//! |---|---|
//! | `e`, number | the parts beside the next events of bucket `key` ([`export::split`]), concatenated |
//! | `r`, number | rows of all tables except `Key` and `Rev`, concatenated |
//! | `s` | a [`BackupMeta`]: the version, and sums to check the result |
//!
//! Together with bucket `key` this gives all the original rows. An etcd that runs on the database
//! of such a backup keeps the bucket but changes the others; from then on it is ignored, which the
//! transaction id of the database tells.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use conclave_proto::internal::BackupMeta;
use conclave_state_machine::export::{self, Joined};
use conclave_state_machine::import::ForeignChange;
use conclave_state_machine::read::Table;
use prost::Message;

use super::OnProgress;
use super::bolt::{Bolt, Bucket};
use super::etcd::{self, EtcdSnapshot, change};
use super::format::damaged;
use super::pages::{Pages, Tree};
use crate::engine::{RowWrite, Rows};

/// Name of the bucket.
pub(super) const BUCKET: &str = "conclave";
const EVENTS: u8 = b'e';
const ROWS: u8 = b'r';
const SUMMARY: [u8; 1] = *b"s";
/// Largest transaction id of a database that was not opened for writing since it was saved: the
/// larger of its two meta pages' ids.
const TRANSACTION_MAX: u64 = 1;
/// Size in bytes from which a piece is complete.
const PIECE_BYTES: usize = 16 << 10;
/// Most rows to write together.
const BATCH_ROWS_MAX: usize = 10_000;
/// Bytes of rows after which they are written.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Writes the bucket.
#[derive(Debug, Default)]
pub(super) struct Writer {
    tree: Tree,
    /// Kind and number of the piece being filled.
    kind: u8,
    number: u64,
    piece: Vec<u8>,
}

impl Writer {
    /// Adds what is stored beside the next event.
    pub(super) fn event(&mut self, pages: &mut Pages, beside: &[u8]) {
        self.begin(pages, EVENTS);
        push(&mut self.piece, beside);
    }

    /// Adds a row of a table other than `Key` and `Rev`.
    pub(super) fn row(&mut self, pages: &mut Pages, table: Table, (key, row): (&[u8], &[u8])) {
        self.begin(pages, ROWS);
        self.piece.push(table as u8);
        push(&mut self.piece, key);
        push(&mut self.piece, row);
    }

    fn begin(&mut self, pages: &mut Pages, kind: u8) {
        if kind != self.kind || self.piece.len() >= PIECE_BYTES {
            self.end_piece(pages);
        }
        if kind != self.kind {
            (self.kind, self.number) = (kind, 0);
        }
    }

    fn end_piece(&mut self, pages: &mut Pages) {
        if !self.piece.is_empty() {
            self.tree.push(pages, &piece_key(self.kind, self.number), &self.piece);
            self.piece.clear();
            self.number += 1;
        }
    }

    /// Completes the bucket. Returns the page id of its root.
    pub(super) fn finish(mut self, pages: &mut Pages, meta: &BackupMeta) -> u64 {
        self.end_piece(pages);
        self.tree.push(pages, &SUMMARY, &meta.encode_to_vec());
        self.tree.finish(pages)
    }
}

fn piece_key(kind: u8, number: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Appends the length, then the bytes.
fn push(piece: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("a row is smaller than 4 GiB");
    piece.extend_from_slice(&length.to_le_bytes());
    piece.extend_from_slice(bytes);
}

/// Adds a row to the checksum of all rows.
pub(super) fn checksum(so_far: u32, table: Table, key: &[u8], row: &[u8]) -> u32 {
    let key_bytes = (key.len() as u64).to_le_bytes();
    let parts = [&[table as u8], &key_bytes[..], key, row];
    parts.iter().fold(so_far, |sum, part| crc32c::crc32c_append(sum, part))
}

/// Reads the bucket's metadata; `None` if there is no bucket, or an etcd has written to the
/// database since.
pub(super) fn summary(
    bolt: &Bolt,
    buckets: &BTreeMap<Vec<u8>, Bucket>,
) -> io::Result<Option<Box<BackupMeta>>> {
    let bucket = buckets.get(BUCKET.as_bytes()).filter(|_| bolt.transaction() <= TRANSACTION_MAX);
    let Some(bucket) = bucket else { return Ok(None) };
    let summary = bolt.find(bucket, &SUMMARY)?;
    let summary = summary.and_then(|bytes| BackupMeta::decode(&bytes[..]).ok());
    let summary = summary.ok_or_else(|| damaged("its bucket `conclave` has no meaning"))?;
    Ok(Some(Box::new(summary)))
}

/// Writes all rows of a backup into an empty store.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if they are not those that were saved; otherwise any error of the
/// system.
pub(super) fn restore(
    snapshot: &EtcdSnapshot,
    meta: &BackupMeta,
    rows: &Rows,
    on_progress: OnProgress<'_>,
) -> io::Result<()> {
    let mut batch = Batch { rows, writes: Vec::new(), keys: BTreeMap::new(), bytes: 0, sum: 0 };
    let (mut beside, mut events) = (Pieces::new(snapshot, EVENTS), 0_u64);
    let (mut done, total) = (0, snapshot.bytes());
    snapshot.visit(etcd::KEYS, &mut |element| {
        let change = change(element.key, element.value)?;
        let known = beside.bytes()?.ok_or_else(|| damaged("its events are not those saved"))?;
        let joined = export::join(&change, &known);
        let joined = joined.map_err(|_| damaged("its events are not those saved"))?;
        batch.event(change, joined);
        events += 1;
        done += (element.key.len() + element.value.len()) as u64;
        if batch.is_full() {
            on_progress(done.min(total), total);
            batch.write()?;
        }
        Ok(())
    })?;
    let mut others = Pieces::new(snapshot, ROWS);
    while let Some(number) = others.byte()? {
        let table = Table::ALL.into_iter().find(|table| *table as u8 == number);
        let table = table.filter(|table| !matches!(table, Table::Key | Table::Rev));
        let (key, row) = (others.bytes()?, others.bytes()?);
        let row = table.zip(key).zip(row).ok_or_else(|| damaged("a row has no meaning"))?;
        let ((table, key), row) = row;
        batch.row(table, key, row);
        if batch.is_full() {
            batch.write()?;
        }
    }
    batch.write()?;
    if beside.byte()?.is_some() || (events, batch.sum) != (meta.events, meta.rows_crc32c) {
        return Err(damaged("its rows are not those saved"));
    }
    Ok(())
}

/// Rows that are written together.
struct Batch<'a> {
    rows: &'a Rows,
    writes: Vec<RowWrite>,
    /// `Key` rows: if a key has several events, the last one's.
    keys: BTreeMap<Bytes, Bytes>,
    bytes: usize,
    /// Checksum of all rows except `Key` rows.
    sum: u32,
}

impl Batch<'_> {
    fn event(&mut self, change: ForeignChange, Joined { rev, key }: Joined) {
        self.bytes += change.key.len() + key.len();
        self.keys.insert(change.key, key);
        self.row(Table::Rev, Bytes::copy_from_slice(&change.at.row_key()), rev);
    }

    fn row(&mut self, table: Table, key: Bytes, row: Bytes) {
        self.bytes += key.len() + row.len();
        self.sum = checksum(self.sum, table, &key, &row);
        self.writes.push((table, key, Some(row)));
    }

    fn is_full(&self) -> bool {
        self.writes.len() >= BATCH_ROWS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    fn write(&mut self) -> io::Result<()> {
        self.bytes = 0;
        let keys = std::mem::take(&mut self.keys).into_iter();
        let keys = keys.map(|(key, row)| (Table::Key, key, Some(row)));
        self.rows.write(&mut self.writes.drain(..).chain(keys))
    }
}

/// Reads the pieces of one kind as one stream.
struct Pieces<'a> {
    snapshot: &'a EtcdSnapshot,
    kind: u8,
    next: u64,
    piece: Bytes,
}

impl<'a> Pieces<'a> {
    fn new(snapshot: &'a EtcdSnapshot, kind: u8) -> Self {
        Self { snapshot, kind, next: 0, piece: Bytes::new() }
    }

    /// The next byte, `None` at the end.
    fn byte(&mut self) -> io::Result<Option<u8>> {
        Ok(self.take(1)?.map(|byte| byte[0]))
    }

    /// The next bytes that are preceded by their length, `None` at the end.
    fn bytes(&mut self) -> io::Result<Option<Bytes>> {
        let Some(length) = self.take(4)? else { return Ok(None) };
        let length = u32::from_le_bytes(length[..].try_into().expect("four bytes were taken"));
        if length == 0 {
            return Ok(Some(Bytes::new()));
        }
        self.take(length as usize)
    }

    fn take(&mut self, length: usize) -> io::Result<Option<Bytes>> {
        if self.piece.is_empty() {
            let piece = self.snapshot.find(BUCKET, &piece_key(self.kind, self.next))?;
            let Some(piece) = piece else { return Ok(None) };
            self.next += 1;
            self.piece = piece.into();
        }
        if self.piece.len() < length {
            return Err(damaged("a piece of its bucket `conclave` is cut short"));
        }
        Ok(Some(self.piece.split_to(length)))
    }
}
