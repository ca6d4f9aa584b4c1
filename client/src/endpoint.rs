//! One server address: its channel, how busy it is, and whether it failed recently.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use conclave_transport::{ClientTls, Connector, Followed, Target};
use tonic::{
    Status,
    transport::{self, Endpoint as Transport},
};

use crate::{
    backoff,
    builder::Settings,
    error::Error,
    login::{Channel, Desk, Headers},
};

/// Large ranges and watch catch-up should not wait for window updates, as with the default 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The largest possible. What slow readers leave unread counts against this window, and if a few of
/// them filled it, heartbeats would not be answered any more. Each stream has its own bound.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// An endpoint that keeps failing is left alone for at most this long while others serve.
const DOWN_MAX: Duration = Duration::from_secs(5);
const DOWN_MIN: Duration = Duration::from_millis(100);

/// One address with its lazily connected channel.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: String,
    channel: transport::Channel,
    desk: Option<Arc<Desk>>,
    headers: Option<Headers>,
    in_flight: AtomicUsize,
    failures: AtomicU32,
    /// Milliseconds after `epoch` until which other endpoints are preferred.
    down_until_ms: AtomicU64,
    epoch: Instant,
}

impl Endpoint {
    /// Prepares a channel to an address; connects on first use.
    pub(crate) fn new(
        address: String,
        target: Target,
        tls: Option<Arc<Followed<ClientTls>>>,
        settings: &Settings,
    ) -> Self {
        let transport = Transport::from(target.origin().clone())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(settings.ping_interval)
            .keep_alive_timeout(settings.ping_timeout)
            // etcd drops a connection whose client pings while it has no request open.
            .keep_alive_while_idle(false);
        let connector = Connector::new(target, tls, settings.dial_timeout);
        Self {
            address,
            channel: transport.connect_with_connector_lazy(connector),
            desk: settings.login.clone().map(|login| Arc::new(Desk::new(login))),
            headers: settings.headers.clone(),
            in_flight: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            down_until_ms: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn channel(&self) -> Channel {
        Channel::new(self.channel.clone(), self.desk.clone(), self.headers.clone())
    }

    /// Whether calls carry a user's token.
    pub(crate) fn has_login(&self) -> bool {
        self.desk.is_some()
    }

    /// Converts the status that ended an open stream. If it says that the token was refused, which
    /// no header of the stream did, the next call fetches a new token.
    pub(crate) fn ended(&self, status: Status) -> Error {
        let error = Error::from_status(status, &self.address);
        if error.wants_login() {
            self.forget_token();
        }
        error
    }

    /// Makes the next call fetch a new token, after a watcher was refused for lack of a valid one.
    pub(crate) fn forget_token(&self) {
        if let Some(desk) = &self.desk {
            desk.forget();
        }
    }

    /// Counts a call as in flight until the guard is dropped.
    pub(crate) fn enter(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self)
    }

    /// Orders endpoints: those that work before those that failed, then the less busy ones.
    pub(crate) fn rank(&self) -> (bool, usize) {
        (self.is_down(), self.in_flight.load(Ordering::Relaxed))
    }

    fn is_down(&self) -> bool {
        let until = self.down_until_ms.load(Ordering::Relaxed);
        until > 0 && self.elapsed_ms() < until
    }

    pub(crate) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.down_until_ms.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        let down = backoff::exponential(DOWN_MIN, DOWN_MAX, failures);
        let down_ms = u64::try_from(down.as_millis()).unwrap_or(u64::MAX);
        let until = self.elapsed_ms().saturating_add(down_ms);
        self.down_until_ms.store(until, Ordering::Relaxed);
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A call in flight; see [`Endpoint::enter`].
pub(crate) struct InFlight<'a>(&'a Endpoint);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
