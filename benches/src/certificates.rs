//! An authority and one certificate for loopback, made for a measurement and removed with its directory.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use conclave_transport::{Client, Pair, Verification};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The files; servers, peers and the generator present the same certificate.
#[derive(Clone, Debug)]
pub struct Certificates {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificates {
    /// Makes them in `dir`.
    ///
    /// # Errors
    /// If they cannot be made or written.
    pub fn create(dir: &Path) -> Result<Self> {
        let mut params = dated(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "conclave-bench authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut params = dated(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &authority)?;
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            anyhow::Ok(path)
        };
        Ok(Self {
            ca: write("ca.pem", &authority.pem())?,
            cert: write("node.pem", &cert.pem())?,
            key: write("node-key.pem", &key.serialize_pem())?,
        })
    }

    /// Flags with which a server asks for certificates on both its ports.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let mut flags = Vec::new();
        for port in ["--", "--peer-"] {
            flags.push(format!("{port}cert-file={}", path(&self.cert)));
            flags.push(format!("{port}key-file={}", path(&self.key)));
            flags.push(format!("{port}trusted-ca-file={}", path(&self.ca)));
            flags.push(format!("{port}client-cert-auth"));
        }
        flags
    }

    /// How to connect to such servers.
    #[must_use]
    pub fn client(&self) -> Client {
        let identity = Pair { cert: self.cert.clone(), key: self.key.clone() };
        Client {
            verification: Verification::Ca(self.ca.clone()),
            identity: Some(identity),
            ..Client::default()
        }
    }
}

/// A certificate of some days, without a name: a common name would be the user of who presents it.
fn dated(hosts: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - DAY).into(), (now + DAY * 10).into());
    Ok(params)
}
