//! Accepts clients whose `:authority` is invalid.
//!
//! `etcdctl` up to 3.4 dials single endpoints (`endpoint status`, `defrag`, `move-leader`, ...)
//! with `:authority: http://127.0.0.1:2379`. That is not an authority, and the h2 library answers
//! it with a protocol error before any code of ours sees the request; Go's server never checks. For
//! a unix socket it sends the socket's path, which is not an authority either; other clients send
//! nothing, or the path with `%2F`. So the bytes of a new connection are inspected up to its first
//! header block. If the authority there is valid, as with every other client, inspection ends.
//! Otherwise it is replaced in this and all later header blocks of the connection.
//!
//! The replacement needs no HPACK state: the literal that carries the value also enters it into
//! both sides' tables, so later references find the replacement. Our entry is not longer than the
//! client's (except by one byte for an empty value, which matters only to a table that is full to
//! the byte). Entries that we therefore keep a little longer than the client are never referred to.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Buf as _, BytesMut};
use http::uri::Authority;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
const TYPE_HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// Index of the name `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// The indexed field whose value in the static table is empty.
const EMPTY_AUTHORITY: u8 = 0x81;
/// Name of a literal that is not entered into the table.
const LITERAL_AUTHORITY: &[u8] = &[0x01];
/// The replacement value. gRPC ignores it; for pages it is checked against `--host-whitelist`,
/// which should not list such a host.
const REPLACEMENT: &str = "invalid";
/// HPACK's Huffman code (RFC 7541, appendix B), codes of up to 8 bits: length in bits, the first
/// code, and the characters of it and of those that follow.
const SHORT_CODES: [(u32, u32, &[u8]); 4] = [
    (5, 0x00, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
];

/// What is known about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The preface is incomplete.
    Preface,
    /// HTTP/2, before the first header block.
    Undecided,
    /// HTTP/2 with an invalid authority, which is replaced.
    Replacing,
    /// Nothing to do.
    Done,
}

/// Inspects what a connection receives, piece by piece.
#[derive(Debug)]
pub(super) struct Filter {
    stage: Stage,
    /// Received but not yet inspected.
    received: BytesMut,
    /// Bytes of the current frame that still pass uninspected.
    unseen: usize,
    headers_bytes_max: usize,
}

impl Filter {
    /// For header blocks of up to `headers_bytes_max` bytes; larger frames pass uninspected.
    pub(super) fn new(headers_bytes_max: usize) -> Self {
        let received = BytesMut::new();
        Self { stage: Stage::Preface, received, unseen: 0, headers_bytes_max }
    }

    /// Whether everything received from now on may pass uninspected.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Takes received bytes and appends what may be passed on to `out`. At most one incomplete
    /// frame is held back.
    pub(super) fn take(&mut self, received: &[u8], out: &mut BytesMut) {
        self.received.extend_from_slice(received);
        if self.stage == Stage::Preface && !self.take_preface() {
            return;
        }
        while self.stage != Stage::Done && self.take_piece(out) {}
        if self.stage == Stage::Done {
            out.unsplit(self.received.split());
        }
    }

    /// Compares the preface; returns whether it is decided.
    fn take_preface(&mut self) -> bool {
        let compared = self.received.len().min(PREFACE.len());
        if self.received[..compared] != PREFACE[..compared] {
            self.stage = Stage::Done;
        } else if compared == PREFACE.len() {
            self.stage = Stage::Undecided;
            self.unseen = PREFACE.len();
        } else {
            // The server needs the whole preface anyway to tell HTTP/1 from HTTP/2.
            return false;
        }
        true
    }

    /// Passes on the rest of a frame, or inspects the next one. Returns whether there were enough
    /// bytes.
    fn take_piece(&mut self, out: &mut BytesMut) -> bool {
        if self.unseen > 0 {
            let passed = self.unseen.min(self.received.len());
            out.extend_from_slice(&self.received[..passed]);
            self.received.advance(passed);
            self.unseen -= passed;
            return self.unseen == 0;
        }
        let Some(head) = self.received.first_chunk::<FRAME_HEAD_BYTES>() else { return false };
        let payload_bytes =
            usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        if kind != TYPE_HEADERS || payload_bytes > self.headers_bytes_max {
            self.unseen = FRAME_HEAD_BYTES + payload_bytes;
            return true;
        }
        if self.received.len() < FRAME_HEAD_BYTES + payload_bytes {
            return false;
        }
        let frame = self.received.split_to(FRAME_HEAD_BYTES + payload_bytes);
        match replaced(&frame, flags) {
            Some(replaced) => {
                self.stage = Stage::Replacing;
                out.extend_from_slice(&replaced);
            }
            None => {
                if self.stage == Stage::Undecided {
                    self.stage = Stage::Done;
                }
                out.extend_from_slice(&frame);
            }
        }
        true
    }
}

/// The frame with its authority replaced and without padding; `None` if its authority is valid.
fn replaced(frame: &[u8], flags: u8) -> Option<Vec<u8>> {
    let (head, payload) = frame.split_at(FRAME_HEAD_BYTES);
    let (mut begin, mut end) = (0, payload.len());
    if flags & FLAG_PADDED != 0 {
        begin = 1;
        end = end.checked_sub(usize::from(*payload.first()?))?;
    }
    let priority_bytes = if flags & FLAG_PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
    let priority = payload.get(begin..begin + priority_bytes)?;
    let block = payload.get(begin + priority_bytes..end)?;
    let field = bad_authority(block)?;
    let value = field.value.as_bytes();
    let block_bytes = block.len() - field.at.len() + field.name.len() + 1 + value.len();
    let [_, high, middle, low] = u32::try_from(priority.len() + block_bytes).ok()?.to_be_bytes();
    let mut frame = vec![high, middle, low, head[3], flags & !FLAG_PADDED];
    frame.extend_from_slice(&head[5..]);
    frame.extend_from_slice(priority);
    frame.extend_from_slice(&block[..field.at.start]);
    frame.extend_from_slice(field.name);
    // Shorter than 127 bytes and not Huffman coded: the length takes one byte.
    frame.push(u8::try_from(value.len()).ok()?);
    frame.extend_from_slice(value);
    frame.extend_from_slice(&block[field.at.end..]);
    Some(frame)
}

/// A replacement in a header block.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    /// The range to replace: the old value with its length, or the whole field.
    at: Range<usize>,
    /// Bytes to insert before the new value.
    name: &'static [u8],
    /// The new value.
    value: &'static str,
}

/// Finds an invalid `:authority` in a header block. Also `None` if the block is malformed: h2 will
/// refuse it.
fn bad_authority(block: &[u8]) -> Option<Field> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        // RFC 7541, 6.1: indexed; 6.3: table size; 6.2: literals with 6 or 4 bits of a name's index.
        let (prefix_bits, is_literal) = match first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            0x00..=0x1f => (4, true),
        };
        let (index, after) = integer(block, at, prefix_bits)?;
        let begins_at = std::mem::replace(&mut at, after);
        if !is_literal {
            if first == EMPTY_AUTHORITY {
                let (name, value) = (LITERAL_AUTHORITY, REPLACEMENT);
                return Some(Field { at: begins_at..at, name, value });
            }
            continue;
        }
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            let (is_coded, begin, end) = string(block, at)?;
            // gRPC's core library writes the name out.
            is_authority =
                text(is_coded, &block[begin..end]).is_some_and(|it| *it == *b":authority");
            at = end;
        }
        let (is_coded, begin, end) = string(block, at)?;
        let value = &block[begin..end];
        if is_authority && is_bad(is_coded, value) {
            let value = &REPLACEMENT[..value.len().clamp(1, REPLACEMENT.len())];
            return Some(Field { at: at..end, name: b"", value });
        }
        at = end;
    }
    None
}

/// Whether h2 would refuse the value.
fn is_bad(is_coded: bool, value: &[u8]) -> bool {
    text(is_coded, value).is_some_and(|value| Authority::try_from(&value[..]).is_err())
}

/// The text of a string; `None` if it cannot be decoded.
fn text(is_coded: bool, bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    if is_coded { decoded(bytes).map(Cow::Owned) } else { Some(Cow::Borrowed(bytes)) }
}

/// Decodes a Huffman coded string; `None` if it contains codes longer than 8 bits.
fn decoded(coded: &[u8]) -> Option<Vec<u8>> {
    let bits = coded.len() * 8;
    let code_at = |at: usize, length: usize| {
        let bit = |at: usize| u32::from(coded[at / 8] >> (7 - at % 8) & 1);
        (at..at + length).fold(0, |code, at| code << 1 | bit(at))
    };
    let (mut text, mut at) = (Vec::new(), 0);
    while at < bits {
        let character = SHORT_CODES.iter().find_map(|&(length, first, characters)| {
            let length = length as usize;
            let code = (at + length <= bits).then(|| code_at(at, length))?;
            let place = code.checked_sub(first)?;
            Some((length, *characters.get(place as usize)?))
        });
        match character {
            Some((length, character)) => {
                text.push(character);
                at += length;
            }
            // The last byte is padded with ones.
            None if bits - at < 8 && code_at(at, bits - at) + 1 == 1 << (bits - at) => break,
            None => return None,
        }
    }
    Some(text)
}

/// Decodes an integer with a prefix (RFC 7541, 5.1); returns it and where it ends.
fn integer(block: &[u8], at: usize, prefix_bits: u32) -> Option<(usize, usize)> {
    let mask = (1usize << prefix_bits) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut at = at + 1;
    if value < mask {
        return Some((value, at));
    }
    // Three more bytes can express more than the size of a frame.
    for shift in [0, 7, 14] {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// Locates a string (RFC 7541, 5.2): whether it is Huffman coded, and the range of its bytes.
fn string(block: &[u8], at: usize) -> Option<(bool, usize, usize)> {
    let is_coded = block.get(at)? & 0x80 != 0;
    let (bytes, begin) = integer(block, at, 7)?;
    let end = begin.checked_add(bytes)?;
    (end <= block.len()).then_some((is_coded, begin, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    fn literal(first: u8, value: &[u8]) -> Vec<u8> {
        [&[first, u8::try_from(value.len()).unwrap()], value].concat()
    }

    fn pass(filter: &mut Filter, bytes: &[u8], step: usize) -> Vec<u8> {
        let mut out = BytesMut::new();
        for piece in bytes.chunks(step) {
            filter.take(piece, &mut out);
        }
        out.to_vec()
    }

    /// `:method POST`, `:scheme http`, `:path` as a literal.
    const OTHERS: &[u8] = &[0x83, 0x86, 0x44, 0x02, b'/', b'x'];

    #[test]
    fn a_url_is_replaced_in_every_header_block_however_it_arrives() {
        for first in [0x41, 0x01, 0x11] {
            let block = |value: &[u8]| [OTHERS, &literal(first, value), &[0x82]].concat();
            let good = block(REPLACEMENT.as_bytes());
            let bad = block(b"http://127.0.0.1:2379");
            let settings = frame(4, 0, &[]);
            let data = frame(0, 1, b"some data that is long enough");
            let stream = |block: &[u8]| {
                [PREFACE, &settings, &frame(1, 4, block), &data, &frame(1, 5, block)].concat()
            };
            for step in [1, 3, 10, 1000] {
                let mut filter = Filter::new(16_384);
                assert_eq!(pass(&mut filter, &stream(&bad), step), stream(&good), "step {step}");
                assert!(!filter.is_done(), "the value may come again");
            }
        }
    }

    #[test]
    fn padding_goes_and_priority_stays() {
        let block = literal(0x41, b"https://a:1");
        let payload = [&[3u8][..], &[0, 0, 0, 0, 9], &block, &[0, 0, 0]].concat();
        let bytes = [PREFACE, &frame(1, 0x2c, &payload)].concat();
        let expected = literal(0x41, REPLACEMENT.as_bytes());
        let expected = [&[0, 0, 0, 0, 9][..], &expected].concat();
        let expected = [PREFACE, &frame(1, 0x24, &expected)].concat();
        assert_eq!(pass(&mut Filter::new(16_384), &bytes, 1000), expected);
    }

    #[test]
    fn huffmans_code_is_recognised() {
        // "http://127.0.0.1:24179" as Go's encoder writes it.
        let coded = [
            0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x04, 0x4e, 0xae, 0x05, 0xc0, 0xb8, 0x6e, 0x09, 0xa0,
            0xba, 0xff,
        ];
        assert_eq!(decoded(&coded).unwrap(), b"http://127.0.0.1:24179");
        let block = [&[0x41, 0x80 | 16][..], &coded].concat();
        let field = Field { at: 1..18, name: b"", value: REPLACEMENT };
        assert_eq!(bad_authority(&block), Some(field));
        // "www.example.com" (RFC 7541, C.4.1), and a code longer than 8 bits.
        let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&host).unwrap(), b"www.example.com");
        assert!(!is_bad(true, &host));
        assert_eq!(decoded(&[0xff, 0xd8]), None);
        assert!(is_bad(true, &[]));
    }

    #[test]
    fn what_is_no_authority_is_recognised() {
        for bad in ["", "/run/x", "unix:///run/x", "run%2Fx", "a b", "http://a:1/x"] {
            let field = bad_authority(&literal(0x41, bad.as_bytes())).unwrap();
            assert_eq!(field.at, 1..2 + bad.len(), "{bad}");
            assert!(field.value.len() <= bad.len().max(1) && !field.value.is_empty(), "{bad}");
            assert_eq!(bad_authority(&literal(0x44, bad.as_bytes())), None, "a path may be so");
        }
        for good in ["localhost", "127.0.0.1:2379", "[::1]:2379", "client", "a_b", "me@a:1"] {
            assert_eq!(bad_authority(&literal(0x41, good.as_bytes())), None, "{good}");
        }
        // "/run/x" in Huffman's code: 011000 101100 101101 101010 011000 1111001.
        assert_eq!(decoded(&[0x62, 0xcb, 0x6a, 0x63, 0xcf]).unwrap(), b"/run/x");
    }

    #[test]
    fn the_name_may_be_written_out() {
        let named = |name: &[u8], value: &[u8]| {
            [&literal(0x40, name)[..], &literal(0, value)[1..]].concat()
        };
        let field = Field { at: 12..23, name: b"", value: REPLACEMENT };
        assert_eq!(bad_authority(&named(b":authority", b"tmp%2Fsock")), Some(field));
        assert_eq!(bad_authority(&named(b":authority", b"a:1")), None);
        // ":authority" in Huffman's code.
        let coded = [0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
        assert_eq!(decoded(&coded).unwrap(), b":authority");
        let block = [&[0x40, 0x88][..], &coded, &literal(0, b"/x")[1..]].concat();
        let field = Field { at: 10..13, name: b"", value: "in" };
        assert_eq!(bad_authority(&block), Some(field));
    }

    #[test]
    fn an_empty_authority_of_the_static_table_is_replaced() {
        let bytes = [PREFACE, &frame(1, 4, &[OTHERS, &[EMPTY_AUTHORITY]].concat())].concat();
        let expected = literal(LITERAL_AUTHORITY[0], REPLACEMENT.as_bytes());
        let expected = [OTHERS, &expected].concat();
        let expected = [PREFACE, &frame(1, 4, &expected)].concat();
        assert_eq!(pass(&mut Filter::new(16_384), &bytes, 1000), expected);
    }

    #[test]
    fn everything_else_passes_unchanged() {
        let good = [OTHERS, &literal(0x41, b"127.0.0.1:2379")].concat();
        let named = [&literal(0x40, b"x-url")[..], &literal(0, b"http://a")[1..]].concat();
        let broken = [0x41, 0x7f, b'h'];
        for bytes in [
            b"GET http://a/ HTTP/1.1\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nXX".to_vec(),
            [PREFACE, &frame(4, 0, &[]), &frame(1, 4, &good), b"anything"].concat(),
            [PREFACE, &frame(1, 4, &named)].concat(),
            [PREFACE, &frame(1, 4, &broken)].concat(),
            [PREFACE, &frame(1, 0x8, &[])].concat(),
        ] {
            for step in [1, 7, 1000] {
                let mut filter = Filter::new(16_384);
                assert_eq!(pass(&mut filter, &bytes, step), bytes);
                assert!(filter.is_done());
            }
        }
    }
}
