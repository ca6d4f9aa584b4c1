//! Writes many keys by many clients at once, as fast as they are answered or at a steady rate.

use std::{cell::Cell, collections::BTreeMap, time::Duration};

use conclave_client::Client;
use futures::future::join_all;
use tokio::time::{Instant, sleep_until};

use super::Context;
use crate::{
    failure::{Failure, describe},
    progress::Progress,
};

/// A load to write.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// Number of clients, each with its own connections.
    pub(super) clients: u32,
    /// Prefix of all keys.
    pub(super) prefix: String,
    /// Length of the rest of each key.
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
    pub(super) puts: u32,
    /// Rate limit for all clients together. Puts not started by the end of the time that the rate
    /// allows are skipped.
    pub(super) per_second: Option<u32>,
}

/// Results of a load.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Latency of each acknowledged put.
    pub(super) latencies: Vec<Duration>,
    /// Counts of the failed puts, by error message.
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) took: Duration,
}

impl Load {
    /// Writes the whole load.
    ///
    /// # Errors
    /// If the endpoints cannot be parsed; a failed put is only counted.
    pub(super) async fn run(&self, context: &Context) -> Result<Tally, Failure> {
        let endpoints = context.client.endpoints();
        let clients = (0..self.clients).map(|_| context.global.client(&endpoints));
        let clients = clients.collect::<Result<Vec<_>, _>>()?;
        let (progress, done) = (Progress::counting("writing"), Cell::new(0));
        let count = || {
            done.set(done.get() + 1);
            progress.set(done.get(), self.puts.into());
        };
        let begun = Instant::now();
        let writers =
            clients.iter().zip(0..).map(|(client, first)| self.write(client, first, begun, &count));
        let tallies = join_all(writers).await;
        let mut all = Tally { took: begun.elapsed(), ..Tally::default() };
        for tally in tallies {
            all.latencies.extend(tally.latencies);
            for (error, count) in tally.errors {
                *all.errors.entry(error).or_default() += count;
            }
        }
        Ok(all)
    }

    /// Writes one client's share: put number `first` and then every `clients`-th one.
    async fn write(&self, client: &Client, first: u32, begun: Instant, count: &impl Fn()) -> Tally {
        let step = usize::try_from(self.clients).unwrap_or(1);
        let due = |number: u32| {
            self.per_second.map(|rate| begun + Duration::from_secs(number.into()) / rate)
        };
        let mut tally = Tally::default();
        for number in (first..self.puts).step_by(step) {
            if let Some(due) = due(number) {
                sleep_until(due).await;
            }
            let now = Instant::now();
            if due(self.puts).is_some_and(|end| now >= end) {
                break;
            }
            match client.put(self.key(number), vec![0; self.value_bytes]).await {
                Ok(_) => tally.latencies.push(now.elapsed()),
                Err(error) => *tally.errors.entry(describe(&error)).or_default() += 1,
            }
            count();
        }
        tally
    }

    /// The keys in a scattered order, each exactly once.
    fn key(&self, number: u32) -> String {
        let scattered = number.wrapping_mul(0x9E37_79B1);
        format!("{}{scattered:01$x}", self.prefix, self.key_bytes)
    }
}

impl Tally {
    /// Acknowledged puts per second.
    pub(super) fn rate(&self) -> f64 {
        let count = u32::try_from(self.latencies.len()).unwrap_or(u32::MAX);
        f64::from(count) / self.took.as_secs_f64().max(f64::EPSILON)
    }

    /// The longest latency in seconds.
    pub(super) fn slowest(&self) -> f64 {
        self.latencies.iter().max().map_or(0.0, Duration::as_secs_f64)
    }

    /// Standard deviation of the latencies in seconds.
    pub(super) fn deviation(&self) -> f64 {
        let count = f64::from(u32::try_from(self.latencies.len()).unwrap_or(u32::MAX)).max(1.0);
        let seconds = || self.latencies.iter().map(Duration::as_secs_f64);
        let mean = seconds().sum::<f64>() / count;
        (seconds().map(|one| (one - mean).powi(2)).sum::<f64>() / count).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn load(puts: u32) -> Load {
        let prefix = "p/".to_owned();
        Load { clients: 3, prefix, key_bytes: 16, value_bytes: 1, puts, per_second: None }
    }

    #[test]
    fn keys_are_as_long_as_asked_for_and_differ() {
        let load = load(1000);
        let keys: BTreeSet<String> = (0..1000).map(|number| load.key(number)).collect();
        assert_eq!(keys.len(), 1000);
        assert!(keys.iter().all(|key| key.len() == 18 && key.starts_with("p/0")));
    }

    #[test]
    fn figures_are_those_of_the_acknowledged_puts() {
        let latencies = vec![Duration::from_millis(100), Duration::from_millis(300)];
        let errors = BTreeMap::from([("lost".to_owned(), 7)]);
        let tally = Tally { latencies, errors, took: Duration::from_secs(4) };
        let close = |one: f64, other: f64| (one - other).abs() < 1e-9;
        assert!(close(tally.rate(), 0.5) && close(tally.slowest(), 0.3));
        assert!(close(tally.deviation(), 0.1));
        assert!(close(Tally::default().rate(), 0.0) && close(Tally::default().deviation(), 0.0));
    }
}
