//! The handshake of a check by TLS: whom it believes, and what is said of one that failed.
//!
//! What the other side shows or says goes nowhere: it is told which of a few things was wrong. At most 64 KiB of a
//! handshake are held, and nobody else is asked about a certificate.

use std::io;
use std::sync::Arc;

use conclave_state_machine::registry::record::{Check, CheckKind};
use conclave_transport::{
    Client, ClientTls, Error, Followed, Reason, Socket, Stream, Verification,
};
use tokio::sync::OnceCell;

use super::Failure;
use crate::sparse::Sparse;

/// What is to be spoken, by kind of check.
const HTTP: &[&[u8]] = &[b"http/1.1"];
const GRPC: &[&[u8]] = &[b"h2"];

/// Whom checks by TLS believe.
pub(crate) struct Trust {
    /// Whom an authority signed. Those of the system are read when the first check needs them.
    signed: OnceCell<Followed<ClientTls>>,
    /// Anyone, where a check asks for that.
    anyone: OnceCell<Followed<ClientTls>>,
    lines: Sparse,
}

impl Trust {
    /// Believes whom these authorities signed; without them, whom those of the system signed.
    pub(crate) fn new(authorities: Option<Followed<ClientTls>>) -> Self {
        Self {
            signed: OnceCell::new_with(authorities),
            anyone: OnceCell::new(),
            lines: Sparse::default(),
        }
    }

    /// For a handshake of a check; `None` if there are no authorities here to verify by.
    async fn of(&self, check: &Check) -> Option<Arc<ClientTls>> {
        let (believed, verification) = match check.tls_skip_verify {
            true => (&self.anyone, Verification::Skipped),
            false => (&self.signed, Verification::System),
        };
        let client = Client { verification, ..Client::default() };
        let read = async || {
            let read = tokio::task::spawn_blocking(move || client.follow()).await;
            read.unwrap_or_else(|error| Err(Error::Setting(error.to_string())))
        };
        match believed.get_or_try_init(read).await {
            Ok(tls) => {
                // If that fails, which its observer hears, what was read before still does.
                tls.look();
                Some(tls.current())
            }
            Err(error) => {
                if let Some(unsaid) = self.lines.turn() {
                    let flag = "--registry-checks-trusted-ca-file";
                    tracing::warn!(%error, unsaid, flag, "a check by TLS could not be made");
                }
                None
            }
        }
    }
}

/// Shakes hands for a check of what is at `place`.
pub(super) async fn shake(
    check: &Check,
    place: &str,
    socket: Socket,
    trust: &Trust,
) -> Result<Stream, Failure> {
    let tls = trust.of(check).await.ok_or(Failure::Member)?;
    let protocols = match check.kind {
        CheckKind::Tcp => &[],
        CheckKind::Http => HTTP,
        CheckKind::Grpc => GRPC,
    };
    let name = name(check, place);
    let shaken = tls.shake(name, protocols, socket).await;
    shaken.map_err(|error| Failure::Instance(failed(&error, name)))
}

/// Whom the certificate must be for.
fn name<'a>(check: &'a Check, place: &'a str) -> &'a str {
    if !check.tls_server_name.is_empty() {
        return &check.tls_server_name;
    }
    let host = place.rsplit_once(':').map_or(place, |(host, _port)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// What is asked for when the handshake is done, as `host:port`: the name of the certificate too, because many who serve
/// several hosts refuse a request for another one.
pub(super) fn host(check: &Check, place: &str) -> String {
    let port = place.rsplit_once(':').map_or("", |(_host, port)| port);
    match check.tls_server_name.as_str() {
        "" => place.to_owned(),
        address if address.contains(':') => format!("[{address}]:{port}"),
        name => format!("{name}:{port}"),
    }
}

fn failed(error: &io::Error, name: &str) -> String {
    match Reason::of(error) {
        _ if error.kind() == io::ErrorKind::InvalidInput => {
            format!("TLS: no certificate can be for {name:?}")
        }
        Reason::Name => format!("TLS: the certificate is not valid for {name}"),
        reason => said(reason).to_owned(),
    }
}

/// What is said of a connection that ended by TLS.
pub(super) fn said(reason: Reason) -> &'static str {
    match reason {
        Reason::UnknownAuthority => {
            "TLS: the certificate is signed by no authority that is believed here \
             (--registry-checks-trusted-ca-file)"
        }
        Reason::Name => "TLS: the certificate is not valid for the name",
        Reason::Expired => "TLS: the certificate is expired or not valid yet",
        Reason::Revoked | Reason::NoCertificate | Reason::BadCertificate => {
            "TLS: the certificate cannot be used, or signed itself and is not believed here \
             (--registry-checks-trusted-ca-file)"
        }
        Reason::Refused => "TLS: refused by the instance; checks have no certificate of their own",
        Reason::Protocol => {
            "TLS: the instance speaks no TLS, or no version, cipher suite or protocol that checks do"
        }
        Reason::Closed | Reason::Timeout | Reason::Crowded => "TLS: the handshake was broken off",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use conclave_state_machine::registry::record::Health;
    use conclave_testing::authority::{Authority, Files, Wish};
    use conclave_transport::{Accepted, Allowed, Pair, Policy, Server, TlsAcceptor};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::service::TowerToHyperService;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::super::tests::hostile;
    use super::super::{Finding, Reach, probe};
    use super::*;

    const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
    /// Long enough for a machine that is busy.
    const PATIENCE_MS: u64 = 30_000;
    const UNKNOWN: &str = "TLS: the certificate is signed by no authority that is believed here \
                           (--registry-checks-trusted-ca-file)";

    /// An authority that checks believe, and one that they do not.
    struct Stage {
        dir: TempDir,
        ca: Authority,
        other: Authority,
        trust: Trust,
    }

    fn believing(ca: &Path) -> Trust {
        let verification = Verification::Ca(ca.to_owned());
        let client = Client { verification, ..Client::default() };
        Trust::new(Some(client.follow().unwrap()))
    }

    impl Stage {
        fn new() -> Self {
            let dir = TempDir::new().unwrap();
            let (ca, other) = (Authority::new("ca"), Authority::new("other"));
            let trust = believing(&ca.write(&dir.path().join("ca.pem")));
            Self { dir, ca, other, trust }
        }

        fn signed(&self, wish: Wish<'_>) -> Server {
            server(self.ca.issue(wish, self.dir.path(), wish.hosts[0]))
        }

        /// Of an authority that nobody believes.
        fn fake(&self) -> Server {
            server(self.other.issue(Wish::default(), self.dir.path(), "fake"))
        }

        fn good(&self) -> Server {
            self.signed(Wish::default())
        }

        /// Makes a check of one who answers once.
        async fn check(&self, check: Check, server: Server) -> Finding {
            let (address, answered) = instance(server).await;
            let check = Check { tls: true, timeout_ms: PATIENCE_MS, ..check };
            let found = probe(&check, &address, Reach::Local, &self.trust).await.unwrap();
            timeout(Duration::from_secs(60), answered).await.unwrap().unwrap();
            found
        }
    }

    fn server(Files { cert, key }: Files) -> Server {
        Server {
            identity: Pair { cert, key },
            trusted_ca: None,
            revocations: None,
            allowed: Allowed::default(),
            policy: Policy::default(),
            protocols: BOTH,
        }
    }

    /// Takes one connection and answers by what was agreed on, until it is closed.
    async fn instance(server: Server) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = server.follow().unwrap().current().config.clone();
        let answered = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let accept = TlsAcceptor::from(tls).accept(Socket::Tcp(stream));
            match accept.into_fallible().await {
                Ok(stream) => answer(stream).await,
                // Open until the check has read why.
                Err((_refused, mut stream)) => drain(&mut stream).await,
            }
        });
        (address, answered)
    }

    async fn drain(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
        let mut bytes = [0; 1_024];
        while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    }

    async fn answer(mut stream: Accepted) {
        let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        match protocol.as_deref() {
            Some(b"h2") => {
                let (_reporter, health) = tonic_health::server::health_reporter();
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let service = TowerToHyperService::new(health);
                // Ends with the check, however that closes it.
                http.serve_connection(TokioIo::new(stream), service).await.unwrap_or_default();
            }
            Some(_http) => {
                let mut request = [0; 1_024];
                let count = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..count]).to_ascii_lowercase();
                let is_known = request.contains("\r\nhost: 127.0.0.1:");
                let status = if is_known { "204 No Content" } else { "421 Misdirected Request" };
                let answer = format!("HTTP/1.1 {status}\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                drain(&mut stream).await;
            }
            None => drain(&mut stream).await,
        }
    }

    fn of(kind: CheckKind) -> Check {
        Check { kind, ..Check::default() }
    }

    fn named(kind: CheckKind, name: &str) -> Check {
        Check { tls_server_name: name.to_owned(), ..of(kind) }
    }

    fn careless(kind: CheckKind) -> Check {
        Check { tls_skip_verify: true, ..of(kind) }
    }

    #[tokio::test]
    async fn all_kinds_of_checks_are_made_by_tls() {
        let stage = Stage::new();
        for (kind, output) in [
            (CheckKind::Tcp, "connected by TLS"),
            (CheckKind::Http, "HTTP 204 No Content"),
            (CheckKind::Grpc, "SERVING"),
        ] {
            let found = stage.check(of(kind), stage.good()).await;
            assert_eq!(found, Finding::new(Health::Passing, output), "{kind:?}");
        }
    }

    #[tokio::test]
    async fn the_certificate_must_be_for_the_name() {
        let stage = Stage::new();
        let of_host = |hosts| stage.signed(Wish { hosts, ..Wish::default() });
        let elsewhere = || of_host(&["api.example"]);
        let (tcp, http) = (CheckKind::Tcp, CheckKind::Http);
        for (check, server, output) in [
            (of(tcp), elsewhere(), "TLS: the certificate is not valid for 127.0.0.1"),
            (named(tcp, "api.example"), elsewhere(), "connected by TLS"),
            (
                named(tcp, "b.example"),
                elsewhere(),
                "TLS: the certificate is not valid for b.example",
            ),
            (named(tcp, "-"), elsewhere(), "TLS: no certificate can be for \"-\""),
            (careless(tcp), elsewhere(), "connected by TLS"),
            (named(http, "127.0.0.1"), stage.good(), "HTTP 204 No Content"),
            // It serves no other host.
            (careless(http), elsewhere(), "HTTP 204 No Content"),
            (named(http, "api.example"), elsewhere(), "HTTP 421 Misdirected Request"),
        ] {
            let what = format!("{check:?}");
            let found = stage.check(check, server).await;
            let is_good = !output.starts_with("TLS") && !output.contains("421");
            let health = if is_good { Health::Passing } else { Health::Critical };
            assert_eq!(found, Finding::new(health, output), "{what}");
        }
    }

    #[tokio::test]
    async fn the_certificate_must_be_signed_by_somebody_who_is_believed() {
        let stage = Stage::new();
        let late = stage.ca.subordinate("late", (-2, -1));
        let late = || server(late.issue(Wish::default(), stage.dir.path(), "late"));
        for kind in [CheckKind::Tcp, CheckKind::Http, CheckKind::Grpc] {
            let found = stage.check(of(kind), stage.fake()).await;
            assert_eq!(found, Finding::new(Health::Critical, UNKNOWN), "{kind:?}");
            let found = stage.check(of(kind), late()).await;
            let expired = "TLS: the certificate is expired or not valid yet";
            assert_eq!(found, Finding::new(Health::Critical, expired), "{kind:?}");
        }
        for server in [stage.fake(), late()] {
            let found = stage.check(careless(CheckKind::Grpc), server).await;
            assert_eq!(found, Finding::new(Health::Passing, "SERVING"));
        }
        stage.other.write(&stage.dir.path().join("ca.pem"));
        let found = stage.check(of(CheckKind::Tcp), stage.fake()).await;
        assert_eq!(found.health, Health::Passing, "the file is read again");
    }

    #[tokio::test]
    async fn a_certificate_that_signed_itself_may_be_believed() {
        let stage = Stage::new();
        let alone = Authority::alone(Wish::default(), stage.dir.path(), "alone");
        let found = stage.check(of(CheckKind::Tcp), server(alone.clone())).await;
        assert_eq!(found.health, Health::Critical);
        assert!(found.output.contains("signed itself and is not believed here"), "{found:?}");
        let stage = Stage { trust: believing(&alone.cert), ..stage };
        let found = stage.check(of(CheckKind::Tcp), server(alone)).await;
        assert_eq!(found, Finding::new(Health::Passing, "connected by TLS"));
    }

    #[tokio::test]
    async fn who_asks_for_a_certificate_is_told_apart() {
        let stage = Stage::new();
        let asking =
            || Server { trusted_ca: Some(stage.dir.path().join("ca.pem")), ..stage.good() };
        let found = stage.check(of(CheckKind::Http), asking()).await;
        let refused = "TLS: refused by the instance; checks have no certificate of their own";
        assert_eq!(found, Finding::new(Health::Critical, refused));
    }

    #[tokio::test]
    async fn who_speaks_something_else_costs_one_connection_for_the_time_of_the_check() {
        let stage = Stage::new();
        let foreign = "TLS: the instance speaks no TLS, or no version, cipher suite or protocol that checks do";
        let late = "no answer in 500 ms";
        let cases: [(&[u8], &[u8], &str); 6] = [
            (b"", b"", late),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", foreign),
            (b"", b"nonsense", foreign),
            // The beginning of a message that would be as long as it can be.
            (b"\x16\x03\x03\0\x04\x02\xff\xff\xff", b"\x16\x03\x03\0\x01\0", foreign),
            // Warnings, and what a middlebox may send, without an end.
            (b"", b"\x15\x03\x03\0\x02\x01\x5a", foreign),
            (b"", b"\x14\x03\x03\0\x01\x01", foreign),
        ];
        for (begin, more, output) in cases {
            for check in [of(CheckKind::Tcp), careless(CheckKind::Http)] {
                let (address, until_closed) = hostile(begin, more).await;
                let check = Check { tls: true, timeout_ms: 500, ..check };
                let found = probe(&check, &address, Reach::Local, &stage.trust).await.unwrap();
                assert_eq!(found.health, Health::Critical);
                // Which of the two comes first is not certain on a machine that is busy.
                assert!([output, late].contains(&found.output.as_str()), "{more:?}: {found:?}");
                let closed = timeout(Duration::from_secs(30), until_closed).await;
                closed.expect("nothing of the check stays").unwrap();
            }
        }
    }

    #[test]
    fn the_host_is_that_of_the_address_or_the_name() {
        let (own, asked) = (of(CheckKind::Http), named(CheckKind::Http, "api.example"));
        for (place, host_name) in [("h:1", "h"), ("[::1]:80", "::1"), ("10.0.0.7:80", "10.0.0.7")] {
            assert_eq!((name(&own, place), host(&own, place).as_str()), (host_name, place));
        }
        assert_eq!(
            (name(&asked, "h:1"), host(&asked, "h:1")),
            ("api.example", "api.example:1".into())
        );
        assert_eq!(host(&named(CheckKind::Http, "::1"), "h:1"), "[::1]:1");
    }
}
