//! Decodes watch responses only as far as counting needs: whether it answers a create, and how many
//! events.
//!
//! A full decode would cost the generator more per event than a good server spends to send it.

use bytes::Buf;
use conclave_proto::etcdserverpb::WatchRequest;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

const CREATED_FIELD: u32 = 3;
const CANCELED_FIELD: u32 = 4;
const EVENTS_FIELD: u32 = 11;
const EVENT_KV_FIELD: u32 = 2;
const KV_VALUE_FIELD: u32 = 5;

/// What is counted of one watch response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) is_created: bool,
    pub(crate) is_canceled: bool,
    pub(crate) events: u64,
    /// First eight bytes of the last event's value, which the writers of the latency run set.
    pub(crate) stamp: Option<u64>,
}

impl Counted {
    fn read(mut bytes: &[u8]) -> Result<Self, Status> {
        let mut counted = Self::default();
        let mut last = None;
        while bytes.has_remaining() {
            let (field, wire_type) = key(&mut bytes)?;
            match (field, wire_type) {
                (CREATED_FIELD, WireType::Varint) => counted.is_created = varint(&mut bytes)? != 0,
                (CANCELED_FIELD, WireType::Varint) => {
                    counted.is_canceled = varint(&mut bytes)? != 0
                }
                (EVENTS_FIELD, WireType::LengthDelimited) => {
                    counted.events += 1;
                    last = Some(take_message(&mut bytes)?);
                }
                _ => skip(wire_type, field, &mut bytes)?,
            }
        }
        counted.stamp = last.map(stamp).transpose()?.flatten();
        Ok(counted)
    }
}

fn key(bytes: &mut &[u8]) -> Result<(u32, WireType), Status> {
    decode_key(bytes).map_err(garbled)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Status> {
    decode_varint(bytes).map_err(garbled)
}

fn skip(wire_type: WireType, field: u32, bytes: &mut &[u8]) -> Result<(), Status> {
    skip_field(wire_type, field, bytes, DecodeContext::default()).map_err(garbled)
}

fn garbled(error: prost::DecodeError) -> Status {
    Status::internal(error.to_string())
}

fn take_message<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Status> {
    let length = usize::try_from(varint(bytes)?).unwrap_or(usize::MAX);
    let cut = bytes.split_at_checked(length);
    let (message, rest) = cut.ok_or_else(|| Status::internal("an event is cut off"))?;
    *bytes = rest;
    Ok(message)
}

fn stamp(event: &[u8]) -> Result<Option<u64>, Status> {
    let value =
        nested(event, EVENT_KV_FIELD)?.map(|kv| nested(kv, KV_VALUE_FIELD)).transpose()?.flatten();
    Ok(value.and_then(|value| value.first_chunk().copied()).map(u64::from_be_bytes))
}

fn nested(mut bytes: &[u8], wanted: u32) -> Result<Option<&[u8]>, Status> {
    while bytes.has_remaining() {
        let (field, wire_type) = key(&mut bytes)?;
        if field == wanted {
            return take_message(&mut bytes).map(Some);
        }
        skip(wire_type, field, &mut bytes)?;
    }
    Ok(None)
}

/// Encodes watch requests in full, and decodes responses to [`Counted`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CountingCodec;

impl Codec for CountingCodec {
    type Encode = WatchRequest;
    type Decode = Counted;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for CountingCodec {
    type Item = WatchRequest;
    type Error = Status;

    fn encode(&mut self, item: WatchRequest, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::Message::encode(&item, buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for CountingCodec {
    type Item = Counted;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Counted>, Status> {
        // Decodes in place: if the bytes were taken out, tonic would have to move what follows to a
        // new buffer.
        let bytes = buffer.chunk();
        let length = bytes.len();
        if length < buffer.remaining() {
            return Err(Status::internal("a message in pieces"));
        }
        let counted = Counted::read(bytes)?;
        buffer.advance(length);
        Ok(Some(counted))
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::etcdserverpb::{ResponseHeader, WatchResponse};
    use conclave_proto::mvccpb::{Event, KeyValue};
    use prost::Message;

    use super::*;

    #[test]
    fn counts_events_among_other_fields() {
        let event =
            Event { kv: Some(KeyValue { version: 9, ..Default::default() }), ..Default::default() };
        let response = WatchResponse {
            header: Some(ResponseHeader { revision: 7, ..Default::default() }),
            watch_id: 3,
            events: vec![event; 5],
            ..Default::default()
        };
        let counted = Counted::read(&response.encode_to_vec()).unwrap();
        assert_eq!(
            counted,
            Counted { is_created: false, is_canceled: false, events: 5, stamp: None }
        );
        let created = WatchResponse { created: true, ..Default::default() };
        assert!(Counted::read(&created.encode_to_vec()).unwrap().is_created);
    }
}
