//! A client that locks and unlocks through the server's Lock service.

use bytes::Bytes;
use conclave_proto::etcdserverpb::LeaseGrantRequest;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::v3lockpb::lock_client::LockClient;
use conclave_proto::v3lockpb::{LockRequest, UnlockRequest};
use tonic::Status;

use crate::connection::Connection;
use crate::drive::Client;

/// Outlives every run, so that no keep-alives are measured.
const LEASE_TTL_SECONDS: i64 = 3600;

/// Takes one lock again and again.
pub(crate) struct Locker {
    locks: LockClient<Connection>,
    name: Bytes,
    lease: i64,
    /// The key of the lock while it is held: still there if giving it back failed.
    held: Option<Bytes>,
}

impl Locker {
    /// A client of its own lease.
    ///
    /// # Errors
    /// If no lease is granted.
    pub(crate) async fn open(connection: Connection, name: String) -> anyhow::Result<Self> {
        let origin = connection.origin();
        let mut leases = LeaseClient::with_origin(connection.clone(), origin.clone());
        let request = LeaseGrantRequest { ttl: LEASE_TTL_SECONDS, id: 0 };
        let lease = leases.lease_grant(request).await?.into_inner().id;
        let locks = LockClient::with_origin(connection, origin);
        Ok(Self { locks, name: name.into(), lease, held: None })
    }

    async fn unlock(&mut self) -> Result<(), Status> {
        let Some(key) = self.held.clone() else { return Ok(()) };
        self.locks.unlock(UnlockRequest { key }).await?;
        self.held = None;
        Ok(())
    }
}

impl Client for Locker {
    /// Locks, waiting for its turn, and unlocks.
    async fn step(&mut self) -> Result<(), Status> {
        self.unlock().await?;
        let request = LockRequest { name: self.name.clone(), lease: self.lease };
        self.held = Some(self.locks.lock(request).await?.into_inner().key);
        self.unlock().await
    }
}
