//! Rolling hash over all events: replicas that applied the same log have the same hash.
//!
//! It detects divergence, not tampering. Leases and compactions are not part of it: they take no
//! revision, and replicas are compared at equal revisions.

use crate::response::EventKind;
use crate::revision::Revision;
use crate::rows::State;

/// Chains one event to the hash of everything before it.
pub(crate) fn chain(digest: u64, at: Revision, key: &[u8], state: Option<&State<'_>>) -> u64 {
    let digest = mix(digest ^ at.main.cast_unsigned());
    let (kind, value, lease) = match state {
        Some(state) => (EventKind::Put, state.value, state.lease),
        None => (EventKind::Delete, [].as_slice(), 0),
    };
    let kind = match kind {
        EventKind::Put => 0_u64,
        EventKind::Delete => 1 << 32,
    };
    let digest = mix(digest ^ u64::from(at.sub) ^ kind);
    let digest = mix(digest ^ lease.cast_unsigned());
    // The length keeps key and value apart.
    let key_sum = u64::from(crc32c::crc32c(key)) ^ (size(key) << 32);
    let digest = mix(digest ^ key_sum);
    mix(digest ^ u64::from(crc32c::crc32c(value)) ^ (size(value) << 32))
}

/// Chains a remembered write to the events that it caused.
pub(crate) fn chain_write(digest: u64, writer: &[u8], sequence: u64) -> u64 {
    mix(mix(digest ^ u64::from(crc32c::crc32c(writer))) ^ sequence)
}

fn size(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Spreads every input bit over all output bits (the finalizer of `SplitMix64`, Steele et al. 2014).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_counts() {
        let at = Revision { main: 5, sub: 0 };
        let state = State { create_revision: 5, version: 1, lease: 0, value: b"v" };
        let sums = [
            chain(0, at, b"k", Some(&state)),
            chain(1, at, b"k", Some(&state)),
            chain(0, at.next(), b"k", Some(&state)),
            chain(0, Revision::after(5), b"k", Some(&state)),
            chain(0, at, b"kv", Some(&State { value: b"", ..state })),
            chain(0, at, b"k", Some(&State { value: b"w", ..state })),
            chain(0, at, b"k", Some(&State { lease: 1, ..state })),
            chain(0, at, b"k", None),
            chain(0, at, b"k", Some(&State { value: b"", ..state })),
        ];
        for (place, sum) in sums.iter().enumerate() {
            assert!(!sums[..place].contains(sum), "event {place} has the hash of an earlier one");
        }
    }
}
