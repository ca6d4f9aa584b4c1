//! Parses lists of URLs as etcd's flags take them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::ConfigError;

/// An address to listen on, with the URL that named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    /// The URL as given.
    pub url: String,
    /// The address or path.
    pub place: Place,
    /// Whether clients must use TLS.
    pub is_tls: bool,
}

/// What a listener binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A port. `localhost` is 127.0.0.1; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// Splits a comma-separated list and checks each URL. The result is sorted, as in etcd.
pub(super) fn list(flag: &'static str, value: &str) -> Result<Vec<String>, ConfigError> {
    let mut urls = Vec::new();
    for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        parse(flag, item)?;
        urls.push(item.to_owned());
    }
    if urls.is_empty() {
        return Err(invalid(flag, value, "no URLs given"));
    }
    urls.sort();
    Ok(urls)
}

/// A member's peer URLs as a client gave them, sorted; `None` if one is invalid.
pub(crate) fn peer_urls(given: &[String]) -> Option<Vec<String>> {
    list("peer-urls", &given.join(",")).ok()
}

/// Most rounds of name lookups while a name is unknown, and the pause between them.
const LOOKUPS_MAX: u32 = 10;
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);

/// Whether two sorted lists name the same addresses: as equal text or, as in etcd, by resolving
/// names. Blocks while it looks names up: the name of a member that has just started may not be
/// known yet.
pub(super) fn are_same_places(one: &[String], other: &[String]) -> bool {
    let is_socket = |url: &String| url.starts_with("unix");
    if one == other || one.len() != other.len() || one.iter().chain(other).any(is_socket) {
        return one == other;
    }
    for lookup in 0..LOOKUPS_MAX {
        if let (Some(one), Some(other)) = (places(one), places(other)) {
            return are_paired(&one, &other);
        }
        if lookup == 0 {
            tracing::info!(?one, ?other, "looking up whether these are the same addresses");
        }
        std::thread::sleep(LOOKUP_PAUSE);
    }
    false
}

/// Scheme and addresses of a URL.
type Reached<'a> = (&'a str, Vec<SocketAddr>);

/// Resolves all URLs; `None` if a name is unknown.
fn places(urls: &[String]) -> Option<Vec<Reached<'_>>> {
    let place = |url| {
        let (scheme, authority) = str::split_once(url, "://")?;
        Some((scheme, authority.to_socket_addrs().ok()?.collect()))
    };
    urls.iter().map(String::as_str).map(place).collect()
}

/// Whether each URL of either list shares an address with a URL of the other. A name may have
/// several addresses.
fn are_paired(one: &[Reached<'_>], other: &[Reached<'_>]) -> bool {
    let is_same = |(scheme, addresses): &Reached<'_>, place: &Reached<'_>| {
        *scheme == place.0 && addresses.iter().any(|address| place.1.contains(address))
    };
    let is_in =
        |place: &Reached<'_>, places: &[Reached<'_>]| places.iter().any(|p| is_same(place, p));
    one.iter().all(|place| is_in(place, other)) && other.iter().all(|place| is_in(place, one))
}

/// The addresses to bind. As in etcd, duplicate URLs count once.
pub(super) fn listen(
    flag: &'static str,
    mut urls: Vec<String>,
) -> Result<Vec<ListenUrl>, ConfigError> {
    urls.dedup();
    urls.into_iter().map(|url| address(flag, url)).collect()
}

fn address(flag: &'static str, url: String) -> Result<ListenUrl, ConfigError> {
    let (is_tls, place) = match parse(flag, &url)? {
        Parsed::Unix { path, is_tls } => (is_tls, Place::Unix(path)),
        Parsed::Tcp(parsed) => {
            let port = parsed.port_or_known_default().unwrap_or(0);
            let address: IpAddr = match parsed.host() {
                Some(url::Host::Ipv4(address)) => address.into(),
                Some(url::Host::Ipv6(address)) => address.into(),
                Some(url::Host::Domain("localhost")) => Ipv4Addr::LOCALHOST.into(),
                Some(url::Host::Domain(_)) | None => {
                    return Err(invalid(flag, &url, "expected IP in URL for binding"));
                }
            };
            (parsed.scheme() == "https", Place::Tcp(SocketAddr::new(address, port)))
        }
    };
    Ok(ListenUrl { url, place, is_tls })
}

/// A parsed URL.
enum Parsed {
    Tcp(Url),
    Unix { path: PathBuf, is_tls: bool },
}

fn parse(flag: &'static str, url: &str) -> Result<Parsed, ConfigError> {
    // The rest is a path, even if it looks like a host: `unix://localhost:m1`.
    for (scheme, is_tls) in [("unix://", false), ("unixs://", true)] {
        match url.strip_prefix(scheme) {
            Some("") => return Err(invalid(flag, url, "a unix socket needs a path")),
            Some(path) => return Ok(Parsed::Unix { path: path.into(), is_tls }),
            None => {}
        }
    }
    let parsed = Url::parse(url).map_err(|error| invalid(flag, url, &error.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(invalid(flag, url, "URL scheme must be http, https, unix, or unixs"));
    }
    let (_, authority) = url.split_once("://").unwrap_or_default();
    // As etcd: not even a bare slash is allowed.
    if authority.contains('/') {
        return Err(invalid(flag, url, "URL must not contain a path"));
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !has_port {
        return Err(invalid(flag, url, "URL address does not have the form \"host:port\""));
    }
    Ok(Parsed::Tcp(parsed))
}

/// Hosts and addresses of listen URLs, for a self-signed certificate.
pub(super) fn hosts(urls: &[ListenUrl]) -> Vec<String> {
    let host = |url: &ListenUrl| match &url.place {
        Place::Tcp(address) => address.ip().to_string(),
        Place::Unix(_) => "localhost".to_owned(),
    };
    urls.iter().map(host).collect()
}

fn invalid(flag: &'static str, value: &str, reason: &str) -> ConfigError {
    ConfigError::InvalidValue { flag, value: value.to_owned(), reason: reason.to_owned() }
}
