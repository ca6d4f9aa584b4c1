//! Waits for a contender's turn.

use std::sync::Arc;

use tonic::Status;

use super::standing::{Others, Standing};
use super::{Place, Queue};
use crate::status;

/// A contender in the queue. If dropped while it waits, it gives up its place, unless its lease was
/// in the queue before this call.
pub(in crate::api) struct Waiter {
    queue: Arc<Queue>,
    place: Place,
    gives_up: bool,
}

impl Waiter {
    /// A contender that entered the queue at `place`.
    pub(in crate::api) fn new(queue: Arc<Queue>, place: Place) -> Self {
        Self { queue, gives_up: place.found.is_none(), place }
    }

    pub(in crate::api) fn place(&self) -> &Place {
        &self.place
    }

    /// Waits until nobody is ahead; returns the place and the revision at which it became first.
    /// Fails with `lost` as soon as the key or its lease is gone.
    pub(in crate::api) async fn first(
        mut self,
        lost: &'static str,
    ) -> Result<(Place, i64), Status> {
        let queued = self.queue.context().metrics.turns.enter();
        let (mut waits, mut is_behind_places) = (None, false);
        loop {
            let (standing, revision) = self.queue.stand(&self.place, is_behind_places).await?;
            // A key created just now has its lease: the same revision attached it.
            let is_new = waits.is_none() && self.place.found.is_none();
            let has_lease = matches!(standing, Standing::First) && is_new
                || self.queue.has_lease(&self.place)?;
            match standing {
                _ if !has_lease => return Err(status::unknown(lost)),
                Standing::First => {
                    self.gives_up = false;
                    queued.granted();
                    let entered = self.place.entered.revision;
                    return Ok((
                        self.place.clone(),
                        if waits.is_some() { revision } else { entered },
                    ));
                }
                Standing::Lost => return Err(status::unknown(lost)),
                Standing::Behind { before, others } => {
                    is_behind_places |= match others {
                        Others::Places => true,
                        Others::Keys(keys) => {
                            waits.is_none() && self.queue.are_places(&self.place, keys).await?
                        }
                    };
                    let behind =
                        waits.get_or_insert_with(|| self.queue.crowd.join(&self.place.prefix));
                    if is_behind_places {
                        behind.are_places(self.place.create_revision);
                    }
                    let keys = [before, self.place.key.clone()];
                    let (auth, wanted) = (&self.queue.context().auth, self.place.wanted());
                    tokio::select! {
                        gone = self.queue.deletion(keys, revision + 1) => gone?,
                        // Without the right it could not hold the name, and would only delay those
                        // behind it.
                        status = auth.revoked(&self.place.caller, &wanted) => return Err(status),
                    }
                }
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.gives_up {
            let (queue, place) = (Arc::clone(&self.queue), self.place.clone());
            self.queue.context().background.spawn(async move { queue.leave(&place).await });
        }
    }
}
