//! The flags of the log.

use std::path::PathBuf;
use std::time::Duration;

use super::ConfigError;
use super::flags::Raw;
use super::resolve::invalid;
use super::settings::{LogFormat, LogOutput, LogRotation, LogSettings};

const OUTPUTS: &str = "log-outputs";
const ROTATION: &str = "log-rotation-config-json";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MEGABYTE: u64 = 1024 * 1024;

/// Value of `--log-rotation-config-json`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RotationJson {
    maxsize: u64,
    maxage: u32,
    maxbackups: usize,
    localtime: bool,
    compress: bool,
}

impl Default for RotationJson {
    fn default() -> Self {
        Self { maxsize: 100, maxage: 0, maxbackups: 0, localtime: false, compress: false }
    }
}

/// Gives the flags of the log their types.
pub(super) fn settings(raw: &Raw) -> Result<LogSettings, ConfigError> {
    let is_debug = raw.text("log-level").is_none() && raw.switch("debug")?;
    let level = match if is_debug { "debug" } else { raw.value("log-level") } {
        "debug" => tracing::Level::DEBUG,
        "info" => tracing::Level::INFO,
        "warn" => tracing::Level::WARN,
        // We log nothing above error, so these mean the same.
        "error" | "dpanic" | "panic" | "fatal" => tracing::Level::ERROR,
        other => {
            return Err(raw.malformed("log-level", other, "expected debug, info, warn or error"));
        }
    };
    let format = match raw.value("log-format") {
        "json" => LogFormat::Json,
        "console" => LogFormat::Console,
        other => return Err(invalid("log-format", other, "expected json or console")),
    };
    let outputs = outputs(raw)?;
    let rotation = rotation(raw, &outputs)?;
    Ok(LogSettings { level, format, outputs, rotation })
}

fn outputs(raw: &Raw) -> Result<Vec<LogOutput>, ConfigError> {
    let mut outputs = Vec::new();
    for name in raw.list(OUTPUTS) {
        let output = match name {
            "default" | "stderr" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            "systemd/journal" => {
                let reason = "use stderr: systemd hands it to the journal";
                return Err(invalid(OUTPUTS, name, reason));
            }
            path => LogOutput::File(PathBuf::from(path)),
        };
        if !outputs.contains(&output) {
            outputs.push(output);
        }
    }
    if outputs.is_empty() {
        outputs.push(LogOutput::Stderr);
    }
    Ok(outputs)
}

fn rotation(raw: &Raw, outputs: &[LogOutput]) -> Result<Option<LogRotation>, ConfigError> {
    if !raw.switch("enable-log-rotation")? {
        return Ok(None);
    }
    if !matches!(outputs, [LogOutput::File(_)]) {
        return Err(ConfigError::Rule(format!(
            "--{OUTPUTS} requires a single file path when --enable-log-rotation is set"
        )));
    }
    let text = raw.value(ROTATION);
    let json: RotationJson =
        serde_json::from_str(text).map_err(|error| invalid(ROTATION, text, &error.to_string()))?;
    if json.localtime || json.compress {
        let reason = "localtime and compress are not supported: names are in UTC, files plain";
        return Err(invalid(ROTATION, text, reason));
    }
    if json.maxsize == 0 {
        return Err(invalid(ROTATION, text, "maxsize must be above 0"));
    }
    Ok(Some(LogRotation {
        bytes_max: json.maxsize.saturating_mul(MEGABYTE),
        age_max: (json.maxage > 0).then(|| DAY * json.maxage),
        files_max: (json.maxbackups > 0).then_some(json.maxbackups),
    }))
}
