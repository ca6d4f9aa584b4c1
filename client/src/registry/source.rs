//! Where a directory learns of instances: a native registry, or the keys of any server that speaks
//! etcd's API.

use std::collections::BTreeMap;

use bytes::Bytes;
use conclave_proto::v1::{
    InstanceFilter, InstanceWatchResponse, instance_change::Kind, instance_watch_response::Snapshot,
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

/// What is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The instances.
    Instances,
    /// Whether a server tells of changes at present.
    Connected(bool),
}

/// The instances of a service, kept up to date by whoever calls [`Source::next`].
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
    known: BTreeMap<String, Record>,
    revision: i64,
    is_in_snapshot: bool,
}

impl Source {
    pub(super) fn new(service: Service) -> Self {
        let changes = Changes::new(&service, InstanceFilter::default());
        let native = Native { changes, known: BTreeMap::new(), revision: 0, is_in_snapshot: false };
        Self { prefix: service.prefix(), service, origin: Origin::Native(Box::new(native)) }
    }

    /// Waits for news. Not cancel-safe while it connects, which then begins again.
    ///
    /// # Errors
    /// Why nothing can be learned at present; the next call tries again.
    pub(super) async fn next(&mut self) -> Result<News, Error> {
        loop {
            match &mut self.origin {
                Origin::Keys(mirror) => {
                    return Ok(match mirror.next().await? {
                        mirror::Step::Keys => News::Instances,
                        mirror::Step::Connected(is_connected) => News::Connected(is_connected),
                    });
                }
                Origin::Native(native) => match native.changes.step().await {
                    Ok(Step::Connected(is_connected)) => return Ok(News::Connected(is_connected)),
                    Ok(Step::Message(message)) => {
                        if native.take(message) {
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
            Origin::Native(native) => (Some(native.known.values().cloned()), None),
            Origin::Keys(mirror) => {
                let keys = mirror.keys().values();
                (None, Some(keys.filter_map(|kv| decode(&self.prefix, kv))))
            }
        };
        native.into_iter().flatten().chain(keys.into_iter().flatten())
    }

    /// The revision as of which they are known.
    pub(super) fn revision(&self) -> i64 {
        match &self.origin {
            Origin::Native(native) => native.revision,
            Origin::Keys(mirror) => mirror.header().revision,
        }
    }
}

impl Native {
    /// Whether the state is complete again.
    fn take(&mut self, message: InstanceWatchResponse) -> bool {
        let is_snapshot = message.snapshot() != Snapshot::None;
        if is_snapshot && !self.is_in_snapshot {
            self.known.clear();
        }
        self.is_in_snapshot = is_snapshot && message.more;
        self.revision = message.revision;
        for change in message.changes {
            let kind = change.kind();
            let Some(instance) = change.instance else { continue };
            match record_of(&instance) {
                Some(record) if kind != Kind::Removed => {
                    self.known.insert(instance.id, record);
                }
                _ => _ = self.known.remove(&instance.id),
            }
        }
        !message.more
    }
}
