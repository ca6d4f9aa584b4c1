//! Changes seen by a watch.

use conclave_client::{
    mvccpb::{Event, event::EventType},
    pb::WatchResponse,
    watch::Response,
};
use prost::Message as _;

use super::{
    Answer, Style, header_fields, header_members,
    json::Writer,
    kv::{pair, pair_fields, pair_json},
    line,
};

/// One response of a watch.
pub(crate) struct Changes {
    pub(crate) response: Response,
    /// The compacted revision that ended the watch; 0 if it continues.
    pub(crate) compacted: i64,
}

fn type_name(event: &Event) -> &'static str {
    match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    }
}

impl Answer for Changes {
    fn simple(&self, out: &mut Vec<u8>, style: Style) {
        if self.compacted > 0 {
            return;
        }
        if self.response.is_progress() {
            line!(out, "progress notify: {}", self.response.revision());
        }
        for event in &self.response.events {
            line!(out, "{}", type_name(event));
            event.prev_kv.iter().for_each(|kv| pair(kv, out, style));
            event.kv.iter().for_each(|kv| pair(kv, out, style));
        }
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            out.name("Header");
            out.object(|out| {
                if let Some(header) = &self.response.header {
                    header_members(header, out);
                }
            });
            out.name("Events");
            out.array(&self.response.events, event_json);
            out.name("CompactRevision");
            out.raw(&self.compacted.to_string());
            out.name("Canceled");
            out.raw(if self.compacted > 0 { "true" } else { "false" });
            out.name("Created");
            out.raw(if self.response.created { "true" } else { "false" });
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.response.header.as_ref(), out);
        for event in &self.response.events {
            line!(out, "\"Type\" : {}", type_name(event));
            event.prev_kv.iter().for_each(|kv| pair_fields("Prev", kv, out));
            event.kv.iter().for_each(|kv| pair_fields("", kv, out));
        }
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        let answer = WatchResponse {
            header: Some(self.response.header.unwrap_or_default()),
            created: self.response.created,
            canceled: self.compacted > 0,
            compact_revision: self.compacted,
            events: self.response.events.clone(),
            ..WatchResponse::default()
        };
        Some(answer.encode_to_vec())
    }
}

pub(super) fn event_json(out: &mut Writer, event: &Event) {
    out.object(|out| {
        out.signed("type", i64::from(event.r#type));
        if let Some(kv) = &event.kv {
            out.name("kv");
            pair_json(kv, out);
        }
        if let Some(kv) = &event.prev_kv {
            out.name("prev_kv");
            pair_json(kv, out);
        }
    });
}
