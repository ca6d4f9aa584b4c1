//! A state without a raft: entries are made and applied by hand.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use bytes::Bytes;
use conclave_proto::{etcdserverpb as etcd, internal};
use conclave_raft_store::types::{
    Batch, CommittedLeaderId, Entry, EntryPayload, LogId, MemberNode, Membership, Nodes,
};
use conclave_raft_store::{
    AppliedEntry, ApplySink, EngineKind, Reader, RocksOptions, StateMachine, StateStore,
    StoreOptions,
};
use conclave_state_machine::command::Range;
use conclave_state_machine::head::Head;
use openraft::storage::RaftStateMachine;
use parking_lot::Mutex;
use prost::Message;

pub(crate) const ENGINES: [EngineKind; 2] = [
    EngineKind::Memory,
    EngineKind::Rocks(RocksOptions {
        cache_bytes: 1 << 20,
        write_buffer_bytes: 1 << 20,
        write_buffers_bytes_max: 4 << 20,
        open_files_max: 64,
        recent_rows_max: 20,
        recent_bytes_max: 4 << 10,
    }),
];

/// Index of an entry that is about to be seen, and up to where a reader saw them just then.
type Applying = (u64, Option<u64>);

/// Remembers what it is told.
#[derive(Clone, Default)]
pub(crate) struct Heard {
    pub(crate) applied: Arc<Mutex<Vec<AppliedEntry>>>,
    pub(crate) applying: Arc<Mutex<Vec<Applying>>>,
    /// Up to where a reader saw entries when a snapshot was about to be seen.
    pub(crate) installing: Arc<Mutex<Vec<Option<u64>>>>,
    /// Who applied each piece.
    pub(crate) threads: Arc<Mutex<Vec<ThreadId>>>,
    /// Batches whose answers nobody waits for.
    pub(crate) unawaited: Arc<Mutex<BTreeSet<u64>>>,
    reader: Arc<OnceLock<Reader>>,
}

impl Heard {
    /// Up to where a reader sees entries; nothing while the state is opened.
    fn seen(&self) -> Option<u64> {
        self.reader.get()?.applied().map(|id| id.index)
    }
}

impl ApplySink for Heard {
    fn is_awaited(&self, _: u64, sequence: u64) -> bool {
        !self.unawaited.lock().contains(&sequence)
    }
    fn applying(&self, entries: &[AppliedEntry]) {
        self.threads.lock().push(std::thread::current().id());
        let seen = self.seen();
        self.applying.lock().extend(entries.iter().map(|entry| (entry.log_id.index, seen)));
    }
    fn applied(&self, entries: Vec<AppliedEntry>, _: Arc<Head>) {
        self.applied.lock().extend(entries);
    }
    fn installing(&self) {
        self.installing.lock().push(self.seen());
    }
    fn installed(&self, _: Arc<Head>) {}
    fn membership(&self, _: &conclave_raft_store::types::StoredMembership) {}
}

pub(crate) struct State {
    pub(crate) machine: StateMachine,
    pub(crate) reader: Reader,
    pub(crate) heard: Heard,
}

impl State {
    pub(crate) fn open(dir: &Path, engine: EngineKind) -> State {
        let heard = Heard::default();
        let options = StoreOptions { engine };
        let (machine, reader) =
            StateStore::open(dir, options, Box::new(heard.clone())).expect("the state opens");
        assert!(heard.reader.set(reader.clone()).is_ok(), "it is opened once");
        State { machine, reader, heard }
    }

    pub(crate) async fn apply(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
        self.machine.apply(futures::stream::iter(entries)).await.expect("entries apply");
    }

    pub(crate) fn get(&self, key: &'static str, revision: i64) -> Option<Bytes> {
        let request =
            Range { key: Bytes::from_static(key.as_bytes()), revision, ..Range::default() };
        let (answer, _) = self.reader.range(&request).expect("the revision is there");
        answer.kvs.into_iter().next().map(|kv| kv.value)
    }
}

pub(crate) fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1), index)
}

pub(crate) fn entry(index: u64, commands: Vec<internal::command::Command>) -> Entry {
    let commands = commands
        .into_iter()
        .map(|c| internal::Command { command: Some(c), ..Default::default() })
        .collect();
    let batch = internal::Batch { proposer: 7, sequence: index, commands, proposed_unix_ms: 0 };
    let payload = EntryPayload::Normal(Batch { bytes: batch.encode_to_vec().into() });
    Entry { log_id: log_id(index), payload }
}

pub(crate) fn membership_entry(index: u64) -> Entry {
    let nodes =
        (1..=3).map(|id| (id, MemberNode { name: format!("n{id}"), ..MemberNode::default() }));
    let membership = Membership::new(vec![[1, 2, 3].into()], nodes.collect::<Nodes>());
    let payload = EntryPayload::Membership(membership.expect("every voter has a node"));
    Entry { log_id: log_id(index), payload }
}

pub(crate) fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> internal::command::Command {
    internal::command::Command::Put(etcd::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    })
}

pub(crate) fn delete(key: &'static str, end: &'static str) -> internal::command::Command {
    internal::command::Command::DeleteRange(etcd::DeleteRangeRequest {
        key: key.into(),
        range_end: end.into(),
        prev_kv: true,
    })
}

pub(crate) fn compact(revision: i64) -> internal::command::Command {
    internal::command::Command::Compact(etcd::CompactionRequest { revision, physical: false })
}

/// What a crash now would leave of `root`: its files, without what is in memory.
///
/// Files may be deleted meanwhile in the background; then the copy is made again.
pub(crate) fn crash_image(root: &Path) -> tempfile::TempDir {
    for _ in 0..1_000 {
        let image = tempfile::tempdir().expect("a temporary directory");
        let before = names(root);
        if copy_tree(root, image.path()).is_ok() && names(root) == before {
            return image;
        }
    }
    panic!("the files of {} never stay the same", root.display());
}

fn names(root: &Path) -> BTreeSet<PathBuf> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        names.extend(names_below(&entry.path()));
    }
    names
}

fn names_below(path: &Path) -> BTreeSet<PathBuf> {
    if path.is_dir() { names(path) } else { BTreeSet::from([path.to_owned()]) }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
