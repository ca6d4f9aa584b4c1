//! The meaning of `key` and `range_end` in etcd's requests: one key, or a half-open interval.

use bytes::Bytes;

/// The keys that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span<'a> {
    /// Exactly this key.
    One(&'a Bytes),
    /// All keys from `start` on, up to but not including `end`.
    Keys {
        /// First key.
        start: &'a [u8],
        /// End, exclusive; `None` for no bound.
        end: Option<&'a [u8]>,
    },
}

impl<'a> Span<'a> {
    /// Reads a request: an empty `range_end` means one key, `"\0"` every key from `key` on.
    #[must_use]
    pub fn new(key: &'a Bytes, range_end: &'a Bytes) -> Span<'a> {
        match range_end.as_ref() {
            [] => Span::One(key),
            [0] => Span::Keys { start: key, end: None },
            end => Span::Keys { start: key, end: Some(end) },
        }
    }

    /// Whether the span contains every possible key.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        match self {
            Span::One(_) => false,
            Span::Keys { start, end } => end.is_none() && matches!(start, [] | [0]),
        }
    }

    /// Whether `key` is in the span.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Span::One(one) => *one == key,
            Span::Keys { start, end } => *start <= key && end.is_none_or(|end| key < end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_end_decides_the_span() {
        let (a, c) = (Bytes::from_static(b"a"), Bytes::from_static(b"c"));
        let (zero, none) = (Bytes::from_static(b"\0"), Bytes::new());
        let one = Span::new(&a, &none);
        assert!(one.contains(b"a") && !one.contains(b"aa") && !one.is_everything());
        let some = Span::new(&a, &c);
        assert!(some.contains(b"a") && some.contains(b"bz") && !some.contains(b"c"));
        let from = Span::new(&a, &zero);
        assert!(from.contains(b"zzz") && !from.contains(b"A") && !from.is_everything());
        assert!(Span::new(&zero, &zero).is_everything());
        assert!(!Span::new(&c, &a).contains(b"b"), "a reversed span is empty");
    }
}
