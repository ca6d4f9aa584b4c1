//! One HTTP/2 connection as a tonic transport, without tonic's channel around it.
//!
//! The load generator shares its cores with the servers it measures. The channel's buffer task,
//! reconnects and layers would cost about as much per request as the server under test.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use conclave_transport::{Connector, Gather, Stream, Target};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::codegen::Service;

use crate::access::Access;

const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Name of the header in which etcd expects a token.
const TOKEN: &str = "token";

/// A cheap handle on one connection; clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    sender: SendRequest<Body>,
    origin: Uri,
    token: Option<HeaderValue>,
}

impl Connection {
    /// Connects to `endpoint` (`http://host:port`) without authentication.
    ///
    /// # Errors
    /// If the endpoint cannot be parsed or reached within five seconds.
    pub async fn open(endpoint: &str) -> Result<Self> {
        Self::open_by(endpoint, &Access::default()).await
    }

    /// Connects to `endpoint` (`http://host:port`, or `https://host:port` if `access` has TLS).
    ///
    /// # Errors
    /// If the endpoint cannot be parsed or reached within five seconds.
    pub async fn open_by(endpoint: &str, access: &Access) -> Result<Self> {
        let (stream, origin) = Self::stream(endpoint, access).await?;
        Self::over(stream, origin, access).await
    }

    /// As [`Connection::open_by`], for many clients that send when their answers arrive: what they
    /// send together is written together. Only for a thread without other work, which would delay
    /// the write.
    ///
    /// # Errors
    /// Those of [`Connection::open_by`].
    pub async fn open_gathered(endpoint: &str, access: &Access) -> Result<Self> {
        let (stream, origin) = Self::stream(endpoint, access).await?;
        Self::over(Gather::new(stream), origin, access).await
    }

    async fn stream(endpoint: &str, access: &Access) -> Result<(Stream, Uri)> {
        let target = Target::parse(endpoint, false).map_err(anyhow::Error::msg)?;
        let origin = target.origin().clone();
        let connector = Connector::new(target, access.tls.clone(), CONNECT_TIMEOUT);
        let stream = connector.connect().await.with_context(|| format!("connect to {endpoint}"))?;
        Ok((stream, origin))
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        origin: Uri,
        access: &Access,
    ) -> Result<Self> {
        let (sender, driver) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .context("HTTP/2 handshake")?;
        // The end of the connection shows as an error of the requests on it.
        tokio::spawn(async move { driver.await.ok() });
        Ok(Self { sender, origin, token: access.token.clone() })
    }

    /// The address that requests are made for, as required by `with_origin` of the generated
    /// clients.
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(token) = &self.token {
            request.headers_mut().insert(TOKEN, token.clone());
        }
        Box::pin(self.sender.send_request(request))
    }
}
