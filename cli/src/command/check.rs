//! `check`: whether a cluster is fast enough, and how much memory keys take, by etcdctl's criteria.

use std::time::Duration;

use clap::{Args, Subcommand};
use conclave_client::Client;

use super::{
    Context,
    load::{Load, Tally},
};
use crate::{
    failure::{Failure, describe},
    output::{Check, Checks, Format, quote, write},
};

/// Slowest put that passes the check, and largest standard deviation of the latencies.
const SLOWEST_SECONDS_MAX: f64 = 0.5;
const DEVIATION_SECONDS_MAX: f64 = 0.1;
/// The share of the requested rate that must be reached.
const RATE_SHARE_MIN: f64 = 0.9;
const MEGABYTE: f64 = 1024.0 * 1024.0;

/// What to look at.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Write at a steady rate for a minute: are all writes fast?
    Perf(PerfArguments),
    /// Write many keys: how much memory do they take on the first endpoint?
    Datascale(ScaleArguments),
}

/// Flags of both.
#[derive(Debug, Args)]
struct Flags {
    /// The load to write: s(small), m(medium), l(large) or xl(xLarge).
    #[arg(long, default_value = "s")]
    load: String,
    /// Compact afterwards.
    #[arg(long)]
    auto_compact: bool,
    /// Defragment the endpoints afterwards.
    #[arg(long)]
    auto_defrag: bool,
}

/// Flags of `check perf`.
#[derive(Debug, Args)]
pub(crate) struct PerfArguments {
    #[command(flatten)]
    flags: Flags,
    /// Prefix of the keys that are written; they are deleted afterwards.
    #[arg(long, default_value = "/etcdctl-check-perf/")]
    prefix: String,
    /// How long to write.
    #[arg(long, default_value = "60s", value_parser = conclave_server::config::duration)]
    duration: Duration,
}

/// Flags of `check datascale`.
#[derive(Debug, Args)]
pub(crate) struct ScaleArguments {
    #[command(flatten)]
    flags: Flags,
    /// Prefix of the keys that are written; they are deleted afterwards.
    #[arg(long, default_value = "/etcdctl-check-datascale/")]
    prefix: String,
    /// Number of keys, instead of that of the load.
    #[arg(long, value_name = "COUNT")]
    keys: Option<u32>,
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Perf(arguments) => perf(context, arguments).await,
        Verb::Datascale(arguments) => scale(context, arguments).await,
    }
}

impl Flags {
    /// Selects the value for the named load.
    fn load<T>(&self, small: T, medium: T, large: T, extra: T) -> Result<T, Failure> {
        match self.load.as_str() {
            "s" | "small" => Ok(small),
            "m" | "medium" => Ok(medium),
            "l" | "large" => Ok(large),
            "xl" | "xLarge" => Ok(extra),
            other => Err(Failure::bad_feature(format!("unknown load option {other}"))),
        }
    }
}

async fn perf(context: &Context, arguments: PerfArguments) -> Result<(), Failure> {
    let PerfArguments { flags, prefix, duration } = arguments;
    let (per_second, clients) =
        flags.load((150, 50), (1_000, 200), (8_000, 500), (15_000, 1_000))?;
    let seconds = u32::try_from(duration.as_secs()).ok().filter(|seconds| *seconds > 0);
    let puts = seconds.and_then(|seconds| seconds.checked_mul(per_second));
    let puts = puts.ok_or_else(|| Failure::bad_arguments("--duration must be a few seconds"))?;
    let per_second = Some(per_second);
    let load = Load { clients, prefix, key_bytes: 256, value_bytes: 1024, puts, per_second };
    let tally = write_and_delete(context, &load, &flags, async || Ok(())).await?.0;
    finish(context, Checks { checks: judge(&tally, load.per_second), has_verdict: true })
}

/// etcdctl's checks of a steady load.
fn judge(tally: &Tally, per_second: Option<u32>) -> Vec<Check> {
    let mut checks = errors(tally);
    let rate = tally.rate();
    let is_passed = rate > RATE_SHARE_MIN * f64::from(per_second.unwrap_or(0));
    let verdict = if is_passed { "PASS: Throughput is" } else { "FAIL: Throughput too low:" };
    let sentence = format!("{verdict} {:.0} writes/s", rate.floor() + 1.0);
    checks.push(Check { name: "writes per second", is_passed, value: rate, sentence });
    let slowest = tally.slowest();
    let is_passed = slowest <= SLOWEST_SECONDS_MAX;
    let verdict =
        if is_passed { "PASS: Slowest request took" } else { "Slowest request took too long:" };
    let sentence = format!("{verdict} {slowest:.6}s");
    checks.push(Check { name: "slowest seconds", is_passed, value: slowest, sentence });
    let deviation = tally.deviation();
    let is_passed = deviation <= DEVIATION_SECONDS_MAX;
    let verdict = if is_passed { "PASS: Stddev is" } else { "Stddev too high:" };
    let sentence = format!("{verdict} {deviation:.6}s");
    checks.push(Check { name: "deviation seconds", is_passed, value: deviation, sentence });
    checks
}

/// The failed puts, by error message.
fn errors(tally: &Tally) -> Vec<Check> {
    let failed = |value: u64, sentence: String| {
        let value = f64::from(u32::try_from(value).unwrap_or(u32::MAX));
        Check { name: "errors", is_passed: false, value, sentence }
    };
    if tally.errors.is_empty() {
        return Vec::new();
    }
    let mut checks = vec![failed(tally.errors.values().sum(), "FAIL: too many errors".to_owned())];
    checks.extend(
        tally
            .errors
            .iter()
            .map(|(error, &count)| failed(count, format!("FAIL: ERROR({error}) -> {count}"))),
    );
    checks
}

async fn scale(context: &Context, arguments: ScaleArguments) -> Result<(), Failure> {
    let ScaleArguments { flags, prefix, keys } = arguments;
    let (puts, clients) =
        flags.load((10_000, 50), (100_000, 200), (1_000_000, 500), (3_000_000, 1_000))?;
    let (puts, half) = (keys.unwrap_or(puts), 512);
    let load = Load { clients, prefix, key_bytes: half, value_bytes: half, puts, per_second: None };
    let first = context.client.each().remove(0);
    let before = memory(&first, "before").await?;
    say(
        context,
        &format!(
            "Start data scale check for work load [{puts} key-value pairs, {} bytes per key-value, \
         {clients} concurrent clients].\n",
            2 * half
        ),
    )?;
    let after = async || memory(&first, "after").await;
    let (tally, after) = write_and_delete(context, &load, &flags, after).await?;
    let mut checks = errors(&tally);
    if checks.is_empty() {
        let value = (after - before) / MEGABYTE;
        let sentence = format!("PASS: Approximate system memory used : {value:.2} MB.");
        checks.push(Check { name: "megabytes", is_passed: true, value, sentence });
    }
    finish(context, Checks { checks, has_verdict: false })
}

/// Resident memory in bytes of the member at an endpoint.
async fn memory(client: &Client, when: &str) -> Result<f64, Failure> {
    let page = client.metrics().await.unwrap_or_default();
    let mut lines = page.lines();
    let value = lines.find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| {
        Failure::error(format!(
            "FAIL: Could not read process_resident_memory_bytes {when} the put operations."
        ))
    })
}

/// Writes the load, runs `look`, and deletes what was written.
async fn write_and_delete<T>(
    context: &Context,
    load: &Load,
    flags: &Flags,
    look: impl AsyncFnOnce() -> Result<T, Failure>,
) -> Result<(Tally, T), Failure> {
    let prefix = load.prefix.as_str();
    let found = context.client.get(prefix).prefix().limit(1).keys_only().await?;
    if !found.kvs.is_empty() {
        let quoted = quote(prefix.as_bytes());
        return Err(Failure::invalid_input(format!(
            "prefix {quoted} has keys. Delete with etcdctl del --prefix {prefix} first"
        )));
    }
    let tally = load.run(context).await?;
    let seen = look().await;
    let deleted = context.client.delete(prefix).prefix().await.map_err(|error| {
        let error = describe(&error);
        Failure::error(format!("FAIL: Cleanup failed during key deletion: ERROR({error})"))
    })?;
    if flags.auto_compact {
        let revision = deleted.revision();
        say(context, &format!("Compacting with revision {revision}\n"))?;
        context.client.compact(revision).await?;
        say(context, &format!("Compacted with revision {revision}\n"))?;
    }
    if flags.auto_defrag {
        for (endpoint, client) in context.client.endpoints().iter().zip(context.client.each()) {
            let endpoint = quote(endpoint.as_bytes());
            say(context, &format!("Defragmenting {endpoint}\n"))?;
            client.defragment().await?;
            say(context, &format!("Defragmented {endpoint}\n"))?;
        }
    }
    Ok((tally, seen?))
}

/// Prints progress, in the simple form only.
fn say(context: &Context, text: &str) -> Result<(), Failure> {
    if context.printer.format == Format::Simple { write(text.as_bytes()) } else { Ok(()) }
}

fn finish(context: &Context, checks: Checks) -> Result<(), Failure> {
    context.print(&checks)?;
    if checks.are_passed() { Ok(()) } else { Err(Failure::reported()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sentences(tally: &Tally) -> Vec<String> {
        judge(tally, Some(10)).into_iter().map(|check| check.sentence).collect()
    }

    #[test]
    fn a_cluster_that_keeps_up_passes() {
        let latencies = vec![Duration::from_millis(2); 20];
        let tally = Tally { latencies, took: Duration::from_secs(2), ..Tally::default() };
        assert!(judge(&tally, Some(10)).iter().all(|check| check.is_passed));
        let expected = [
            "PASS: Throughput is 11 writes/s",
            "PASS: Slowest request took 0.002000s",
            "PASS: Stddev is 0.000000s",
        ];
        assert_eq!(sentences(&tally), expected);
    }

    #[test]
    fn a_slow_cluster_fails_with_every_reason() {
        let latencies = vec![Duration::from_millis(1), Duration::from_millis(801)];
        let errors = BTreeMap::from([("lost".to_owned(), 3)]);
        let tally = Tally { latencies, errors, took: Duration::from_secs(2) };
        let expected = [
            "FAIL: too many errors",
            "FAIL: ERROR(lost) -> 3",
            "FAIL: Throughput too low: 2 writes/s",
            "Slowest request took too long: 0.801000s",
            "Stddev too high: 0.400000s",
        ];
        assert_eq!(sentences(&tally), expected);
        assert!(judge(&tally, Some(10)).iter().all(|check| !check.is_passed));
    }
}
