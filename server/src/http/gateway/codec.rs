//! Encodes and decodes messages known only by their descriptors: as gRPC bytes and as JSON.

use bytes::{BufMut as _, Bytes};
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::forms;
use crate::status;

/// Unknown fields and enum names are ignored, as in etcd from 3.6 on.
const READING: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);
/// Field names as in the .proto files; fields with default values are omitted.
const WRITING: SerializeOptions = SerializeOptions::new().use_proto_field_name(true);

/// Converts a JSON message to gRPC bytes. The message in between is many times as large as either
/// form. It is freed when this returns, so at most one exists per thread.
///
/// # Errors
/// Like [`read`].
pub(super) fn encode(kind: MessageDescriptor, json: &[u8]) -> Result<Bytes, Status> {
    Ok(read(kind, json)?.encode_to_vec().into())
}

/// Reads a message from JSON: field names as in the .proto file or in camel case, 64-bit integers
/// as strings or numbers, bytes in Base64, enums by name or number, and whatever else Go's reader
/// takes.
///
/// # Errors
/// Says what is wrong, and where.
fn read(kind: MessageDescriptor, json: &[u8]) -> Result<DynamicMessage, Status> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let read = DynamicMessage::deserialize_with_options(kind.clone(), &mut reader, &READING);
    if read.is_err() || forms::has_sign(json) {
        // Rare, so it may take twice as long.
        if let Some(plain) = forms::plain(&kind, json)? {
            return DynamicMessage::deserialize_with_options(kind, plain, &READING)
                .map_err(|error| status::no_message(error.to_string()));
        }
    }
    read.map_err(|error| status::no_message(error.to_string()))
}

/// Writes a message as JSON, as in etcd: 64-bit integers are strings.
pub(super) fn write(message: &DynamicMessage, out: &mut Vec<u8>) {
    let mut writer = serde_json::Serializer::new(out);
    message
        .serialize_with_options(&mut writer, &WRITING)
        .expect("invariant: no message of ours has a part that JSON cannot say");
}

/// tonic codec of a gateway call.
#[derive(Clone, Debug)]
pub(super) struct DynamicCodec {
    /// Type of the answers.
    pub(super) answer: MessageDescriptor,
}

impl Codec for DynamicCodec {
    type Encode = Bytes;
    type Decode = DynamicMessage;
    type Encoder = BytesEncoder;
    type Decoder = Self;

    fn encoder(&mut self) -> BytesEncoder {
        BytesEncoder
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Decoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.answer.clone(), buffer);
        message.map(Some).map_err(|error| status::internal(&error))
    }
}

/// Passes on messages that are already encoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct BytesEncoder;

impl Encoder for BytesEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::gateway::find;

    /// The JSON that results from reading and writing a JSON message.
    fn again(path: &str, json: &str) -> Result<String, String> {
        let kind = find(path).unwrap().input();
        let message = read(kind, json.as_bytes()).map_err(|status| status.message().to_owned())?;
        let mut out = Vec::new();
        write(&message, &mut out);
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn messages_are_read_in_all_their_forms_and_written_in_etcds() {
        let camel =
            r#"{"key":"Zm9v","sortOrder":"DESCEND","sortTarget":1,"limit":5,"no":{"such":[]}}"#;
        let snake = r#"{"key":"Zm9v","limit":"5","sort_order":"DESCEND","sort_target":"VERSION"}"#;
        assert_eq!(again("/v3/kv/range", camel).unwrap(), snake);
        assert_eq!(again("/v3/kv/range", snake).unwrap(), snake);
        let empty = r#"{"key":null,"limit":"0","keys_only":false,"sort_order":"NONE"}"#;
        assert_eq!(again("/v3/kv/range", empty).unwrap(), "{}");
        let lease = r#"{"TTL":"9000000000","ID":"-1"}"#;
        assert_eq!(again("/v3/lease/grant", lease).unwrap(), lease);
        let unknown = r#"{"sort_order":"UPWARD","key":"Zm9v"}"#;
        let passed_over = again("/v3/kv/range", unknown).unwrap();
        assert_eq!(passed_over, r#"{"key":"Zm9v"}"#, "as in etcd from 3.6 on");
        let compare = r#"{"compare":[{"key":"Zm9v","version":"0"}]}"#;
        assert_eq!(again("/v3/kv/txn", compare).unwrap(), compare, "of several one is set");
    }

    #[test]
    fn base64_may_have_line_ends_wherever_it_stands() {
        for (path, odd, plain) in [
            ("kv/range", r#"{"key":"Zm\n9v\r\n"}"#, r#"{"key":"Zm9v"}"#),
            ("kv/range", r#"{"key":"\n","range_end":"Zg=\n="}"#, r#"{"range_end":"Zg=="}"#),
            (
                "kv/txn",
                r#"{"compare":[{"key":"Zm9v\n"}],"success":[{"requestPut":{"key":"YQ==\u000a"}}]}"#,
                r#"{"compare":[{"key":"Zm9v"}],"success":[{"request_put":{"key":"YQ=="}}]}"#,
            ),
            (
                "auth/role/grant",
                r#"{"name":"a\nb","perm":{"key":"YQ==\n"}}"#,
                r#"{"name":"a\nb","perm":{"key":"YQ=="}}"#,
            ),
        ] {
            assert_eq!(again(&format!("/v3/{path}"), odd).as_deref(), Ok(plain), "{odd}");
        }
    }

    #[test]
    fn integers_in_texts_are_numbers_of_json() {
        let limit = |text: &str| again("/v3/kv/range", &format!(r#"{{"limit":"{text}"}}"#));
        for (text, number) in [
            ("5.0", "5"),
            ("-1.50e1", "-15"),
            ("5E+2", "500"),
            ("500e-2", "5"),
            ("9223372036854775807.0", "9223372036854775807"),
        ] {
            let plain = format!(r#"{{"limit":"{number}"}}"#);
            assert_eq!(limit(text), Ok(plain), "{text}");
        }
        for text in ["+5", "5.5", "5.", ".5", "5e", "", "-", " 5", "1e40", "1e999999999999", "5e-1"]
        {
            assert!(limit(text).is_err(), "{text}");
        }
        let base64 = r#"{"key":"+aaa"}"#;
        assert_eq!(again("/v3/kv/range", base64).as_deref(), Ok(base64), "no number");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for json in [
            r#"{"key":5}"#,
            r#"{"key":"!!"}"#,
            r#"{"limit":"x"}"#,
            r#"{"limit":"9223372036854775808"}"#,
            r#"{"serializable":"yes"}"#,
            r#"{"key":"Zm9v",}"#,
            r#"{"key":"Zm9v""#,
        ] {
            assert!(again("/v3/kv/range", json).is_err(), "{json}");
        }
        let deep = [r#"{"success":[{"request_txn":"#.repeat(500), "}]}".repeat(500)].concat();
        assert!(again("/v3/kv/txn", &deep).is_err(), "and the stack is not full");
    }
}
