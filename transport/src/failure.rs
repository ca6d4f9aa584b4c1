//! Reasons why a handshake failed, from a closed set: used as metric labels and in log lines.

use std::error;
use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// It took too long.
    Timeout,
    /// Too many other handshakes were in progress.
    Crowded,
    /// The other side closed or lost the connection.
    Closed,
    /// The other side presented no certificate though one is needed.
    NoCertificate,
    /// Its certificate is expired or not valid yet.
    Expired,
    /// Its certificate is revoked.
    Revoked,
    /// Its certificate is not signed by a trusted CA.
    UnknownAuthority,
    /// Its certificate has none of the allowed names.
    Name,
    /// Its certificate cannot be used for another reason.
    BadCertificate,
    /// The other side refused this side's certificate.
    Refused,
    /// It did not send TLS, or there is no version or cipher suite in common.
    Protocol,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 11] = [
        Self::Timeout,
        Self::Crowded,
        Self::Closed,
        Self::NoCertificate,
        Self::Expired,
        Self::Revoked,
        Self::UnknownAuthority,
        Self::Name,
        Self::BadCertificate,
        Self::Refused,
        Self::Protocol,
    ];

    /// The reason as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Crowded => "crowded",
            Self::Closed => "closed",
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::UnknownAuthority => "unknown_authority",
            Self::Name => "name",
            Self::BadCertificate => "bad_certificate",
            Self::Refused => "refused",
            Self::Protocol => "protocol",
        }
    }

    /// The reason for a handshake that failed with this error.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        of_rustls(error).map_or(Self::Closed, Self::of_tls)
    }

    /// The TLS reason within a wrapped error, if there is one. In TLS 1.3 a client learns only from
    /// a later read that the server rejected it, for example because it sent no certificate.
    #[must_use]
    pub fn behind(error: &(dyn error::Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref().and_then(of_rustls) {
                return Some(Self::of_tls(error));
            }
            next = error.source();
        }
        None
    }

    fn of_tls(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::AlertReceived(alert) => match alert {
                AlertDescription::CloseNotify | AlertDescription::UserCanceled => Self::Closed,
                AlertDescription::ProtocolVersion
                | AlertDescription::HandshakeFailure
                | AlertDescription::NoApplicationProtocol => Self::Protocol,
                _ => Self::Refused,
            },
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Expired,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::ApplicationVerificationFailure => Self::Name,
            _ => Self::BadCertificate,
        }
    }
}

/// The TLS error inside a stream's error, if there is one.
fn of_rustls(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no answer")]
    struct Wrapped(#[source] io::Error);

    #[test]
    fn what_tls_said_is_found_behind_what_others_say() {
        let alert = Error::AlertReceived(AlertDescription::CertificateRequired);
        let refused = Wrapped(io::Error::new(io::ErrorKind::InvalidData, alert));
        assert_eq!(Reason::behind(&refused), Some(Reason::Refused));
        let closed = Wrapped(io::ErrorKind::UnexpectedEof.into());
        assert_eq!(Reason::behind(&closed), None, "that may be anything");
    }
}
