//! Opens the state, and holds what its writer and its readers share.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::Bytes;
use conclave_state_machine::head::Head;
use conclave_state_machine::machine::Machine;
use conclave_state_machine::rank::FirstRows;
use conclave_state_machine::response::Halt;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::apply::StateMachine;
use crate::counts::Counts;
use crate::directory::Directory;
use crate::engine::{Create, EngineKind, Rows, halt_to_io};
use crate::reader::Reader;
use crate::row::{self, Moment};
use crate::sink::ApplySink;
use crate::snapshot::Partial;
use crate::types::{LogId, StoredMembership};

/// What to do about a damaged state.
const ADVICE: &str = "this member must not go on with it: keep a copy, remove the member from the \
                      cluster, delete its data directory and add it again as a new member, or \
                      restore a backup if it is the only one";

/// Why the state could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system failed; another attempt may succeed.
    #[error("cannot open the state in {path}: {source}")]
    Io {
        /// Directory of the state.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Files are damaged or missing.
    #[error("the state in {path} is damaged ({source}); {advice}", advice = ADVICE)]
    Damaged {
        /// Directory of the state.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// Another version of the program wrote it.
    #[error(
        "the state in {path} has format {found}, this version knows {known}: start the version that \
         wrote it"
    )]
    Format {
        /// Directory of the state.
        path: PathBuf,
        /// Format found.
        found: u32,
        /// Format that this version knows.
        known: u32,
    },
}

impl OpenError {
    fn new(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::NotFound => Self::Damaged { path, source },
            _ => Self::Io { path, source },
        }
    }
}

/// Describes why a member whose state is open must stop, and what to do then.
fn complaint(root: &Path, halt: &Halt) -> String {
    let is_damaged = match halt {
        Halt::CorruptRow { .. } => true,
        Halt::Storage(source) => source
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::InvalidData),
    };
    let root = root.display();
    if is_damaged {
        format!("the state in {root} is damaged ({halt}); {ADVICE}")
    } else {
        format!("the state in {root} cannot be used: {halt}")
    }
}

/// How to open a state.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreOptions {
    /// The engine and its bounds.
    pub engine: EngineKind,
}

/// The state of one member.
pub struct StateStore;

impl StateStore {
    /// Opens or creates the state in `dir`. Returns the state machine for raft and a reader for
    /// everyone else.
    ///
    /// # Errors
    /// [`OpenError`]; a damaged state is rejected, never repaired.
    pub fn open(
        dir: &Path,
        options: StoreOptions,
        sink: Box<dyn ApplySink>,
    ) -> Result<(StateMachine, Reader), OpenError> {
        let failed = |source| OpenError::new(dir, source);
        let (directory, live) = Directory::open(dir).map_err(failed)?;
        let rows = match live {
            Some(live) => options.engine.open(live, Create::Never),
            None => create(&directory, options.engine),
        }
        .map_err(failed)?;
        match row::format(&*rows).map_err(failed)? {
            Some(row::FORMAT_VERSION) => {}
            found => {
                let path = dir.to_owned();
                let (found, known) = (found.unwrap_or(0), row::FORMAT_VERSION);
                return Err(OpenError::Format { path, found, known });
            }
        }
        let published = Published::load(rows).map_err(failed)?;
        let machine = Machine::load(&published.rows).map_err(|e| failed(halt_to_io(e)))?;
        let counts = published.count().map_err(failed)?;
        let visible = Visible { published, counts };
        let shared = Arc::new(Shared::new(directory, options.engine, visible));
        let reader = Reader::new(Arc::clone(&shared));
        Ok((StateMachine::new(shared, machine, sink), reader))
    }
}

/// Creates an empty database. The pointer is written last: a crash before that leaves only a
/// leftover.
fn create(directory: &Directory, engine: EngineKind) -> io::Result<Rows> {
    let rows = engine.open(directory.new_database(), Create::New)?;
    rows.write(&mut [row::format_row()].into_iter())?;
    rows.flush()?;
    directory.point_to(rows.dir())?;
    Ok(rows)
}

/// What readers see.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) rows: Rows,
    pub(crate) head: Arc<Head>,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: Arc<StoredMembership>,
    /// Oldest revision that is certainly complete. Raised **before** the batch of a compaction is
    /// written, so that a concurrent reader does not take deleted rows for missing ones.
    pub(crate) readable_since: i64,
}

impl Published {
    /// Reads the metadata of `rows`.
    pub(crate) fn load(rows: Rows) -> io::Result<Self> {
        let head = Head::load(&rows).map_err(halt_to_io)?;
        Ok(Self {
            applied: row::applied(&*rows, Moment::Now)?,
            membership: Arc::new(row::membership(&*rows, Moment::Now)?),
            readable_since: head.compacted,
            head: Arc::new(head),
            rows,
        })
    }

    /// Builds the key counts. Reads all keys.
    pub(crate) fn count(&self) -> io::Result<Counts> {
        Counts::build(&self.rows, &self.head).map_err(halt_to_io)
    }
}

/// What readers see, and the key counts that belong to it.
pub(crate) struct Visible {
    pub(crate) published: Published,
    pub(crate) counts: Counts,
}

/// Shared by the state machine, readers, and snapshots that are being received.
pub(crate) struct Shared {
    pub(crate) directory: Directory,
    pub(crate) engine: EngineKind,
    visible: RwLock<Visible>,
    /// Largest logical size since the start or the last defragmentation, in bytes.
    pub(crate) bytes_high: AtomicI64,
    /// Index of the last applied entry, 0 before the first.
    pub(crate) applied_index: watch::Sender<u64>,
    pub(crate) is_receiving: AtomicBool,
    /// Left behind by the last snapshot that was not received completely.
    pub(crate) partial: Mutex<Option<Partial>>,
    /// Held while a piece is applied, possibly by a thread that raft does not wait for when it
    /// stops.
    pub(crate) writing: Mutex<()>,
    /// Held while files are rewritten.
    pub(crate) defragmenting: Mutex<()>,
    /// Why the member must stop, once a reader has found damage.
    pub(crate) failed: watch::Sender<Option<String>>,
}

impl Shared {
    fn new(directory: Directory, engine: EngineKind, visible: Visible) -> Self {
        let index = visible.published.applied.as_ref().map_or(0, |id| id.index);
        Self {
            directory,
            engine,
            bytes_high: AtomicI64::new(visible.published.head.size_in_use()),
            visible: RwLock::new(visible),
            applied_index: watch::Sender::new(index),
            is_receiving: AtomicBool::new(false),
            partial: Mutex::default(),
            writing: Mutex::default(),
            defragmenting: Mutex::default(),
            failed: watch::Sender::new(None),
        }
    }

    pub(crate) fn complaint(&self, halt: &Halt) -> String {
        complaint(self.directory.root(), halt)
    }

    /// Records a failed read, so that the member stops.
    pub(crate) fn note_halt<T>(&self, read: Result<T, Halt>) -> Result<T, Halt> {
        read.inspect_err(|halt| drop(self.failed.send_replace(Some(self.complaint(halt)))))
    }

    /// As [`Shared::note_halt`].
    pub(crate) fn note<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::Halt(halt)) = &read {
            self.failed.send_replace(Some(self.complaint(halt)));
        }
        read
    }

    pub(crate) fn published(&self) -> Published {
        self.visible.read().published.clone()
    }

    /// Applies `look` to what is published. Cheaper than a clone of it, which would change three
    /// reference counters that all threads share.
    pub(crate) fn show<T>(&self, look: impl FnOnce(&Published) -> T) -> T {
        look(&self.visible.read().published)
    }

    /// Returns what is published, and applies `look` to the counts of the same moment.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Counts, &Head) -> T) -> (Published, T) {
        let visible = self.visible.read();
        (visible.published.clone(), look(&visible.counts, &visible.published.head))
    }

    /// Announces a compaction that is about to be written.
    pub(crate) fn raise_readable_since(&self, revision: i64) {
        if self.visible.read().published.readable_since < revision {
            self.visible.write().published.readable_since = revision;
        }
    }

    /// Publishes a new state to readers; `change` updates the counts to it.
    pub(crate) fn publish<T>(
        &self,
        published: Published,
        change: impl FnOnce(&mut Counts) -> T,
    ) -> T {
        let index = published.applied.as_ref().map_or(0, |id| id.index);
        let bytes = published.head.size_in_use();
        let changed = {
            let mut visible = self.visible.write();
            visible.published = published;
            change(&mut visible.counts)
        };
        self.bytes_high.fetch_max(bytes, Ordering::Relaxed);
        self.applied_index.send_replace(index);
        changed
    }

    /// Drops a partly received snapshot whose last index is at or below the applied one.
    pub(crate) fn outgrow_partial(&self, applied: u64) {
        let mut partial = self.partial.lock();
        if let Some(outgrown) = partial.take_if(|partial| partial.index <= applied) {
            // On another thread, because deleting large files takes a while.
            drop(tokio::task::spawn_blocking(move || drop(outgrown)));
        }
    }

    /// As [`Counts::cut`].
    pub(crate) fn cut(&self, first: &Bytes, rows: FirstRows) -> Option<Bytes> {
        self.visible.write().counts.cut(first, rows)
    }

    /// Whether a read from `seen` at `revision` or above was certainly complete.
    pub(crate) fn is_complete(&self, seen: &Published, revision: i64) -> bool {
        let now = &self.visible.read().published;
        now.rows.same(&seen.rows) && now.readable_since <= revision
    }
}

/// Runs work that blocks on the disk outside the async worker, if the engine has a disk.
pub(crate) async fn blocking<T: Send + 'static>(
    engine: EngineKind,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match engine {
        // The simulator is single-threaded and must stay so.
        EngineKind::Memory => work(),
        EngineKind::Rocks(_) => {
            tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
        }
    }
}

impl From<Halt> for ReadError {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The request cannot be answered; returned to the client.
    #[error(transparent)]
    Rejected(conclave_state_machine::response::Rejection),
    /// The storage failed or is damaged; the node must stop.
    #[error(transparent)]
    Halt(Halt),
}
