//! The connecting side.

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

/// Whom to believe to be the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// Who is signed by an authority that the system trusts.
    #[default]
    System,
    /// Who is signed by an authority of this file.
    Ca(PathBuf),
    /// Anyone.
    Skipped,
}

/// How somebody who connects presents itself, and whom it talks to.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Whom to believe.
    pub verification: Verification,
    /// What it presents if asked.
    pub identity: Option<Pair>,
    /// Name that the server's certificate must have, if not that of the address.
    pub server_name: Option<String>,
    /// Certificates that count no more.
    pub revocations: Option<PathBuf>,
    /// Names of which the server must have one in addition.
    pub allowed: Allowed,
    /// What may be negotiated.
    pub policy: Policy,
}

/// The TLS of somebody who connects, as its files say.
#[derive(Debug)]
pub struct ClientTls {
    /// For new handshakes; what is to be spoken is said by each of them.
    pub config: Arc<ClientConfig>,
    /// Name to ask for, if not that of the address.
    pub server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Shakes hands with `host`, a name or an address without brackets, on a connection that was made before. What
    /// is to be spoken on it is one of `protocols` (ALPN); if there are none, nothing is said about it. A name in the
    /// settings goes before `host`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if no certificate can be for `host`; else what the handshake reports, which
    /// [`Reason::of`](crate::Reason::of) puts in a word.
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
        // Costs next to nothing: all that is large is shared.
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        Ok(Stream::Tls(Box::new(connected)))
    }
}

impl Client {
    /// Reads the files, and again whenever they change.
    ///
    /// # Errors
    /// [`Error`] with the file or name that cannot be used.
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
                // Nothing would look for it in a list.
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
