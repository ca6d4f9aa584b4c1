//! A client that locks and unlocks through etcd's Lock service, or through our own service if the
//! server has it.

use bytes::Bytes;
use conclave_proto::etcdserverpb::LeaseGrantRequest;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::v1::acquire_request::Wait;
use conclave_proto::v1::acquire_response::Event;
use conclave_proto::v1::lock_service_client::LockServiceClient;
use conclave_proto::v1::{AcquireRequest, Once, ReleaseRequest};
use conclave_proto::v3lockpb::lock_client::LockClient;
use conclave_proto::v3lockpb::{LockRequest, UnlockRequest};
use tonic::{Code, Status};

use crate::connection::Connection;
use crate::drive::Client;

/// Longer than any run, so that no keep-alives are measured.
const LEASE_TTL_SECONDS: i64 = 3600;

/// Takes one lock repeatedly.
pub(crate) struct Locker {
    way: Way,
    name: Bytes,
    lease: i64,
    /// What is needed to release the lock while it is held; kept if the release failed.
    held: Option<Bytes>,
}

/// The service through which a lock is taken.
enum Way {
    /// Through etcd's Lock service.
    Etcd(LockClient<Connection>),
    /// Through our service; with the number of the last request.
    Native(LockServiceClient<Connection>, u64),
}

impl Locker {
    /// A client of its own lease, of etcd's service.
    /// Opens a client of etcd's service, with its own lease.
    /// # Errors
    /// If no lease is granted.
    pub(crate) async fn open(connection: Connection, name: String) -> anyhow::Result<Self> {
        let origin = connection.origin();
        let mut leases = LeaseClient::with_origin(connection.clone(), origin.clone());
        let request = LeaseGrantRequest { ttl: LEASE_TTL_SECONDS, id: 0 };
        let lease = leases.lease_grant(request).await?.into_inner().id;
        let way = Way::Etcd(LockClient::with_origin(connection, origin));
        Ok(Self { way, name: name.into(), lease, held: None })
    }

    /// Opens a client of our service, or of etcd's if the server does not have ours.
    ///
    /// # Errors
    /// If no lease is granted.
    pub(crate) async fn open_natively(
        connection: Connection,
        name: String,
    ) -> anyhow::Result<Self> {
        let mut locker = Self::open(connection.clone(), name).await?;
        let origin = connection.origin();
        let native = LockServiceClient::with_origin(connection, origin);
        match native.clone().list(conclave_proto::v1::LockListRequest::default()).await {
            Ok(_locks) => locker.way = Way::Native(native, 0),
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status) => return Err(status.into()),
        }
        Ok(locker)
    }

    async fn lock(&mut self) -> Result<(), Status> {
        let (name, lease) = (self.name.clone(), self.lease);
        self.held = Some(match &mut self.way {
            Way::Etcd(locks) => locks.lock(LockRequest { name, lease }).await?.into_inner().key,
            Way::Native(locks, number) => {
                *number += 2;
                let request_id = Bytes::copy_from_slice(&number.to_be_bytes());
                let once = once(lease, *number - 1, 0);
                acquire(locks, name, request_id.clone(), once).await?;
                request_id
            }
        });
        Ok(())
    }

    async fn unlock(&mut self) -> Result<(), Status> {
        let Some(held) = self.held.clone() else { return Ok(()) };
        match &mut self.way {
            Way::Etcd(locks) => drop(locks.unlock(UnlockRequest { key: held }).await?),
            Way::Native(locks, number) => {
                let (names, session) = (vec![self.name.clone()], self.lease);
                let once = Some(once(session, *number, *number - 1));
                let request = ReleaseRequest { names, session, request_id: held, once };
                drop(locks.release(request).await?);
            }
        }
        self.held = None;
        Ok(())
    }
}

/// Numbers a request, as the client crate does.
fn once(session: i64, sequence: u64, undoes: u64) -> Once {
    Once { session, sequence, settled: sequence, undoes }
}

/// Acquires the lock, waiting in its queue.
async fn acquire(
    locks: &mut LockServiceClient<Connection>,
    name: Bytes,
    request_id: Bytes,
    once: Once,
) -> Result<(), Status> {
    let request = AcquireRequest {
        names: vec![name],
        session: once.session,
        request_id,
        once: Some(once),
        wait: Some(Wait::WaitForever(true)),
        ..Default::default()
    };
    let mut answers = locks.acquire(request).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        match answer.event {
            Some(Event::Granted(_)) => return Ok(()),
            Some(Event::Queued(_)) => {}
            Some(Event::Ended(ended)) => return Err(Status::aborted(format!("{ended:?}"))),
            None => break,
        }
    }
    Err(Status::internal("the acquisition ended without a word"))
}

impl Client for Locker {
    /// Acquires the lock, waiting in its queue, and releases it.
    async fn step(&mut self) -> Result<(), Status> {
        self.unlock().await?;
        self.lock().await?;
        self.unlock().await
    }
}
