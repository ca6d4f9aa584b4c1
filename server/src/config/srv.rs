//! The flags for discovery by SRV records.

use super::ConfigError;
use super::flags::Raw;
use super::resolve::invalid;
use super::settings::SrvDiscovery;

/// Gives the flags their types; `None` if initial members are not discovered by SRV records.
pub(super) fn settings(raw: &Raw) -> Result<Option<SrvDiscovery>, ConfigError> {
    const SERVER: &str = "discovery-dns-server";
    let Some(domain) = raw.text("discovery-srv") else {
        for flag in ["discovery-srv-name", SERVER] {
            if raw.text(flag).is_some() {
                return Err(ConfigError::Rule(format!("--{flag} needs --discovery-srv")));
            }
        }
        return Ok(None);
    };
    if raw.text("initial-cluster").is_some() {
        return Err(ConfigError::Rule(
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\" or \
             \"discovery-srv\""
                .to_owned(),
        ));
    }
    let server = raw
        .text(SERVER)
        .map(|server| server.parse().map_err(|_| invalid(SERVER, server, "expected address:port")));
    Ok(Some(SrvDiscovery {
        domain: domain.to_owned(),
        name: raw.text("discovery-srv-name").unwrap_or_default().to_owned(),
        server: server.transpose()?,
    }))
}
