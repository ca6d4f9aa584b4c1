//! Checks whether a member's certificate fits the address it connects from, as etcd does: a stolen
//! certificate is useless elsewhere.
//!
//! An address fits if it is in the certificate, if a DNS name in the certificate resolves to it, or
//! if its reverse name (PTR) equals a DNS name in the certificate or matches a wildcard there.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use conclave_transport::{Certificate, dns};
use futures::future::{Either, select};
use tokio::net::lookup_host;
use tokio::time::timeout;

/// Most DNS names of a certificate that are looked up; further names are ignored.
const NAMES_MAX: usize = 16;
/// Timeout of one lookup; the handshake timeout bounds all of them together.
const LOOKUP_MAX: Duration = Duration::from_secs(3);
/// Prefix of a wildcard name.
const WILDCARD: &str = "*.";

/// Whether `from` is an address in the certificate or belongs to one of its DNS names. A
/// certificate with neither may come from anywhere.
pub(super) async fn fits(certificate: &Certificate, from: IpAddr) -> bool {
    fits_by(certificate, from, None).await
}

/// Like [`fits`], using the name server `server` for reverse lookups, or the system's.
async fn fits_by(certificate: &Certificate, from: IpAddr, server: Option<SocketAddr>) -> bool {
    let from = from.to_canonical();
    if certificate.addresses.is_empty() && certificate.dns_names.is_empty() {
        return true;
    }
    if certificate.addresses.iter().any(|address| address.to_canonical() == from) {
        return true;
    }
    let names = &certificate.dns_names[..certificate.dns_names.len().min(NAMES_MAX)];
    if names.is_empty() {
        return false;
    }
    // Both at once: a network without reverse names may answer late or never.
    let lead_there = std::pin::pin!(lead_to(names, from));
    let is_named = std::pin::pin!(is_named(names, from, server));
    match select(lead_there, is_named).await {
        Either::Left((false, other)) => other.await,
        Either::Right((false, other)) => other.await,
        Either::Left((true, _)) | Either::Right((true, _)) => true,
    }
}

/// Whether one of the names resolves to the address.
async fn lead_to(names: &[String], from: IpAddr) -> bool {
    for name in names.iter().filter(|name| !name.starts_with(WILDCARD)) {
        if let Ok(Ok(mut addresses)) = timeout(LOOKUP_MAX, lookup_host((name.as_str(), 0))).await
            && addresses.any(|address| address.ip().to_canonical() == from)
        {
            return true;
        }
    }
    false
}

/// Whether the address has one of the names.
async fn is_named(names: &[String], from: IpAddr, server: Option<SocketAddr>) -> bool {
    let lookup = tokio::task::spawn_blocking(move || dns::names(from, server));
    let Ok(Ok(Ok(own))) = timeout(LOOKUP_MAX, lookup).await else { return false };
    own.iter().any(|own| names.iter().any(|name| is_meant(name, own)))
}

/// Whether a certificate's name matches a host name. As in etcd, a wildcard matches any number of
/// labels.
fn is_meant(name: &str, host: &str) -> bool {
    let Some(domain) = name.strip_prefix('*').filter(|_| name.starts_with(WILDCARD)) else {
        return name.eq_ignore_ascii_case(host);
    };
    let Some(begin) = host.len().checked_sub(domain.len()) else { return false };
    begin > 0 && host.get(begin..).is_some_and(|end| end.eq_ignore_ascii_case(domain))
}

#[cfg(test)]
mod tests {
    use conclave_testing::name_server::serve_names;

    use super::*;

    fn certificate(addresses: &[&str], names: &[&str]) -> Certificate {
        Certificate {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            dns_names: names.iter().map(|&name| name.to_owned()).collect(),
            ..Certificate::default()
        }
    }

    #[tokio::test]
    async fn one_address_or_name_must_fit() {
        let from: IpAddr = "127.0.0.1".parse().unwrap();
        let nameless = serve_names("4.3.2.1.in-addr.arpa", &[]);
        let fits = async |addresses: &[&str], names: &[&str]| {
            fits_by(&certificate(addresses, names), from, Some(nameless)).await
        };
        assert!(fits(&[], &[]).await);
        assert!(fits(&["10.0.0.1", "127.0.0.1"], &[]).await);
        assert!(fits(&["::ffff:127.0.0.1"], &[]).await);
        assert!(fits(&["10.0.0.1"], &["localhost"]).await);
        assert!(!fits(&["10.0.0.1"], &[]).await);
        assert!(!fits(&[], &["*.localhost"]).await);
    }

    #[tokio::test]
    async fn an_address_may_be_known_by_its_own_name() {
        let from: IpAddr = "10.1.2.3".parse().unwrap();
        let own = ["10-1-2-3.other.svc", "conclave-0.conclave-peers.ns.svc.cluster.local"];
        let server = serve_names("3.2.1.10.in-addr.arpa", &own);
        for (name, is_meant) in [
            ("*.conclave-peers.ns.svc.cluster.local", true),
            ("*.Conclave-Peers.ns.svc.cluster.local", true),
            ("*.svc.cluster.local", true),
            ("*.conclave-peers.other.svc.cluster.local", false),
            ("*.0.conclave-peers.ns.svc.cluster.local", false),
            ("*.conclave-0.conclave-peers.ns.svc.cluster.local", false),
        ] {
            let fits = fits_by(&certificate(&["10.9.9.9"], &[name]), from, Some(server)).await;
            assert_eq!(fits, is_meant, "{name}");
        }
    }

    #[test]
    fn a_name_means_itself_and_a_wildcard_what_is_below() {
        assert!(is_meant("a.example", "A.example"));
        assert!(!is_meant("a.example", "b.a.example"));
        assert!(is_meant("*.example", "b.a.example"));
        assert!(!is_meant("*.example", ".example") && !is_meant("*.example", "example"));
        assert!(!is_meant("*a.example", "ba.example"), "no wildcard");
        assert!(!is_meant("*", "example"));
    }
}
