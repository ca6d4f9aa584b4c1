//! Turns the TLS flags into settings of the two ports, with etcd's rules and messages.

use std::path::{Path, PathBuf};

use conclave_transport::{Allowed, Pair, Policy, Version};

use super::flags::Raw;
use super::resolve::invalid;
use super::settings::{ListenSettings, PortIdentity, PortTls, TlsSettings};
use super::{ConfigError, ListenUrl, urls};

/// Flag names of one port.
struct PortFlags {
    /// Name for messages and for the directory of a self-signed certificate.
    port: &'static str,
    cert: &'static str,
    key: &'static str,
    ca: &'static str,
    auth: &'static str,
    revocations: &'static str,
    common_names: Option<&'static str>,
    hostnames: &'static str,
    auto: &'static str,
}

const CLIENT: PortFlags = PortFlags {
    port: "client",
    cert: "cert-file",
    key: "key-file",
    ca: "trusted-ca-file",
    auth: "client-cert-auth",
    revocations: "client-crl-file",
    common_names: None,
    hostnames: "client-cert-allowed-hostname",
    auto: "auto-tls",
};

const PEER: PortFlags = PortFlags {
    port: "peer",
    cert: "peer-cert-file",
    key: "peer-key-file",
    ca: "peer-trusted-ca-file",
    auth: "peer-client-cert-auth",
    revocations: "peer-crl-file",
    common_names: Some("peer-cert-allowed-cn"),
    hostnames: "peer-cert-allowed-hostname",
    auto: "peer-auto-tls",
};

/// Gives the TLS flags their types and checks them against the URLs to listen on.
pub(super) fn settings(
    raw: &mut Raw,
    listen: &ListenSettings,
    data_dir: &Path,
) -> Result<TlsSettings, ConfigError> {
    let policy = policy(raw)?;
    let client = port(raw, &CLIENT, &listen.client, data_dir, &policy)?;
    // These ports use the certificate of the client port.
    let others = || listen.http.iter().chain(&listen.metrics);
    for url in others() {
        check_identity(&CLIENT, url, client.is_some())?;
    }
    // As in etcd, files need not exist if no port uses them.
    let is_needed = listen.client.iter().chain(others()).any(|url| url.is_tls);
    let is_file = |client: &PortTls| matches!(client.identity, PortIdentity::Files(_));
    let client = client.filter(|client| is_needed || !is_file(client));
    let peer = port(raw, &PEER, &listen.peer, data_dir, &policy)?;
    let peer = match peer {
        None => None,
        Some(peer) => Some(PortTls {
            outgoing: outgoing(raw)?,
            checks_addresses: !raw.switch("peer-skip-client-san-verification")?,
            ..peer
        }),
    };
    Ok(TlsSettings { client, peer, checks_ca: checks_ca(raw) })
}

/// CA certificates that the registry's checks trust, if checks are on.
fn checks_ca(raw: &mut Raw) -> Option<PathBuf> {
    const FLAG: &str = "registry-checks-trusted-ca-file";
    let ca = PathBuf::from(raw.text(FLAG)?);
    if raw.value("registry-checks") == "off" {
        raw.warnings.push(format!("--{FLAG} has no effect with --registry-checks=off"));
        return None;
    }
    Some(ca)
}

fn policy(raw: &mut Raw) -> Result<Policy, ConfigError> {
    let version = |flag: &'static str| match raw.text(flag) {
        None => Ok(None),
        Some(name) => Version::parse(name)
            .map(Some)
            .ok_or_else(|| invalid(flag, name, "expected TLS1.2 or TLS1.3")),
    };
    let (min, max) = (version("tls-min-version")?, version("tls-max-version")?);
    let policy = Policy::new(min, max, &raw.list("cipher-suites"));
    let (policy, unavailable) = policy.map_err(|error| ConfigError::Rule(error.to_string()))?;
    for name in unavailable {
        raw.warnings.push(format!("--cipher-suites: {name} is not available and is left out"));
    }
    Ok(policy)
}

fn port(
    raw: &mut Raw,
    flags: &PortFlags,
    listen: &[ListenUrl],
    data_dir: &Path,
    policy: &Policy,
) -> Result<Option<PortTls>, ConfigError> {
    let identity = identity(raw, flags, listen, data_dir)?;
    let asks = raw.switch(flags.auth)?;
    check_urls(raw, flags, listen, identity.is_some(), asks)?;
    let trusted_ca = raw.text(flags.ca).map(PathBuf::from);
    let Some(identity) = identity else {
        if trusted_ca.is_some() {
            let (ca, cert) = (flags.ca, flags.cert);
            raw.warnings.push(format!("--{ca} has no effect without --{cert}"));
        }
        return Ok(None);
    };
    if let PortIdentity::SelfSigned { .. } = identity
        && (asks || trusted_ca.is_some())
    {
        return Err(ConfigError::Rule(format!(
            "--{} makes a certificate that no authority has signed: it cannot be combined with --{} \
             or --{}",
            flags.auto, flags.auth, flags.ca
        )));
    }
    if asks && trusted_ca.is_none() {
        return Err(ConfigError::Rule(format!(
            "--{} needs --{}: the authorities that sign the certificates",
            flags.auth, flags.ca
        )));
    }
    let allowed = allowed(raw, flags)?;
    let revocations = raw.text(flags.revocations).map(PathBuf::from);
    if trusted_ca.is_none() && (revocations.is_some() || !allowed.is_any()) {
        return Err(ConfigError::Rule(format!(
            "--{}, --{} and the like need --{}: no certificates are asked for without it",
            flags.revocations, flags.hostnames, flags.ca
        )));
    }
    Ok(Some(PortTls {
        identity,
        outgoing: None,
        trusted_ca,
        names_users: asks,
        revocations,
        allowed,
        policy: policy.clone(),
        checks_addresses: false,
    }))
}

fn identity(
    raw: &mut Raw,
    flags: &PortFlags,
    listen: &[ListenUrl],
    data_dir: &Path,
) -> Result<Option<PortIdentity>, ConfigError> {
    let is_auto = raw.switch(flags.auto)?;
    let pair = pair(raw, flags.cert, flags.key).map_err(|(cert, key)| {
        ConfigError::Rule(format!(
            "KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"
        ))
    })?;
    if is_auto && pair.is_some() {
        raw.warnings.push(format!(
            "ignoring --{} since certificates are given for the {} port",
            flags.auto, flags.port
        ));
    }
    if pair.is_some() || !is_auto {
        return Ok(pair.map(PortIdentity::Files));
    }
    let years: u32 = raw.number("self-signed-cert-validity")?;
    if !(1..=100).contains(&years) {
        let reason = "expected a number of years from 1 to 100";
        return Err(invalid("self-signed-cert-validity", &years.to_string(), reason));
    }
    Ok(Some(PortIdentity::SelfSigned {
        dir: data_dir.join("fixtures").join(flags.port),
        hosts: urls::hosts(listen),
        years,
    }))
}

/// Both files, or none; with only one given, the error holds what is given.
fn pair(
    raw: &Raw,
    cert: &'static str,
    key: &'static str,
) -> Result<Option<Pair>, (String, String)> {
    match (raw.text(cert), raw.text(key)) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(Pair { cert: cert.into(), key: key.into() })),
        (cert, key) => {
            Err((cert.unwrap_or_default().to_owned(), key.unwrap_or_default().to_owned()))
        }
    }
}

fn outgoing(raw: &Raw) -> Result<Option<Pair>, ConfigError> {
    pair(raw, "peer-client-cert-file", "peer-client-key-file").map_err(|(cert, key)| {
        ConfigError::Rule(format!(
            "ClientKeyFile and ClientCertFile must both be present or both absent: \
             [key: {key}, cert: {cert}]"
        ))
    })
}

fn allowed(raw: &Raw, flags: &PortFlags) -> Result<Allowed, ConfigError> {
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let common_names = owned(flags.common_names.map(|flag| raw.list(flag)).unwrap_or_default());
    let hostnames = owned(raw.list(flags.hostnames));
    if !common_names.is_empty() && !hostnames.is_empty() {
        return Err(ConfigError::Rule(format!(
            "AllowedCN and AllowedHostname are mutually exclusive (cn={common_names:?}, \
             hostname={hostnames:?})"
        )));
    }
    Ok(Allowed { common_names, hostnames })
}

/// Refuses an https URL without a certificate.
fn check_identity(
    flags: &PortFlags,
    listen: &ListenUrl,
    has_identity: bool,
) -> Result<(), ConfigError> {
    if !listen.is_tls || has_identity {
        return Ok(());
    }
    Err(ConfigError::Rule(format!(
        "TLS key/cert (--{}, --{}) must be provided for {} url {} with HTTPS scheme",
        flags.cert, flags.key, flags.port, listen.url
    )))
}

fn check_urls(
    raw: &mut Raw,
    flags: &PortFlags,
    listen: &[ListenUrl],
    has_identity: bool,
    asks: bool,
) -> Result<(), ConfigError> {
    for listen in listen {
        let url = &listen.url;
        check_identity(flags, listen, has_identity)?;
        if !listen.is_tls && has_identity {
            raw.warnings.push(format!(
                "{url}: scheme is http or unix while key and cert files are present; ignoring key \
                 and cert files"
            ));
        }
        if !listen.is_tls && asks {
            raw.warnings.push(format!(
                "{url}: scheme is http or unix while --{} is enabled; ignoring client cert auth \
                 for this URL",
                flags.auth
            ));
        }
    }
    Ok(())
}
