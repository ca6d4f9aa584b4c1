//! `Member` rows: id -> the name and URLs that the member published.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::command::MemberRecord;
use crate::response::Halt;

const FORM: u8 = 1;

/// Key of a `Member` row.
pub(crate) fn row_key(id: u64) -> [u8; 8] {
    id.to_be_bytes()
}

pub(crate) fn encode(member: &MemberRecord) -> Bytes {
    let mut row = RowWriter::new(FORM);
    row.uint(member.id);
    row.bytes(member.name.as_bytes());
    for urls in [&member.peer_urls, &member.client_urls] {
        row.size(urls.len());
        urls.iter().for_each(|url| row.bytes(url.as_bytes()));
    }
    row.finish()
}

/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a row.
pub(crate) fn decode(row: &[u8]) -> Result<MemberRecord, Halt> {
    let mut row = RowReader::new("member", row);
    match row.form()? {
        FORM => Ok(MemberRecord {
            id: row.uint()?,
            name: row.string()?,
            peer_urls: urls(&mut row)?,
            client_urls: urls(&mut row)?,
        }),
        _ => Err(row.corrupt("unknown form")),
    }
}

fn urls(row: &mut RowReader<'_>) -> Result<Vec<String>, Halt> {
    // Each URL takes at least a byte, so that a broken count ends with the row.
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
        assert_eq!(decode(&row).unwrap(), member);
        assert!(decode(&row[..row.len() - 1]).is_err());
    }
}
