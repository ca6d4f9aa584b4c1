//! Calls of the registry, and a client's view of a service: what it was told, applied.

use std::collections::BTreeMap;

use conclave_client::{Client, Session};
use conclave_proto::v1;
use conclave_state_machine::registry::record::Record;
use tonic::Streaming;
use tonic::transport::Channel;
use v1::discovery_service_client::DiscoveryServiceClient;
use v1::instance_change::{Kind, Reason};
use v1::instance_watch_response::Snapshot;
use v1::registry_service_client::RegistryServiceClient;

use crate::native_lock::{session, soon};
use crate::support::Server;

pub(crate) const SERVICE: &str = "shop/api";

/// The sessions of two, whose names they have.
pub(crate) async fn two(client: &Client) -> (Session, Session) {
    (session(client, "one").await, session(client, "two").await)
}

pub(crate) fn registry(server: &Server) -> RegistryServiceClient<Channel> {
    RegistryServiceClient::new(server.channel.clone())
}

pub(crate) fn request(session: i64, record: &Record) -> v1::RegisterRequest {
    v1::RegisterRequest {
        service: SERVICE.to_owned(),
        id: record.id.clone(),
        session,
        record: record.encode().into(),
        ..Default::default()
    }
}

pub(crate) fn named(id: &str) -> Record {
    Record { id: id.to_owned(), ..Record::new(format!("10.0.0.1:{}", id.len())) }
}

pub(crate) async fn register(
    server: &Server,
    session: i64,
    record: &Record,
) -> v1::RegisterResponse {
    registry(server).register(request(session, record)).await.unwrap().into_inner()
}

pub(crate) async fn discover(server: &Server, filter: v1::InstanceFilter) -> v1::DiscoverResponse {
    let service = SERVICE.to_owned();
    let request = v1::DiscoverRequest { service, filter: Some(filter), ..Default::default() };
    registry(server).discover(request).await.unwrap().into_inner()
}

pub(crate) async fn ids(server: &Server, filter: v1::InstanceFilter) -> Vec<String> {
    discover(server, filter).await.instances.into_iter().map(|found| found.id).collect()
}

/// A client's view: what it was told, applied.
pub(crate) struct Watched {
    answers: Streaming<v1::InstanceWatchResponse>,
    pub(crate) known: BTreeMap<String, v1::Instance>,
    pub(crate) revision: i64,
    pub(crate) snapshot: Snapshot,
    /// Every change that was told, in order, and its revision.
    pub(crate) told: Vec<(i64, Kind, Reason, String)>,
}

impl Watched {
    pub(crate) async fn open(server: &Server, after_revision: i64) -> Watched {
        Self::filtered(server, after_revision, None).await
    }

    pub(crate) async fn filtered(
        server: &Server,
        after_revision: i64,
        filter: Option<v1::InstanceFilter>,
    ) -> Watched {
        let service = SERVICE.to_owned();
        let request =
            v1::InstanceWatchRequest { service, filter, after_revision, ..Default::default() };
        Self::asked(server, request).await
    }

    pub(crate) async fn asked(server: &Server, request: v1::InstanceWatchRequest) -> Watched {
        let after_revision = request.after_revision;
        let mut discovery = DiscoveryServiceClient::new(server.channel.clone());
        let answers = soon("a watch", discovery.watch(request)).await.unwrap().into_inner();
        let (known, told, snapshot) = (BTreeMap::new(), Vec::new(), Snapshot::None);
        Watched { answers, known, revision: after_revision, snapshot, told }
    }

    /// The next message; `false` at the end of the stream.
    pub(crate) async fn step(&mut self) -> bool {
        let Ok(Some(answer)) = soon("a change", self.answers.message()).await else { return false };
        let snapshot = answer.snapshot();
        if snapshot != Snapshot::None && self.snapshot == Snapshot::None {
            self.known.clear();
        }
        self.snapshot = if answer.more { snapshot } else { Snapshot::None };
        assert!(answer.revision >= self.revision, "revisions only grow");
        let is_news = answer.revision > self.revision || snapshot != Snapshot::None;
        assert!(is_news, "no revision twice: {answer:?}");
        self.revision = answer.revision;
        for change in answer.changes {
            let (kind, reason) = (change.kind(), change.reason());
            let instance = change.instance.unwrap();
            let id = instance.id.clone();
            let was_known = match kind {
                Kind::Removed => self.known.remove(&id).is_some(),
                _ => self.known.insert(id.clone(), instance).is_some(),
            };
            assert_eq!(was_known, kind != Kind::Added, "{kind:?} of {id}");
            if snapshot == Snapshot::None {
                self.told.push((self.revision, kind, reason, id));
            }
        }
        true
    }

    pub(crate) async fn until(&mut self, what: impl Fn(&Watched) -> bool) {
        while !what(self) {
            assert!(self.step().await, "the watch goes on");
        }
    }

    pub(crate) async fn until_known(&mut self, ids: &[&str]) {
        self.until(|watched| watched.known.keys().eq(ids)).await;
    }

    pub(crate) fn last(&self) -> (Kind, Reason, &str) {
        let (_, kind, reason, id) = self.told.last().unwrap();
        (*kind, *reason, id)
    }
}
