//! The one task of a client that keeps all of its sessions alive and cleans up behind dropped guards.
//!
//! Guards only change what is written here and wake the task, so that dropping one never blocks and
//! works outside a runtime. The task exists while there is something to keep or to clean up.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use conclave_proto::etcdserverpb::{LeaseKeepAliveRequest, lease_client::LeaseClient};
use conclave_proto::v1::{
    ReleaseRequest, SessionOpenRequest, SessionOpenResponse,
    lock_service_client::LockServiceClient, session_service_client::SessionServiceClient,
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::SessionState;
use crate::{
    backoff::Backoff,
    client::{Client, Retry},
    endpoint::Endpoint,
    error::Error,
    moment::Moment,
    registry::Exit,
    undo::Undo,
};

/// Heartbeats are sent this many times within the shortest TTL.
const BEATS_PER_TTL: u32 = 3;
/// Part of the TTL by which the loss is reported early: clocks may differ in speed by this much.
const SKEW_DIVISOR: u32 = 50;
/// Time for a connection that answers nothing at all before another endpoint is tried.
const ANSWER_TIMEOUT_MAX: Duration = Duration::from_secs(3);
/// Heartbeats on the way; one is sent only after the one before was answered.
const REQUESTS_MAX: usize = 1;
/// Calls that clean up at the same time.
const CLEANING_MAX: usize = 64;
/// Dropped guards that wait for that; what is beyond ends with its session.
const CLEANUPS_MAX: usize = 100_000;

/// What a dropped guard leaves to do. Doing it twice does no harm.
#[derive(Debug, Clone)]
pub(crate) enum Cleanup {
    /// Tried once: the TTL does it otherwise.
    End(i64),
    /// Tried for as long as its session lives: nothing else would do it.
    Release(ReleaseRequest),
    /// As `Release`.
    Undo(Arc<Undo>),
    /// As `Release`.
    Deregister(Arc<Exit>),
}

/// A cleanup that waits for its turn, and how long it has to pause if it fails again.
#[derive(Debug)]
struct Left {
    cleanup: Cleanup,
    backoff: Backoff,
}

/// A session that the server has begun.
pub(super) struct Begun {
    pub(super) id: i64,
    pub(super) ttl: Duration,
    /// When it was asked for.
    pub(super) sent: Moment,
    /// Whether the server knows it as a lease only, as then all of this client.
    pub(super) is_lease: bool,
    /// To be cancelled when it is lost.
    pub(super) lost: CancellationToken,
}

/// The sessions of a client.
#[derive(Debug)]
pub(crate) struct Heart {
    kept: Mutex<Kept>,
    /// Counts changes of `kept` that the task must know of.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    sessions: HashMap<i64, Tracked>,
    cleanups: VecDeque<Left>,
    cleaning: usize,
    /// Sessions that are forgotten and not ended: see [`Ending`].
    ending: usize,
    is_running: bool,
    are_leases: bool,
}

impl Kept {
    /// Whether what failed is to be tried again.
    fn is_due(&self, left: &Left) -> bool {
        match &left.cleanup {
            Cleanup::End(_) => false,
            Cleanup::Release(request) => self.sessions.contains_key(&request.session),
            Cleanup::Undo(undo) => self.sessions.contains_key(&undo.session),
            Cleanup::Deregister(exit) => self.sessions.contains_key(&exit.session()),
        }
    }

    fn leave(&mut self, left: Left) {
        if self.cleanups.len() < CLEANUPS_MAX {
            self.cleanups.push_back(left);
        }
    }
}

#[derive(Debug)]
struct Tracked {
    ttl: Duration,
    /// When the last heartbeat that was answered was sent.
    confirmed: Moment,
    state: watch::Sender<SessionState>,
    lost: CancellationToken,
}

impl Tracked {
    /// From here on the server may end it.
    fn lost_at(&self) -> Moment {
        self.confirmed + (self.ttl - self.ttl / SKEW_DIVISOR)
    }

    fn jeopardy_at(&self) -> Moment {
        self.confirmed + self.ttl * 2 / 3
    }

    fn set(&self, state: SessionState) {
        self.state.send_if_modified(|known| std::mem::replace(known, state) != state);
        if state == SessionState::Lost {
            self.lost.cancel();
        }
    }
}

/// A session that is to be ended, in the background if this is dropped before it is done.
#[must_use = "it is ended in the background when this is dropped"]
pub(super) struct Ending<'a> {
    heart: &'a Heart,
    id: i64,
    is_counted: bool,
    is_done: bool,
}

impl Ending<'_> {
    /// Nothing is left to do.
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        {
            let mut kept = self.heart.kept.lock();
            // All is over if the task ended meanwhile with its runtime.
            kept.ending = kept.ending.saturating_sub(1);
            if !self.is_done && kept.is_running {
                let cleanup = Cleanup::End(self.id);
                kept.leave(Left { cleanup, backoff: Backoff::default() });
            }
        }
        self.heart.wake();
    }
}

/// The task. If it ends before everything is done, because its runtime ends, the sessions are lost.
struct Beating {
    heart: Arc<Heart>,
    is_idle: bool,
}

impl Beating {
    async fn run(mut self, client: Client) {
        let heart = &self.heart;
        tokio::select! {
            () = heart.watch_clock() => {}
            () = heart.beat(&client) => {}
            () = heart.clean_up(&client) => {}
            () = heart.idle() => self.is_idle = true,
        }
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        // Somebody else may run already if it is idle.
        if !self.is_idle {
            self.heart.stop();
        }
    }
}

impl Default for Heart {
    fn default() -> Self {
        Self { kept: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Heart {
    /// Keeps a new session alive.
    pub(super) fn keep(
        self: &Arc<Self>,
        client: &Client,
        begun: Begun,
    ) -> watch::Receiver<SessionState> {
        let Begun { id, ttl, sent, is_lease, lost } = begun;
        let (state, states) = watch::channel(SessionState::Active);
        let is_running = {
            let mut kept = self.kept.lock();
            kept.are_leases = is_lease;
            kept.sessions.insert(id, Tracked { ttl, confirmed: sent, state, lost });
            std::mem::replace(&mut kept.is_running, true)
        };
        self.wake();
        if !is_running {
            // Ends by itself when nothing is left to do.
            let beating = Beating { heart: Arc::clone(self), is_idle: false };
            client.spawn(beating.run(client.clone()));
        }
        states
    }

    /// Whether a session lives, by the clock.
    pub(super) fn is_alive(&self, id: i64) -> bool {
        let kept = self.kept.lock();
        kept.sessions.get(&id).is_some_and(|tracked| Moment::now() < tracked.lost_at())
    }

    /// Stops keeping a session alive, which somebody ends: the heart, in the background, if they do not.
    pub(super) fn forget(&self, id: i64) -> Ending<'_> {
        let tracked = {
            let mut kept = self.kept.lock();
            let tracked = kept.sessions.remove(&id);
            kept.ending += usize::from(tracked.is_some());
            tracked
        };
        if let Some(tracked) = &tracked {
            tracked.set(SessionState::Lost);
        }
        self.wake();
        Ending { heart: self, id, is_counted: tracked.is_some(), is_done: false }
    }

    /// Stops keeping a session alive and ends it in the background.
    pub(super) fn end(&self, id: i64) {
        drop(self.forget(id));
    }

    /// Cleans up in the background. Somebody must still hold the session that it is about, so that the
    /// task runs.
    pub(crate) fn clean(&self, cleanup: Cleanup) {
        let mut kept = self.kept.lock();
        if kept.is_running {
            kept.leave(Left { cleanup, backoff: Backoff::default() });
        }
        drop(kept);
        self.wake();
    }

    fn wake(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// Nobody keeps the sessions alive any more.
    fn stop(&self) {
        let stopped = std::mem::take(&mut *self.kept.lock());
        if !stopped.sessions.is_empty() {
            tracing::warn!(sessions = stopped.sessions.len(), "sessions lost with their runtime");
        }
        for tracked in stopped.sessions.values() {
            tracked.set(SessionState::Lost);
        }
    }

    /// Returns when nothing is left to do and the task is marked as ended.
    async fn idle(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            {
                let mut kept = self.kept.lock();
                let is_idle = kept.sessions.is_empty()
                    && kept.cleanups.is_empty()
                    && kept.cleaning == 0
                    && kept.ending == 0;
                if is_idle {
                    kept.is_running = false;
                    return;
                }
            }
            self.changed(&mut changes).await;
        }
    }

    async fn changed(&self, changes: &mut watch::Receiver<u64>) {
        changes.changed().await.expect("invariant: the sender is in `self`");
    }

    /// Tells sessions what the clock says about them. Never returns.
    async fn watch_clock(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            match self.judge(Moment::now()) {
                Some(next) => tokio::select! {
                    () = next.reached() => {}
                    () = self.changed(&mut changes) => {}
                },
                None => self.changed(&mut changes).await,
            }
        }
    }

    /// Returns when it has to be done again.
    fn judge(&self, now: Moment) -> Option<Moment> {
        let mut next: Option<Moment> = None;
        let mut kept = self.kept.lock();
        kept.sessions.retain(|id, tracked| {
            let (jeopardy_at, lost_at) = (tracked.jeopardy_at(), tracked.lost_at());
            let (state, until) = if now >= lost_at {
                tracing::debug!(session = id, "session lost");
                tracked.set(SessionState::Lost);
                return false;
            } else if now >= jeopardy_at {
                (SessionState::Jeopardy, lost_at)
            } else {
                (SessionState::Active, jeopardy_at)
            };
            tracked.set(state);
            next = Some(next.map_or(until, |next| next.min(until)));
            true
        });
        next
    }

    /// Sends heartbeats, on one endpoint after the other. Never returns.
    async fn beat(&self, client: &Client) {
        let mut backoff = Backoff::default();
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if self.shortest_ttl().is_none() {
                self.changed(&mut changes).await;
                continue;
            }
            let endpoint = client.endpoint();
            let are_leases = self.kept.lock().are_leases;
            let streamed = if are_leases {
                self.stream_of_leases(&endpoint, &mut backoff).await
            } else {
                self.stream(&endpoint, &mut backoff).await
            };
            if streamed.is_none() {
                endpoint.failed();
                sleep(backoff.next()).await;
            }
        }
    }

    /// Keeps all sessions alive over one stream: `Some` when there is none left, `None` when it broke.
    async fn stream(&self, endpoint: &Endpoint, backoff: &mut Backoff) -> Option<()> {
        let mut changes = self.changes.subscribe();
        let mut attached = HashSet::new();
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let mut answers: Option<Streaming<SessionOpenResponse>> = None;
        let mut outgoing = Some(ReceiverStream::new(outgoing));
        let mut sequence = 0;
        loop {
            let Some(ttl) = self.shortest_ttl() else { return Some(()) };
            let sent = Moment::now();
            let patience = (ttl / (2 * BEATS_PER_TTL)).min(ANSWER_TIMEOUT_MAX);
            sequence += 1;
            changes.mark_unchanged();
            requests.try_send(self.heartbeat(sequence, &mut attached)).ok()?;
            if let Some(outgoing) = outgoing.take() {
                let mut client = SessionServiceClient::new(endpoint.channel());
                let opened = client.open(outgoing);
                let opened = self.answered((sent, patience), &attached, opened).await?;
                answers = Some(opened.into_inner());
            }
            let answer = answers.as_mut()?.message();
            let answer = self.answered((sent, patience), &attached, answer).await??;
            endpoint.succeeded();
            backoff.reset();
            self.confirm(sent, &mut attached, &answer);
            self.pause(sent, &attached, &mut changes).await;
        }
    }

    /// As [`Heart::stream`], to a server that knows leases only: each is renewed by a message of its own.
    async fn stream_of_leases(&self, endpoint: &Endpoint, backoff: &mut Backoff) -> Option<()> {
        let mut changes = self.changes.subscribe();
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let mut answers = None;
        let mut outgoing = Some(ReceiverStream::new(outgoing));
        loop {
            let Some(ttl) = self.shortest_ttl() else { return Some(()) };
            let patience = (ttl / (2 * BEATS_PER_TTL)).min(ANSWER_TIMEOUT_MAX);
            changes.mark_unchanged();
            let mut ids: HashSet<i64> = self.kept.lock().sessions.keys().copied().collect();
            let round = Moment::now();
            for id in ids.clone() {
                let sent = Moment::now();
                requests.try_send(LeaseKeepAliveRequest { id }).ok()?;
                if let Some(outgoing) = outgoing.take() {
                    let mut client = LeaseClient::new(endpoint.channel());
                    let opened = client.lease_keep_alive(outgoing);
                    let opened = self.answered((sent, patience), &ids, opened).await?;
                    answers = Some(opened.into_inner());
                }
                let answer = answers.as_mut()?.message();
                let answer = self.answered((sent, patience), &ids, answer).await??;
                let lost = if answer.ttl > 0 { Vec::new() } else { vec![id] };
                let answer = SessionOpenResponse { sequence: 0, lost };
                self.confirm(sent, &mut HashSet::from([id]), &answer);
                ids.retain(|kept| !answer.lost.contains(kept));
            }
            endpoint.succeeded();
            backoff.reset();
            self.pause(round, &ids, &mut changes).await;
        }
    }

    /// Waits for the answer to what was `sent` then. Not for as long that a session that was begun since, and is
    /// not `attached`, is lost: it has its first heartbeat on the next stream.
    async fn answered<T>(
        &self,
        (sent, patience): (Moment, Duration),
        attached: &HashSet<i64>,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Option<T> {
        tokio::select! {
            answer = timeout((sent + patience).left(), answer) => answer.ok()?.ok(),
            () = self.newcomer_due(sent, attached) => None,
        }
    }

    /// Returns when a session that is not `attached` can wait no longer for the answer to what others `sent`.
    async fn newcomer_due(&self, sent: Moment, attached: &HashSet<i64>) {
        let mut changes = self.changes.subscribe();
        let due = |tracked: &Tracked| {
            let heartbeat = tracked.confirmed + tracked.ttl / BEATS_PER_TTL;
            heartbeat.max(sent + tracked.ttl / (2 * BEATS_PER_TTL))
        };
        loop {
            changes.mark_unchanged();
            let next = {
                let kept = self.kept.lock();
                let new = kept.sessions.iter().filter(|(id, _)| !attached.contains(id));
                new.map(|(_, tracked)| due(tracked)).min()
            };
            match next {
                Some(next) => tokio::select! {
                    () = next.reached() => return,
                    () = self.changed(&mut changes) => {}
                },
                None => self.changed(&mut changes).await,
            }
        }
    }

    fn shortest_ttl(&self) -> Option<Duration> {
        self.kept.lock().sessions.values().map(|tracked| tracked.ttl).min()
    }

    /// The next message of a stream on which `attached` are known.
    fn heartbeat(&self, sequence: u64, attached: &mut HashSet<i64>) -> SessionOpenRequest {
        let kept = self.kept.lock();
        let attach: Vec<i64> =
            kept.sessions.keys().filter(|id| !attached.contains(*id)).copied().collect();
        let detach: Vec<i64> =
            attached.iter().filter(|id| !kept.sessions.contains_key(*id)).copied().collect();
        attached.extend(&attach);
        attached.retain(|id| kept.sessions.contains_key(id));
        SessionOpenRequest { sequence, attach, detach }
    }

    fn confirm(&self, sent: Moment, attached: &mut HashSet<i64>, answer: &SessionOpenResponse) {
        let mut kept = self.kept.lock();
        for id in &answer.lost {
            attached.remove(id);
            if let Some(tracked) = kept.sessions.remove(id) {
                tracked.set(SessionState::Lost);
            }
        }
        let now = Moment::now();
        for id in attached.iter() {
            // What the clock gave up is lost, whatever the server says: somebody may have asked already.
            if let Some(tracked) = kept.sessions.get_mut(id)
                && now < tracked.lost_at()
            {
                tracked.confirmed = tracked.confirmed.max(sent);
            }
        }
        drop(kept);
        // The clock has a new moment to wait for.
        self.wake();
    }

    /// Waits until the next heartbeat is due, or a session waits for its first.
    async fn pause(
        &self,
        sent: Moment,
        attached: &HashSet<i64>,
        changes: &mut watch::Receiver<u64>,
    ) {
        loop {
            changes.mark_unchanged();
            let due = {
                let kept = self.kept.lock();
                if kept.sessions.keys().any(|id| !attached.contains(id)) {
                    return;
                }
                let ttl = kept.sessions.values().map(|tracked| tracked.ttl).min();
                let Some(ttl) = ttl else { return };
                sent + ttl / BEATS_PER_TTL
            };
            tokio::select! {
                () = due.reached() => return,
                () = self.changed(changes) => {}
            }
        }
    }

    /// Does what dropped guards left to do. Never returns.
    async fn clean_up(&self, client: &Client) {
        let mut changes = self.changes.subscribe();
        let mut cleaning = JoinSet::new();
        loop {
            changes.mark_unchanged();
            while cleaning.len() < CLEANING_MAX {
                let next = {
                    let mut kept = self.kept.lock();
                    let next = kept.cleanups.pop_front();
                    kept.cleaning += usize::from(next.is_some());
                    next
                };
                let Some(left) = next else { break };
                cleaning.spawn(clean(client.clone(), left));
            }
            tokio::select! {
                Some(done) = cleaning.join_next() => {
                    let mut kept = self.kept.lock();
                    kept.cleaning -= 1;
                    if let Some(left) = done.ok().flatten().filter(|left| kept.is_due(left)) {
                        kept.leave(left);
                    }
                    drop(kept);
                    self.wake();
                }
                () = self.changed(&mut changes) => {}
            }
        }
    }
}

/// Returns, after a pause, what may succeed later.
async fn clean(client: Client, mut left: Left) -> Option<Left> {
    let done = match left.cleanup.clone() {
        Cleanup::End(id) => client.session_end(id).await,
        Cleanup::Release(request) => release(&client, request).await.map(drop),
        Cleanup::Undo(undo) => undo.carry_out(&client).await.map(drop),
        Cleanup::Deregister(exit) => exit.carry_out(&client).await,
    };
    let error = match done {
        Ok(()) | Err(Error::NotFound(_)) => return None,
        Err(error) => error,
    };
    let cleanup = &left.cleanup;
    tracing::debug!(?cleanup, %error, "cleaning up after a dropped guard failed");
    let is_final = matches!(
        error,
        Error::Invalid(_) | Error::Refused(_) | Error::Denied(_) | Error::Unimplemented(_)
    );
    if is_final || matches!(cleanup, Cleanup::End(_)) {
        return None;
    }
    sleep(left.backoff.next()).await;
    Some(left)
}

/// Gives up what a request has or waits for; safe to repeat. Says whether there was something, or may have
/// been.
pub(crate) async fn release(client: &Client, request: ReleaseRequest) -> Result<bool, Error> {
    let call = |channel| {
        let request = request.clone();
        async move { LockServiceClient::new(channel).release(request).await }
    };
    // What an attempt gave up whose answer was lost is not there any more for the next one.
    let (answer, doubt) = client.call(call, Retry::Read).await?;
    Ok(answer.released || doubt.is_some())
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};

    use super::*;
    use crate::moment::sleep_through;

    fn begin(heart: &Heart, id: i64, ttl: Duration) {
        let (confirmed, state) = (Moment::now(), watch::Sender::new(SessionState::Active));
        let tracked = Tracked { ttl, confirmed, state, lost: CancellationToken::new() };
        heart.kept.lock().sessions.insert(id, tracked);
        heart.wake();
    }

    #[tokio::test]
    async fn a_session_is_lost_while_the_machine_sleeps() {
        let (heart, ttl) = (Heart::default(), Duration::from_secs(600));
        begin(&heart, 1, ttl);
        let (mut state, lost) = {
            let kept = heart.kept.lock();
            (kept.sessions[&1].state.subscribe(), kept.sessions[&1].lost.clone())
        };
        let heard = async {
            sleep_through(ttl * 7 / 10);
            state.wait_for(|state| *state == SessionState::Jeopardy).await.unwrap();
            assert!(heart.is_alive(1));
            sleep_through(ttl * 3 / 10);
            assert!(!heart.is_alive(1), "at once");
            let (mut attached, answer) = (HashSet::from([1]), SessionOpenResponse::default());
            heart.confirm(Moment::now(), &mut attached, &answer);
            assert!(!heart.is_alive(1), "for good");
            lost.cancelled().await;
        };
        let soon = timeout(Duration::from_secs(60), heard);
        tokio::select! {
            heard = soon => heard.expect("the clock is looked at"),
            () = heart.watch_clock() => unreachable!("it goes on"),
        }
        assert!(heart.kept.lock().sessions.is_empty());
    }

    #[tokio::test]
    async fn a_heartbeat_under_way_holds_up_no_session_that_is_begun_meanwhile() {
        let heart = Heart::default();
        begin(&heart, 1, Duration::from_secs(600));
        let (sent, attached) = (Moment::now(), HashSet::from([1]));
        let unanswered = std::future::pending::<Result<(), Status>>();
        let long = (sent, Duration::from_secs(3_600));
        let mut answered = std::pin::pin!(heart.answered(long, &attached, unanswered));
        begin(&heart, 2, Duration::from_secs(600));
        assert!(poll!(&mut answered).is_pending(), "there is time yet");
        begin(&heart, 3, Duration::ZERO);
        let ended = timeout(Duration::from_secs(60), answered).await;
        assert_eq!(ended.expect("it cannot wait"), None);
        let all = HashSet::from([1, 2, 3]);
        let answer = heart.answered(long, &all, async { Ok(7) });
        assert_eq!(answer.now_or_never(), Some(Some(7)));
    }
}
