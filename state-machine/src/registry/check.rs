//! Validity checks for commands of the registry; the server makes them before it proposes.

use serde_json::Value;

use super::record::{Check, Details, Record};
use crate::command::{CheckResult, InstanceUpdate, Register, RegistryCommand, Settle};
use crate::primitives::check::once;
use crate::response::Rejection;

/// Longest name of a service, in bytes.
pub const SERVICE_BYTES_MAX: usize = 1_024;
/// Longest id of an instance, in bytes.
pub const ID_BYTES_MAX: usize = 255;
/// Largest stored record of an instance, in bytes.
pub const RECORD_BYTES_MAX: usize = 16 * 1_024;
/// Most tags of an instance.
pub const TAGS_MAX: usize = 64;
/// Longest output of a check or an owner, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 1_024;
/// Most instances in one `Settle` command.
pub const SETTLE_MAX: usize = 1_000;
/// Default time between two checks.
pub const CHECK_INTERVAL_MS: u64 = 10_000;
/// Shortest time between two checks.
pub const CHECK_INTERVAL_MS_MIN: u64 = 500;
/// Longest time between two checks, and before a critical instance is removed: a day.
pub const CHECK_MS_MAX: u64 = 24 * 3_600 * 1_000;
/// Default timeout of one check.
pub const CHECK_TIMEOUT_MS: u64 = 2_000;
/// Longest timeout of one check.
pub const CHECK_TIMEOUT_MS_MAX: u64 = 30_000;
/// Default number of failed checks in a row before an instance is critical.
pub const CHECK_FAILURES: u32 = 3;
/// Most checks in a row that a change of state can require.
pub const CHECKS_IN_ROW_MAX: u32 = 100;
/// Most checks of an instance.
pub const CHECKS_MAX: usize = 8;
/// Longest name of a check, in bytes.
pub const CHECK_NAME_BYTES_MAX: usize = 64;
/// Longest name that a check may expect in a certificate; DNS names are not longer.
pub const CHECK_SERVER_NAME_BYTES_MAX: usize = 253;
/// Longest path or service name of a check, in bytes.
pub const CHECK_TARGET_BYTES_MAX: usize = 1_024;

/// Checks a command.
///
/// # Errors
/// [`Rejection::InvalidInstance`].
pub fn command(command: &RegistryCommand) -> Result<(), Rejection> {
    match command {
        RegistryCommand::Register(register) => self::register(register).map(drop),
        RegistryCommand::Deregister(command) => {
            names(&command.service, &command.id)?;
            once(command.once, false)
        }
        RegistryCommand::Update(update) => self::update(update),
        RegistryCommand::Checked(CheckResult { service, id, check, output, .. }) => {
            names(service, id)?;
            check_name(check)?;
            self::output(output)
        }
        RegistryCommand::Settle(Settle { items, .. }) if items.len() > SETTLE_MAX => {
            Err(Rejection::InvalidInstance("too many instances at once"))
        }
        RegistryCommand::Settle(_) => Ok(()),
        RegistryCommand::Configure(command) => service(&command.service),
    }
}

/// Checks a registration and returns its record.
///
/// # Errors
/// [`Rejection::InvalidInstance`].
pub fn register(register: &Register) -> Result<Record, Rejection> {
    names(&register.service, &register.id)?;
    once(register.once, false)?;
    if register.record.len() > RECORD_BYTES_MAX {
        return Err(Rejection::InvalidInstance("the record is too long"));
    }
    let mut record = Record::decode(&register.id, &register.record)
        .ok_or(Rejection::InvalidInstance("the record is not one of naming/endpoints"))?;
    // A client that registers here is told about malformed fields. In a record written through
    // etcd's API they are read as well as possible.
    if let Some(name) = record.misspoken() {
        return Err(Rejection::InvalidInstance(match name {
            "weight" => "the weight is no whole number from 0 to 4294967295",
            "tags" => "the tags are no list of words",
            "state" => "the state is none of up, draining, down, starting and out_of_service",
            "zone" | "version" => "the zone or version is no word",
            _ => {
                "what is below conclave (health, checks and so on) is not as the guide to discovery says"
            }
        }));
    }
    // Go's balancers panic on a `Metadata` object; its fields are stored beside it from now on.
    if record.attributes.is_object() {
        record.attributes = Value::Null;
    }
    if record.tags.len() > TAGS_MAX {
        return Err(Rejection::InvalidInstance("too many tags"));
    }
    output(&record.details.output)?;
    checks(&record.details)?;
    Ok(record)
}

/// Checks an instance's settings of health checks. A record written through etcd's API was not
/// checked.
///
/// # Errors
/// [`Rejection::InvalidInstance`].
pub fn checks(details: &Details) -> Result<(), Rejection> {
    if details.all_checks().count() > CHECKS_MAX {
        return Err(Rejection::InvalidInstance("an instance has at most 8 checks"));
    }
    if details.checks.contains_key("") {
        return Err(Rejection::InvalidInstance("a check has no name"));
    }
    details.all_checks().try_for_each(|(name, check)| {
        check_name(name)?;
        active(check)
    })
}

/// Checks the address of an instance that registers with this version. Not part of [`register`]:
/// what a log holds was accepted, and records written through etcd's API hold anything.
///
/// # Errors
/// [`Rejection::InvalidInstance`] unless it is `host:port`, with or without a scheme, or a unix
/// socket (`unix:path`).
pub fn address(address: &str) -> Result<(), Rejection> {
    let is_text = |text: &str| !text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ');
    let is_unix = |address: &str| address.strip_prefix("unix:").is_some_and(|at| !at.is_empty());
    let is_host_and_port = |address: &str| {
        let place = address.split_once("://").map_or(address, |(_, place)| place);
        place.rsplit_once(':').is_some_and(|(host, port)| {
            let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
            // An IPv6 address stands in brackets.
            let is_whole = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
            !host.is_empty() && !host.contains('/') && is_whole && is_port
        })
    };
    if is_text(address) && (is_unix(address) || is_host_and_port(address)) {
        return Ok(());
    }
    Err(Rejection::InvalidInstance("the address of the instance is not host:port"))
}

fn check_name(name: &str) -> Result<(), Rejection> {
    if name.len() > CHECK_NAME_BYTES_MAX || name.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(Rejection::InvalidInstance("the name of a check is too long or no text"));
    }
    Ok(())
}

/// Checks the settings of one health check.
///
/// # Errors
/// [`Rejection::InvalidInstance`].
fn active(check: &Check) -> Result<(), Rejection> {
    let interval_ok = check.interval_ms == 0
        || (CHECK_INTERVAL_MS_MIN..=CHECK_MS_MAX).contains(&check.interval_ms);
    if !interval_ok || check.remove_after_ms > CHECK_MS_MAX {
        return Err(Rejection::InvalidInstance("a time of the check is out of range"));
    }
    if check.timeout_ms > CHECK_TIMEOUT_MS_MAX {
        return Err(Rejection::InvalidInstance("the timeout of the check is too long"));
    }
    if check.passes > CHECKS_IN_ROW_MAX || check.failures > CHECKS_IN_ROW_MAX {
        return Err(Rejection::InvalidInstance("too many checks in a row"));
    }
    if check.target.len() > CHECK_TARGET_BYTES_MAX || check.address.len() > ID_BYTES_MAX {
        return Err(Rejection::InvalidInstance("the target of the check is too long"));
    }
    if check.target.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
        return Err(Rejection::InvalidInstance("the target of the check is no path or name"));
    }
    tls(check)
}

/// Checks a health check's TLS settings. With a server name or without verification, but without
/// TLS, it would run in plain text.
fn tls(check: &Check) -> Result<(), Rejection> {
    let name = &check.tls_server_name;
    if !check.tls && (!name.is_empty() || check.tls_skip_verify) {
        return Err(Rejection::InvalidInstance(
            "tls_server_name and tls_skip_verify of a check need its tls",
        ));
    }
    let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if name.len() > CHECK_SERVER_NAME_BYTES_MAX || !name.bytes().all(is_of_host) {
        return Err(Rejection::InvalidInstance(
            "the tls_server_name of a check is no name or address of a host",
        ));
    }
    Ok(())
}

/// Checks the name of a service.
///
/// # Errors
/// [`Rejection::InvalidInstance`].
pub fn service(service: &[u8]) -> Result<(), Rejection> {
    if service.is_empty() || service.len() > SERVICE_BYTES_MAX {
        return Err(Rejection::InvalidInstance("the name of the service is empty or too long"));
    }
    if service.contains(&0) || service.ends_with(b"/") {
        return Err(Rejection::InvalidInstance(
            "the name of the service holds a zero byte or ends in /",
        ));
    }
    std::str::from_utf8(service)
        .map_err(|_| Rejection::InvalidInstance("the name of the service is not text"))
        .map(drop)
}

/// Checks the names of a service and an instance.
///
/// # Errors
/// [`Rejection::InvalidInstance`].
pub fn names(service: &[u8], id: &str) -> Result<(), Rejection> {
    self::service(service)?;
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(Rejection::InvalidInstance("the id of the instance is empty or too long"));
    }
    if id.contains(['/', '\0']) {
        return Err(Rejection::InvalidInstance("the id of the instance holds a / or a zero byte"));
    }
    Ok(())
}

fn update(update: &InstanceUpdate) -> Result<(), Rejection> {
    names(&update.service, &update.id)?;
    once(update.once, false)?;
    update.health.as_ref().map_or(Ok(()), |(_, output)| self::output(output))
}

fn output(output: &str) -> Result<(), Rejection> {
    if output.len() > OUTPUT_BYTES_MAX {
        return Err(Rejection::InvalidInstance("the output is too long"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["h:1", "10.0.0.7:65535", "[::1]:80", "http://h:1", "grpcs://h:1", "unix:///a"]
        {
            assert_eq!(address(good), Ok(()), "{good}");
        }
        for bad in
            ["", "h", "h:", ":80", "h:0", "h:99999", "h:x", "::1:80", "h 1:2", "unix:", "h/p:1"]
        {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_check_says_about_tls_goes_together() {
        let named = |name: &str| Check {
            tls: true,
            tls_server_name: name.to_owned(),
            tls_skip_verify: true,
            ..Check::default()
        };
        for name in ["", "api.example", "10.0.0.7", "::1", "a_b-c.svc"] {
            assert_eq!(active(&named(name)), Ok(()), "{name}");
        }
        let refused = |why| Err(Rejection::InvalidInstance(why));
        let no_host = refused("the tls_server_name of a check is no name or address of a host");
        for name in ["a b", "[::1]", "a/b", "ä", "a\r\nb", "a".repeat(254).as_str()] {
            assert_eq!(active(&named(name)), no_host, "{name}");
        }
        let in_the_clear = refused("tls_server_name and tls_skip_verify of a check need its tls");
        let unverified = Check { tls: false, ..named("") };
        let verified = Check { tls: false, tls_skip_verify: false, ..named("api.example") };
        for check in [unverified, verified, Check { tls: false, ..named("api.example") }] {
            assert_eq!(active(&check), in_the_clear);
        }
    }
}
