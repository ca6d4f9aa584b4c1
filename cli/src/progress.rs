//! A progress bar: shown on a terminal only, and removed at the end.

use indicatif::{ProgressBar, ProgressStyle};

/// Layout for bytes: amount, rate and remaining time.
const BYTES: &str =
    "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
/// Layout for counted items.
const COUNT: &str = "{msg} {wide_bar} {pos}/{len} {eta}";

/// Progress of an operation, on standard error if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for bytes; `what` names the operation.
    pub(crate) fn new(what: &'static str) -> Self {
        Self::with(BYTES, what)
    }

    /// A bar for counted items.
    pub(crate) fn counting(what: &'static str) -> Self {
        Self::with(COUNT, what)
    }

    fn with(template: &str, what: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template(template).expect("the template is right"));
        bar.set_message(what);
        Self { bar }
    }

    /// Sets how much of the total is done.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
