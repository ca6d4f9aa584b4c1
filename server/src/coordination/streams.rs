//! Numbers of the streams that ask for places. A number tells which member has the stream, and in
//! which run.
//!
//! Rows of places contain them. Two members, or two runs of one, may have the same mark by chance.
//! Then what one of them left behind stays until its session ends.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a stream number, from the lowest: stream, run, member.
const STREAM_BITS: u32 = 28;
const RUN_BITS: u32 = 16;
const MEMBER_BITS: u32 = 20;

/// The streams of one run of a member.
pub(crate) struct Streams {
    run: u64,
    last: AtomicU64,
}

impl Default for Streams {
    fn default() -> Self {
        Self { run: rand::random_range(0..1 << RUN_BITS), last: AtomicU64::new(0) }
    }
}

impl Streams {
    /// A number for a new stream of this member; never 0, which means no stream.
    pub(crate) fn next(&self, member: u64) -> u64 {
        let last = self.last.fetch_add(1, Ordering::Relaxed);
        let stream = last % ((1 << STREAM_BITS) - 1) + 1;
        (mark(member) << RUN_BITS | self.run) << STREAM_BITS | stream
    }

    /// Whether a stream belongs to an earlier run of this member.
    pub(crate) fn is_former(&self, member: u64, stream: u64) -> bool {
        let run = stream >> STREAM_BITS & ((1 << RUN_BITS) - 1);
        is_of(member, stream) && run != self.run
    }
}

/// Whether a stream belongs to this member, in any run.
pub(crate) fn is_of(member: u64, stream: u64) -> bool {
    stream >> (STREAM_BITS + RUN_BITS) == mark(member)
}

fn mark(member: u64) -> u64 {
    (member ^ member >> MEMBER_BITS ^ member >> (2 * MEMBER_BITS)) & ((1 << MEMBER_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_tells_its_member_and_its_run() {
        let (member, other) = (0x8e9e_05c5_2164_694d, 0x91bc_3c39_8fb3_c146);
        let (before, now) = (Streams { run: 7, ..Streams::default() }, Streams::default());
        let now = Streams { run: (now.run | 8) & !7, ..now };
        let (old, new) = (before.next(member), now.next(member));
        assert!(is_of(member, old) && is_of(member, new) && !is_of(other, old));
        assert!(now.is_former(member, old) && !now.is_former(member, new));
        assert!(!now.is_former(other, old));
        assert_ne!(before.next(member), old);
        assert!((0..3).all(|_| Streams::default().next(0) != 0));
    }
}
