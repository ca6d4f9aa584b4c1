//! TLS for connections to servers.

use std::path::PathBuf;
use std::sync::Arc;

use conclave_transport::{Client as Options, ClientTls, Followed, Pair, Verification};

use crate::error::Error;

/// TLS settings for [`Builder::tls`](crate::Builder::tls): which servers to trust, and which
/// certificate to present.
///
/// By default the servers' certificates must be signed by an authority that the system trusts and
/// be valid for the host of the endpoint. Files are read when the client is built, and again before
/// a connection is made after they changed, so certificates can be replaced while the client runs.
/// If a changed file cannot be used, the previous content stays in use.
///
/// ```no_run
/// # async fn example() -> Result<(), conclave_client::Error> {
/// use conclave_client::{Client, Tls};
///
/// // For servers that require client certificates (--client-cert-auth).
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
    /// Trusts the system's authorities and presents no certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts only servers whose certificates are signed by an authority in this file (PEM).
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.verification = Verification::Ca(path.into());
        self
    }

    /// Presents this certificate (PEM, with its chain) to servers that ask for one.
    pub fn client_certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.options.identity = Some(Pair { cert: cert.into(), key: key.into() });
        self
    }

    /// Expects this name in the server's certificate instead of the endpoint's host.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.options.server_name = Some(name.into());
        self
    }

    /// Trusts any server, for tests only: anyone between client and server can then read and change
    /// everything.
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
