//! Reads the WAL of an etcd as `snapshot restore` writes it: the members and nothing else.
//!
//! A file is a sequence of records: an eight-byte frame (56 bits of length; if the highest bit is
//! set, also the number of padding bytes after the record), then a `walpb.Record`. After the last
//! record there are zeros. Each record carries the CRC-32C of the contents of all records so far.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use prost::Message;

/// Name of the first WAL file.
const FIRST: &str = "0000000000000000-0000000000000000.wal";
const ENDING: &str = "wal";
/// etcd's files have 64 MiB; a larger one holds more than the members.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// Record types.
const METADATA: i64 = 1;
const ENTRY: i64 = 2;
const STATE: i64 = 3;
const CHECKSUM: i64 = 4;
const SNAPSHOT: i64 = 5;
/// Entry type of a membership change.
const MEMBER_CHANGE: i32 = 1;
/// Type of a membership change that adds a member.
const ADD: i32 = 0;

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    checksum: u32,
    #[prost(bytes = "bytes", tag = "3")]
    content: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(uint64, tag = "1")]
    member: u64,
    #[prost(uint64, tag = "2")]
    cluster: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    content: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct MemberChange {
    #[prost(int32, tag = "2")]
    kind: i32,
    #[prost(uint64, tag = "3")]
    member: u64,
    #[prost(bytes = "bytes", tag = "4")]
    description: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct State {
    #[prost(uint64, tag = "3")]
    commit: u64,
}

/// The founding members as the WAL records them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Founded {
    pub(super) cluster: u64,
    /// The member whose log it is.
    pub(super) member: u64,
    /// All members, with their descriptions in JSON.
    pub(super) members: BTreeMap<u64, Bytes>,
}

/// Reads the WAL in a directory; `None` if it holds anything but the members, or is damaged.
pub(super) fn founded(dir: &Path) -> io::Result<Option<Founded>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == ENDING) {
            files.push(path);
        }
    }
    let first = dir.join(FIRST);
    if files != [first.clone()] || fs::metadata(&first)?.len() > FILE_BYTES_MAX {
        return Ok(None);
    }
    Ok(read(&fs::read(first)?))
}

fn read(mut file: &[u8]) -> Option<Founded> {
    let (mut founded, mut metadata) = (Founded::default(), None);
    let (mut sum, mut last, mut committed) = (0, 0, 0);
    while let Some((record, rest)) = next(file)? {
        file = rest;
        if record.kind == CHECKSUM {
            sum = record.checksum;
            continue;
        }
        sum = crc32c::crc32c_append(sum, &record.content);
        if sum != record.checksum {
            return None;
        }
        match record.kind {
            METADATA => metadata = Some(Metadata::decode(record.content).ok()?),
            ENTRY => {
                let entry = Entry::decode(record.content).ok()?;
                let change = MemberChange::decode(entry.content).ok()?;
                let is_known = founded.members.contains_key(&change.member);
                if (entry.kind, change.kind, is_known) != (MEMBER_CHANGE, ADD, false) {
                    return None;
                }
                last = entry.index;
                founded.members.insert(change.member, change.description);
            }
            STATE => committed = State::decode(record.content).ok()?.commit,
            SNAPSHOT => {}
            _ => return None,
        }
    }
    let Metadata { member, cluster } = metadata?;
    // The checksums cover neither a record's type nor whether it has contents at all.
    let is_whole = founded.members.contains_key(&member)
        && committed == last
        && last == founded.members.len() as u64;
    is_whole.then_some(Founded { cluster, member, ..founded })
}

/// The next record and the bytes after it. `Some(None)` at the end, `None` if it is damaged.
fn next(file: &[u8]) -> Option<Option<(Record, &[u8])>> {
    let Some((frame, rest)) = file.split_first_chunk::<8>() else { return Some(None) };
    let frame = u64::from_le_bytes(*frame);
    if frame == 0 {
        return Some(None);
    }
    let padding = if frame >> 63 == 1 { (frame >> 56) & 7 } else { 0 };
    let length = usize::try_from(frame & ((1 << 56) - 1)).ok()?;
    let (record, rest) = rest.split_at_checked(length)?;
    let rest = rest.get(usize::try_from(padding).ok()?..)?;
    Some(Some((Record::decode(record).ok()?, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAL in etcd's format.
    #[derive(Default)]
    struct Log {
        bytes: Vec<u8>,
        sum: u32,
    }

    impl Log {
        fn record(&mut self, kind: i64, content: impl Into<Bytes>) {
            let content = content.into();
            self.sum = crc32c::crc32c_append(self.sum, &content);
            let record = Record { kind, checksum: self.sum, content }.encode_to_vec();
            let padding = (8 - record.len() % 8) % 8;
            let mut frame = record.len() as u64;
            if padding > 0 {
                frame |= (0x80 | padding as u64) << 56;
            }
            self.bytes.extend_from_slice(&frame.to_le_bytes());
            self.bytes.extend_from_slice(&record);
            self.bytes.resize(self.bytes.len() + padding, 0);
        }

        fn entry(&mut self, kind: i32, index: u64) {
            let description = Bytes::from(format!("{{\"id\":{index}}}"));
            let change = MemberChange { kind: ADD, member: index, description };
            let entry = Entry { kind, index, content: change.encode_to_vec().into() };
            self.record(ENTRY, entry.encode_to_vec());
        }

        /// A WAL as `snapshot restore` leaves it.
        fn restored() -> Self {
            let mut log = Self::default();
            log.record(CHECKSUM, Bytes::new());
            log.record(METADATA, Metadata { member: 1, cluster: 7 }.encode_to_vec());
            log.record(SNAPSHOT, Bytes::new());
            log.entry(MEMBER_CHANGE, 1);
            log.entry(MEMBER_CHANGE, 2);
            log.record(STATE, State { commit: 2 }.encode_to_vec());
            log
        }

        fn read(&self) -> Option<Founded> {
            read(&[&self.bytes[..], &[0; 64]].concat())
        }
    }

    #[test]
    fn what_was_restored_names_its_members() {
        let founded = Log::restored().read().unwrap();
        assert_eq!((founded.cluster, founded.member), (7, 1));
        assert_eq!(founded.members.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(founded.members[&2], "{\"id\":2}");
    }

    #[test]
    fn what_ran_is_none_of_it() {
        let mut ran = Log::restored();
        ran.entry(0, 3);
        ran.record(STATE, State { commit: 3 }.encode_to_vec());
        assert_eq!(ran.read(), None, "it may hold writes");
        let mut twice = Log::restored();
        twice.entry(MEMBER_CHANGE, 2);
        assert_eq!(twice.read(), None);
        let mut more = Log::restored();
        more.entry(MEMBER_CHANGE, 3);
        assert_eq!(more.read(), None, "not committed");
        assert_eq!(Log::default().read(), None);
    }

    #[test]
    fn damage_is_noticed() {
        let log = Log::restored();
        for at in 0..log.bytes.len() {
            let mut damaged = log.bytes.clone();
            damaged[at] ^= 4;
            // Not every byte carries meaning, but no damage may change the result.
            let found = read(&[&damaged[..], &[0; 64]].concat());
            assert!(found.is_none() || found == log.read(), "{at}: {found:?}");
        }
    }
}
