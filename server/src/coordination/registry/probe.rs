//! One active check of one instance.
//!
//! A check connects to where an owner says, so it is careful: addresses that no instance can have
//! (link-local and others where clouds serve credentials, multicast, unspecified, this machine itself if the
//! member serves others) are never connected to, no redirect is followed, and nothing of an answer but its
//! status goes anywhere. `tls` is the handshake, if it is made by TLS.

mod tls;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use bytes::Bytes;
use conclave_state_machine::registry::check::CHECK_TIMEOUT_MS;
use conclave_state_machine::registry::record::{Check, CheckKind, Health};
use conclave_transport::{Reason, Socket, Stream};
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

pub(crate) use tls::Trust;

use crate::config::{ChecksAllowed, ListenSettings, Place};

/// Names that are looked up at once.
const LOOK_UPS_MAX: usize = 16;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// Most of an answer that is held in memory.
const ANSWER_BYTES_MAX: usize = 16 * 1_024;
const HEADER_BYTES_MAX: u32 = 16 * 1_024;
/// Where clouds tell their machines secrets, and what is not link-local: Alibaba's, Azure's and Oracle's
/// IPv4 addresses, AWS's and Google's IPv6 addresses.
const CLOUDS: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Which addresses checks may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Any.
    All,
    /// Those that an instance can have which clients on this machine are to call.
    Local,
    /// Those that an instance can have which clients elsewhere are to call.
    Remote,
}

impl Reach {
    pub(super) fn new(allowed: ChecksAllowed, listen: &ListenSettings) -> Self {
        let is_here = |place: &Place| match place {
            Place::Tcp(address) => address.ip().is_loopback(),
            Place::Unix(_) => true,
        };
        match allowed {
            ChecksAllowed::Any => Self::All,
            _ if listen.client.iter().all(|listen| is_here(&listen.place)) => Self::Local,
            ChecksAllowed::Own | ChecksAllowed::Off => Self::Remote,
        }
    }

    fn includes(self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match self {
            Self::All => true,
            Self::Local => is_plausible(ip),
            Self::Remote => is_plausible(ip) && !ip.is_loopback(),
        }
    }
}

/// What a check found, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) health: Health,
    pub(super) output: String,
}

impl Finding {
    fn new(health: Health, output: impl Into<String>) -> Self {
        Self { health, output: output.into() }
    }
}

/// Why a check has no result.
enum Failure {
    /// The instance is to blame, in words.
    Instance(String),
    /// This member is.
    Member,
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let by_tls = Reason::behind(&error).map(tls::said);
        Failure::Instance(by_tls.map_or_else(|| error.to_string(), str::to_owned))
    }
}

/// Checks an instance at `address`; `None` if this member could not make the check.
pub(super) async fn probe(
    check: &Check,
    address: &str,
    reach: Reach,
    trust: &Trust,
) -> Option<Finding> {
    let timeout_ms = if check.timeout_ms == 0 { CHECK_TIMEOUT_MS } else { check.timeout_ms };
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    let place = check.place(address);
    let work = async {
        let stream = connect(&resolve(place, reach).await?, deadline).await?;
        let socket = Socket::Tcp(stream);
        let stream = match check.tls {
            // On the heap: a handshake takes room, and most checks make none.
            true => Box::pin(tls::shake(check, place, socket, trust)).await?,
            false => Stream::Plain(socket),
        };
        ask(check, stream, &tls::host(check, place)).await
    };
    match timeout_at(deadline, work).await {
        Ok(Ok(finding)) => Some(finding),
        Ok(Err(Failure::Instance(reason))) => Some(Finding::new(Health::Critical, reason)),
        Ok(Err(Failure::Member)) => None,
        Err(_elapsed) => {
            Some(Finding::new(Health::Critical, format!("no answer in {timeout_ms} ms")))
        }
    }
}

/// Asks of `host` on a connection what the check asks.
async fn ask(check: &Check, stream: Stream, host: &str) -> Result<Finding, Failure> {
    match check.kind {
        CheckKind::Tcp if check.tls => Ok(Finding::new(Health::Passing, "connected by TLS")),
        CheckKind::Tcp => Ok(Finding::new(Health::Passing, "connected")),
        CheckKind::Http => http(stream, host, &check.target).await,
        CheckKind::Grpc => {
            let scheme = if check.tls { "https" } else { "http" };
            grpc(stream, format!("{scheme}://{host}"), &check.target).await
        }
    }
}

/// The addresses of a place that a check may go to.
async fn resolve(place: &str, reach: Reach) -> Result<Vec<SocketAddr>, Failure> {
    let mut found = match place.parse() {
        Ok(at) => vec![at],
        Err(_) => look_up(place.to_owned()).await?,
    };
    found.retain(|at| reach.includes(at.ip()));
    found.truncate(ADDRESSES_MAX);
    Ok(found)
}

/// Connects to the first of these addresses that takes it, as clients do. One that does not answer within its share of
/// the time that is left is not waited for alone.
async fn connect(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, Failure> {
    let mut failure = forbidden();
    let mut tries = FuturesUnordered::new();
    for (begun, at) in addresses.iter().enumerate() {
        let shares = u32::try_from(addresses.len() - begun).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / shares;
        tries.push(TcpStream::connect(at));
        match timeout(share, tries.select_next_some()).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error.into(),
            Err(_elapsed) => {}
        }
    }
    while let Some(connected) = tries.next().await {
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

fn forbidden() -> Failure {
    Failure::Instance("the address may not be checked".to_owned())
}

/// Asks the system for the addresses of a name. That blocks a thread for as long as the system likes, also
/// when the check has ended: so no more threads than these do, and reads always find one.
async fn look_up(place: String) -> Result<Vec<SocketAddr>, Failure> {
    static LOOK_UPS: Semaphore = Semaphore::const_new(LOOK_UPS_MAX);
    let permit = LOOK_UPS.try_acquire().map_err(|_| Failure::Member)?;
    let found = tokio::task::spawn_blocking(move || {
        let found = place.to_socket_addrs().map(Iterator::collect);
        drop(permit);
        found
    });
    Ok(found.await??)
}

/// Whether an instance can have the address.
fn is_plausible(ip: IpAddr) -> bool {
    if CLOUDS.contains(&ip) {
        return false;
    }
    match ip {
        IpAddr::V4(ip) => !(ip.is_link_local() || ip.is_multicast() || ip.is_unspecified()),
        IpAddr::V6(ip) => !(ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified()),
    }
}

async fn http(stream: Stream, host: &str, path: &str) -> Result<Finding, Failure> {
    let mut http = hyper::client::conn::http1::Builder::new();
    http.max_buf_size(ANSWER_BYTES_MAX);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await?;
    // Driven beside the request, and ended with it.
    let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection of a check ended");
        }
    }));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "conclave-check")
        .body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    let health = match status.as_u16() {
        200..=299 => Health::Passing,
        // As Consul has it: the instance is there, but asks for less.
        429 => Health::Warning,
        _ => Health::Critical,
    };
    Ok(Finding::new(health, format!("HTTP {status}")))
}

async fn grpc(stream: Stream, origin: String, service: &str) -> Result<Finding, Failure> {
    let endpoint = Endpoint::from_shared(origin)?;
    let endpoint = endpoint.http2_max_header_list_size(HEADER_BYTES_MAX);
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("a check connects once"));
        std::future::ready(stream)
    });
    let client = HealthClient::new(endpoint.connect_with_connector(connector).await?);
    let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await;
    match answer {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(Finding::new(Health::Passing, "SERVING")),
            other => Ok(Finding::new(Health::Critical, other.as_str_name())),
        },
        Err(status) => Err(Failure::Instance(format!("{:?}", status.code()))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// A check that believes the system's authorities.
    async fn probe(check: &Check, address: &str, reach: Reach) -> Option<Finding> {
        super::probe(check, address, reach, &Trust::new(None)).await
    }

    /// Answers one connection with these bytes.
    async fn answer(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0_u8; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(read == 0 || request.starts_with(b"GET /well?now=1 HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    async fn http_check(text: &'static str) -> Finding {
        let address = answer(text).await;
        let target = "well?now=1".to_owned();
        // Long enough for a machine that is busy.
        let check = Check { kind: CheckKind::Http, target, timeout_ms: 30_000, ..Check::default() };
        probe(&check, &address, Reach::Local).await.unwrap()
    }

    #[tokio::test]
    async fn http_answers_say_how_well_it_is() {
        let found = http_check("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(found, Finding::new(Health::Passing, "HTTP 204 No Content"));
        let found = http_check("HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(found.health, Health::Warning);
        let found = http_check("HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n").await;
        assert_eq!(found.health, Health::Critical, "no redirect is followed");
        assert_eq!(http_check("nonsense\r\n\r\n").await.health, Health::Critical);
    }

    #[tokio::test]
    async fn a_grpc_server_says_whether_it_serves() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://localhost:{}", listener.local_addr().unwrap().port());
        let (_reporter, health) = tonic_health::server::health_reporter();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(health);
        let serving = tokio::spawn(server.serve_with_incoming(incoming));
        for (service, health, output) in
            [("", Health::Passing, "SERVING"), ("none", Health::Critical, "NotFound")]
        {
            let target = service.to_owned();
            let check = Check { kind: CheckKind::Grpc, target, ..Check::default() };
            let check = Check { timeout_ms: 30_000, ..check };
            let found = probe(&check, &address, Reach::Local).await.unwrap();
            assert_eq!(found, Finding::new(health, output));
        }
        serving.abort();
    }

    #[tokio::test]
    async fn connections_that_cannot_be_made_are_critical() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let check = Check::default();
        let found = probe(&check, &address, Reach::Local).await.unwrap();
        assert_eq!(found.health, Health::Passing);
        drop(listener);
        for address in [address.as_str(), "no such name:1", ""] {
            let found = probe(&check, address, Reach::Local).await.unwrap();
            assert_eq!(found.health, Health::Critical, "{address}");
        }
    }

    #[tokio::test]
    async fn an_address_that_nobody_answers_at_is_not_the_only_one() {
        let alive = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, nobody) = (alive.local_addr().unwrap(), "127.0.0.1:1".parse().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        let stream = connect(&[nobody, nobody, at], deadline).await;
        assert_eq!(stream.ok().unwrap().peer_addr().unwrap(), at);
        assert!(connect(&[nobody, nobody], deadline).await.is_err());
    }

    #[tokio::test]
    async fn addresses_of_credentials_are_never_connected_to() {
        for address in [
            "169.254.169.254:80",
            "[fe80::1]:80",
            "[::ffff:169.254.169.254]:80",
            "[fd00:ec2::254]:80",
            "[::ffff:168.63.129.16]:80",
            "100.100.100.200:80",
        ] {
            let found = probe(&Check::default(), address, Reach::Local).await.unwrap();
            assert_eq!(found.output, "the address may not be checked", "{address}");
        }
    }

    #[tokio::test]
    async fn a_member_that_serves_others_does_not_check_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for (address, reach, health) in [
            ("127.0.0.1", Reach::Remote, Health::Critical),
            ("[::ffff:127.0.0.1]", Reach::Remote, Health::Critical),
            ("127.0.0.1", Reach::Local, Health::Passing),
            ("127.0.0.1", Reach::All, Health::Passing),
        ] {
            let check = Check { timeout_ms: 30_000, ..Check::default() };
            let found = probe(&check, &format!("{address}:{port}"), reach).await.unwrap();
            assert_eq!(found.health, health, "{address} {reach:?}: {}", found.output);
        }
    }

    /// Takes one connection, begins with these bytes, and repeats the others until it is closed.
    pub(super) async fn hostile(
        begin: &'static [u8],
        more: &'static [u8],
    ) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let until_closed = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = stream.into_split();
            let flood = async {
                to.write_all(begin).await?;
                while !more.is_empty() {
                    to.write_all(more).await?;
                }
                std::future::pending::<std::io::Result<()>>().await
            };
            let drain = async {
                let mut bytes = [0; 1_024];
                while from.read(&mut bytes).await? > 0 {}
                std::io::Result::Ok(())
            };
            tokio::select! {
                _closed = flood => {}
                _closed = drain => {}
            }
        });
        (address, until_closed)
    }

    #[tokio::test]
    async fn a_hostile_target_costs_one_connection_for_the_time_of_the_check() {
        let head = b"HTTP/1.1 200 OK\r\n";
        let settings = b"\0\0\0\x04\0\0\0\0\0";
        // PING frames, each of which asks for an answer.
        let pings = b"\0\0\x08\x06\0\0\0\0\0opaque_8";
        let cases: [(CheckKind, &[u8], &[u8], Health); 7] = [
            (CheckKind::Http, b"", b"", Health::Critical),
            (CheckKind::Http, head, b"x: y\r\n", Health::Critical),
            (CheckKind::Http, b"", b"HTTP/1.1 100 Continue\r\n\r\n", Health::Critical),
            (CheckKind::Http, b"HTTP/1.1 200 OK\r\n\r\n", b"body", Health::Passing),
            (CheckKind::Grpc, b"", b"", Health::Critical),
            (CheckKind::Grpc, b"", b"nonsense", Health::Critical),
            (CheckKind::Grpc, settings, pings, Health::Critical),
        ];
        for (kind, begin, more, health) in cases {
            let (address, until_closed) = hostile(begin, more).await;
            let check = Check { kind, timeout_ms: 500, ..Check::default() };
            let found = probe(&check, &address, Reach::Local).await.unwrap();
            // Passing in time is not certain on a machine that is busy.
            assert!(found.health == health || found.output == "no answer in 500 ms", "{found:?}");
            let closed = timeout(Duration::from_secs(30), until_closed).await;
            closed.expect("nothing of the check stays").unwrap();
        }
    }

    #[tokio::test]
    async fn names_that_nobody_answers_for_leave_threads_for_others() {
        let check = Check { timeout_ms: 500, ..Check::default() };
        let probes = (0..4 * LOOK_UPS_MAX).map(|number| {
            let check = check.clone();
            async move { probe(&check, &format!("{number}.invalid:1"), Reach::Local).await }
        });
        let found = futures::future::join_all(probes).await;
        assert!(found.iter().flatten().all(|found| found.health == Health::Critical));
        assert!(found.iter().any(Option::is_none), "not all at once");
    }
}
