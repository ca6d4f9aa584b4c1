//! Names that a certificate must have in addition to being signed by a trusted CA.

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

use crate::Certificate;

/// Names of which a certificate must have one; empty allows any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Common names, compared exactly.
    pub common_names: Vec<String>,
    /// Host names or addresses that the certificate must be valid for.
    pub hostnames: Vec<String>,
}

impl Allowed {
    /// Whether every verified certificate is allowed.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.common_names.is_empty() && self.hostnames.is_empty()
    }

    /// Whether a verified certificate is allowed.
    pub(crate) fn permits(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.is_any() {
            return true;
        }
        let parsed = Certificate::parse(certificate);
        let name = parsed.and_then(|certificate| certificate.common_name);
        name.is_some_and(|name| self.common_names.contains(&name))
            || self.hostnames.iter().any(|host| is_valid_for(certificate, host))
    }
}

fn is_valid_for(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let (Ok(certificate), Ok(host)) =
        (ParsedCertificate::try_from(certificate), ServerName::try_from(host))
    else {
        return false;
    };
    verify_server_name(&certificate, &host).is_ok()
}
