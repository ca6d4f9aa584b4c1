//! An instance that stays registered for as long as its guard exists.

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

/// Default time that an instance outlives its last keep-alive.
const TTL: Duration = Duration::from_secs(10);
/// Orders that wait for the keeper; a guard gives one at a time.
const ORDERS_MAX: usize = 1;

/// An instance to be registered; see [`Service::register`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::registry::{Check, CheckKind};
///
/// // Takes calls only while its health page answers.
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

    /// Id of the instance within the service. Default: its address.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.record.id = id.into();
        self
    }

    /// Load-balancing weight relative to other instances; 0 gets no calls. Default 100.
    pub fn weight(mut self, weight: u32) -> Self {
        self.record.weight = weight;
        self
    }

    /// Zone of the instance, such as `eu-1`.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.record.zone = zone.into();
        self
    }

    /// Version of the service.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.record.version = version.into();
        self
    }

    /// Adds a tag by which clients can select instances.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.record.tags.push(tag.into());
        self
    }

    /// Adds metadata; see [`Record::metadata`] for the names that cannot be used.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.record.metadata.insert(name.into(), value.into());
        self
    }

    /// Initial state: whether it takes calls from the beginning. Default: up.
    pub fn state(mut self, state: State) -> Self {
        self.record.state = state;
        self
    }

    /// Health as the owner reports it. Default: passing.
    pub fn health(mut self, health: Health) -> Self {
        self.record.details.health = health;
        self
    }

    /// Lets the server check the health of the instance. Needs Conclave's registry.
    pub fn check(mut self, check: Check) -> Self {
        self.record.details.check = Some(check);
        self
    }

    /// Adds a health check with this name. The worst of the health that the owner reports and the
    /// results of all checks counts. An instance has at most 8 checks.
    pub fn named_check(mut self, name: impl Into<String>, check: Check) -> Self {
        self.record.details.checks.insert(name.into(), check);
        self
    }

    /// Adds another address under a name, as `scheme://host:port`.
    pub fn endpoint(mut self, name: impl Into<String>, url: impl Into<String>) -> Self {
        self.record.details.endpoints.insert(name.into(), url.into());
        self
    }

    /// How long the instance outlives its last keep-alive. Default 10 s. No effect if a session is
    /// given.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Ties the instance to an existing session, together with whatever else the process holds
    /// through it. If that session is lost, the instance is registered again with a new session of
    /// its own.
    pub fn session(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// How often to ask the cluster for the state of the instance, between 1 s and 1 min. With it
    /// the guard learns that the instance was taken away even if it makes no call itself
    /// ([`Registration::taken_away`]). Default: only if a check may remove the instance. Needs
    /// Conclave's registry.
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
        // Not aborted with the guard: it still has to revoke the lease.
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

/// An instance that stays registered for as long as this guard exists and nobody takes the instance
/// away. An operator can take it away by removing it, and another guard by registering its id, in
/// the same or another session. Then this registration is over: nothing that this guard does
/// affects the successor. The guard learns of it with its next call, or when it asks after a check
/// ([`Error::Lost`], [`Registration::lost`], [`Registration::is_registered`]).
///
/// After the loss of its session, its lease or the whole cluster, the instance is registered again
/// as soon as possible, but only while its id is free or still its own. While another guard has the
/// id, it retries at growing intervals of up to a minute. If the instance was removed because a
/// check found it critical for too long, it is registered again after a pause that doubles up to
/// ten minutes, and only if the checked addresses accept connections.
///
/// End it with [`Registration::drain`] or [`Registration::deregister`]. A dropped guard deregisters
/// in the background without a report. In a session that was given, it retries for as long as that
/// session lives; otherwise it tries once, and if that fails, the instance disappears when its TTL
/// has passed.
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
    /// The instance as it was last registered.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether the instance is registered, as far as this process knows, as a receiver that can
    /// wait for changes. That an operator removed the instance or another session took its id is
    /// learned with the guard's next call; if a check may remove the instance, also without a call.
    #[must_use]
    pub fn is_registered(&self) -> watch::Receiver<bool> {
        self.is_registered.clone()
    }

    /// The fencing token of the last registration. It grows when the id is registered again, also
    /// by another session, and so after each loss and re-registration. `None` against a server that
    /// only speaks etcd's API, where a successor continues with the same key.
    #[must_use]
    pub fn token(&self) -> Option<i64> {
        self.standing().token
    }

    /// Cancelled when the current registration is lost. If its session or lease may have ended:
    /// before the server removes the instance, as long as this process gets to run. If somebody
    /// took the instance away: when that is known. A re-registration has a new token; see
    /// [`Registration::is_registered`].
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.standing().pulse.lost().clone()
    }

    /// Runs `work` until it ends or the current registration is lost; in the latter case `work` is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Lost`] if the registration was lost: what `work` had begun may be half done.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        let pulse = self.standing().pulse;
        let over = || self.standing().over.map(Error::lost);
        pulse.run(pin!(work)).await.map_err(|error| over().unwrap_or(error))
    }

    /// Why the registration is over for good, if somebody took the instance away and that is known;
    /// [`Registration::is_registered`] says when it becomes known.
    #[must_use]
    pub fn taken_away(&self) -> Option<String> {
        self.standing().over.map(String::from)
    }

    fn standing(&self) -> Standing {
        let standing = self.stands.borrow().clone();
        standing.expect("invariant: there is a guard only of what was registered")
    }

    /// Changes the instance as others see it; its id stays the same.
    ///
    /// # Errors
    /// [`Error::Lost`] if another guard took the id or somebody removed the instance: it is not
    /// registered again. A change that the registry will never accept ([`Error::Invalid`], or a
    /// kind of check that it does not make) is undone. After any other error (see [`Error`]) the
    /// change is kept, and applied when the instance is next registered again.
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

    /// Ends gracefully: marks the instance as draining so that it gets no new calls, waits for
    /// clients to notice and for running calls to finish, and deregisters. If somebody has taken
    /// the instance away, it only waits, because no new calls arrive.
    ///
    /// # Errors
    /// See [`Error`]. If the instance cannot be marked, it is deregistered all the same.
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
