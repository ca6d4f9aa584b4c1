//! The `Meta` row `head`: the counters of the store, written once per apply batch.

use bytes::Bytes;

use super::{RowReader, RowWriter};
use crate::auth::AuthHead;
use crate::command::AlarmKind;
use crate::compaction::Sweep;
use crate::head::Head;
use crate::response::Halt;
use crate::revision::Revision;

/// Key of the row.
pub(crate) const KEY: &[u8] = b"head";

/// Format without auth fields.
const FORM_PLAIN: u8 = 1;
const FORM: u8 = 2;

pub(crate) fn encode(head: &Head) -> Bytes {
    let mut row = RowWriter::new(FORM);
    row.int(head.revision);
    row.int(head.compacted);
    row.int(head.bytes_in_use);
    row.int(head.key_count);
    row.uint(head.digest);
    for cursor in [head.sweep.replaced, head.sweep.tombstones] {
        row.int(cursor.main);
        row.uint(u64::from(cursor.sub));
    }
    row.size(head.alarms.len());
    for (member, kind) in &head.alarms {
        row.uint(*member);
        row.uint(u64::from(kind.number()));
    }
    row.byte(u8::from(head.auth.enabled));
    row.uint(head.auth.revision);
    row.finish()
}

/// # Errors
/// [`Halt::CorruptRow`] if the bytes are not such a row.
pub(crate) fn decode(row: &[u8]) -> Result<Head, Halt> {
    let mut row = RowReader::new("head", row);
    let form = row.form()?;
    if ![FORM_PLAIN, FORM].contains(&form) {
        return Err(row.corrupt("unknown form"));
    }
    Ok(Head {
        revision: row.int()?,
        compacted: row.int()?,
        bytes_in_use: row.int()?,
        key_count: row.int()?,
        digest: row.uint()?,
        sweep: Sweep {
            replaced: Revision { main: row.int()?, sub: row.short()? },
            tombstones: Revision { main: row.int()?, sub: row.short()? },
        },
        alarms: alarms(&mut row)?,
        auth: if form == FORM { auth(&mut row)? } else { AuthHead::default() },
    })
}

fn auth(row: &mut RowReader<'_>) -> Result<AuthHead, Halt> {
    Ok(AuthHead { enabled: row.uint()? != 0, revision: row.uint()? })
}

fn alarms(row: &mut RowReader<'_>) -> Result<Vec<(u64, AlarmKind)>, Halt> {
    // Each alarm takes at least two bytes, so a corrupt count ends with the row.
    let count = row.size()?;
    (0..count)
        .map(|_| {
            let member = row.uint()?;
            let number = row.uint()?;
            let kind = u8::try_from(number).ok().and_then(AlarmKind::from_number);
            Ok((member, kind.ok_or_else(|| row.corrupt("unknown alarm"))?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let head = Head {
            revision: 70_000,
            compacted: -1,
            bytes_in_use: 1 << 40,
            key_count: 3,
            digest: u64::MAX,
            sweep: Sweep {
                replaced: Revision { main: 8, sub: 2 },
                tombstones: Revision { main: 7, sub: 1 },
            },
            alarms: vec![(7, AlarmKind::NoSpace), (u64::MAX, AlarmKind::Corrupt)],
            auth: AuthHead { enabled: true, revision: 300 },
        };
        let row = encode(&head);
        assert_eq!(decode(&row).unwrap(), head);
        assert!(decode(&row[..row.len() - 1]).is_err());
        let plain = [&[FORM_PLAIN], &row[1..row.len() - 3]].concat();
        assert_eq!(decode(&plain).unwrap(), Head { auth: AuthHead::default(), ..head });
        assert!(decode(&[]).is_err());
    }
}
