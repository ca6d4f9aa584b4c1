//! Writes answers as they go over the wire: gRPC's five-byte prefix, then a `WatchResponse`.
//!
//! An answer with events is a header, a watch id and the shared bytes of each event; nothing is
//! decoded or allocated per event. Large events are passed on without a copy.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use conclave_proto::etcdserverpb::{ResponseHeader, WatchResponse};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::batch::SharedEvent;

/// gRPC: one byte for compression, four for the length.
pub(super) const PREFIX: usize = 5;
const HEADER_TAG: u8 = (1 << 3) | 2;
const WATCH_ID_TAG: u8 = 2 << 3;
const FRAGMENT_TAG: u8 = 7 << 3;
/// From here on, the bytes of an event are sent as a frame of their own instead of copied.
const COPY_BYTES_MAX: usize = 16 << 10;

/// Finished answers that wait for the connection.
#[derive(Debug, Default)]
pub struct Output {
    frames: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// About as many bytes as the largest of the last tails had, as room for the next.
    usual: usize,
    /// Bytes in `frames` and `tail`.
    bytes: usize,
    /// Written since they were last taken.
    written: Count,
}

/// Answers, and events in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) messages: u64,
    pub(crate) events: u64,
}

/// An answer's events: which, and in which form.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    /// Not empty, in order.
    pub(crate) events: &'a [&'a SharedEvent],
    pub(crate) prev_kv: bool,
}

/// Where the events of an answer lie in an [`Output`], to be copied for the next watcher.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    tail: Range<usize>,
    frames: usize,
    events: u64,
}

/// The part of an answer in front of its events.
#[derive(Debug)]
pub(crate) struct Front {
    header: Vec<u8>,
}

impl Front {
    pub(crate) fn new(header: &ResponseHeader) -> Self {
        let length = header.encoded_len();
        let mut bytes = Vec::with_capacity(1 + encoded_len_varint(length as u64) + length);
        bytes.push(HEADER_TAG);
        encode_varint(length as u64, &mut bytes);
        header.encode_raw(&mut bytes);
        Front { header: bytes }
    }

    fn len(&self, watch_id: i64, is_fragment: bool) -> usize {
        let id = if watch_id == 0 { 0 } else { 1 + encoded_len_varint(watch_id as u64) };
        self.header.len() + id + if is_fragment { 2 } else { 0 }
    }
}

impl Payload<'_> {
    fn len(&self) -> usize {
        self.events.iter().map(|event| event.field(self.prev_kv).len()).sum()
    }
}

impl Output {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Takes the next bytes to send.
    pub fn next_frame(&mut self) -> Option<Bytes> {
        if self.frames.is_empty() {
            self.flush_tail();
        }
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// What was written since the last call.
    pub(crate) fn take_written(&mut self) -> Count {
        std::mem::take(&mut self.written)
    }

    /// Writes an answer without events.
    pub(crate) fn control(&mut self, response: &WatchResponse) {
        let length = response.encoded_len();
        self.prefix(length);
        response.encode_raw(&mut self.tail);
        self.bytes += length;
    }

    /// Writes one answer with events; returns where they are.
    pub(crate) fn events(
        &mut self,
        front: &Front,
        watch_id: i64,
        payload: &Payload<'_>,
        is_fragment: bool,
    ) -> Written {
        self.front(front, watch_id, payload.len(), is_fragment);
        let start = self.tail.len();
        let frames = self.frames.len();
        for event in payload.events {
            let field = event.field(payload.prev_kv);
            if field.len() > COPY_BYTES_MAX {
                self.flush_tail();
                self.frames.push_back(field.clone());
            } else {
                self.tail.extend_from_slice(field);
            }
            self.bytes += field.len();
        }
        let events = payload.events.len() as u64;
        self.written.events += events;
        Written { tail: start..self.tail.len(), frames, events }
    }

    /// Writes the same events as an answer just before to another watcher; says no if they are not at
    /// hand any more.
    pub(crate) fn repeat(&mut self, front: &Front, watch_id: i64, written: &Written) -> bool {
        if written.frames != self.frames.len() || written.tail.end > self.tail.len() {
            return false;
        }
        self.front(front, watch_id, written.tail.len(), false);
        self.tail.extend_from_within(written.tail.clone());
        self.bytes += written.tail.len();
        self.written.events += written.events;
        true
    }

    /// Writes one answer, or several if it is larger than `max` and may be fragmented: every fragment
    /// holds at least one event, and all but the last say that more follow.
    pub(crate) fn fragments(
        &mut self,
        front: &Front,
        watch_id: i64,
        payload: &Payload<'_>,
        max: usize,
    ) {
        let mut rest = payload.events;
        while !rest.is_empty() {
            let mut size = front.len(watch_id, true);
            let fits = |event: &&&SharedEvent| {
                size += event.field(payload.prev_kv).len();
                size < max
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (events, later) = rest.split_at(count);
            let part = Payload { events, prev_kv: payload.prev_kv };
            self.events(front, watch_id, &part, !later.is_empty());
            rest = later;
        }
    }

    fn front(&mut self, front: &Front, watch_id: i64, events: usize, is_fragment: bool) {
        let length = front.len(watch_id, is_fragment);
        self.prefix(length + events);
        self.tail.extend_from_slice(&front.header);
        if watch_id != 0 {
            self.tail.push(WATCH_ID_TAG);
            encode_varint(watch_id as u64, &mut self.tail);
        }
        if is_fragment {
            self.tail.extend_from_slice(&[FRAGMENT_TAG, 1]);
        }
        self.bytes += length;
    }

    fn prefix(&mut self, length: usize) {
        let length = u32::try_from(length)
            .expect("invariant: larger answers are fragmented and one event is a few MiB at most");
        self.written.messages += 1;
        if self.tail.is_empty() {
            // Growing step by step would copy what is there again and again.
            self.tail.reserve_exact(self.usual);
        }
        self.tail.push(0);
        self.tail.extend_from_slice(&length.to_be_bytes());
        self.bytes += PREFIX;
    }

    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.usual = self.tail.len().max(self.usual - self.usual / 8);
            self.frames.push_back(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }
}
