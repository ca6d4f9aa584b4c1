//! JSON web tokens: signed by whoever has the private key, good on every member until they expire or users
//! and roles change.
//!
//! The few forms that etcd knows, on ring, and one on `p521`. `jsonwebtoken` would add parsers and a crypto interface
//! of its own, and could still do nothing without a provider written here.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaEncoding,
    RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::{Deserialize, Serialize};

use super::{p521, pem};
use crate::config::JwtSettings;

/// Tokens beyond this size are nobody's: claims are a name and two numbers.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Why tokens of this kind cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// No such method.
    #[error(
        "--auth-token: sign-method {0:?} is not supported (RS, PS, ES and HS 256 to 512, EdDSA are)"
    )]
    Method(String),
    /// A key is needed.
    #[error("--auth-token: no {0} is given")]
    Missing(&'static str),
    /// A file cannot be read.
    #[error("--auth-token: {path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system reports.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no key for the method.
    #[error("--auth-token: {path} holds no {kind} key for this sign-method", path = path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Public or private.
        kind: &'static str,
    },
}

/// Signs and verifies tokens by one method.
pub(super) struct Jwt {
    method: String,
    ttl: Duration,
    signer: Option<Signer>,
    verifier: Verifier,
}

enum Signer {
    Hmac(hmac::Key),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    P521(Box<p521::Signer>),
    Ed25519(Ed25519KeyPair),
}

enum Verifier {
    Hmac(hmac::Key),
    Public(UnparsedPublicKey<Vec<u8>>),
    P521(Box<p521::Verifier>),
}

/// The families of methods, with what ring calls them.
enum Family {
    Hmac(hmac::Algorithm),
    Rsa(&'static dyn RsaEncoding, &'static dyn VerificationAlgorithm),
    Ecdsa(&'static EcdsaSigningAlgorithm, &'static dyn VerificationAlgorithm),
    P521,
    Ed25519,
}

fn family(method: &str) -> Option<Family> {
    Some(match method {
        "HS256" => Family::Hmac(hmac::HMAC_SHA256),
        "HS384" => Family::Hmac(hmac::HMAC_SHA384),
        "HS512" => Family::Hmac(hmac::HMAC_SHA512),
        "RS256" => {
            Family::Rsa(&signature::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256)
        }
        "RS384" => {
            Family::Rsa(&signature::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_2048_8192_SHA384)
        }
        "RS512" => {
            Family::Rsa(&signature::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_2048_8192_SHA512)
        }
        "PS256" => Family::Rsa(&signature::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256),
        "PS384" => Family::Rsa(&signature::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384),
        "PS512" => Family::Rsa(&signature::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512),
        "ES256" => Family::Ecdsa(
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &signature::ECDSA_P256_SHA256_FIXED,
        ),
        "ES384" => Family::Ecdsa(
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            &signature::ECDSA_P384_SHA384_FIXED,
        ),
        "ES512" => Family::P521,
        "EdDSA" => Family::Ed25519,
        _ => return None,
    })
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: String,
}

/// etcd's claims.
#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    /// Unix time; without it a token is good for ever, as in etcd.
    exp: Option<u64>,
}

/// What a good token says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) user: String,
    /// As of which it was given out.
    pub(super) auth_revision: u64,
    /// How long it certainly will be good from now on.
    pub(super) good_for: Duration,
}

impl Jwt {
    pub(super) fn load(settings: &JwtSettings) -> Result<Self, JwtError> {
        let unsupported = || JwtError::Method(settings.method.clone());
        let family = family(&settings.method).ok_or_else(unsupported)?;
        let private = settings.private_key.as_ref().map(|path| Ok((path, read(path)?)));
        let private = private.transpose()?;
        let signer = match &private {
            Some((path, bytes)) => Some(
                signer(&family, bytes)
                    .ok_or_else(|| JwtError::Key { path: (*path).clone(), kind: "private" })?,
            ),
            None => None,
        };
        let verifier = match (&family, &settings.public_key) {
            (Family::Hmac(_), _) => {
                let (_, bytes) = private.as_ref().ok_or(JwtError::Missing("priv-key"))?;
                secret(&family, bytes).map(Verifier::Hmac)
            }
            (_, Some(path)) => {
                let key = pem::public_key(&read(path)?);
                let no_key = || JwtError::Key { path: path.clone(), kind: "public" };
                let key = key.ok_or_else(no_key)?;
                Some(public(&family, key).ok_or_else(no_key)?)
            }
            (_, None) => {
                let own = signer.as_ref().ok_or(JwtError::Missing("pub-key or priv-key"))?;
                public(&family, own.public_key())
            }
        };
        let verifier = verifier.ok_or_else(unsupported)?;
        Ok(Self { method: settings.method.clone(), ttl: settings.ttl, signer, verifier })
    }

    /// A token for a user as of an auth revision; `None` if this member only verifies.
    pub(super) fn sign(&self, user: &str, auth_revision: u64, now_unix: u64) -> Option<String> {
        let header = Header { alg: self.method.clone(), typ: "JWT".to_owned() };
        let claims = Claims {
            username: user.to_owned(),
            revision: auth_revision,
            exp: Some(now_unix.saturating_add(self.ttl.as_secs())),
        };
        let [header, claims] = [serde_json::to_vec(&header), serde_json::to_vec(&claims)];
        let message = format!("{}.{}", BASE64.encode(header.ok()?), BASE64.encode(claims.ok()?));
        let signature = self.signer.as_ref()?.sign(message.as_bytes())?;
        Some(format!("{message}.{}", BASE64.encode(signature)))
    }

    /// What a token says; `None` if it is not good.
    pub(super) fn verify(&self, token: &str, now_unix: u64) -> Option<Said> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header: Header = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
        // The key decides the method, never the token: else a public key could be used as a secret.
        if header.alg != self.method {
            return None;
        }
        let signature = BASE64.decode(signature).ok()?;
        self.verifier.verify(message.as_bytes(), &signature)?;
        let claims: Claims = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
        let is_over = claims.exp.is_some_and(|until| until <= now_unix);
        // The second in which it ends may be this one's last moment.
        let whole = claims.exp.map_or(u64::MAX, |until| until.saturating_sub(now_unix + 1));
        (!is_over && !claims.username.is_empty()).then_some(Said {
            user: claims.username,
            auth_revision: claims.revision,
            good_for: Duration::from_secs(whole),
        })
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, JwtError> {
    std::fs::read(path).map_err(|source| JwtError::File { path: path.clone(), source })
}

fn secret(family: &Family, bytes: &[u8]) -> Option<hmac::Key> {
    match family {
        Family::Hmac(algorithm) => Some(hmac::Key::new(*algorithm, bytes)),
        Family::Rsa(..) | Family::Ecdsa(..) | Family::P521 | Family::Ed25519 => None,
    }
}

fn public(family: &Family, key: Vec<u8>) -> Option<Verifier> {
    let algorithm: &'static dyn VerificationAlgorithm = match family {
        Family::Hmac(_) => return None,
        Family::Rsa(_, algorithm) | Family::Ecdsa(_, algorithm) => *algorithm,
        Family::P521 => return p521::Verifier::of(&key).map(Box::new).map(Verifier::P521),
        Family::Ed25519 => &signature::ED25519,
    };
    Some(Verifier::Public(UnparsedPublicKey::new(algorithm, key)))
}

fn signer(family: &Family, bytes: &[u8]) -> Option<Signer> {
    let random = SystemRandom::new();
    match family {
        Family::Hmac(_) => secret(family, bytes).map(Signer::Hmac),
        Family::Rsa(encoding, _) => {
            let pair = match pem::private_key(bytes)? {
                pem::PrivateKey::Pkcs8(key) => RsaKeyPair::from_pkcs8(&key),
                pem::PrivateKey::Rsa(key) => RsaKeyPair::from_der(&key),
                pem::PrivateKey::Ec { .. } => return None,
            };
            pair.ok().map(|pair| Signer::Rsa(pair, *encoding))
        }
        Family::Ecdsa(algorithm, _) => {
            let pair = match pem::private_key(bytes)? {
                pem::PrivateKey::Pkcs8(key) => EcdsaKeyPair::from_pkcs8(algorithm, &key, &random),
                pem::PrivateKey::Ec { secret, public } => {
                    EcdsaKeyPair::from_private_key_and_public_key(
                        algorithm, &secret, &public, &random,
                    )
                }
                pem::PrivateKey::Rsa(_) => return None,
            };
            pair.ok().map(Signer::Ecdsa)
        }
        Family::P521 => p521::Signer::of(bytes).map(Box::new).map(Signer::P521),
        Family::Ed25519 => match pem::private_key(bytes)? {
            pem::PrivateKey::Pkcs8(key) => {
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key).ok().map(Signer::Ed25519)
            }
            pem::PrivateKey::Rsa(_) | pem::PrivateKey::Ec { .. } => None,
        },
    }
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Signer::Hmac(key) => Some(hmac::sign(key, message).as_ref().to_vec()),
            Signer::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).ok()?;
                Some(signature)
            }
            Signer::Ecdsa(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Signer::P521(key) => key.sign(message),
            Signer::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
        }
    }

    fn public_key(&self) -> Vec<u8> {
        match self {
            Signer::Hmac(_) => Vec::new(),
            Signer::Rsa(pair, _) => pair.public_key().as_ref().to_vec(),
            Signer::Ecdsa(pair) => pair.public_key().as_ref().to_vec(),
            Signer::P521(key) => key.public_key(),
            Signer::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
        }
    }
}

impl Verifier {
    fn verify(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        match self {
            Verifier::Hmac(key) => hmac::verify(key, message, signature).ok(),
            Verifier::Public(key) => key.verify(message, signature).ok(),
            Verifier::P521(key) => key.verify(message, signature),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    fn load(method: &str, private: Option<&[u8]>, public: Option<&[u8]>) -> Result<Jwt, JwtError> {
        let (private, public) = (private.map(file), public.map(file));
        Jwt::load(&JwtSettings {
            method: method.to_owned(),
            private_key: private.as_ref().map(|file| file.path().to_owned()),
            public_key: public.as_ref().map(|file| file.path().to_owned()),
            ttl: Duration::from_secs(60),
        })
    }

    fn check(jwt: &Jwt, verifying: &Jwt) {
        let token = jwt.sign("ann", 7, NOW).expect("it signs");
        for (now, seconds) in [(NOW, 59), (NOW + 58, 1), (NOW + 59, 0)] {
            let good_for = Duration::from_secs(seconds);
            let said = Said { user: "ann".to_owned(), auth_revision: 7, good_for };
            assert_eq!(verifying.verify(&token, now), Some(said));
        }
        assert_eq!(verifying.verify(&token, NOW + 60), None, "expired");
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = message.split_once('.').unwrap();
        let claims = r#"{"username":"root","revision":7,"exp":9999999999}"#;
        let forged = format!("{header}.{}.{signature}", BASE64.encode(claims));
        assert_eq!(verifying.verify(&forged, NOW), None, "another's claims");
        for broken in ["", ".", "..", "a.b.c", message, &token[1..], &token[..token.len() - 2]] {
            assert_eq!(verifying.verify(broken, NOW), None, "{broken:?}");
        }
    }

    #[test]
    fn elliptic_keys_and_secrets_sign_what_they_verify() {
        let random = SystemRandom::new();
        for (method, algorithm) in [
            ("ES256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            ("ES384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        ] {
            let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            let key = pem("PRIVATE KEY", key.as_ref());
            let jwt = load(method, Some(key.as_bytes()), None).unwrap();
            check(&jwt, &jwt);
        }
        let key = pem("PRIVATE KEY", Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref());
        let jwt = load("EdDSA", Some(key.as_bytes()), None).unwrap();
        check(&jwt, &jwt);
        for method in ["HS256", "HS384", "HS512"] {
            let jwt = load(method, Some(b"a secret of some length"), None).unwrap();
            check(&jwt, &jwt);
            let other = load(method, Some(b"another secret"), None).unwrap();
            let token = jwt.sign("ann", 7, NOW).unwrap();
            assert_eq!(other.verify(&token, NOW), None);
        }
    }

    /// Keys as people make them; nothing is checked where openssl is not installed.
    fn openssl(arguments: &[&str]) -> Option<Vec<u8>> {
        let output = Command::new("openssl").args(arguments).output().ok()?;
        output.status.success().then_some(output.stdout)
    }

    #[test]
    fn keys_of_openssl_are_read_in_all_their_forms() {
        let Some(rsa) = openssl(&["genrsa", "2048"]) else { return };
        let rsa_file = file(&rsa);
        let path = rsa_file.path().to_str().unwrap();
        let public = openssl(&["rsa", "-in", path, "-pubout"]).unwrap();
        let classic = openssl(&["rsa", "-in", path, "-traditional"]).unwrap();
        for method in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
            let jwt = load(method, Some(&rsa), None).unwrap();
            check(&jwt, &jwt);
            let verifying = load(method, None, Some(&public)).unwrap();
            check(&load(method, Some(&classic), None).unwrap(), &verifying);
            assert!(verifying.sign("ann", 7, NOW).is_none(), "it has no private key");
        }
        assert!(load("ES512", Some(&rsa), None).is_err(), "a key of another kind");
        assert!(load("ES512", None, Some(&public)).is_err(), "a key of another kind");
        let ed = openssl(&["genpkey", "-algorithm", "ed25519"]).unwrap();
        let public = public_of(&ed);
        check(
            &load("EdDSA", Some(&ed), None).unwrap(),
            &load("EdDSA", None, Some(&public)).unwrap(),
        );
        assert!(load("ES512", Some(&ed), None).is_err(), "a key of another kind");
    }

    fn public_of(private: &[u8]) -> Vec<u8> {
        let private = file(private);
        openssl(&["pkey", "-in", private.path().to_str().unwrap(), "-pubout"]).unwrap()
    }

    #[test]
    fn elliptic_keys_of_openssl_sign_by_the_method_of_their_curve_only() {
        const CURVES: [(&str, &str); 3] =
            [("ES256", "prime256v1"), ("ES384", "secp384r1"), ("ES512", "secp521r1")];
        for (method, curve) in CURVES {
            let generate = ["ecparam", "-name", curve, "-genkey", "-noout"];
            let Some(classic) = openssl(&generate) else { return };
            let classic_file = file(&classic);
            let path = classic_file.path().to_str().unwrap();
            let pkcs8 = openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", path]).unwrap();
            let public = public_of(&classic);
            let verifying = load(method, None, Some(&public)).unwrap();
            for key in [&classic, &pkcs8] {
                let jwt = load(method, Some(key), None).unwrap();
                check(&jwt, &jwt);
                check(&jwt, &verifying);
                let other = load(method, Some(&openssl(&generate).unwrap()), None).unwrap();
                let token = jwt.sign("ann", 7, NOW).unwrap();
                assert_eq!(other.verify(&token, NOW), None, "{method}: another's key");
            }
            for (other, _) in CURVES.iter().filter(|(other, _)| *other != method) {
                for key in [&classic, &pkcs8] {
                    assert!(load(other, Some(key), None).is_err(), "{other} by a key of {curve}");
                }
                // ring looks at a public key when it verifies.
                let foreign = load(other, None, Some(&public));
                let token = load(method, Some(&classic), None).unwrap().sign("ann", 7, NOW);
                let said = foreign.ok().and_then(|jwt| jwt.verify(&token.unwrap(), NOW));
                assert_eq!(said, None, "{other} by a key of {curve}");
            }
        }
    }

    /// A token that openssl signed: not only we understand what we sign. Its signature is the same two numbers in DER.
    #[test]
    fn signatures_by_p521_are_those_of_others() {
        let Some(key) = openssl(&["ecparam", "-name", "secp521r1", "-genkey", "-noout"]) else {
            return;
        };
        let public = file(&public_of(&key));
        let token = load("ES512", Some(&key), None).unwrap().sign("ann", 7, NOW).unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let numbers = BASE64.decode(signature).unwrap();
        assert_eq!(numbers.len(), 132);
        let signature = p521::der(&numbers).unwrap();
        let (message, signature) = (file(message.as_bytes()), file(&signature));
        let [public, message, signature] =
            [&public, &message, &signature].map(|file| file.path().to_str().unwrap());
        let arguments = ["dgst", "-sha512", "-verify", public, "-signature", signature, message];
        assert_eq!(openssl(&arguments).expect("openssl verifies it"), b"Verified OK\n");
    }

    #[test]
    fn the_token_does_not_choose_the_method() {
        let secret = b"public or not";
        let jwt = load("HS512", Some(secret), None).unwrap();
        let token = load("HS256", Some(secret), None).unwrap().sign("ann", 7, NOW).unwrap();
        assert_eq!(jwt.verify(&token, NOW), None);
        let none = format!(
            "{}.{}.",
            BASE64.encode(r#"{"alg":"none"}"#),
            BASE64.encode(r#"{"username":"root","revision":9}"#)
        );
        assert_eq!(jwt.verify(&none, NOW), None);
    }

    /// etcd 3.4.24 panicked on some of these; all are signed as they should be.
    #[test]
    fn claims_that_are_not_those_of_a_user_are_nobodys() {
        let secret = b"a secret of some length";
        let jwt = load("HS256", Some(secret), None).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let signed = |claims: &str| {
            let header = BASE64.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
            let message = format!("{header}.{}", BASE64.encode(claims));
            let signature = BASE64.encode(hmac::sign(&key, message.as_bytes()));
            format!("{message}.{signature}")
        };
        let good = r#"{"username":"ann","revision":7,"exp":1900000000}"#;
        let good_for = Duration::from_secs(1_900_000_000 - NOW - 1);
        let said = Said { user: "ann".to_owned(), auth_revision: 7, good_for };
        assert_eq!(jwt.verify(&signed(good), NOW), Some(said));
        for claims in [
            "",
            "null",
            "7",
            "[]",
            "{}",
            r#"{"username":"ann"}"#,
            r#"{"revision":7}"#,
            r#"{"username":"","revision":7}"#,
            r#"{"username":7,"revision":7}"#,
            r#"{"username":null,"revision":7}"#,
            r#"{"username":"ann","revision":-1}"#,
            r#"{"username":"ann","revision":"7"}"#,
            r#"{"username":"ann","revision":1.5}"#,
            r#"{"username":"ann","revision":99999999999999999999}"#,
            r#"{"username":"ann","revision":7,"exp":"never"}"#,
            r#"{"username":"ann","revision":7,"exp":0}"#,
            r#"{"username":"ann","revision":7"#,
        ] {
            assert_eq!(jwt.verify(&signed(claims), NOW), None, "{claims}");
        }
        let long = format!(r#"{{"username":"{}","revision":7}}"#, "a".repeat(TOKEN_BYTES_MAX));
        assert_eq!(jwt.verify(&signed(&long), NOW), None, "too long to be looked at");
        // Cut short or changed anywhere, a token is nobody's, too.
        let token = signed(good);
        for end in 0..token.len() {
            assert_eq!(jwt.verify(&token[..end], NOW), None, "the first {end} bytes");
            let mut changed = token.clone().into_bytes();
            changed[end] = if changed[end] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The last letter of Base64 may hold bits that mean nothing.
            let known = jwt.verify(&changed, NOW);
            assert!(known.is_none() || end + 1 == token.len(), "{end}: {known:?}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_at_the_start() {
        assert!(matches!(load("ES521", None, None), Err(JwtError::Method(_))));
        assert!(matches!(load("ES512", None, None), Err(JwtError::Missing(_))));
        assert!(matches!(load("ES512", Some(b"no key"), None), Err(JwtError::Key { .. })));
        assert!(matches!(load("ES512", None, Some(b"no key")), Err(JwtError::Key { .. })));
        assert!(matches!(load("none", None, None), Err(JwtError::Method(_))));
        assert!(matches!(load("RS256", None, None), Err(JwtError::Missing(_))));
        assert!(matches!(load("HS256", None, None), Err(JwtError::Missing(_))));
        assert!(matches!(load("RS256", Some(b"no key"), None), Err(JwtError::Key { .. })));
        assert!(matches!(load("RS256", None, Some(b"no key")), Err(JwtError::Key { .. })));
    }
}
