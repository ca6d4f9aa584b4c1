//! Sources in the cluster: which keys are read, and how they are decoded.

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::{
        RangeRequest, RequestOp, TxnRequest, TxnResponse, request_op::Request,
        response_op::Response,
    },
    mvccpb::KeyValue,
};

use serde_json::{Map, Value};

use super::{
    codec::Codec,
    layer::{Layer, Origin, Part, Rejection},
    tree::{DEPTH_MAX, place, segments},
};
use crate::key::set_prefix;

/// Most sources of one configuration. They are read in one transaction, in which etcd allows 128
/// operations.
pub(super) const SOURCES_MAX: usize = 64;

/// Keys of the cluster that hold settings; see [`Source::document`] and [`Source::prefix`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::config::Error> {
/// use conclave_client::config::{Source, find};
///
/// // What an application with these sources would see.
/// let sources = [Source::document("config/shared.toml"), Source::prefix("config/app/")];
/// let (tree, revision) = client.read_config(&sources, 0).await?;
/// println!("db.port is {:?} as of revision {revision}", find(&tree, "db.port"));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    layer: Layer,
    key: String,
    is_prefix: bool,
    codec: Option<Codec>,
}

impl Source {
    /// One key that holds a whole document. The extension of its name selects the format (`.json`,
    /// `.toml`, `.yaml`, `.yml`); without one it is JSON. A missing key is an empty document.
    pub fn document(key: impl Into<String>) -> Self {
        Self { layer: Layer::App, key: key.into(), is_prefix: false, codec: None }
    }

    /// All keys that start with `prefix`, each for the setting named by the rest of the key: with
    /// the prefix `config/app/`, the key `config/app/db/port` is the setting `db.port`. A value is
    /// plain text, unless the key has the extension of a format: `config/app/db.toml` is a document
    /// for `db`.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { layer: Layer::App, key: prefix.into(), is_prefix: true, codec: None }
    }

    /// Decodes all values in this format, whatever the names of the keys.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = Some(codec);
        self
    }

    /// Checks whether readers of this source would accept `value` under `key`, by the rules for
    /// reading. For programs that write settings.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn check(&self, key: &str, value: &[u8]) -> Result<(), Rejection> {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::copy_from_slice(value));
        self.part(&KeyValue { key, value, ..KeyValue::default() }, 0).map(drop)
    }

    pub(super) fn layer(mut self, layer: Layer) -> Self {
        self.layer = layer;
        self
    }

    /// The layer, by which sources are sorted.
    pub(super) fn rank(&self) -> Layer {
        self.layer
    }

    pub(super) fn range(&self) -> RangeRequest {
        let mut range =
            RangeRequest { key: Bytes::from(self.key.clone()), ..RangeRequest::default() };
        if self.is_prefix {
            set_prefix(&mut range.key, &mut range.range_end);
        }
        range
    }

    /// Decodes a key-value pair.
    fn part(&self, kv: &KeyValue, revision: i64) -> Result<Part, Rejection> {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        let rest = if self.is_prefix { key.strip_prefix(&self.key).unwrap_or(&key) } else { "" };
        let named = Codec::of_name(if self.is_prefix { rest } else { &key });
        let default = if self.is_prefix { Codec::Text } else { Codec::Json };
        let codec = self.codec.or(named.map(|(codec, _)| codec)).unwrap_or(default);
        let path =
            named.filter(|_| self.is_prefix).map_or(rest, |(_, stem)| stem).replace('/', ".");
        let origin = Origin { layer: self.layer, key: key.clone(), revision: kv.mod_revision };
        let refuse = |reason: String| Rejection {
            revision,
            path: path.clone(),
            origin: Some(origin.clone()),
            reason,
        };
        if segments(&path).count() > DEPTH_MAX {
            return Err(refuse("nested too deep".to_owned()));
        }
        let tree = codec.decode(&kv.value).map_err(&refuse)?;
        if self.is_prefix
            && !(tree.is_object() || tree.is_null())
            && segments(&path).next().is_none()
        {
            // It would replace all settings.
            return Err(refuse("the name of the key spells no setting".to_owned()));
        }
        let path: Vec<&str> = segments(&path).collect();
        // An empty document sets nothing; it must not replace the settings of others.
        let is_empty = tree.is_null() && path.is_empty();
        let tree = if is_empty { Value::Object(Map::new()) } else { tree };
        Ok(Part { origin, tree: place(path.into_iter(), tree) })
    }
}

/// The key-value pairs of all sources at one revision.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fetched {
    pub(super) revision: i64,
    /// One list for each source, in their order.
    pub(super) pairs: Vec<Vec<KeyValue>>,
}

impl Fetched {
    /// Reads the answer to [`request`].
    pub(super) fn new(answer: TxnResponse) -> Self {
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let pairs = answer.responses.into_iter().map(|response| match response.response {
            Some(Response::ResponseRange(range)) => range.kvs,
            _ => Vec::new(),
        });
        Self { revision, pairs: pairs.collect() }
    }

    /// Decodes the pairs, in the order of the sources.
    ///
    /// # Errors
    /// If a pair cannot be decoded.
    pub(super) fn parts(&self, sources: &[Source]) -> Result<Vec<Part>, Rejection> {
        let pairs = sources.iter().zip(&self.pairs);
        pairs
            .flat_map(|(source, pairs)| pairs.iter().map(move |kv| (source, kv)))
            .map(|(source, kv)| source.part(kv, self.revision))
            .collect()
    }
}

/// A transaction that reads all sources at one revision.
pub(super) fn request(sources: &[Source], revision: i64) -> TxnRequest {
    let read = |source: &Source| {
        let range = RangeRequest { revision, ..source.range() };
        RequestOp { request: Some(Request::RequestRange(range)) }
    };
    TxnRequest { success: sources.iter().map(read).collect(), ..TxnRequest::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tree(source: &Source, key: &str, value: &str) -> Result<Value, Rejection> {
        let kv = KeyValue {
            key: Bytes::from(key.to_owned()),
            value: Bytes::from(value.to_owned()),
            mod_revision: 5,
            ..KeyValue::default()
        };
        source.part(&kv, 7).map(|part| part.tree)
    }

    #[test]
    fn the_name_of_a_key_spells_the_setting() {
        let source = Source::prefix("config/app/");
        let cases = [
            ("config/app/db/port", "5432", json!({"db": {"port": "5432"}})),
            ("config/app/db.port", "5432", json!({"db": {"port": "5432"}})),
            ("config/app/db.toml", "port = 5432", json!({"db": {"port": 5432}})),
            ("config/app/.yaml", "a: 1", json!({"a": 1})),
            ("config/app//a/", "1", json!({"a": "1"})),
        ];
        for (key, value, expected) in cases {
            assert_eq!(tree(&source, key, value).unwrap(), expected, "{key}");
        }
        let json = Source::prefix("config/app/").codec(Codec::Json);
        assert_eq!(
            tree(&json, "config/app/db", "{\"port\": 1}").unwrap(),
            json!({"db": {"port": 1}})
        );
    }

    #[test]
    fn a_document_is_the_whole_tree() {
        let source = Source::document("config/app.toml");
        assert_eq!(
            tree(&source, "config/app.toml", "[db]\nport = 1").unwrap(),
            json!({"db": {"port": 1}})
        );
        let source = Source::document("config/app");
        assert_eq!(tree(&source, "config/app", "{\"a\": 1}").unwrap(), json!({"a": 1}));
        let source = source.codec(Codec::Yaml);
        assert_eq!(tree(&source, "config/app", "").unwrap(), json!({}));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_key() {
        let rejection = tree(&Source::prefix("c/"), "c/db.json", "{").unwrap_err();
        assert_eq!((rejection.revision, rejection.path.as_str()), (7, "db"));
        assert_eq!(rejection.origin.unwrap().to_string(), "app c/db.json at revision 5");
        let deep = format!("c/{}", "a/".repeat(100));
        assert!(tree(&Source::prefix("c/"), &deep, "1").is_err());
        for nameless in ["c/", "c//", "c/.txt"] {
            assert!(tree(&Source::prefix("c/"), nameless, "1").is_err(), "{nameless}");
            assert!(Source::prefix("c/").check(nameless, b"1").is_err(), "{nameless}");
        }
        assert!(Source::prefix("c/").check("c/a", b"\xff").is_err());
        assert!(Source::prefix("c/").check("c/a", b"1").is_ok());
    }
}
