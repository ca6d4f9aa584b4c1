//! The task that keeps an instance registered.

use std::{borrow::Cow, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use super::{
    Record, Service,
    hold::{self, Condition, Hold, Mark},
    replay::{self, Found, Replay, Task},
};
use crate::{
    backoff::{Backoff, exponential},
    client::Client,
    error::{Error, Outcome},
    pulse::Pulse,
    session::Session,
};

/// Pause before a refused re-registration is tried again, doubled by each refusal.
const REFUSED_MIN: Duration = Duration::from_secs(1);
const REFUSED_MAX: Duration = Duration::from_secs(60);
/// Largest share by which that pause is shortened at random.
const JITTER: f64 = 0.5;
/// Reasons why a registration is over.
const TAKEN: &str = "another guard of the session registered the id of the instance";
const EITHER: &str = "the instance was taken over or removed";

/// What a guard asks its task to do.
pub(super) enum Order {
    Change(Box<Record>, oneshot::Sender<Result<(), Error>>),
    End(oneshot::Sender<Result<(), Error>>),
}

/// The last registration of an instance.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) token: Option<i64>,
    pub(super) pulse: Pulse,
    /// Why the registration is over for good, if it is.
    pub(super) over: Option<Cow<'static, str>>,
}

/// The state of a registration.
enum Stage {
    /// Registered, unless a check had it removed.
    Stands,
    /// Its session or lease is lost, or not begun yet.
    Lost,
    /// Somebody took it away, for this reason.
    Over(Cow<'static, str>),
}

/// What was found out about an instance that a check may have removed.
enum Finding {
    /// The state of the instance.
    Stands(Result<Found, Error>),
    /// It does not accept connections now.
    NoChance,
    /// It accepts connections, and this is its state.
    Chance(Result<Found, Error>),
}

/// Why a registration is over if another one has its id.
fn taken_by(mark: Mark, address: &str) -> Cow<'static, str> {
    let session = mark.session;
    format!("another registered the id of the instance ({address}, session {session:016x})").into()
}

/// The task that keeps an instance registered.
pub(super) struct Keeper {
    service: Service,
    ttl: Duration,
    record: Record,
    /// The last record that was accepted.
    said: Option<Record>,
    /// The session or lease in which it is registered, or will be.
    hold: Option<Hold>,
    /// Identifies the last registration.
    mark: Mark,
    stage: Stage,
    replay: Replay,
    /// Failed attempts to register again since it was last registered: without an answer, and
    /// refused.
    backoff: Backoff,
    refusals: u32,
    /// Paces the checks after attempts that were not answered.
    doubts: Backoff,
    pause: Duration,
    state: watch::Sender<bool>,
    standing: watch::Sender<Option<Standing>>,
}

impl Keeper {
    pub(super) fn new(
        (service, ttl, record): (Service, Duration, Record),
        look_every: Option<Duration>,
        state: watch::Sender<bool>,
        standing: watch::Sender<Option<Standing>>,
    ) -> Self {
        Self {
            service,
            ttl,
            record,
            said: None,
            hold: None,
            mark: Mark::default(),
            stage: Stage::Lost,
            replay: Replay::new(look_every),
            backoff: Backoff::default(),
            refusals: 0,
            doubts: Backoff::default(),
            pause: Duration::ZERO,
            state,
            standing,
        }
    }

    fn client(&self) -> &Client {
        &self.service.client
    }

    /// Registers the instance for the first time, in the given session unless that is lost. If it
    /// is refused, the previous owner of the id in that session keeps it.
    pub(super) async fn begin(&mut self, given: Option<Session>) -> Result<(), Error> {
        let given = given.filter(|session| !session.is_lost());
        self.hold =
            given.map(|session| Hold::session(session, false, &self.service, &self.record.id));
        self.enroll(Condition::Any).await
    }

    /// Puts the instance into the current session or lease if that is alive, else into a new one of
    /// its own. Cancel-safe: what was begun is kept.
    async fn enroll(&mut self, condition: Condition) -> Result<(), Error> {
        if self.hold.as_ref().is_none_or(|hold| hold.pulse().is_lost()) {
            self.hold = None;
            self.hold = Some(self.begin_hold().await?);
        }
        let is_native = self.hold.as_ref().is_some_and(Hold::is_native);
        match self.put(condition).await {
            // The server has sessions but no registry.
            Err(Error::Unimplemented(_)) if is_native => {
                self.hold = Some(Hold::lease(self.client().lease(self.ttl).await?));
                self.put(condition).await
            }
            done => done,
        }
    }

    async fn begin_hold(&self) -> Result<Hold, Error> {
        let session = self.client().session().ttl(self.ttl).owner(&self.service.name);
        match session.native().await {
            Ok(session) => Ok(Hold::session(session, true, &self.service, &self.record.id)),
            Err(Error::Unimplemented(_)) => Ok(Hold::lease(self.client().lease(self.ttl).await?)),
            Err(error) => Err(error),
        }
    }

    async fn put(&mut self, condition: Condition) -> Result<(), Error> {
        let Some(hold) = &self.hold else { return Err(Error::session_lost()) };
        let put = hold.put(&self.service, &self.record, condition).await;
        if put.is_err() && self.is_in_doubt() {
            self.replay.look_in(self.doubts.next());
        }
        self.mark = put?;
        self.doubts.reset();
        self.said = Some(self.record.clone());
        if hold.is_native() {
            self.replay.registered(&self.record);
        }
        let token = hold.is_native().then_some(self.mark.fence);
        let pulse = hold.pulse().clone();
        self.standing.send_replace(Some(Standing { token, pulse, over: None }));
        self.stage = Stage::Stands;
        self.state.send_replace(true);
        Ok(())
    }

    /// Publishes a change of the record.
    async fn change(&mut self) -> Result<(), Error> {
        if self.hold.as_ref().is_some_and(|hold| hold.pulse().is_lost()) {
            self.lose();
        } else if self.is_overtaken() {
            return Err(self.give_up(TAKEN.into()));
        }
        if let Stage::Stands = self.stage {
            match self.put(Condition::Still(self.mark)).await {
                Err(Error::NotFound(_)) => self.lose(),
                // Or the refused request was a retry of one whose outcome is unknown.
                Err(error) if hold::is_replaced(&error) || error.outcome() == Outcome::Unknown => {
                    return self.inquire_why(error).await;
                }
                done => return done,
            }
        }
        match &self.stage {
            Stage::Over(reason) => Err(Error::lost(reason.clone())),
            Stage::Lost | Stage::Stands => self.register_again().await,
        }
    }

    /// Finds out why the registered instance is gone. Registers it again if a check had it removed;
    /// otherwise the registration is over.
    async fn inquire_why(&mut self, error: Error) -> Result<(), Error> {
        if self.is_overtaken() {
            return Err(self.give_up(TAKEN.into()));
        }
        if !self.hold.as_ref().is_some_and(Hold::is_native) {
            // The server tells no reasons; unless replaced for certain, it still stands.
            let is_over = hold::is_replaced(&error);
            return Err(if is_over { self.give_up(EITHER.into()) } else { error });
        }
        match replay::look(&self.service, &self.record.id).await {
            Ok(Found::Critical) => self.put(Condition::Free(self.mark)).await,
            // It was registered again, but that answer was lost.
            Ok(Found::There { mark, .. }) if self.is_own(mark) => {
                self.put(Condition::Still(mark)).await
            }
            Ok(Found::There { mark, address, .. }) => Err(self.give_up(taken_by(mark, &address))),
            Ok(Found::Removed(reason)) => Err(self.give_up(reason.into())),
            // A check may have removed it, and a compaction dropped the reason. No other owner has
            // the id.
            Ok(Found::Absent) if replay::is_looked_after(&self.record) => {
                self.put(Condition::Free(self.mark)).await
            }
            Ok(Found::Absent) => Err(self.give_up(EITHER.into())),
            Err(unknown) => {
                tracing::debug!(error = %unknown, "what became of the instance is not known");
                Err(error)
            }
        }
    }

    /// Ends the registration because somebody took the instance away; it is not registered again.
    fn give_up(&mut self, reason: Cow<'static, str>) -> Error {
        tracing::warn!("the registration is over: {reason}");
        self.replay.stop();
        self.stage = Stage::Over(reason.clone());
        self.standing.send_modify(|standing| {
            if let Some(standing) = standing {
                standing.over = Some(reason.clone());
            }
        });
        if let Some(hold) = self.hold.take() {
            hold.leave();
        }
        self.state.send_replace(false);
        Error::lost(reason)
    }

    /// Handles the loss of the session or lease.
    fn lose(&mut self) {
        if self.is_overtaken() {
            self.give_up(TAKEN.into());
            return;
        }
        tracing::warn!("the registration was lost: registering again");
        if let Some(hold) = self.hold.take() {
            hold.pulse().lost().cancel();
        }
        self.replay.stop();
        self.stage = Stage::Lost;
        (self.pause, self.refusals) = (self.backoff.next(), 0);
        self.state.send_replace(false);
    }

    /// Registers the instance again after a loss, and sets the pause before the next attempt.
    async fn register_again(&mut self) -> Result<(), Error> {
        let done = self.take_place().await;
        match &done {
            Ok(()) => self.backoff.reset(),
            Err(error) => {
                tracing::debug!(%error, "cannot register yet");
                self.take_back_words(error);
                // The session begun for it is lost.
                let is_hold_lost = matches!(error, Error::NotFound(_));
                if is_hold_lost {
                    self.hold = None;
                }
                self.pause = if error.is_passing() || is_hold_lost {
                    self.backoff.next()
                } else {
                    let pause = exponential(REFUSED_MIN, REFUSED_MAX, self.refusals);
                    self.refusals = self.refusals.saturating_add(1);
                    pause.mul_f64(rand::random_range(1.0 - JITTER..=1.0))
                };
            }
        }
        done
    }

    /// Undoes a change that was made while the cluster could not be asked and is now refused for
    /// its content: it must not keep the instance from being registered. The last accepted record
    /// is used again.
    fn take_back_words(&mut self, error: &Error) {
        if let Some(said) = self.said.clone().filter(|said| *said != self.record)
            && hold::is_wrong(error)
        {
            tracing::warn!(%error, "the last change of the registration was refused: it is as before");
            self.record = said;
        }
    }

    /// Registers again if the id is free or still ours; never if another owner has it or an
    /// operator removed it.
    async fn take_place(&mut self) -> Result<(), Error> {
        let former = match replay::look(&self.service, &self.record.id).await {
            Ok(Found::There { mark, .. }) if self.is_own(mark) => mark,
            Ok(Found::There { .. }) => return Err(hold::taken()),
            Ok(Found::Removed(reason)) => return Err(self.give_up(reason.into())),
            Ok(Found::Critical | Found::Absent) => self.mark,
            // The server does not have this call, or the user may not read it.
            Err(Error::Unimplemented(_)) => self.mark,
            Err(error) if error.is_permission_denied() => self.mark,
            Err(error) => return Err(error),
        };
        self.enroll(Condition::Free(former)).await
    }

    /// Whether the instance found is our last registration, or may be the result of an unanswered
    /// request.
    fn is_own(&self, found: Mark) -> bool {
        found == self.mark || self.hold.as_ref().is_some_and(|hold| hold.may_have_put(found))
    }

    fn is_in_doubt(&self) -> bool {
        self.hold.as_ref().is_some_and(Hold::is_in_doubt)
    }

    fn is_overtaken(&self) -> bool {
        self.hold.as_ref().is_some_and(Hold::is_overtaken)
    }

    /// When it is time to, finds out about an instance that a check may have removed. Cancel-safe:
    /// it is done again.
    async fn inquire(&self) -> Finding {
        match self.replay.due().await {
            Task::Look => Finding::Stands(replay::look(&self.service, &self.record.id).await),
            Task::Replay if replay::has_chance(&self.record).await => {
                Finding::Chance(replay::look(&self.service, &self.record.id).await)
            }
            Task::Replay => Finding::NoChance,
        }
    }

    /// Acts on the result of [`Keeper::inquire`].
    async fn attend(&mut self, finding: Finding) {
        match finding {
            _ if self.is_overtaken() => drop(self.give_up(TAKEN.into())),
            // Sent once more, so that its number does not stay open for long.
            Finding::Stands(found) if self.is_in_doubt() && !self.is_lost_to_others(&found) => {
                self.come_back(found).await;
            }
            Finding::Stands(Ok(Found::There { mark, is_healthy, .. })) if self.is_own(mark) => {
                self.replay.stands(&self.record, is_healthy);
            }
            Finding::Stands(Ok(Found::There { mark, address, .. })) => {
                drop(self.give_up(taken_by(mark, &address)));
            }
            // After ours was removed, another owner's instance may have been removed by an
            // operator, too.
            Finding::Stands(Ok(Found::Removed(reason)))
            | Finding::Chance(Ok(Found::Removed(reason))) => drop(self.give_up(reason.into())),
            Finding::Stands(Ok(Found::Critical)) => {
                tracing::warn!("the instance was removed: it was critical for too long");
                self.replay.postpone();
                self.state.send_replace(false);
            }
            // A compaction dropped the reason; or the session has ended, which will be noticed
            // soon.
            Finding::Stands(Ok(Found::Absent)) if replay::is_looked_after(&self.record) => {
                tracing::warn!(
                    "the instance is not there, for a reason that nobody knows any more"
                );
                self.replay.postpone();
                self.state.send_replace(false);
            }
            Finding::Stands(Ok(Found::Absent)) => self.replay.registered(&self.record),
            Finding::Stands(Err(error)) => {
                tracing::debug!(%error, "how the instance stands is not known");
                self.replay.registered(&self.record);
            }
            Finding::Chance(found) => self.come_back(found).await,
            Finding::NoChance => self.replay.postpone(),
        }
    }

    /// Whether another owner has the id, or somebody removed the instance.
    fn is_lost_to_others(&self, found: &Result<Found, Error>) -> bool {
        match found {
            Ok(Found::There { mark, .. }) => !self.is_own(*mark),
            Ok(Found::Removed(_)) => true,
            Ok(Found::Critical | Found::Absent) | Err(_) => false,
        }
    }

    /// Registers an instance again that a check had removed, unless another owner has the id.
    async fn come_back(&mut self, found: Result<Found, Error>) {
        let condition = match found {
            // It was registered again, but that answer was lost.
            Ok(Found::There { mark, .. }) if self.is_own(mark) => Ok(Condition::Still(mark)),
            // Another owner took the id meanwhile and keeps it.
            Ok(Found::There { .. }) => Err(hold::taken()),
            Ok(Found::Critical | Found::Absent | Found::Removed(_)) => {
                Ok(Condition::Free(self.mark))
            }
            Err(error) => Err(error),
        };
        let done = match condition {
            Ok(condition) => self.put(condition).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "cannot register again yet");
            if !self.is_in_doubt() {
                self.replay.postpone();
            }
        }
    }

    /// Deregisters the instance, and ends the session or lease that was begun for it.
    async fn end(&mut self) -> Result<(), Error> {
        self.state.send_replace(false);
        match self.hold.take() {
            Some(hold) => hold.end().await,
            None => Ok(()),
        }
    }

    /// The next order; `None` after work that needed no order. The inner `None` means that the
    /// guard was dropped.
    async fn step(&mut self, orders: &mut mpsc::Receiver<Order>) -> Option<Option<Order>> {
        match (&self.stage, &self.hold) {
            (Stage::Stands, Some(hold)) => tokio::select! {
                order = orders.recv() => Some(order),
                () = hold.pulse().lost().cancelled() => {
                    self.lose();
                    None
                }
                () = hold.overtaken() => {
                    self.give_up(TAKEN.into());
                    None
                }
                // Cancelled by an order, which may be the last one.
                finding = self.inquire() => {
                    if self.hold.as_ref().is_some_and(|hold| hold.pulse().is_lost()) {
                        self.lose();
                    } else {
                        self.attend(finding).await;
                    }
                    None
                }
            },
            (Stage::Over(_), _) => Some(orders.recv().await),
            (Stage::Lost | Stage::Stands, _) => tokio::select! {
                order = orders.recv() => Some(order),
                () = async {
                    sleep(self.pause).await;
                    self.register_again().await.ok();
                } => None,
            },
        }
    }

    /// Runs until the guard ends it or is dropped.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            match self.step(&mut orders).await {
                None => {}
                Some(Some(Order::Change(record, reply))) => {
                    let before = std::mem::replace(&mut self.record, *record);
                    let done = self.change().await;
                    // Otherwise it could never be registered again.
                    if done.as_ref().is_err_and(hold::is_wrong) {
                        self.record = before;
                    }
                    // The guard may have been dropped meanwhile.
                    reply.send(done).ok();
                }
                Some(Some(Order::End(reply))) => {
                    reply.send(self.end().await).ok();
                    return;
                }
                Some(None) => {
                    // Nobody waits for the result; if this fails, the TTL ends it.
                    self.end().await.ok();
                    return;
                }
            }
        }
    }
}
