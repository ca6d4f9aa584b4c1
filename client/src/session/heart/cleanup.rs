//! Cleanups that dropped guards leave, carried out in the background.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Heart;
use crate::backoff::Backoff;
use crate::client::Client;
use crate::error::Error;
use crate::registry::Exit;
use crate::undo::Undo;

/// Cleanup calls in flight at the same time.
const CLEANING_MAX: usize = 64;

/// A cleanup that a dropped guard leaves. Carrying it out twice does no harm.
#[derive(Debug, Clone)]
pub(crate) enum Cleanup {
    /// Ends a session. Tried once: otherwise the TTL ends it.
    End(i64),
    /// Undoes a request. Tried for as long as its session lives: nothing else would do it.
    Undo(Arc<Undo>),
    /// Deregisters an instance. Tried as long as `Undo`.
    Deregister(Arc<Exit>),
}

/// A queued cleanup, and its back-off if it fails again.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) cleanup: Cleanup,
    pub(super) backoff: Backoff,
}

impl Heart {
    /// Carries out the queued cleanups. Never returns.
    pub(super) async fn clean_up(&self, client: &Client) {
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

/// Tries a cleanup. If it may succeed later, pauses and returns it.
async fn clean(client: Client, mut left: Left) -> Option<Left> {
    let done = match left.cleanup.clone() {
        Cleanup::End(id) => client.session_end(id).await,
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
