//! Connections to the other members: one per member and purpose, made on first use.
//!
//! Replication, heartbeats, snapshots and forwarded calls each have their own connection, so that
//! none waits behind another's bytes. A connection without progress is replaced rather than waited
//! for: a half-open one would otherwise swallow everything until TCP gives up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use conclave_proto::internal::peer_client::PeerClient;
use conclave_proto::internal::{DescribeRequest, DescribeResponse, Sender};
use conclave_raft_store::Identity;
use conclave_raft_store::types::{MemberNode, Membership, NodeId};
use conclave_transport::{ClientTls, Connector, Followed, Target};
use parking_lot::Mutex;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::forward::Forwards;
use super::loss::Acknowledged;
use super::traffic::Caller;
use crate::metrics::{Peer, Peers};

/// Largest message between members. A batch of entries is far smaller; one huge value must fit.
pub(crate) const MESSAGE_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Flow-control window of one HTTP/2 stream: large enough that a full append window does not stall.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Flow-control window of one HTTP/2 connection.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Timeout of a connect: between members a few round trips, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// Interval between two pings of a connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a ping may stay unanswered before the connection counts as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Client of another member; it counts the bytes.
pub(crate) type Client = PeerClient<Caller<Channel>>;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Replication stream, votes, leader transfer.
    Append,
    /// Heartbeats.
    Heartbeat,
    /// Snapshots.
    Snapshot,
    /// Proposals, read indexes and lease calls made for clients connected to this member.
    Forward,
}

/// Connections of this member to all others.
#[derive(Debug)]
pub(crate) struct Links {
    cluster_id: u64,
    member_id: NodeId,
    peers: Peers,
    dialer: Dialer,
    links: Mutex<BTreeMap<(NodeId, Purpose), Arc<Link>>>,
}

impl Links {
    /// Connections of the member `identity`, none made yet.
    pub(crate) fn new(identity: Identity, peers: Peers, dialer: Dialer) -> Self {
        let Identity { cluster: cluster_id, member: member_id } = identity;
        Self { cluster_id, member_id, peers, dialer, links: Mutex::default() }
    }

    pub(crate) fn member_id(&self) -> NodeId {
        self.member_id
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// Makes connections to peer URLs.
    pub(crate) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Identifies caller and callee; sent with every call.
    pub(crate) fn sender(&self, to: NodeId) -> Sender {
        Sender { cluster_id: self.cluster_id, from: self.member_id, to }
    }

    /// The connection to a member, directed at its current URLs.
    pub(crate) fn get(&self, target: NodeId, node: &MemberNode, purpose: Purpose) -> Arc<Link> {
        let mut links = self.links.lock();
        let link = links.entry((target, purpose)).or_insert_with(|| {
            let (peer, dialer) = (self.peers.get(target), self.dialer.clone());
            Arc::new(Link::new(node.peer_urls.clone(), peer, self.member_id, dialer))
        });
        link.move_to(&node.peer_urls);
        link.clone()
    }

    /// Redirects connections to the members' current URLs and drops those of former members.
    /// Holders of a [`Link`] follow along: raft asks for a new one only when it starts to
    /// replicate.
    pub(crate) fn follow(&self, membership: &Membership) {
        self.links.lock().retain(|(target, _), link| {
            let node = membership.get_node(target);
            if let Some(node) = node {
                link.move_to(&node.peer_urls);
            }
            node.is_some()
        });
    }
}

/// A connection made on first use and replaced when it makes no progress.
#[derive(Debug)]
pub(crate) struct Link {
    current: Mutex<Current>,
    /// The stream of forwarded batches; locked while it is opened, which takes a bounded time.
    forwards: tokio::sync::Mutex<Option<Arc<Forwards>>>,
    /// Failed calls since the last successful one.
    failures: AtomicU32,
    /// What the member has acknowledged over this connection and its predecessors.
    pub(super) acknowledged: Acknowledged,
    peer: Arc<Peer>,
    /// Id of this member.
    own_id: NodeId,
    dialer: Dialer,
}

#[derive(Debug)]
struct Current {
    urls: Vec<String>,
    /// Index of the URL that the next connection uses, modulo their number.
    turn: usize,
    client: Option<Client>,
}

impl Link {
    fn new(urls: Vec<String>, peer: Arc<Peer>, own_id: NodeId, dialer: Dialer) -> Self {
        let current = Mutex::new(Current { urls, turn: 0, client: None });
        let acknowledged = Acknowledged::default();
        let forwards = tokio::sync::Mutex::default();
        let failures = AtomicU32::new(0);
        Self { current, forwards, failures, acknowledged, peer, own_id, dialer }
    }

    /// Counters of the member at the other end.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Counts a failed call; returns how many have failed in a row.
    pub(crate) fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Notes a successful call; returns how many had failed before it.
    pub(crate) fn succeeded(&self) -> u32 {
        self.failures.swap(0, Ordering::Relaxed)
    }

    /// How many calls in a row have failed.
    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The client of the current connection; makes one if there is none.
    ///
    /// # Errors
    /// [`Status`] if the member has no URL, or none that can be used.
    pub(crate) fn client(&self) -> Result<Client, Status> {
        let mut current = self.current.lock();
        if let Some(client) = &current.client {
            return Ok(client.clone());
        }
        let url = current
            .urls
            .get(current.turn % current.urls.len().max(1))
            .ok_or_else(|| Status::unavailable("the member has no peer URL"))?;
        let calls = Caller::new(self.dialer.channel(url)?, self.peer.clone(), self.own_id);
        let client = PeerClient::new(calls)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        current.client = Some(client.clone());
        Ok(client)
    }

    /// Directs the next connection to one of these URLs, if they are new.
    fn move_to(&self, urls: &[String]) {
        let mut current = self.current.lock();
        if current.urls != urls {
            *current = Current { urls: urls.to_vec(), turn: 0, client: None };
        }
    }

    /// The open stream of forwarded batches; opens one if there is none.
    ///
    /// # Errors
    /// [`Status`] if the member does not accept a stream.
    pub(crate) async fn forwards(&self) -> Result<Arc<Forwards>, Status> {
        let mut forwards = self.forwards.lock().await;
        if let Some(open) = forwards.as_ref().filter(|open| open.is_open()) {
            return Ok(open.clone());
        }
        let opened = Forwards::open(self.client()?).await.inspect_err(|_| self.reset())?;
        Ok(forwards.insert(opened).clone())
    }

    /// Drops the current connection; the next call connects to the member's next URL.
    pub(crate) fn reset(&self) {
        let mut current = self.current.lock();
        current.client = None;
        current.turn = current.turn.wrapping_add(1);
    }
}

/// Makes connections to other members; clones are cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dialer {
    /// Used for the URLs that ask for TLS.
    pub(crate) tls: Option<Arc<Followed<ClientTls>>>,
}

impl Dialer {
    /// Asks a peer URL what it knows about the cluster.
    ///
    /// # Errors
    /// [`Status`] of the call, deadline exceeded after `timeout`.
    pub(crate) async fn describe(
        &self,
        url: &str,
        request: DescribeRequest,
        timeout: Duration,
    ) -> Result<DescribeResponse, Status> {
        let mut client = PeerClient::new(self.channel(url)?);
        let mut request = tonic::Request::new(request);
        request.set_timeout(timeout);
        let answer = tokio::time::timeout(timeout, client.describe(request))
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no answer"))??;
        Ok(answer.into_inner())
    }

    /// A connection to a peer URL, made on first use.
    fn channel(&self, url: &str) -> Result<Channel, Status> {
        let target = Target::parse(url, false).map_err(Status::unavailable)?;
        if target.is_tls() && self.tls.is_none() {
            let message = format!("peer URL {url}: no --peer-cert-file is given");
            return Err(Status::unavailable(message));
        }
        let endpoint = Endpoint::from(target.origin().clone())
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let connector = Connector::new(target, self.tls.clone(), CONNECT_TIMEOUT)
            .keep_alive(KEEPALIVE_INTERVAL);
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}
