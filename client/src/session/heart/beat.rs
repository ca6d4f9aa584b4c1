//! Heartbeats: one stream for all sessions of a client, on one endpoint at a time.

use std::collections::HashSet;
use std::time::Duration;

use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use conclave_proto::v1::session_service_client::SessionServiceClient;
use conclave_proto::v1::{SessionOpenRequest, SessionOpenResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Heart;
use super::kept::Tracked;
use crate::backoff::Backoff;
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::moment::Moment;
use crate::session::SessionState;

/// Heartbeats sent within the shortest TTL.
const BEATS_PER_TTL: u32 = 3;
/// Most time for a silent endpoint to answer before another one is tried.
const ANSWER_TIMEOUT_MAX: Duration = Duration::from_secs(3);
/// Heartbeats in flight; one is sent only after the previous one was answered.
const REQUESTS_MAX: usize = 1;
/// Lease renewals in flight at the same time, to a server that knows no sessions.
const RENEWALS_MAX: usize = 1_024;

impl Heart {
    /// Sends heartbeats, on one endpoint after another. Never returns.
    pub(super) async fn beat(&self, client: &Client) {
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

    /// Keeps all sessions alive over one stream. Returns `Some` when no session is left, `None`
    /// when the stream broke.
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
            let heartbeat = self.heartbeat(sequence, &mut attached);
            let newcomers = heartbeat.attach.clone();
            requests.try_send(heartbeat).ok()?;
            if let Some(outgoing) = outgoing.take() {
                let mut client = SessionServiceClient::new(endpoint.channel());
                let opened = client.open(outgoing);
                let opened = self.answered((sent, patience), &attached, opened).await?;
                answers = Some(opened.into_inner());
            }
            let answers = answers.as_mut()?;
            loop {
                let answer = answers.message();
                let answer = self.answered((sent, patience), &attached, answer).await??;
                if answer.sequence == sequence {
                    self.confirm(sent, &mut attached, &answer);
                    break;
                }
                self.told(answer, &mut attached);
            }
            endpoint.succeeded();
            backoff.reset();
            if !newcomers.is_empty() {
                // From now on the stream reports what is taken from them. Check what was taken
                // before.
                self.doubt(|session| newcomers.contains(&session));
            }
            self.listen(answers, sent, &mut attached).await?;
        }
    }

    /// Like [`Heart::stream`], to a server that knows only leases: each lease is renewed by a
    /// message of its own.
    async fn stream_of_leases(&self, endpoint: &Endpoint, backoff: &mut Backoff) -> Option<()> {
        let mut changes = self.changes.subscribe();
        let (requests, outgoing) = mpsc::channel(RENEWALS_MAX);
        let mut answers = None;
        let mut outgoing = Some(ReceiverStream::new(outgoing));
        loop {
            let Some(ttl) = self.shortest_ttl() else { return Some(()) };
            let patience = (ttl / (2 * BEATS_PER_TTL)).min(ANSWER_TIMEOUT_MAX);
            changes.mark_unchanged();
            let mut ids: HashSet<i64> = self.kept.lock().sessions.keys().copied().collect();
            let round = Moment::now();
            let all: Vec<i64> = ids.iter().copied().collect();
            for together in all.chunks(RENEWALS_MAX) {
                let sent = Moment::now();
                for id in together {
                    requests.try_send(LeaseKeepAliveRequest { id: *id }).ok()?;
                }
                if let Some(outgoing) = outgoing.take() {
                    let mut client = LeaseClient::new(endpoint.channel());
                    let opened = client.lease_keep_alive(outgoing);
                    let opened = self.answered((sent, patience), &ids, opened).await?;
                    answers = Some(opened.into_inner());
                }
                let mut waiting: HashSet<i64> = together.iter().copied().collect();
                while !waiting.is_empty() {
                    let answer = answers.as_mut()?.message();
                    let answer = self.answered((sent, patience), &ids, answer).await??;
                    if waiting.remove(&answer.id) && !self.renewed(&answer, sent) {
                        ids.remove(&answer.id);
                    }
                }
            }
            endpoint.succeeded();
            backoff.reset();
            self.pause(round, &ids, &mut changes).await;
        }
    }

    /// Handles the answer to a renewal `sent` then; true if the lease lives.
    fn renewed(&self, answer: &LeaseKeepAliveResponse, sent: Moment) -> bool {
        let is_alive = answer.ttl > 0;
        let lost = if is_alive { Vec::new() } else { vec![answer.id] };
        let answered = SessionOpenResponse { lost, ..SessionOpenResponse::default() };
        self.confirm(sent, &mut HashSet::from([answer.id]), &answered);
        is_alive
    }

    /// Waits for the answer to what was `sent` then. Returns `None` early if a session begun since,
    /// which is not `attached`, could be lost meanwhile: it gets its first heartbeat on the next
    /// stream.
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

    /// Returns when a session that is not `attached` cannot wait any longer for the answer to the
    /// heartbeat `sent` for the others.
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

    /// The next message of a stream; brings `attached`, the sessions known on it, up to date.
    fn heartbeat(&self, sequence: u64, attached: &mut HashSet<i64>) -> SessionOpenRequest {
        let kept = self.kept.lock();
        let attach: Vec<i64> =
            kept.sessions.keys().filter(|id| !attached.contains(*id)).copied().collect();
        let detach: Vec<i64> =
            attached.iter().filter(|id| !kept.sessions.contains_key(*id)).copied().collect();
        attached.extend(&attach);
        attached.retain(|id| kept.sessions.contains_key(id));
        SessionOpenRequest { sequence, attach, detach, tell_taken: true }
    }

    fn confirm(&self, sent: Moment, attached: &mut HashSet<i64>, answer: &SessionOpenResponse) {
        self.ended(&answer.lost, attached);
        let mut kept = self.kept.lock();
        let now = Moment::now();
        for id in attached.iter() {
            if let Some(tracked) = kept.sessions.get_mut(id) {
                tracked.confirm(sent, now);
            }
        }
        drop(kept);
        // The clock task has a new moment to wait for.
        self.wake();
    }

    /// Marks these sessions as ended.
    pub(super) fn ended(&self, lost: &[i64], attached: &mut HashSet<i64>) {
        let mut kept = self.kept.lock();
        for id in lost {
            attached.remove(id);
            if let Some(tracked) = kept.sessions.remove(id) {
                tracked.set(SessionState::Lost);
            }
        }
    }

    /// Handles a message that answers no heartbeat.
    fn told(&self, told: SessionOpenResponse, attached: &mut HashSet<i64>) {
        self.ended(&told.lost, attached);
        if told.unsure {
            self.doubt(|session| attached.contains(&session));
        }
        for taken in told.taken {
            self.taken(taken);
        }
        // The task may have nothing left to do.
        self.wake();
    }

    /// Handles reports until the next heartbeat is due; `None` if the stream broke.
    async fn listen(
        &self,
        answers: &mut Streaming<SessionOpenResponse>,
        sent: Moment,
        attached: &mut HashSet<i64>,
    ) -> Option<()> {
        let mut changes = self.changes.subscribe();
        loop {
            let told = tokio::select! {
                told = answers.message() => told.ok()??,
                () = self.pause(sent, attached, &mut changes) => return Some(()),
            };
            self.told(told, attached);
        }
    }

    /// Waits until the next heartbeat is due, or a new session needs its first one.
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
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};
    use tokio_util::sync::CancellationToken;

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
