//! Loads certificates, keys and revocation lists from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::{Certificate, Error};

/// Far more than any of these files needs; catches a device named by mistake.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// First line of a revocation list in PEM form; blank lines and comments may precede it.
const CRL_MARK: &[u8] = b"-----BEGIN X509 CRL-----";

const CERT: &str = "certificate file";
const KEY: &str = "key file";
const CA: &str = "CA file";
const CRL: &str = "revocation list";

/// Paths of a certificate chain and its key, in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// File with the certificate, followed by those of intermediate CAs.
    pub cert: PathBuf,
    /// File with the key.
    pub key: PathBuf,
}

impl Pair {
    /// Loads both and checks that they match and are valid now.
    ///
    /// # Errors
    /// [`Error`] naming the file that cannot be used.
    pub fn check(&self) -> Result<Certificate, Error> {
        let provider = rustls::crypto::ring::default_provider();
        identity(self, &provider).map(|identity| identity.certificate)
    }
}

/// A certificate chain with its key, and the parsed certificate.
pub(crate) struct Identity {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) certificate: Certificate,
}

/// The bytes of a file.
fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Read { what, path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(fail)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Error::content(what, path, format!("{bytes} bytes are too many")));
    }
    std::fs::read(path).map_err(fail)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(what, path)?;
    let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| Error::content(what, path, error))?;
    if all.is_empty() {
        return Err(Error::content(what, path, "it holds no certificate in PEM form"));
    }
    Ok(all)
}

/// Loads a pair; refuses one that nobody could verify: mismatched, or not valid now.
pub(crate) fn identity(pair: &Pair, provider: &CryptoProvider) -> Result<Identity, Error> {
    let chain = certificates(CERT, &pair.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(KEY, &pair.key)?)
        .map_err(|error| Error::content(KEY, &pair.key, error))?;
    let certificate = Certificate::parse(&chain[0])
        .ok_or_else(|| Error::content(CERT, &pair.cert, "its certificate is malformed"))?;
    certificate
        .check_time(unix_now())
        .map_err(|reason| Error::content(CERT, &pair.cert, reason))?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| Error::content(KEY, &pair.key, error))?;
    let key = CertifiedKey::new(chain, key);
    match key.keys_match() {
        // A key that does not reveal its public half cannot be compared; every key of ring does.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(Error::Mismatch { cert: pair.cert.clone(), key: pair.key.clone() });
        }
        Err(error) => return Err(Error::content(CERT, &pair.cert, error)),
    }
    Ok(Identity { key: Arc::new(key), certificate })
}

/// Trusted CAs, and their certificates as given.
pub(crate) struct Trusted {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// Loads trusted CAs from a file.
pub(crate) fn roots(path: &Path) -> Result<Trusted, Error> {
    let certificates = certificates(CA, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| Error::content(CA, path, error))?;
    }
    Ok(Trusted { roots: Arc::new(roots), certificates })
}

/// Loads the CAs that the system trusts, skipping unusable ones.
pub(crate) fn system_roots() -> Result<Arc<RootCertStore>, Error> {
    let path = system_bundle().ok_or_else(|| {
        Error::Setting(
            "no CA file is given and the system has none: give one, or set SSL_CERT_FILE"
                .to_owned(),
        )
    })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(CA, &path)?);
    Ok(Arc::new(roots))
}

fn system_bundle() -> Option<PathBuf> {
    /// Where distributions keep the bundle.
    const BUNDLES: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
    if let Some(path) = named {
        return Some(path.into());
    }
    BUNDLES.iter().map(PathBuf::from).find(|path| path.exists())
}

/// Loads revocation lists: any number in PEM form, or one in DER form.
pub(crate) fn revocations(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    let bytes = read(CRL, path)?;
    let is_pem = bytes.windows(CRL_MARK.len()).any(|window| window == CRL_MARK);
    if !is_pem {
        return Ok(vec![bytes.into()]);
    }
    CertificateRevocationListDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::content(CRL, path, error))
}

/// The error of a verifier that rejects the revocation lists.
pub(crate) fn bad_revocations(path: Option<&Path>, error: impl ToString) -> Error {
    match path {
        Some(path) => Error::content(CRL, path, error),
        None => Error::Setting(error.to_string()),
    }
}

fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
