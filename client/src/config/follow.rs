//! The task that keeps settings up to date.
//!
//! A watch only signals *that* something changed. The settings are then read by one transaction
//! over all sources, so they are always the state of the cluster at one revision, even after a lost
//! connection or a compaction: no other path could mix two revisions.

use std::{pin::pin, time::Duration};

use conclave_proto::etcdserverpb::{TxnRequest, TxnResponse};
use futures::{Stream, StreamExt, stream::BoxStream, stream::SelectAll};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::WatchStream;

use super::{
    layer::{Layer, Part, Rejection, Settings, Validate},
    source::{Fetched, Source},
    status::Publisher,
};
use crate::{
    backoff::Backoff,
    cache::Cache,
    client::Client,
    error::Error,
    moment::later,
    watch::{Response, Trouble, mod_revision},
};

/// How often settings are read, and the cache written, without a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace(Duration);

impl Pace {
    /// Settings are read again after this time in any case: a change may have been missed.
    const MAX: Duration = Duration::from_secs(300);
    /// Settings are not read more often than this, however fresh the cache should be.
    const MIN: Duration = Duration::from_secs(1);

    /// Half of the age that the cache may have, so that it is never too old while the cluster
    /// confirms it.
    fn new(max_staleness: Option<Duration>) -> Self {
        Self(max_staleness.map_or(Self::MAX, |max| (max / 2).clamp(Self::MIN, Self::MAX)))
    }

    /// How long to wait for a change; randomized, so that clients do not read all at once.
    fn wait(self) -> Duration {
        self.0.mul_f64(rand::random_range(0.9..1.1))
    }

    /// Whether to write the cache after an answer that confirms it, if it was written `age` ago.
    /// Confirmations in quick succession are not written, so the age of the file is about that of
    /// the last confirmation.
    fn is_save_due(self, age: Duration) -> bool {
        age >= self.0 / 8
    }
}

/// How changes in quick succession are combined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Debounce {
    /// A change is applied when nothing more has changed for this long ...
    pub(super) quiet: Duration,
    /// ... but at the latest after this time.
    pub(super) max: Duration,
}

impl Debounce {
    /// When to apply changes of which the first and the last arrived at these times.
    fn due(&self, first: Instant, last: Instant) -> Instant {
        later(last, self.quiet).min(later(first, self.max))
    }
}

/// All that is needed to read the settings.
pub(super) struct Plan<T> {
    pub(super) client: Client,
    pub(super) sources: Vec<Source>,
    /// Reads all sources.
    pub(super) request: TxnRequest,
    /// The settings of this machine and of the program, in layer order.
    pub(super) local: Vec<Part>,
    pub(super) validate: Box<Validate<T>>,
    pub(super) cache: Option<Cache>,
    pub(super) debounce: Debounce,
}

impl<T: DeserializeOwned> Plan<T> {
    /// Reads all sources at one revision.
    pub(super) async fn fetch(&self) -> Result<TxnResponse, Error> {
        Ok(self.client.send_txn(self.request.clone()).await?.into_inner())
    }

    /// Merges the settings that were read with the local ones; `None` for local settings only.
    pub(super) fn settings(&self, fetched: Option<&Fetched>) -> Result<Settings<T>, Rejection> {
        let mut parts = self.local.clone();
        if let Some(fetched) = fetched {
            let above = parts.partition_point(|part| part.origin.layer < Layer::Shared);
            parts.splice(above..above, fetched.parts(&self.sources)?);
        }
        let revision = fetched.map_or(0, |fetched| fetched.revision);
        Settings::new(parts, revision, &*self.validate)
    }

    fn pace(&self) -> Pace {
        Pace::new(self.cache.as_ref().and_then(Cache::max_staleness))
    }

    /// Writes an answer to the cache for the next start.
    pub(super) async fn save(&self, answer: TxnResponse) {
        let Some(cache) = self.cache.clone() else { return };
        match tokio::task::spawn_blocking(move || cache.save(&answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the settings cannot be cached"),
            Err(error) => tracing::debug!(%error, "the runtime ends"),
        }
    }
}

/// Follows the cluster while it runs.
pub(super) struct Follower<T> {
    plan: Plan<T>,
    publisher: Publisher<T>,
    /// What was read last, whether applied or rejected; `None` before the cluster was reached.
    last: Option<Fetched>,
    /// When the cache was last written.
    saved: Instant,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Follower<T> {
    pub(super) fn new(plan: Plan<T>, publisher: Publisher<T>, last: Option<Fetched>) -> Self {
        Self { plan, publisher, last, saved: Instant::now() }
    }

    pub(super) async fn run(mut self) {
        let mut watches = self.last.as_ref().map(|last| self.watch(last.revision));
        let mut backoff = Backoff::default();
        loop {
            let is_changed = match &mut watches {
                Some(watches) => {
                    let wait = self.plan.pace().wait();
                    watches.changed(self.plan.debounce, wait, &self.publisher).await
                }
                None => false,
            };
            if is_changed {
                backoff.reset();
            } else {
                watches = None;
                sleep(backoff.next()).await;
            }
            match self.refresh().await {
                // A store restored from a backup is behind the revision seen before.
                Ok(revision) => match &mut watches {
                    Some(watches) if revision >= watches.revision => watches.revision = revision,
                    _ => watches = Some(self.watch(revision)),
                },
                Err(error) => {
                    tracing::debug!(%error, "the settings cannot be read");
                    self.publisher.connected(false, Some(error.to_string().into()));
                    watches = None;
                }
            }
        }
    }

    /// Reads all sources and applies the settings; returns the revision.
    async fn refresh(&mut self) -> Result<i64, Error> {
        let answer = self.plan.fetch().await?;
        let fetched = Fetched::new(answer.clone());
        let revision = fetched.revision;
        let is_same = self.last.as_ref().is_some_and(|last| last.pairs == fetched.pairs);
        if is_same {
            self.publisher.connected(true, None);
        } else {
            match self.plan.settings(Some(&fetched)) {
                Ok(settings) => self.publisher.publish(settings),
                Err(rejection) => self.publisher.reject(rejection),
            }
        }
        let is_due = !is_same || self.plan.pace().is_save_due(self.saved.elapsed());
        if is_due && self.publisher.is_current() {
            self.saved = Instant::now();
            self.plan.save(answer).await;
        }
        self.last = Some(fetched);
        Ok(revision)
    }

    fn watch(&self, revision: i64) -> Watches {
        Watches::new(&self.plan.client, &self.plan.sources, revision)
    }
}

/// A signal from the watch of one source.
enum Signal {
    Response(Result<Response, Error>),
    /// Whether the watch of this source is connected.
    Connection(usize, bool),
}

/// Watches of all sources.
struct Watches {
    signals: SelectAll<BoxStream<'static, Signal>>,
    connected: Vec<bool>,
    /// Why watches are not connected, by source.
    troubles: Vec<Trouble>,
    /// All changes up to this revision are known.
    revision: i64,
}

impl Watches {
    fn new(client: &Client, sources: &[Source], revision: i64) -> Self {
        let mut signals = SelectAll::new();
        let mut troubles = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter().enumerate() {
            let range = source.range();
            let watcher = client
                .watch(range.key.to_vec())
                .range(range.range_end.to_vec())
                .from_revision(revision + 1)
                .progress_notify()
                .start();
            troubles.push(watcher.troubles());
            let connection = WatchStream::from_changes(watcher.connected());
            signals.push(connection.map(move |is| Signal::Connection(index, is)).boxed());
            signals.push(watcher.map(Signal::Response).boxed());
        }
        Self { signals, connected: vec![true; sources.len()], troubles, revision }
    }

    /// Waits until it is time to read the sources: after a change, or after `wait` without one.
    /// `false` if a watch has failed.
    async fn changed<T>(
        &mut self,
        debounce: Debounce,
        wait: Duration,
        publisher: &Publisher<T>,
    ) -> bool {
        let Self { signals, connected, troubles, revision } = self;
        let mut changes = pin!(changes(signals, (connected, troubles), *revision, publisher));
        let first = tokio::select! {
            change = changes.next() => match change {
                Some(true) => Instant::now(),
                _ => return false,
            },
            () = sleep(wait) => return true,
        };
        let mut last = first;
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(true) => last = Instant::now(),
                    _ => return false,
                },
                () = sleep_until(debounce.due(first, last)) => return true,
            }
        }
    }
}

/// Yields `true` for each change above `revision`, `false` for a failure.
fn changes<T>(
    signals: &mut SelectAll<BoxStream<'static, Signal>>,
    (connected, troubles): (&mut [bool], &[Trouble]),
    revision: i64,
    publisher: &Publisher<T>,
) -> impl Stream<Item = bool> {
    signals.filter_map(move |signal| {
        let change = match signal {
            Signal::Connection(index, is_connected) => {
                connected[index] = is_connected;
                let trouble = troubles.iter().find_map(Trouble::get);
                publisher.connected(connected.iter().all(|is| *is), trouble);
                None
            }
            Signal::Response(Ok(response)) => {
                let is_news = response.events.last().map(mod_revision) > Some(revision);
                is_news.then_some(true)
            }
            Signal::Response(Err(error)) => {
                tracing::debug!(%error, "watching the settings again");
                Some(false)
            }
        };
        std::future::ready(change)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_the_cluster_confirms_is_never_too_old() {
        for seconds in [2, 10, 60, 300, 600, 86_400] {
            let max = Duration::from_secs(seconds);
            let pace = Pace::new(Some(max));
            for _ in 0..100 {
                // The longest time without a save: an answer just too early to be saved, then a
                // wait.
                let mut age = pace.0 / 8;
                assert!(pace.is_save_due(age), "{seconds} s");
                age += pace.wait();
                assert!(age < max.mul_f64(0.7), "{seconds} s: {age:?}");
                assert!(pace.is_save_due(pace.wait()), "{seconds} s: every resync is one");
            }
        }
        assert_eq!(Pace::new(None).0, Pace::MAX);
        assert_eq!(Pace::new(Some(Duration::ZERO)).0, Pace::MIN);
    }

    #[test]
    fn changes_may_wait_longer_than_clocks_can_count() {
        let now = Instant::now();
        let debounce = Debounce { quiet: Duration::MAX, max: Duration::from_secs(3) };
        assert_eq!(debounce.due(now, now), now + debounce.max);
    }

    #[test]
    fn changes_wait_for_quiet_but_not_for_ever() {
        let debounce =
            Debounce { quiet: Duration::from_millis(50), max: Duration::from_millis(120) };
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(debounce.due(at(0), at(0)), at(50));
        assert_eq!(debounce.due(at(0), at(40)), at(90));
        assert_eq!(debounce.due(at(0), at(80)), at(120));
    }
}
