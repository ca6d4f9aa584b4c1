//! TLS settings and handshakes of the connecting side.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio_rustls::TlsConnector;

use crate::files::Trusted;
use crate::pinned::Pinned;
use crate::verify::{Anyone, Named};
use crate::{Allowed, Error, Followed, Pair, Policy, Socket, Stream, files};

/// Which server certificates to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// Certificates signed by a CA that the system trusts.
    #[default]
    System,
    /// Certificates signed by a CA in this file.
    Ca(PathBuf),
    /// Any certificate.
    Skipped,
}

/// TLS settings of the connecting side.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Which server certificates to trust.
    pub verification: Verification,
    /// Certificate to present if the server asks for one.
    pub identity: Option<Pair>,
    /// Name that the server's certificate must have, if not the host of the address.
    pub server_name: Option<String>,
    /// File of revoked certificates.
    pub revocations: Option<PathBuf>,
    /// Names of which the server's certificate must have one, in addition.
    pub allowed: Allowed,
    /// Versions and cipher suites that may be negotiated.
    pub policy: Policy,
}

/// The loaded TLS configuration of the connecting side.
#[derive(Debug)]
pub struct ClientTls {
    /// Used for new handshakes, each of which adds its own ALPN protocols.
    pub config: Arc<ClientConfig>,
    /// Name to verify, if not the host of the address.
    pub server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Performs a handshake with `host`, a name or an address without brackets, over an existing
    /// connection. `protocols` are offered by ALPN; if empty, ALPN is not used. A server name in
    /// the settings takes precedence over `host`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if no certificate can be valid for `host`; otherwise the
    /// handshake's error, which [`Reason::of`](crate::Reason::of) classifies.
    pub async fn shake(
        &self,
        host: &str,
        protocols: &[&[u8]],
        socket: Socket,
    ) -> io::Result<Stream> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
        };
        // Cheap: everything large is shared.
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        Ok(Stream::Tls(Box::new(connected)))
    }
}

impl Client {
    /// Loads the files; they are reloaded when they change.
    ///
    /// # Errors
    /// [`Error`] naming the file or setting that cannot be used.
    pub fn follow(self) -> Result<Followed<ClientTls>, Error> {
        let mut files: Vec<PathBuf> = self.revocations.iter().cloned().collect();
        if let Verification::Ca(path) = &self.verification {
            files.push(path.clone());
        }
        files.extend(self.identity.iter().flat_map(|pair| [pair.cert.clone(), pair.key.clone()]));
        Followed::new(files, move || self.read())
    }

    fn read(&self) -> Result<ClientTls, Error> {
        let provider = self.policy.provider();
        let verifier = self.verifier(&provider)?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&self.policy.versions())
            .map_err(|error| Error::Setting(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            Some(pair) => {
                let key = SingleCertAndKey::from(files::identity(pair, &provider)?.key);
                builder.with_client_cert_resolver(Arc::new(key))
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        let server_name = self.server_name.clone().map(|name| {
            let parsed = ServerName::try_from(name.clone());
            parsed.map_err(|error| Error::Setting(format!("server name {name:?}: {error}")))
        });
        Ok(ClientTls { config: Arc::new(config), server_name: server_name.transpose()? })
    }

    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        let verifier: Arc<dyn ServerCertVerifier> = match &self.verification {
            Verification::Skipped => return Ok(Arc::new(Anyone(provider.clone()))),
            Verification::System => self.web_pki(files::system_roots()?, provider)?,
            Verification::Ca(path) => {
                let Trusted { roots, certificates } = files::roots(path)?;
                // A pinned certificate would not be checked against a revocation list, so with one
                // nothing is pinned.
                let trusted = if self.revocations.is_none() { certificates } else { Vec::new() };
                let inner: Arc<dyn ServerCertVerifier> = self.web_pki(roots, provider)?;
                Arc::new(Pinned { trusted, inner })
            }
        };
        if self.allowed.is_any() {
            return Ok(verifier);
        }
        Ok(Arc::new(Named { allowed: self.allowed.clone(), inner: verifier }))
    }

    fn web_pki(
        &self,
        roots: Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let mut builder = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
        if let Some(path) = &self.revocations {
            builder =
                builder.with_crls(files::revocations(path)?).allow_unknown_revocation_status();
        }
        builder.build().map_err(|error| files::bad_revocations(self.revocations.as_deref(), error))
    }
}
