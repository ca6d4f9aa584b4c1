//! Skip links: lead from a key's newest state to an old one in few steps, however often the key
//! changed.
//!
//! The changes of a key are numbered. One whose number is a multiple of 16 links to the previous
//! such change; one whose number is a multiple of 256 also links to the previous multiple of 256,
//! and so on. The `Key` row has the number of the newest change and the last change of each level;
//! the `Rev` row of a change has its links. So a look-up takes at most 16 steps on each level, and
//! fifteen of sixteen rows are as long as without links.

use super::{RowReader, VARINT_BYTES_MAX, varint};
use crate::response::Halt;
use crate::revision::Revision;

/// Changes from one link of a level to the next, as a power of two: 16 of the level below.
const STRIDE_BITS: u32 = 4;
/// Levels of links: the highest skips 1,048,576 changes at once.
pub(crate) const LEVELS: usize = 5;
/// Most bytes of one link, or of the number of a change.
const LINK_BYTES_MAX: usize = 2 * VARINT_BYTES_MAX;
/// Most bytes of all links of a row, with the number of the change.
pub(crate) const SKIPS_BYTES_MAX: usize = VARINT_BYTES_MAX + LEVELS * LINK_BYTES_MAX;

/// What the `Key` row of a key stores about its changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skips {
    /// Number of the newest change, 0 before the first.
    changes: u64,
    /// The last change of each level, lowest first; the default where there was none.
    last: [Revision; LEVELS],
}

impl Skips {
    /// The inverse of [`Skips::to_bytes`].
    ///
    /// # Errors
    /// [`Halt::CorruptRow`] if the bytes are damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Skips, Halt> {
        let mut skips = Skips { changes: 1, ..Skips::default() };
        if bytes.is_empty() {
            return Ok(skips);
        }
        let mut row = RowReader::new("key", bytes);
        skips.changes = row.uint()?;
        for (place, link) in skips.last.iter_mut().zip(Links(row.tail())) {
            *place = link?;
        }
        Ok(skips)
    }

    /// Adds the change at `at`. Returns the links for its `Rev` row.
    pub(crate) fn step(&mut self, at: Revision) -> LinkBytes {
        self.changes = self.changes.saturating_add(1);
        let levels = (self.changes.trailing_zeros() / STRIDE_BITS) as usize;
        let mut links = LinkBytes::default();
        for last in self.last.iter_mut().take(levels) {
            if *last != Revision::default() {
                links.link(*last);
            }
            *last = at;
        }
        links
    }

    /// Encodes it for the `Key` row; empty if the key changed only once, as most do.
    pub(crate) fn to_bytes(self) -> LinkBytes {
        let mut bytes = LinkBytes::default();
        if self.changes > 1 {
            bytes.uint(self.changes);
            self.last.iter().take_while(|last| last.main != 0).for_each(|last| bytes.link(*last));
        }
        bytes
    }
}

/// Encoded links, lowest level first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkBytes {
    bytes: [u8; SKIPS_BYTES_MAX],
    length: usize,
}

impl Default for LinkBytes {
    fn default() -> LinkBytes {
        LinkBytes { bytes: [0; SKIPS_BYTES_MAX], length: 0 }
    }
}

impl LinkBytes {
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn link(&mut self, link: Revision) {
        self.uint(link.main.cast_unsigned());
        self.uint(u64::from(link.sub));
    }

    fn uint(&mut self, number: u64) {
        varint(number, |byte| {
            let place = self.bytes.get_mut(self.length).expect("SKIPS_BYTES_MAX is enough");
            *place = byte;
            self.length = self.length.saturating_add(1);
        });
    }
}

/// Iterates over encoded links, lowest level first.
struct Links<'a>(&'a [u8]);

impl Iterator for Links<'_> {
    type Item = Result<Revision, Halt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut row = RowReader::new("key", self.0);
        let link = row.previous().and_then(|link| link.ok_or_else(|| row.corrupt("empty link")));
        // Stops after damage.
        self.0 = if link.is_ok() { row.tail() } else { &[] };
        Some(link)
    }
}

/// The farthest change after revision `at` to which a `Rev` row with these links leads.
///
/// # Errors
/// [`Halt::CorruptRow`] if they cannot be read.
pub(crate) fn of_change(links: &[u8], at: i64) -> Result<Option<Revision>, Halt> {
    let mut farthest = None;
    for link in Links(links) {
        // Links of higher levels are older.
        let link = link?;
        if link.main <= at {
            break;
        }
        farthest = Some(link);
    }
    Ok(farthest)
}

/// As [`of_change`], for a `Key` row.
///
/// # Errors
/// As [`of_change`].
pub(crate) fn of_key(skips: &[u8], at: i64) -> Result<Option<Revision>, Halt> {
    if skips.is_empty() {
        return Ok(None);
    }
    let mut row = RowReader::new("key", skips);
    row.uint()?;
    of_change(row.tail(), at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: i64) -> Revision {
        Revision { main: 10 * number, sub: 3 }
    }

    #[test]
    fn a_change_links_to_the_last_of_each_of_its_levels() {
        let mut skips = Skips::default();
        let mut links_of = Vec::new();
        for number in 1..=600 {
            let links = skips.step(at(number));
            links_of.push(Links(links.as_slice()).collect::<Result<Vec<_>, _>>().unwrap());
            assert_eq!(Skips::decode(skips.to_bytes().as_slice()).unwrap(), skips);
        }
        let links = |number: usize| links_of[number - 1].clone();
        assert_eq!(links(15), [], "on no level");
        assert_eq!(links(16), [], "the first of its level");
        assert_eq!(links(48), [at(32)]);
        assert_eq!(links(256), [at(240)], "the first of the second level");
        assert_eq!(links(512), [at(496), at(256)]);
        let with_links = links_of.iter().filter(|links| !links.is_empty()).count();
        assert_eq!(with_links, 600 / 16 - 1);
    }

    #[test]
    fn a_key_that_changed_once_needs_no_bytes() {
        let mut skips = Skips::default();
        skips.step(at(1));
        assert!(skips.to_bytes().as_slice().is_empty());
        assert_eq!(Skips::decode(b"").unwrap(), skips);
        skips.step(at(2));
        assert_eq!(skips.to_bytes().as_slice(), [2]);
    }

    #[test]
    fn the_farthest_that_is_not_too_far_is_taken() {
        let mut skips = Skips::default();
        for number in 1..=1_000 {
            skips.step(at(number));
        }
        let bytes = skips.to_bytes();
        let farthest = |number| of_key(bytes.as_slice(), at(number).main).unwrap();
        assert_eq!(farthest(10), Some(at(768)));
        assert_eq!(farthest(767), Some(at(768)));
        assert_eq!(farthest(768), Some(at(992)));
        assert_eq!(farthest(992), None);
    }

    #[test]
    fn all_levels_have_room() {
        let last = [Revision { main: i64::MAX, sub: u32::MAX }; LEVELS];
        let mut skips = Skips { changes: u64::MAX - 1, last };
        // The next number is odd, so no link is added.
        skips.step(Revision { main: i64::MAX, sub: u32::MAX });
        assert_eq!(Skips::decode(skips.to_bytes().as_slice()).unwrap(), skips);
    }

    #[test]
    fn damage_is_an_error() {
        assert!(Skips::decode(&[2, 0x80]).is_err(), "cut short");
        assert!(Skips::decode(&[2, 0]).is_err(), "no link leads to nothing");
        assert!(of_change(&[5], 0).is_err(), "without the second number");
    }
}
