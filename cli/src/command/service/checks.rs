//! The flags of `service register` for checks that the server performs.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use conclave_client::registry::{Check, CheckKind};

use crate::failure::Failure;

/// Checks of an instance.
#[derive(Debug, Args)]
pub(super) struct Checks {
    /// What the server is to check: tcp, http or http:PATH, grpc or grpc:SERVICE; by TLS tls, https or https:PATH, grpcs or
    /// grpcs:SERVICE; several as NAME=tcp and so on, repeated.
    #[arg(long, value_name = "[NAME=]KIND[:TARGET]", value_parser = parse)]
    check: Vec<(String, Check)>,
    /// Name that certificates must be for in checks by TLS, if not the host of the address.
    #[arg(long, requires = "check", value_name = "NAME")]
    check_tls_server_name: Option<String>,
    /// Take any certificate in checks by TLS.
    #[arg(long, requires = "check")]
    check_tls_skip_verify: bool,
    /// From one check to the next.
    #[arg(long, requires = "check", value_parser = conclave_server::config::duration)]
    check_interval: Option<Duration>,
    /// Remove it when a check found it critical for so long; it comes back when it takes connections again.
    #[arg(long, requires = "check", value_parser = conclave_server::config::duration)]
    remove_after: Option<Duration>,
}

impl Checks {
    /// All checks with their names; an unnamed check has an empty name.
    pub(super) fn all(&self) -> Result<Vec<(String, Check)>, Failure> {
        let speaks_of_tls = self.check_tls_server_name.is_some() || self.check_tls_skip_verify;
        if speaks_of_tls && !self.check.iter().any(|(_, check)| check.tls) {
            let flags = "--check-tls-server-name and --check-tls-skip-verify";
            return Err(Failure::error(format!("{flags} need a --check of tls, https or grpcs")));
        }
        let mut names = BTreeSet::new();
        let mut all = self.check.clone();
        for (name, check) in &mut all {
            if !names.insert(name.clone()) {
                return Err(Failure::error(format!("two checks have the name {name:?}")));
            }
            check.interval_ms = self.check_interval.map_or(0, ms);
            check.remove_after_ms = self.remove_after.map_or(0, ms);
            if check.tls {
                check.tls_server_name = self.check_tls_server_name.clone().unwrap_or_default();
                check.tls_skip_verify = self.check_tls_skip_verify;
            }
        }
        Ok(all)
    }
}

/// Parses a check and its name, which is empty if not given.
fn parse(text: &str) -> Result<(String, Check), String> {
    // A target may hold `=`, but only after a `:`.
    let named = text.split_once('=').filter(|(name, _)| !name.contains(':'));
    let (name, what) = named.unwrap_or(("", text));
    let (kind, target) = what.split_once(':').unwrap_or((what, ""));
    let (kind, tls) = match kind {
        "tcp" if target.is_empty() => (CheckKind::Tcp, false),
        "tls" if target.is_empty() => (CheckKind::Tcp, true),
        "http" => (CheckKind::Http, false),
        "https" => (CheckKind::Http, true),
        "grpc" => (CheckKind::Grpc, false),
        "grpcs" => (CheckKind::Grpc, true),
        _ => {
            let kinds = "tcp, tls, http[:PATH], https[:PATH], grpc[:SERVICE] or grpcs[:SERVICE]";
            return Err(format!("expected [NAME=]{kinds}"));
        }
    };
    Ok((name.to_owned(), Check { kind, tls, target: target.to_owned(), ..Check::default() }))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        checks: Checks,
    }

    fn read(line: &str) -> Result<Vec<(String, Check)>, String> {
        let line = Line::try_parse_from(["register"].into_iter().chain(line.split_whitespace()));
        let line = line.map_err(|error| error.to_string())?;
        line.checks.all().map_err(|error| format!("{error:?}"))
    }

    fn of(kind: CheckKind, tls: bool, target: &str) -> Check {
        Check { kind, tls, target: target.to_owned(), ..Check::default() }
    }

    #[test]
    fn a_check_is_a_name_a_kind_and_a_target() {
        for (text, name, check) in [
            ("tcp", "", of(CheckKind::Tcp, false, "")),
            ("live=tls", "live", of(CheckKind::Tcp, true, "")),
            ("http", "", of(CheckKind::Http, false, "")),
            ("https:/health?a=b:c", "", of(CheckKind::Http, true, "/health?a=b:c")),
            ("ready=https:/ready", "ready", of(CheckKind::Http, true, "/ready")),
            ("grpc:shop.Api", "", of(CheckKind::Grpc, false, "shop.Api")),
            ("x=grpcs:shop.Api", "x", of(CheckKind::Grpc, true, "shop.Api")),
            ("grpcs", "", of(CheckKind::Grpc, true, "")),
        ] {
            assert_eq!(parse(text), Ok((name.to_owned(), check)), "{text}");
        }
        for text in ["", "udp", "tcp:1", "tls:1", "x=", "HTTPS", "https//"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn settings_of_tls_are_of_checks_by_tls() {
        let both = read("--check live=tcp --check ready=https --check-tls-server-name a.example");
        let named =
            Check { tls_server_name: "a.example".to_owned(), ..of(CheckKind::Http, true, "") };
        let live = ("live".to_owned(), of(CheckKind::Tcp, false, ""));
        assert_eq!(both, Ok(vec![live, ("ready".to_owned(), named)]));
        let careless = Check { tls_skip_verify: true, ..of(CheckKind::Grpc, true, "s") };
        let found = read("--check grpcs:s --check-tls-skip-verify");
        assert_eq!(found, Ok(vec![(String::new(), careless)]));
        for flag in ["--check-tls-skip-verify", "--check-tls-server-name a.example"] {
            let refused = read(&format!("--check tcp {flag}")).unwrap_err();
            assert!(refused.contains("need a --check of tls, https or grpcs"), "{refused}");
            assert!(read(flag).is_err(), "without a check at all");
        }
        assert!(read("--check tcp --check http").is_err(), "both have no name");
    }
}
