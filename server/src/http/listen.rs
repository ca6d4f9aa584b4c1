//! Accepts connections and serves each until its client disconnects or the node stops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use conclave_transport::{Gather, Socket};
use http::{Request, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client_stream::ClientStream;
use super::crowd::{Crowd, Place};
use super::route::Router;
use crate::config::{Limits, ListenSettings};
use crate::greeting::{GREETING_TIMEOUT, Greeting};
use crate::listen::Listener;
use crate::tls::{Acceptor, ClientName, Shaken};
use crate::watch::Connection;

/// Connections at one time; beyond, new ones wait in the system's accept queue.
const CONNECTIONS_MAX: usize = 32_768;
/// Pause after a failed accept; the usual cause is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a client may take to send the head of an HTTP/1.1 request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Flow-control window of one call: several of the largest requests.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Flow-control window of one connection, over all its calls.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const FRAME_BYTES_MAX: u32 = 256 * 1024;
const HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// Most headers of an HTTP/1.1 request. etcd limits only their size.
const HEADERS_MAX: usize = 500;
/// Calls a client may cancel in quick succession before its connection counts as an attack. etcd
/// clients do cancel hundreds of watches together.
const RESETS_MAX: usize = 4_096;
/// How long calls may continue after the node was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The open client port of one node.
#[derive(Debug)]
pub(crate) struct ClientPort {
    listeners: Vec<(Listener, Role)>,
}

/// The kind of listener that a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entrance {
    pub(super) role: Role,
    pub(super) is_tls: bool,
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything.
    Clients,
    /// Everything but gRPC.
    Http,
    /// Only the pages about this member's health and metrics.
    Pages,
}

/// Opens the port, so that its addresses are known before the node starts.
///
/// # Errors
/// Any system error, with the address.
pub(crate) fn bind(settings: &ListenSettings) -> io::Result<ClientPort> {
    let groups = [
        (&settings.client, Role::Clients),
        (&settings.http, Role::Http),
        (&settings.metrics, Role::Pages),
    ];
    let mut listeners = Vec::new();
    for (urls, role) in groups {
        for url in urls {
            listeners.push((Listener::bind(url, settings.reuses_ports)?, role));
        }
    }
    Ok(ClientPort { listeners })
}

impl ClientPort {
    /// TCP addresses the port listens on, with the port numbers chosen by the system.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.clients().filter_map(Listener::address).collect()
    }

    /// URLs that reach the port from this host.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.clients().map(Listener::url).collect()
    }

    fn clients(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(|(_, role)| *role == Role::Clients).map(|(open, _)| open)
    }

    /// Serves until `stop`, then gives calls a moment to end. Connections to URLs that ask for it
    /// first do a handshake by `tls`.
    pub(crate) async fn serve(
        self,
        router: Router,
        tls: Option<Arc<Acceptor>>,
        stop: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        let (limits, counts) = (router.context.limits, router.context.node.counts().clone());
        let shared = Arc::new(Shared {
            builder: builder(&limits),
            router: Arc::new(router),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            crowd: Crowd::new(limits.address_connections_max, counts.crowded("client")),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        for (listener, role) in self.listeners {
            let tls = tls.clone().filter(|_| listener.is_tls);
            let port = Port { role, tls, shared: Arc::clone(&shared) };
            tasks.spawn(accept(listener, port));
        }
        tasks.close();
        stop.cancelled().await;
        if tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::info!(connections = tasks.len(), "closing connections that are still in use");
        }
    }
}

struct Shared {
    builder: Builder<TokioExecutor>,
    router: Arc<Router>,
    room: Arc<Semaphore>,
    crowd: Arc<Crowd>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        // Clients do not need a date header, and it would cost a look at the clock per call.
        .auto_date_header(false)
        .max_concurrent_streams(limits.concurrent_streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

/// What the accept loop of one listener needs.
#[derive(Clone)]
struct Port {
    role: Role,
    tls: Option<Arc<Acceptor>>,
    shared: Arc<Shared>,
}

/// One of the `CONNECTIONS_MAX` connection permits, released when its last clone is dropped. An
/// upgraded web socket keeps a clone.
#[derive(Clone)]
pub(super) struct Seat {
    _taken: Arc<(OwnedSemaphorePermit, Place)>,
}

async fn accept(listener: Listener, port: Port) {
    let shared = Arc::clone(&port.shared);
    loop {
        let next = async {
            let room = Arc::clone(&shared.room).acquire_owned().await;
            (listener.accept().await, room.expect("invariant: the semaphore is never closed"))
        };
        let (accepted, room) = tokio::select! {
            () = shared.stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok(socket) => {
                let Some(place) = shared.crowd.join(socket.peer_ip()) else { continue };
                let seat = Seat { _taken: Arc::new((room, place)) };
                match &port.tls {
                    None => shared.tasks.spawn(serve(socket, None, port.clone(), seat)),
                    Some(tls) => {
                        shared.tasks.spawn(shake(socket, Arc::clone(tls), port.clone(), seat))
                    }
                };
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection after its TLS handshake.
async fn shake(socket: Socket, tls: Arc<Acceptor>, port: Port, seat: Seat) {
    let shaken = tokio::select! {
        shaken = tls.accept(socket) => shaken,
        () = port.shared.stop.cancelled() => return,
    };
    if let Some(Shaken { stream, name }) = shaken {
        Box::pin(serve(stream, name, port, seat)).await;
    }
}

/// Serves a connection. `name` is the verified common name of its client, if any.
async fn serve<S>(stream: S, name: Option<ClientName>, port: Port, seat: Seat)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let entrance = Entrance { role: port.role, is_tls: port.tls.is_some() };
    let shared = port.shared;
    let metrics = Arc::clone(&shared.router.context.metrics);
    let silent = shared.router.context.node.counts().silent("client");
    let stream = Greeting::new(stream, GREETING_TIMEOUT, silent);
    let stream = ClientStream::new(stream, metrics, HEADERS_BYTES_MAX as usize);
    let connection = Connection::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        if let Some(name) = &name {
            request.extensions_mut().insert(name.clone());
        }
        if is_watch(request.uri().path()) {
            request.extensions_mut().insert(connection.clone());
        }
        if request.headers().contains_key(header::UPGRADE) {
            request.extensions_mut().insert(seat.clone());
        }
        async move { shared.router.answer(entrance, request).await }
    });
    let stream = TokioIo::new(Gather::serving(stream));
    let serving = shared.builder.serve_connection_with_upgrades(stream, service);
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = shared.stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIMEOUT, serving).await {
                Ok(result) => result,
                Err(_elapsed) => return,
            }
        }
    };
    if let Err(error) = result {
        // Caused by the client in any case.
        tracing::debug!(%error, "connection ended");
    }
}

/// Whether a call may have watchers, which are counted per connection: by gRPC, gRPC-web or JSON.
fn is_watch(path: &str) -> bool {
    // A path with escapes may stand for any other.
    path.ends_with("/Watch") || path.ends_with("/watch") || path.contains('%')
}
