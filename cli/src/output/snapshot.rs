//! The contents of a snapshot file, as etcdutl prints them.

use conclave_server::backup::BackupStatus;

use super::{Answer, Style, Table, go::bytes, go::quote, json::Writer, line};

/// The contents of a snapshot file.
pub(crate) struct Held(pub(crate) BackupStatus);

impl Held {
    fn cells(&self) -> Vec<String> {
        let BackupStatus { hash, revision, keys, bytes: size, version } = &self.0;
        vec![
            format!("{hash:x}"),
            revision.to_string(),
            keys.to_string(),
            bytes(*size),
            version.clone(),
        ]
    }
}

impl Answer for Held {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        line!(out, "{}", self.cells().join(", "));
    }

    fn json(&self, out: &mut Writer) {
        // Unlike the server's answers, zero values are included.
        let document = serde_json::json!({
            "hash": self.0.hash,
            "revision": self.0.revision,
            "totalKey": self.0.keys,
            "totalSize": self.0.bytes,
            "version": self.0.version,
        });
        out.raw(&document.to_string());
    }

    fn fields(&self, out: &mut Vec<u8>) {
        line!(out, "\"Hash\" : {}", self.0.hash);
        line!(out, "\"Revision\" : {}", self.0.revision);
        line!(out, "\"Keys\" : {}", self.0.keys);
        line!(out, "\"Size\" : {}", self.0.bytes);
        line!(out, "\"Version\" : {}", quote(self.0.version.as_bytes()));
    }

    fn table(&self) -> Option<Table> {
        let mut table = Table::new(&["hash", "revision", "total keys", "total size", "version"]);
        table.row(self.cells());
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_every_form() {
        let held = Held(BackupStatus {
            hash: 0xfe01_cf57,
            revision: 10,
            keys: 7,
            bytes: 2_100_000,
            version: String::new(),
        });
        let mut out = Vec::new();
        held.simple(&mut out, Style::default());
        assert_eq!(out, b"fe01cf57, 10, 7, 2.1 MB, \n");
        let mut json = Writer::default();
        held.json(&mut json);
        let expected =
            br#"{"hash":4261531479,"revision":10,"totalKey":7,"totalSize":2100000,"version":""}"#;
        assert_eq!(json.into_bytes(), expected);
        let mut out = Vec::new();
        held.fields(&mut out);
        assert!(out.starts_with(b"\"Hash\" : 4261531479\n\"Revision\" : 10\n\"Keys\" : 7\n"));
        assert!(held.table().expect("a table").render().contains("| TOTAL KEYS | TOTAL SIZE |"));
    }
}
