//! A certificate that a port makes for itself (`--auto-tls`, `--peer-auto-tls`): it encrypts the
//! traffic but proves nothing about the other side's identity.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use conclave_transport::{Error, Pair};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Clients' clocks may be a little behind.
const CLOCK_SLACK: Duration = Duration::from_secs(5 * 60);
/// Wildcard addresses, which no client connects to.
const ANY: [&str; 2] = ["0.0.0.0", "::"];

/// The pair in `dir`; makes one if there is none that is still valid.
///
/// # Errors
/// [`Error`] if a pair cannot be made or written.
pub(super) fn find_or_make(dir: &Path, hosts: &[String], years: u32) -> Result<Pair, Error> {
    let pair = Pair { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
    if pair.check().is_ok() {
        return Ok(pair);
    }
    let refuse = |error: String| {
        let dir = dir.display();
        Error::Setting(format!("cannot make a self-signed certificate in {dir}: {error}"))
    };
    let (cert, key) = make(hosts, years).map_err(|error| refuse(error.to_string()))?;
    let write = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // The key first: with the certificate of an earlier key it does not match, so both are made
        // again.
        replace(&pair.key, &key)?;
        replace(&pair.cert, &cert)
    };
    write().map_err(|error| refuse(error.to_string()))?;
    tracing::info!(cert = %pair.cert.display(), "made a self-signed certificate");
    Ok(pair)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn make(hosts: &[String], years: u32) -> Result<(String, String), rcgen::Error> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    for host in hosts {
        if !names.contains(host) && !ANY.contains(&host.as_str()) {
            names.push(host.clone());
        }
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "conclave");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = (now + YEAR * years).into();
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key.serialize_pem()))
}
