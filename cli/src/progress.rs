//! A bar for what takes a while: on a terminal only, and gone when it is done.

use indicatif::{ProgressBar, ProgressStyle};

/// How the bar looks: what is done, how far, how fast, how long it will take.
const BYTES: &str =
    "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
/// The same for what is counted.
const COUNT: &str = "{msg} {wide_bar} {pos}/{len} {eta}";

/// How far something has got, on standard error if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Of bytes; what happens to them is called `what`.
    pub(crate) fn new(what: &'static str) -> Self {
        Self::with(BYTES, what)
    }

    /// Of what is counted.
    pub(crate) fn counting(what: &'static str) -> Self {
        Self::with(COUNT, what)
    }

    fn with(template: &str, what: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template(template).expect("the template is right"));
        bar.set_message(what);
        Self { bar }
    }

    /// So many of so many are done.
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
