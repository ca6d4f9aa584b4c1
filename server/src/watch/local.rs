//! A watch for this process itself: the same stream as a client's, its answers decoded again.
//!
//! What is decoded is small and rare (somebody waits for a key of its own), so that a second kind of
//! subscriber in the hub is not worth its code.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use conclave_proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use prost::Message as _;

use super::hub::Hub;
use super::mailbox::End;
use super::response::{Output, PREFIX};
use super::stream::WatchStream;

/// Watchers of this process on one stream.
#[derive(Debug)]
pub(crate) struct LocalWatch {
    stream: WatchStream,
    output: Output,
    /// Answers taken from `output`; the last one may lack its end.
    answers: BytesMut,
}

impl LocalWatch {
    /// Opens a stream without watchers.
    pub(crate) fn open(hub: &Arc<Hub>) -> Self {
        Self { stream: hub.open().inside(), output: Output::default(), answers: BytesMut::new() }
    }

    /// Adds a watcher; its events are found from the start revision on, however late they are asked for.
    pub(crate) fn add(&mut self, create: WatchCreateRequest) {
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        self.stream.request(request, &mut self.output);
    }

    /// Waits for the next answer that has events, or says that those asked for are compacted.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Why the stream has to end, or why a watcher was refused.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, End> {
        loop {
            while let Some(answer) = self.decoded()? {
                if answer.compact_revision != 0 || !answer.events.is_empty() {
                    return Ok(answer);
                }
                if answer.canceled {
                    return Err(End::Failed(answer.cancel_reason));
                }
            }
            poll_fn(|task| self.stream.poll_output(task, &mut self.output)).await?;
            while let Some(frame) = self.output.next_frame() {
                self.answers.extend_from_slice(&frame);
            }
        }
    }

    fn decoded(&mut self) -> Result<Option<WatchResponse>, End> {
        let Some((prefix, rest)) = self.answers.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [_, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if rest.len() < length {
            return Ok(None);
        }
        self.answers.advance(PREFIX);
        let answer = WatchResponse::decode(self.answers.split_to(length).freeze());
        answer.map(Some).map_err(|error| End::Failed(error.to_string()))
    }
}
