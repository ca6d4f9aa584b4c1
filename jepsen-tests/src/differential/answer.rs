//! Sends a step to one server and brings the answer into a comparable shape.

use std::time::Duration;

use anyhow::{Context, Result};
use conclave_benches::connection::Connection;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::etcdserverpb::watch_client::WatchClient;
use conclave_proto::etcdserverpb::{
    CompactionResponse, DeleteRangeResponse, LeaseGrantResponse, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse, PutResponse, RangeResponse, TxnResponse, WatchCreateRequest,
    WatchRequest, watch_request,
};
use conclave_proto::mvccpb::Event;
use conclave_proto::v3electionpb::CampaignResponse;
use conclave_proto::v3electionpb::election_client::ElectionClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Step;
use super::session::Session;
use super::streams;

/// Longest wait for one answer: a server that hangs is a finding, not a reason to hang.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// What is taken for an answer when there is none by then.
pub(super) const NO_ANSWER: &str = "no answer in time";

/// What a server answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Range(RangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    Grant(LeaseGrantResponse),
    Revoke(LeaseRevokeResponse),
    KeepAlive(LeaseKeepAliveResponse),
    TimeToLive(LeaseTimeToLiveResponse),
    Leases(LeaseLeasesResponse),
    /// The events, and how the watch was cancelled if it was: the compact revision and the reason.
    Watch(Vec<Event>, Option<(i64, String)>),
    /// Ours have tokens of another form, which are good on every member.
    Login,
    /// Whether there was a token.
    Speak(bool),
    Campaign(CampaignResponse),
    /// What must be equal of any other answer.
    Call(String),
    /// Code and text.
    Error(i32, String),
}

/// A connection to one server.
pub(super) struct Caller {
    session: Session,
    kv: KvClient<Session>,
    lease: LeaseClient<Session>,
    watch: WatchClient<Session>,
}

impl Caller {
    pub(super) async fn open(endpoint: &str) -> Result<Self> {
        let session = Session::new(Connection::open(endpoint).await?);
        let origin = session.origin();
        Ok(Self {
            kv: KvClient::with_origin(session.clone(), origin.clone()),
            lease: LeaseClient::with_origin(session.clone(), origin.clone()),
            watch: WatchClient::with_origin(session.clone(), origin),
            session,
        })
    }

    /// Whether the server has gone.
    pub(super) fn is_dead(&self) -> bool {
        self.session.is_closed()
    }

    /// Sends a step and waits for the answer, errors of the server included.
    pub(super) async fn call(&mut self, step: &Step) -> Answer {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.ask(step)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(NO_ANSWER)));
        answer.unwrap_or_else(|status| {
            Answer::Error(status.code() as i32, status.message().to_owned())
        })
    }

    async fn ask(&mut self, step: &Step) -> Result<Answer, Status> {
        Ok(match step.clone() {
            Step::Put(request) => Answer::Put(self.kv.put(request).await?.into_inner()),
            Step::Delete(request) => {
                Answer::Delete(self.kv.delete_range(request).await?.into_inner())
            }
            Step::Range(request) => Answer::Range(self.kv.range(request).await?.into_inner()),
            Step::Txn(request) => Answer::Txn(self.kv.txn(request).await?.into_inner()),
            Step::Compact(request) => Answer::Compact(self.kv.compact(request).await?.into_inner()),
            Step::Grant(request) => {
                Answer::Grant(self.lease.lease_grant(request).await?.into_inner())
            }
            Step::Revoke(request) => {
                Answer::Revoke(self.lease.lease_revoke(request).await?.into_inner())
            }
            Step::KeepAlive(id) => Answer::KeepAlive(self.keep_alive(id).await?),
            Step::TimeToLive(request) => {
                Answer::TimeToLive(self.lease.lease_time_to_live(request).await?.into_inner())
            }
            Step::Leases => {
                Answer::Leases(self.lease.lease_leases(LeaseLeasesRequest {}).await?.into_inner())
            }
            Step::Watch(request, until) => self.events(request, until).await?,
            Step::Login(request) => {
                let (session, origin) = (self.session.clone(), self.session.origin());
                let (mut auth, name) =
                    (AuthClient::with_origin(session, origin), request.name.clone());
                let token = auth.authenticate(request).await?.into_inner().token;
                self.session.learn(name, &token)?;
                Answer::Login
            }
            Step::Speak(user) => Answer::Speak(self.session.speak_as(user)),
            Step::Campaign(request) => {
                let (session, origin) = (self.session.clone(), self.session.origin());
                let mut elections = ElectionClient::with_origin(session, origin);
                Answer::Campaign(elections.campaign(request).await?.into_inner())
            }
            Step::Observe(request) => {
                Answer::Call(streams::observe(self.session.clone(), request).await?)
            }
            Step::Snapshot => Answer::Call(streams::snapshot(self.session.clone()).await?),
            Step::Members(change) => Answer::Call(change.ask(self.session.clone()).await?),
            Step::Call(call) => Answer::Call(call.ask(self.session.clone()).await?),
        })
    }

    async fn keep_alive(&mut self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut answers = self.lease.lease_keep_alive(requests).await?.into_inner();
        answers
            .message()
            .await?
            .ok_or_else(|| Status::unknown("the stream ended without an answer"))
    }

    /// Collects the events of a watch until one of revision `until` arrives, or it is cancelled.
    async fn events(&mut self, request: WatchCreateRequest, until: i64) -> Result<Answer, Status> {
        let (requests, receiver) = mpsc::channel(1);
        let create = WatchRequest {
            request_union: Some(watch_request::RequestUnion::CreateRequest(request)),
        };
        requests
            .send(create)
            .await
            .context("send")
            .map_err(|error| Status::unknown(error.to_string()))?;
        let mut answers = self.watch.watch(ReceiverStream::new(receiver)).await?.into_inner();
        let mut events: Vec<Event> = Vec::new();
        while events.last().is_none_or(|event| mod_revision(event) < until) {
            let Some(answer) = answers.message().await? else {
                return Err(Status::unknown("the watch ended without being cancelled"));
            };
            if answer.canceled {
                return Ok(Answer::Watch(
                    events,
                    Some((answer.compact_revision, answer.cancel_reason)),
                ));
            }
            events.extend(answer.events);
        }
        Ok(Answer::Watch(events, None))
    }
}

fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}
