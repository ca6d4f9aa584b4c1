//! A server that knows only leases, as etcd does, and answers renewals in groups.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};

use conclave_client::pb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    lease_server::{Lease, LeaseServer},
};
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// TTL of every lease, in seconds.
const TTL: i64 = 9;

/// A lease server.
#[derive(Clone, Default)]
pub(crate) struct Leases {
    granted: Arc<AtomicI64>,
    /// Renewals are answered when this many have arrived on a stream.
    pub(crate) together: Arc<AtomicUsize>,
    /// Counts the groups of more than one.
    pub(crate) rounds: watch::Sender<usize>,
}

impl Leases {
    /// Serves until the caller's runtime ends; returns the address.
    pub(crate) async fn serve(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let server =
            tonic::transport::Server::builder().add_service(LeaseServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    /// Answers the next group of renewals on a stream.
    async fn renew(
        &self,
        renewals: &mut Streaming<LeaseKeepAliveRequest>,
    ) -> Option<Vec<Result<LeaseKeepAliveResponse, Status>>> {
        let mut ids = Vec::new();
        loop {
            ids.push(renewals.message().await.ok()??.id);
            let together = self.together.load(Ordering::Relaxed);
            if ids.len() >= together {
                self.rounds.send_modify(|rounds| *rounds += usize::from(together > 1));
                let answer = |id| Ok(LeaseKeepAliveResponse { header: None, id, ttl: TTL });
                return Some(ids.into_iter().map(answer).collect());
            }
        }
    }
}

#[tonic::async_trait]
impl Lease for Leases {
    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        _: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let id = self.granted.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Response::new(LeaseGrantResponse { id, ttl: TTL, ..LeaseGrantResponse::default() }))
    }

    async fn lease_revoke(
        &self,
        _: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        Ok(Response::new(LeaseRevokeResponse::default()))
    }

    async fn lease_keep_alive(
        &self,
        renewals: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let begin = (self.clone(), renewals.into_inner());
        let answers = futures::stream::unfold(begin, async |(leases, mut renewals)| {
            let answers = leases.renew(&mut renewals).await?;
            Some((futures::stream::iter(answers), (leases, renewals)))
        });
        Ok(Response::new(answers.flatten().boxed()))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        Err(Status::unimplemented("lease_time_to_live"))
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("lease_leases"))
    }
}
