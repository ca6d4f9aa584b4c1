//! Addresses as etcd writes them: `host:port`, `http://`, `https://`, `unix://`, `unixs://`.

use std::path::{Path, PathBuf};

use http::Uri;

/// Host of requests over a unix socket; its value does not matter.
const UNIX_ORIGIN: &str = "localhost";

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Origin of requests: `http://host:port` or `https://host:port`.
    origin: Uri,
    path: Option<PathBuf>,
    is_tls: bool,
}

impl Target {
    /// Parses an address. Without a scheme, `prefers_tls` decides whether TLS is used.
    ///
    /// # Errors
    /// What is wrong with it, as text for users.
    pub fn parse(address: &str, prefers_tls: bool) -> Result<Self, String> {
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            // etcd's clients also accept `unix:path`.
            None => match address.split_once(':') {
                Some((scheme @ ("unix" | "unixs"), rest)) => (scheme, rest),
                _ => (if prefers_tls { "https" } else { "http" }, address),
            },
        };
        let (is_tls, is_unix) = match scheme {
            "http" => (false, false),
            "https" => (true, false),
            "unix" => (false, true),
            "unixs" => (true, true),
            other => return Err(format!("endpoint {address}: scheme {other} is not supported")),
        };
        if rest.is_empty() {
            return Err(format!("endpoint {address}: nothing behind the scheme"));
        }
        let authority = if is_unix { UNIX_ORIGIN } else { rest };
        let origin = format!("{}://{authority}", if is_tls { "https" } else { "http" });
        let origin: Uri = origin.parse().map_err(|error| format!("endpoint {address}: {error}"))?;
        check_port(&origin)
            .map_err(|port| format!("endpoint {address}: {port} is not a port (1 to 65535)"))?;
        Ok(Self { origin, path: is_unix.then(|| PathBuf::from(rest)), is_tls })
    }

    /// Origin of requests.
    #[must_use]
    pub fn origin(&self) -> &Uri {
        &self.origin
    }

    /// Whether TLS is used.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Path of the unix socket, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The host without port and brackets.
    pub(crate) fn host(&self) -> &str {
        let host = self.origin.host().unwrap_or(UNIX_ORIGIN);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }
}

/// Refuses, with its text, a port that none can listen on. (`Uri::port` has none for 99999.)
fn check_port(origin: &Uri) -> Result<(), String> {
    let authority = origin.authority().map_or("", |authority| authority.as_str());
    let host = origin.host().unwrap_or_default();
    let Some((_, port)) = authority.rsplit_once(&format!("{host}:")) else { return Ok(()) };
    match port.parse::<u16>() {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(port.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_etcd_writes_them() {
        let parsed = |address: &str, prefers_tls| {
            let target = Target::parse(address, prefers_tls).unwrap();
            let path = target.path().map(|path| path.display().to_string());
            (target.origin().to_string(), path, target.host().to_owned())
        };
        let tcp = |origin: &str, host: &str| (origin.to_owned(), None, host.to_owned());
        assert_eq!(parsed("a:1", false), tcp("http://a:1/", "a"));
        assert_eq!(parsed("a:1", true), tcp("https://a:1/", "a"));
        assert_eq!(parsed("http://a:1", true), tcp("http://a:1/", "a"));
        assert_eq!(parsed("https://[::1]:1", false), tcp("https://[::1]:1/", "::1"));
        let unix = |origin: &str, path: &str| {
            (origin.to_owned(), Some(path.to_owned()), "localhost".to_owned())
        };
        assert_eq!(parsed("unix:///run/x", false), unix("http://localhost/", "/run/x"));
        assert_eq!(parsed("unixs:/run/x", false), unix("https://localhost/", "/run/x"));
        assert_eq!(parsed("unix://localhost:5", false), unix("http://localhost/", "localhost:5"));
        for bad in
            ["ftp://a:1", "http://", "unix://", "a b", "a:99999", "http://[::1]:70000", "a:0"]
        {
            assert!(Target::parse(bad, false).is_err(), "{bad}");
        }
    }
}
