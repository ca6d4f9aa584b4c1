//! Who may talk to whom, and why not.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use conclave_transport::{
    Accepted, Allowed, Client, Connector, Pair, Policy, Reason, Server, Socket, Target,
    TlsAcceptor, Verification, Version,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::{Authority, Files, Wish};
use crate::files::server;

/// Far longer than a handshake takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An authority with its files, and one that nobody trusts.
struct Stage {
    dir: TempDir,
    ca: Authority,
    other: Authority,
}

impl Stage {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (ca, other) = (Authority::new("ca"), Authority::new("other"));
        ca.write(&dir.path().join("ca.pem"));
        other.write(&dir.path().join("other.pem"));
        Self { dir, ca, other }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A port that asks for certificates.
    fn asking(&self) -> Server {
        let files = self.ca.issue(Wish::default(), self.path(), "server");
        Server { trusted_ca: Some(self.path().join("ca.pem")), ..server(&files) }
    }

    fn client(&self, identity: Option<Files>) -> Client {
        Client {
            verification: Verification::Ca(self.path().join("ca.pem")),
            identity: identity.map(|files| Pair { cert: files.cert, key: files.key }),
            ..Client::default()
        }
    }

    fn alice(&self) -> Client {
        let wish = Wish { common_name: "alice", ..Wish::default() };
        self.client(Some(self.ca.issue(wish, self.path(), "alice")))
    }
}

/// What both sides make of a handshake and one byte each way.
async fn meet(server: Server, client: Client) -> (Result<(), Reason>, Result<(), Reason>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = Target::parse(&format!("https://127.0.0.1:{}", address.port()), false).unwrap();
    let client = Arc::new(client.follow().unwrap());
    let connector = Connector::new(target, Some(client), PATIENCE);
    let calling = async {
        let mut stream = connector.connect().await?;
        stream.write_all(b"?").await?;
        stream.read_u8().await
    };
    let (accepted, called) = tokio::join!(answer(&listener, server), calling);
    let reason = |error: &io::Error| Reason::of(error);
    (accepted.map_err(|error| reason(&error)), called.map(drop).map_err(|error| reason(&error)))
}

/// Accepts one connection, shakes hands and answers one byte.
async fn answer(listener: &TcpListener, server: Server) -> io::Result<()> {
    let server = server.follow().unwrap();
    let acceptor = TlsAcceptor::from(server.current().config.clone());
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream: Accepted = acceptor.accept(Socket::Tcp(stream)).await?;
    assert_eq!(stream.read_u8().await?, b'?');
    stream.write_all(b"!").await?;
    stream.shutdown().await
}

#[tokio::test]
async fn those_whom_the_authority_signed_talk() {
    let stage = Stage::new();
    assert_eq!(meet(stage.asking(), stage.alice()).await, (Ok(()), Ok(())));
    let open = Server { trusted_ca: None, ..stage.asking() };
    assert_eq!(meet(open, stage.client(None)).await, (Ok(()), Ok(())));
}

#[tokio::test]
async fn a_server_refuses_by_what_is_wrong() {
    let stage = Stage::new();
    let stranger = stage.other.issue(Wish::default(), stage.path(), "stranger");
    let crl = stage.ca.revoke(&[7], &stage.path().join("crl.pem"));
    let listed = || Server { revocations: Some(crl.clone()), ..stage.asking() };
    let revoked = stage.ca.issue(Wish { serial: 7, ..Wish::default() }, stage.path(), "revoked");
    let named = |common_names: &[&str], hostnames: &[&str]| Server {
        allowed: Allowed {
            common_names: common_names.iter().map(|&name| name.to_owned()).collect(),
            hostnames: hostnames.iter().map(|&name| name.to_owned()).collect(),
        },
        ..stage.asking()
    };
    for (what, server, client, expected) in [
        ("no certificate", stage.asking(), stage.client(None), Err(Reason::NoCertificate)),
        ("a stranger", stage.asking(), stage.client(Some(stranger)), Err(Reason::UnknownAuthority)),
        ("revoked", listed(), stage.client(Some(revoked)), Err(Reason::Revoked)),
        ("not revoked", listed(), stage.alice(), Ok(())),
        ("another name", named(&["bob"], &[]), stage.alice(), Err(Reason::Name)),
        ("one of the names", named(&["bob", "alice"], &[]), stage.alice(), Ok(())),
        ("another host", named(&[], &["example.com"]), stage.alice(), Err(Reason::Name)),
        ("the host", named(&[], &["example.com", "localhost"]), stage.alice(), Ok(())),
    ] {
        let (accepted, called) = meet(server, client).await;
        assert_eq!(accepted, expected, "{what}");
        assert_eq!(called.is_ok(), expected.is_ok(), "{what}: {called:?}");
    }
}

#[tokio::test]
async fn a_client_refuses_by_what_is_wrong() {
    let stage = Stage::new();
    let open = |files: &Files| server(files);
    let good = stage.ca.issue(Wish::default(), stage.path(), "good");
    let wish = Wish { hosts: &["example.com"], serial: 9, ..Wish::default() };
    let elsewhere = stage.ca.issue(wish, stage.path(), "elsewhere");
    let fake = stage.other.issue(Wish::default(), stage.path(), "fake");
    let crl = stage.ca.revoke(&[9], &stage.path().join("crl.pem"));
    let client = || stage.client(None);
    let asks_for = |name: &str| Client { server_name: Some(name.to_owned()), ..stage.client(None) };
    let listed = || Client { revocations: Some(crl.clone()), ..asks_for("example.com") };
    let careless = || Client { verification: Verification::Skipped, ..Client::default() };
    for (what, server, client, expected) in [
        ("signed by another", open(&fake), client(), Err(Reason::UnknownAuthority)),
        ("of another host", open(&elsewhere), client(), Err(Reason::Name)),
        ("asked for by its name", open(&elsewhere), asks_for("example.com"), Ok(())),
        ("revoked", open(&elsewhere), listed(), Err(Reason::Revoked)),
        ("asked for by another name", open(&good), asks_for("example.com"), Err(Reason::Name)),
        ("not looked at", open(&fake), careless(), Ok(())),
    ] {
        let (accepted, called) = meet(server, client).await;
        assert_eq!(called, expected, "{what}");
        assert_eq!(accepted.is_ok(), expected.is_ok(), "{what}: {accepted:?}");
    }
}

/// As in Go: a certificate that is its own authority is good where it is trusted, for its names and in its time.
#[tokio::test]
async fn who_is_trusted_itself_needs_nobody_who_signed() {
    let stage = Stage::new();
    let wish = Wish { common_name: "alone", ..Wish::default() };
    let alone = Authority::alone(wish, stage.path(), "alone");
    let same_name = Authority::alone(wish, stage.path(), "same-name");
    let elsewhere = Wish { hosts: &["example.com"], ..wish };
    let elsewhere = Authority::alone(elsewhere, stage.path(), "elsewhere");
    let old = Authority::alone(Wish { days: (-3, -1), ..wish }, stage.path(), "old");
    let crl = stage.ca.revoke(&[7], &stage.path().join("crl.pem"));

    let client = |trusted: &Files, shown: &Files| Client {
        verification: Verification::Ca(trusted.cert.clone()),
        identity: Some(Pair { cert: shown.cert.clone(), key: shown.key.clone() }),
        ..Client::default()
    };
    let asking = |trusted: &Files, shown: &Files| Server {
        trusted_ca: Some(trusted.cert.clone()),
        ..server(shown)
    };
    let mut listed = asking(&alone, &alone);
    listed.revocations = Some(crl);
    let good = (Ok(()), Ok(()));
    assert_eq!(meet(asking(&alone, &alone), client(&alone, &alone)).await, good);
    for (what, server, client) in [
        ("another of its name", asking(&alone, &alone), client(&alone, &same_name)),
        ("with a list", listed, client(&alone, &alone)),
    ] {
        let (accepted, _) = meet(server, client).await;
        assert!(accepted.is_err(), "{what}: {accepted:?}");
    }
    let (_, called) = meet(server(&same_name), client(&alone, &alone)).await;
    assert!(called.is_err(), "another of its name: {called:?}");
    let (_, called) = meet(server(&elsewhere), client(&elsewhere, &alone)).await;
    assert_eq!(called, Err(Reason::Name));
    // A server does not start with what is out of its time, and a client does not show it.
    asking(&old, &old).follow().unwrap_err();
    client(&old, &old).follow().unwrap_err();
}

/// An authority that may sign for one domain only signs for no other.
#[tokio::test]
async fn constraints_of_an_authority_bind_what_it_signs() {
    let stage = Stage::new();
    let bound = Authority::of_domain("bound", "example.com");
    let trusted = bound.write(&stage.path().join("bound.pem"));
    let asks_for = |name: &str| Client {
        server_name: Some(name.to_owned()),
        verification: Verification::Ca(trusted.clone()),
        ..stage.client(None)
    };
    for (host, is_trusted) in [("a.example.com", true), ("a.example.org", false)] {
        let wish = Wish { hosts: &[host], ..Wish::default() };
        let files = bound.issue(wish, stage.path(), host);
        let (_, called) = meet(server(&files), asks_for(host)).await;
        assert_eq!(called.is_ok(), is_trusted, "{host}: {called:?}");
    }
}

#[tokio::test]
async fn versions_must_meet() {
    let stage = Stage::new();
    let (old, _) = Policy::new(None, Some(Version::Tls12), &[]).unwrap();
    let (new, _) = Policy::new(Some(Version::Tls13), None, &[]).unwrap();
    let server = |policy: &Policy| Server { policy: policy.clone(), ..stage.asking() };
    let client = |policy: &Policy| Client { policy: policy.clone(), ..stage.alice() };
    for policy in [&old, &new] {
        assert_eq!(meet(server(policy), client(policy)).await, (Ok(()), Ok(())));
    }
    assert_eq!(meet(server(&new), client(&old)).await.0, Err(Reason::Protocol));
    assert_eq!(meet(server(&old), client(&new)).await.0, Err(Reason::Protocol));
}

#[tokio::test]
async fn what_is_no_tls_is_told_apart_from_silence() {
    let stage = Stage::new();
    for (bytes, expected) in
        [(&b"GET / HTTP/1.1\r\n\r\n"[..], Reason::Protocol), (b"", Reason::Closed)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let error = answer(&listener, stage.asking()).await.unwrap_err();
        assert_eq!(Reason::of(&error), expected);
    }
}
