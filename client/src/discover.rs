//! Endpoint discovery by DNS SRV records.

use std::net::SocketAddr;

use conclave_transport::dns;

use crate::error::Error;

/// The SRV services of etcd's client endpoints, TLS first.
const SERVICES: [(&str, &str); 2] = [("etcd-client-ssl", "https"), ("etcd-client", "http")];

/// Looks up endpoints in the SRV records `_etcd-client-ssl._tcp` and `_etcd-client._tcp` of
/// `domain`. Returns URLs for [`Client::builder`](crate::Client::builder), those with TLS first. A
/// `name` that is not empty is appended to the service with a dash, as by etcdctl's
/// `--discovery-srv-name`. Asks `server`, or the system's name servers. Blocks the thread for some
/// seconds if they do not answer.
///
/// # Errors
/// [`Error::Config`] if nothing is found.
pub fn discover(
    domain: &str,
    name: &str,
    server: Option<SocketAddr>,
) -> Result<Vec<String>, Error> {
    let suffix = if name.is_empty() { String::new() } else { format!("-{name}") };
    let mut endpoints = Vec::new();
    let mut message = format!("{domain} has no SRV records of endpoints");
    for (service, scheme) in SERVICES {
        match dns::srv(&format!("{service}{suffix}"), domain, server) {
            Ok(found) => endpoints.extend(
                found.into_iter().map(|srv| format!("{scheme}://{}:{}", srv.host, srv.port)),
            ),
            Err(error) => message = error.to_string(),
        }
    }
    if endpoints.is_empty() { Err(Error::Config { message }) } else { Ok(endpoints) }
}
