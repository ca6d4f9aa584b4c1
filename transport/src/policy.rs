//! TLS versions and cipher suites, by the names that etcd's flags use for them.

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, ring};
use rustls::version::{TLS12, TLS13};

use crate::Error;

/// A TLS version; older versions are not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl Version {
    /// Reads `TLS1.2` or `TLS1.3`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "TLS1.2" => Some(Self::Tls12),
            "TLS1.3" => Some(Self::Tls13),
            _ => None,
        }
    }
}

/// TLS versions and cipher suites that may be negotiated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    min: Version,
    max: Version,
    /// Cipher suites of TLS 1.2; empty for all. Those of TLS 1.3 cannot be chosen, as in Go.
    ciphers: Vec<rustls::CipherSuite>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { min: Version::Tls12, max: Version::Tls13, ciphers: Vec::new() }
    }
}

impl Policy {
    /// Checks that the limits leave something to negotiate. `ciphers` are Go's names. Also returns
    /// those that are known but not available here, for a warning.
    ///
    /// # Errors
    /// [`Error::Setting`], with etcd's message where it has one.
    pub fn new(
        min: Option<Version>,
        max: Option<Version>,
        ciphers: &[&str],
    ) -> Result<(Self, Vec<String>), Error> {
        let (min, max) = (min.unwrap_or(Version::Tls12), max.unwrap_or(Version::Tls13));
        let refuse = |text: &str| Err(Error::Setting(text.to_owned()));
        if min > max {
            return refuse("min version (TLS1.3) is greater than max version (TLS1.2)");
        }
        if min == Version::Tls13 && !ciphers.is_empty() {
            return refuse("cipher suites cannot be configured when only TLS1.3 is enabled");
        }
        let mut policy = Self { min, max, ciphers: Vec::new() };
        let mut unavailable = Vec::new();
        for name in ciphers {
            match suite(name) {
                Some(suite) => policy.ciphers.push(suite),
                None if UNAVAILABLE.contains(name) => unavailable.push((*name).to_owned()),
                None => {
                    return Err(Error::Setting(format!("unexpected TLS cipher suite {name:?}")));
                }
            }
        }
        if policy.ciphers.is_empty() && max == Version::Tls12 && !ciphers.is_empty() {
            return refuse(
                "none of the cipher suites is available: all lack forward secrecy or \
                           authenticated encryption",
            );
        }
        Ok((policy, unavailable))
    }

    pub(crate) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let both = [(Version::Tls13, &TLS13), (Version::Tls12, &TLS12)];
        let allowed =
            both.into_iter().filter(|(version, _)| (self.min..=self.max).contains(version));
        allowed.map(|(_, version)| version).collect()
    }

    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = ring::default_provider();
        if !self.ciphers.is_empty() {
            provider
                .cipher_suites
                .retain(|suite| suite.tls13().is_some() || self.ciphers.contains(&suite.suite()));
        }
        Arc::new(provider)
    }
}

/// The cipher suite with Go's name.
fn suite(name: &str) -> Option<rustls::CipherSuite> {
    use rustls::CipherSuite as Suite;
    Some(match name {
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"
        | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "TLS_AES_128_GCM_SHA256" => Suite::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_256_GCM_SHA384" => Suite::TLS13_AES_256_GCM_SHA384,
        "TLS_CHACHA20_POLY1305_SHA256" => Suite::TLS13_CHACHA20_POLY1305_SHA256,
        _ => return None,
    })
}

/// Suites that Go still has and rustls never had: without forward secrecy, or with CBC or RC4.
const UNAVAILABLE: [&str; 13] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];
