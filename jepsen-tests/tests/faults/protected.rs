//! The load generator gets past rights and TLS: what it says they cost was measured with them on.

use clap::Parser;
use conclave_benches::compare::{self, Comparison};
use conclave_jepsen_tests::members;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    comparison: Comparison,
}

#[test]
fn the_cost_of_rights_and_tls_is_measured_with_them() {
    let mut comparison = Options::parse_from(
        "it --only ours --rounds 0 --drills security --drill-rounds 1 --clients 4 --seconds 0.5 --warmup 0"
            .split(' '),
    )
    .comparison;
    comparison.ours = members::program();
    let dir = tempfile::tempdir().expect("a directory");
    comparison.dir = dir.path().to_owned();
    let results = dir.path().join("results");
    comparison.json = Some(results.clone());
    // Whether all members ask for certificates and tokens is checked by the drill itself.
    compare::run(&comparison, &mut Vec::new()).expect("the drill");
    let text = std::fs::read_to_string(results).expect("a line of results");
    let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for kind in ["plain", "auth", "tls"] {
        let cost = &line["result"][kind];
        assert!(cost["rate"].as_f64().is_some_and(|rate| rate > 0.0), "{kind}: {line}");
        assert_eq!(cost["errors"], 0, "{kind}: {line}");
    }
    assert_eq!(line["result"]["plain"]["rate_ratio"], 1.0, "{line}");
}
