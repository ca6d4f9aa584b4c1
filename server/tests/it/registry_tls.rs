//! Checks by TLS: whom a member believes, as its flag says, and what is told of an instance.

use conclave_proto::v1;
use conclave_server::config::{self, Invocation};
use conclave_server::start;
use conclave_state_machine::registry::record::{Check, CheckKind, Record};
use conclave_testing::authority::{Authority, Files, Wish};
use conclave_transport::{self as transport, Allowed, Pair, Policy, Socket, TlsAcceptor};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tonic::Code;

use crate::native_lock::{client, session};
use crate::registry_support::{Watched, register, registry, request};
use crate::support::{refused, server};

/// An instance that answers by TLS.
async fn instance(Files { cert, key }: Files) -> String {
    let tls = transport::Server {
        identity: Pair { cert, key },
        trusted_ca: None,
        revocations: None,
        allowed: Allowed::default(),
        policy: Policy::default(),
        protocols: &[b"http/1.1"],
    };
    let acceptor = TlsAcceptor::from(tls.follow().unwrap().current().config.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let accepted = acceptor.accept(Socket::Tcp(stream));
            tokio::spawn(async move {
                // Who believes nobody here ends the handshake.
                let Ok(mut stream) = accepted.await else { return };
                let mut request = [0; 512];
                if stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap_or_default();
                }
            });
        }
    });
    address
}

/// What each check found.
fn found(watched: &Watched) -> Vec<(&str, &str)> {
    let checks = watched.known.get("a").map(|known| known.checks.iter());
    checks.into_iter().flatten().map(|check| (&*check.name, &*check.output)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_well_if_its_certificate_is_believed() {
    let (dir, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    let trusted = ca.write(&dir.path().join("ca.pem"));
    let flag = format!("--registry-checks-trusted-ca-file={}", trusted.display());
    let servers = [server(&[&flag]).await];
    let (server, client) = (&servers[0], client(&servers));
    let own = session(&client, "one").await;
    let wish = Wish { hosts: &["127.0.0.1", "api.example"], ..Wish::default() };
    let address = instance(ca.issue(wish, dir.path(), "api")).await;
    let mut record = Record { id: "a".to_owned(), ..Record::new(address) };
    let named = |tls_server_name: &str| Check {
        kind: CheckKind::Http,
        tls: true,
        tls_server_name: tls_server_name.to_owned(),
        interval_ms: 500,
        timeout_ms: 30_000,
        failures: 1,
        ..Check::default()
    };
    for (name, server_name) in [("address", ""), ("name", "api.example"), ("other", "b.example")] {
        record.details.checks.insert(name.to_owned(), named(server_name));
    }
    let mut watched = Watched::open(server, 0).await;
    register(server, own.id(), &record).await;
    let good = [("address", "HTTP 200 OK"), ("name", "HTTP 200 OK")];
    let wrong = ("other", "TLS: the certificate is not valid for b.example");
    watched.until(|watched| found(watched) == [good[0], good[1], wrong]).await;
    assert_eq!(watched.known["a"].health(), v1::InstanceHealth::Critical);
    record.details.checks.remove("other");
    register(server, own.id(), &record).await;
    watched.until(|watched| watched.known["a"].healthy).await;
    assert_eq!(found(&watched), good);

    let check = Check { tls: false, ..named("api.example") };
    record.details.checks.insert("clear".to_owned(), check);
    let (code, text) = refused(registry(server).register(request(own.id(), &record)).await);
    let why = "conclave: tls_server_name and tls_skip_verify of a check need its tls";
    assert_eq!((code, text.as_str()), (Code::InvalidArgument, why));
}

#[tokio::test]
async fn authorities_that_cannot_be_read_end_the_start() {
    let dir = TempDir::new().unwrap();
    let arguments = [
        format!("--data-dir={}", dir.path().join("data").display()),
        "--listen-client-urls=http://127.0.0.1:0".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:1".to_owned(),
        "--registry-checks-trusted-ca-file=/no/such/ca.pem".to_owned(),
    ];
    let Invocation::Run(settings) = config::parse(arguments, []).unwrap() else {
        panic!("these flags start a server");
    };
    let Err(error) = start(*settings).await else { panic!("it must not start") };
    let why = "--registry-checks-trusted-ca-file: cannot read the CA file /no/such/ca.pem: ";
    assert!(error.to_string().starts_with(why), "{error}");
    assert!(!dir.path().join("data").exists(), "nothing was begun");
}
