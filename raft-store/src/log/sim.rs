//! An in-memory disk that loses what was not synced, for crash tests and simulation.
//!
//! The model: a write reaches the page cache at once, and the platter with a sync. In a crash, each
//! sector written since the last sync of its file survives or not, independently; so do file
//! lengths, and a prefix of the changes of names. A fault fails one operation: a failed write
//! leaves the first half of its bytes; a failed sync makes nothing durable and marks all pages as
//! clean.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};

/// Unit that a disk writes completely or not at all.
const SECTOR_BYTES: usize = 512;

/// Kinds of operations that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `write_all_at`.
    Write,
    /// `sync`.
    Sync,
    /// Creating a file.
    Create,
}

/// A small pseudo-random number generator (SplitMix64, Steele et al. 2014): the same seed gives the
/// same run.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Creates a generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.number() % bound }
    }

    /// True once in `times` on average.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

#[derive(Debug, Clone, Default)]
struct Content {
    /// The content that programs see.
    cached: Vec<u8>,
    /// The content that a crash leaves if no unsynced sector survives.
    durable: Vec<u8>,
    /// Sectors in which the two differ.
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
enum Naming {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Default)]
struct Platter {
    /// Indexed by inode.
    contents: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names since the last directory sync.
    namings: Vec<Naming>,
    /// Handles of older generations are dead, because their process crashed.
    generation: u64,
    operations: u64,
    crash_at: Option<u64>,
    fault: Option<(Operation, u64, io::ErrorKind)>,
    space_bytes: Option<u64>,
}

/// A simulated disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    platter: Arc<Mutex<Platter>>,
    generation: u64,
}

impl SimDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.platter.lock().operations
    }

    /// Makes the operation with this number and all later ones fail, as if the process were dead.
    /// [`SimDisk::crash`] then gives what is left.
    pub fn stop_at(&self, operation: u64) {
        self.platter.lock().crash_at = Some(operation);
    }

    /// Reverts [`SimDisk::stop_at`].
    pub fn resume(&self) {
        self.platter.lock().crash_at = None;
    }

    /// Fails the `nth` operation of a kind from now on (0: the next), once.
    pub fn fail(&self, operation: Operation, nth: u64, kind: io::ErrorKind) {
        self.platter.lock().fault = Some((operation, nth, kind));
    }

    /// Limits the sum of all file lengths.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.platter.lock().space_bytes = bytes;
    }

    /// Simulates a power failure: existing handles are dead, and the returned disk has what
    /// survived.
    #[must_use]
    pub fn crash(&self, random: &mut Random) -> Self {
        let mut platter = self.platter.lock();
        let platter = &mut *platter;
        for content in &mut platter.contents {
            content.crash(random);
        }
        let survived = random.below(platter.namings.len() as u64 + 1) as usize;
        let namings: Vec<Naming> = platter.namings.drain(..).take(survived).collect();
        for naming in &namings {
            apply(&mut platter.durable_names, naming);
        }
        platter.names = platter.durable_names.clone();
        self.next_generation(platter)
    }

    /// Kills only the process: the page cache survives, existing handles are dead.
    #[must_use]
    pub fn kill(&self) -> Self {
        self.next_generation(&mut self.platter.lock())
    }

    fn next_generation(&self, platter: &mut Platter) -> Self {
        platter.generation += 1;
        platter.crash_at = None;
        platter.fault = None;
        Self { platter: self.platter.clone(), generation: platter.generation }
    }

    /// Changes a file directly and durably, as damage would.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut platter = self.platter.lock();
        let inode = *platter.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let content = &mut platter.contents[inode];
        change(&mut content.cached);
        content.durable = content.cached.clone();
        content.dirty.clear();
        Ok(())
    }

    fn step<T>(
        &self,
        operation: Option<Operation>,
        run: impl FnOnce(&mut Platter) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut platter = self.platter.lock();
        platter.operations += 1;
        let is_dead = self.generation != platter.generation
            || platter.crash_at.is_some_and(|at| platter.operations >= at);
        if is_dead {
            return Err(io::Error::other("the simulated process has crashed"));
        }
        if let Some((kind, nth, error)) = platter.fault
            && operation == Some(kind)
        {
            platter.fault = nth.checked_sub(1).map(|rest| (kind, rest, error));
            if nth == 0 {
                return Err(error.into());
            }
        }
        run(&mut platter)
    }

    fn forget_dirty(&self, inode: usize) {
        let mut platter = self.platter.lock();
        let is_alive = self.generation == platter.generation && platter.crash_at.is_none();
        if is_alive {
            platter.contents[inode].dirty.clear();
        }
    }

    fn handle(&self, inode: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), inode })
    }
}

impl Content {
    fn crash(&mut self, random: &mut Random) {
        for sector in std::mem::take(&mut self.dirty) {
            if random.one_in(2) {
                self.persist(sector);
            }
        }
        if self.cached.len() != self.durable.len() && random.one_in(2) {
            self.durable.resize(self.cached.len(), 0);
        }
        self.cached = self.durable.clone();
    }

    fn persist(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cached.len());
        if start >= end {
            return;
        }
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&self.cached[start..end]);
    }
}

fn apply(names: &mut BTreeMap<String, usize>, naming: &Naming) {
    match naming {
        Naming::Create(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        Naming::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        Naming::Remove(name) => {
            names.remove(name);
        }
    }
}

impl Platter {
    fn name(&mut self, naming: Naming) {
        apply(&mut self.names, &naming);
        self.namings.push(naming);
    }

    fn write(&mut self, inode: usize, bytes: &[u8], offset: usize) -> io::Result<()> {
        let end = offset + bytes.len();
        let growth = end.saturating_sub(self.contents[inode].cached.len());
        self.check_space(growth)?;
        let content = &mut self.contents[inode];
        if growth > 0 {
            content.cached.resize(end, 0);
        }
        content.cached[offset..end].copy_from_slice(bytes);
        content.dirty.extend(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
        Ok(())
    }

    fn check_space(&self, more: usize) -> io::Result<()> {
        let used: usize = self.names.values().map(|inode| self.contents[*inode].cached.len()).sum();
        match self.space_bytes {
            Some(space) if (used + more) as u64 > space => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.step(None, |platter| Ok(platter.names.keys().cloned().collect()))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.step(Some(Operation::Create), |platter| {
            if platter.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            platter.contents.push(Content::default());
            let inode = platter.contents.len() - 1;
            platter.name(Naming::Create(name.to_owned(), inode));
            Ok(inode)
        })?;
        Ok(self.handle(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.step(None, |platter| {
            platter.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })?;
        Ok(self.handle(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step(None, |platter| {
            if !platter.names.contains_key(from) {
                return Err(io::ErrorKind::NotFound.into());
            }
            platter.name(Naming::Rename(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.step(None, |platter| {
            if !platter.names.contains_key(name) {
                return Err(io::ErrorKind::NotFound.into());
            }
            platter.name(Naming::Remove(name.to_owned()));
            Ok(())
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.step(None, |platter| {
            platter.durable_names = platter.names.clone();
            platter.namings.clear();
            Ok(())
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/simulated").join(name)
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl DiskFile for SimFile {
    fn bytes(&self) -> io::Result<u64> {
        self.disk.step(None, |platter| Ok(platter.contents[self.inode].cached.len() as u64))
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.disk.step(None, |platter| {
            platter.contents[self.inode].cached.resize(bytes as usize, 0);
            Ok(())
        })
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.step(None, |platter| {
            let cached = &platter.contents[self.inode].cached;
            let offset = offset as usize;
            let bytes =
                cached.get(offset..offset + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let written = self.disk.step(Some(Operation::Write), |platter| {
            platter.write(self.inode, bytes, offset as usize)
        });
        if written.is_err() {
            let half = &bytes[..bytes.len() / 2];
            // The first error is the one to report; a dead process writes nothing.
            drop(self.disk.step(None, |platter| platter.write(self.inode, half, offset as usize)));
        }
        written
    }

    fn write_end_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset as usize + bytes.len();
        let zeros = vec![0; end.next_multiple_of(SECTOR_BYTES) - end];
        self.write_all_at(&[bytes, &zeros].concat(), offset)
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.disk.step(Some(Operation::Sync), |platter| {
            let content = &mut platter.contents[self.inode];
            for sector in std::mem::take(&mut content.dirty) {
                content.persist(sector);
            }
            content.durable.resize(content.cached.len(), 0);
            Ok(())
        });
        if synced.is_err() {
            // As on Linux: the pages keep their content and count as clean.
            self.disk.forget_dirty(self.inode);
        }
        synced
    }
}
