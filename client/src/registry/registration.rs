//! An instance that is registered for as long as its guard exists.

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use super::{
    Service,
    record::{Record, State},
};
use crate::{backoff::Backoff, client::Client, error::Error, lease::Lease};

/// How long an instance outlives its last keep-alive if nothing else is asked for.
const TTL: Duration = Duration::from_secs(10);
/// Orders that wait for the keeper; a guard gives one at a time.
const ORDERS_MAX: usize = 1;

/// An instance that is to be registered; see [`Service::register`].
#[derive(Debug, Clone)]
#[must_use = "nothing is registered until it is awaited"]
pub struct Register {
    service: Service,
    record: Record,
    ttl: Duration,
}

impl Register {
    pub(super) fn new(service: Service, record: Record) -> Self {
        Self { service, record, ttl: TTL }
    }

    /// What tells it from other instances. Default: its address.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.record.id = id.into();
        self
    }

    /// How much it takes compared to others; 0 for nothing. Default 100.
    pub fn weight(mut self, weight: u32) -> Self {
        self.record.weight = weight;
        self
    }

    /// Where it is.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.record.zone = zone.into();
        self
    }

    /// Version of the service.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.record.version = version.into();
        self
    }

    /// A word to choose by.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.record.tags.push(tag.into());
        self
    }

    /// More about it; see [`Record::metadata`] for the names that cannot be used.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.record.metadata.insert(name.into(), value.into());
        self
    }

    /// Whether it takes calls from the beginning. Default: up.
    pub fn state(mut self, state: State) -> Self {
        self.record.state = state;
        self
    }

    /// How long the instance outlives its last keep-alive. Default 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    async fn register(self) -> Result<Registration, Error> {
        let Self { service, record, ttl } = self;
        let key = Bytes::from([&service.prefix()[..], record.id.as_bytes()].concat());
        let (state, is_registered) = watch::channel(false);
        let client = service.client;
        let mut keeper =
            Keeper { client: client.clone(), key, ttl, record: record.clone(), lease: None, state };
        keeper.enroll().await?;
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        // Not aborted with the guard: the lease is still to be revoked.
        client.spawn(keeper.run(taken));
        Ok(Registration { record, orders, is_registered })
    }
}

impl IntoFuture for Register {
    type Output = Result<Registration, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.register())
    }
}

/// What a guard asks of the task behind it.
enum Order {
    Change(Record, oneshot::Sender<Result<(), Error>>),
    End(oneshot::Sender<Result<(), Error>>),
}

/// An instance that is registered for as long as this guard exists. After a loss, of its lease or of
/// the whole cluster, it is registered again as soon as possible.
///
/// End it with [`Registration::drain`] or [`Registration::deregister`]. A guard that is dropped
/// deregisters in the background, without a report; if that fails too, the instance goes when its TTL
/// has passed.
#[derive(Debug)]
#[must_use = "the instance is deregistered when the guard is dropped"]
pub struct Registration {
    record: Record,
    orders: mpsc::Sender<Order>,
    is_registered: watch::Receiver<bool>,
}

impl Registration {
    /// The instance as it was registered last.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether it is registered now, and a way to wait for changes.
    #[must_use]
    pub fn is_registered(&self) -> watch::Receiver<bool> {
        self.is_registered.clone()
    }

    /// Changes what others see of the instance; its id stays.
    ///
    /// # Errors
    /// See [`Error`]. The change is not given up: the next time the instance has to be registered again,
    /// it is with the change.
    pub async fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let id = self.record.id.clone();
        change(&mut self.record);
        self.record.id = id;
        let record = self.record.clone();
        self.order(|reply| Order::Change(record, reply)).await
    }

    /// Ends the registration.
    ///
    /// # Errors
    /// See [`Error`]; the instance then goes when its TTL has passed.
    pub async fn deregister(self) -> Result<(), Error> {
        self.order(Order::End).await
    }

    /// Ends gracefully: marks the instance as draining, so that it gets nothing new, waits for clients
    /// to notice and for what has begun to end, and deregisters.
    ///
    /// # Errors
    /// See [`Error`]. That it could not be marked does not keep it from being deregistered.
    pub async fn drain(mut self, wait: Duration) -> Result<(), Error> {
        let marked = self.update(|record| record.state = State::Draining).await;
        sleep(wait).await;
        self.deregister().await.and(marked)
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Order,
    ) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        let gone = || Error::Lost { reason: "the runtime that kept the registration has ended" };
        self.orders.send(order(reply)).await.map_err(|_closed| gone())?;
        done.await.map_err(|_dropped| gone())?
    }
}

/// The task that keeps an instance registered.
struct Keeper {
    client: Client,
    key: Bytes,
    ttl: Duration,
    record: Record,
    lease: Option<Lease>,
    state: watch::Sender<bool>,
}

impl Keeper {
    /// Registers the instance with a new lease.
    async fn enroll(&mut self) -> Result<(), Error> {
        let lease = self.client.lease(self.ttl).await?;
        self.put(lease.id()).await?;
        self.lease = Some(lease);
        self.state.send_replace(true);
        Ok(())
    }

    async fn put(&self, lease: i64) -> Result<(), Error> {
        self.client.put(&self.key[..], self.record.encode()).lease(lease).await.map(drop)
    }

    /// Runs until the guard ends it or is dropped.
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut backoff = Backoff::default();
        loop {
            let order = match &self.lease {
                Some(lease) => tokio::select! {
                    order = orders.recv() => order,
                    () = lease.lost() => {
                        tracing::warn!("the registration was lost: registering again");
                        self.lease = None;
                        self.state.send_replace(false);
                        continue;
                    }
                },
                None => tokio::select! {
                    order = orders.recv() => order,
                    () = sleep(backoff.next()) => {
                        match self.enroll().await {
                            Ok(()) => backoff.reset(),
                            Err(error) => tracing::debug!(%error, "cannot register yet"),
                        }
                        continue;
                    }
                },
            };
            match order {
                Some(Order::Change(record, reply)) => {
                    self.record = record;
                    let done = match &self.lease {
                        Some(lease) => self.put(lease.id()).await,
                        None => self.enroll().await,
                    };
                    // The guard may have been dropped meanwhile.
                    reply.send(done).ok();
                }
                Some(Order::End(reply)) => {
                    let done = match self.lease {
                        Some(lease) => lease.revoke().await,
                        None => Ok(()),
                    };
                    // A lease that has ended already is as good.
                    let done = match done {
                        Err(Error::NotFound(_)) => Ok(()),
                        done => done,
                    };
                    reply.send(done).ok();
                    return;
                }
                // Dropping the lease revokes it.
                None => return,
            }
        }
    }
}
