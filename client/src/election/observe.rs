//! Follows leaders by Conclave's election API, or by reading the queue on a server without it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::{
    etcdserverpb::ResponseHeader,
    mvccpb::KeyValue,
    v1::{ObserveRequest, ObserveResponse, election_service_client::ElectionServiceClient},
};
use futures::Stream;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue};

use crate::{
    backoff::Backoff,
    client::Client,
    connection::{Connection, Reporter},
    endpoint::Endpoint,
    error::{Error, Outcome},
    known_cluster::KnownCluster,
    login::Logins,
    mirror::Mirror,
};

/// Leaders that wait for the reader; beyond that the server's stream is held back.
const LEADERS_MAX: usize = 16;
/// Most time for an endpoint to give its first answer.
const FIRST_ANSWER_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// The leader of an election.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::election::Leader;
///
/// /// Whether a command comes from the leader, or from one that has been replaced.
/// fn is_current(leader: &Leader, token: i64) -> bool {
///     leader.token() == token
/// }
/// if let Some(leader) = client.election("scheduler").leader().await? {
///     println!("{:?} leads: {}", leader.value(), is_current(&leader, 42));
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Leader {
    /// The candidate's key and value. Its create revision is the fencing token.
    pub kv: KeyValue,
    /// The header of the answer that reported this leader.
    pub header: ResponseHeader,
}

impl Leader {
    /// The value that the leader proclaimed.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.kv.value
    }

    /// The fencing token, which grows from leader to leader.
    #[must_use]
    pub fn token(&self) -> i64 {
        self.kv.create_revision
    }

    fn of(answer: ObserveResponse) -> Option<Self> {
        let ObserveResponse { leader, header, mod_revision, version, .. } = answer;
        let leader = leader?;
        let kv = KeyValue {
            key: leader.key,
            create_revision: leader.fence,
            mod_revision,
            version,
            value: leader.value,
            lease: leader.session,
        };
        Some(Self { kv, header: header.unwrap_or_default() })
    }
}

/// The leaders of an election, one after another: a [`Stream`] of leaders, and of `None` for times
/// without a leader. It ends after the first error that retrying cannot cure.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use tokio_stream::StreamExt;
///
/// let mut leaders = client.election("scheduler").observe();
/// while let Some(leader) = leaders.next().await {
///     match leader? {
///         Some(leader) => println!("send to {}", String::from_utf8_lossy(leader.value())),
///         None => println!("keep what there is to send: nobody leads"),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Observer {
    leaders: mpsc::Receiver<Result<Option<Leader>, Error>>,
    connection: Connection,
    _task: AbortOnDropHandle<()>,
}

impl Observer {
    pub(super) fn start(client: &Client, name: &Bytes, from: i64) -> Self {
        let (leaders, receiver) = mpsc::channel(LEADERS_MAX);
        let (client, name) = (client.clone(), name.clone());
        let (told, cluster, logins) = (None, KnownCluster::default(), Logins::default());
        let reporter = Reporter::default();
        let connection = reporter.connection();
        let following = Following { client, name, from, leaders, told, cluster, logins, reporter };
        let task = following.client.clone().task(following.run());
        Self { leaders: receiver, connection, _task: task }
    }

    /// Whether a server currently reports leaders.
    #[must_use]
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// The next leader, waiting through times without one; `None` after the end. Cancel-safe.
    ///
    /// # Errors
    /// The error that ended the stream, returned once.
    pub async fn leader(&mut self) -> Result<Option<Leader>, Error> {
        loop {
            match self.leaders.recv().await.transpose()? {
                Some(None) => {}
                Some(leader) => return Ok(leader),
                None => return Ok(None),
            }
        }
    }
}

impl Stream for Observer {
    type Item = Result<Option<Leader>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.leaders.poll_recv(cx)
    }
}

/// The current leader.
pub(super) async fn now(client: &Client, name: &Bytes) -> Result<Option<Leader>, Error> {
    let call = |channel| {
        let request = ObserveRequest { name: name.clone(), start_revision: 0 };
        let election = ElectionServiceClient::new(channel);
        async move {
            let mut leaders =
                election.max_decoding_message_size(usize::MAX).observe(request).await?.into_inner();
            leaders.message().await?.map(tonic::Response::new).ok_or_else(broken)
        }
    };
    match client.read(call).await {
        Err(Error::Unimplemented(_)) => {
            let mut mirror = mirror(client, name, 0);
            mirror.next().await?;
            Ok(first(&mirror))
        }
        answer => answer.map(Leader::of),
    }
}

fn broken() -> Status {
    Status::new(Code::Unavailable, "the stream of leaders ended")
}

fn mirror(client: &Client, name: &Bytes, from: i64) -> Mirror {
    Mirror::new(client.bare(), Bytes::from([&name[..], b"/"].concat()), from)
}

/// The candidate that came first.
fn first(mirror: &Mirror) -> Option<Leader> {
    let first = mirror.keys().values().min_by_key(|kv| kv.create_revision)?;
    Some(Leader { kv: first.clone(), header: *mirror.header() })
}

/// Reports each new leader.
struct Following {
    client: Client,
    name: Bytes,
    /// Everything up to this revision was reported; 0 for now.
    from: i64,
    leaders: mpsc::Sender<Result<Option<Leader>, Error>>,
    /// The leader that was reported last.
    told: Option<Option<KeyValue>>,
    /// The cluster to which that revision belongs.
    cluster: KnownCluster,
    logins: Logins,
    reporter: Reporter,
}

/// The observer was dropped.
struct Unheard;

impl Following {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let endpoint = self.client.endpoint();
            let error = match self.listen(&endpoint, &mut backoff).await {
                Ok(Unheard) => return,
                Err(error) => error,
            };
            match error {
                Error::Unimplemented(_) => return self.look().await,
                // Earlier leaders cannot be read any more.
                Error::Compacted { .. } if self.from > 0 => self.begin_anew(),
                // The store was restored to an older state.
                Error::FutureRevision(_) if self.told.is_some() && self.from > 0 => {
                    self.begin_anew();
                }
                error if self.logins.may_help(&error, &endpoint) => sleep(backoff.next()).await,
                error if error.is_passing() => {
                    endpoint.failed();
                    self.reporter.is_lost(|| error.to_string().into());
                    sleep(backoff.next()).await;
                }
                error => return self.fail(error).await,
            }
        }
    }

    /// Continues with the current leader, of whatever cluster.
    fn begin_anew(&mut self) {
        (self.from, self.cluster) = (0, KnownCluster::default());
    }

    /// Follows one stream of Conclave's API.
    async fn listen(
        &mut self,
        endpoint: &Endpoint,
        backoff: &mut Backoff,
    ) -> Result<Unheard, Error> {
        let limit = self.client.timeout().min(FIRST_ANSWER_TIMEOUT_MAX);
        let late = |_elapsed| Error::Deadline {
            outcome: Outcome::NotApplied,
            endpoint: endpoint.address().to_owned(),
            timeout: limit,
        };
        let start_revision = self.from;
        let request = ObserveRequest { name: self.name.clone(), start_revision };
        let mut request = Request::new(request);
        // A member that is cut off would never report a change.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let election = ElectionServiceClient::new(endpoint.channel());
        let mut election = election.max_decoding_message_size(usize::MAX);
        let opened = timeout(limit, election.observe(request)).await.map_err(late)?;
        let opened = opened.map_err(|status| Error::from_status(status, endpoint.address()))?;
        let mut answers: Streaming<ObserveResponse> = opened.into_inner();
        let mut next = timeout(limit, answers.message()).await.map_err(late)?;
        loop {
            let answer = next.and_then(|answer| answer.ok_or_else(broken));
            let answer = answer.map_err(|status| endpoint.ended(status))?;
            endpoint.succeeded();
            self.reporter.is_there();
            self.logins.succeeded();
            backoff.reset();
            self.cluster.meet(answer.header.as_ref().map_or(0, |header| header.cluster_id))?;
            self.from = answer.revision;
            if self.tell(Leader::of(answer)).await.is_err() {
                return Ok(Unheard);
            }
            next = answers.message().await;
        }
    }

    /// Reads the queue itself, on a server without the election API.
    async fn look(mut self) {
        let mut mirror = mirror(&self.client, &self.name, self.from);
        loop {
            if let Err(error) = mirror.next_keys(&self.reporter).await {
                return self.fail(error).await;
            }
            if self.tell(first(&mirror)).await.is_err() {
                return;
            }
        }
    }

    async fn tell(&mut self, leader: Option<Leader>) -> Result<(), Unheard> {
        let kv = leader.as_ref().map(|leader| leader.kv.clone());
        if self.told.as_ref() == Some(&kv) {
            return Ok(());
        }
        self.told = Some(kv);
        self.leaders.send(Ok(leader)).await.map_err(|_closed| Unheard)
    }

    async fn fail(self, error: Error) {
        // If the observer is gone, nobody needs the error.
        drop(self.leaders.send(Err(error)).await);
    }
}
