//! Words of a script, one after the other, and what a single one can be.

use bytes::Bytes;

pub(crate) type Parsed<T> = Result<T, String>;

/// Words of one command, taken from the front.
pub(crate) struct Words {
    words: std::collections::VecDeque<String>,
}

impl Words {
    pub(crate) fn new(words: impl IntoIterator<Item = String>) -> Words {
        Words { words: words.into_iter().collect() }
    }

    pub(super) fn peek(&self) -> Option<&str> {
        self.words.front().map(String::as_str)
    }

    pub(crate) fn next(&mut self) -> Parsed<String> {
        self.words.pop_front().ok_or_else(|| "a word is missing".to_owned())
    }

    pub(crate) fn word(&mut self) -> Parsed<String> {
        self.next()
    }

    pub(crate) fn number(&mut self) -> Parsed<i64> {
        number(&self.next()?)
    }

    pub(super) fn expect(&mut self, word: &str) -> Parsed<()> {
        let found = self.next()?;
        if found == word { Ok(()) } else { Err(format!("{word:?} expected, found {found:?}")) }
    }

    /// Takes the options up to the end of the operation: `name` or `name=value`.
    pub(crate) fn options(&mut self) -> Vec<(String, String)> {
        let mut options = Vec::new();
        while let Some(word) = self.peek() {
            if [";", "}", "]"].contains(&word) {
                break;
            }
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            options.push((name.to_owned(), value.to_owned()));
            self.words.pop_front();
        }
        options
    }

    pub(crate) fn finish(&self) -> Parsed<()> {
        self.peek().map_or(Ok(()), |word| Err(format!("unexpected {word:?}")))
    }
}

pub(crate) fn number<T: std::str::FromStr>(word: &str) -> Parsed<T> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}

/// `''` is empty, `x*9` is nine times x.
pub(crate) fn bytes(word: &str) -> Bytes {
    Bytes::from(match word.split_once('*') {
        Some((text, times)) => text.repeat(times.parse().unwrap_or(1)),
        None if word == "''" => String::new(),
        None => word.to_owned(),
    })
}

pub(super) fn span(word: &str) -> (Bytes, Bytes) {
    let zero = Bytes::from_static(b"\0");
    if word == "all" {
        return (zero.clone(), zero);
    }
    let Some((start, end)) = word.split_once("..") else { return (bytes(word), Bytes::new()) };
    let start = if start.is_empty() { zero.clone() } else { bytes(start) };
    (start, if end.is_empty() { zero } else { bytes(end) })
}

pub(super) fn name(word: &str) -> String {
    if word == "''" { String::new() } else { word.to_owned() }
}
