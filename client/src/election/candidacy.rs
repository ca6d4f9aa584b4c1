//! A campaign that reports its progress.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use conclave_proto::v1;
use futures::{Stream, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use super::Leadership;
use crate::error::Error;

/// The position of a candidate that does not lead yet.
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
    /// How many candidates were ahead when it entered the queue, or when its stream was last
    /// opened; counted up to 1,000. 0: unknown, as it may lead at any moment.
    pub ahead: u64,
    /// The leader, as last reported; not every change is reported.
    pub leader: Option<v1::Leader>,
    /// The revision of that report; 0 if there was none yet.
    pub revision: i64,
}

/// A step in a campaign.
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
    /// It waits, or the known leader has changed.
    Waiting(Waiting),
    /// It was elected: the last event. The guard reports the end of leadership.
    Elected(Leadership),
}

/// A campaign in progress: a [`Stream`] of its events. It ends after [`CampaignEvent::Elected`], or
/// after the error that ended the candidacy.
///
/// Dropping it withdraws the candidate in the background. The candidate keeps its place and may be
/// elected while the stream is not polled, so keep polling or drop it. Against a server that only
/// speaks etcd's API, the election is the only event.
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
    /// `None` after the end. The mutex makes the type `Sync`, which the future is not.
    elected: Mutex<Option<BoxFuture<'static, Result<Leadership, Error>>>>,
    waiting: WatchStream<Option<Waiting>>,
}

impl Candidacy {
    pub(super) fn new(
        elected: BoxFuture<'static, Result<Leadership, Error>>,
        waiting: watch::Receiver<Option<Waiting>>,
    ) -> Self {
        Self { elected: Mutex::new(Some(elected)), waiting: WatchStream::from_changes(waiting) }
    }
}

impl Stream for Candidacy {
    type Item = Result<CampaignEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let elected = self.elected.get_mut();
        let Some(campaign) = elected else { return Poll::Ready(None) };
        if let Poll::Ready(ended) = campaign.as_mut().poll(context) {
            *elected = None;
            return Poll::Ready(Some(ended.map(CampaignEvent::Elected)));
        }
        loop {
            match ready!(Pin::new(&mut self.waiting).poll_next(context)) {
                Some(Some(waiting)) => {
                    return Poll::Ready(Some(Ok(CampaignEvent::Waiting(waiting))));
                }
                Some(None) => {}
                // There will be no more reports; the campaign ends by itself.
                None => return Poll::Pending,
            }
        }
    }
}

impl std::fmt::Debug for Candidacy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidacy").field("is_over", &self.elected.lock().is_none()).finish()
    }
}
