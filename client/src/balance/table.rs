//! The instances that calls may go to, with their connections, and the source of their list.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use conclave_transport::{ClientTls, Connector, Followed, Target};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use super::channel::ChannelBuilder;
use super::node::{Instance, Node};
use super::snapshot::Snapshot;
use crate::tls::Tls;

/// Most instances of one service that are used; a longer list is cut off. Each costs a task.
const INSTANCES_MAX: usize = 4096;
/// A connection whose peer acknowledges nothing for this long has failed, with all its streams.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// Where lists come from, and the table made from the last good one.
pub(super) struct Source {
    pub(super) list: watch::Receiver<Vec<Instance>>,
    pub(super) table: Arc<Table>,
    pub(super) is_kept: bool,
}

/// Instances and their channels.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) snapshot: Snapshot,
    pub(super) channels: BTreeMap<String, Channel>,
}

/// TLS for connections to instances.
#[derive(Debug, Default)]
pub(super) struct Security {
    chosen: Option<Arc<Followed<ClientTls>>>,
    /// Trusts the system's certificate authorities; read when the first address needs it.
    system: OnceLock<Arc<Followed<ClientTls>>>,
}

impl Security {
    pub(super) fn chosen(tls: Arc<Followed<ClientTls>>) -> Self {
        Self { chosen: Some(tls), system: OnceLock::new() }
    }

    /// Whether addresses without a scheme use TLS, too.
    fn is_chosen(&self) -> bool {
        self.chosen.is_some()
    }

    fn tls(&self) -> Result<Arc<Followed<ClientTls>>, String> {
        if let Some(tls) = self.chosen.as_ref().or(self.system.get()) {
            return Ok(Arc::clone(tls));
        }
        // If reading failed, it is tried again next time.
        let read = Tls::new().follow().map_err(|error| error.to_string())?;
        Ok(Arc::clone(self.system.get_or_init(|| read)))
    }
}

impl Source {
    /// Takes the newest list, unless it is empty.
    pub(super) fn take(&mut self, options: &ChannelBuilder) {
        let list = options.callable(self.list.borrow_and_update().clone());
        self.is_kept = list.is_empty() && !self.table.snapshot.nodes().is_empty();
        if self.is_kept {
            tracing::warn!("nobody in the list can be called: going on with the last one");
        } else {
            self.table = Arc::new(self.table.renewed(list, options));
        }
    }
}

impl Table {
    /// A table for a new list. Known instances keep their statistics and connections. Calls to
    /// instances that are no longer listed are not broken off.
    fn renewed(&self, list: Vec<Instance>, options: &ChannelBuilder) -> Self {
        let now = Instant::now();
        let old: BTreeMap<&str, &Arc<Node>> =
            self.snapshot.nodes().iter().map(|node| (node.instance().id.as_str(), node)).collect();
        let mut nodes = BTreeMap::new();
        let mut channels = BTreeMap::new();
        for instance in list.into_iter().take(INSTANCES_MAX) {
            let id = instance.id.clone();
            let known = old
                .get(id.as_str())
                .filter(|node| node.instance().address == instance.address)
                .and_then(|node| Some((*node, self.channels.get(&id)?)));
            let (node, channel) = match known {
                Some((node, channel)) if *node.instance() == instance => {
                    (Arc::clone(node), channel.clone())
                }
                Some((node, channel)) => (Arc::new(node.renewed(instance)), channel.clone()),
                None => match connect(&instance, options) {
                    Ok(channel) => (Arc::new(Node::new(instance, now)), channel),
                    Err(reason) => {
                        tracing::warn!(instance = id, reason, "unusable address");
                        continue;
                    }
                },
            };
            nodes.insert(id.clone(), node);
            channels.insert(id, channel);
        }
        let snapshot = Snapshot::new(nodes.into_values().collect(), options.snapshot);
        Self { snapshot, channels }
    }
}

/// A channel that connects on first use.
fn connect(instance: &Instance, options: &ChannelBuilder) -> Result<Channel, String> {
    let target = Target::parse(&instance.address, options.security.is_chosen())?;
    let tls = if target.is_tls() { Some(options.security.tls()?) } else { None };
    let mut endpoint = Endpoint::from(target.origin().clone());
    if let Some((interval, timeout)) = options.ping {
        endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(timeout);
    }
    let connector = Connector::new(target, tls, options.connect_timeout).lost_after(LOST_AFTER);
    Ok(endpoint.connect_with_connector_lazy(connector))
}
