//! Whether a member's certificate fits the address it connects from, as etcd checks it: a stolen
//! certificate is of no use elsewhere.

use std::net::IpAddr;

use conclave_transport::Certificate;
use tokio::net::lookup_host;

/// Names that are looked up for one certificate; more are not believed.
const NAMES_MAX: usize = 16;

/// Whether `from` is an address of the certificate or one of its DNS names. A certificate without
/// either may come from anywhere.
pub(super) async fn fits(certificate: &Certificate, from: IpAddr) -> bool {
    let from = from.to_canonical();
    if certificate.addresses.is_empty() && certificate.dns_names.is_empty() {
        return true;
    }
    if certificate.addresses.iter().any(|address| address.to_canonical() == from) {
        return true;
    }
    for name in certificate.dns_names.iter().take(NAMES_MAX) {
        if let Ok(mut addresses) = lookup_host((name.as_str(), 0)).await
            && addresses.any(|address| address.ip().to_canonical() == from)
        {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_or_name_must_fit() {
        let from: IpAddr = "127.0.0.1".parse().unwrap();
        let fits = async |addresses: &[&str], names: &[&str]| {
            let certificate = Certificate {
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                dns_names: names.iter().map(|&name| name.to_owned()).collect(),
                ..Certificate::default()
            };
            fits(&certificate, from).await
        };
        assert!(fits(&[], &[]).await);
        assert!(fits(&["10.0.0.1", "127.0.0.1"], &[]).await);
        assert!(fits(&["::ffff:127.0.0.1"], &[]).await);
        assert!(fits(&["10.0.0.1"], &["localhost"]).await);
        assert!(!fits(&["10.0.0.1"], &[]).await);
    }
}
