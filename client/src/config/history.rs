//! Earlier values of keys, and rolling back to them.
//!
//! The store keeps every revision until it is compacted, so nothing has to be recorded: the history
//! is read from the store's own events, and a rollback writes the old values in a new revision.

use std::{
    collections::{BTreeMap, VecDeque},
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::RangeRequest,
    mvccpb::{Event, KeyValue, event::EventType},
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::Error;
use crate::{
    client::Client,
    error,
    key::set_prefix,
    kv::{delete, put},
    txn::key,
    watch::{Response, Watcher},
};

/// Default number of changes in a history.
const LIMIT: usize = 100;
/// How often the server is asked for progress, to learn whether it has sent everything.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Attempts to read from a start revision that a compaction may remove meanwhile.
const ATTEMPTS_MAX: usize = 5;

impl Client {
    /// Reads the earlier values of a key, or of all keys with a prefix, back to the last
    /// compaction.
    ///
    /// ```no_run
    /// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// for release in client.history("config/app/").prefix().limit(10).await? {
    ///     println!("revision {}: {} keys", release.revision, release.changes.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn history(&self, key: impl Into<Vec<u8>>) -> History {
        History { client: self.clone(), range: range(key), limit: LIMIT }
    }

    /// Restores a key, or all keys with a prefix, to what they held at `revision`, in one new
    /// revision. Keys that did not exist then are deleted. Keys that are written have no lease
    /// afterwards; a key that already holds the same value is not written and keeps its lease.
    ///
    /// ```no_run
    /// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::config::Error> {
    /// let done = client.rollback("config/app/", 42).prefix().await?;
    /// println!("{} keys changed in revision {}", done.changed, done.revision);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rollback(&self, key: impl Into<Vec<u8>>, revision: i64) -> Rollback {
        Rollback { client: self.clone(), range: range(key), revision }
    }
}

fn range(key: impl Into<Vec<u8>>) -> RangeRequest {
    RangeRequest { key: Bytes::from(key.into()), ..RangeRequest::default() }
}

/// A request for the history of keys; see [`Client::history`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::config::{Codec, History};
///
/// // The newest change comes first, which helps to find what went wrong.
/// let history: History = client.history("config/app.toml").limit(5);
/// for release in history.await? {
///     let document = release.changes.last().and_then(|event| event.kv.as_ref());
///     let tree = document.map(|kv| Codec::Toml.decode(&kv.value));
///     println!("revision {}: {tree:?}", release.revision);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is awaited"]
pub struct History {
    client: Client,
    range: RangeRequest,
    limit: usize,
}

/// What changed in one revision.
///
/// ```
/// use conclave_client::config::Release;
///
/// /// The revision to roll back to from the newest release: the one before, if it still exists.
/// fn before(releases: &[Release]) -> Option<i64> {
///     Some(releases.get(1)?.revision)
/// }
///
/// let release = |revision| Release { revision, is_compacted: false, changes: Vec::new() };
/// assert_eq!(before(&[release(42), release(17)]), Some(17));
/// assert_eq!(before(&[release(42)]), None);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// The revision.
    pub revision: i64,
    /// Whether this is not one change but the state at the last compaction: all that is left of the
    /// time before this revision.
    pub is_compacted: bool,
    /// The changes, in the order they were made.
    pub changes: Vec<Event>,
}

impl History {
    /// Includes all keys that start with the key.
    pub fn prefix(mut self) -> Self {
        set_prefix(&mut self.range.key, &mut self.range.range_end);
        self
    }

    /// Limits the number of changes; the newest are returned. Default 100.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    async fn read(self) -> Result<Vec<Release>, error::Error> {
        let mut from = 1;
        for _ in 0..ATTEMPTS_MAX {
            match self.read_from(from).await {
                Err(error::Error::Compacted { revision }) if revision > 0 => from = revision,
                answer => return answer,
            }
        }
        Err(error::Error::Compacted { revision: from })
    }

    /// The history since `from`, which is 1 or the revision of the last compaction.
    async fn read_from(&self, from: i64) -> Result<Vec<Release>, error::Error> {
        let now = self.client.send_range(self.range.clone()).await?;
        let mut replay = Replay::new(now.revision(), &now.kvs, self.limit);
        // A new store begins at revision 1, which holds no keys.
        if from > 1 {
            let range = RangeRequest { revision: from, ..self.range.clone() };
            replay.begin(from, self.client.send_range(range).await?.into_inner().kvs);
        }
        if from >= replay.end {
            return Ok(replay.releases.into());
        }
        let watch = self.client.watch(self.range.key.to_vec()).from_revision(from + 1);
        let watch = watch.range(self.range.range_end.to_vec());
        let deadline = Instant::now() + self.client.timeout();
        match timeout_at(deadline, replay.follow(watch.start())).await {
            Ok(followed) => followed.map(|()| replay.releases.into()),
            Err(_elapsed) => Err(error::Error::Deadline {
                outcome: error::Outcome::NotApplied,
                endpoint: self.client.endpoints().join(" "),
                timeout: self.client.timeout(),
            }),
        }
    }
}

impl IntoFuture for History {
    type Output = Result<Vec<Release>, error::Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Sends the request. The newest change comes first.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.read())
    }
}

/// Collects events until they add up to the current state of the store.
struct Replay {
    /// The revision to replay up to.
    end: i64,
    /// The keys that exist at `end`, with the revisions of their last changes.
    expected: BTreeMap<Bytes, i64>,
    /// The same for the events replayed so far.
    state: BTreeMap<Bytes, i64>,
    /// Newest first.
    releases: VecDeque<Release>,
    limit: usize,
}

impl Replay {
    fn new(end: i64, now: &[KeyValue], limit: usize) -> Self {
        let expected = now.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
        Self { end, expected, state: BTreeMap::new(), releases: VecDeque::new(), limit }
    }

    /// Starts with the state at the revision of the last compaction.
    fn begin(&mut self, revision: i64, kvs: Vec<KeyValue>) {
        self.state = kvs.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
        if !kvs.is_empty() {
            let put = |kv| Event { kv: Some(kv), ..Event::default() };
            self.push(Release {
                revision,
                is_compacted: true,
                changes: kvs.into_iter().map(put).collect(),
            });
        }
    }

    async fn follow(&mut self, mut watcher: Watcher) -> Result<(), error::Error> {
        let mut asking = interval(ASK_INTERVAL);
        asking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                response = watcher.next() => {
                    let Some(response) = response? else { return Ok(()) };
                    if self.take(response) {
                        return Ok(());
                    }
                }
                _ = asking.tick() => watcher.request_progress(),
            }
        }
    }

    /// Handles a response; `true` if there are no more events up to `end`.
    fn take(&mut self, response: Response) -> bool {
        if response.is_progress() {
            // Some versions of etcd report progress too early; then the states differ.
            return response.revision() >= self.end && self.state == self.expected;
        }
        for event in response.events {
            let Some(kv) = &event.kv else { continue };
            let revision = kv.mod_revision;
            if revision > self.end {
                return true;
            }
            match event.r#type() {
                EventType::Put => self.state.insert(kv.key.clone(), revision),
                EventType::Delete => self.state.remove(&kv.key),
            };
            match self.releases.front_mut() {
                Some(release) if release.revision == revision && !release.is_compacted => {
                    release.changes.push(event);
                }
                _ => self.push(Release { revision, is_compacted: false, changes: vec![event] }),
            }
        }
        false
    }

    fn push(&mut self, release: Release) {
        self.releases.push_front(release);
        self.releases.truncate(self.limit);
    }
}

/// A request to roll keys back; see [`Client::rollback`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::config::Error> {
/// use conclave_client::config::{Error, Rollback};
///
/// let back: Rollback = client.rollback("config/app/", 17).prefix();
/// match back.clone().await {
///     Ok(done) => println!("back, as revision {}", done.revision),
///     Err(Error::Conflict) => drop(back.await?), // another client wrote: try again
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Rollback {
    client: Client,
    range: RangeRequest,
    revision: i64,
}

/// The result of a rollback.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::config::Error> {
/// use conclave_client::config::RolledBack;
///
/// match client.rollback("config/app.toml", 17).await? {
///     RolledBack { changed: 0, .. } => println!("it is as it was in revision 17 already"),
///     RolledBack { revision, .. } => println!("revision {revision} says what revision 17 said"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolledBack {
    /// The revision in which the old values were written; the current one if nothing had to change.
    pub revision: i64,
    /// How many keys were written or deleted.
    pub changed: usize,
}

impl Rollback {
    /// Includes all keys that start with the key.
    pub fn prefix(mut self) -> Self {
        set_prefix(&mut self.range.key, &mut self.range.range_end);
        self
    }

    async fn write(self) -> Result<RolledBack, Error> {
        if self.revision <= 0 {
            let text = format!("there is no revision {}: revisions begin at 1", self.revision);
            return Err(Error::Setup(text));
        }
        let range = RangeRequest { revision: self.revision, ..self.range.clone() };
        let old = self.client.send_range(range).await?.into_inner().kvs;
        let now = self.client.send_range(self.range.clone()).await?;
        let old: BTreeMap<&Bytes, &KeyValue> = old.iter().map(|kv| (&kv.key, kv)).collect();
        let current: BTreeMap<&Bytes, &KeyValue> = now.kvs.iter().map(|kv| (&kv.key, kv)).collect();
        let mut txn = self.client.txn();
        let mut changed = 0;
        for (name, kv) in &current {
            txn = txn.when(key(name.to_vec()).mod_revision().equal(kv.mod_revision));
            if !old.contains_key(name) {
                txn = txn.then(delete(name.to_vec()));
                changed += 1;
            }
        }
        for (name, kv) in &old {
            let now = current.get(name);
            if now.is_none_or(|now| now.value != kv.value) {
                txn = txn.then(put(name.to_vec(), kv.value.to_vec()));
                changed += 1;
            }
        }
        if changed == 0 {
            return Ok(RolledBack { revision: now.revision(), changed });
        }
        // Fails if keys were created meanwhile.
        let (first, end) = (self.range.key.to_vec(), self.range.range_end.to_vec());
        txn = txn.when(key(first).range(end).mod_revision().less(now.revision() + 1));
        let answer = txn.commit().await?;
        if !answer.succeeded {
            return Err(Error::Conflict);
        }
        Ok(RolledBack { revision: answer.revision(), changed })
    }
}

impl IntoFuture for Rollback {
    type Output = Result<RolledBack, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Sends the request. Fails with [`Error::Conflict`] if another client changes the keys at the
    /// same time, and with the server's error if more than 128 keys are involved (etcd's limit for
    /// one transaction).
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.write())
    }
}
