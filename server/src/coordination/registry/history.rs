//! What watchers missed that resume, read piece by piece.
//!
//! They come in crowds, when a member or a leader went, and mostly from the same revision: so a piece is read
//! once for all of them. No piece needs a view of the service, only the instances that it speaks of.

use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use conclave_raft_store::Reader;
use conclave_raft_store::reader::EventSpan;
use conclave_raft_store::store::ReadError;
use conclave_state_machine::command::Range;
use conclave_state_machine::registry::span;
use conclave_state_machine::registry::view::{KeyChange, View};
use conclave_state_machine::response::{Event, EventKind, Rejection};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tonic::Status;

use super::encoded;
use super::feed::{Causes, Feeds, Step, causes, has_causes, step};
use super::show::Filter;

/// Revisions, and about bytes, of history that one piece looks at.
const REVISIONS_MAX: usize = 1_000;
const BYTES_MAX: usize = 1 << 20;
/// Pieces that are kept for whoever asks for them next.
const PIECES_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("it is not 0");

/// What some revisions in a row changed in one service.
pub(super) struct Piece {
    /// In order; a revision that changed nothing is none of them.
    steps: Vec<Step>,
    /// The last revision that was looked at.
    upto: i64,
}

/// A piece that is there, or that somebody reads.
type Shared = Arc<OnceCell<Arc<Piece>>>;

/// The pieces of one member that were asked for last, by service and first revision.
pub(super) struct History {
    pieces: Mutex<LruCache<(Bytes, i64), Shared>>,
}

impl Default for History {
    fn default() -> Self {
        Self { pieces: Mutex::new(LruCache::new(PIECES_MAX)) }
    }
}

impl History {
    /// The piece of a service that begins with revision `from`; by `read`, unless it is there.
    async fn piece(
        &self,
        service: &Bytes,
        from: i64,
        read: impl AsyncFnOnce() -> Result<Piece, Status>,
    ) -> Result<Arc<Piece>, Status> {
        let key = (Bytes::clone(service), from);
        let shared = Arc::clone(self.pieces.lock().get_or_insert(key, Shared::default));
        let piece = shared.get_or_try_init(async || read().await.map(Arc::new)).await?;
        Ok(Arc::clone(piece))
    }
}

/// Reads the piece of a service that begins with revision `from`. Blocks.
///
/// # Errors
/// [`Rejection::Compacted`] if states before it are, or cannot be told.
fn read(reader: &Reader, service: &Bytes, from: i64) -> Result<Piece, ReadError> {
    let to = reader.head().revision;
    let (start, end) = span(service);
    let (revisions_max, bytes_max, prev_of) = (REVISIONS_MAX, BYTES_MAX, Some(&start[..]));
    let mut events = reader.events(EventSpan { from, to, revisions_max, bytes_max, prev_of })?;
    let upto = events.last().map_or(to, |last| last.kv.mod_revision);
    events.retain(|event| event.kv.key >= start && event.kv.key < end);
    if events.iter().any(lacks_prev) {
        return Err(ReadError::Rejected(Rejection::Compacted));
    }
    let mut view = View::before(Bytes::clone(service), &events, |key| {
        let range = Range { key: Bytes::clone(key), ..Range::default() };
        reader.page(&range, from - 1, 1).map(|found| found.into_iter().next())
    })?;
    let mut steps = Vec::new();
    for events in events.chunk_by(|one, next| one.kv.mod_revision == next.kv.mod_revision) {
        let revision = events[0].kv.mod_revision;
        let changes: Vec<KeyChange> = events.iter().map(KeyChange::from).collect();
        let causes = match has_causes(&changes) {
            true => causes(reader, service, revision),
            false => Causes::new(),
        };
        let step = step(&mut view, (revision, service), changes, &causes);
        if !step.changes.is_empty() {
            steps.push(step);
        }
    }
    // What keys were before their events is not to be had for long after a compaction.
    if reader.head().compacted >= from {
        return Err(ReadError::Rejected(Rejection::Compacted));
    }
    Ok(Piece { steps, upto })
}

/// Whether there may have been a state before that is not told.
fn lacks_prev(event: &Event) -> bool {
    event.prev_kv.is_none() && (event.kind == EventKind::Delete || event.kv.version > 1)
}

/// What one watcher still has to hear of history. While it takes nothing, it holds nothing.
pub(super) struct Missed {
    service: Bytes,
    /// First revision of the piece that is told.
    from: i64,
    upto: i64,
    piece: Weak<Piece>,
    /// Step of the piece, and place in it.
    next: (usize, usize),
}

impl Missed {
    /// What happened after `from` up to `upto`.
    pub(super) fn new(service: Bytes, (after, upto): (i64, i64)) -> Self {
        Self { service, from: after + 1, upto, piece: Weak::new(), next: (0, 0) }
    }

    /// Whether the client knows a part of a revision.
    pub(super) fn is_within(&self) -> bool {
        self.next.1 > 0
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// [`crate::status::Fault::Compacted`] if what comes next is.
    pub(super) async fn next(
        &mut self,
        (feeds, reader): (&Feeds, &Reader),
        filter: &Filter,
    ) -> Result<Option<Bytes>, Status> {
        while self.from <= self.upto {
            let piece = match self.piece.upgrade() {
                Some(piece) => piece,
                None => self.read(feeds, reader).await?,
            };
            if let Some(message) = self.tell(&piece, filter) {
                return Ok(Some(message));
            }
            self.from = piece.upto.max(self.from) + 1;
            (self.piece, self.next) = (Weak::new(), (0, 0));
        }
        Ok(None)
    }

    async fn read(&mut self, feeds: &Feeds, reader: &Reader) -> Result<Arc<Piece>, Status> {
        let (reader, service, from) = (reader.clone(), Bytes::clone(&self.service), self.from);
        let read = async || feeds.read(move || read(&reader, &service, from)).await;
        let piece = feeds.history.piece(&self.service, from, read).await?;
        self.piece = Arc::downgrade(&piece);
        Ok(piece)
    }

    /// The next message of a piece; `None` at its end.
    fn tell(&mut self, piece: &Piece, filter: &Filter) -> Option<Bytes> {
        loop {
            let (place, at) = self.next;
            let step = piece.steps.get(place).filter(|step| step.revision <= self.upto)?;
            let (message, rest) = match encoded::next(step, at, filter) {
                Some((message, rest)) => (Some(message), rest),
                None => (None, None),
            };
            self.next = rest.map_or((place + 1, 0), |at| (place, at));
            if message.is_some() {
                return message;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    fn piece(upto: i64) -> Piece {
        Piece { steps: Vec::new(), upto }
    }

    #[tokio::test]
    async fn a_crowd_that_resumes_reads_once() {
        let (history, reads) = (History::default(), AtomicUsize::new(0));
        let service = Bytes::from_static(b"api");
        let ask = async |from| {
            let read = async || {
                reads.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok(piece(from))
            };
            history.piece(&service, from, read).await.unwrap().upto
        };
        let crowd = (0..1_000).map(|watcher| ask(watcher % 2));
        assert_eq!(join_all(crowd).await.into_iter().sum::<i64>(), 500);
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        for from in 0..100 {
            ask(from).await;
        }
        assert_eq!(history.pieces.lock().len(), PIECES_MAX.get());
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_asked_for_again() {
        let (history, service) = (History::default(), Bytes::from_static(b"api"));
        let fail = async || Err(Status::unavailable("not now"));
        assert!(history.piece(&service, 7, fail).await.is_err());
        assert_eq!(history.piece(&service, 7, async || Ok(piece(9))).await.unwrap().upto, 9);
    }
}
