//! Settings and their history.

use conclave_client::{config::Release, mvccpb::event::EventType};
use serde_json::Value;

use super::{Answer, Style, json::Writer, line, quote, watch::event_json};

/// Settings as of a revision.
pub(crate) struct Settings {
    pub(crate) revision: i64,
    pub(crate) tree: Value,
}

impl Answer for Settings {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        match &self.tree {
            Value::String(text) => line!(out, "{text}"),
            tree => line!(out, "{tree:#}"),
        }
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            out.signed("revision", self.revision);
            out.name("settings");
            out.raw(&self.tree.to_string());
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        line!(out, "\"Revision\" : {}", self.revision);
        let mut open = vec![(String::new(), &self.tree)];
        while let Some((path, value)) = open.pop() {
            match value {
                Value::Object(table) => {
                    let dot = if path.is_empty() { "" } else { "." };
                    // Reversed, because the last one pushed is taken first.
                    let below = table.iter().rev();
                    open.extend(below.map(|(key, value)| (format!("{path}{dot}{key}"), value)));
                }
                value => line!(out, "{} : {value}", quote(path.as_bytes())),
            }
        }
    }
}

/// A write of settings.
pub(crate) struct Written {
    pub(crate) revision: i64,
    pub(crate) changed: usize,
}

impl Answer for Written {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        let keys = if self.changed == 1 { "key" } else { "keys" };
        line!(out, "revision {}: {} {keys} changed", self.revision, self.changed);
    }

    fn json(&self, out: &mut Writer) {
        out.object(|out| {
            out.signed("revision", self.revision);
            out.name("changed");
            out.raw(&self.changed.to_string());
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        line!(out, "\"Revision\" : {}", self.revision);
        line!(out, "\"Changed\" : {}", self.changed);
    }
}

/// The history of keys.
pub(crate) struct Releases {
    pub(crate) releases: Vec<Release>,
    pub(crate) with_values: bool,
}

impl Answer for Releases {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        for release in &self.releases {
            let note = if release.is_compacted { " (compacted: all keys as of then)" } else { "" };
            line!(out, "revision {}{note}", release.revision);
            for event in &release.changes {
                let kv = event.kv.clone().unwrap_or_default();
                let key = quote(&kv.key);
                match event.r#type() {
                    EventType::Put if self.with_values => {
                        line!(out, "  PUT {key} {}", quote(&kv.value));
                    }
                    EventType::Put => line!(out, "  PUT {key} ({} bytes)", kv.value.len()),
                    EventType::Delete => line!(out, "  DELETE {key}"),
                }
            }
        }
    }

    fn json(&self, out: &mut Writer) {
        out.array(&self.releases, |out, release| {
            out.object(|out| {
                out.signed("revision", release.revision);
                out.boolean("compacted", release.is_compacted);
                out.name("events");
                out.array(&release.changes, |out, event| {
                    let mut event = event.clone();
                    if let Some(kv) = event.kv.as_mut().filter(|_| !self.with_values) {
                        kv.value.clear();
                    }
                    event_json(out, &event);
                });
            });
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        for release in &self.releases {
            line!(out, "\"Revision\" : {}", release.revision);
            line!(out, "\"Compacted\" : {}", release.is_compacted);
            for event in &release.changes {
                let kv = event.kv.clone().unwrap_or_default();
                line!(out, "\"Type\" : {}", event.r#type().as_str_name());
                line!(out, "\"Key\" : {}", quote(&kv.key));
                if self.with_values {
                    line!(out, "\"Value\" : {}", quote(&kv.value));
                }
            }
        }
    }
}
