//! Certificates, keys and revocation lists for tests, written as files are written in earnest: beside
//! the old one first, then in its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, NameConstraints, RevokedCertParams, SerialNumber,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Somebody who signs certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What its certificates need to be verified, in PEM: its own, unless that is a root.
    chain: String,
}

/// What a certificate is to say.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    /// Its name; empty for none, as a server takes a name for a user.
    pub common_name: &'a str,
    /// Whom it is good for.
    pub hosts: &'a [&'a str],
    /// First and last day, counted from now.
    pub days: (i32, i32),
    /// Its number at who signs it.
    pub serial: u64,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self { common_name: "test", hosts: &["localhost", "127.0.0.1"], days: (-1, 1), serial: 1 }
    }
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, in PEM.
    pub cert: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

impl Authority {
    /// One that may sign for everybody.
    pub fn new(name: &str) -> Self {
        Self::constrained(name, None)
    }

    /// One that may sign for names below `domain` only.
    pub fn of_domain(name: &str, domain: &str) -> Self {
        let permitted_subtrees = vec![GeneralSubtree::DnsName(domain.to_owned())];
        let excluded_subtrees = Vec::new();
        Self::constrained(name, Some(NameConstraints { permitted_subtrees, excluded_subtrees }))
    }

    /// One that this one has signed, first and last day counted from now. What it issues comes with its own certificate.
    pub fn subordinate(&self, name: &str, days: (i32, i32)) -> Self {
        let params = params_of_authority(name, days);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let chain = format!("{}{}", issuer.pem(), self.chain);
        Self { issuer, chain }
    }

    fn constrained(name: &str, name_constraints: Option<NameConstraints>) -> Self {
        let mut params = params_of_authority(name, (-2, 10));
        params.name_constraints = name_constraints;
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap(), chain: String::new() }
    }

    /// Writes the authority's own certificate.
    pub fn write(&self, path: &Path) -> PathBuf {
        replace(path, &self.issuer.pem())
    }

    /// Signs a certificate and writes it to `<stem>.pem` and `<stem>-key.pem`.
    pub fn issue(&self, wish: Wish<'_>, dir: &Path, stem: &str) -> Files {
        let hosts: Vec<String> = wish.hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = named(wish.common_name);
        params.serial_number = Some(SerialNumber::from(wish.serial));
        (params.not_before, params.not_after) = (at(wish.days.0).into(), at(wish.days.1).into());
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Files {
            key: replace(&dir.join(format!("{stem}-key.pem")), &key.serialize_pem()),
            cert: replace(&dir.join(format!("{stem}.pem")), &(cert.pem() + &self.chain)),
        }
    }

    /// What `openssl req -x509` makes: an authority that signed itself, and says of itself what `wish` says. Whoever
    /// trusts its certificate may meet it, too.
    pub fn alone(wish: Wish<'_>, dir: &Path, stem: &str) -> Files {
        let hosts: Vec<String> = wish.hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = named(wish.common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (at(wish.days.0).into(), at(wish.days.1).into());
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Files {
            key: replace(&dir.join(format!("{stem}-key.pem")), &key.serialize_pem()),
            cert: replace(&dir.join(format!("{stem}.pem")), &cert.pem()),
        }
    }

    /// Writes the list of revoked serial numbers.
    pub fn revoke(&self, serials: &[u64], path: &Path) -> PathBuf {
        let revoked = |&serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: at(-1).into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: at(-1).into(),
            next_update: at(10).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        replace(path, &list.signed_by(&self.issuer).unwrap().pem().unwrap())
    }
}

fn params_of_authority(name: &str, days: (i32, i32)) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(days.0).into(), at(days.1).into());
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    if !name.is_empty() {
        named.push(DnType::CommonName, name);
    }
    named
}

fn at(day: i32) -> SystemTime {
    let distance = DAY * day.unsigned_abs();
    if day < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
}

/// Replaces a file in one step.
pub fn replace(path: &Path, text: &str) -> PathBuf {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
    path.to_owned()
}
