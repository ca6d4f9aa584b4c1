//! The JSON values of a body, one after the other, as they arrive.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tonic::Status;

use crate::status;

/// A body that is read value by value.
pub(super) struct Values<B> {
    body: B,
    received: BytesMut,
    scan: Scan,
    bytes_max: usize,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> Values<B> {
    /// Of a body whose values may have `bytes_max` bytes each.
    pub(super) fn new(body: B, bytes_max: usize) -> Self {
        Self { body, received: BytesMut::new(), scan: Scan::default(), bytes_max }
    }

    /// The next value; `None` at the end of the body.
    ///
    /// # Errors
    /// If there is something else than an object, or one that is cut off or too large.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(end) = self.scan.find_end(&self.received).map_err(status::no_message)? {
                self.scan = Scan::default();
                return Ok(Some(self.received.split_to(end).freeze()));
            }
            if self.received.len() > self.bytes_max {
                return Err(status::json_too_large(self.bytes_max));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        self.received.extend_from_slice(&piece);
                    }
                }
                // A client that has gone hears no answer, whatever it is.
                Some(Err(_)) => return Err(status::no_message("the body broke off")),
                None if self.scan.is_inside() => {
                    return Err(status::no_message("unexpected end of JSON input"));
                }
                None => return Ok(None),
            }
        }
    }
}

/// How far the search for the end of a value got: every byte is looked at once, however they arrive.
#[derive(Debug, Default)]
struct Scan {
    at: usize,
    depth: usize,
    is_text: bool,
    is_escaped: bool,
}

impl Scan {
    fn is_inside(&self) -> bool {
        self.depth > 0
    }

    /// Where the value ends that the bytes begin with, if that has arrived.
    fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        while let Some(&byte) = bytes.get(self.at) {
            self.at += 1;
            if self.is_text {
                self.is_text = self.is_escaped || byte != b'"';
                self.is_escaped = !self.is_escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'{' => self.depth += 1,
                b'[' if self.is_inside() => self.depth += 1,
                b'}' | b']' if self.is_inside() => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(Some(self.at));
                    }
                }
                b'"' if self.is_inside() => self.is_text = true,
                b' ' | b'\t' | b'\r' | b'\n' => {}
                _ if self.is_inside() => {}
                _ => return Err("a message must be a JSON object"),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    /// What is found in a text that arrives in pieces, and whether it ends well.
    async fn values(text: &str, piece_bytes: usize) -> (Vec<String>, bool) {
        let pieces: Vec<_> = text
            .as_bytes()
            .chunks(piece_bytes)
            .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let mut values = Values::new(StreamBody::new(stream::iter(pieces)), 60);
        let mut found = Vec::new();
        loop {
            match values.next().await {
                Ok(Some(value)) => found.push(str::from_utf8(&value).unwrap().trim().to_owned()),
                Ok(None) => return (found, true),
                Err(_) => return (found, false),
            }
        }
    }

    #[tokio::test]
    async fn values_are_found_however_they_arrive() {
        let text = r#" {"a":{"b":[1,{}]}}{"text":"}\"{\\"} {} "#;
        for piece_bytes in [1, 2, 7, 100] {
            let found = values(text, piece_bytes).await;
            let expected = [r#"{"a":{"b":[1,{}]}}"#, r#"{"text":"}\"{\\"}"#, "{}"];
            assert_eq!(found, (expected.map(str::to_owned).to_vec(), true), "{piece_bytes}");
        }
    }

    #[tokio::test]
    async fn what_is_no_value_is_refused() {
        let one = vec!["{}".to_owned()];
        for (text, found) in [
            ("", (vec![], true)),
            ("{}", (one.clone(), true)),
            ("{} x", (one.clone(), false)),
            ("{}{", (one, false)),
            ("[]", (vec![], false)),
            ("\"a\"", (vec![], false)),
            ("}", (vec![], false)),
            (&format!("{{\"a\":\"{}\"}}", "a".repeat(200)), (vec![], false)),
        ] {
            assert_eq!(values(text, 10).await, found, "{text}");
        }
    }
}
