//! The peer port: connections of the other members.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use conclave_proto::internal::peer_server::PeerServer;
use conclave_transport::{Gather, Socket};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use super::link::{CONNECTION_WINDOW_BYTES, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES};
use super::service::PeerService;
use super::traffic::Receiving;
use crate::config::ListenSettings;
use crate::greeting::{GREETING_TIMEOUT, Greeting};
use crate::listen::Listener;
use crate::tls::Acceptor;

/// Connections that have finished their handshake and wait to be served.
const READY_MAX: usize = 64;
/// Pause after a failed accept; the usual cause is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Interval between two keepalive pings of a connection, and the timeout of each.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A byte stream, plain or TLS.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytes for S {}

/// A connection of another member.
type Connection = Greeting<Gather<Box<dyn Bytes>>>;

/// What the peer port needs to run.
pub(crate) struct PeerPort {
    pub(crate) service: PeerService,
    pub(crate) receiving: Receiving,
    /// Used for the URLs that ask for TLS.
    pub(crate) tls: Option<Arc<Acceptor>>,
    /// Counts connections closed because the peer sent nothing.
    pub(crate) silent: Counter,
    /// Stops the port.
    pub(crate) stop: CancellationToken,
}

impl PeerPort {
    /// Starts serving peers, so that members that start together can ask each other.
    ///
    /// # Errors
    /// Any system error, with the URL.
    pub(crate) fn listen(self, settings: &ListenSettings, tasks: &TaskTracker) -> io::Result<()> {
        for url in &settings.peer {
            let listener = Listener::bind(url, settings.reuses_ports)?;
            let (ready, incoming) = mpsc::channel(READY_MAX);
            let tls = self.tls.clone().filter(|_| listener.is_tls);
            let door = Door { tls, ready, silent: self.silent.clone() };
            tasks.spawn(accept(listener, door, self.stop.clone()));
            tasks.spawn(self.serve(incoming));
        }
        Ok(())
    }

    fn serve(&self, incoming: mpsc::Receiver<Connection>) -> impl Future<Output = ()> + use<> {
        let incoming = ReceiverStream::new(incoming).map(Ok::<_, io::Error>);
        let peer = PeerServer::new(self.service.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .layer(self.receiving.clone())
            .add_service(peer);
        let stop = self.stop.clone();
        async move {
            tokio::select! {
                served = server.serve_with_incoming(incoming) => {
                    if let Err(error) = served {
                        tracing::error!(%error, "the peer server stopped");
                    }
                }
                // Streams of peers never end by themselves.
                () = stop.cancelled() => {}
            }
        }
    }
}

/// What the accept loop needs to prepare a connection for serving.
#[derive(Clone)]
struct Door {
    tls: Option<Arc<Acceptor>>,
    ready: mpsc::Sender<Connection>,
    silent: Counter,
}

/// Accepts connections until `stop` and passes on those that complete their handshake.
async fn accept(listener: Listener, door: Door, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(socket) => {
                // Not tracked: it ends by the handshake's own deadline or when the server's channel
                // closes.
                tokio::spawn(shake(socket, door.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of a peer");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn shake(socket: Socket, door: Door) {
    let bytes: Box<dyn Bytes> = match door.tls {
        None => Box::new(socket),
        Some(tls) => match tls.accept(socket).await {
            Some(shaken) => shaken.stream,
            None => return,
        },
    };
    // If the server has ended, the send fails and the connection closes here.
    let bytes = Greeting::new(Gather::new(bytes), GREETING_TIMEOUT, door.silent);
    door.ready.send(bytes).await.ok();
}
