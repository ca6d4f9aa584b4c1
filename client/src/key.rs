//! Key ranges as they are sent: a key and a range end.

use bytes::Bytes;

/// As a range end: all keys from the key on. As a key: the first possible key.
pub(crate) const ALL: &[u8] = b"\0";

/// The end of the range of all keys that start with `prefix`.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte < u8::MAX) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        // No key sorts after all keys with this prefix.
        None => Bytes::from_static(ALL),
    }
}

/// Turns `key` and `range_end` into the range of all keys that start with `key`.
pub(crate) fn set_prefix(key: &mut Bytes, range_end: &mut Bytes) {
    if key.is_empty() {
        *key = Bytes::from_static(ALL);
        *range_end = Bytes::from_static(ALL);
    } else {
        *range_end = prefix_end(key);
    }
}

/// Turns `key` and `range_end` into the range of all keys from `key` on.
pub(crate) fn set_from_key(key: &mut Bytes, range_end: &mut Bytes) {
    if key.is_empty() {
        *key = Bytes::from_static(ALL);
    }
    *range_end = Bytes::from_static(ALL);
}

/// The builder methods that extend `request` to more than one key.
macro_rules! spans {
    () => {
        /// Extends this to all keys that start with the key; to all keys if the key is empty.
        pub fn prefix(mut self) -> Self {
            $crate::key::set_prefix(&mut self.request.key, &mut self.request.range_end);
            self
        }

        /// Extends this to all keys from the key on.
        pub fn from_key(mut self) -> Self {
            $crate::key::set_from_key(&mut self.request.key, &mut self.request.range_end);
            self
        }

        /// Extends this to all keys from the key up to, but not including, `end`.
        pub fn range(mut self, end: impl Into<Vec<u8>>) -> Self {
            self.request.range_end = bytes::Bytes::from(end.into());
            self
        }
    };
}
pub(crate) use spans;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_prefix() {
        assert_eq!(&prefix_end(b"a")[..], b"b");
        assert_eq!(&prefix_end(b"a\xff\xff")[..], b"b");
        assert_eq!(&prefix_end(b"\xff")[..], b"\0");
        assert_eq!(&prefix_end(b"")[..], b"\0");
    }
}
