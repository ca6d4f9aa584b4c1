//! TLS handshakes of accepted connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use conclave_transport::{Accepted, Certificate, Followed, Reason, ServerTls, Socket, TlsAcceptor};

use super::address;
use super::pending::Pending;
use crate::metrics::PortCounts;
use crate::sparse::Sparse;

/// Timeout of a handshake, from the accepted connection on.
const DEADLINE: Duration = Duration::from_secs(10);
/// Handshakes in progress on one port; beyond, the oldest is ended.
const PENDING_MAX: usize = 4_096;

/// The caller's verified common name; an extension of each request on its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientName(pub(crate) Arc<str>);

/// Performs the TLS handshakes of one port.
#[derive(Debug)]
pub(crate) struct Acceptor {
    tls: Arc<Followed<ServerTls>>,
    counts: PortCounts,
    pending: Pending,
    /// Whether a certificate's names are compared with the caller's address.
    checks_addresses: bool,
    /// Whether a certificate's common name is a user name.
    names_users: bool,
    lines: Sparse,
}

/// A connection after its handshake.
pub(crate) struct Shaken {
    pub(crate) stream: Box<Accepted>,
    /// Common name of the verified certificate, if it names a user.
    pub(crate) name: Option<ClientName>,
}

impl Acceptor {
    /// For a port that presents itself as `tls` says.
    pub(crate) fn new(
        tls: Arc<Followed<ServerTls>>,
        settings: &crate::config::PortTls,
        counts: PortCounts,
    ) -> Self {
        Self {
            tls,
            counts,
            pending: Pending::new(PENDING_MAX),
            checks_addresses: settings.checks_addresses,
            names_users: settings.names_users,
            lines: Sparse::default(),
        }
    }

    /// Performs the handshake. A failure gives `None` and is counted and logged. Always ends within
    /// the timeout, whatever the client does.
    pub(crate) async fn accept(&self, socket: Socket) -> Option<Shaken> {
        let from = socket.peer_ip();
        let place = self.pending.begin();
        let handshake = tokio::time::timeout(DEADLINE, Box::pin(self.shake(socket)));
        let outcome = tokio::select! {
            outcome = handshake => outcome.unwrap_or_else(|_elapsed| {
                Err((Reason::Timeout, io::ErrorKind::TimedOut.into()))
            }),
            () = place.crowded() => {
                Err((Reason::Crowded, io::Error::other("too many handshakes are under way")))
            }
        };
        match outcome {
            Ok(shaken) => Some(shaken),
            Err((reason, error)) => {
                self.counts.failed(reason);
                self.tell(reason, &error, from.map(|from| from.to_string()));
                None
            }
        }
    }

    async fn shake(&self, socket: Socket) -> Result<Shaken, (Reason, io::Error)> {
        let from = socket.peer_ip();
        let acceptor = TlsAcceptor::from(self.tls.current().config.clone());
        let stream = acceptor.accept(socket).await.map_err(|error| (Reason::of(&error), error))?;
        // Verified: without a CA to verify against, no certificate is requested.
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.and_then(|certificate| Certificate::parse(certificate));
        if self.checks_addresses
            && let (Some(certificate), Some(from)) = (&certificate, from)
            && !address::fits(certificate, from).await
        {
            let error = format!(
                "tls: {from} does not match any of DNSNames {:?} or addresses {:?}",
                certificate.dns_names, certificate.addresses
            );
            return Err((Reason::Name, io::Error::other(error)));
        }
        let name = certificate.and_then(|certificate| certificate.common_name);
        let name = name.filter(|name| self.names_users && !name.is_empty());
        let name = name.map(|name| ClientName(name.into()));
        Ok(Shaken { stream: Box::new(stream), name })
    }

    fn tell(&self, reason: Reason, error: &io::Error, from: Option<String>) {
        let Some(unsaid) = self.lines.turn() else { return };
        tracing::warn!(
            port = self.counts.port(),
            remote_addr = from.as_deref().unwrap_or("unix"),
            reason = reason.as_str(),
            %error,
            unsaid,
            "rejected connection"
        );
    }
}
