//! Writes Prometheus' text format 0.0.4, which etcd serves. The library writes OpenMetrics, which
//! differs in counter names and in the last line.

use std::borrow::Cow;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// Writes all metrics.
pub(super) fn text(registry: &Registry) -> String {
    let mut open_metrics = String::new();
    text::encode(&mut open_metrics, registry).expect("invariant: writing to a string cannot fail");
    let mut text = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            break;
        }
        if let Some(help) = line.strip_prefix("# HELP ") {
            // The TYPE line that follows says whether this is a counter, whose name lacks `_total`
            // here.
            let is_counter = lines.peek().is_some_and(|next| next.ends_with(" counter"));
            let (name, help) = help.split_once(' ').unwrap_or((help, ""));
            push(&mut text, &["# HELP ", &counter_name(name, is_counter), " ", help]);
        } else if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap_or((family, ""));
            push(&mut text, &["# TYPE ", &counter_name(name, kind == "counter"), " ", kind]);
        } else {
            push(&mut text, &[&sample(line)]);
        }
    }
    text
}

/// etcd's counters without the suffix `_total`, against Prometheus' own advice.
const WITHOUT_TOTAL: [&str; 4] = [
    "etcd_server_health_success",
    "etcd_server_health_failures",
    "etcd_server_learner_promote_successes",
    "etcd_server_learner_promote_failures",
];

fn counter_name(name: &str, is_counter: bool) -> String {
    if is_counter && !WITHOUT_TOTAL.contains(&name) {
        format!("{name}_total")
    } else {
        name.to_owned()
    }
}

/// A sample line; the library appends `_total` to every counter.
fn sample(line: &str) -> Cow<'_, str> {
    for name in WITHOUT_TOTAL {
        let rest = line.strip_prefix(name).and_then(|rest| rest.strip_prefix("_total"));
        if let Some(rest) = rest.filter(|rest| rest.starts_with([' ', '{'])) {
            return format!("{name}{rest}").into();
        }
    }
    line.into()
}

fn push(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    #[test]
    fn counters_and_gauges_are_named_as_etcd_names_them() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("etcd_server_leader_changes_seen", "Changes", counter);
        let counter: Counter = Counter::default();
        registry.register("etcd_server_health_success", "Checks", counter);
        let gauge: Gauge = Gauge::default();
        registry.register("etcd_server_proposals_applied_total", "Index", gauge);
        assert_eq!(
            text(&registry),
            "# HELP etcd_server_leader_changes_seen_total Changes.\n\
             # TYPE etcd_server_leader_changes_seen_total counter\n\
             etcd_server_leader_changes_seen_total 0\n\
             # HELP etcd_server_health_success Checks.\n\
             # TYPE etcd_server_health_success counter\n\
             etcd_server_health_success 0\n\
             # HELP etcd_server_proposals_applied_total Index.\n\
             # TYPE etcd_server_proposals_applied_total gauge\n\
             etcd_server_proposals_applied_total 0\n"
        );
    }
}
