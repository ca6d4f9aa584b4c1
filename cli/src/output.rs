//! What the client verbs print, byte for byte as etcdctl does.
//!
//! Each answer implements its output forms ([`Answer`]); [`Printer`] selects the one given by `-w`.

mod auth;
mod check;
mod cluster;
mod config;
mod go;
mod json;
mod kv;
mod lease;
mod member;
mod rows;
mod snapshot;
mod table;
mod watch;

use std::{
    borrow::Cow,
    io::{self, Write},
};

use conclave_client::pb::ResponseHeader;

use crate::failure::Failure;

pub(crate) use auth::{AuthStatus, Done, Names, Role, User};
pub(crate) use check::{Check, Checks};
pub(crate) use cluster::{Alarms, Downgraded, Hash, Hashes, Health, Healths, Statuses, Transfer};
pub(crate) use config::{Releases, Settings, Written};
pub(crate) use go::{bytes as human_bytes, parse_int, parse_uint, quote, unquote};
pub(crate) use lease::{Granted, KeptAlive, Leases, Revoked, TimeToLive};
pub(crate) use member::{Changed, Members};
pub(crate) use rows::Rows;
pub(crate) use snapshot::Held;
pub(crate) use table::Table;
pub(crate) use watch::Changes;

/// The output form, set by the flag `--write-out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Simple,
    Json,
    Fields,
    Table,
    Protobuf,
}

impl Format {
    /// # Errors
    /// With etcdctl's message for any unknown form.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "simple" => Ok(Self::Simple),
            "json" => Ok(Self::Json),
            "fields" => Ok(Self::Fields),
            "table" => Ok(Self::Table),
            "protobuf" => Ok(Self::Protobuf),
            _ => Err(Failure::bad_feature("unsupported output format")),
        }
    }
}

fn unsupported(format: &str) -> Failure {
    Failure::bad_feature(format!("{format} not supported as output format"))
}

/// Options of the simple form.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Style {
    /// Print keys and values with every byte as `\x61`.
    pub(crate) hex: bool,
    /// Print values only.
    pub(crate) values_only: bool,
}

/// Something that can be printed in every form.
pub(crate) trait Answer {
    /// The form for people and scripts.
    fn simple(&self, out: &mut Vec<u8>, style: Style);
    /// One JSON document, without a line end.
    fn json(&self, out: &mut json::Writer);
    /// One `"Name" : value` line for each field.
    fn fields(&self, out: &mut Vec<u8>);
    /// Rows and columns, for answers that have a table in etcdctl.
    fn table(&self) -> Option<Table> {
        None
    }
    /// Rows and columns where etcdctl has none; without them the table lists the fields.
    fn own_table(&self) -> Option<Table> {
        None
    }
    /// The protobuf message, for answers that have one in etcdctl; nothing is printed after it.
    fn protobuf(&self) -> Option<Vec<u8>> {
        None
    }
}

/// Prints answers in one form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    pub(crate) style: Style,
    /// Print only tables that etcdctl has; otherwise an answer without a table gets one of its
    /// fields.
    pub(crate) is_strict: bool,
}

impl Printer {
    /// Writes `answer` to standard output.
    ///
    /// # Errors
    /// If the answer does not have this form, or the output cannot be written.
    pub(crate) fn print(&self, answer: &impl Answer) -> Result<(), Failure> {
        let mut out = Vec::new();
        match self.format {
            Format::Simple => answer.simple(&mut out, self.style),
            Format::Json => {
                let mut json = json::Writer::new(self.style.hex);
                answer.json(&mut json);
                out = json.into_bytes();
                out.push(b'\n');
            }
            Format::Fields => answer.fields(&mut out),
            Format::Table => {
                out = self.table(answer)?.render().into_bytes();
            }
            Format::Protobuf => {
                out = answer.protobuf().ok_or_else(|| unsupported("protobuf"))?;
            }
        }
        write(&out)
    }

    fn table(&self, answer: &impl Answer) -> Result<Table, Failure> {
        if let Some(table) = answer.table() {
            return Ok(table);
        }
        if self.is_strict {
            return Err(unsupported("table"));
        }
        Ok(answer.own_table().unwrap_or_else(|| {
            let mut fields = Vec::new();
            answer.fields(&mut fields);
            Table::of_fields(&String::from_utf8_lossy(&fields))
        }))
    }
}

/// Writes to standard output.
///
/// # Errors
/// If it cannot be written, for example because the reader of a pipe is gone.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::input_output(format!("standard output: {error}")))
}

/// Writes a line to standard error; a failure cannot be reported anywhere.
pub(crate) fn complain(line: &str) {
    writeln!(io::stderr().lock(), "{}", lines(line)).ok();
}

/// Escapes foreign text for use within a line: characters that would move the cursor, start another
/// line or control the terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_command)
}

/// Like [`printable`], for text of several lines.
fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| is_command(character) && !matches!(character, '\n' | '\t'))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_escaped(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped.into()
}

/// Control characters, and those that change the direction of surrounding text.
fn is_command(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Appends a line.
macro_rules! line {
    ($out:expr, $($argument:tt)*) => {{
        use std::io::Write as _;
        writeln!($out, $($argument)*).expect("invariant: a vector takes every write")
    }};
}
pub(crate) use line;

fn header_fields(header: Option<&ResponseHeader>, out: &mut Vec<u8>) {
    let header = header.cloned().unwrap_or_default();
    line!(out, "\"ClusterID\" : {}", header.cluster_id);
    line!(out, "\"MemberID\" : {}", header.member_id);
    line!(out, "\"Revision\" : {}", header.revision);
    line!(out, "\"RaftTerm\" : {}", header.raft_term);
}

fn header_json(header: Option<&ResponseHeader>, out: &mut json::Writer) {
    if let Some(header) = header {
        out.name("header");
        out.object(|out| header_members(header, out));
    }
}

fn header_members(header: &ResponseHeader, out: &mut json::Writer) {
    out.unsigned("cluster_id", header.cluster_id);
    out.unsigned("member_id", header.member_id);
    out.signed("revision", header.revision);
    out.unsigned("raft_term", header.raft_term);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_commands_no_terminal() {
        let cases = [
            ("db-1 \u{e4}", "db-1 \u{e4}"),
            ("a\nid, 1.2.3.4", "a\\nid, 1.2.3.4"),
            ("\u{1b}[2J\u{9b}1m\r\t", "\\u{1b}[2J\\u{9b}1m\\r\\t"),
            ("\u{202e}evil", "\\u{202e}evil"),
        ];
        for (text, shown) in cases {
            assert_eq!(printable(text), shown);
        }
        assert_eq!(lines("Error: one\n\ttwo\u{1b}"), "Error: one\n\ttwo\\u{1b}");
    }
}
