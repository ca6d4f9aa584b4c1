//! Results of checking the cluster.

use serde_json::json;

use super::{Answer, Rows, Style, Table, json::Writer, line};

/// The result of one check.
#[derive(Debug)]
pub(crate) struct Check {
    /// Its name for programs.
    pub(crate) name: &'static str,
    pub(crate) is_passed: bool,
    pub(crate) value: f64,
    /// etcdctl's sentence for it.
    pub(crate) sentence: String,
}

/// The results of all checks.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) checks: Vec<Check>,
    /// Whether a last line prints the overall result.
    pub(crate) has_verdict: bool,
}

impl Checks {
    pub(crate) fn are_passed(&self) -> bool {
        self.checks.iter().all(|check| check.is_passed)
    }

    fn rows(&self) -> Rows {
        let row =
            |check: &Check| vec![json!(check.name), json!(check.is_passed), json!(check.value)];
        let rows = self.checks.iter().map(row).collect();
        Rows { titles: &["check", "is passed", "value"], rows }
    }
}

impl Answer for Checks {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        for check in &self.checks {
            line!(out, "{}", check.sentence);
        }
        if self.has_verdict {
            line!(out, "{}", if self.are_passed() { "PASS" } else { "FAIL" });
        }
    }

    fn json(&self, out: &mut Writer) {
        self.rows().json(out);
    }

    fn fields(&self, out: &mut Vec<u8>) {
        self.rows().fields(out);
    }

    fn own_table(&self) -> Option<Table> {
        self.rows().table()
    }
}
