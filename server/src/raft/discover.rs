//! Finds the initial members by SRV records (`--discovery-srv`).

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use conclave_transport::dns;

use crate::config::{InitialCluster, Settings, SrvDiscovery};

/// SRV services of members and their URL schemes, TLS first.
const SERVICES: [(&str, &str); 2] = [("etcd-server-ssl", "https"), ("etcd-server", "http")];

/// The settings, with the initial members looked up if `--discovery-srv` is given.
///
/// # Errors
/// As [`initial_cluster`].
pub(crate) async fn settings(settings: &Arc<Settings>) -> io::Result<Arc<Settings>> {
    let Some(srv) = settings.bootstrap.srv.clone() else { return Ok(settings.clone()) };
    let asking = settings.clone();
    let found = tokio::task::spawn_blocking(move || initial_cluster(&asking, &srv)).await;
    let mut settings = Settings::clone(settings);
    settings.bootstrap.initial_cluster = found.map_err(io::Error::other)??;
    let members = &settings.bootstrap.initial_cluster.members;
    tracing::info!(?members, "looked up the first members");
    Ok(Arc::new(settings))
}

/// Looks up the initial members. This one gets its own name, the others invented ones: only their
/// URLs decide who they are. Blocks.
///
/// # Errors
/// If nothing can be looked up, or nothing is found.
fn initial_cluster(settings: &Settings, srv: &SrvDiscovery) -> io::Result<InitialCluster> {
    let own = &settings.listen.advertise_peer_urls;
    let own_addresses: Vec<SocketAddr> = own.iter().flat_map(|url| addresses(url)).collect();
    let mut cluster = InitialCluster::default();
    let mut failure = None;
    for (service, scheme) in SERVICES {
        let suffix = if srv.name.is_empty() { String::new() } else { format!("-{}", srv.name) };
        let found = match dns::srv(&format!("{service}{suffix}"), &srv.domain, srv.server) {
            Ok(found) => found,
            Err(error) => {
                failure = Some(error);
                continue;
            }
        };
        for server in found {
            let url = format!("{scheme}://{}:{}", server.host, server.port);
            let is_own = own.contains(&url)
                || addresses(&url).iter().any(|address| own_addresses.contains(address));
            let name = if is_own {
                settings.name.clone()
            } else {
                format!("srv-{}", cluster.members.len())
            };
            cluster.members.entry(name).or_default().push(url);
        }
    }
    if cluster.members.is_empty() {
        let nobody = || io::Error::other(format!("{} has no SRV records of members", srv.domain));
        return Err(failure.unwrap_or_else(nobody));
    }
    for urls in cluster.members.values_mut() {
        urls.sort();
    }
    Ok(cluster)
}

fn addresses(url: &str) -> Vec<SocketAddr> {
    let authority = url.split_once("://").map_or(url, |(_, authority)| authority);
    // A host that cannot be resolved is not this member.
    authority.to_socket_addrs().map(Iterator::collect).unwrap_or_default()
}
