//! Waiting at a barrier or latch.

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::v1::{
    self, Passed, WaitRequest, WaitResponse, barrier_service_client::BarrierServiceClient,
    ended::Reason, latch_service_client::LatchServiceClient, wait_response::Event,
};
use tonic::{Response, Status, Streaming};

use crate::login::Channel;
use crate::{
    client::Client,
    error::Error,
    known_cluster::KnownCluster,
    patience::{self, Ask, Heard, Patience},
};

/// The kind of thing that is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum For {
    Barrier,
    Latch,
}

/// A wait to be awaited; see [`crate::barrier::Barrier::wait`] and [`crate::latch::Latch::wait`].
/// Dropping it stops waiting.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
/// use conclave_client::{Error, wait::Wait};
///
/// let opened: Wait = client.barrier("schema/migrating").wait();
/// match opened.at_most(Duration::from_secs(60)).await {
///     Ok(revision) => println!("the migration was over as of revision {revision}"),
///     Err(Error::NotYet) => println!("it takes longer than a minute: serve without it"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is waited for until it is awaited"]
pub struct Wait {
    client: Client,
    what: For,
    name: Bytes,
    at_most: Option<Duration>,
}

impl Wait {
    pub(crate) fn new(client: &Client, what: For, name: &Bytes) -> Self {
        Self { client: client.clone(), what, name: name.clone(), at_most: None }
    }

    /// Limits the wait; after it, fails with [`Error::NotYet`]. A time longer than the clock can
    /// count means for ever. If no server answers, it may take up to 5 s longer. Default: for ever.
    pub fn at_most(mut self, wait: Duration) -> Self {
        self.at_most = Some(wait);
        self
    }

    /// Returns a revision at which there was nothing (more) to wait for.
    async fn wait(self) -> Result<i64, Error> {
        let Self { client, what, name, at_most } = self;
        let patience = Patience::new(&client, at_most);
        let cluster = KnownCluster::default();
        let mut asked = Asked { what, name, start_revision: 0, cluster };
        loop {
            match patience::wait(&client, patience, &mut asked).await {
                // The changes since the start cannot be read any more, or the store was restored to
                // an older state: start waiting again from now.
                Err(Error::Compacted { .. } | Error::FutureRevision(_))
                    if asked.start_revision > 0 =>
                {
                    (asked.start_revision, asked.cluster) = (0, KnownCluster::default());
                }
                ended => return ended.map(|passed| passed.revision),
            }
        }
    }
}

impl IntoFuture for Wait {
    type Output = Result<i64, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.wait())
    }
}

struct Asked {
    what: For,
    name: Bytes,
    /// Revision at which the wait began, so that a reopened stream misses nothing.
    start_revision: i64,
    /// The cluster to which that revision belongs.
    cluster: KnownCluster,
}

impl Ask for Asked {
    type Answer = WaitResponse;
    type Done = Passed;

    async fn open(
        &self,
        channel: Channel,
        wait_ms: Option<u64>,
    ) -> Result<Response<Streaming<WaitResponse>>, Status> {
        let (name, start_revision) = (self.name.clone(), self.start_revision);
        let request = WaitRequest { name, patience: Some(for_ms(wait_ms)), start_revision };
        match self.what {
            For::Barrier => BarrierServiceClient::new(channel).wait(request).await,
            For::Latch => LatchServiceClient::new(channel).wait(request).await,
        }
    }

    fn hear(&mut self, answer: WaitResponse) -> Heard<Passed> {
        if let Some(Event::Waiting(waiting)) = &answer.event {
            if let Err(error) = self.cluster.meet(waiting.cluster_id) {
                return Heard::Failed(error);
            }
            self.start_revision = waiting.revision;
        }
        heard(answer, "what was waited for is gone")
    }

    fn late(&self) -> Error {
        Error::NotYet
    }
}

/// The time to wait, as a message.
pub(crate) fn for_ms(wait_ms: Option<u64>) -> v1::Patience {
    use v1::patience::Wait;
    v1::Patience { wait: Some(wait_ms.map_or(Wait::WaitForever(true), Wait::WaitMs)) }
}

/// What an answer means for the wait.
pub(crate) fn heard(answer: WaitResponse, gone: &'static str) -> Heard<Passed> {
    match answer.event {
        Some(Event::Passed(passed)) => Heard::Done(passed),
        Some(Event::Ended(ended)) => Heard::Failed(match ended.reason() {
            Reason::Timeout => Error::NotYet,
            Reason::SessionLost => Error::session_lost(),
            Reason::Cancelled | Reason::Unspecified => Error::lost(gone),
        }),
        Some(Event::Waiting(_)) | None => Heard::More,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_was_put_back_and_caught_up_is_another_cluster() {
        let (what, name, cluster) = (For::Barrier, Bytes::new(), KnownCluster::default());
        let mut asked = Asked { what, name, start_revision: 0, cluster };
        let mut hear = |revision, cluster_id| {
            let waiting = v1::Waiting { revision, cluster_id, ..v1::Waiting::default() };
            let heard = asked.hear(WaitResponse { event: Some(Event::Waiting(waiting)) });
            (heard, asked.start_revision)
        };
        assert!(matches!(hear(5, 7), (Heard::More, 5)));
        assert!(matches!(hear(6, 7), (Heard::More, 6)));
        assert!(matches!(hear(9, 8), (Heard::Failed(Error::FutureRevision(_)), 6)));
    }
}
