//! Keys in PEM files: as much of the format, and of the DER inside, as ring does not read itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const INTEGER: u8 = 0x02;
/// The public key in a SEC1 private key.
const PUBLIC_IN_EC: u8 = 0xa1;

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

/// The first public key of a file, without what says of which kind it is.
pub(super) fn public_key(file: &[u8]) -> Option<Vec<u8>> {
    if let Some(key) = section(file, "RSA PUBLIC KEY") {
        return Some(key);
    }
    let key = section(file, "PUBLIC KEY")?;
    let (content, _) = element(&key, SEQUENCE)?;
    let (_algorithm, rest) = element(content, SEQUENCE)?;
    bits(rest).map(<[u8]>::to_vec)
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
        ] {
            assert!(public_key(file.as_bytes()).is_none());
            assert!(private_key(file.as_bytes()).is_none());
        }
    }
}
