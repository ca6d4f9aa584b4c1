//! Starts servers on free ports of 127.0.0.1 and connects to them.

use std::net::TcpListener;
use std::time::Duration;

use conclave_proto::etcdserverpb::cluster_client::ClusterClient;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use conclave_server::config::{self, Invocation};
use conclave_server::{Running, start};
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server with its directory.
pub(crate) struct Server {
    pub(crate) running: Running,
    _directory: tempfile::TempDir,
}

/// Starts a cluster of one with these flags in addition and waits until it serves.
pub(crate) async fn server(flags: &[&str]) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut arguments = vec![
        format!("--data-dir={}", directory.path().display()),
        "--listen-client-urls=http://127.0.0.1:0".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:0".to_owned(),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ];
    arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
    let Invocation::Run(settings) = config::parse(arguments, []).unwrap() else {
        panic!("these flags start a server");
    };
    let running = start(*settings).await.unwrap();
    tokio::time::timeout(PATIENCE, running.ready()).await.expect("ready in time").unwrap();
    Server { running, _directory: directory }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    pub(crate) fn url(&self) -> String {
        self.running.client_urls()[0].clone()
    }

    pub(crate) fn channel(&self) -> Channel {
        Endpoint::try_from(self.url()).unwrap().connect_lazy()
    }

    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel())
    }

    pub(crate) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel())
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    pub(crate) fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel())
    }
}
