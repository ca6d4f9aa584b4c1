//! `Member` rows: id -> the name and URLs that the member published, or that it was removed for
//! good.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::command::MemberRecord;
use crate::response::Halt;

const PUBLISHED: u8 = 1;
const REMOVED: u8 = 2;

/// What is known about a member besides the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MemberRow {
    /// It published its name and URLs.
    Published(MemberRecord),
    /// It was removed: the id is never used again.
    Removed(u64),
}

/// Key of a `Member` row.
pub(crate) fn row_key(id: u64) -> [u8; 8] {
    id.to_be_bytes()
}

pub(crate) fn encode(member: &MemberRecord) -> Bytes {
    let mut row = RowWriter::new(PUBLISHED);
    row.uint(member.id);
    row.bytes(member.name.as_bytes());
    for urls in [&member.peer_urls, &member.client_urls] {
        row.size(urls.len());
        urls.iter().for_each(|url| row.bytes(url.as_bytes()));
    }
    row.finish()
}

pub(crate) fn encode_removed(id: u64) -> Bytes {
    let mut row = RowWriter::new(REMOVED);
    row.uint(id);
    row.finish()
}

/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a row.
pub(crate) fn decode(row: &[u8]) -> Result<MemberRow, Halt> {
    let mut row = RowReader::new("member", row);
    match row.form()? {
        PUBLISHED => Ok(MemberRow::Published(MemberRecord {
            id: row.uint()?,
            name: row.string()?,
            peer_urls: urls(&mut row)?,
            client_urls: urls(&mut row)?,
        })),
        REMOVED => Ok(MemberRow::Removed(row.uint()?)),
        _ => Err(row.corrupt("unknown form")),
    }
}

fn urls(row: &mut RowReader<'_>) -> Result<Vec<String>, Halt> {
    // Each URL takes at least a byte, so a corrupt count ends with the row.
    let count = row.size()?;
    (0..count).map(|_| row.string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let member = MemberRecord {
            id: u64::MAX,
            name: "infra0".to_owned(),
            peer_urls: vec!["http://127.0.0.1:2380".to_owned()],
            client_urls: vec![],
        };
        let row = encode(&member);
        assert_eq!(decode(&row).unwrap(), MemberRow::Published(member));
        assert!(decode(&row[..row.len() - 1]).is_err());
        assert_eq!(decode(&encode_removed(300)).unwrap(), MemberRow::Removed(300));
    }
}
