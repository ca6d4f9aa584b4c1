//! Group commit: what queues during a sync shares the next one, and `append` waits only for memory.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use conclave_raft_store::codec;
use conclave_raft_store::log::sim::SimDisk;
use conclave_raft_store::log::{Disk, DiskFile, LogOptions, LogStore};
use conclave_raft_store::types::{Entry, TypeConfig, Vote};
use futures::StreamExt;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use parking_lot::{Condvar, Mutex};

use crate::damage::append_each;
use crate::model::{entry, id, open, options};

/// Holds every sync while it is closed.
#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn close(&self) {
        *self.is_closed.lock() = true;
    }

    fn open(&self) {
        *self.is_closed.lock() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut is_closed = self.is_closed.lock();
        while *is_closed {
            self.opened.wait(&mut is_closed);
        }
    }
}

struct GatedDisk(SimDisk, Arc<Gate>);
struct GatedFile(Arc<dyn DiskFile>, Arc<Gate>);

impl GatedDisk {
    fn gated(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(GatedFile(file, self.1.clone()))
    }
}

impl Disk for GatedDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.create(name).map(|file| self.gated(file))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(name).map(|file| self.gated(file))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }
}

impl DiskFile for GatedFile {
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }
    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.0.set_bytes(bytes)
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
    fn write_end_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_end_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
}

fn gated(options: LogOptions) -> (LogStore, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let disk = GatedDisk(SimDisk::new(), gate.clone());
    let log = LogStore::open_on(Arc::new(disk), options).expect("an empty disk");
    (log, gate)
}

#[tokio::test]
async fn appends_during_a_sync_share_the_next_and_are_readable_at_once() {
    let syncs = Arc::new(AtomicU64::new(0));
    let seen = syncs.clone();
    let options = LogOptions {
        segment_bytes: 1 << 20,
        on_sync: Some(Box::new(move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
        })),
        ..options()
    };
    let (mut log, gate) = gated(options);
    append_each(&log, 0..1, 10).await;
    gate.close();
    let mut answers = Vec::new();
    for index in 1..101 {
        let (sender, receiver) = TypeConfig::oneshot();
        log.append([entry(1, index, 50)], IOFlushed::signal(sender)).await.expect("an open log");
        answers.push(receiver);
        let read = log.try_get_log_entries(index..=index).await.expect("a readable entry");
        assert_eq!(read, [entry(1, index, 50)]);
    }
    assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()), "none is durable");
    gate.open();
    for answer in answers {
        answer.await.expect("an answer").expect("a durable entry");
    }
    let stats = log.stats();
    assert!(stats.syncs_total <= 3, "{stats:?}");
    assert_eq!(stats.syncs_total, syncs.load(Ordering::SeqCst));
    assert_eq!((stats.first_index, stats.next_index, stats.records_total), (0, 101, 101));
}

#[tokio::test]
async fn append_waits_when_too_much_is_queued() {
    let options = LogOptions { queue_bytes_max: 5000, segment_bytes: 1 << 20, ..options() };
    let (mut log, gate) = gated(options);
    append_each(&log, 0..1, 10).await;
    gate.close();
    let mut index = 1;
    let waiting = loop {
        let mut log = log.clone();
        let mut append =
            Box::pin(async move { log.append([entry(1, index, 1000)], IOFlushed::noop()).await });
        index += 1;
        // The first poll enqueues, or finds the queue full.
        if futures::poll!(append.as_mut()).is_pending() {
            break append;
        }
        assert!(index < 100, "the queue has no limit");
    };
    assert!(log.stats().queued_bytes >= 5000);
    gate.open();
    waiting.await.expect("space in the end");
    log.save_vote(&Vote::new(2, 1)).await.expect("an open log");
    assert_eq!((log.stats().queued_bytes, log.stats().next_index), (0, index));
}

#[tokio::test]
async fn a_hint_is_written_with_what_comes_next_and_costs_no_sync() {
    let (mut log, _gate) = gated(options());
    append_each(&log, 0..2, 10).await;
    let before = log.stats();
    log.save_committed(Some(id(1, 1))).await.expect("an open log");
    append_each(&log, 2..3, 10).await;
    let after = log.stats();
    assert_eq!(after.records_total, before.records_total + 2);
    assert_eq!(after.syncs_total, before.syncs_total + 1);
}

#[tokio::test]
async fn a_stream_gives_all_entries_in_steps_from_cache_and_files() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("an empty disk");
    append_each(&log, 0..100, 700).await;
    let limit = options().read_bytes_max;
    let step = log.limited_get_log_entries(0, 100).await.expect("entries");
    assert!(step.len() * 700 <= limit && step.len() > 1, "{}", step.len());

    let mut reader = log.clone();
    let all: Vec<Entry> = {
        let stream = reader.entries_stream(0..u64::MAX).await;
        stream.map(|item| item.expect("a sound entry")).collect().await
    };
    let expected: Vec<Entry> = (0..100).map(|index| entry(1, index, 700)).collect();
    assert_eq!(all, expected);

    let encoded = log.encoded(97..200, usize::MAX).await.expect("entries");
    let again: Vec<Entry> =
        encoded.into_iter().map(|bytes| codec::decode_entry(bytes).expect("an entry")).collect();
    assert_eq!(again, expected[97..]);

    log.purge(id(1, 49)).await.expect("an open log");
    let rest: Vec<_> = reader.entries_stream(10..60).await.collect().await;
    assert_eq!(rest.len(), 10, "what is purged is missing at the begin only");
}

#[tokio::test]
async fn a_hole_is_refused() {
    let mut log = open(&SimDisk::new()).expect("an empty disk");
    append_each(&log, 0..3, 1).await;
    for index in [0, 2, 4] {
        assert!(log.append([entry(1, index, 1)], IOFlushed::noop()).await.is_err(), "{index}");
    }
    append_each(&log, 3..4, 1).await;
}
