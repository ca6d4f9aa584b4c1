//! The task that keeps an instance registered.

use std::time::Duration;

use bytes::Bytes;
use conclave_proto::v1::{
    RegisterRequest, register_request::Mode, registry_service_client::RegistryServiceClient,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use super::{
    Record, Service,
    entry::Entry,
    replay::{self, Found, Replay, Task},
};
use crate::{
    backoff::Backoff,
    client::Client,
    error::{Error, Outcome},
    lease::Lease,
    once::Caller,
    pulse::Pulse,
    session::Session,
};

/// What a guard asks of the task behind it.
pub(super) enum Order {
    Change(Box<Record>, oneshot::Sender<Result<(), Error>>),
    End(oneshot::Sender<Result<(), Error>>),
}

/// How an instance was registered last.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) token: Option<i64>,
    pub(super) pulse: Pulse,
}

/// What an instance lives and dies with.
pub(super) enum Hold {
    /// A session, in a native registry; whether it was begun for the instance.
    Session(Entry, bool),
    /// A lease, in a server that speaks etcd's API only.
    Lease(Lease),
}

impl Hold {
    async fn lost(&self) {
        match self {
            Self::Session(entry, _) => entry.session().lost().cancelled().await,
            Self::Lease(lease) => lease.lost().await,
        }
    }

    fn pulse(&self) -> &Pulse {
        match self {
            Self::Session(entry, _) => entry.session().pulse(),
            Self::Lease(lease) => lease.pulse(),
        }
    }
}

/// What was found out about an instance that a check may have removed.
enum Finding {
    /// How it stands.
    Stands(Found),
    /// Whether it would take connections.
    Chance(bool),
}

/// The task that keeps an instance registered.
pub(super) struct Keeper {
    pub(super) service: Service,
    pub(super) ttl: Duration,
    pub(super) record: Record,
    /// To begin with.
    pub(super) given: Option<Session>,
    pub(super) hold: Option<Hold>,
    pub(super) replay: Replay,
    pub(super) state: watch::Sender<bool>,
    pub(super) standing: watch::Sender<Option<Standing>>,
}

impl Keeper {
    fn client(&self) -> &Client {
        &self.service.client
    }

    /// Registers the instance with what it is to live and die with.
    pub(super) async fn enroll(&mut self) -> Result<(), Error> {
        let hold = match self.given.take().filter(|session| !session.is_lost()) {
            Some(session) => Hold::Session(self.entry(session), false),
            None => self.begin().await?,
        };
        let hold = match self.put(&hold, Mode::Replace).await {
            // It has sessions, but no registry.
            Err(Error::Unimplemented(_)) => {
                let lease = Hold::Lease(self.client().lease(self.ttl).await?);
                self.put(&lease, Mode::Replace).await?;
                lease
            }
            Ok(()) => hold,
            Err(error) => {
                if let (Hold::Session(entry, _), Outcome::NotApplied) = (hold, error.outcome()) {
                    entry.forget();
                }
                return Err(error);
            }
        };
        if let Hold::Session(..) = hold {
            self.replay.registered(&self.record);
        }
        self.hold = Some(hold);
        self.state.send_replace(true);
        Ok(())
    }

    fn entry(&self, session: Session) -> Entry {
        Entry::new(session, &self.service.name, &self.record.id)
    }

    async fn begin(&self) -> Result<Hold, Error> {
        let session = self.client().session().ttl(self.ttl).owner(&self.service.name);
        match session.native().await {
            Ok(session) => Ok(Hold::Session(self.entry(session), true)),
            Err(Error::Unimplemented(_)) => Ok(Hold::Lease(self.client().lease(self.ttl).await?)),
            Err(error) => Err(error),
        }
    }

    fn stand(&self, hold: &Hold, token: Option<i64>) {
        let pulse = hold.pulse().clone();
        self.standing.send_replace(Some(Standing { token, pulse }));
    }

    async fn put(&self, hold: &Hold, mode: Mode) -> Result<(), Error> {
        let record = self.record.encode();
        let session = match hold {
            Hold::Session(entry, _) => entry.session(),
            Hold::Lease(lease) => {
                let prefix = self.service.prefix();
                let key = Bytes::from([&prefix[..], self.record.id.as_bytes()].concat());
                self.client().put(&key[..], record).lease(lease.id()).await?;
                self.stand(hold, None);
                return Ok(());
            }
        };
        let request = RegisterRequest {
            service: self.service.name.clone(),
            id: self.record.id.clone(),
            session: session.id(),
            record: record.into(),
            mode: mode as i32,
            ..RegisterRequest::default()
        };
        let call = |channel, once| {
            let request = RegisterRequest { once, ..request.clone() };
            async move { RegistryServiceClient::new(channel).register(request).await }
        };
        let registered = Caller::session(session).send(call).await?;
        self.stand(hold, Some(registered.fence));
        Ok(())
    }

    /// Registers the instance with what it has: with a change, or because it was removed.
    async fn put_again(&mut self, mode: Mode) -> Result<(), Error> {
        let Some(hold) = &self.hold else { return Ok(()) };
        self.put(hold, mode).await?;
        if let Hold::Session(..) = hold {
            self.replay.registered(&self.record);
        }
        self.state.send_replace(true);
        Ok(())
    }

    /// Looks after an instance that a check may have removed, when it is time to. Cancel-safe: what is found out is
    /// found out anew.
    async fn inquire(&self) -> Finding {
        match self.replay.due().await {
            Task::Look => {
                let found = replay::look(&self.service, &self.record.id).await;
                Finding::Stands(found.unwrap_or_else(|error| {
                    tracing::debug!(%error, "how the instance stands is not known");
                    Found::Other
                }))
            }
            Task::Replay => Finding::Chance(replay::has_chance(&self.record).await),
        }
    }

    /// Does what is to be done after [`Keeper::inquire`].
    async fn attend(&mut self, finding: Finding) {
        match finding {
            Finding::Stands(found) => {
                if self.replay.found(&self.record, found) {
                    tracing::warn!("the instance was removed: it was critical for too long");
                    self.state.send_replace(false);
                }
            }
            Finding::Chance(true) => {
                // Whoever took the name meanwhile keeps it.
                if let Err(error) = self.put_again(Mode::IfAbsent).await {
                    tracing::debug!(%error, "cannot register again yet");
                    self.replay.postpone();
                }
            }
            Finding::Chance(false) => self.replay.postpone(),
        }
    }

    /// Takes the instance out, and ends what was begun for it.
    async fn end(&mut self) -> Result<(), Error> {
        self.state.send_replace(false);
        let done = match self.hold.take() {
            Some(Hold::Session(entry, is_own)) => {
                let session = entry.session().clone();
                let removed = entry.take_out().await;
                // With its session the instance goes, too.
                if is_own { session.close().await } else { removed }
            }
            Some(Hold::Lease(lease)) => lease.revoke().await,
            None => Ok(()),
        };
        match done {
            // What has ended already is as good.
            Err(Error::NotFound(_)) => Ok(()),
            done => done,
        }
    }

    /// Runs until the guard ends it or is dropped.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut backoff = Backoff::default();
        loop {
            let order = match &self.hold {
                Some(hold) => tokio::select! {
                    order = orders.recv() => order,
                    () = hold.lost() => {
                        tracing::warn!("the registration was lost: registering again");
                        self.hold = None;
                        self.replay.stop();
                        self.state.send_replace(false);
                        continue;
                    }
                    // Given up for an order, which may be the last one.
                    finding = self.inquire() => {
                        self.attend(finding).await;
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
                    self.record = *record;
                    let done = match &self.hold {
                        Some(_) => self.put_again(Mode::Replace).await,
                        None => self.enroll().await,
                    };
                    // The guard may have been dropped meanwhile.
                    reply.send(done).ok();
                }
                Some(Order::End(reply)) => {
                    reply.send(self.end().await).ok();
                    return;
                }
                None => {
                    // Nobody hears of it; if it fails, the TTL does it.
                    self.end().await.ok();
                    return;
                }
            }
        }
    }
}
