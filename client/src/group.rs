//! Group membership: which members exist, and the value that each of them publishes.
//!
//! A member is the key `name/member`, attached to its session: it ends when the session is lost.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! let session = client.session().owner("worker-7").await?;
//! let membership = session.group("workers").join("10.0.0.7:80").member("worker-7").await?;
//! membership.update("10.0.0.8:80").await?;
//!
//! let mut followed = client.group("workers").follow();
//! while let Some(members) = followed.next().await? {
//!     println!("{} members", members.len());
//! }
//! membership.leave().await?;
//! # Ok(())
//! # }
//! ```

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use conclave_proto::{
    mvccpb::KeyValue,
    v1::{
        GroupJoinRequest, GroupListRequest, GroupMember, group_service_client::GroupServiceClient,
    },
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    client::Client,
    connection::{Connection, Reporter},
    error::Error,
    mirror::Mirror,
    once::Ticket,
    session::Session,
    undo::{Did, Kept},
};

/// States of a group that wait for the reader; beyond that the server's stream is held back.
const STATES_MAX: usize = 16;

impl Client {
    /// The group `name`, for listing and following its members.
    pub fn group(&self, name: impl Into<Vec<u8>>) -> Group {
        Group { client: self.bare(), name: self.namespace().name(name) }
    }
}

impl Session {
    /// The group `name`, for joining it with this session.
    pub fn group(&self, name: impl Into<Vec<u8>>) -> Joinable {
        Joinable { session: self.clone(), name: self.client().namespace().name(name) }
    }
}

/// A group; see [`Client::group`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// // For people: who is a member, and who owns its session.
/// for member in client.group("workers").members().await? {
///     let id = String::from_utf8_lossy(&member.member);
///     println!("{id} of {}, there since revision {}", member.owner, member.fence);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a group does nothing by itself"]
pub struct Group {
    client: Client,
    name: Bytes,
}

impl Group {
    /// Lists all members by id, with the owners of their sessions.
    ///
    /// # Errors
    /// See [`Error`]. Members are read in pages of 1,000; if one page fails, none is returned.
    pub async fn members(&self) -> Result<Vec<GroupMember>, Error> {
        let mut members = Vec::new();
        let mut from = Bytes::new();
        loop {
            let request = GroupListRequest { name: self.name.clone(), from, limit: 0 };
            let call = |channel| {
                let request = request.clone();
                let client = GroupServiceClient::new(channel);
                async move { client.max_decoding_message_size(usize::MAX).list(request).await }
            };
            let mut page = self.client.read(call).await?;
            members.append(&mut page.members);
            if page.next.is_empty() {
                return Ok(members);
            }
            from = page.next;
        }
    }

    /// Follows the members: all members now, and again after each change.
    pub fn follow(&self) -> Followed {
        let prefix = Bytes::from([&self.name[..], b"/"].concat());
        let mirror = Mirror::new(self.client.clone(), prefix.clone(), 0);
        let (sender, states) = mpsc::channel(STATES_MAX);
        let reporter = Reporter::default();
        let connection = reporter.connection();
        let task = self.client.task(follow(mirror, prefix, sender, reporter));
        Followed { states, connection, _task: task }
    }
}

/// A member, as stored in its key.
///
/// ```
/// use conclave_client::group::Member;
///
/// /// The member responsible for a job, the same for all members: they are sorted by id.
/// fn worker<'a>(members: &'a [Member], job: &[u8]) -> Option<&'a Member> {
///     let hash = conclave_client::balance::hash(job);
///     members.get(usize::try_from(hash % members.len().max(1) as u64).ok()?)
/// }
///
/// let member = |id: &'static str| Member { id: id.into(), value: "".into(), session: 1, fence: 1 };
/// let members = ["a", "b"].map(member);
/// assert_eq!(worker(&members, b"job 1"), worker(&members, b"job 1"));
/// assert_eq!(worker(&[], b"job 1"), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: Bytes,
    /// The value it publishes.
    pub value: Bytes,
    /// The id of its session.
    pub session: i64,
    /// Create revision of its key: orders the members by when they joined.
    pub fence: i64,
}

/// The members of a group after each change, also as a [`Stream`]; see [`Group::follow`]. It ends
/// after the first error that retrying cannot cure.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::group::Followed;
///
/// let mut followed: Followed = client.group("workers").follow();
/// let mut known = Vec::new();
/// while let Some(members) = followed.next().await? {
///     for member in members.iter().filter(|member| !known.contains(&member.fence)) {
///         println!("{:?} joined, at {:?}", member.id, member.value);
///     }
///     known = members.iter().map(|member| member.fence).collect();
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Followed {
    states: mpsc::Receiver<Result<Vec<Member>, Error>>,
    connection: Connection,
    _task: AbortOnDropHandle<()>,
}

impl Followed {
    /// The next state, sorted by id; `None` after the end. Cancel-safe.
    ///
    /// # Errors
    /// The error that ended it, returned once.
    pub async fn next(&mut self) -> Result<Option<Vec<Member>>, Error> {
        self.states.recv().await.transpose()
    }

    /// Whether a server currently reports members.
    #[must_use]
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }
}

impl Stream for Followed {
    type Item = Result<Vec<Member>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.states.poll_recv(context)
    }
}

async fn follow(
    mut mirror: Mirror,
    prefix: Bytes,
    states: mpsc::Sender<Result<Vec<Member>, Error>>,
    reporter: Reporter,
) {
    let mut last = None;
    loop {
        if let Err(error) = mirror.next_keys(&reporter).await {
            // If the receiver is gone, nobody needs the error.
            drop(states.send(Err(error)).await);
            return;
        }
        let members: Vec<_> =
            mirror.keys().values().filter_map(|kv| member(kv, prefix.len())).collect();
        if last.as_ref() != Some(&members) {
            last = Some(members.clone());
            if states.send(Ok(members)).await.is_err() {
                return;
            }
        }
    }
}

/// Decodes a member. A key without a lease is not a member, nor is a key at a deeper level.
fn member(kv: &KeyValue, prefix_bytes: usize) -> Option<Member> {
    let id = kv.key.slice(prefix_bytes..);
    let is_member = kv.lease != 0 && !id.is_empty() && !id.contains(&b'/');
    let (value, session, fence) = (kv.value.clone(), kv.lease, kv.create_revision);
    is_member.then_some(Member { id, value, session, fence })
}

/// A group that a session can join; see [`Session::group`].
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// use conclave_client::group::Joinable;
///
/// // One process for two shards: two members with one session.
/// let shards: Joinable = session.group("shards");
/// let first = shards.join("10.0.0.7:80").member("shard-1").await?;
/// let second = shards.join("10.0.0.7:81").member("shard-2").await?;
/// first.leave().await?;
/// second.leave().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a group does nothing by itself"]
pub struct Joinable {
    session: Session,
    name: Bytes,
}

impl Joinable {
    /// Starts to describe joining with `value`; await the result to become a member.
    pub fn join(&self, value: impl Into<Vec<u8>>) -> Join {
        let Self { session, name } = self.clone();
        Join { session, name, member: None, value: value.into().into() }
    }
}

/// A membership to be started; see [`Joinable::join`].
///
/// A session may join as the same member more than once: the last value counts, and the member ends
/// with the last of these memberships. Dropping the future undoes what it may have done, in the
/// background.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// // Without an id of its own the member gets one.
/// let membership = session.group("workers").join("10.0.0.7:80").await?;
/// println!("joined as {}", String::from_utf8_lossy(membership.member()));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nobody joins until it is awaited"]
pub struct Join {
    session: Session,
    name: Bytes,
    member: Option<Bytes>,
    value: Bytes,
}

impl Join {
    /// Id of the member: 1 to 256 bytes, without a slash. Default: a unique id.
    pub fn member(mut self, id: impl Into<Vec<u8>>) -> Self {
        self.member = Some(id.into().into());
        self
    }

    async fn join(self) -> Result<Membership, Error> {
        let Self { session, name, member, value } = self;
        let ticket = session.request().await?;
        let sequence = ticket.sequence();
        let own = || format!("{:x}-{sequence}", session.id()).into();
        let member = member.unwrap_or_else(own);
        let did = Did::Join(member.clone());
        let kept = Kept { session, name, sequence, did, open: None, is_over: false };
        let mut membership = Membership { kept, member, fence: 0 };
        let joined = membership.say(&ticket, value).await;
        // Another session has the member: there is nothing to undo.
        membership.kept.is_over = matches!(joined, Err(Error::Refused(_)));
        membership.fence = joined?;
        Ok(membership)
    }
}

impl IntoFuture for Join {
    type Output = Result<Membership, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.join())
    }
}

/// Membership of a group: held for as long as this guard exists and its session lives.
///
/// Give it up with [`Membership::leave`], which reports whether that worked. Dropping the guard
/// leaves in the background without a report, with retries for as long as the session lives.
///
/// ```no_run
/// # async fn example(session: conclave_client::Session) -> Result<(), conclave_client::Error> {
/// let membership = session.group("workers").join("idle").member("worker-7").await?;
/// membership.update("job 17").await?; // those who follow the group see it
/// let lost = membership.lost();
/// tokio::select! {
///     () = work() => membership.leave().await?,
///     () = lost.cancelled() => eprintln!("the others share the job out anew"),
/// }
/// # async fn work() {}
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "membership ends when the guard is dropped"]
pub struct Membership {
    kept: Kept,
    member: Bytes,
    fence: i64,
}

impl Membership {
    /// Id of the member.
    #[must_use]
    pub fn member(&self) -> &Bytes {
        &self.member
    }

    /// Create revision of the member's key.
    #[must_use]
    pub fn fence(&self) -> i64 {
        self.fence
    }

    /// Cancelled when the session is lost, and the membership with it.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.kept.session.lost()
    }

    /// Changes the value that the member publishes.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is no longer a member. See [`Error`].
    pub async fn update(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        let ticket = self.kept.session.request().await?;
        match self.say(&ticket, Bytes::from(value.into())).await {
            Err(Error::Refused(_)) => Err(Error::lost("it is a member no more")),
            said => said.map(drop),
        }
    }

    /// Publishes a value; returns the fence.
    async fn say(&self, ticket: &Ticket, value: Bytes) -> Result<i64, Error> {
        let call = |channel| {
            let (name, member) = (self.kept.name.clone(), self.member.clone());
            let once = Some(ticket.once());
            let of = if ticket.sequence() == self.kept.sequence { 0 } else { self.kept.sequence };
            let request = GroupJoinRequest { once, name, member, value: value.clone(), of };
            async move { GroupServiceClient::new(channel).join(request).await }
        };
        self.kept.session.client().repeat(call).await.map(|answer| answer.fence)
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was no longer a member. See [`Error`]; it is then retried in the
    /// background.
    pub async fn leave(self) -> Result<(), Error> {
        let was_member = self.kept.undo().await?;
        if was_member { Ok(()) } else { Err(Error::lost("it was a member no more")) }
    }
}
