//! An instance that is registered for as long as its guard exists.

use std::{
    future::{Future, IntoFuture},
    pin::{Pin, pin},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    Check, Health, Record, Service, State,
    hold::{is_taken, is_wrong},
    keeper::{Keeper, Order, Standing},
};
use crate::{error::Error, session::Session};

/// How long an instance outlives its last keep-alive if nothing else is asked for.
const TTL: Duration = Duration::from_secs(10);
/// Orders that wait for the keeper; a guard gives one at a time.
const ORDERS_MAX: usize = 1;

/// An instance that is to be registered; see [`Service::register`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::registry::{Check, CheckKind};
///
/// // Takes calls only while its own page for this purpose answers.
/// let target = "/health".to_owned();
/// let check = Check { kind: CheckKind::Http, target, interval_ms: 5_000, ..Check::default() };
/// let register = client.service("shop/api").register("10.0.0.7:80").id("api-7");
/// let registration = register.zone("eu-1").weight(200).tag("canary").check(check).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is registered until it is awaited"]
pub struct Register {
    service: Service,
    record: Record,
    ttl: Duration,
    session: Option<Session>,
    look_every: Option<Duration>,
}

impl Register {
    pub(super) fn new(service: Service, record: Record) -> Self {
        Self { service, record, ttl: TTL, session: None, look_every: None }
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

    /// How well it is, by its own account. Default: passing.
    pub fn health(mut self, health: Health) -> Self {
        self.record.details.health = health;
        self
    }

    /// Lets the server find out how well it is. Only a native registry does.
    pub fn check(mut self, check: Check) -> Self {
        self.record.details.check = Some(check);
        self
    }

    /// Lets the server find out by one more check, of this name. The worst of what the owner says and all checks
    /// find counts; at most 8 are made of an instance.
    pub fn named_check(mut self, name: impl Into<String>, check: Check) -> Self {
        self.record.details.checks.insert(name.into(), check);
        self
    }

    /// A further address, as `scheme://host:port`.
    pub fn endpoint(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.record.details.endpoints.insert(name.into(), url.into());
        self
    }

    /// How long the instance outlives its last keep-alive. Default 10 s. Without effect on a given
    /// session.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Lets the instance live and die with a session that exists, together with whatever else the process
    /// holds. Should it be lost, the instance is registered again with a session of its own.
    pub fn session(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// How often to ask how the instance stands, so that the guard hears without a word of its own that somebody took
    /// it away ([`Registration::taken_away`]): between 1 s and 1 min. Default: only if a check may have it removed. Only
    /// a native registry tells.
    pub fn look_every(mut self, interval: Duration) -> Self {
        self.look_every = Some(interval);
        self
    }

    async fn register(self) -> Result<Registration, Error> {
        let Self { service, record, ttl, session, look_every } = self;
        let (state, is_registered) = watch::channel(false);
        let (standing, stands) = watch::channel(None);
        let client = service.client.clone();
        let what = (service, ttl, record.clone());
        let mut keeper = Keeper::new(what, look_every, state, standing);
        keeper.begin(session).await?;
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        // Not aborted with the guard: the lease is still to be revoked.
        client.spawn(keeper.run(taken));
        Ok(Registration { record, orders, is_registered, stands })
    }
}

impl IntoFuture for Register {
    type Output = Result<Registration, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.register())
    }
}

/// An instance that is registered for as long as this guard exists and nobody takes it away: an operator who
/// removes it, or another that takes its id, in another session or the same. Then the registration is over: whatever this guard does leaves
/// the successor alone, and its next word, or a check's time to look after it, tells of it ([`Error::Lost`],
/// [`Registration::lost`], [`Registration::is_registered`]).
///
/// After a loss, of its session, its lease or the whole cluster, it is registered again as soon as possible, but only
/// as long as its id is free or still its own: while another has it, it asks ever more seldom, up to once a minute. If
/// it was removed because a check found it critical for too long, it comes back after a while that doubles up to ten
/// minutes, and only if a connection to what is checked can be made.
///
/// End it with [`Registration::drain`] or [`Registration::deregister`]. A guard that is dropped
/// deregisters in the background, without a report: in a session that was given for as long as that lives,
/// otherwise once, and if that fails the instance goes when its TTL has passed.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
/// use conclave_client::registry::State;
///
/// let register = client.service("shop/api").register("10.0.0.7:80").state(State::Starting);
/// let mut registration = register.await?;
/// // ... load what is needed
/// registration.update(|record| record.state = State::Up).await?;
/// // ... serve, until the process is told to end
/// registration.drain(Duration::from_secs(10)).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the instance is deregistered when the guard is dropped"]
pub struct Registration {
    record: Record,
    orders: mpsc::Sender<Order>,
    is_registered: watch::Receiver<bool>,
    stands: watch::Receiver<Option<Standing>>,
}

impl Registration {
    /// The instance as it was registered last.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether it is registered now as far as this process knows, and a way to wait for changes. Of an operator
    /// who removes the instance, or another session that takes its id, it hears with the guard's next word; if a
    /// check may have the instance removed, without one, too.
    #[must_use]
    pub fn is_registered(&self) -> watch::Receiver<bool> {
        self.is_registered.clone()
    }

    /// The fencing token of the instance as it was registered last: it grows when the id is registered anew, or by
    /// another session, and so when this one is registered again after a loss. `None` if the server speaks etcd's
    /// API only, where whoever takes an instance's place goes on with its key.
    #[must_use]
    pub fn token(&self) -> Option<i64> {
        self.standing().token
    }

    /// Cancelled when the registration of this moment may be lost because its session or lease may be: before
    /// the server takes the instance out, as long as this process gets to run. When it is registered again there
    /// is a new one; see [`Registration::is_registered`]. Cancelled also when it is known that somebody took the
    /// instance away.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.standing().pulse.lost().clone()
    }

    /// Runs `work` until it ends or the registration of this moment is lost; then `work` is dropped.
    ///
    /// # Errors
    /// [`Error::Lost`]: what `work` had begun may be half done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        let pulse = self.standing().pulse;
        let over = || self.standing().over.map(Error::lost);
        pulse.run(pin!(work)).await.map_err(|error| over().unwrap_or(error))
    }

    /// Why the registration is over for good, if somebody took the instance away and that is known; see
    /// [`Registration::is_registered`] for when it is.
    #[must_use]
    pub fn taken_away(&self) -> Option<String> {
        self.standing().over.map(String::from)
    }

    fn standing(&self) -> Standing {
        let standing = self.stands.borrow().clone();
        standing.expect("invariant: there is a guard only of what was registered")
    }

    /// Changes what others see of the instance; its id stays.
    ///
    /// # Errors
    /// [`Error::Lost`] if another took the id, or somebody removed the instance: it stays away. A change that the
    /// registry will never take ([`Error::Invalid`], or a check that it does not make) is undone. See [`Error`].
    /// Otherwise the change is not given up: the next time the instance has to be registered again, it is with the
    /// change.
    pub async fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let before = self.record.clone();
        change(&mut self.record);
        self.record.id.clone_from(&before.id);
        let record = Box::new(self.record.clone());
        let done = self.order(|reply| Order::Change(record, reply)).await;
        if done.as_ref().is_err_and(is_wrong) {
            self.record = before;
        }
        done
    }

    /// Ends the registration.
    ///
    /// # Errors
    /// See [`Error`]; it then goes on in the background, as if the guard had been dropped.
    pub async fn deregister(self) -> Result<(), Error> {
        self.order(Order::End).await
    }

    /// Ends gracefully: marks the instance as draining, so that it gets nothing new, waits for clients
    /// to notice and for what has begun to end, and deregisters. If somebody has taken the instance away, it only
    /// waits: nothing new comes here.
    ///
    /// # Errors
    /// See [`Error`]. That it could not be marked does not keep it from being deregistered.
    pub async fn drain(mut self, wait: Duration) -> Result<(), Error> {
        let marked = self.update(|record| record.state = State::Draining).await;
        sleep(wait).await;
        let done = self.deregister().await;
        let is_gone = |error: &Error| matches!(error, Error::Lost { .. }) || is_taken(error);
        if marked.as_ref().is_err_and(is_gone) { done } else { done.and(marked) }
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Order,
    ) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        let gone = || Error::lost("the runtime that kept the registration has ended");
        self.orders.send(order(reply)).await.map_err(|_closed| gone())?;
        done.await.map_err(|_dropped| gone())?
    }
}
