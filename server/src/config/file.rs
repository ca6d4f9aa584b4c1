//! `--config-file`: etcd's YAML. Its keys are flag names, except inside the blocks for TLS and
//! sockets. With a file, other flags and variables are ignored.

use std::path::Path;

use serde_json::{Map, Value};

use super::flags::{self, Raw};
use super::{ConfigError, suggest};

const FLAG: &str = "config-file";

/// A block's name, and its keys with the flags they set.
type Block = (&'static str, &'static [(&'static str, &'static str)]);

const BLOCKS: [Block; 3] = [
    (
        "socket-options",
        &[("reuse-port", "socket-reuse-port"), ("reuse-address", "socket-reuse-address")],
    ),
    (
        "client-transport-security",
        &[
            ("cert-file", "cert-file"),
            ("key-file", "key-file"),
            ("client-cert-file", "client-cert-file"),
            ("client-key-file", "client-key-file"),
            ("client-cert-auth", "client-cert-auth"),
            ("trusted-ca-file", "trusted-ca-file"),
            ("crl-file", "client-crl-file"),
            ("auto-tls", "auto-tls"),
            ("allowed-hostname", "client-cert-allowed-hostname"),
        ],
    ),
    (
        "peer-transport-security",
        &[
            ("cert-file", "peer-cert-file"),
            ("key-file", "peer-key-file"),
            ("client-cert-file", "peer-client-cert-file"),
            ("client-key-file", "peer-client-key-file"),
            ("client-cert-auth", "peer-client-cert-auth"),
            ("trusted-ca-file", "peer-trusted-ca-file"),
            ("crl-file", "peer-crl-file"),
            ("auto-tls", "peer-auto-tls"),
            ("allowed-cn", "peer-cert-allowed-cn"),
            ("allowed-hostname", "peer-cert-allowed-hostname"),
            ("skip-client-san-verification", "peer-skip-client-san-verification"),
        ],
    ),
];

/// Flags that are durations in etcd: a bare number in the file counts nanoseconds.
const DURATIONS: [&str; 12] = [
    "backend-batch-interval",
    "compact-hash-check-time",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "downgrade-check-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-min-time",
    "grpc-keepalive-timeout",
    "wait-cluster-ready-timeout",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "watch-progress-notify-interval",
];

/// Reads a configuration file.
pub(super) fn read(path: &str) -> Result<Raw, ConfigError> {
    let fail = |reason: String| super::resolve::invalid(FLAG, path, &reason);
    let text = std::fs::read_to_string(Path::new(path)).map_err(|error| fail(error.to_string()))?;
    parse(&text).map_err(|error| match error {
        Failure::Syntax(reason) => fail(reason),
        Failure::Config(error) => error,
    })
}

/// What is wrong with the file.
#[derive(Debug)]
enum Failure {
    Syntax(String),
    Config(ConfigError),
}

fn parse(text: &str) -> Result<Raw, Failure> {
    let value: Option<Map<String, Value>> =
        serde_saphyr::from_str(text).map_err(|error| Failure::Syntax(error.to_string()))?;
    let mut raw = Raw { is_file: true, ..Raw::default() };
    for (key, value) in value.unwrap_or_default() {
        match (BLOCKS.iter().find(|(name, _)| *name == key), value) {
            (_, Value::Null) => {}
            (Some((name, flags)), Value::Object(block)) => {
                for (key, value) in block {
                    let flag = flags.iter().find(|(name, _)| *name == key);
                    match flag {
                        Some((_, flag)) => put(&mut raw, flag, &value)?,
                        None => {
                            warn(&mut raw, &format!("{name}: {key}"), flags.iter().map(|f| f.0))
                        }
                    }
                }
            }
            (Some(_), _) => {
                return Err(Failure::Syntax(format!("{key} must hold keys and values")));
            }
            (None, value) => put(&mut raw, &key, &value)?,
        }
    }
    Ok(raw)
}

fn put(raw: &mut Raw, key: &str, value: &Value) -> Result<(), Failure> {
    let Some(flag) = flags::find(key) else {
        warn(raw, key, flags::names());
        return Ok(());
    };
    if let Some(text) = text(value, DURATIONS.contains(&flag.name)).map_err(|()| {
        Failure::Syntax(format!("{key} must be a text, a number, true, false or a list of these"))
    })? && raw.values.insert(flag.name, text).is_some()
    {
        return Err(Failure::Config(ConfigError::Rule(format!("{key} is set twice"))));
    }
    Ok(())
}

/// Warns about an unknown key; as in etcd it does no harm.
fn warn<'a>(raw: &mut Raw, key: &str, known: impl IntoIterator<Item = &'a str>) {
    let last = key.rsplit(' ').next().unwrap_or(key);
    let like = suggest::nearest(last, known);
    let like = like.map(|like| format!(" (did you mean {like}?)")).unwrap_or_default();
    raw.warnings.push(format!("--{FLAG}: unrecognized key {key}{like}"));
}

/// A value as text, in the form that the flag takes; `None` if it is null.
fn text(value: &Value, is_duration: bool) -> Result<Option<String>, ()> {
    Ok(Some(match value {
        Value::Null => return Ok(None),
        Value::Bool(is_set) => is_set.to_string(),
        Value::Number(number) if is_duration => format!("{number}ns"),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items = items.iter().map(|item| text(item, is_duration));
            items
                .collect::<Result<Vec<_>, ()>>()?
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(",")
        }
        Value::Object(_) => return Err(()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flags() {
        let raw = parse(
            "name: 'n1'\nheartbeat-interval: 200\nlog-outputs: [stderr]\ngrpc-keepalive-timeout: \
             5000000000\npre-vote: true\ndiscovery:\nproxy: 'off'\nlisten-client-url: x\n\
             client-transport-security:\n  cert-file: a.pem\n  client-cert-auth: true\n  cert: b\n\
             peer-transport-security:\n  allowed-cn: [a, b]\nsocket-options:\n  reuse-port: true\n",
        )
        .unwrap();
        let values: Vec<(&str, &str)> =
            raw.values.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
        assert_eq!(
            values,
            [
                ("cert-file", "a.pem"),
                ("client-cert-auth", "true"),
                ("grpc-keepalive-timeout", "5000000000ns"),
                ("heartbeat-interval", "200"),
                ("log-outputs", "stderr"),
                ("name", "n1"),
                ("peer-cert-allowed-cn", "a,b"),
                ("pre-vote", "true"),
                ("proxy", "off"),
                ("socket-reuse-port", "true"),
            ]
        );
        let mut warnings = raw.warnings;
        warnings.sort();
        assert_eq!(
            warnings,
            [
                "--config-file: unrecognized key client-transport-security: cert",
                "--config-file: unrecognized key listen-client-url (did you mean listen-client-urls?)",
            ]
        );
        assert!(parse("").unwrap().values.is_empty());
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for text in ["- a", "name: {a: b}", "client-transport-security: x", "name: [", "a"] {
            assert!(matches!(parse(text), Err(Failure::Syntax(_))), "{text}");
        }
        let twice = "cert-file: a\nclient-transport-security: {cert-file: b}";
        assert!(matches!(parse(twice), Err(Failure::Config(_))));
    }
}
