//! Why a handshake failed, from a closed set: labels of a metric and words for a log line.

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
        match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
            Some(error) => Self::of_tls(error),
            None => Self::Closed,
        }
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
