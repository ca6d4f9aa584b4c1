//! When to register an instance again that was removed because it was critical for too long,
//! although its owner is alive.
//!
//! The owner asks from time to time for the state of its instance, but only if a check may remove
//! it or the program wants that, so that other instances cost nothing. What an operator or another
//! session took away stays away. After a re-registration the health is unknown, and the instance
//! gets no calls until its checks pass; while they do not, it is registered at growing intervals.

use std::time::Duration;

use conclave_proto::v1::{
    DiscoverRequest, DiscoverResponse, Instance, instance_change::Reason,
    registry_service_client::RegistryServiceClient,
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

use super::{Record, Service, hold::Mark};
use crate::{backoff::exponential, error::Error};

/// Shortest and longest interval at which the owner asks.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Pause before the first re-registration, doubled by each one that did not help.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Largest share by which a pause is shortened at random.
const JITTER: f64 = 0.2;
/// Time limit for a connection to a checked address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the keeper of a registration does next, besides orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Ask for the state of the instance.
    Look,
    /// Register it again, if its checks may pass and nobody removed it on purpose.
    Replay,
}

/// The state of an id in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// An instance is registered.
    There {
        /// Which registration it is.
        mark: Mark,
        /// Whether it gets calls.
        is_healthy: bool,
        /// Its address.
        address: String,
    },
    /// It was removed because it was critical for too long.
    Critical,
    /// Somebody removed it, or its drain time is over; the text says which.
    Removed(&'static str),
    /// Not registered, because of its session or its owner, or for an unknown reason.
    Absent,
}

/// The schedule of one registration.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// How often to ask even if no check may remove the instance.
    every: Option<Duration>,
    next: Option<(Instant, Task)>,
    /// Re-registrations since it was last healthy.
    times: u32,
}

impl Replay {
    pub(super) fn new(every: Option<Duration>) -> Self {
        let every = every.map(|every| every.clamp(LOOK_MIN, LOOK_MAX));
        Self { every, ..Self::default() }
    }

    /// Schedules the next look after a registration, if a check may remove the instance.
    pub(super) fn registered(&mut self, record: &Record) {
        let every = look_every(record).into_iter().chain(self.every).min();
        self.next = every.map(|every| (Instant::now() + jittered(every), Task::Look));
    }

    /// Handles the answer to [`Task::Look`] that it is registered.
    pub(super) fn stands(&mut self, record: &Record, is_healthy: bool) {
        if is_healthy {
            self.times = 0;
        }
        self.registered(record);
    }

    /// Schedules a re-registration; the pause before the following one is longer.
    pub(super) fn postpone(&mut self) {
        self.next = Some((Instant::now() + self.pause(), Task::Replay));
    }

    /// Schedules a look after `pause`, because the outcome of the last attempt is unknown.
    pub(super) fn look_in(&mut self, pause: Duration) {
        self.next = Some((Instant::now() + pause, Task::Look));
    }

    fn pause(&mut self) -> Duration {
        let pause = exponential(PAUSE_MIN, PAUSE_MAX, self.times);
        self.times = self.times.saturating_add(1);
        jittered(pause)
    }

    /// Cancels the schedule: the session is lost, and the instance will be registered with another
    /// one.
    pub(super) fn stop(&mut self) {
        self.next = None;
    }

    /// Waits until a task is due. Cancel-safe: the task stays due.
    pub(super) async fn due(&self) -> Task {
        let Some((at, task)) = self.next else { return std::future::pending().await };
        sleep_until(at).await;
        task
    }
}

/// Whether a check may remove the instance.
pub(super) fn is_looked_after(record: &Record) -> bool {
    look_every(record).is_some()
}

fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(1.0 - JITTER..=1.0))
}

/// How often to ask for the state; `None` if no check may remove the instance.
fn look_every(record: &Record) -> Option<Duration> {
    let times = record.details.all_checks().map(|(_, check)| check.remove_after_ms);
    let soonest = times.filter(|time| *time > 0).min()?;
    Some(Duration::from_millis(soonest).clamp(LOOK_MIN, LOOK_MAX))
}

/// Asks for the state of an instance.
///
/// # Errors
/// See [`Error`].
pub(super) async fn look(service: &Service, id: &str) -> Result<Found, Error> {
    let request = DiscoverRequest {
        service: service.name.clone(),
        id: id.to_owned(),
        ..DiscoverRequest::default()
    };
    let call = |channel| {
        let request = request.clone();
        let client = RegistryServiceClient::new(channel);
        async move { client.max_decoding_message_size(usize::MAX).discover(request).await }
    };
    Ok(read(id, &service.client.read(call).await?))
}

/// Reads the state from the answer. A server that cannot select one id lists all, and tells no
/// reason.
fn read(id: &str, answer: &DiscoverResponse) -> Found {
    match answer.instances.iter().find(|instance| instance.id == id) {
        // A stale instance, kept by the guard against mass loss, has no owner.
        Some(instance) if instance.stale => Found::Absent,
        Some(Instance { session, fence, healthy, address, .. }) => {
            let mark = Mark { session: *session, fence: *fence };
            Found::There { mark, is_healthy: *healthy, address: address.clone() }
        }
        None => match answer.removed() {
            Reason::Critical => Found::Critical,
            Reason::Admin => Found::Removed("somebody removed the instance"),
            Reason::Deleted => Found::Removed("somebody deleted the key of the instance"),
            Reason::Drained => {
                Found::Removed("the instance was removed: its time to drain was over")
            }
            _ => Found::Absent,
        },
    }
}

/// Whether all checked addresses accept connections, which every check needs at least.
pub(super) async fn has_chance(record: &Record) -> bool {
    let connects = record.details.all_checks().map(|(_, check)| async move {
        let place = check.place(&record.address);
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(place)).await;
        matches!(connected, Ok(Ok(_)))
    });
    all(connects).await
}

/// Whether all of these are true. They run at the same time, and the first false one ends it.
async fn all(asked: impl Iterator<Item = impl Future<Output = bool>>) -> bool {
    let mut asked: FuturesUnordered<_> = asked.collect();
    while let Some(is_so) = asked.next().await {
        if !is_so {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, sync::Barrier};

    use super::*;
    use crate::registry::Check;

    fn record(remove_after_ms: [u64; 2]) -> Record {
        let mut record = Record::new("h:1");
        let [unnamed, named] =
            remove_after_ms.map(|remove_after_ms| Check { remove_after_ms, ..Check::default() });
        record.details.check = Some(unnamed);
        record.details.checks.insert("live".to_owned(), named);
        record
    }

    #[test]
    fn an_instance_comes_back_ever_more_seldom_until_it_is_well() {
        let (mut replay, record) = (Replay::default(), record([0, 30_000]));
        let task = |replay: &Replay| replay.next.map(|(_, task)| task);
        replay.registered(&record);
        assert_eq!(task(&replay), Some(Task::Look));
        replay.stands(&record, false);
        assert_eq!((task(&replay), replay.times), (Some(Task::Look), 0));
        replay.postpone();
        assert_eq!((task(&replay), replay.times), (Some(Task::Replay), 1));
        let pauses: Vec<Duration> = (0..10).map(|_| replay.pause()).collect();
        assert!(pauses[0] <= PAUSE_MIN * 2 && pauses[9] >= PAUSE_MAX.mul_f64(1.0 - JITTER));
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX), "{pauses:?}");
        assert!(pauses[..7].is_sorted(), "{pauses:?}");
        replay.stands(&record, false);
        assert!(replay.times > 1, "it is not well yet");
        replay.stands(&record, true);
        assert!(replay.pause() <= PAUSE_MIN);
        replay.stop();
        assert_eq!(task(&replay), None);
    }

    #[test]
    fn who_wants_to_hear_of_it_asks_without_a_check_too() {
        let mut replay = Replay::new(Some(Duration::from_secs(5)));
        for (remove_after_ms, at_most) in [(0, 5), (2_000, 2), (50_000, 5)] {
            replay.registered(&record([remove_after_ms, 0]));
            let (at, task) = replay.next.expect("it asks");
            assert!(at <= Instant::now() + Duration::from_secs(at_most));
            assert_eq!(task, Task::Look);
        }
        let mut quiet = Replay::new(None);
        quiet.registered(&record([0, 0]));
        assert_eq!(quiet.next, None);
    }

    #[test]
    fn only_what_a_check_may_remove_is_asked_for() {
        assert_eq!(look_every(&record([0, 0])), None);
        assert_eq!(look_every(&record([500, 40_000])), Some(LOOK_MIN));
        assert_eq!(look_every(&record([90_000, 80_000])), Some(LOOK_MAX));
    }

    #[test]
    fn what_somebody_removed_is_told_from_what_comes_back() {
        let answer = |removed: Reason, instances: &[Instance]| DiscoverResponse {
            removed: removed.into(),
            instances: instances.to_vec(),
            ..DiscoverResponse::default()
        };
        let gone = |removed| read("a", &answer(removed, &[]));
        assert_eq!(gone(Reason::Critical), Found::Critical);
        for somebody in [Reason::Admin, Reason::Deleted, Reason::Drained] {
            assert!(matches!(gone(somebody), Found::Removed(_)), "{somebody:?}");
        }
        for nobody in [Reason::Unspecified, Reason::SessionExpired, Reason::Deregistered] {
            assert_eq!(gone(nobody), Found::Absent);
        }
        let instance = |id: &str, healthy| Instance {
            id: id.to_owned(),
            healthy,
            session: 1,
            fence: 2,
            ..Instance::default()
        };
        let stale = Instance { stale: true, ..instance("c", false) };
        let all = answer(Reason::Unspecified, &[instance("a", true), instance("b", false), stale]);
        let (mark, address) = (Mark { session: 1, fence: 2 }, String::new);
        let there = |is_healthy| Found::There { mark, is_healthy, address: address() };
        assert_eq!((read("a", &all), read("b", &all)), (there(true), there(false)));
        assert_eq!(read("c", &all), Found::Absent);
    }

    #[tokio::test]
    async fn all_targets_are_tried_at_the_same_time() {
        let met = Barrier::new(8);
        let meet = (0..8).map(async |_| {
            met.wait().await;
            true
        });
        let tried = timeout(Duration::from_secs(60), all(meet)).await;
        assert!(tried.expect("nobody waits for another to have ended"));
        let hang = (0..8).map(async |number| number != 3 && std::future::pending().await);
        assert!(!all(hang).await, "one is enough");
    }

    #[tokio::test]
    async fn who_takes_no_connection_has_no_chance() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut record = Record::new(format!("https://{address}"));
        record.details.check = Some(Check { tls: true, ..Check::default() });
        assert!(has_chance(&record).await, "the handshake is the server's to try");
        drop(listener);
        assert!(!has_chance(&record).await);
    }
}
