//! What owners report with the heartbeats of their sessions: it is said to all who watch, costs nothing while nothing
//! changes, and holds up no heartbeat.

use conclave_client::registry::{Health, Record, Registration};
use conclave_client::{Client, v1::InstanceHealth};
use conclave_proto::v1;
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use v1::registry_service_client::RegistryServiceClient;
use v1::session_service_client::SessionServiceClient;

use crate::auth::{FAST, add_user, by, denied, enable};
use crate::limits::handled;
use crate::native_lock::{client, session, soon};
use crate::registry_client::{renewed, until};
use crate::registry_support::{SERVICE, Watched, discover, named, register, two};
use crate::support::{Server, server, servers};

/// Instances that report together: more than are compared at once.
const CROWD: u32 = 300;

/// A stream of heartbeats.
struct Beats {
    requests: mpsc::Sender<v1::SessionOpenRequest>,
    answers: Streaming<v1::SessionOpenResponse>,
    sequence: u64,
    refused: Vec<v1::ReportRefused>,
}

impl Beats {
    async fn open(server: &Server, token: &str) -> Self {
        let (requests, outgoing) = mpsc::channel(8);
        let mut service = SessionServiceClient::new(server.channel.clone());
        let opened = service.open(by(token, ReceiverStream::new(outgoing)));
        let answers = soon("a stream", opened).await.unwrap().into_inner();
        Self { requests, answers, sequence: 0, refused: Vec::new() }
    }

    async fn message(&mut self) -> u64 {
        let answer = soon("a message", self.answers.message()).await.unwrap().unwrap();
        assert_eq!(answer.takes_reports, answer.sequence > 0);
        assert!(answer.lost.is_empty());
        self.refused.extend(answer.refused);
        answer.sequence
    }

    /// One heartbeat, until it is answered.
    async fn beat(&mut self, attach: &[i64], reports: Vec<v1::InstanceReport>) {
        self.sequence += 1;
        let (sequence, attach) = (self.sequence, attach.to_vec());
        let request = v1::SessionOpenRequest { sequence, attach, reports, ..Default::default() };
        self.requests.send(request).await.unwrap();
        while self.message().await != sequence {}
    }

    /// One report, which is refused.
    async fn refused(&mut self, report: v1::InstanceReport) -> (Code, String) {
        self.beat(&[], vec![report.clone()]).await;
        while self.refused.is_empty() {
            self.message().await;
        }
        let refused = self.refused.pop().unwrap();
        let place = (refused.session, refused.service, refused.id, refused.fence);
        assert_eq!(place, (report.session, report.service, report.id, report.fence));
        assert!(self.refused.is_empty());
        (Code::from(refused.code), refused.reason)
    }
}

fn report(session: i64, id: &str, health: InstanceHealth, weight: u32) -> v1::InstanceReport {
    v1::InstanceReport {
        session,
        service: SERVICE.to_owned(),
        id: id.to_owned(),
        health: health.into(),
        weight: Some(weight),
        ..Default::default()
    }
}

fn weight(instance: &v1::Instance) -> u32 {
    Record::decode(&instance.id, &instance.record).unwrap().weight
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_owners_report_goes_with_heartbeats() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let service = client.service("shop/api");
    let directory = service.discover().start();
    let own = session(&client, "one").await;
    let mut first = service.register("h:1").id("a").session(&own).await.unwrap();
    let second = service.register("h:2").id("b").session(&own).await.unwrap();
    first.report_health(Health::Warning, "the queue is long");
    first.report_weight(20);
    second.report_health(Health::Critical, "");
    let says = |record: &Record| {
        let Record { details, weight, .. } = record;
        (details.health, details.output.clone(), *weight)
    };
    let wanted = (Health::Warning, "the queue is long".to_owned(), 20);
    until(&directory, |records| {
        records.len() == 2
            && says(&records[0]) == wanted
            && records[1].details.health == Health::Critical
    })
    .await;

    // Whatever else is said about it, what was reported stays, until that is said otherwise.
    first.update(|record| record.version = "2".to_owned()).await.unwrap();
    assert_eq!(says(first.record()), wanted);
    first.update(|record| record.weight = 50).await.unwrap();
    second.report_health(Health::Passing, "");
    until(&directory, |records| records[1].details.health == Health::Passing).await;
    until(&directory, |records| records[0].weight == 50).await;
    let found = service.resolve(v1::InstanceFilter::default()).await.unwrap();
    assert_eq!((found[0].health(), weight(&found[0])), (InstanceHealth::Warning, 50));

    // Also after a loss.
    client.session_end(own.id()).await.unwrap();
    let again = renewed(&service, &found[0]).await;
    assert_eq!((again.health(), weight(&again)), (InstanceHealth::Warning, 50));
    first.report_health(Health::Passing, "");
    until(&directory, |records| {
        records.first().is_some_and(|first| says(first) == (Health::Passing, String::new(), 50))
    })
    .await;
    for server in &servers {
        assert_eq!(handled(server, "conclave.v1.RegistryService", "Update", "OK").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_already_costs_no_commit() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let holder = session(&client, "one").await;
    let own = holder.id();
    register(server, own, &named("a")).await;
    register(server, own, &named("b")).await;
    let mut watched = Watched::open(server, 0).await;
    assert!(watched.step().await);
    let mut beats = Beats::open(server, "").await;
    // The last one counts.
    let reports =
        [10, 20, 30].map(|weight| report(own, "a", InstanceHealth::Warning, weight)).to_vec();
    beats.beat(&[own], reports.clone()).await;
    assert!(watched.step().await);
    let said = &watched.known["a"];
    assert_eq!((said.health(), weight(said)), (InstanceHealth::Warning, 30));
    let revision = watched.revision;
    for _ in 0..20 {
        let nothing =
            v1::InstanceReport { weight: None, ..report(own, "b", InstanceHealth::Unspecified, 0) };
        beats.beat(&[], [&reports[2..], &[nothing]].concat()).await;
    }
    beats.beat(&[], vec![report(own, "a", InstanceHealth::Passing, 30)]).await;
    assert!(watched.step().await);
    assert_eq!(watched.revision, revision + 1, "only the last of them said something new");
    assert!(beats.refused.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_reports_with_one_heartbeat() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let holder = session(&client, "one").await;
    let own = holder.id();
    let records: Vec<Record> = (0..CROWD).map(|number| named(&format!("{number:03}"))).collect();
    join_all(records.iter().map(|record| register(server, own, record))).await;
    let mut beats = Beats::open(server, "").await;
    let reports = records.iter().map(|record| report(own, &record.id, InstanceHealth::Passing, 7));
    beats.beat(&[own], reports.collect()).await;
    let mut watched = Watched::open(server, 0).await;
    while watched.known.len() < records.len() || watched.known.values().any(|one| weight(one) != 7)
    {
        assert!(watched.step().await);
    }
    assert!(beats.refused.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_told_and_the_stream_goes_on() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let (one, two) = two(&client).await;
    register(server, one.id(), &named("a")).await;
    register(server, two.id(), &named("b")).await;
    let mut beats = Beats::open(server, "").await;
    beats.beat(&[one.id()], Vec::new()).await;
    let of = |session: i64, id: &str| report(session, id, InstanceHealth::Critical, 1);
    let foreign = beats.refused(of(two.id(), "b")).await;
    assert_eq!(foreign.0, Code::FailedPrecondition);
    assert!(foreign.1.ends_with("not attached to this stream"), "{foreign:?}");
    assert_eq!(beats.refused(of(0, "b")).await, foreign, "nobody's");
    let taken = beats.refused(of(one.id(), "b")).await;
    assert_eq!(taken.0, Code::FailedPrecondition);
    assert!(taken.1.ends_with("the instance belongs to another session"), "{taken:?}");
    assert_eq!(beats.refused(of(one.id(), "c")).await.0, Code::NotFound);
    let earlier = v1::InstanceReport { fence: 1, ..of(one.id(), "a") };
    assert_eq!(beats.refused(earlier).await.0, Code::NotFound);
    let long = v1::InstanceReport { output: "x".repeat(1_025), ..of(one.id(), "a") };
    assert_eq!(beats.refused(long).await.0, Code::InvalidArgument);
    let found = discover(server, v1::InstanceFilter::default()).await.instances;
    assert!(found.iter().all(|found| found.health() == InstanceHealth::Passing));
    beats.beat(&[], vec![of(one.id(), "a")]).await;
    let mut watched = Watched::open(server, 0).await;
    while watched.known.get("a").is_none_or(|found| found.health() != InstanceHealth::Critical) {
        assert!(watched.step().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_update_an_instance_may_not_report_on_it() {
    let server = server(&[FAST]).await;
    let [root, ann] = enable(&server).await;
    let mut sessions = SessionServiceClient::new(server.channel.clone());
    for (token, id) in [(&ann, 1), (&root, 2)] {
        let (ttl_seconds, request_id) = (600, vec![1; 16].into());
        let begin = v1::SessionBeginRequest { id, ttl_seconds, request_id, ..Default::default() };
        sessions.begin(by(token, begin)).await.unwrap();
    }
    let record = named("x").encode().into();
    let (service, id) = ("b/api".to_owned(), "x".to_owned());
    let request = v1::RegisterRequest { service, id, session: 2, record, ..Default::default() };
    let mut registry = RegistryServiceClient::new(server.channel.clone());
    registry.register(by(&root, request)).await.unwrap();
    let mut beats = Beats::open(&server, &ann).await;
    beats.beat(&[1], Vec::new()).await;
    let report = report(1, "x", InstanceHealth::Passing, 100);
    let report = v1::InstanceReport { service: "b/api".to_owned(), ..report };
    assert_eq!(beats.refused(report).await, denied(), "whatever it says");
}

/// What was verified of a user before users changed is not enough: the stream goes on with a new token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_go_on_when_users_change() {
    let server = server(&[FAST]).await;
    let [root, _] = enable(&server).await;
    let endpoint = server.running.client_urls()[0].clone();
    let client = Client::builder([endpoint]).user("ann", "ann-password").build().unwrap();
    let service = client.service("a/api");
    let own = session(&client, "one").await;
    let registration: Registration = service.register("h:1").session(&own).await.unwrap();
    let directory = service.discover().start();
    registration.report_weight(7);
    until(&directory, |records| records.iter().any(|record| record.weight == 7)).await;
    add_user(&server, &root, "bob", &[]).await;
    // Heartbeats may have been refused before: what is said is said, whichever stream carries it.
    registration.report_weight(8);
    until(&directory, |records| records.iter().any(|record| record.weight == 8)).await;
    assert!(!own.is_lost());
}
