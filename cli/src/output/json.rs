//! Writes JSON as Go's encoder writes etcd's messages: members in field order, zero values left
//! out.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Writes one document from front to back.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    out: String,
    /// Whether the next member or element needs a comma before it.
    has_sibling: bool,
    /// Write ids as hexadecimal strings, in the answers that do so with `--hex`.
    is_hex: bool,
}

impl Writer {
    pub(crate) fn new(is_hex: bool) -> Self {
        Self { is_hex, ..Self::default() }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.out.into_bytes()
    }

    /// Writes a member's name; its value must follow.
    pub(crate) fn name(&mut self, name: &str) {
        self.separate();
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
        self.has_sibling = false;
    }

    pub(crate) fn object(&mut self, members: impl FnOnce(&mut Self)) {
        self.nested('{', members, '}');
    }

    pub(crate) fn array<T>(
        &mut self,
        elements: impl IntoIterator<Item = T>,
        mut element: impl FnMut(&mut Self, T),
    ) {
        self.nested('[', |out| elements.into_iter().for_each(|item| element(out, item)), ']');
    }

    fn nested(&mut self, open: char, content: impl FnOnce(&mut Self), close: char) {
        self.separate();
        self.out.push(open);
        self.has_sibling = false;
        content(self);
        self.out.push(close);
        self.has_sibling = true;
    }

    /// A number, left out if zero.
    pub(crate) fn signed(&mut self, name: &str, value: i64) {
        if value != 0 {
            self.name(name);
            self.raw(&value.to_string());
        }
    }

    /// A number, left out if zero.
    pub(crate) fn unsigned(&mut self, name: &str, value: u64) {
        if value != 0 {
            self.name(name);
            self.raw(&value.to_string());
        }
    }

    /// An id, written as a string with `--hex`.
    pub(crate) fn id(&mut self, name: &str, id: u64) {
        if self.is_hex { self.text(name, &format!("{id:x}")) } else { self.unsigned(name, id) }
    }

    /// A boolean, left out if false.
    pub(crate) fn boolean(&mut self, name: &str, value: bool) {
        if value {
            self.name(name);
            self.raw("true");
        }
    }

    /// Bytes in base64, left out if empty.
    pub(crate) fn bytes(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.name(name);
            self.base64(value);
        }
    }

    /// A string, left out if empty.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.name(name);
            self.string(value);
        }
    }

    /// An array of strings, left out if empty.
    pub(crate) fn texts(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            self.name(name);
            self.array(values, |out, value| out.string(value));
        }
    }

    pub(crate) fn base64(&mut self, value: &[u8]) {
        self.raw(&format!("\"{}\"", STANDARD.encode(value)));
    }

    /// A string with the escapes of Go's encoder, which also escapes HTML characters.
    pub(crate) fn string(&mut self, value: &str) {
        let mut text = String::with_capacity(value.len() + 2);
        text.push('"');
        for c in value.chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                    text.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                _ => text.push(c),
            }
        }
        text.push('"');
        self.raw(&text);
    }

    /// A value that is already JSON.
    pub(crate) fn raw(&mut self, value: &str) {
        self.separate();
        self.out.push_str(value);
        self.has_sibling = true;
    }

    fn separate(&mut self) {
        if self.has_sibling {
            self.out.push(',');
        }
        self.has_sibling = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_values_are_left_out() {
        let mut json = Writer::default();
        json.object(|json| {
            json.signed("zero", 0);
            json.name("a");
            json.array([1, 2], |json, n| json.raw(&n.to_string()));
            json.text("b", "<\"\n");
            json.bytes("c", b"xyz");
            json.name("d");
            json.object(|json| json.boolean("e", true));
            json.boolean("f", false);
        });
        let text = String::from_utf8(json.into_bytes()).unwrap();
        assert_eq!(text, r#"{"a":[1,2],"b":"\u003c\"\n","c":"eHl6","d":{"e":true}}"#);
    }
}
