//! A campaign that tells how it goes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use conclave_proto::v1;
use futures::{Stream, future::BoxFuture};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use super::Leadership;
use crate::error::Error;

/// Where a candidate stands that does not lead yet.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::election::Waiting;
///
/// fn say(waiting: &Waiting) -> String {
///     match &waiting.leader {
///         Some(leader) => format!("{} came before, {:?} leads", waiting.ahead, leader.value),
///         None => format!("{} came before", waiting.ahead),
///     }
/// }
/// assert_eq!(say(&Waiting::default()), "0 came before");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Waiting {
    /// How many stood before it when it came, or when its stream was opened last; counted up to 1,000. 0: not
    /// known, as it may lead at any moment.
    pub ahead: u64,
    /// Who leads, as far as that was told; not every change is.
    pub leader: Option<v1::Leader>,
    /// Revision as of which that is so; 0: nothing was told yet.
    pub revision: i64,
}

/// What happened to a candidate.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::election::CampaignEvent;
/// use tokio_stream::StreamExt;
///
/// let mut candidacy = client.election("scheduler").campaign("10.0.0.7:80").follow();
/// match candidacy.next().await.transpose()? {
///     Some(CampaignEvent::Waiting(waiting)) => println!("standby, behind {}", waiting.ahead),
///     Some(CampaignEvent::Elected(leadership)) => leadership.resign().await?,
///     None => unreachable!("an event or an error comes first"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub enum CampaignEvent {
    /// It waits, or what is known of the leader has changed meanwhile.
    Waiting(Waiting),
    /// It leads: the last event. How leadership ends is told by the guard.
    Elected(Leadership),
}

/// A campaign under way: a [`Stream`] of what happens to the candidate. It ends after
/// [`CampaignEvent::Elected`], or after the error that says why it is a candidate no more.
///
/// Dropping it withdraws the candidate, in the background. The candidate keeps its place and may be elected while
/// nobody asks for the next event, so keep asking, or drop it. A server that speaks etcd's API only tells of nothing but the election.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::election::{CampaignEvent, Candidacy};
/// use tokio_stream::StreamExt;
///
/// let mut candidacy: Candidacy = client.election("scheduler").campaign("10.0.0.7:80").follow();
/// while let Some(event) = candidacy.next().await {
///     match event? {
///         CampaignEvent::Waiting(waiting) => {
///             let leader = waiting.leader.map(|leader| leader.value);
///             println!("send requests on to {leader:?}");
///         }
///         CampaignEvent::Elected(leadership) => {
///             leadership.run(async { /* lead */ }).await?;
///         }
///     }
/// }
/// # Ok(()) }
/// ```
#[must_use = "nobody campaigns until it is asked for events"]
pub struct Candidacy {
    /// `None` after the end.
    elected: Option<BoxFuture<'static, Result<Leadership, Error>>>,
    waiting: WatchStream<Option<Waiting>>,
}

impl Candidacy {
    pub(super) fn new(
        elected: BoxFuture<'static, Result<Leadership, Error>>,
        waiting: watch::Receiver<Option<Waiting>>,
    ) -> Self {
        Self { elected: Some(elected), waiting: WatchStream::from_changes(waiting) }
    }
}

impl Stream for Candidacy {
    type Item = Result<CampaignEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(elected) = &mut self.elected else { return Poll::Ready(None) };
        if let Poll::Ready(ended) = elected.as_mut().poll(context) {
            self.elected = None;
            return Poll::Ready(Some(ended.map(CampaignEvent::Elected)));
        }
        loop {
            match ready!(Pin::new(&mut self.waiting).poll_next(context)) {
                Some(Some(waiting)) => {
                    return Poll::Ready(Some(Ok(CampaignEvent::Waiting(waiting))));
                }
                Some(None) => {}
                // Nobody tells any more; the campaign itself ends by itself.
                None => return Poll::Pending,
            }
        }
    }
}

impl std::fmt::Debug for Candidacy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidacy").field("is_over", &self.elected.is_none()).finish()
    }
}
