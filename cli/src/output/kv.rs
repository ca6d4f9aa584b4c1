//! Ranges, puts, deletions, transactions and compactions.

use conclave_client::{
    mvccpb::KeyValue,
    pb::{
        DeleteRangeResponse, PutResponse, RangeResponse, ResponseOp, TxnResponse,
        response_op::Response,
    },
};
use prost::Message as _;

use super::{Answer, Style, Table, go::quote, header_fields, header_json, json::Writer, line};

impl Answer for RangeResponse {
    fn simple(&self, out: &mut Vec<u8>, style: Style) {
        self.kvs.iter().for_each(|kv| pair(kv, out, style));
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.header.as_ref(), out);
            pairs_json("kvs", &self.kvs, out);
            out.boolean("more", self.more);
            out.signed("count", self.count);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.header.as_ref(), out);
        self.kvs.iter().for_each(|kv| pair_fields("", kv, out));
        line!(out, "\"More\" : {}", self.more);
        line!(out, "\"Count\" : {}", self.count);
    }

    fn own_table(&self) -> Option<Table> {
        let titles = ["key", "value", "create revision", "mod revision", "version", "lease"];
        let mut table = Table::new(&titles);
        for kv in &self.kvs {
            let numbers = [kv.create_revision, kv.mod_revision, kv.version].map(|n| n.to_string());
            let mut row = vec![cell(&kv.key), cell(&kv.value)];
            row.extend(numbers);
            row.push(format!("{:x}", kv.lease));
            table.row(row);
        }
        Some(table)
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

/// Quotes bytes so that they do not break a table.
fn cell(bytes: &[u8]) -> String {
    let quoted = quote(bytes);
    quoted[1..quoted.len() - 1].to_owned()
}

impl Answer for PutResponse {
    fn simple(&self, out: &mut Vec<u8>, style: Style) {
        line!(out, "OK");
        self.prev_kv.iter().for_each(|kv| pair(kv, out, style));
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.header.as_ref(), out);
            if let Some(kv) = &self.prev_kv {
                out.name("prev_kv");
                pair_json(kv, out);
            }
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.header.as_ref(), out);
        self.prev_kv.iter().for_each(|kv| pair_fields("Prev", kv, out));
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for DeleteRangeResponse {
    fn simple(&self, out: &mut Vec<u8>, style: Style) {
        line!(out, "{}", self.deleted);
        self.prev_kvs.iter().for_each(|kv| pair(kv, out, style));
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.header.as_ref(), out);
            out.signed("deleted", self.deleted);
            pairs_json("prev_kvs", &self.prev_kvs, out);
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.header.as_ref(), out);
        line!(out, "\"Deleted\" : {}", self.deleted);
        self.prev_kvs.iter().for_each(|kv| pair_fields("Prev", kv, out));
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for TxnResponse {
    fn simple(&self, out: &mut Vec<u8>, style: Style) {
        line!(out, "{}", if self.succeeded { "SUCCESS" } else { "FAILURE" });
        for operation in &self.responses {
            line!(out, "");
            match &operation.response {
                Some(Response::ResponseRange(range)) => range.simple(out, style),
                Some(Response::ResponsePut(put)) => put.simple(out, style),
                Some(Response::ResponseDeleteRange(delete)) => delete.simple(out, style),
                Some(Response::ResponseTxn(txn)) => txn.simple(out, style),
                None => {}
            }
        }
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            header_json(self.header.as_ref(), out);
            out.boolean("succeeded", self.succeeded);
            if !self.responses.is_empty() {
                out.name("responses");
                out.array(&self.responses, operation_json);
            }
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        header_fields(self.header.as_ref(), out);
        line!(out, "\"Succeeded\" : {}", self.succeeded);
        for operation in &self.responses {
            match &operation.response {
                Some(Response::ResponseRange(range)) => range.fields(out),
                Some(Response::ResponsePut(put)) => put.fields(out),
                Some(Response::ResponseDeleteRange(delete)) => delete.fields(out),
                Some(Response::ResponseTxn(txn)) => txn.fields(out),
                None => {}
            }
        }
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

/// Go writes the oneof as an object of its own, named after the field.
fn operation_json(out: &mut Writer, operation: &ResponseOp) {
    let (name, answer): (_, &dyn Fn(&mut Writer)) = match &operation.response {
        Some(Response::ResponseRange(range)) => ("response_range", &|out| range.json(out)),
        Some(Response::ResponsePut(put)) => ("response_put", &|out| put.json(out)),
        Some(Response::ResponseDeleteRange(delete)) => {
            ("response_delete_range", &|out| delete.json(out))
        }
        Some(Response::ResponseTxn(txn)) => ("response_txn", &|out| txn.json(out)),
        None => {
            out.raw("{\"Response\":null}");
            return;
        }
    };
    out.object(|out| {
        out.name("Response");
        out.object(|out| {
            out.name(name);
            answer(out);
        });
    });
}

/// A key line and a value line.
pub(super) fn pair(kv: &KeyValue, out: &mut Vec<u8>, style: Style) {
    if !style.values_only {
        raw_line(&kv.key, out, style);
    }
    raw_line(&kv.value, out, style);
}

fn raw_line(bytes: &[u8], out: &mut Vec<u8>, style: Style) {
    if style.hex {
        out.extend(bytes.iter().flat_map(|byte| format!("\\x{byte:02x}").into_bytes()));
    } else {
        out.extend_from_slice(bytes);
    }
    out.push(b'\n');
}

pub(super) fn pair_fields(prefix: &str, kv: &KeyValue, out: &mut Vec<u8>) {
    line!(out, "\"{prefix}Key\" : {}", quote(&kv.key));
    line!(out, "\"{prefix}CreateRevision\" : {}", kv.create_revision);
    line!(out, "\"{prefix}ModRevision\" : {}", kv.mod_revision);
    line!(out, "\"{prefix}Version\" : {}", kv.version);
    line!(out, "\"{prefix}Value\" : {}", quote(&kv.value));
    line!(out, "\"{prefix}Lease\" : {}", kv.lease);
}

fn pairs_json(name: &str, kvs: &[KeyValue], out: &mut Writer) {
    if !kvs.is_empty() {
        out.name(name);
        out.array(kvs, |out, kv| pair_json(kv, out));
    }
}

pub(super) fn pair_json(kv: &KeyValue, out: &mut Writer) {
    out.object(|out| {
        out.bytes("key", &kv.key);
        out.signed("create_revision", kv.create_revision);
        out.signed("mod_revision", kv.mod_revision);
        out.signed("version", kv.version);
        out.bytes("value", &kv.value);
        out.signed("lease", kv.lease);
    });
}
