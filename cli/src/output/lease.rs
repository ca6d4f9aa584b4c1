//! Leases.

use bytes::Bytes;
use conclave_client::pb::{
    LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse, ResponseHeader,
};
use prost::Message as _;

use super::{
    Answer, Style, go::quote, header_fields, header_json, header_members, json::Writer, line,
};

/// Go embeds the header in these answers, so its members appear beside theirs.
fn embedded(header: Option<&ResponseHeader>, out: &mut Writer) {
    if let Some(header) = header {
        header_members(header, out);
    }
}

/// Go encodes only the embedded header.
fn header(header: Option<&ResponseHeader>) -> Vec<u8> {
    header.map(ResponseHeader::encode_to_vec).unwrap_or_default()
}

fn number(name: &str, value: i64, out: &mut Writer) {
    out.name(name);
    out.raw(&value.to_string());
}

/// The fields that every answer about one lease has.
fn lease_fields(header: Option<&ResponseHeader>, (id, ttl): (i64, i64), out: &mut Vec<u8>) {
    header_fields(header, out);
    line!(out, "\"ID\" : {id}");
    line!(out, "\"TTL\" : {ttl}");
}

/// A granted lease.
pub(crate) struct Granted(pub(crate) LeaseGrantResponse);

impl Answer for Granted {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "lease {:016x} granted with TTL({}s)", self.0.id, self.0.ttl);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            embedded(self.0.header.as_ref(), out);
            number("ID", self.0.id, out);
            number("TTL", self.0.ttl, out);
            out.name("Error");
            out.string(&self.0.error);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        lease_fields(self.0.header.as_ref(), (self.0.id, self.0.ttl), out);
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(header(self.0.header.as_ref()))
    }
}

/// A revoked lease.
pub(crate) struct Revoked {
    pub(crate) id: i64,
    pub(crate) response: LeaseRevokeResponse,
}

impl Answer for Revoked {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "lease {:016x} revoked", self.id);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| header_json(self.response.header.as_ref(), out));
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.response.header.as_ref(), out);
    }
}

/// A renewed lease.
pub(crate) struct KeptAlive(pub(crate) LeaseKeepAliveResponse);

impl Answer for KeptAlive {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "lease {:016x} keepalived with TTL({})", self.0.id, self.0.ttl);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            embedded(self.0.header.as_ref(), out);
            number("ID", self.0.id, out);
            number("TTL", self.0.ttl, out);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        lease_fields(self.0.header.as_ref(), (self.0.id, self.0.ttl), out);
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(header(self.0.header.as_ref()))
    }
}

/// The remaining time of a lease.
pub(crate) struct TimeToLive {
    pub(crate) response: LeaseTimeToLiveResponse,
    /// Whether the keys were requested.
    pub(crate) keys: bool,
}

impl Answer for TimeToLive {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        let lease = &self.response;
        if lease.granted_ttl == 0 && lease.ttl == -1 {
            line!(out, "lease {:016x} already expired", lease.id);
            return;
        }
        let granted = lease.granted_ttl;
        let text = format!("lease {:016x} granted with TTL({granted}s)", lease.id);
        out.extend_from_slice(format!("{text}, remaining({}s)", lease.ttl).as_bytes());
        if self.keys {
            let keys: Vec<&[u8]> = lease.keys.iter().map(Bytes::as_ref).collect();
            out.extend_from_slice(b", attached keys([");
            out.extend_from_slice(&keys.join(&b' '));
            out.extend_from_slice(b"])");
        }
        out.push(b'\n');
    }

    fn json(&self, out: &mut Writer) {
        let lease = &self.response;
        out.object(|out| {
            embedded(lease.header.as_ref(), out);
            number("id", lease.id, out);
            number("ttl", lease.ttl, out);
            number("granted-ttl", lease.granted_ttl, out);
            out.name("keys");
            if lease.keys.is_empty() {
                out.raw("null");
            } else {
                out.array(&lease.keys, |out, key| out.base64(key));
            }
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        let lease = &self.response;
        lease_fields(lease.header.as_ref(), (lease.id, lease.ttl), out);
        line!(out, "\"GrantedTTL\" : {}", lease.granted_ttl);
        for key in &lease.keys {
            line!(out, "\"Key\" : {}", quote(key));
        }
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(header(self.response.header.as_ref()))
    }
}

/// All leases.
pub(crate) struct Leases(pub(crate) LeaseLeasesResponse);

impl Answer for Leases {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "found {} leases", self.0.leases.len());
        for lease in &self.0.leases {
            line!(out, "{:016x}", lease.id);
        }
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            embedded(self.0.header.as_ref(), out);
            out.name("leases");
            out.array(&self.0.leases, |out, lease| out.object(|out| number("id", lease.id, out)));
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.0.header.as_ref(), out);
        for lease in &self.0.leases {
            line!(out, "\"ID\" : {}", lease.id);
        }
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(header(self.0.header.as_ref()))
    }
}
