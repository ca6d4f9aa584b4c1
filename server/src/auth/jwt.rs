//! JSON web tokens: signed by whoever has the private key, good on every member until they expire or users
//! and roles change.
//!
//! The few forms that etcd knows, on ring, and one on `p521`. `jsonwebtoken` would add parsers and a crypto interface
//! of its own, and could still do nothing without a provider written here.

use std::path::{Path, PathBuf};
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
use serde_json::{Map, Value};

use super::{p521, pem};
use crate::config::JwtSettings;

/// Tokens beyond this size are nobody's: claims are a name and two numbers.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Shorter keys are not safe, and ring takes none.
const RSA_BITS_MIN: usize = 2048;
/// Beyond this a float64 is no whole number that somebody meant.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

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
    /// A file holds no key.
    #[error("--auth-token: {path} holds no {kind} key for this sign-method", path = path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Public or private.
        kind: &'static str,
    },
    /// A file holds a key of another kind than the method needs.
    #[error(
        "--auth-token: {path} holds {found}, and sign-method {method} needs {needed}",
        path = path.display()
    )]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// Of the flag.
        method: String,
        /// What it should hold.
        needed: &'static str,
    },
    /// Two files do not belong together.
    #[error(
        "--auth-token: what {private} signs {public} does not verify: give the public key of this private key",
        private = private.display(),
        public = public.display()
    )]
    Pair {
        /// Of the private key.
        private: PathBuf,
        /// Of the public key.
        public: PathBuf,
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
    /// Of one curve.
    Ecdsa(pem::Kind, &'static EcdsaSigningAlgorithm, &'static dyn VerificationAlgorithm),
    P521,
    Ed25519,
}

impl Family {
    /// Whether keys of a kind are good for it.
    fn takes(&self, kind: pem::Kind) -> bool {
        match (self, kind) {
            (Family::Rsa(..), pem::Kind::Rsa { bits }) => bits >= RSA_BITS_MIN,
            (Family::Ecdsa(curve, ..), kind) => *curve == kind,
            (Family::P521, kind) => kind == pem::Kind::P521,
            (Family::Ed25519, kind) => kind == pem::Kind::Ed25519,
            (Family::Hmac(_) | Family::Rsa(..), _) => false,
        }
    }

    /// What [`Family::takes`] wants, in words.
    fn needed(&self) -> &'static str {
        match self {
            Family::Hmac(_) => "a secret",
            Family::Rsa(..) => "an RSA key of at least 2048 bits",
            Family::Ecdsa(pem::Kind::P256, ..) => "one of the curve P-256",
            Family::Ecdsa(..) => "one of the curve P-384",
            Family::P521 => "one of the curve P-521",
            Family::Ed25519 => "an Ed25519 key",
        }
    }
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
            pem::Kind::P256,
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &signature::ECDSA_P256_SHA256_FIXED,
        ),
        "ES384" => Family::Ecdsa(
            pem::Kind::P384,
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

/// etcd's claims, as they are signed here.
#[derive(Serialize)]
struct Claims {
    username: String,
    revision: u64,
    /// Unix time.
    exp: u64,
}

/// Claims of a token that was signed anywhere. As in etcd a number may be written in every way that JSON has.
struct Claimed(Map<String, Value>);

impl Claimed {
    fn user(&self) -> Option<&str> {
        self.0.get("username")?.as_str().filter(|name| !name.is_empty())
    }

    fn auth_revision(&self) -> Option<u64> {
        let number = self.0.get("revision")?;
        number.as_u64().or_else(|| {
            let number = number.as_f64()?;
            let is_whole = number.fract() == 0.0 && (0.0..=WHOLE_MAX).contains(&number);
            is_whole.then_some(number as u64)
        })
    }

    /// Unix time, in whole seconds; `Err` for what is none. Without an end a token is good for ever, as in etcd.
    fn time(&self, name: &str) -> Result<Option<i64>, ()> {
        let Some(number) = self.0.get(name) else { return Ok(None) };
        let whole = number.as_i64().or_else(|| {
            let number = number.as_f64()?.floor();
            (number.abs() <= WHOLE_MAX).then_some(number as i64)
        });
        whole.map(Some).ok_or(())
    }
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
        let JwtSettings { method, private_key, public_key, ttl, .. } = settings;
        let unsupported = || JwtError::Method(method.clone());
        let files = Files { method, family: family(method).ok_or_else(unsupported)? };
        let signer = private_key.as_ref().map(|path| files.signer(path)).transpose()?;
        let verifier = match (&signer, public_key) {
            (Some(Signer::Hmac(key)), _) => Verifier::Hmac(key.clone()),
            (None, _) if matches!(files.family, Family::Hmac(_)) => {
                return Err(JwtError::Missing("priv-key"));
            }
            (_, Some(path)) => files.verifier(path)?,
            (Some(own), None) => public(&files.family, own.public_key()).ok_or_else(unsupported)?,
            (None, None) => return Err(JwtError::Missing("pub-key or priv-key")),
        };
        let jwt = Self { method: method.clone(), ttl: *ttl, signer, verifier };
        if let (Some(private), Some(public)) = (private_key, public_key)
            && !jwt.is_pair()
        {
            return Err(JwtError::Pair { private: private.clone(), public: public.clone() });
        }
        Ok(jwt)
    }

    /// A token for a user as of an auth revision; `None` if this member only verifies.
    pub(super) fn sign(&self, user: &str, auth_revision: u64, now_unix: u64) -> Option<String> {
        let header = Header { alg: self.method.clone(), typ: "JWT".to_owned() };
        let claims = Claims {
            username: user.to_owned(),
            revision: auth_revision,
            exp: now_unix.saturating_add(self.ttl.as_secs()),
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
        let claims = Claimed(serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?);
        let now = i64::try_from(now_unix).ok()?;
        let until = claims.time("exp").ok()?;
        let begins = [claims.time("nbf").ok()?, claims.time("iat").ok()?];
        let is_over = until.is_some_and(|until| until <= now);
        if is_over || begins.iter().flatten().any(|begin| *begin > now) {
            return None;
        }
        // The second in which it ends may be this one's last moment.
        let whole = until.map_or(u64::MAX, |until| until.abs_diff(now + 1));
        Some(Said {
            user: claims.user()?.to_owned(),
            auth_revision: claims.auth_revision()?,
            good_for: Duration::from_secs(whole),
        })
    }

    /// Whether the private key and the public key that are given belong together.
    fn is_pair(&self) -> bool {
        let trial = b"trial";
        let signature = self.signer.as_ref().and_then(|signer| signer.sign(trial));
        signature.is_some_and(|signature| self.verifier.verify(trial, &signature).is_some())
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, JwtError> {
    std::fs::read(path).map_err(|source| JwtError::File { path: path.clone(), source })
}

/// Files with keys for one method.
struct Files<'a> {
    method: &'a str,
    family: Family,
}

impl Files<'_> {
    fn signer(&self, path: &PathBuf) -> Result<Signer, JwtError> {
        let bytes = read(path)?;
        if !matches!(self.family, Family::Hmac(_))
            && let Some(kind) = pem::private_kind(&bytes)
        {
            self.check(path, kind)?;
        }
        let none = || JwtError::Key { path: path.clone(), kind: "private" };
        signer(&self.family, &bytes).ok_or_else(none)
    }

    fn verifier(&self, path: &PathBuf) -> Result<Verifier, JwtError> {
        let none = || JwtError::Key { path: path.clone(), kind: "public" };
        let key = pem::public_key(&read(path)?).ok_or_else(none)?;
        self.check(path, key.kind)?;
        public(&self.family, key.bytes).ok_or_else(none)
    }

    fn check(&self, path: &Path, kind: pem::Kind) -> Result<(), JwtError> {
        if self.family.takes(kind) {
            return Ok(());
        }
        let (found, needed) = (kind.to_string(), self.family.needed());
        Err(JwtError::Kind {
            path: path.to_path_buf(),
            found,
            method: self.method.to_owned(),
            needed,
        })
    }
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
        Family::Rsa(_, algorithm) | Family::Ecdsa(_, _, algorithm) => *algorithm,
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
        Family::Ecdsa(_, algorithm, _) => {
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

    #[test]
    fn a_certificate_is_as_good_as_its_key() {
        let keys: [(&str, &[&str]); 4] = [
            ("RS256", &["genrsa", "2048"]),
            ("ES384", &["ecparam", "-name", "secp384r1", "-genkey", "-noout"]),
            ("ES512", &["ecparam", "-name", "secp521r1", "-genkey", "-noout"]),
            ("EdDSA", &["genpkey", "-algorithm", "ed25519"]),
        ];
        for (method, generate) in keys {
            let Some(private) = openssl(generate) else { return };
            let key_file = file(&private);
            let path = key_file.path().to_str().unwrap();
            let certify = ["req", "-x509", "-key", path, "-subj", "/CN=any", "-days", "1"];
            let certificate = openssl(&certify).unwrap();
            let jwt = load(method, Some(&private), Some(&certificate)).unwrap();
            check(&jwt, &load(method, None, Some(&certificate)).unwrap());
        }
    }

    #[test]
    fn keys_that_cannot_work_are_refused_and_named() {
        let Some(rsa) = openssl(&["genrsa", "2048"]) else { return };
        let curve = |name| openssl(&["ecparam", "-name", name, "-genkey", "-noout"]).unwrap();
        let (p256, p384) = (curve("prime256v1"), curve("secp384r1"));
        let short = openssl(&["genrsa", "1024"]).unwrap();
        let refusal = |method, private: Option<&[u8]>, public: Option<&[u8]>| {
            load(method, private, public).err().expect("it cannot work").to_string()
        };
        let ends = |text: String, end: &str| assert!(text.ends_with(end), "{text}");
        let needed = "holds an elliptic key of the curve P-256, and sign-method RS256 needs an RSA key of at least 2048 bits";
        ends(refusal("RS256", None, Some(&public_of(&p256))), needed);
        ends(refusal("RS256", Some(&rsa), Some(&public_of(&p256))), needed);
        ends(refusal("RS256", Some(&p256), None), needed);
        let needed = "holds an elliptic key of the curve P-384, and sign-method ES256 needs one of the curve P-256";
        ends(refusal("ES256", None, Some(&public_of(&p384))), needed);
        ends(refusal("ES256", Some(&p384), None), needed);
        let needed = "holds an RSA key of 1024 bits, and sign-method PS256 needs an RSA key of at least 2048 bits";
        ends(refusal("PS256", Some(&short), None), needed);
        ends(refusal("PS256", None, Some(&public_of(&short))), needed);
        let needed = "holds an RSA key of 2048 bits, and sign-method EdDSA needs an Ed25519 key";
        ends(refusal("EdDSA", None, Some(&public_of(&rsa))), needed);
        for (method, private) in [("RS256", &rsa), ("ES256", &p256), ("ES384", &p384)] {
            load(method, Some(private), Some(&public_of(private))).unwrap();
        }
        let other = public_of(&openssl(&["genrsa", "2048"]).unwrap());
        ends(refusal("RS256", Some(&rsa), Some(&other)), "give the public key of this private key");
        let other = public_of(&curve("prime256v1"));
        ends(
            refusal("ES256", Some(&p256), Some(&other)),
            "give the public key of this private key",
        );
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
                let Err(JwtError::Kind { found, .. }) = load(other, None, Some(&public)) else {
                    panic!("{other} by a key of {curve}");
                };
                assert!(found.starts_with("an elliptic key of the curve P-"), "{found}");
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
            r#"{"username":"ann","revision":9.1e15}"#,
            r#"{"username":"ann","revision":7,"exp":"never"}"#,
            r#"{"username":"ann","revision":7,"exp":null}"#,
            r#"{"username":"ann","revision":7,"exp":0}"#,
            r#"{"username":"ann","revision":7,"exp":-5}"#,
            r#"{"username":"ann","revision":7,"exp":1e300}"#,
            r#"{"username":"ann","revision":7,"nbf":1900000000}"#,
            r#"{"username":"ann","revision":7,"nbf":null}"#,
            r#"{"username":"ann","revision":7,"iat":1900000000}"#,
            r#"{"username":"ann","revision":7,"iat":"today"}"#,
            r#"{"username":"ann","revision":7"#,
        ] {
            assert_eq!(jwt.verify(&signed(claims), NOW), None, "{claims}");
        }
        for claims in [
            r#"{"username":"ann","revision":7.0,"exp":1.9e9}"#,
            r#"{"username":"ann","revision":7e0,"exp":1900000000.5}"#,
            r#"{"username":"ann","revision":7,"exp":1900000000,"nbf":1,"iat":1.5,"aud":["x"]}"#,
            r#"{"username":"root","username":"ann","revision":7,"exp":1900000000}"#,
        ] {
            let good_for = Duration::from_secs(1_900_000_000 - NOW - 1);
            let said = Said { user: "ann".to_owned(), auth_revision: 7, good_for };
            assert_eq!(jwt.verify(&signed(claims), NOW), Some(said), "{claims}");
        }
        let begins =
            signed(&format!(r#"{{"username":"ann","revision":7,"nbf":{NOW},"iat":{NOW}}}"#));
        assert!(jwt.verify(&begins, NOW).is_some(), "from this second on");
        assert_eq!(jwt.verify(&begins, NOW - 1), None, "not yet");
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
