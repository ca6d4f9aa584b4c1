//! Converts RocksDB's errors: damage, a full or failing disk (with advice), or any other error.

use std::io;

use conclave_state_machine::response::Halt;
use rocksdb::ErrorKind;

use crate::engine::Create;

/// RocksDB's own text, which does not depend on the system's language.
const NO_SPACE: &str = "IO error: No space left on device";

pub(super) fn halt(error: rocksdb::Error) -> Halt {
    Halt::Storage(Box::new(damage_or_io(&error)))
}

/// The error of opening a database. One that should exist but is missing or incomplete is damaged.
pub(super) fn open_error(error: &rocksdb::Error, create: Create) -> io::Error {
    let text = error.as_ref();
    let is_missing = matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::NotFound)
        || text.contains("No such file");
    if create != Create::New && is_missing {
        return io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    }
    damage_or_io(error)
}

pub(super) fn damage_or_io(error: &rocksdb::Error) -> io::Error {
    explained(error.kind(), error.as_ref().to_owned())
}

fn explained(kind: ErrorKind, text: String) -> io::Error {
    match kind {
        ErrorKind::Corruption => io::Error::new(io::ErrorKind::InvalidData, text),
        _ if text.starts_with(NO_SPACE) => {
            let text = format!(
                "no space left for the state: nothing acknowledged is lost; free space and start \
                 again ({text})"
            );
            io::Error::new(io::ErrorKind::StorageFull, text)
        }
        ErrorKind::IOError => io::Error::other(format!(
            "the state cannot be read or written: see what the system's log says of its disk; \
             nothing acknowledged is lost while the raft log is there ({text})"
        )),
        _ => io::Error::other(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_with_advice() {
        let text = "IO error: No space left on device: While appending to file: /d/1.sst";
        let full = explained(ErrorKind::IOError, text.to_owned());
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let advice = "nothing acknowledged is lost; free space and start again";
        assert!(full.to_string().contains(advice) && full.to_string().contains(text), "{full}");
    }

    #[test]
    fn a_disk_that_fails_is_told_with_what_is_concerned() {
        let text = "IO error: While fsync: a directory: Input/output error";
        let failed = explained(ErrorKind::IOError, text.to_owned());
        assert_eq!(failed.kind(), io::ErrorKind::Other);
        let failed = failed.to_string();
        assert!(failed.starts_with("the state cannot be") && failed.contains(text), "{failed}");
        let busy = explained(ErrorKind::Busy, "Resource busy".to_owned());
        assert_eq!(busy.to_string(), "Resource busy");
    }
}
