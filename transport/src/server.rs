//! TLS settings of the accepting side.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;

use crate::files::Trusted;
use crate::pinned::Pinned;
use crate::verify::Named;
use crate::{Allowed, Error, Followed, Pair, Policy, files};

/// How a port presents itself and which clients it accepts.
#[derive(Clone, Debug)]
pub struct Server {
    /// The port's certificate.
    pub identity: Pair,
    /// CA that must have signed client certificates; `None` requests no certificate.
    pub trusted_ca: Option<PathBuf>,
    /// File of revocation lists. Certificates of a CA without a list in it are accepted.
    pub revocations: Option<PathBuf>,
    /// Names of which a client's certificate must have one.
    pub allowed: Allowed,
    /// Versions and cipher suites that may be negotiated.
    pub policy: Policy,
    /// ALPN protocols, the preferred one first.
    pub protocols: &'static [&'static [u8]],
}

/// The loaded TLS configuration of a port.
#[derive(Debug)]
pub struct ServerTls {
    /// Used for new handshakes.
    pub config: Arc<ServerConfig>,
    /// When the presented certificate expires, in seconds since 1970.
    pub not_after: i64,
}

impl Server {
    /// Loads the files; they are reloaded when they change.
    ///
    /// # Errors
    /// [`Error`] naming the file that cannot be used.
    pub fn follow(self) -> Result<Followed<ServerTls>, Error> {
        let optional = [&self.trusted_ca, &self.revocations].into_iter().flatten().cloned();
        let files = [self.identity.cert.clone(), self.identity.key.clone()];
        let files = files.into_iter().chain(optional).collect();
        Followed::new(files, move || self.read())
    }

    fn read(&self) -> Result<ServerTls, Error> {
        let provider = self.policy.provider();
        let identity = files::identity(&self.identity, &provider)?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&self.policy.versions())
            .map_err(|error| Error::Setting(error.to_string()))?;
        let builder = match self.verifier(&provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let key = SingleCertAndKey::from(identity.key);
        let mut config = builder.with_cert_resolver(Arc::new(key));
        config.alpn_protocols = self.protocols.iter().map(|name| name.to_vec()).collect();
        // A resumed session would not be verified again, not even against a new revocation list.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ServerTls { config: Arc::new(config), not_after: identity.certificate.not_after })
    }

    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, Error> {
        let Some(ca) = &self.trusted_ca else { return Ok(None) };
        let Trusted { roots, certificates } = files::roots(ca)?;
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        if let Some(path) = &self.revocations {
            builder =
                builder.with_crls(files::revocations(path)?).allow_unknown_revocation_status();
        }
        let inner = builder
            .build()
            .map_err(|error| files::bad_revocations(self.revocations.as_deref(), error))?;
        // A pinned certificate would not be checked against a revocation list, so with one nothing
        // is pinned.
        let trusted = if self.revocations.is_none() { certificates } else { Vec::new() };
        let verifier: Arc<dyn ClientCertVerifier> = Arc::new(Pinned { trusted, inner });
        if self.allowed.is_any() {
            return Ok(Some(verifier));
        }
        Ok(Some(Arc::new(Named { allowed: self.allowed.clone(), inner: verifier })))
    }
}
