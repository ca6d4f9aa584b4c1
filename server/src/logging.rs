//! Log lines in etcd's shape: one JSON object each with `level`, `ts`, `caller` and `msg`, so that
//! drivers and log pipelines made for etcd read ours.

use std::fmt;
use std::io::{self, Write};
use std::panic;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::{LogFormat, LogOutput, LogSettings};
use crate::log_file::LogFile;

/// Libraries that would drown our own lines at the same level.
const QUIET_TARGETS: [&str; 5] = ["h2", "hyper", "hyper_util", "tonic", "tower"];
/// It warns at every attempt to reach a member that is down; `raft/network.rs` says it once.
const SILENT_TARGET: &str = "openraft";
/// Of the line that says why the process ends.
const LAST_TARGET: &str = "conclave::last";

/// Whether the last line was written.
static HAS_ENDED: Mutex<bool> = Mutex::new(false);

/// Directs the process's log lines to where `settings` says. Once per process.
///
/// # Errors
/// [`LogError`] if a file cannot be opened or the process has a log already.
pub fn init(settings: &LogSettings) -> Result<(), LogError> {
    let quiet = if settings.level == Level::DEBUG { Level::INFO } else { Level::WARN };
    let filter =
        QUIET_TARGETS.iter().fold(Targets::new().with_default(settings.level), |filter, target| {
            filter.with_target(*target, quiet.min(settings.level))
        });
    let silent = if settings.level == Level::DEBUG { Level::INFO } else { Level::ERROR };
    let filter = filter.with_target(SILENT_TARGET, silent);
    let format = Lines { format: settings.format };
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).event_format(format);
    let outputs = Outputs::open(settings)?;
    registry.with(layer.with_writer(Ending(outputs))).try_init()?;
    Ok(())
}

/// Why the process has no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file cannot be opened.
    #[error("cannot open the log file {}: {source}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the system reports.
        #[source]
        source: io::Error,
    },
    /// The process has a log already.
    #[error(transparent)]
    Twice(#[from] TryInitError),
}

/// Everything that lines go to.
#[derive(Clone)]
struct Outputs(Arc<Vec<Output>>);

enum Output {
    Stderr,
    Stdout,
    File(Mutex<LogFile>),
}

impl Outputs {
    fn open(settings: &LogSettings) -> Result<Self, LogError> {
        let outputs = settings.outputs.iter().map(|output| {
            Ok(match output {
                LogOutput::Stderr => Output::Stderr,
                LogOutput::Stdout => Output::Stdout,
                LogOutput::File(path) => {
                    let file = LogFile::open(path, settings.rotation);
                    let fail = |source| LogError::Open { path: path.clone(), source };
                    Output::File(Mutex::new(file.map_err(fail)?))
                }
            })
        });
        Ok(Self(Arc::new(outputs.collect::<Result<_, LogError>>()?)))
    }
}

impl Write for Outputs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    // Called once for each line.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let mut done = Ok(());
        for output in self.0.iter() {
            let written = match output {
                Output::Stderr => io::stderr().write_all(line),
                Output::Stdout => io::stdout().write_all(line),
                Output::File(file) => file.lock().write_line(line),
            };
            // One that fails keeps nothing from the others.
            done = done.and(written);
        }
        done
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Logs why the process ends. Nothing is logged after it: whatever the other threads complain of until
/// they end is a consequence, and a person looks for the reason in the last line.
pub fn last(reason: &str) {
    tracing::error!(target: LAST_TARGET, "{reason}");
}

/// Makes a panic a line of the log: the last one, where the process is built to end with it.
pub fn note_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if cfg!(panic = "abort") {
            last(&panic.to_string());
        } else {
            tracing::error!("{panic}");
        }
    }));
}

/// Writers that fall silent after the last line.
struct Ending<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Ending<M> {
    type Writer = EndingWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EndingWriter { writer: self.0.make_writer(), is_last: false }
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Self::Writer {
        let is_last = line.target() == LAST_TARGET;
        EndingWriter { writer: self.0.make_writer_for(line), is_last }
    }
}

struct EndingWriter<W> {
    writer: W,
    is_last: bool,
}

impl<W: Write> Write for EndingWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    // Called once for each line.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let mut has_ended = HAS_ENDED.lock();
        if *has_ended {
            return Ok(());
        }
        *has_ended = self.is_last;
        self.writer.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

struct Lines {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let ts = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_ascii_lowercase();
        let caller = caller(metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
        match self.format {
            LogFormat::Json => {
                json(writer, [("level", level), ("ts", ts), ("caller", caller)], fields)
            }
            LogFormat::Console => console(writer, [ts, level, caller], fields),
        }
    }
}

/// `raft/node.rs:12` from a path of the build machine.
fn caller(file: &str, line: u32) -> String {
    let mut parts = file.rsplit('/');
    let name = parts.next().unwrap_or(file);
    match parts.next() {
        Some(dir) => format!("{dir}/{name}:{line}"),
        None => format!("{name}:{line}"),
    }
}

fn json(mut writer: Writer<'_>, head: [(&str, String); 3], fields: Fields) -> fmt::Result {
    writer.write_char('{')?;
    for (name, value) in head {
        write!(writer, "{}:{},", Value::from(name), Value::from(value))?;
    }
    write!(writer, "\"msg\":{}", Value::from(fields.message))?;
    for (name, value) in fields.others {
        write!(writer, ",{}:{}", Value::from(name), value)?;
    }
    writer.write_str("}\n")
}

fn console(mut writer: Writer<'_>, head: [String; 3], fields: Fields) -> fmt::Result {
    let [ts, level, caller] = head;
    write!(writer, "{ts}\t{level}\t{caller}\t{}", fields.message)?;
    if !fields.others.is_empty() {
        write!(writer, "\t{}", Value::Object(fields.others))?;
    }
    writer.write_char('\n')
}

/// What an event carries.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        // etcd writes its field names with dashes.
        self.others.insert(field.name().replace('_', "-"), value);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            self.put(field, value.into());
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        self.put(field, text.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(buffer);
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Captured {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn capture(format: LogFormat, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Lines { format })
            .with_writer(captured.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = captured.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_has_etcds_fields() {
        let line = capture(LogFormat::Json, || {
            tracing::info!(member_id = 7u64, addr = %"1:2", "ready to serve \"client\" requests");
        });
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "info");
        assert_eq!(value["msg"], "ready to serve \"client\" requests");
        assert_eq!(value["member-id"], 7);
        assert_eq!(value["addr"], "1:2");
        assert!(value["ts"].as_str().unwrap().ends_with('Z'));
        assert!(value["caller"].as_str().unwrap().starts_with("src/logging.rs:"));
        assert!(line.contains("\"msg\":\"ready to serve"), "drivers search the raw line");
    }

    #[test]
    fn nothing_follows_the_last_line() {
        let captured = Captured::default();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Lines { format: LogFormat::Console })
            .with_writer(Ending(captured.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!("all is well");
            last("the disk is gone");
            tracing::error!("and therefore this failed too");
        });
        let text = String::from_utf8(captured.0.lock().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].ends_with("all is well") && lines[1].ends_with("the disk is gone"),
            "{text}"
        );
    }

    #[test]
    fn a_console_line_has_tabs() {
        let line = capture(LogFormat::Console, || tracing::warn!(n = 1, "slow"));
        let parts: Vec<&str> = line.trim_end().split('\t').collect();
        assert_eq!(parts[1], "warn");
        assert_eq!(parts[3], "slow");
        assert_eq!(parts[4], "{\"n\":1}");
    }
}
