//! Keys in PEM files: as much of the format, and of the DER inside, as ring does not read itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const INTEGER: u8 = 0x02;
/// The public key in a SEC1 private key.
const PUBLIC_IN_EC: u8 = 0xa1;

/// As an element of a certificate that may be left out.
const VERSION: u8 = 0xa0;
const OBJECT_ID: u8 = 0x06;

/// Identifiers of kinds of keys and of curves (RFC 3279, 5480, 8410).
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0, 0x22];
const P521: &[u8] = &[0x2b, 0x81, 0x04, 0, 0x23];

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Rsa {
        bits: usize,
    },
    P256,
    P384,
    P521,
    /// An elliptic key of another curve, or of one that the file does not name.
    OtherCurve,
    Ed25519,
    Other,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Kind::Rsa { bits } => return write!(formatter, "an RSA key of {bits} bits"),
            Kind::P256 => "an elliptic key of the curve P-256",
            Kind::P384 => "an elliptic key of the curve P-384",
            Kind::P521 => "an elliptic key of the curve P-521",
            Kind::OtherCurve => "an elliptic key of an unknown curve",
            Kind::Ed25519 => "an Ed25519 key",
            Kind::Other => "a key of an unknown kind",
        })
    }
}

/// A private key, by the form of its file.
pub(super) enum PrivateKey {
    Pkcs8(Vec<u8>),
    /// PKCS#1.
    Rsa(Vec<u8>),
    /// SEC1.
    Ec {
        secret: Vec<u8>,
        public: Vec<u8>,
    },
}

/// The first private key of a file.
pub(super) fn private_key(file: &[u8]) -> Option<PrivateKey> {
    if let Some(key) = section(file, "PRIVATE KEY") {
        return Some(PrivateKey::Pkcs8(key));
    }
    if let Some(key) = section(file, "RSA PRIVATE KEY") {
        return Some(PrivateKey::Rsa(key));
    }
    let (secret, public) = ec(&section(file, "EC PRIVATE KEY")?)?;
    Some(PrivateKey::Ec { secret, public: public? })
}

/// The secret of an elliptic private key in the form PKCS#8, and the public key if it is there.
pub(super) fn ec_in_pkcs8(key: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let (content, _) = element(key, SEQUENCE)?;
    let (_version, rest) = element(content, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (inner, _) = element(rest, OCTET_STRING)?;
    ec(inner)
}

/// The same in the form SEC1.
fn ec(key: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let (content, _) = element(key, SEQUENCE)?;
    let (_version, rest) = element(content, INTEGER)?;
    let (secret, mut rest) = element(rest, OCTET_STRING)?;
    while let Some((tag, content, next)) = any_element(rest) {
        if tag == PUBLIC_IN_EC {
            return Some((secret.to_vec(), Some(bits(content)?.to_vec())));
        }
        rest = next;
    }
    Some((secret.to_vec(), None))
}

/// Of which kind the first private key of a file is.
pub(super) fn private_kind(file: &[u8]) -> Option<Kind> {
    match private_key(file)? {
        PrivateKey::Rsa(key) => rsa_private_kind(&key),
        PrivateKey::Ec { secret, .. } => Some(match secret.len() {
            32 => Kind::P256,
            48 => Kind::P384,
            66 => Kind::P521,
            _ => Kind::OtherCurve,
        }),
        PrivateKey::Pkcs8(key) => {
            let (content, _) = element(&key, SEQUENCE)?;
            let (_version, rest) = element(content, INTEGER)?;
            let (algorithm, rest) = element(rest, SEQUENCE)?;
            let kind = kind(algorithm)?;
            let (inner, _) = element(rest, OCTET_STRING)?;
            if matches!(kind, Kind::Rsa { .. }) { rsa_private_kind(inner) } else { Some(kind) }
        }
    }
}

/// A public key.
pub(super) struct PublicKey {
    pub(super) kind: Kind,
    /// Without what says of which kind it is.
    pub(super) bytes: Vec<u8>,
}

/// The first public key of a file, or that of the first certificate.
pub(super) fn public_key(file: &[u8]) -> Option<PublicKey> {
    if let Some(bytes) = section(file, "RSA PUBLIC KEY") {
        return Some(PublicKey { kind: rsa_kind(&bytes)?, bytes });
    }
    match section(file, "PUBLIC KEY") {
        Some(key) => described(element(&key, SEQUENCE)?.0),
        None => described(of_certificate(&section(file, "CERTIFICATE")?)?),
    }
}

/// What a certificate says of its key (RFC 5280, 4.1). Whether it is still good is not looked at: etcd does not either.
fn of_certificate(certificate: &[u8]) -> Option<&[u8]> {
    let (content, _) = element(certificate, SEQUENCE)?;
    let (signed, _) = element(content, SEQUENCE)?;
    let rest = element(signed, VERSION).map_or(signed, |(_version, rest)| rest);
    let (_serial, rest) = element(rest, INTEGER)?;
    let (_signature, rest) = element(rest, SEQUENCE)?;
    let (_issuer, rest) = element(rest, SEQUENCE)?;
    let (_validity, rest) = element(rest, SEQUENCE)?;
    let (_subject, rest) = element(rest, SEQUENCE)?;
    element(rest, SEQUENCE).map(|(key, _)| key)
}

/// A public key that says of which kind it is.
fn described(key: &[u8]) -> Option<PublicKey> {
    let (algorithm, rest) = element(key, SEQUENCE)?;
    let bytes = bits(rest)?.to_vec();
    let kind = match kind(algorithm)? {
        Kind::Rsa { .. } => rsa_kind(&bytes)?,
        kind => kind,
    };
    Some(PublicKey { kind, bytes })
}

/// What an algorithm's identifier says; of an RSA key the bits are not known by that.
fn kind(algorithm: &[u8]) -> Option<Kind> {
    let (algorithm, parameters) = element(algorithm, OBJECT_ID)?;
    Some(match algorithm {
        RSA => Kind::Rsa { bits: 0 },
        ED25519 => Kind::Ed25519,
        EC => match element(parameters, OBJECT_ID) {
            Some((P256, _)) => Kind::P256,
            Some((P384, _)) => Kind::P384,
            Some((P521, _)) => Kind::P521,
            Some(_) | None => Kind::OtherCurve,
        },
        _ => Kind::Other,
    })
}

fn rsa_private_kind(key: &[u8]) -> Option<Kind> {
    let (content, _) = element(key, SEQUENCE)?;
    let (_version, rest) = element(content, INTEGER)?;
    Some(Kind::Rsa { bits: bits_of(element(rest, INTEGER)?.0) })
}

fn rsa_kind(key: &[u8]) -> Option<Kind> {
    let (content, _) = element(key, SEQUENCE)?;
    Some(Kind::Rsa { bits: bits_of(element(content, INTEGER)?.0) })
}

/// How long a number is without the zeros before it.
fn bits_of(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let number = &number[zeros..];
    let unused = number.first().map_or(0, |byte| byte.leading_zeros());
    number.len() * 8 - usize::try_from(unused).unwrap_or(0)
}

/// What stands between the lines with `label`.
fn section(file: &[u8], label: &str) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(file).ok()?;
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let body: String = body.split_whitespace().collect();
    STANDARD.decode(body).ok()
}

/// A bit string of whole bytes.
fn bits(der: &[u8]) -> Option<&[u8]> {
    match element(der, BIT_STRING)? {
        ([0, bytes @ ..], _) => Some(bytes),
        _ => None,
    }
}

/// The content of an element with this tag, and what follows it.
fn element(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = any_element(der)?;
    (tag == wanted).then_some((content, rest))
}

fn any_element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // Keys are short: two bytes of length are enough.
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), rest.get(2..)?),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_hold_no_key() {
        for file in [
            "",
            "-----BEGIN PUBLIC KEY-----\n!!!\n-----END PUBLIC KEY-----",
            "-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----",
            "-----BEGIN PUBLIC KEY-----\nMIL/\n-----END PUBLIC KEY-----",
            "-----BEGIN EC PRIVATE KEY-----\nMAMCAQE=\n-----END EC PRIVATE KEY-----",
            "-----BEGIN RSA PUBLIC KEY-----\nMAA=\n-----END RSA PUBLIC KEY-----",
            "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
            "-----BEGIN CERTIFICATE-----\nMAQwAgIA\n-----END CERTIFICATE-----",
        ] {
            assert!(public_key(file.as_bytes()).is_none());
            assert!(private_key(file.as_bytes()).is_none());
            assert!(private_kind(file.as_bytes()).is_none());
        }
    }

    #[test]
    fn zeros_before_a_number_are_not_counted() {
        assert_eq!(bits_of(&[]), 0);
        assert_eq!(bits_of(&[0, 0]), 0);
        assert_eq!(bits_of(&[0, 0x80, 0]), 16);
        assert_eq!(bits_of(&[1]), 1);
    }
}
