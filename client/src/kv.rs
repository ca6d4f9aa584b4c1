//! Request builders for keys and values: get, put, delete and compact.
//!
//! A builder made by a [`Client`] is sent by awaiting it. A builder made by the functions of this
//! module is not bound to a client; it becomes an operation of a [transaction](crate::txn).

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
};

use bytes::Bytes;
use conclave_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, ResponseHeader,
    TxnRequest,
    kv_client::KvClient,
    range_request::{SortOrder, SortTarget},
    request_op::Request,
    response_op::Response as Answer,
};
use tonic::{Response, Status, Streaming};

use crate::{client::Client, error::Error, key::spans, login::Channel, reply::Reply};

/// The header of an answer, and the answer to its only operation.
type Operated = (Option<ResponseHeader>, Answer);
type Sent<M> = Pin<Box<dyn Future<Output = Result<Reply<M>, Error>> + Send>>;

/// Marks a builder that is not bound to a client.
///
/// ```
/// use conclave_client::kv::{Detached, Put, put};
/// use conclave_client::pb::PutRequest;
///
/// /// Every transaction that changes an order includes this put.
/// fn changed_by(order: &str, user: &str) -> Put<Detached> {
///     put(format!("orders/{order}/changed_by"), user)
/// }
///
/// let request = PutRequest::from(changed_by("17", "ada"));
/// assert_eq!(request.key, "orders/17/changed_by");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Detached;

/// A read as an operation of a transaction.
pub fn get(key: impl Into<Vec<u8>>) -> Get<Detached> {
    Get::new(Detached, key)
}

/// A put as an operation of a transaction.
pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Put<Detached> {
    Put::new(Detached, key, value)
}

/// A deletion as an operation of a transaction.
pub fn delete(key: impl Into<Vec<u8>>) -> Delete<Detached> {
    Delete::new(Detached, key)
}

impl Client {
    /// Reads a key, or a range of keys.
    pub fn get(&self, key: impl Into<Vec<u8>>) -> Get<Self> {
        Get::new(self.clone(), key)
    }

    /// Writes a key.
    pub fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Put<Self> {
        Put::new(self.clone(), key, value)
    }

    /// Deletes a key, or a range of keys.
    pub fn delete(&self, key: impl Into<Vec<u8>>) -> Delete<Self> {
        Delete::new(self.clone(), key)
    }

    /// Compacts the store: removes the history below `revision`.
    pub fn compact(&self, revision: i64) -> Compact {
        Compact { client: self.clone(), request: CompactionRequest { revision, physical: false } }
    }

    /// Sends a read request unchanged, except for the namespace.
    ///
    /// # Errors
    /// See [`Error`]; reads are retried on other endpoints while the time limit allows.
    pub async fn send_range(&self, request: RangeRequest) -> Result<Reply<RangeResponse>, Error> {
        let request = self.namespace().range(request)?;
        let call = |channel| {
            let request = request.clone();
            async move { kv(channel).range(request).await }
        };
        let answer = self.read(call).await?;
        let reply = Reply::new(self.namespace().ranged(answer));
        self.writers().saw(reply.revision());
        Ok(reply)
    }

    /// Sends a read request whose answer comes in parts (etcd 3.7's `RangeStream`), which are
    /// joined here, so that no single message holds all keys. The server accepts only sorting by
    /// key.
    ///
    /// # Errors
    /// See [`Error`]; reads are retried on other endpoints while the time limit allows.
    pub async fn send_range_stream(
        &self,
        request: RangeRequest,
    ) -> Result<Reply<RangeResponse>, Error> {
        let request = self.namespace().range(request)?;
        let call = |channel| {
            let request = request.clone();
            async move { together(kv(channel).range_stream(request).await?.into_inner()).await }
        };
        let answer = self.read(call).await?;
        let reply = Reply::new(self.namespace().ranged(answer));
        self.writers().saw(reply.revision());
        Ok(reply)
    }

    /// Sends a put request unchanged, except for the namespace.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::outcome`] says whether it may have been applied.
    pub async fn send_put(&self, request: PutRequest) -> Result<Reply<PutResponse>, Error> {
        let request = self.namespace().put(request)?;
        let operation = Request::RequestPut(request.clone());
        let answer = match self.operate(operation).await? {
            Some((header, Answer::ResponsePut(answer))) => PutResponse { header, ..answer },
            _ => {
                let call = |channel| {
                    let request = request.clone();
                    async move { kv(channel).put(request).await }
                };
                self.write(call).await?
            }
        };
        Ok(Reply::new(self.namespace().was_put(answer)))
    }

    /// Sends a delete request unchanged, except for the namespace.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::outcome`] says whether it may have been applied.
    pub async fn send_delete(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<Reply<DeleteRangeResponse>, Error> {
        let request = self.namespace().delete(request)?;
        let operation = Request::RequestDeleteRange(request.clone());
        let answer = match self.operate(operation).await? {
            Some((header, Answer::ResponseDeleteRange(answer))) => {
                DeleteRangeResponse { header, ..answer }
            }
            _ => {
                let call = |channel| {
                    let request = request.clone();
                    async move { kv(channel).delete_range(request).await }
                };
                self.write(call).await?
            }
        };
        Ok(Reply::new(self.namespace().deleted(answer)))
    }

    /// Sends one operation as a transaction that the cluster remembers; `None` if the cluster
    /// cannot.
    async fn operate(&self, operation: Request) -> Result<Option<Operated>, Error> {
        let operation = RequestOp { request: Some(operation) };
        let txn = TxnRequest { success: vec![operation], ..TxnRequest::default() };
        let answer = self.write_once(&[], &txn).await?;
        Ok(answer.and_then(|answer| {
            let operation = answer.responses.into_iter().next()?;
            Some((answer.header, operation.response?))
        }))
    }

    /// Sends a compaction request unchanged.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Compacted`] if the revision is already compacted.
    pub async fn send_compact(
        &self,
        request: CompactionRequest,
    ) -> Result<Reply<CompactionResponse>, Error> {
        let call = |channel| async move { kv(channel).compact(request).await };
        self.write(call).await.map(Reply::new)
    }
}

/// The generated client without its 4 MiB limit on answers: ranges may be larger.
pub(crate) fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// Joins the parts of an answer; the last part has the totals.
async fn together(
    mut pieces: Streaming<RangeStreamResponse>,
) -> Result<Response<RangeResponse>, Status> {
    let mut whole = RangeResponse::default();
    while let Some(piece) = pieces.message().await? {
        let piece = piece.range_response.unwrap_or_default();
        whole.kvs.extend(piece.kvs);
        whole.header = piece.header.or(whole.header);
        whole.more |= piece.more;
        whole.count = whole.count.max(piece.count);
    }
    Ok(Response::new(whole))
}

/// A read; see [`Client::get`] and [`get`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::pb::range_request::{SortOrder, SortTarget};
///
/// let count = client.get("orders/").prefix().count_only().await?.count;
/// let newest = client.get("orders/").prefix().sort(SortTarget::Create, SortOrder::Descend);
/// for kv in &newest.limit(10).keys_only().await?.kvs {
///     println!("{} of {count}", String::from_utf8_lossy(&kv.key));
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is awaited or added to a transaction"]
pub struct Get<C> {
    client: C,
    request: RangeRequest,
}

impl<C> Get<C> {
    /// The client (or [`Detached`]) and the request.
    pub(crate) fn into_parts(self) -> (C, RangeRequest) {
        (self.client, self.request)
    }

    fn new(client: C, key: impl Into<Vec<u8>>) -> Self {
        let request = RangeRequest { key: Bytes::from(key.into()), ..RangeRequest::default() };
        Self { client, request }
    }

    spans!();

    /// Returns at most this many key-value pairs; 0 for no limit.
    pub fn limit(mut self, limit: i64) -> Self {
        self.request.limit = limit;
        self
    }

    /// Reads the state at this revision; 0 for the current one.
    pub fn revision(mut self, revision: i64) -> Self {
        self.request.revision = revision;
        self
    }

    /// Sorts in this order instead of key order.
    pub fn sort(mut self, target: SortTarget, order: SortOrder) -> Self {
        self.request.set_sort_target(target);
        self.request.set_sort_order(order);
        self
    }

    /// Lets the endpoint answer from its own state, which may be stale: faster, and works without a
    /// quorum.
    pub fn serializable(mut self) -> Self {
        self.request.serializable = true;
        self
    }

    /// Returns keys without values.
    pub fn keys_only(mut self) -> Self {
        self.request.keys_only = true;
        self
    }

    /// Returns only the number of keys.
    pub fn count_only(mut self) -> Self {
        self.request.count_only = true;
        self
    }
}

impl IntoFuture for Get<Client> {
    type Output = Result<Reply<RangeResponse>, Error>;
    type IntoFuture = Sent<RangeResponse>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.send_range(self.request).await })
    }
}

impl From<Get<Detached>> for RangeRequest {
    fn from(get: Get<Detached>) -> Self {
        get.request
    }
}

/// A write of one key; see [`Client::put`] and [`put`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use std::time::Duration;
///
/// let lease = client.lease(Duration::from_secs(30)).await?;
/// client.put("online/ada", "in a meeting").lease(lease.id()).await?; // deleted with the lease
/// let put = client.put("online/ada", "back").ignore_lease().prev_kv().await?; // so is this
/// println!("was: {:?}", put.prev_kv.as_ref().map(|kv| &kv.value));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is awaited or added to a transaction"]
pub struct Put<C> {
    client: C,
    request: PutRequest,
}

impl<C> Put<C> {
    fn new(client: C, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        let request = PutRequest {
            key: Bytes::from(key.into()),
            value: Bytes::from(value.into()),
            ..PutRequest::default()
        };
        Self { client, request }
    }

    /// Deletes the key when this lease ends; 0 for no lease.
    pub fn lease(mut self, id: i64) -> Self {
        self.request.lease = id;
        self
    }

    /// Returns the previous key-value pair.
    pub fn prev_kv(mut self) -> Self {
        self.request.prev_kv = true;
        self
    }

    /// Keeps the current value of the key. The value given must be empty.
    pub fn ignore_value(mut self) -> Self {
        self.request.ignore_value = true;
        self
    }

    /// Keeps the current lease of the key. The lease given must be 0.
    pub fn ignore_lease(mut self) -> Self {
        self.request.ignore_lease = true;
        self
    }
}

impl IntoFuture for Put<Client> {
    type Output = Result<Reply<PutResponse>, Error>;
    type IntoFuture = Sent<PutResponse>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.send_put(self.request).await })
    }
}

impl From<Put<Detached>> for PutRequest {
    fn from(put: Put<Detached>) -> Self {
        put.request
    }
}

/// A deletion; see [`Client::delete`] and [`delete`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// let gone = client.delete("sessions/ada/").prefix().prev_kv().await?;
/// println!("{} sessions ended in revision {}", gone.deleted, gone.revision());
/// for kv in &gone.prev_kvs {
///     println!("{} began in revision {}", String::from_utf8_lossy(&kv.key), kv.create_revision);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is awaited or added to a transaction"]
pub struct Delete<C> {
    client: C,
    request: DeleteRangeRequest,
}

impl<C> Delete<C> {
    fn new(client: C, key: impl Into<Vec<u8>>) -> Self {
        let request =
            DeleteRangeRequest { key: Bytes::from(key.into()), ..DeleteRangeRequest::default() };
        Self { client, request }
    }

    spans!();

    /// Returns the deleted key-value pairs.
    pub fn prev_kv(mut self) -> Self {
        self.request.prev_kv = true;
        self
    }
}

impl IntoFuture for Delete<Client> {
    type Output = Result<Reply<DeleteRangeResponse>, Error>;
    type IntoFuture = Sent<DeleteRangeResponse>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.send_delete(self.request).await })
    }
}

impl From<Delete<Detached>> for DeleteRangeRequest {
    fn from(delete: Delete<Detached>) -> Self {
        delete.request
    }
}

/// A compaction; see [`Client::compact`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::Error;
///
/// // Nightly: history older than the last 100,000 changes is not needed any more.
/// let now = client.get("any").count_only().await?.revision();
/// match client.compact((now - 100_000).max(1)).physical().await {
///     Ok(_) => println!("the space is free"),
///     Err(Error::Compacted { .. }) => println!("somebody else did it"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Compact {
    client: Client,
    request: CompactionRequest,
}

impl Compact {
    /// Answers only after the space was reclaimed.
    pub fn physical(mut self) -> Self {
        self.request.physical = true;
        self
    }
}

impl IntoFuture for Compact {
    type Output = Result<Reply<CompactionResponse>, Error>;
    type IntoFuture = Sent<CompactionResponse>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.send_compact(self.request).await })
    }
}
