//! Certificates that are trusted as they are: an authority's own, shown by whoever has its key.
//!
//! `openssl req -x509` makes such a certificate, and many give it to servers and clients as it is and name it as their own
//! authority. Go takes it; rustls takes no authority's certificate for anybody's. What is listed as trusted, to the
//! byte, has nobody else to be verified by: what is left is its time, its purpose and its names.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::Certificate;
use crate::verify::signatures_by_inner;

/// Verifies by `inner`, and then whether what it cannot take is trusted itself.
#[derive(Debug)]
pub(crate) struct Pinned<V: ?Sized> {
    pub(crate) trusted: Vec<CertificateDer<'static>>,
    pub(crate) inner: Arc<V>,
}

/// Side of a connection.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Server,
}

impl<V: ?Sized> Pinned<V> {
    /// Whether a certificate is good at a time for one side though `refusal` is what the inner verifier says.
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        side: Side,
        now: UnixTime,
        refusal: Error,
    ) -> Result<(), Error> {
        // What rustls has a word for is another fault.
        let is_odd = matches!(refusal, Error::InvalidCertificate(CertificateError::Other(_)));
        if !is_odd || !self.trusted.iter().any(|trusted| trusted == certificate) {
            return Err(refusal);
        }
        let Some(parsed) = Certificate::parse(certificate) else { return Err(refusal) };
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let fault = if now > parsed.not_after {
            Some(CertificateError::Expired)
        } else if now < parsed.not_before {
            Some(CertificateError::NotValidYet)
        } else {
            let is_for = match side {
                Side::Client => parsed.purposes.clients,
                Side::Server => parsed.purposes.servers,
            };
            (!is_for).then_some(CertificateError::InvalidPurpose)
        };
        fault.map_or(Ok(()), |fault| Err(Error::InvalidCertificate(fault)))
    }
}

impl ClientCertVerifier for Pinned<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.inner.verify_client_cert(certificate, intermediates, now).or_else(|refusal| {
            self.check(certificate, Side::Client, now, refusal)?;
            Ok(ClientCertVerified::assertion())
        })
    }

    signatures_by_inner!();
}

impl ServerCertVerifier for Pinned<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(certificate, intermediates, name, ocsp, now);
        verified.or_else(|refusal| {
            self.check(certificate, Side::Server, now, refusal)?;
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            Ok(ServerCertVerified::assertion())
        })
    }

    signatures_by_inner!();
}
