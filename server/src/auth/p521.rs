//! ES512: signatures by the curve P-521, the only one of etcd's methods that ring does not know.

use p521::ecdsa::signature::{Signer as _, Verifier as _};
use p521::ecdsa::{Signature, SigningKey, VerifyingKey};

use super::pem::{self, PrivateKey};

/// Bytes of a private key. A shorter one is of another curve, though its number would do.
const SECRET_BYTES: usize = 66;

/// Signs by a private key.
pub(super) struct Signer(SigningKey);

/// Verifies by a public key.
pub(super) struct Verifier(VerifyingKey);

impl Signer {
    /// By the first private key of a PEM file; `None` if that is none of this curve.
    pub(super) fn of(file: &[u8]) -> Option<Self> {
        let (secret, public) = match pem::private_key(file)? {
            PrivateKey::Ec { secret, public } => (secret, Some(public)),
            PrivateKey::Pkcs8(key) => pem::ec_in_pkcs8(&key)?,
            PrivateKey::Rsa(_) => return None,
        };
        if secret.len() != SECRET_BYTES {
            return None;
        }
        let signer = Self(SigningKey::from_slice(&secret).ok()?);
        let is_pair = public.is_none_or(|public| public == signer.public_key());
        is_pair.then_some(signer)
    }

    /// Both numbers of the signature, one after the other.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signature: Signature = self.0.try_sign(message).ok()?;
        Some(signature.to_bytes().to_vec())
    }

    /// As in a file: the point, not compressed.
    pub(super) fn public_key(&self) -> Vec<u8> {
        self.0.verifying_key().to_sec1_point(false).as_bytes().to_vec()
    }
}

impl Verifier {
    /// By a point; `None` if it is not on this curve.
    pub(super) fn of(public: &[u8]) -> Option<Self> {
        VerifyingKey::from_sec1_bytes(public).ok().map(Self)
    }

    /// `None` if it is not the signature of the message.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        self.0.verify(message, &Signature::from_slice(signature).ok()?).ok()
    }
}

/// A signature as everybody else writes it.
#[cfg(test)]
pub(super) fn der(numbers: &[u8]) -> Option<Vec<u8>> {
    Some(Signature::from_slice(numbers).ok()?.to_der().as_bytes().to_vec())
}
