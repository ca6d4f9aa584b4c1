//! Lists of URLs as etcd's flags take them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::ConfigError;

/// An address to listen on, with the URL that asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    /// As given.
    pub url: String,
    /// Where that is.
    pub place: Place,
    /// Whoever connects must speak TLS.
    pub is_tls: bool,
}

/// What can be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A port. `localhost` is 127.0.0.1; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// Splits a comma-separated list and checks each URL. The result is sorted as etcd sorts it.
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

/// The URLs of a member as a client gave them, sorted; `None` if one of them is none.
pub(crate) fn peer_urls(given: &[String]) -> Option<Vec<String>> {
    list("peer-urls", &given.join(",")).ok()
}

/// How often names are looked up that are not known yet, and the pause between.
const LOOKUPS_MAX: u32 = 10;
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);

/// Whether two sorted lists name the same places: by the same words or, as in etcd, by names of the same addresses.
/// Blocks if it has to look names up: a member that has just begun may not be known yet by its own.
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

/// The places of all URLs; `None` if one is not known.
fn places(urls: &[String]) -> Option<Vec<Reached<'_>>> {
    let place = |url| {
        let (scheme, authority) = str::split_once(url, "://")?;
        Some((scheme, authority.to_socket_addrs().ok()?.collect()))
    };
    urls.iter().map(String::as_str).map(place).collect()
}

/// Whether each place is one of the others, which has an address in common with it. A name may have several.
fn are_paired(one: &[Reached<'_>], other: &[Reached<'_>]) -> bool {
    let is_same = |(scheme, addresses): &Reached<'_>, place: &Reached<'_>| {
        *scheme == place.0 && addresses.iter().any(|address| place.1.contains(address))
    };
    let is_in =
        |place: &Reached<'_>, places: &[Reached<'_>]| places.iter().any(|p| is_same(place, p));
    one.iter().all(|place| is_in(place, other)) && other.iter().all(|place| is_in(place, one))
}

/// The addresses to bind that a list names.
/// As in etcd one that is named twice is one.
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

/// What a URL names.
enum Parsed {
    Tcp(Url),
    Unix { path: PathBuf, is_tls: bool },
}

fn parse(flag: &'static str, url: &str) -> Result<Parsed, ConfigError> {
    // Whatever follows is a path, also what looks like a host: `unix://localhost:m1`.
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
    // As etcd: not even the slash of no path.
    if authority.contains('/') {
        return Err(invalid(flag, url, "URL must not contain a path"));
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !has_port {
        return Err(invalid(flag, url, "URL address does not have the form \"host:port\""));
    }
    Ok(Parsed::Tcp(parsed))
}

/// Host names and addresses of listen URLs: what a self-signed certificate is made for.
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
