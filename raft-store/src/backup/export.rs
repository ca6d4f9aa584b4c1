//! Writes a running state as an etcd database, which etcd's own programs can read and restore.
//!
//! The files of a checkpoint are read twice, in small steps. The first pass only computes how large
//! the database becomes and where its root is, because that is stored at the beginning; the second
//! pass produces the bytes. So nothing is copied on disk, and memory does not grow with the state
//! (except for the lists of leases, users and members).

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use bytes::{Buf as _, Bytes, BytesMut};
use conclave_proto::internal::BackupMeta;
use conclave_proto::mvccpb::KeyValue;
use conclave_state_machine::export::{self, Split};
use conclave_state_machine::head::Head;
use conclave_state_machine::read::{Read as _, Table};
use conclave_state_machine::response::Halt;
use conclave_state_machine::revision::Revision;
use prost::Message as _;
use ring::digest::{Context, SHA256};

use super::etcd::{self, stored_key};
use super::pages::{self, PAGE_BYTES, Pages, Root, Tree};
use super::save::{Piece, describe, too_large};
use super::{buckets, own};
use crate::engine::{Create, Engine, EngineKind, View, halt_to_io};
use crate::rocks::RocksOptions;
use crate::snapshot::SnapshotSource;
use crate::store::Shared;

/// Most bytes of rows to read in one step.
const STEP_BYTES_MAX: usize = 1 << 20;
/// Most rows to read in one step.
const STEP_ROWS_MAX: usize = 10_000;
/// Most bytes of a piece, as in etcd.
const PIECE_BYTES_MAX: usize = 32 << 10;
/// Block cache of the engine: every row is read twice, in sequence, so a larger cache would not
/// help.
const CACHE_BYTES: usize = 1 << 20;

/// An export in progress. It keeps the files of a checkpoint until it is dropped.
pub struct Export {
    walk: Walk,
    stage: Stage,
    /// Bytes that were produced but not yet returned.
    ready: BytesMut,
    /// Bytes still to be returned, without the digest.
    left: u64,
    /// `None` once it was returned.
    digest: Option<Context>,
    state: State,
}

/// The state that is exported.
struct State {
    // Fields are dropped in order: the engine closes before its directory is removed.
    rows: Box<dyn Engine>,
    _source: SnapshotSource,
    meta: BackupMeta,
}

/// Which pass over the state is in progress.
#[derive(Clone, Copy)]
enum Stage {
    /// The first, which computes the layout.
    Layout,
    /// The second, which produces the bytes and must come to the same layout.
    Bytes(Layout),
    /// Both are done.
    Over,
}

/// What the beginning of the file says about the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Layout {
    root: u64,
    pages: u64,
    sum: u32,
}

impl Export {
    /// Starts an export. Blocks for a flush; `version` is the program's.
    pub(crate) fn create(shared: &Shared, version: &str) -> io::Result<Self> {
        let source = SnapshotSource::create(shared)?;
        let meta = BackupMeta { files: Vec::new(), ..describe(shared, &source, version)? };
        let engine = match shared.engine {
            EngineKind::Rocks(options) => {
                EngineKind::Rocks(RocksOptions { cache_bytes: CACHE_BYTES, ..options })
            }
            EngineKind::Memory => EngineKind::Memory,
        };
        let rows = engine.open_at(source.path(), Create::ReadOnly)?;
        Ok(Self {
            walk: Walk::default(),
            stage: Stage::Layout,
            ready: BytesMut::new(),
            left: 0,
            digest: Some(Context::new(&SHA256)),
            state: State { rows, _source: source, meta },
        })
    }

    /// Newest revision in the export.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.state.meta.revision
    }

    /// Does one step towards the first piece. Returns whether that is ready now. Blocks on the
    /// disk, briefly.
    ///
    /// # Errors
    /// Any error of the system; the export cannot be used afterwards.
    pub fn prepare(&mut self) -> io::Result<bool> {
        if !matches!(self.stage, Stage::Layout) {
            return Ok(true);
        }
        let Some(layout) = self.walk.step(&self.state)? else {
            self.walk.pages.take();
            return Ok(false);
        };
        self.left = layout.pages.checked_mul(PAGE_BYTES as u64).ok_or_else(too_large)?;
        self.ready.extend_from_slice(&pages::first_pages(layout.root, layout.pages));
        self.stage = Stage::Bytes(layout);
        self.walk = Walk::default();
        Ok(true)
    }

    /// Returns the next piece; `None` after the last. Blocks on the disk; for long before the first
    /// piece, unless it was prepared.
    ///
    /// # Errors
    /// Any error of the system; the export cannot be used afterwards.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        while !self.prepare()? {}
        while self.ready.len() < PIECE_BYTES_MAX
            && let Stage::Bytes(expected) = self.stage
        {
            let found = self.walk.step(&self.state)?;
            self.ready.extend_from_slice(&self.walk.pages.take());
            if let Some(found) = found {
                if found != expected {
                    return Err(io::Error::other("the state changed while it was read"));
                }
                self.stage = Stage::Over;
            }
        }
        if self.ready.is_empty() {
            let digest = self.digest.take().map(Context::finish);
            let bytes = digest.map(|digest| Bytes::copy_from_slice(digest.as_ref()));
            return Ok(bytes.map(|bytes| Piece { bytes, remaining: 0 }));
        }
        let bytes = self.ready.split_to(self.ready.remaining().min(PIECE_BYTES_MAX)).freeze();
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other("the state changed while it was read"))?;
        if let Some(digest) = &mut self.digest {
            digest.update(&bytes);
        }
        Ok(Some(Piece { bytes, remaining: self.left }))
    }
}

/// One pass over the state, from its first row to the root of the database.
struct Walk {
    pages: Pages,
    events: Tree,
    own: own::Writer,
    /// The next table, by its index in [`TABLES`].
    table: usize,
    /// The next key in that table.
    from: Vec<u8>,
    event_count: u64,
    sum: u32,
    /// Page id of the root of each completed bucket.
    roots: BTreeMap<&'static str, u64>,
}

/// Tables whose rows go into a backup. Rows of table `Key` follow from the events.
const TABLES: [Table; 9] = [
    Table::Rev,
    Table::Lease,
    Table::LeaseKey,
    Table::Member,
    Table::Auth,
    Table::Meta,
    Table::Place,
    Table::Instance,
    Table::Writer,
];
const _: () = assert!(TABLES.len() + 1 == Table::ALL.len(), "no table may be left out");

impl Default for Walk {
    fn default() -> Self {
        Self {
            pages: Pages::new(),
            events: Tree::default(),
            own: own::Writer::default(),
            table: 0,
            from: Vec::new(),
            event_count: 0,
            sum: 0,
            roots: BTreeMap::new(),
        }
    }
}

impl Walk {
    /// Reads a bounded number of rows. Returns the layout at the end.
    fn step(&mut self, state: &State) -> io::Result<Option<Layout>> {
        let Some(table) = TABLES.get(self.table).copied() else {
            return self.finish(state).map(Some);
        };
        let from = std::mem::take(&mut self.from);
        let (mut rows, mut bytes) = (0, 0);
        let view = View(&*state.rows);
        let scanned = view.scan(table, &from, None, &mut |key, row| {
            if rows >= STEP_ROWS_MAX || bytes >= STEP_BYTES_MAX {
                self.from = key.to_vec();
                return Ok(ControlFlow::Break(()));
            }
            rows += 1;
            bytes += key.len() + row.len();
            self.sum = own::checksum(self.sum, table, key, row);
            match table {
                Table::Rev => self.event(key, row)?,
                _ => self.own.row(&mut self.pages, table, (key, row)),
            }
            Ok(ControlFlow::Continue(()))
        });
        scanned.map_err(halt_to_io)?;
        // Only table `Key` could have a row with an empty key.
        if self.from.is_empty() {
            self.table += 1;
        }
        Ok(None)
    }

    fn event(&mut self, key: &[u8], row: &[u8]) -> Result<(), Halt> {
        let at = Revision::from_row_key(key).ok_or_else(|| Halt::CorruptRow {
            table: "rev",
            detail: format!("key of {} bytes", key.len()),
        })?;
        let Split { change, beside } = export::split(at, row)?;
        let (is_deletion, kv) = match change.put {
            Some(put) => {
                let kv = KeyValue {
                    key: change.key,
                    create_revision: put.create_revision,
                    mod_revision: at.main,
                    version: put.version,
                    value: put.value,
                    lease: put.lease,
                };
                (false, kv)
            }
            None => (true, KeyValue { key: change.key, ..KeyValue::default() }),
        };
        self.events.push(&mut self.pages, &stored_key(at, is_deletion), &kv.encode_to_vec());
        self.own.event(&mut self.pages, &beside);
        self.event_count += 1;
        Ok(())
    }

    /// Completes the two large buckets, and adds the small ones and the root.
    fn finish(&mut self, state: &State) -> io::Result<Layout> {
        let pages = &mut self.pages;
        self.roots.insert(etcd::KEYS, std::mem::take(&mut self.events).finish(pages));
        let meta =
            BackupMeta { events: self.event_count, rows_crc32c: self.sum, ..state.meta.clone() };
        self.roots.insert(own::BUCKET, std::mem::take(&mut self.own).finish(pages, &meta));
        let view = View(&*state.rows);
        let head = Head::load(&view).map_err(halt_to_io)?;
        for (name, elements) in buckets::small(&view, &head, &meta).map_err(halt_to_io)? {
            let mut tree = Tree::default();
            elements.iter().for_each(|(key, value)| tree.push(pages, key, value));
            self.roots.insert(name, tree.finish(pages));
        }
        let mut root = Root::default();
        self.roots.iter().for_each(|(name, page)| root.push(pages, name, *page));
        let root = root.finish(pages);
        Ok(Layout { root, pages: pages.count(), sum: self.sum })
    }
}
