//! Medians over the rounds and the ratios between the sides.

use std::collections::BTreeMap;
use std::fmt;

use crate::compare::Side;
use crate::options::Workload;
use crate::report::Report;

/// All reports of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<(Workload, BTreeMap<Side, Vec<Report>>)>,
}

impl Table {
    pub(crate) fn add(&mut self, workload: Workload, side: Side, report: Report) {
        let index =
            self.rows.iter().position(|(known, _)| *known == workload).unwrap_or_else(|| {
                self.rows.push((workload, BTreeMap::new()));
                self.rows.len() - 1
            });
        self.rows[index].1.entry(side).or_default().push(report);
    }
}

/// The figures of one cell, medians over the rounds.
struct Cell {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
    written: f64,
    rss_mb: f64,
}

impl Cell {
    fn of(reports: &[Report]) -> Self {
        let of = |figure: &dyn Fn(&Report) -> f64| median(reports.iter().map(figure).collect());
        let server = |report: &Report| report.server;
        Self {
            rate: of(&|report| report.rate),
            p50_ms: of(&|report| report.latency.p50_us / 1000.0),
            p99_ms: of(&|report| report.latency.p99_us / 1000.0),
            cpu_us: of(&|report| server(report).map_or(f64::NAN, |server| server.cpu_us_per_op)),
            written: of(&|report| {
                server(report).map_or(f64::NAN, |server| server.write_bytes_per_op)
            }),
            rss_mb: of(&|report| {
                server(report).map_or(f64::NAN, |server| server.rss_bytes as f64 / 1e6)
            }),
        }
    }

    fn figures(&self) -> [f64; 6] {
        [self.rate, self.p50_ms, self.p99_ms, self.cpu_us, self.written, self.rss_mb]
    }
}

/// The median; NaN if there are no values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{:<17}{:<8}{:>10}{:>9}{:>9}{:>11}{:>10}{:>8}",
            "workload", "side", "ops/s", "p50 ms", "p99 ms", "cpu us/op", "B/op", "RSS MB"
        )?;
        for (workload, sides) in &self.rows {
            let cells: BTreeMap<Side, Cell> =
                sides.iter().map(|(&side, reports)| (side, Cell::of(reports))).collect();
            for (side, cell) in &cells {
                let [rate, p50, p99, cpu, written, rss] = cell.figures();
                writeln!(
                    formatter,
                    "{:<17}{:<8}{rate:>10.0}{p50:>9.2}{p99:>9.2}{cpu:>11.1}{written:>10.0}{rss:>8.0}",
                    workload.name(),
                    format!("{side:?}").to_lowercase(),
                )?;
            }
            if let (Some(ours), Some(theirs)) = (cells.get(&Side::Ours), cells.get(&Side::Theirs)) {
                let ratios = ours.figures().into_iter().zip(theirs.figures());
                let ratios: Vec<f64> = ratios.map(|(ours, theirs)| ours / theirs).collect();
                writeln!(
                    formatter,
                    "{:<17}{:<8}{:>9.2}x{:>8.2}x{:>8.2}x{:>10.2}x{:>9.2}x{:>7.2}x",
                    "", "ratio", ratios[0], ratios[1], ratios[2], ratios[3], ratios[4], ratios[5]
                )?;
            }
        }
        Ok(())
    }
}
