//! Splits the lines that interactive commands read into words.

use crate::output::unquote;

/// The words of a line: bare, in double quotes with Go's escapes, or in single quotes as they are.
pub(super) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, tail) = word(rest);
        words.push(word);
        rest = tail.trim_start();
    }
    words
}

fn word(rest: &str) -> (String, &str) {
    if let Some((bytes, tail)) = unquote(rest) {
        // Arguments are text in Rust; etcdctl's flags are no different.
        return (String::from_utf8_lossy(&bytes).into_owned(), tail);
    }
    if let Some((word, tail)) = rest.strip_prefix('\'').and_then(|rest| rest.split_once('\'')) {
        return (word.to_owned(), tail);
    }
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    (rest[..end].to_owned(), &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_may_be_quoted() {
        let words = split(r#"  put "a b\n" 'c "d' e\f "" --x="y" "#);
        assert_eq!(words, ["put", "a b\n", "c \"d", "e\\f", "", "--x=\"y\""]);
    }
}
