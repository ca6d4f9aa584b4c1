//! Why a handshake failed, from a closed set: labels of a metric and words for a log line.

use std::error;
use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// It took too long.
    Timeout,
    /// Too many others were under way.
    Crowded,
    /// The other side closed or lost the connection.
    Closed,
    /// The other side presented no certificate though one is needed.
    NoCertificate,
    /// Its certificate is expired or not valid yet.
    Expired,
    /// Its certificate is revoked.
    Revoked,
    /// Its certificate is signed by nobody whom this side trusts.
    UnknownAuthority,
    /// Its certificate has no name that it may have.
    Name,
    /// Its certificate cannot be used for another reason.
    BadCertificate,
    /// The other side refused this side's certificate.
    Refused,
    /// What it sent is not TLS, or there is no version or cipher suite in common.
    Protocol,
}

impl Reason {
    /// All of them.
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

    /// In one word.
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

    /// Of a handshake that ended with this error.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        of_rustls(error).map_or(Self::Closed, Self::of_tls)
    }

    /// Of TLS, if it is behind an error that others have wrapped. By version 1.3 whoever connects hears only from what it
    /// reads that the other side does not go on, for want of a certificate say.
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

/// What an error of a stream holds, if TLS made it.
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
