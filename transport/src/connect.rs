//! Connects to a target by TCP or unix socket, with TLS if the target asks for it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_rustls::client::TlsStream;
use tower::Service;

use crate::delegate::read_and_write_by_variant;
use crate::{ClientTls, Followed, Gather, Socket, Target};

/// ALPN protocols of a TLS connection.
const PROTOCOLS: [&[u8]; 1] = [b"h2"];

/// Connects to one target, any number of times. TLS files are checked for changes before each
/// handshake.
#[derive(Clone, Debug)]
pub struct Connector {
    target: Target,
    tls: Option<Arc<Followed<ClientTls>>>,
    tcp: HttpConnector,
    timeout: Duration,
}

impl Connector {
    /// Creates a connector; `tls` is required if the target asks for TLS. Connecting, handshake
    /// included, fails after `timeout`.
    #[must_use]
    pub fn new(target: Target, tls: Option<Arc<Followed<ClientTls>>>, timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeout));
        let tls = if target.is_tls() { tls } else { None };
        Self { target, tls, tcp, timeout }
    }

    /// Enables TCP keepalive probes on idle connections.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.tcp.set_keepalive(Some(interval));
        self
    }

    /// For peers that may vanish: the connection fails when neither sent data nor keepalive probes
    /// are acknowledged for `patience`. Systems other than Linux notice it by probes only, which
    /// they do not send while data is in flight.
    #[must_use]
    pub fn lost_after(mut self, patience: Duration) -> Self {
        self.tcp.set_keepalive(Some(patience / 3));
        self.tcp.set_keepalive_interval(Some(patience / 6));
        self.tcp.set_keepalive_retries(Some(4));
        #[cfg(target_os = "linux")]
        self.tcp.set_tcp_user_timeout(Some(patience));
        self
    }

    /// Makes one connection.
    ///
    /// # Errors
    /// Any system or handshake error, or a timeout.
    pub async fn connect(mut self) -> io::Result<Stream> {
        let timeout = self.timeout;
        let connected = tokio::time::timeout(timeout, self.connect_slowly()).await;
        connected.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect_slowly(&mut self) -> io::Result<Stream> {
        let socket = match self.target.path() {
            Some(path) => Socket::Unix(UnixStream::connect(path).await?),
            None => {
                let connected = self.tcp.call(self.target.origin().clone()).await;
                Socket::Tcp(connected.map_err(io::Error::other)?.into_inner())
            }
        };
        if !self.target.is_tls() {
            return Ok(Stream::Plain(socket));
        }
        let tls = self.tls.as_ref().ok_or_else(|| {
            io::Error::other(format!("no TLS settings for {}", self.target.origin()))
        })?;
        // A failed reload is reported to the observer; the previous configuration may still work,
        // and if not the handshake fails.
        tls.look();
        tls.current().shake(self.target.host(), &PROTOCOLS, socket).await
    }
}

/// For HTTP/2 clients: writes are gathered.
impl Service<Uri> for Connector {
    type Response = TokioIo<Gather<Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            connector.connect().await.map(|stream| TokioIo::new(Gather::new(stream)))
        })
    }
}

/// An open connection.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(Socket),
    /// With TLS.
    Tls(Box<TlsStream<Socket>>),
}

read_and_write_by_variant!(Stream { Plain, Tls });
