//! Revoked certificates, at every place where a member lets somebody in: the list of one port must not be forgotten at another.

use std::path::PathBuf;

use conclave_testing::authority::{Authority, Files, Wish};
use conclave_transport::{self as transport, Connector, Pair, Target, Verification};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{DEADLINE, free_ports, within};
use crate::support::server;

/// Serial numbers of the certificates that are revoked at once and later.
const BOB: u64 = 77;
const EVE: u64 = 78;
/// How HTTP/2 begins: every listener answers it with its settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

struct Stage {
    dir: TempDir,
    ca: Authority,
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, name: &str, serial: u64) -> Files {
        self.ca.issue(Wish { common_name: name, serial, ..Wish::default() }, self.dir.path(), name)
    }

    /// Mutual TLS on everything that is listened on, with one list for each port.
    fn flags(&self, places: &[String], plain: u16) -> Vec<String> {
        let own = self.issue("server", 1);
        let mut flags = vec![
            format!("--listen-client-urls={},{}", places[0], places[1]),
            format!("--advertise-client-urls={}", places[0]),
            format!("--listen-client-http-urls={}", places[2]),
            format!("--listen-metrics-urls={},http://127.0.0.1:{plain}", places[3]),
            format!("--listen-peer-urls={}", places[4]),
            format!("--initial-advertise-peer-urls={}", places[4]),
            format!("--initial-cluster=n0={}", places[4]),
        ];
        for (port, list) in [("", "client-crl-file"), ("peer-", "peer-crl-file")] {
            flags.extend([
                format!("--{port}cert-file={}", own.cert.display()),
                format!("--{port}key-file={}", own.key.display()),
                format!("--{port}trusted-ca-file={}", self.path("ca.pem").display()),
                format!("--{port}client-cert-auth"),
                format!("--{list}={}", self.path(list).display()),
            ]);
        }
        flags
    }

    fn revoke(&self, serials: &[u64]) {
        for list in ["client-crl-file", "peer-crl-file"] {
            self.ca.revoke(serials, &self.path(list));
        }
    }

    /// Whether a place answers somebody.
    async fn answers(&self, place: &str, own: &Files) -> bool {
        let tls = transport::Client {
            verification: Verification::Ca(self.path("ca.pem")),
            identity: Some(Pair { cert: own.cert.clone(), key: own.key.clone() }),
            server_name: Some("127.0.0.1".to_owned()),
            ..Default::default()
        };
        let target = Target::parse(place, true).unwrap();
        let connector = Connector::new(target, Some(tls.follow().unwrap().into()), DEADLINE);
        let answer = async {
            // By TLS 1.3 a client believes that it is in before the server has looked at it.
            let Ok(mut stream) = connector.connect().await else { return false };
            let mut first = [0];
            stream.write_all(PREFACE).await.is_ok() && stream.read_exact(&mut first).await.is_ok()
        };
        within(place, answer).await
    }
}

/// Handshakes of a port that failed because of the list.
async fn refused(plain: u16, port: &str) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", plain)).await.unwrap();
    let get = "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream.write_all(get.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("metrics", stream.read_to_string(&mut answer)).await.unwrap();
    let name = "conclave_tls_handshake_failures_total";
    let sample = format!("{name}{{port=\"{port}\",reason=\"revoked\"}} ");
    let count = answer.lines().find_map(|line| line.strip_prefix(&sample));
    count.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_is_let_in_nowhere() {
    let stage = Stage { dir: TempDir::new().unwrap(), ca: Authority::new("ca") };
    stage.ca.write(&stage.path("ca.pem"));
    stage.revoke(&[BOB]);
    let ports = free_ports(5);
    let https = |i: usize| format!("https://127.0.0.1:{}", ports[i]);
    // gRPC and all else by TCP and by a socket, all but gRPC, the pages about this member, and the members' port.
    let socket = format!("unixs://{}", stage.path("socket").display());
    let places = [https(0), socket, https(1), https(2), https(3)];
    let port_of = |i: usize| if i == 4 { "peer" } else { "client" };
    let plain = ports[4];
    let flags = stage.flags(&places, plain);
    let _server = server(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let [alice, bob, eve] =
        [("alice", 2), ("bob", BOB), ("eve", EVE)].map(|(n, s)| stage.issue(n, s));
    for (i, place) in places.iter().enumerate() {
        assert!(stage.answers(place, &alice).await, "{place}");
        assert!(stage.answers(place, &eve).await, "{place}");
        let before = refused(plain, port_of(i)).await;
        assert!(!stage.answers(place, &bob).await, "{place} lets in who is revoked");
        let counted = async { while refused(plain, port_of(i)).await != before + 1 {} };
        within("the refusal is counted", counted).await;
    }
    stage.revoke(&[BOB, EVE]);
    for place in &places {
        within(place, async { while stage.answers(place, &eve).await {} }).await;
        assert!(stage.answers(place, &alice).await, "{place}");
        assert!(!stage.answers(place, &bob).await, "{place}");
    }
}
