//! Splits a body into its JSON values as they arrive. Bytes waiting to be complete are limited over
//! all bodies, and so is the time.

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::BodyExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::room::Room;
use crate::status;

/// Limits for receiving a body.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Budget for the bytes of its values.
    pub(super) room: Room,
    /// Whether there is only one value; then the time to wait for its first byte is limited too.
    pub(super) is_single: bool,
}

/// Reads a body value by value.
pub(super) struct Values<B> {
    body: B,
    received: BytesMut,
    /// Permits for the bytes in `received`.
    held: Option<OwnedSemaphorePermit>,
    scan: Scan,
    bounds: Bounds,
    /// When the value being received must be complete.
    deadline: Option<Instant>,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> Values<B> {
    pub(super) fn new(body: B, bounds: Bounds) -> Self {
        let deadline = bounds.is_single.then(|| Instant::now() + bounds.room.patience);
        let (received, scan) = (BytesMut::new(), Scan::default());
        Self { body, received, held: None, scan, bounds, deadline }
    }

    /// The next value, which the caller must decode at once: its permits are returned. `None` at
    /// the end of the body.
    ///
    /// # Errors
    /// If there is something other than an object, or an object that is cut off, too large or too
    /// late, or if the byte budget is used up.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let end = self.scan.find_end(&self.received).map_err(status::no_message)?;
            let has_begun = end.is_some() || self.scan.is_inside();
            if has_begun && self.scan.at > self.bounds.room.bytes_max {
                return Err(self.too_large());
            }
            if let Some(end) = end {
                self.deadline = None;
                return Ok(Some(self.take(end)));
            }
            if !self.scan.is_inside() {
                // Only white space.
                self.take(self.received.len());
            }
            match self.frame().await? {
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        self.hold(piece.len())?;
                        self.received.extend_from_slice(&piece);
                    }
                }
                // The client has gone and will not see the answer, whatever it is.
                Some(Err(_)) => return Err(status::no_message("the body broke off")),
                None if self.scan.is_inside() => {
                    return Err(status::no_message("unexpected end of JSON input"));
                }
                None => return Ok(None),
            }
        }
    }

    /// The next frame of the body, if it arrives in time.
    async fn frame(&mut self) -> Result<Option<Result<Frame<Bytes>, B::Error>>, Status> {
        if self.scan.is_inside() && self.deadline.is_none() {
            self.deadline = Some(Instant::now() + self.bounds.room.patience);
        }
        let frame = self.body.frame();
        match self.deadline {
            None => Ok(frame.await),
            Some(deadline) => {
                timeout_at(deadline, frame).await.map_err(|_elapsed| status::json_too_late())
            }
        }
    }

    /// The error for a value that is too large; not all of it may have arrived.
    fn too_large(&self) -> Status {
        let bytes_told = self.body.size_hint().lower().saturating_add(self.received.len() as u64);
        status::larger_than_max(bytes_told, self.bounds.room.message_bytes_max)
    }

    /// Takes permits for `bytes`.
    fn hold(&mut self, bytes: usize) -> Result<(), Status> {
        let has_room = self.bounds.room.take(bytes, &mut self.held);
        has_room.then_some(()).ok_or_else(status::json_crowded)
    }

    /// Cuts off the first `bytes` received; the scan restarts after them.
    fn take(&mut self, bytes: usize) -> Bytes {
        self.scan = Scan::default();
        drop(self.held.as_mut().and_then(|held| held.split(bytes)));
        self.received.split_to(bytes).freeze()
    }
}

/// State of the search for the end of a value: each byte is inspected once, however they arrive.
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

    /// Where the first value ends, if that has arrived.
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
    use std::sync::Arc;
    use std::time::Duration;

    use futures::stream::BoxStream;
    use futures::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::StreamBody;
    use tokio::sync::Semaphore;

    use super::*;

    /// Limits with a budget of 100 bytes.
    fn bounds(is_single: bool) -> Bounds {
        let permits = Arc::new(Semaphore::new(100));
        Bounds {
            room: Room {
                bytes_max: 60,
                message_bytes_max: 20,
                patience: Duration::from_secs(60),
                permits,
            },
            is_single,
        }
    }

    type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

    /// A body that stalls after these bytes.
    fn still(text: &'static str, bounds: Bounds) -> Values<Body> {
        let piece = Ok(Frame::data(Bytes::from_static(text.as_bytes())));
        Values::new(StreamBody::new(stream::iter([piece]).chain(stream::pending()).boxed()), bounds)
    }

    #[tokio::test]
    async fn all_bodies_share_their_room_and_leave_it() {
        let first = bounds(false);
        let shared = first.room.clone();
        let room = Arc::clone(&shared.permits);
        let share = || Bounds { room: shared.clone(), ..bounds(false) };
        let mut first = still("{} {\"key\":\"", first);
        assert_eq!(first.next().await.unwrap().unwrap(), "{}");
        assert_eq!(room.available_permits(), 100 - " {\"key\":\"".len());
        let mut space = still("    ", share());
        assert!(space.next().now_or_never().is_none());
        assert_eq!(room.available_permits(), 100 - " {\"key\":\"".len(), "space takes none");
        let all = room.clone().try_acquire_many_owned(88).unwrap();
        let refusal = still("{}{}{}", share()).next().await.unwrap_err();
        assert_eq!(refusal.code(), tonic::Code::ResourceExhausted, "{refusal}");
        drop((first, all));
        assert_eq!(room.available_permits(), 100);
    }

    #[tokio::test]
    async fn what_has_begun_is_not_waited_for_without_end() {
        let hasty = |is_single| {
            let mut bounds = bounds(is_single);
            bounds.room.patience = Duration::from_millis(1);
            bounds
        };
        for (text, is_single) in [("{", false), ("{", true), (" ", true)] {
            let late = still(text, hasty(is_single)).next().await.unwrap_err();
            assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{text:?} {is_single}: {late}");
        }
        let mut stream = still("{}\n", hasty(false));
        assert_eq!(stream.next().await.unwrap().unwrap(), "{}");
        assert!(stream.next().now_or_never().is_none());
        assert_eq!(stream.deadline, None, "the next one may take its time to begin");
    }

    /// The values found in a text that arrives in pieces, and whether it ends without an error.
    async fn values(text: &str, piece_bytes: usize) -> (Vec<String>, bool) {
        let pieces: Vec<_> = text
            .as_bytes()
            .chunks(piece_bytes)
            .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let mut values = Values::new(StreamBody::new(stream::iter(pieces)), bounds(true));
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
            (&format!("{{\"a\":\"{}\"}}", "a".repeat(80)), (vec![], false)),
        ] {
            for piece_bytes in [10, 100] {
                assert_eq!(values(text, piece_bytes).await, found, "{text}");
            }
        }
    }
}
