//! The logging flags.

use std::path::PathBuf;
use std::time::Duration;

use super::ConfigError;
use super::flags::Raw;
use super::resolve::invalid;
use super::settings::{LogFormat, LogOutput, LogRotation, LogSettings};

const OUTPUTS: &str = "log-outputs";
const ROTATION: &str = "log-rotation-config-json";
/// etcd writes to the journal itself.
const JOURNAL: &str = "systemd/journal";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MEGABYTE: u64 = 1024 * 1024;

/// Value of `--log-rotation-config-json`.
#[derive(serde::Deserialize)]
#[serde(default)]
struct RotationJson {
    maxsize: u64,
    maxage: u32,
    maxbackups: usize,
    localtime: bool,
    compress: bool,
    #[serde(flatten)]
    unknown: serde_json::Map<String, serde_json::Value>,
}

impl Default for RotationJson {
    fn default() -> Self {
        Self {
            maxsize: 100,
            maxage: 0,
            maxbackups: 0,
            localtime: false,
            compress: false,
            unknown: Default::default(),
        }
    }
}

/// Gives the logging flags their types.
pub(super) fn settings(raw: &mut Raw) -> Result<LogSettings, ConfigError> {
    let is_debug = raw.text("log-level").is_none() && raw.switch("debug")?;
    let level = if is_debug { "debug" } else { raw.value("log-level") };
    let level = match level.to_ascii_lowercase().as_str() {
        "debug" => tracing::Level::DEBUG,
        "info" => tracing::Level::INFO,
        "warn" => tracing::Level::WARN,
        // We log nothing above error, so these mean the same.
        "error" | "dpanic" | "panic" | "fatal" => tracing::Level::ERROR,
        _ => {
            return Err(raw.malformed("log-level", level, "expected debug, info, warn or error"));
        }
    };
    let format = match raw.value("log-format") {
        "json" => LogFormat::Json,
        "console" => LogFormat::Console,
        other => return Err(invalid("log-format", other, "expected json or console")),
    };
    let outputs = outputs(raw);
    check_logger(raw)?;
    let rotation = rotation(raw, &outputs)?;
    Ok(LogSettings { level, format, outputs, rotation })
}

/// Accepts the logger names of etcd 3.4 and of later versions.
fn check_logger(raw: &mut Raw) -> Result<(), ConfigError> {
    match raw.value("logger") {
        "zap" => Ok(()),
        "capnslog" => {
            raw.warnings.push("--logger=capnslog has no effect: see --log-format".to_owned());
            Ok(())
        }
        other => Err(invalid("logger", other, "expected zap or capnslog")),
    }
}

fn outputs(raw: &mut Raw) -> Vec<LogOutput> {
    let mut outputs = Vec::new();
    let mut is_journal = false;
    for name in raw.list(OUTPUTS) {
        let output = match name {
            "default" | "stderr" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            JOURNAL => {
                is_journal = true;
                LogOutput::Stderr
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
    if is_journal {
        let reason = "systemd hands it to the journal";
        raw.warnings.push(format!("--{OUTPUTS}={JOURNAL} is taken for stderr: {reason}"));
    }
    outputs
}

fn rotation(raw: &mut Raw, outputs: &[LogOutput]) -> Result<Option<LogRotation>, ConfigError> {
    if !raw.switch("enable-log-rotation")? {
        return Ok(None);
    }
    if !matches!(outputs, [LogOutput::File(_)]) {
        return Err(ConfigError::Rule(format!(
            "--{OUTPUTS} requires a single file path when --enable-log-rotation is set"
        )));
    }
    let text = &raw.value(ROTATION).to_owned();
    let json: RotationJson =
        serde_json::from_str(text).map_err(|error| invalid(ROTATION, text, &error.to_string()))?;
    if json.maxsize == 0 {
        return Err(invalid(ROTATION, text, "maxsize must be above 0"));
    }
    for name in json.unknown.keys() {
        raw.warnings.push(format!("--{ROTATION}: {name} is not known and has no effect"));
    }
    for (is_asked, name, what_is) in [
        (json.localtime, "localtime", "names of files are in UTC"),
        (json.compress, "compress", "files stay plain"),
    ] {
        if is_asked {
            raw.warnings.push(format!("--{ROTATION}: {name} has no effect: {what_is}"));
        }
    }
    Ok(Some(LogRotation {
        bytes_max: json.maxsize.saturating_mul(MEGABYTE),
        age_max: (json.maxage > 0).then(|| DAY * json.maxage),
        files_max: (json.maxbackups > 0).then_some(json.maxbackups),
    }))
}
