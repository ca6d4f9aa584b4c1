//! Asks for a password at the terminal without echoing it.

use std::io::{IsTerminal, Write, stdin, stdout};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// Restores the echo when dropped.
struct Hidden(Termios);

impl Hidden {
    /// `None` if standard input is not a terminal: then nothing is echoed anyway.
    fn new() -> Option<Self> {
        if !stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin(), OptionalActions::Flush, &silent).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A failure cannot be reported anywhere.
        tcsetattr(stdin(), OptionalActions::Flush, &self.0).ok();
    }
}

/// Asks and reads one line.
///
/// # Errors
/// If standard input or output fails.
pub(crate) fn password(question: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::input_output(format!("the terminal: {error}"));
    let mut out = stdout().lock();
    write!(out, "{question}").and_then(|()| out.flush()).map_err(failed)?;
    let hidden = Hidden::new();
    let line = line();
    if hidden.is_some() {
        // The line end that was typed was not echoed either.
        writeln!(out).map_err(failed)?;
    }
    line
}

/// Reads one line without asking.
///
/// # Errors
/// If standard input fails.
pub(crate) fn line() -> Result<String, Failure> {
    let mut line = String::new();
    let read = stdin().read_line(&mut line);
    read.map_err(|error| Failure::input_output(format!("standard input: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
