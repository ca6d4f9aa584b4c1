//! One HTTP/2 connection as a tonic transport, without tonic's channel around it.
//!
//! The load generator shares its cores with the servers it measures; the channel's buffer task, reconnect and
//! layers would cost about as much per request as the server under test.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::Service;

const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A cheap handle on one connection; clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    sender: SendRequest<Body>,
    origin: Uri,
}

impl Connection {
    /// Connects to `endpoint` (`http://host:port`).
    ///
    /// # Errors
    /// If the endpoint cannot be parsed or reached within five seconds.
    pub async fn open(endpoint: &str) -> Result<Self> {
        let origin: Uri = endpoint.parse().with_context(|| format!("endpoint {endpoint}"))?;
        let authority = origin.authority().context("endpoint has a host")?.as_str();
        let connect = TcpStream::connect(authority);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .with_context(|| format!("connect to {endpoint}: no answer"))?
            .with_context(|| format!("connect to {endpoint}"))?;
        stream.set_nodelay(true)?;
        let (sender, driver) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .context("HTTP/2 handshake")?;
        // The connection's end shows as an error of the requests on it.
        tokio::spawn(async move { driver.await.ok() });
        Ok(Self { sender, origin })
    }

    /// The address requests are made for, as the generated clients' `with_origin` wants it.
    #[must_use]
    pub fn origin(&self) -> Uri {
        self.origin.clone()
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
