//! Servers on free ports of 127.0.0.1 with their client ports open, and clients of them.

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::cluster_client::ClusterClient;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use conclave_proto::v3electionpb::election_client::ElectionClient;
use conclave_proto::v3lockpb::lock_client::LockClient;
use conclave_server::config::{self, Invocation};
use conclave_server::{Running, start};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{eventually, flags_of, free_ports, within};

/// A server and its directory.
pub(crate) struct Server {
    pub(crate) running: Running,
    pub(crate) channel: Channel,
    _directory: tempfile::TempDir,
}

/// Starts a cluster of one with these flags in addition and waits until it serves.
pub(crate) async fn server(flags: &[&str]) -> Server {
    servers(1, flags).await.pop().unwrap()
}

/// Starts a cluster and waits until all members serve.
pub(crate) async fn servers(size: usize, flags: &[&str]) -> Vec<Server> {
    let plan = Plan::new(size, flags);
    let servers = futures::future::join_all((0..size).map(|i| plan.start(i))).await;
    for server in &servers {
        within("a server is ready", server.running.ready()).await.unwrap();
    }
    servers
}

/// Makes the member `to` the leader, asking again if somebody else was elected meanwhile; the answer that did it.
pub(crate) async fn hand_over(servers: &[Server], to: u64) -> Option<etcd::MoveLeaderResponse> {
    let handed = async {
        loop {
            let at = leader(servers).await;
            let node = servers[at].running.node();
            if node.member_id() == to {
                return None;
            }
            let request = etcd::MoveLeaderRequest { target_id: to };
            if let Ok(moved) = servers[at].maintenance().move_leader(request).await {
                return Some(moved.into_inner());
            }
        }
    };
    within("a hand-over", handed).await
}

/// Place of the one that leads.
pub(crate) async fn leader(servers: &[Server]) -> usize {
    let mut place = None;
    eventually("somebody leads", || {
        place = servers.iter().position(|server| server.running.node().is_leader());
        place.is_some()
    })
    .await;
    place.unwrap()
}

/// A cluster whose members are started one by one.
pub(crate) struct Plan {
    /// Where others reach each member.
    ports: Vec<u16>,
    flags: Vec<String>,
    /// Where a member listens instead, if something is in between.
    behind: Option<(usize, u16)>,
}

impl Plan {
    pub(crate) fn new(size: usize, flags: &[&str]) -> Self {
        Self { ports: free_ports(size), flags: flags_of(size, flags), behind: None }
    }

    /// The same cluster, for members with these flags in addition.
    pub(crate) fn with(&self, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|&flag| flag.to_owned());
        let flags = self.flags.iter().cloned().chain(flags).collect();
        Self { ports: self.ports.clone(), flags, behind: self.behind }
    }

    /// Puts a proxy in front of a member: returns the port that it is to listen on and the port that the
    /// member is going to have.
    pub(crate) fn hide(&mut self, i: usize) -> (u16, u16) {
        let port = free_ports(1)[0];
        self.behind = Some((i, port));
        (self.ports[i], port)
    }

    /// Starts a member; it may have to wait for others until it is ready.
    pub(crate) async fn start(&self, i: usize) -> Server {
        self.start_in(i, tempfile::tempdir().unwrap()).await
    }

    /// Stops a member and starts it again with what it has stored, on another client port.
    pub(crate) async fn restart(&self, i: usize, server: Server) -> Server {
        server.running.stop().await;
        self.start_in(i, server._directory).await
    }

    async fn start_in(&self, i: usize, directory: tempfile::TempDir) -> Server {
        let peer = |i: usize| format!("http://127.0.0.1:{}", self.ports[i]);
        let all: Vec<String> = (0..self.ports.len()).map(|i| format!("n{i}={}", peer(i))).collect();
        let behind = self.behind.filter(|(member, _)| *member == i);
        let listen = behind.map_or(peer(i), |(_, port)| format!("http://127.0.0.1:{port}"));
        let mut arguments = vec![
            format!("--name=n{i}"),
            format!("--data-dir={}", directory.path().display()),
            "--listen-client-urls=http://127.0.0.1:0".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:1".to_owned(),
            format!("--listen-peer-urls={listen}"),
            format!("--initial-advertise-peer-urls={}", peer(i)),
            format!("--initial-cluster={}", all.join(",")),
        ];
        arguments.extend(self.flags.iter().cloned());
        let Invocation::Run(settings) = config::parse(arguments, []).unwrap() else {
            panic!("these flags start a server");
        };
        let running = start(*settings).await.unwrap();
        let endpoint = Endpoint::try_from(running.client_urls()[0].clone()).unwrap();
        Server { running, channel: endpoint.connect_lazy(), _directory: directory }
    }
}

impl Server {
    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(crate) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    pub(crate) fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    pub(crate) fn lock(&self) -> LockClient<Channel> {
        LockClient::new(self.channel.clone())
    }

    pub(crate) fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel.clone())
    }

    /// Grants a lease of `ttl` seconds.
    pub(crate) async fn grant(&self, id: i64, ttl: i64) {
        self.lease().lease_grant(etcd::LeaseGrantRequest { id, ttl }).await.unwrap();
    }

    /// Puts and returns the revision.
    pub(crate) async fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self.kv().put(put(key, value)).await.unwrap().into_inner();
        answer.header.unwrap().revision
    }

    pub(crate) async fn range(&self, request: etcd::RangeRequest) -> etcd::RangeResponse {
        self.kv().range(request).await.unwrap().into_inner()
    }

    pub(crate) async fn txn(&self, request: etcd::TxnRequest) -> etcd::TxnResponse {
        self.kv().txn(request).await.unwrap().into_inner()
    }
}

/// Code and text of a refusal.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (tonic::Code, String) {
    let status = answer.expect_err("must be refused");
    (status.code(), status.message().to_owned())
}

pub(crate) fn put(key: &str, value: &str) -> etcd::PutRequest {
    etcd::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

pub(crate) fn delete(key: &str, end: &str) -> etcd::DeleteRangeRequest {
    etcd::DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..Default::default()
    }
}

pub(crate) fn range(key: &str, end: &str) -> etcd::RangeRequest {
    etcd::RangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..Default::default()
    }
}

pub(crate) fn op(request: impl Into<Op>) -> etcd::RequestOp {
    etcd::RequestOp { request: Some(request.into().0) }
}

/// An operation of a transaction.
pub(crate) struct Op(etcd::request_op::Request);

impl From<etcd::PutRequest> for Op {
    fn from(request: etcd::PutRequest) -> Self {
        Op(etcd::request_op::Request::RequestPut(request))
    }
}

impl From<etcd::RangeRequest> for Op {
    fn from(request: etcd::RangeRequest) -> Self {
        Op(etcd::request_op::Request::RequestRange(request))
    }
}

impl From<etcd::DeleteRangeRequest> for Op {
    fn from(request: etcd::DeleteRangeRequest) -> Self {
        Op(etcd::request_op::Request::RequestDeleteRange(request))
    }
}

impl From<etcd::TxnRequest> for Op {
    fn from(request: etcd::TxnRequest) -> Self {
        Op(etcd::request_op::Request::RequestTxn(request))
    }
}

/// A transaction without conditions.
pub(crate) fn then(success: Vec<etcd::RequestOp>) -> etcd::TxnRequest {
    etcd::TxnRequest { success, ..Default::default() }
}
