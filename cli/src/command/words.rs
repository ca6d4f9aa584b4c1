//! Splits the lines that interactive commands read into words.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use crate::output::unquote;

/// Splits a line into words: bare, in double quotes with Go's escapes, or literal in single quotes.
pub(super) fn split(line: &str) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, tail) = word(rest);
        words.push(word);
        rest = tail.trim_start();
    }
    words
}

fn word(rest: &str) -> (OsString, &str) {
    if let Some((bytes, tail)) = unquote(rest) {
        return (OsString::from_vec(bytes), tail);
    }
    if let Some((word, tail)) = rest.strip_prefix('\'').and_then(|rest| rest.split_once('\'')) {
        return (word.into(), tail);
    }
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    (rest[..end].into(), &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_may_be_quoted() {
        let words = split(r#"  put "a b\n" 'c "d' e\f "" --x="y" "#);
        assert_eq!(words, ["put", "a b\n", "c \"d", "e\\f", "", "--x=\"y\""]);
    }

    #[test]
    fn words_may_be_any_bytes() {
        let words = split(r#"put "\xff" v"#);
        assert_eq!(words[1].as_encoded_bytes(), [0xff]);
    }
}
