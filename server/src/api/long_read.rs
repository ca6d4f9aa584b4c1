//! Limits reads of many keys: how many run at a time, and how much memory their unsent answers
//! take.
//!
//! The size of a range is not known in advance. One call may ask for the whole store, many clients
//! may do so at once, and some may never read the answer. Each long read waits for its turn. What
//! it found counts against a memory budget until the answer is sent or the caller is gone. A read
//! in pieces ends when its caller goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use conclave_state_machine::response::KeyValue;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;

use super::kv::off_thread;
use crate::status::Fault;

/// Long reads that may run at a time: this many per processor, and at least [`READS_MIN`].
const READS_PER_PROCESSOR: usize = 2;
const READS_MIN: usize = 4;
/// Most reads that may wait for a turn; further ones are refused.
const WAITING_MAX: usize = 4_096;
/// How long a read waits for other answers to be sent before it is refused.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is in memory twice for a moment: as rows that were read, and as encoded message.
const COPIES: u64 = 2;

/// Limits the long reads of a member; clones share the limits.
#[derive(Clone)]
pub(crate) struct LongReads {
    room: Arc<Room>,
}

struct Room {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    bytes: AtomicU64,
    bytes_max: u64,
    memory_timeout: Duration,
    refused: AtomicU64,
    freed: Notify,
}

impl LongReads {
    /// Allows the answers of all reads together at most `bytes_max` bytes of memory.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self::with(bytes_max, MEMORY_TIMEOUT)
    }

    fn with(bytes_max: u64, memory_timeout: Duration) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = READS_MIN.max(processors.saturating_mul(READS_PER_PROCESSOR));
        let room = Room {
            turns: Arc::new(Semaphore::new(turns)),
            waiting: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            bytes_max,
            memory_timeout,
            refused: AtomicU64::new(0),
            freed: Notify::new(),
        };
        Self { room: Arc::new(room) }
    }

    /// Bytes of memory that answers take at present.
    pub(crate) fn bytes(&self) -> u64 {
        self.room.bytes.load(Ordering::Relaxed)
    }

    /// Number of reads refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.room.refused.load(Ordering::Relaxed)
    }

    /// Waits for a turn, and until other answers take no more than half of the memory budget. Fails
    /// if the wait for memory takes longer than the memory timeout in all. Cancel-safe.
    pub(crate) async fn begin(&self) -> Result<LongRead, Status> {
        let _waiting = self.room.wait()?;
        // The timeout runs from the first time that memory was short, even if there was enough in
        // between.
        let mut until = None;
        loop {
            if !self.room.is_half_free() {
                let until = *until.get_or_insert_with(|| Instant::now() + self.room.memory_timeout);
                // Waits for memory without holding a turn, so that others can use it.
                let memory = tokio::time::timeout_at(until, self.room.half_free());
                memory.await.map_err(|_elapsed| self.room.refuse())?;
            }
            let read = self.turn().await?;
            if self.room.is_half_free() {
                return Ok(read);
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Err(self.room.refuse());
            }
        }
    }

    /// Like [`LongReads::begin`] for a read that finds little: waits for a turn only. Cancel-safe.
    pub(crate) async fn begin_piece(&self) -> Result<LongRead, Status> {
        let _waiting = self.room.wait()?;
        self.turn().await
    }

    async fn turn(&self) -> Result<LongRead, Status> {
        let turns = Arc::clone(&self.room.turns);
        let Ok(turn) = turns.acquire_owned().await else {
            return Err(Fault::Stopped.into());
        };
        let held = Held { room: Arc::clone(&self.room), bytes: AtomicU64::new(0) };
        Ok(LongRead { turn: Some(turn), held })
    }
}

impl Room {
    fn wait(self: &Arc<Self>) -> Result<Waiting, Status> {
        let waiting = Waiting(Arc::clone(self));
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Fault::TooManyRequests.into());
        }
        Ok(waiting)
    }

    fn is_half_free(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) <= self.bytes_max / 2
    }

    async fn half_free(&self) {
        loop {
            let freed = self.freed.notified();
            if self.is_half_free() {
                // Others may wait for the same: pass the wake-up on.
                self.freed.notify_one();
                return;
            }
            freed.await;
        }
    }

    fn refuse(&self) -> Status {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Status::resource_exhausted(format!(
            "conclave: the answers to long reads would take more than {} bytes of memory \
             (--max-answer-bytes); read fewer keys at a time (limit), or as a stream (RangeStream)",
            self.bytes_max
        ))
    }
}

/// Counts a read as waiting for a turn, until dropped.
struct Waiting(Arc<Room>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A long read that has its turn.
pub(crate) struct LongRead {
    /// `None` while a blocking thread holds it.
    turn: Option<OwnedSemaphorePermit>,
    held: Held,
}

impl LongRead {
    /// Reads a piece where blocking is allowed. If the caller goes, the thread keeps the turn until
    /// it is done.
    pub(crate) async fn piece<T: Send + 'static>(
        &mut self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let turn = self.turn.take();
        let (read, turn) = off_thread(move || (read(), turn)).await?;
        self.turn = turn;
        Ok(read)
    }

    /// Adds the memory of `found` to the budget. Fails if that exceeds the budget.
    pub(crate) fn grow<'a>(
        &mut self,
        found: impl IntoIterator<Item = &'a KeyValue>,
    ) -> Result<(), Status> {
        let each = |kv: &KeyValue| kv.key.len() + kv.value.len() + size_of::<KeyValue>();
        let bytes = found.into_iter().map(each).sum::<usize>() as u64 * COPIES;
        let room = &self.held.room;
        self.held.bytes.fetch_add(bytes, Ordering::Relaxed);
        let all = room.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if all > room.bytes_max { Err(room.refuse()) } else { Ok(()) }
    }

    /// Takes everything found so far off the budget: it was dropped.
    pub(crate) fn forget(&mut self) {
        self.held.release();
    }

    /// Ends the read and its turn. The answer counts against the budget until the returned value is
    /// dropped.
    pub(crate) fn end(self) -> Held {
        self.held
    }
}

/// Memory of an answer, taken off the budget when this is dropped.
pub(crate) struct Held {
    room: Arc<Room>,
    bytes: AtomicU64,
}

impl Held {
    /// Takes the answer off the budget and wakes a waiting read.
    pub(crate) fn release(&self) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        self.room.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.room.freed.notify_one();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::FutureExt as _;
    use tonic::Code;

    use super::*;

    fn found(bytes: usize) -> [KeyValue; 1] {
        [KeyValue { value: Bytes::from(vec![0; bytes]), ..KeyValue::default() }]
    }

    #[tokio::test]
    async fn memory_is_counted_until_the_answer_is_gone() {
        let reads = LongReads::new(10_000);
        let mut first = reads.begin().await.unwrap();
        first.grow(&found(3_000)).unwrap();
        let first = first.end();
        assert!(reads.bytes() > 6_000, "{}", reads.bytes());
        assert!(reads.begin().now_or_never().is_none(), "the others wait");
        drop(first);
        assert_eq!(reads.bytes(), 0);
        let mut second = reads.begin().await.unwrap();
        let refusal = second.grow(&found(6_000)).unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        assert_eq!(reads.refused(), 1);
        drop(second);
        assert_eq!(reads.bytes(), 0);
    }

    #[tokio::test]
    async fn who_waits_too_long_for_memory_is_refused() {
        let reads = LongReads::with(1_000, Duration::from_millis(1));
        let mut first = reads.begin().await.unwrap();
        first.grow(&found(300)).unwrap();
        let held = first.end();
        let refusal = reads.begin().await.err().unwrap();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        drop(held);
        let [one, other] = [reads.begin(), reads.begin()].map(|read| async { read.await.is_ok() });
        assert_eq!(tokio::join!(one, other), (true, true), "both go on");
    }

    #[tokio::test]
    async fn who_finds_too_little_memory_again_and_again_is_refused() {
        const PATIENCE: Duration = Duration::from_millis(200);
        let reads = LongReads::with(1_000, PATIENCE);
        let mut others = Vec::new();
        while let Some(read) = reads.begin().now_or_never() {
            others.push(read.unwrap());
        }
        let [mut one, mut other] = [others.pop().unwrap(), others.pop().unwrap()];
        one.grow(&found(300)).unwrap();
        let mut waits = std::pin::pin!(reads.begin());
        assert!(futures::poll!(waits.as_mut()).is_pending(), "for memory");
        let patient_until = Instant::now() + PATIENCE;
        one.held.release();
        assert!(futures::poll!(waits.as_mut()).is_pending(), "for a turn");
        other.grow(&found(300)).unwrap();
        tokio::time::sleep_until(patient_until).await;
        drop(one);
        let refusal = waits.await.err().expect("it has waited long enough");
        assert_eq!((refusal.code(), reads.refused()), (Code::ResourceExhausted, 1));
        drop((other, others));
        reads.begin().await.unwrap();
    }

    #[tokio::test]
    async fn reads_wait_for_their_turn_and_a_thread_keeps_it() {
        let reads = LongReads::new(u64::MAX);
        let mut all = Vec::new();
        while let Some(read) = reads.begin().now_or_never() {
            all.push(read.unwrap());
        }
        let (go_on, waits) = std::sync::mpsc::sync_channel::<()>(1);
        let (started, has_started) = tokio::sync::oneshot::channel();
        let mut last = all.pop().unwrap();
        let read = move || (started.send(()), waits.recv());
        let piece = tokio::spawn(async move { last.piece(read).await.map(drop) });
        has_started.await.unwrap();
        piece.abort();
        piece.await.unwrap_err();
        assert!(reads.begin().now_or_never().is_none(), "its thread reads on");
        go_on.send(()).unwrap();
        reads.begin().await.unwrap();
        drop(all);
        assert_eq!(reads.room.waiting.load(Ordering::Relaxed), 0);
    }
}
