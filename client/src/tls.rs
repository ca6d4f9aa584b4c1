//! How connections are secured.

use std::path::PathBuf;
use std::sync::Arc;

use conclave_transport::{Client as Options, ClientTls, Followed, Pair, Verification};

use crate::error::Error;

/// Settings of TLS for [`Builder::tls`](crate::Builder::tls): whom to believe, and what to present.
///
/// Without further settings the servers' certificates must be signed by an authority that the system
/// trusts and be valid for the host of the endpoint. Files are read when the client is built and again
/// before a connection is made after they changed, so certificates can be replaced under a running
/// client; if a changed file cannot be used, what was read before is.
///
/// ```no_run
/// # async fn example() -> Result<(), conclave_client::Error> {
/// use conclave_client::{Client, Tls};
///
/// // For servers that let in only whom their authority knows (--client-cert-auth).
/// let tls = Tls::new()
///     .ca_file("/etc/app/ca.pem")
///     .client_certificate("/etc/app/app.pem", "/etc/app/app-key.pem");
/// let client = Client::builder(["https://db-1:2379", "https://db-2:2379"]).tls(tls).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "settings do nothing until a builder gets them"]
pub struct Tls {
    options: Options,
}

impl Tls {
    /// The system's authorities, no certificate of one's own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Believes servers whose certificates an authority in this file (PEM) has signed.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.verification = Verification::Ca(path.into());
        self
    }

    /// Presents a certificate (PEM, with its chain) to servers that ask for one.
    pub fn client_certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.options.identity = Some(Pair { cert: cert.into(), key: key.into() });
        self
    }

    /// Asks for a certificate with this name instead of the endpoint's host.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.options.server_name = Some(name.into());
        self
    }

    /// Believes any server. Whoever can get between client and server can then read and change
    /// everything: for tests.
    pub fn insecure_skip_verify(mut self) -> Self {
        self.options.verification = Verification::Skipped;
        self
    }

    /// Reads the files.
    pub(crate) fn follow(self) -> Result<Arc<Followed<ClientTls>>, Error> {
        let followed = self.options.follow();
        let followed = followed.map_err(|error| Error::Config { message: error.to_string() })?;
        Ok(Arc::new(followed))
    }
}
