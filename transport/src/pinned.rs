//! Trusts a listed certificate by equality: a CA's own certificate, presented by the holder of its
//! key.
//!
//! `openssl req -x509` makes such a certificate; many people give it to servers and clients
//! directly and list it as their CA. Go accepts that; rustls never accepts a CA certificate as a
//! server's or client's. A certificate that is byte for byte in the trusted list needs no other
//! signature: only its validity, purpose and names are checked.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::Certificate;
use crate::verify::signatures_by_inner;

/// Verifies by `inner`; a certificate that `inner` cannot handle may be trusted itself.
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
    /// Accepts a trusted certificate that is valid now for `side`, although the inner verifier
    /// returned `refusal`.
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        side: Side,
        now: UnixTime,
        refusal: Error,
    ) -> Result<(), Error> {
        // rustls reports a CA certificate as `Other`; any named error is a different fault.
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
