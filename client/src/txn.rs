//! Transactions: if all compares hold, run one list of operations, otherwise another, in one
//! revision.
//!
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
//! use conclave_client::{kv::{get, put}, txn::key};
//!
//! let txn = client
//!     .txn()
//!     .when(key("a").mod_revision().equal(3))
//!     .then(put("a", "2"))
//!     .or_else(get("a"))
//!     .commit()
//!     .await?;
//! if txn.succeeded { println!("replaced in revision {}", txn.revision()); }
//! # Ok(())
//! # }
//! ```

use bytes::Bytes;
use conclave_proto::etcdserverpb::{
    Compare, RequestOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

use crate::{
    client::Client,
    error::Error,
    key::set_prefix,
    kv::{Delete, Detached, Get, Put, kv},
    reply::Reply,
};

impl Client {
    /// Starts a transaction.
    pub fn txn(&self) -> Txn<Self> {
        Txn { client: self.clone(), request: TxnRequest::default() }
    }

    /// Sends a transaction unchanged, except for the namespace. A transaction without puts and
    /// deletions counts as a read, and is retried like one.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::outcome`] says whether it may have been applied.
    pub async fn send_txn(&self, request: TxnRequest) -> Result<Reply<TxnResponse>, Error> {
        let request = self.namespace().txn(request)?;
        let call = |channel| {
            let request = request.clone();
            async move { kv(channel).txn(request).await }
        };
        let answer = if is_read(&request) {
            self.read(call).await?
        } else {
            match self.write_once(&[], &request).await? {
                Some(answer) => answer,
                None => self.write(call).await?,
            }
        };
        Ok(Reply::new(self.namespace().committed(answer)))
    }
}

fn is_read(request: &TxnRequest) -> bool {
    let mut operations = request.success.iter().chain(&request.failure);
    operations.all(|operation| matches!(operation.request, Some(Request::RequestRange(_))))
}

/// A transaction nested in another; its compares see the state before the outer one began.
pub fn txn() -> Txn<Detached> {
    Txn { client: Detached, request: TxnRequest::default() }
}

/// A transaction; see [`Client::txn`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::kv::{get, put};
/// use conclave_client::pb::response_op::Response;
/// use conclave_client::txn::key;
///
/// // The first client gets the name; later ones learn who has it.
/// let is_free = key("names/ada").create_revision().equal(0);
/// let txn = client.txn().when(is_free).then(put("names/ada", "17")).or_else(get("names/ada"));
/// let answer = txn.commit().await?.into_inner();
/// let first = answer.responses.into_iter().find_map(|operation| operation.response);
/// if let Some(Response::ResponseRange(range)) = first {
///     println!("taken by {:?}", range.kvs[0].value);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a transaction does nothing until `commit` is called"]
pub struct Txn<C> {
    pub(crate) client: C,
    pub(crate) request: TxnRequest,
}

impl<C> Txn<C> {
    /// Adds a compare; the `then` operations are run only if all compares hold.
    pub fn when(mut self, compare: Compare) -> Self {
        self.request.compare.push(compare);
        self
    }

    /// Adds an operation to run if all compares hold.
    pub fn then(mut self, operation: impl Into<Operation>) -> Self {
        self.request.success.push(operation.into().0);
        self
    }

    /// Adds an operation to run if a compare does not hold.
    pub fn or_else(mut self, operation: impl Into<Operation>) -> Self {
        self.request.failure.push(operation.into().0);
        self
    }
}

impl Txn<Client> {
    /// Sends the transaction. The answer's `succeeded` says whether all compares held.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::outcome`] says whether it may have been applied.
    pub async fn commit(self) -> Result<Reply<TxnResponse>, Error> {
        self.client.send_txn(self.request).await
    }
}

/// One operation of a transaction, made from the builders of [`crate::kv`] and from [`txn`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::kv::{delete, put};
/// use conclave_client::txn::Operation;
///
/// // One operation for each order: all of them are applied, or none.
/// let mut operations: Vec<Operation> = vec![delete("cart/ada/").prefix().into()];
/// for order in ["17", "18"] {
///     operations.push(put(format!("orders/{order}"), "paid").into());
/// }
/// let txn = operations.into_iter().fold(client.txn(), |txn, operation| txn.then(operation));
/// txn.commit().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Operation(RequestOp);

impl From<Request> for Operation {
    fn from(request: Request) -> Self {
        Self(RequestOp { request: Some(request) })
    }
}

impl From<Get<Detached>> for Operation {
    fn from(get: Get<Detached>) -> Self {
        Request::RequestRange(get.into()).into()
    }
}

impl From<Put<Detached>> for Operation {
    fn from(put: Put<Detached>) -> Self {
        Request::RequestPut(put.into()).into()
    }
}

impl From<Delete<Detached>> for Operation {
    fn from(delete: Delete<Detached>) -> Self {
        Request::RequestDeleteRange(delete.into()).into()
    }
}

impl From<Txn<Detached>> for Operation {
    fn from(txn: Txn<Detached>) -> Self {
        Request::RequestTxn(txn.request).into()
    }
}

/// Starts a compare of `key`.
pub fn key(key: impl Into<Vec<u8>>) -> Subject {
    Subject { key: Bytes::from(key.into()), range_end: Bytes::new() }
}

/// What a compare applies to: a key, or every key of a range.
///
/// ```
/// use conclave_client::txn::key;
///
/// // Holds while there is no key below `jobs/`: none of them was ever created.
/// let is_idle = key("jobs/").prefix().create_revision().equal(0);
/// assert_eq!((is_idle.key, is_idle.range_end), ("jobs/".into(), "jobs0".into()));
/// ```
#[derive(Debug, Clone)]
#[must_use = "choose what to compare"]
pub struct Subject {
    key: Bytes,
    range_end: Bytes,
}

impl Subject {
    /// Every key that starts with the key must satisfy the compare.
    pub fn prefix(mut self) -> Self {
        set_prefix(&mut self.key, &mut self.range_end);
        self
    }

    /// Every key from the key up to, but not including, `end` must satisfy the compare.
    pub fn range(mut self, end: impl Into<Vec<u8>>) -> Self {
        self.range_end = Bytes::from(end.into());
        self
    }

    /// Compares the number of puts since the key was created; 0 if it does not exist.
    pub fn version(self) -> Number {
        Number { subject: self, target: CompareTarget::Version }
    }

    /// Compares the revision in which the key was created; 0 if it does not exist.
    pub fn create_revision(self) -> Number {
        Number { subject: self, target: CompareTarget::Create }
    }

    /// Compares the revision in which the key was last changed; 0 if it does not exist.
    pub fn mod_revision(self) -> Number {
        Number { subject: self, target: CompareTarget::Mod }
    }

    /// Compares the lease of the key; 0 if it has none.
    pub fn lease(self) -> Number {
        Number { subject: self, target: CompareTarget::Lease }
    }

    /// Compares the value byte by byte. Never holds for a key that does not exist.
    pub fn value(self) -> Value {
        Value { subject: self }
    }

    fn compare(self, target: CompareTarget, result: CompareResult, to: TargetUnion) -> Compare {
        Compare {
            result: result.into(),
            target: target.into(),
            key: self.key,
            range_end: self.range_end,
            target_union: Some(to),
        }
    }
}

/// The number on the left side of a compare.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::{kv::put, txn::key};
///
/// // Read, compute, and write only if nobody has written in between.
/// let Some(plan) = client.get("plan").await?.one() else { return Ok(()) };
/// let is_same = key("plan").mod_revision().equal(plan.mod_revision);
/// let txn = client.txn().when(is_same).then(put("plan", [&plan.value[..], b" and tea"].concat()));
/// if !txn.commit().await?.succeeded {
///     println!("somebody was faster: read it again");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "choose what to compare with"]
pub struct Number {
    subject: Subject,
    target: CompareTarget,
}

impl Number {
    /// Holds if the number is `to`.
    #[must_use]
    pub fn equal(self, to: i64) -> Compare {
        self.compare(CompareResult::Equal, to)
    }

    /// Holds if the number is not `to`.
    #[must_use]
    pub fn not_equal(self, to: i64) -> Compare {
        self.compare(CompareResult::NotEqual, to)
    }

    /// Holds if the number is greater than `to`.
    #[must_use]
    pub fn greater(self, to: i64) -> Compare {
        self.compare(CompareResult::Greater, to)
    }

    /// Holds if the number is less than `to`.
    #[must_use]
    pub fn less(self, to: i64) -> Compare {
        self.compare(CompareResult::Less, to)
    }

    fn compare(self, result: CompareResult, to: i64) -> Compare {
        let union = match self.target {
            CompareTarget::Version => TargetUnion::Version(to),
            CompareTarget::Create => TargetUnion::CreateRevision(to),
            CompareTarget::Lease => TargetUnion::Lease(to),
            CompareTarget::Mod | CompareTarget::Value => TargetUnion::ModRevision(to),
        };
        self.subject.compare(self.target, result, union)
    }
}

/// The value on the left side of a compare.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::{kv::put, txn::key};
///
/// // A state machine: an order is shipped only if it is paid, however often this runs.
/// let is_paid = key("orders/17/state").value().equal("paid");
/// let ship = client.txn().when(is_paid).then(put("orders/17/state", "shipped"));
/// println!("shipped now: {}", ship.commit().await?.succeeded);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "choose what to compare with"]
pub struct Value {
    subject: Subject,
}

impl Value {
    /// Holds if the value is `to`.
    #[must_use]
    pub fn equal(self, to: impl Into<Vec<u8>>) -> Compare {
        self.compare(CompareResult::Equal, to)
    }

    /// Holds if the value is not `to`.
    #[must_use]
    pub fn not_equal(self, to: impl Into<Vec<u8>>) -> Compare {
        self.compare(CompareResult::NotEqual, to)
    }

    /// Holds if the value sorts after `to`.
    #[must_use]
    pub fn greater(self, to: impl Into<Vec<u8>>) -> Compare {
        self.compare(CompareResult::Greater, to)
    }

    /// Holds if the value sorts before `to`.
    #[must_use]
    pub fn less(self, to: impl Into<Vec<u8>>) -> Compare {
        self.compare(CompareResult::Less, to)
    }

    fn compare(self, result: CompareResult, to: impl Into<Vec<u8>>) -> Compare {
        let union = TargetUnion::Value(Bytes::from(to.into()));
        self.subject.compare(CompareTarget::Value, result, union)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{get, put};

    #[test]
    fn only_a_transaction_of_reads_is_a_read() {
        let request = |txn: Txn<Detached>| txn.request;
        assert!(is_read(&request(txn().then(get("a")).or_else(get("b")))));
        assert!(!is_read(&request(txn().then(get("a")).or_else(put("b", "1")))));
        assert!(!is_read(&request(txn().then(txn().then(put("b", "1"))))));
    }
}
