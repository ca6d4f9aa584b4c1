//! Checks of what a member answers by itself: reads, keep-alives, watches.
//!
//! The rules are the state machine's. What is new here is time: between a check and the read a user may
//! lose a right, and what was written after that is not for its eyes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use conclave_state_machine::auth::{AuthHead, Rights, check};
use conclave_state_machine::command::{Caller, Txn};
use conclave_state_machine::response::{Halt, Rejection};
use futures::stream::{Stream, StreamExt as _};
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

use super::Auth;
use crate::status::{self, Fault};

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a caller must be allowed to.
#[derive(Clone, Debug)]
pub(crate) enum RightsCheck {
    /// Reading `[key, range_end)`.
    Range(Bytes, Bytes),
    /// Reading and writing all of these `[key, range_end)`.
    ReadWrite(Vec<(Bytes, Bytes)>),
    /// Whatever a transaction reads.
    Txn(Arc<Txn>),
    /// Reading every key of a lease.
    LeaseKeys(i64),
    /// Writing every key of a lease, as renewing it needs.
    LeaseWrite(i64),
    /// Everything.
    Root,
    /// Nothing but being a user.
    User,
}

impl RightsCheck {
    /// Reading one key.
    pub(crate) fn key(key: &Bytes) -> Self {
        Self::Range(Bytes::clone(key), Bytes::new())
    }

    /// Reading the queue of a lock or election.
    pub(crate) fn queue(name: &[u8]) -> Self {
        let (key, range_end) = check::queue_span(name);
        Self::Range(key, range_end)
    }

    /// Taking part in a double barrier.
    pub(crate) fn below(name: &Bytes) -> Self {
        Self::ReadWrite(vec![(Bytes::clone(name), Bytes::new()), check::queue_span(name)])
    }

    /// Taking part in these locks, or this election.
    pub(crate) fn part_in(names: &[Bytes]) -> Self {
        Self::ReadWrite(names.iter().map(|name| check::queue_span(name)).collect())
    }
}

impl Auth {
    /// The rights of a caller as applied here; `None` if nobody needs any.
    ///
    /// # Errors
    /// [`Fault::UserEmpty`] or [`Fault::PermissionDenied`] if it is nobody that there is, [`Fault::AuthOldRevision`] if
    /// it is who had the name before.
    pub(crate) fn rights(&self, caller: &Caller) -> Result<Option<Arc<Rights>>, Status> {
        let head = self.head();
        if !head.enabled {
            return Ok(None);
        }
        let (name, verified_at) = match caller {
            Caller::Inside => return Ok(None),
            Caller::Anonymous => return Err(Fault::UserEmpty.into()),
            Caller::User { name, auth_revision } => (name, *auth_revision),
        };
        let rights = self.rights.lock().of(&self.reader, head.revision, name.as_str());
        match rights.map_err(|_halt| status::halted())? {
            Some(rights) if verified_at < rights.added => Err(Fault::AuthOldRevision.into()),
            Some(rights) => Ok(Some(rights)),
            None => Err(Fault::PermissionDenied.into()),
        }
    }

    /// Whether the password by which a caller was verified is another one now, or its user.
    ///
    /// # Errors
    /// If the storage fails.
    pub(super) fn is_password_old(&self, caller: &Caller) -> Result<bool, Status> {
        let head = self.head();
        let Caller::User { name, auth_revision } = caller else { return Ok(false) };
        let rights = self.rights.lock().of(&self.reader, head.revision, name.as_str());
        let rights = rights.map_err(|_halt| status::halted())?;
        Ok(head.enabled && rights.is_some_and(|rights| *auth_revision < rights.password_since))
    }

    /// Whether a caller may, whenever its name was verified: for what lasts longer than one answer.
    pub(crate) fn check_by_name(
        &self,
        caller: &Caller,
        wanted: &RightsCheck,
    ) -> Result<(), Status> {
        let Some(rights) = self.rights(caller)? else { return Ok(()) };
        let answer: Result<Result<(), Rejection>, Halt> = match wanted {
            RightsCheck::Range(key, range_end) => Ok(check::range(&rights, key, range_end)),
            RightsCheck::ReadWrite(ranges) => Ok(ranges
                .iter()
                .try_for_each(|(key, range_end)| check::read_write(&rights, key, range_end))),
            RightsCheck::Txn(txn) => check::read_txn(&self.reader, &rights, txn),
            RightsCheck::LeaseKeys(id) => check::lease_keys(&self.reader, &rights, *id),
            RightsCheck::LeaseWrite(id) => check::lease_renewal(&self.reader, &rights, *id),
            RightsCheck::Root if rights.is_root => Ok(Ok(())),
            RightsCheck::Root => Ok(Err(Rejection::PermissionDenied)),
            RightsCheck::User => Ok(Ok(())),
        };
        let allowed = answer.map_err(|_halt| status::halted())?;
        allowed.map_err(|rejection| status::from_rejection(&rejection))
    }

    /// Whether a caller has the root role. As in etcd it need not know the newest revision.
    pub(crate) fn check_root(&self, caller: &Caller) -> Result<(), Status> {
        self.check_by_name(caller, &RightsCheck::Root)
    }

    /// Whether a caller may read, with a name verified as of the present auth revision; the state as of
    /// which that is so.
    pub(crate) fn check(&self, caller: &Caller, wanted: &RightsCheck) -> Result<AuthHead, Status> {
        let head = self.head();
        self.check_revision(caller, head)?;
        self.check_by_name(caller, wanted)?;
        Ok(head)
    }

    fn check_revision(&self, caller: &Caller, head: AuthHead) -> Result<(), Status> {
        match caller {
            Caller::User { auth_revision, .. }
                if head.enabled && *auth_revision < head.revision =>
            {
                Err(Fault::AuthOldRevision.into())
            }
            Caller::User { .. } | Caller::Anonymous | Caller::Inside => Ok(()),
        }
    }

    /// Runs `read` if `caller` may; its answer is not given out if users or roles changed meanwhile.
    pub(crate) async fn checked<T>(
        &self,
        caller: &Caller,
        wanted: &RightsCheck,
        read: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let before = self.check(caller, wanted)?;
        let answer = read.await?;
        if self.head() != before {
            self.check(caller, wanted)?;
        }
        Ok(answer)
    }

    /// Waits until a caller may not any more; the reason. Cancel-safe.
    pub(crate) async fn revoked(&self, caller: &Caller, wanted: &RightsCheck) -> Status {
        let mut changes = self.feed.changes();
        loop {
            // After the subscription: what changes from now on wakes it.
            if let Err(status) = self.check_by_name(caller, wanted) {
                return status;
            }
            if changes.changed().await.is_err() {
                // The sender is in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends a stream of answers as soon as its caller may not have them any more.
    pub(crate) fn guard<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Caller,
        wanted: RightsCheck,
        mut answers: Answers<T>,
    ) -> Answers<T> {
        let auth = Arc::clone(self);
        let mut changes = WatchStream::from_changes(self.feed.changes());
        // Checked once more below, so that a change between the first check and here is not missed.
        let mut seen = None;
        let mut is_over = false;
        Box::pin(futures::stream::poll_fn(move |task| {
            if is_over {
                return Poll::Ready(None);
            }
            while let Poll::Ready(Some(_)) = changes.poll_next_unpin(task) {}
            let answer = answers.poll_next_unpin(task);
            // After the answer was made: what it shows was applied before this is looked at.
            let head = auth.head();
            if seen != Some(head) {
                if let Err(status) = auth.check_by_name(&caller, &wanted) {
                    is_over = true;
                    return Poll::Ready(Some(Err(status)));
                }
                seen = Some(head);
            }
            answer
        }))
    }
}
