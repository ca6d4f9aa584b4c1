//! A network between members that can be cut, each way by itself, without rights of an administrator.
//!
//! ```text
//!  n0 ──► proxy of n1 ──► n1      listens on its own peer port, and tells the others the port of its proxy
//!         (who connects? may n0 speak to n1, may n1 answer n0?)
//! ```
//! As in a real partition nobody is told: what is sent on a way that is cut is held back and nothing answers. New
//! connections are accepted, as far as the system sees, and stay as silent. Clients are not concerned: they
//! reach every member by its client port.

pub mod cut;
mod owner;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use conclave_benches::cluster::{Cluster, Pids};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use self::cut::Way;

/// Connections through one proxy; more wait in the system's queue. Members dial anew every few seconds, so that a long
/// partition leaves many behind.
const CONNECTIONS_MAX: usize = 512;
/// What a proxy holds back of one way of one connection; the sender's system keeps the rest.
const HELD_BYTES_MAX: usize = 16 * 1024;
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// What passes now.
#[derive(Debug, Default)]
struct Rules {
    cut: BTreeSet<Way>,
    /// Counts the times at which all connections that stood still broke.
    breaks: u64,
}

/// Proxies before the peer ports of all members; gone with this.
#[derive(Debug)]
pub struct Network {
    rules: Arc<watch::Sender<Rules>>,
    ports: Vec<u16>,
    _proxies: JoinSet<()>,
}

impl Network {
    /// Puts proxies between the nodes of a cluster that was not started yet.
    ///
    /// # Errors
    /// If there are no ports.
    pub async fn between(cluster: &mut Cluster) -> Result<Self> {
        let ports: Vec<u16> = cluster.nodes().iter().map(|node| node.peer_port()).collect();
        let network = Self::before(&ports, &cluster.started()).await?;
        cluster.advertise(network.ports());
        Ok(network)
    }

    /// Puts proxies before these ports of the loopback address, each that of the member whose process `members` has
    /// at the same place.
    ///
    /// # Errors
    /// If there are no ports.
    pub async fn before(targets: &[u16], members: &Pids) -> Result<Self> {
        let rules = Arc::new(watch::Sender::default());
        let (mut ports, mut proxies) = (Vec::new(), JoinSet::new());
        for (member, &target) in targets.iter().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port")?;
            let port = listener.local_addr()?.port();
            ports.push(port);
            let proxy =
                Proxy { member, port, target, members: members.clone(), rules: Arc::clone(&rules) };
            proxies.spawn(Arc::new(proxy).run(listener));
        }
        Ok(Self { rules, ports, _proxies: proxies })
    }

    /// Where the members are to be found.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// From now on nothing passes on these ways; on others everything does.
    pub fn cut(&self, ways: Vec<Way>) {
        self.rules.send_modify(|rules| rules.cut = ways.into_iter().collect());
    }

    /// Everything passes again, what was held back first: as TCP does it after a short partition.
    pub fn heal(&self) {
        self.cut(Vec::new());
    }

    /// Everything passes again, and connections on which something was held back break: as after a long partition.
    pub fn heal_broken(&self) {
        self.rules.send_modify(|rules| {
            rules.cut.clear();
            rules.breaks += 1;
        });
    }
}

/// Stands before one member.
struct Proxy {
    member: usize,
    /// Where it listens.
    port: u16,
    /// Where its member does.
    target: u16,
    members: Pids,
    rules: Arc<watch::Sender<Rules>>,
}

impl Proxy {
    async fn run(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            let Ok((stream, address)) = listener.accept().await else {
                // It concerns one connection, or there are too many open files, which goes by.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            let proxy = Arc::clone(&self);
            connections.spawn(async move {
                // Whatever ends it, both ends see the connection end.
                proxy.carry(stream, address.port()).await.ok();
                drop(slot);
            });
        }
    }

    async fn carry(&self, near: TcpStream, from_port: u16) -> io::Result<()> {
        let (pids, port) = (self.members.all(), self.port);
        let owner = tokio::task::spawn_blocking(move || owner::owner(&pids, from_port, port));
        // Nobody's: closed already, or of a process that is not known yet, which dials again.
        let Some(from) = owner.await.map_err(io::Error::other)? else { return Ok(()) };
        let mut forth = Passage::new(self, (from, self.member));
        let mut back = Passage::new(self, (self.member, from));
        let far = match TcpStream::connect((Ipv4Addr::LOCALHOST, self.target)).await {
            Ok(far) => far,
            Err(_) => return forth.opens().await.and(back.opens().await),
        };
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let forth = forth.carry(near_in, far_out);
        let back = back.carry(far_in, near_out);
        tokio::try_join!(forth, back).map(|_| ())
    }
}

/// One way of one connection.
struct Passage {
    way: Way,
    rules: watch::Receiver<Rules>,
}

impl Passage {
    fn new(proxy: &Proxy, way: Way) -> Self {
        Self { way, rules: proxy.rules.subscribe() }
    }

    /// Waits until the way is open; an error if the connection broke meanwhile.
    async fn opens(&mut self) -> io::Result<()> {
        let before = self.rules.borrow().breaks;
        let way = self.way;
        let rules = self.rules.wait_for(|rules| !rules.cut.contains(&way)).await;
        let is_whole = rules.is_ok_and(|rules| rules.breaks == before);
        is_whole.then_some(()).ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }

    /// Carries bytes, and their end, as long as the way is open.
    async fn carry(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut held = vec![0; HELD_BYTES_MAX];
        loop {
            let read = from.read(&mut held).await;
            // That a connection ended or broke is news as well.
            self.opens().await?;
            let count = read?;
            if count == 0 {
                return to.shutdown().await;
            }
            to.write_all(&held[..count]).await?;
        }
    }
}
