//! Lists of URLs as etcd's flags take them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use url::Url;

use super::ConfigError;

/// An address to listen on, with the URL that asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    /// As given.
    pub url: String,
    /// `localhost` is 127.0.0.1; port 0 lets the system choose.
    pub address: SocketAddr,
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

/// Like [`list`], for addresses to bind.
pub(super) fn listen_list(flag: &'static str, value: &str) -> Result<Vec<ListenUrl>, ConfigError> {
    list(flag, value)?.into_iter().map(|url| listen(flag, url)).collect()
}

fn listen(flag: &'static str, url: String) -> Result<ListenUrl, ConfigError> {
    let parsed = parse(flag, &url)?;
    let port = parsed.port_or_known_default().unwrap_or(0);
    let address: IpAddr = match parsed.host() {
        Some(url::Host::Ipv4(address)) => address.into(),
        Some(url::Host::Ipv6(address)) => address.into(),
        Some(url::Host::Domain("localhost")) => Ipv4Addr::LOCALHOST.into(),
        Some(url::Host::Domain(_)) | None => {
            return Err(invalid(flag, &url, "expected IP in URL for binding"));
        }
    };
    Ok(ListenUrl { url, address: SocketAddr::new(address, port) })
}

fn parse(flag: &'static str, url: &str) -> Result<Url, ConfigError> {
    let parsed = Url::parse(url).map_err(|error| invalid(flag, url, &error.to_string()))?;
    match parsed.scheme() {
        "http" => {}
        "https" => return Err(invalid(flag, url, "https is not supported yet")),
        "unix" | "unixs" => return Err(invalid(flag, url, "unix sockets are not supported yet")),
        _ => return Err(invalid(flag, url, "URL scheme must be http, https, unix, or unixs")),
    }
    if !matches!(parsed.path(), "" | "/") {
        return Err(invalid(flag, url, "URL must not contain a path"));
    }
    let authority = url.strip_prefix("http://").unwrap_or_default();
    let has_port = authority
        .trim_end_matches('/')
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !has_port {
        return Err(invalid(flag, url, "URL address does not have the form \"host:port\""));
    }
    Ok(parsed)
}

fn invalid(flag: &'static str, value: &str, reason: &str) -> ConfigError {
    ConfigError::InvalidValue { flag, value: value.to_owned(), reason: reason.to_owned() }
}
