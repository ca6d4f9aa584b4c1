//! Where a directory gets instances from: Conclave's registry, or the keys of any server that
//! speaks etcd's API.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use conclave_proto::v1::{
    InstanceChange, InstanceFilter, InstanceWatchResponse, instance_change::Kind,
    instance_watch_response::Snapshot,
};

use super::{
    Record, Service,
    changes::{Changes, Step},
    decode, record_of,
};
use crate::{
    error::Error,
    mirror::{self, Mirror},
};

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// The instances have changed.
    Instances,
    /// The watch is established.
    Connected,
    /// The watch is broken, for this reason if it is known.
    Cut(Option<Arc<str>>),
}

/// The instances of a service, kept up to date by calling [`Source::next`].
pub(super) struct Source {
    service: Service,
    prefix: Bytes,
    origin: Origin,
}

enum Origin {
    Native(Box<Native>),
    Keys(Box<Mirror>),
}

struct Native {
    changes: Changes,
    known: Known,
}

/// The instances at the last revision received completely.
#[derive(Default)]
struct Known {
    records: BTreeMap<String, Record>,
    revision: i64,
    /// The parts received of a snapshot or revision that continues in the next message.
    parts: Vec<InstanceChange>,
    /// Whether the parts are a snapshot, which replaces everything known.
    is_snapshot: bool,
}

impl Source {
    pub(super) fn new(service: Service) -> Self {
        let changes = Changes::new(&service, InstanceFilter::default());
        let native = Native { changes, known: Known::default() };
        Self { prefix: service.prefix(), service, origin: Origin::Native(Box::new(native)) }
    }

    /// Waits for news. Cancelling while it connects restarts the connecting.
    ///
    /// # Errors
    /// Why nothing can be read at present; the next call tries again.
    pub(super) async fn next(&mut self) -> Result<News, Error> {
        loop {
            match &mut self.origin {
                Origin::Keys(mirror) => {
                    return Ok(match mirror.next().await? {
                        mirror::Step::Keys => News::Instances,
                        mirror::Step::Connected(true) => News::Connected,
                        mirror::Step::Connected(false) => News::Cut(mirror.trouble()),
                    });
                }
                Origin::Native(native) => match native.changes.step().await {
                    Ok(Step::Connected) => {
                        native.known.forget_parts();
                        return Ok(News::Connected);
                    }
                    Ok(Step::Cut(reason)) => {
                        native.known.forget_parts();
                        return Ok(News::Cut(Some(reason)));
                    }
                    Ok(Step::Message(message)) => {
                        if native.known.take(message) {
                            return Ok(News::Instances);
                        }
                    }
                    Err(Error::Unimplemented(_)) => {
                        let client = self.service.client.clone();
                        let mirror = Mirror::new(client, Bytes::clone(&self.prefix), 0);
                        self.origin = Origin::Keys(Box::new(mirror));
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// The instances, by id.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        let (native, keys) = match &self.origin {
            Origin::Native(native) => (Some(native.known.records.values().cloned()), None),
            Origin::Keys(mirror) => {
                let keys = mirror.keys().values();
                (None, Some(keys.filter_map(|kv| decode(&self.prefix, kv))))
            }
        };
        native.into_iter().flatten().chain(keys.into_iter().flatten())
    }

    /// The revision at which the instances are known.
    pub(super) fn revision(&self) -> i64 {
        match &self.origin {
            Origin::Native(native) => native.known.revision,
            Origin::Keys(mirror) => mirror.header().revision,
        }
    }
}

impl Known {
    /// Adds a message; true if it completes a snapshot or revision, which then is applied.
    fn take(&mut self, message: InstanceWatchResponse) -> bool {
        self.is_snapshot |= message.snapshot() != Snapshot::None;
        self.parts.extend(message.changes);
        if message.more {
            return false;
        }
        if std::mem::take(&mut self.is_snapshot) {
            self.records.clear();
        }
        self.revision = message.revision;
        for change in std::mem::take(&mut self.parts) {
            let kind = change.kind();
            let Some(instance) = change.instance else { continue };
            match record_of(&instance) {
                Some(record) if kind != Kind::Removed => {
                    self.records.insert(instance.id, record);
                }
                _ => _ = self.records.remove(&instance.id),
            }
        }
        true
    }

    /// Drops incomplete parts: what broke off is sent again from its beginning.
    fn forget_parts(&mut self) {
        self.parts.clear();
        self.is_snapshot = false;
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::Instance;

    use super::*;

    fn message(revision: i64, snapshot: Snapshot, ids: &[&str]) -> InstanceWatchResponse {
        let added = |id: &&str| InstanceChange {
            kind: Kind::Added.into(),
            instance: Some(Instance {
                id: (*id).to_owned(),
                record: Record::new("h:1").encode().into(),
                ..Instance::default()
            }),
            ..InstanceChange::default()
        };
        let changes = ids.iter().map(added).collect();
        InstanceWatchResponse { revision, snapshot: snapshot.into(), more: false, changes }
    }

    fn part(message: InstanceWatchResponse) -> InstanceWatchResponse {
        InstanceWatchResponse { more: true, ..message }
    }

    fn ids(known: &Known) -> Vec<&str> {
        known.records.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_snapshot_that_broke_off_leaves_nothing() {
        let mut known = Known::default();
        assert!(!known.take(part(message(5, Snapshot::Asked, &["a", "gone"]))));
        known.forget_parts();
        assert!(!known.take(part(message(7, Snapshot::Asked, &["a"]))));
        assert!(known.take(message(7, Snapshot::Asked, &["b"])));
        assert_eq!((ids(&known), known.revision), (vec!["a", "b"], 7));
    }

    #[test]
    fn nothing_is_known_by_halves() {
        let mut known = Known::default();
        assert!(known.take(message(5, Snapshot::Asked, &["a"])));
        assert!(!known.take(part(message(6, Snapshot::None, &["b"]))));
        assert_eq!((ids(&known), known.revision), (vec!["a"], 5), "half a revision");
        assert!(known.take(message(6, Snapshot::None, &["c"])));
        assert_eq!((ids(&known), known.revision), (vec!["a", "b", "c"], 6));
        assert!(!known.take(part(message(9, Snapshot::Behind, &["d"]))));
        assert_eq!((ids(&known), known.revision), (vec!["a", "b", "c"], 6), "half a snapshot");
        assert!(known.take(message(9, Snapshot::Behind, &["e"])));
        assert_eq!((ids(&known), known.revision), (vec!["d", "e"], 9));
    }
}
