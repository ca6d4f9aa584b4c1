//! What clients did and saw: the input of the checkers, kept as one JSON line per record.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A revision of the store.
pub type Revision = i64;
/// Nanoseconds since the start of the run, on one monotonic clock for all clients.
pub type Nanos = u64;

/// A key at one revision. Keys and values of test histories are text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Revision of the put that (re)created it.
    pub create: Revision,
    /// Revision of the last put.
    pub modified: Revision,
    /// Puts since creation.
    pub version: i64,
}

/// What a compare looks at, with the value it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum Operand {
    Version(i64),
    Create(Revision),
    Modified(Revision),
    Value(String),
}

/// How a compare compares: the key's field on the left, the operand on the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum Relation {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// One condition of a transaction on one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key looked at.
    pub key: String,
    /// The comparison.
    pub relation: Relation,
    /// The field and the value it is compared with.
    pub operand: Operand,
}

/// A read. `end` empty: the single key `start`; else all keys in `[start, end)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First key.
    pub start: String,
    /// End of the range.
    pub end: String,
    /// 0: the current revision.
    pub revision: Revision,
    /// 0: none.
    pub limit: i64,
    /// May be answered from the member's own state.
    pub serializable: bool,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// All have to hold for `success` to be taken.
    pub compares: Vec<Compare>,
    /// Taken if they hold.
    pub success: Vec<Request>,
    /// Taken otherwise.
    pub failure: Vec<Request>,
}

/// What a client asked. Puts and deletes always ask for previous values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Writes one key; values are unique in a history.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
    },
    /// Deletes `start`, or `[start, end)` if `end` is not empty.
    Delete {
        /// First key.
        start: String,
        /// End of the range.
        end: String,
    },
    /// Reads.
    Range(Range),
    /// Several of the above at one revision.
    Txn(Txn),
}

impl Request {
    /// Whether the request can change the store at all.
    #[must_use]
    pub fn can_write(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Delete { .. } => true,
            Self::Range(_) => false,
            Self::Txn(txn) => txn.success.iter().chain(&txn.failure).any(Self::can_write),
        }
    }

    /// Whether the answer may come from a member's own, possibly old, state.
    #[must_use]
    pub fn is_serializable(&self) -> bool {
        matches!(self, Self::Range(range) if range.serializable)
    }
}

/// What the server answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Of a put: what was there before.
    Put {
        /// The previous key, if it existed.
        previous: Option<KeyValue>,
    },
    /// Of a delete: what was deleted, in key order.
    Delete {
        /// The deleted keys.
        previous: Vec<KeyValue>,
    },
    /// Of a range.
    Range {
        /// The keys found, in key order.
        kvs: Vec<KeyValue>,
        /// How many there are without the limit.
        count: i64,
    },
    /// Of a transaction.
    Txn {
        /// Whether the compares held.
        succeeded: bool,
        /// Answers of the taken branch.
        responses: Vec<Response>,
    },
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Answered, with the header's revision.
    Ok {
        /// The header's revision.
        revision: Revision,
        /// The answer.
        response: Response,
    },
    /// Certainly without effect: refused, or never sent.
    Failed(String),
    /// It may have happened, or may still happen.
    Unknown(String),
}

/// One request of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The client; it has one request at a time.
    pub client: u32,
    /// Number of the client's connection: rises whenever it connects anew.
    pub session: u32,
    /// The member asked.
    pub node: usize,
    /// When it was sent.
    pub start: Nanos,
    /// When the answer came. Meaningless for unknown outcomes.
    pub end: Nanos,
    /// What was asked.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
}

/// One change as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A put; `previous` only if asked for and existing.
    Put {
        /// The key as written.
        kv: KeyValue,
        /// What it replaced.
        previous: Option<KeyValue>,
    },
    /// A deletion.
    Delete {
        /// The key.
        key: String,
        /// The revision of the deletion.
        revision: Revision,
        /// What was deleted.
        previous: Option<KeyValue>,
    },
}

impl Event {
    /// The key changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { kv, .. } => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { kv, .. } => kv.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// What was there before, as far as the event says.
    #[must_use]
    pub fn previous(&self) -> Option<&KeyValue> {
        match self {
            Self::Put { previous, .. } | Self::Delete { previous, .. } => previous.as_ref(),
        }
    }

    /// The same event without the previous value.
    #[must_use]
    pub fn bare(&self) -> Self {
        match self.clone() {
            Self::Put { kv, .. } => Self::Put { kv, previous: None },
            Self::Delete { key, revision, .. } => Self::Delete { key, revision, previous: None },
        }
    }
}

/// What one response on a watch stream said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchNews {
    /// The watcher exists; events follow from the asked revision, or from the header's + 1.
    Created,
    /// Changes.
    Events(Vec<Event>),
    /// No events, only a revision.
    Progress,
    /// The server ended the watcher.
    Canceled {
        /// The reason given.
        reason: String,
        /// Set if events needed are compacted.
        compact_revision: Revision,
    },
}

/// One response on a watch stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchResponse {
    /// When it came.
    pub time: Nanos,
    /// The header's revision.
    pub revision: Revision,
    /// The rest.
    pub news: WatchNews,
}

/// One watch from its creation to the end of its stream; a resumed watch is a new session of the same watcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchSession {
    /// The watcher.
    pub watcher: u32,
    /// The member asked.
    pub node: usize,
    /// First key.
    pub start: String,
    /// As in [`Range`]; `"\0"`: all keys from `start` on.
    pub end: String,
    /// The revision asked for; 0: from now.
    pub from: Revision,
    /// Previous values were asked for.
    pub with_previous: bool,
    /// Puts were filtered out.
    pub no_puts: bool,
    /// Deletions were filtered out.
    pub no_deletes: bool,
    /// Everything received, in order.
    pub responses: Vec<WatchResponse>,
}

impl WatchSession {
    /// Whether the session sees every change of every key.
    #[must_use]
    pub fn sees_all(&self) -> bool {
        self.start == "\0" && self.end == "\0" && !self.no_puts && !self.no_deletes
    }
}

/// Whether `key` lies in the range `start`, `end` of a request.
#[must_use]
pub fn in_range(key: &str, start: &str, end: &str) -> bool {
    match end {
        "" => key == start,
        "\0" => key >= start,
        _ => key >= start && key < end,
    }
}

/// All that happened in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Requests, in no particular order.
    pub operations: Vec<Operation>,
    /// Watch sessions, in no particular order.
    pub sessions: Vec<WatchSession>,
}

#[derive(Serialize, Deserialize)]
enum Record {
    Operation(Operation),
    Session(WatchSession),
}

impl History {
    /// Writes one JSON line per record.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut out = BufWriter::new(file);
        let operations = self.operations.iter().cloned().map(Record::Operation);
        for record in operations.chain(self.sessions.iter().cloned().map(Record::Session)) {
            serde_json::to_writer(&mut out, &record)?;
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// Reads what [`History::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read or a line is not a record.
    pub fn load(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut history = Self::default();
        for line in BufReader::new(file).lines() {
            match serde_json::from_str(&line?)? {
                Record::Operation(operation) => history.operations.push(operation),
                Record::Session(session) => history.sessions.push(session),
            }
        }
        Ok(history)
    }
}
