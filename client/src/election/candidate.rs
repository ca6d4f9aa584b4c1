//! A candidate in Conclave's election API: a stream that reports its state, reopened when it
//! breaks.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use conclave_proto::v1::{
    CampaignRequest, CampaignResponse, CheckFenceRequest, Elected, ProclaimRequest, ResignRequest,
    campaign_lost::Reason, campaign_response::Event,
    election_service_client::ElectionServiceClient,
};
use tokio::{
    sync::{oneshot, watch},
    time::sleep_until,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Response, Status, Streaming};

use crate::login::Channel;

use super::Waiting;
use crate::{
    client::Client,
    error::Error,
    loss::{Loss, Standing},
    once::Number,
    patience::{self, Ask, Heard, Patience},
    session::Session,
    undo::{Did, Kept},
};

/// An elected candidate.
#[derive(Debug)]
pub(super) struct Candidate {
    kept: Kept,
    elected: Elected,
    /// Set by the task that listens to the stream.
    standing: Arc<Standing>,
    /// Ends the listening task when dropped.
    _listening: DropGuard,
}

impl Candidate {
    /// Campaigns until elected, and meanwhile publishes the position in the queue.
    pub(super) async fn elected(
        (session, name): (Session, Bytes),
        value: Bytes,
        patience: Patience,
        waiting: watch::Sender<Option<Waiting>>,
    ) -> Result<Self, Error> {
        let ticket = session.request().await?;
        let (client, sequence) = (session.client().clone(), ticket.sequence());
        let standing = Arc::new(Standing::under(&session.lost()));
        let request = CampaignRequest {
            name: name.clone(),
            session: session.id(),
            value,
            ..Default::default()
        };
        let kept = Kept { session, name, sequence, did: Did::Campaign, open: None, is_over: false };
        let (outcome, elected) = oneshot::channel();
        let told = waiting.subscribe();
        let number = Number::Open(ticket);
        let (outcome, led) = (Some(outcome), None);
        let asked =
            Campaigning { request, number, attempts: AtomicU64::new(0), outcome, waiting, led };
        let listening = CancellationToken::new();
        // On the runtime of the connections: the guard may outlive the runtime on which it was
        // made.
        client.spawn(listen(client.clone(), asked, Arc::clone(&standing), listening.clone()));
        let listening = listening.drop_guard();
        let lost = kept.session.lost();
        let elected = tokio::select! {
            biased;
            () = lost.cancelled() => return Err(Error::session_lost()),
            elected = elected => elected.map_err(|_ended| Error::session_lost())??,
            () = patience_ends(patience, told) => return Err(Error::Busy),
        };
        // The answer may be old: without a live session it does not lead.
        if kept.session.is_lost() {
            return Err(Error::session_lost());
        }
        Ok(Self { kept, elected, standing, _listening: listening })
    }

    pub(super) fn key(&self) -> &Bytes {
        &self.elected.key
    }

    pub(super) fn name(&self) -> &Bytes {
        &self.kept.name
    }

    pub(super) fn token(&self) -> i64 {
        self.elected.fence
    }

    pub(super) fn revision(&self) -> i64 {
        self.elected.revision
    }

    pub(super) fn session(&self) -> &Session {
        &self.kept.session
    }

    pub(super) fn client(&self) -> &Client {
        self.kept.session.client()
    }

    pub(super) fn lost(&self) -> CancellationToken {
        self.standing.lost().clone()
    }

    pub(super) async fn jeopardy(&self) {
        self.kept.session.jeopardy().await;
    }

    pub(super) fn loss(&self) -> Option<Loss> {
        let session = || self.kept.session.is_lost().then_some(Loss::Session);
        self.standing.loss().cloned().or_else(session)
    }

    pub(super) async fn is_held(&self) -> Result<bool, Error> {
        let name = self.kept.name.clone();
        let request = CheckFenceRequest { name, fence: self.elected.fence, key: Bytes::new() };
        self.client().ask_fence(request).await.map(|answer| answer.held)
    }

    pub(super) async fn proclaim(&self, value: Bytes) -> Result<(), Error> {
        let name = self.kept.name.clone();
        let (session, fence) = (self.kept.session.id(), self.elected.fence);
        let request = ProclaimRequest { name, session, fence, value };
        let call = |channel| {
            let request = request.clone();
            async move { ElectionServiceClient::new(channel).proclaim(request).await }
        };
        // Never retried: a late copy would undo a later proclamation.
        match self.client().write(call).await {
            Err(Error::Refused(_)) => Err(Error::lost("it does not lead any more")),
            said => said.map(drop),
        }
    }

    pub(super) async fn resign(self) -> Result<(), Error> {
        let standing = self.standing;
        let is_lost = self.kept.session.is_lost();
        let has_led = match self.kept.undo().await {
            Err(Error::Lost { .. }) if is_lost => false,
            done => done?,
        };
        let unknown = if is_lost { Loss::Session } else { Loss::Removed };
        if has_led { Ok(()) } else { Err(standing.loss().unwrap_or(&unknown).error()) }
    }

    pub(super) async fn resign_to(mut self, hand_over_to: Bytes) -> Result<(), Error> {
        let name = self.kept.name.clone();
        let (session, fence) = (self.kept.session.id(), self.elected.fence);
        let request = ResignRequest { name, session, fence, hand_over_to, once: None };
        let call = |channel| {
            let request = request.clone();
            async move { ElectionServiceClient::new(channel).resign(request).await }
        };
        self.client().write(call).await?;
        self.kept.is_over = true;
        Ok(())
    }
}

/// Returns when the time to wait is over. Without a wait, that is as soon as other candidates are
/// known to be ahead.
async fn patience_ends(patience: Patience, mut told: watch::Receiver<Option<Waiting>>) {
    match patience {
        Patience::Forever => std::future::pending().await,
        Patience::Until(deadline) => sleep_until(deadline).await,
        Patience::None(give_up) => tokio::select! {
            Ok(_) = told.wait_for(is_behind) => {}
            () = sleep_until(give_up) => {}
        },
    }
}

/// Whether other candidates are ahead. Another leader says less: one that has resigned may be
/// reported for a moment.
fn is_behind(told: &Option<Waiting>) -> bool {
    told.as_ref().is_some_and(|waiting| waiting.ahead > 0)
}

/// Listens until the candidate is gone or the guard is dropped.
async fn listen(
    client: Client,
    mut asked: Campaigning,
    standing: Arc<Standing>,
    listening: CancellationToken,
) {
    let end = tokio::select! {
        () = listening.cancelled() => return,
        end = patience::wait(&client, Patience::Forever, &mut asked) => end,
    };
    let error = match end {
        Ok(loss) => {
            standing.lose(loss.clone());
            loss.error()
        }
        Err(error) => {
            // Whatever the error is, the state of the candidate is no longer reported.
            standing.lose(Loss::Removed);
            error
        }
    };
    if let Some(outcome) = asked.outcome {
        // The receiver may be gone.
        outcome.send(Err(error)).ok();
    }
}

struct Campaigning {
    request: CampaignRequest,
    number: Number,
    /// Streams opened so far.
    attempts: AtomicU64,
    /// Taken when the candidate is elected.
    outcome: Option<oneshot::Sender<Result<Elected, Error>>>,
    /// Its position, once it is known to wait.
    waiting: watch::Sender<Option<Waiting>>,
    /// The fence of its leadership, once elected.
    led: Option<i64>,
}

impl Campaigning {
    /// Updates the position, and publishes it if it has changed.
    fn tell(&self, change: impl FnOnce(&mut Waiting)) {
        self.waiting.send_if_modified(|told| {
            let mut waiting = told.clone().unwrap_or_default();
            change(&mut waiting);
            let waiting = Some(waiting);
            let is_news = *told != waiting;
            *told = waiting;
            is_news
        });
    }
}

impl Ask for Campaigning {
    type Answer = CampaignResponse;
    type Done = Loss;

    async fn open(
        &self,
        channel: Channel,
        _wait_ms: Option<u64>,
    ) -> Result<Response<Streaming<CampaignResponse>>, Status> {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let (once, resumes) = (self.number.once(), self.number.is_placed());
        let request =
            CampaignRequest { attempt, once: Some(once), resumes, ..self.request.clone() };
        ElectionServiceClient::new(channel).campaign(request).await
    }

    fn hear(&mut self, answer: CampaignResponse) -> Heard<Loss> {
        let Some(event) = answer.event else { return Heard::More };
        self.number.answered();
        match (event, self.led) {
            (Event::Lost(lost), _) => Heard::Done(match lost.reason() {
                Reason::SessionLost => Loss::Session,
                Reason::Removed | Reason::Unspecified => Loss::of(lost.broken),
            }),
            (Event::Elected(elected), None) => {
                self.led = Some(elected.fence);
                if let Some(outcome) = self.outcome.take() {
                    // If the receiver is gone, the candidate withdraws.
                    outcome.send(Ok(elected)).ok();
                }
                Heard::More
            }
            // It lost leadership and was elected again meanwhile, without its guard.
            (Event::Elected(elected), Some(led)) if elected.fence != led => {
                Heard::Done(Loss::Removed)
            }
            (Event::Queued(_), Some(_)) => Heard::Done(Loss::Removed),
            (Event::Queued(queued), None) => {
                self.tell(|waiting| waiting.ahead = queued.position);
                Heard::More
            }
            (Event::Observed(observed), None) => {
                self.tell(|waiting| {
                    waiting.leader = observed.leader;
                    waiting.revision = observed.revision;
                });
                Heard::More
            }
            (Event::Elected(_) | Event::Observed(_), Some(_)) => Heard::More,
        }
    }

    fn late(&self) -> Error {
        Error::Busy
    }
}
