//! Replies of the server.

use std::ops::Deref;

use conclave_proto::{
    etcdserverpb::{
        AlarmResponse, CompactionResponse, DeleteRangeResponse, HashKvResponse, LeaseGrantResponse,
        LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse,
        MemberListResponse, PutResponse, RangeResponse, ResponseHeader, StatusResponse,
        TxnResponse,
    },
    mvccpb::KeyValue,
};

/// A reply with a header. Dereferences to the message.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// let put = client.put("color", "red").prev_kv().await?;
/// if let Some(before) = &put.prev_kv {
///     println!("{:?} until revision {}", before.value, put.revision());
/// }
/// // The state as of that put, whatever happened since.
/// let colors = client.get("color").revision(put.revision()).await?;
/// assert!(colors.one().is_some_and(|kv| kv.value == "red"));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Reply<M>(M);

impl<M> Reply<M> {
    pub(crate) fn new(message: M) -> Self {
        Self(message)
    }

    /// The message itself.
    pub fn into_inner(self) -> M {
        self.0
    }
}

impl<M> Deref for Reply<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0
    }
}

impl<M: Headed> Reply<M> {
    /// The revision at which the request took effect; for a request that changes nothing, the
    /// current one. 0 if the server sent none.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.0.header().map_or(0, |header| header.revision)
    }
}

impl Reply<RangeResponse> {
    /// The first key-value pair, which is the only one if a single key was asked for.
    #[must_use]
    pub fn one(self) -> Option<KeyValue> {
        self.0.kvs.into_iter().next()
    }
}

/// A message with etcd's response header.
///
/// ```
/// use conclave_client::{Headed, pb::{PutResponse, ResponseHeader}};
///
/// /// For a log: which member answered, and in which term.
/// fn answered_by(message: &impl Headed) -> String {
///     let Some(header) = message.header() else { return "unknown".to_owned() };
///     format!("member {:x} in term {}", header.member_id, header.raft_term)
/// }
///
/// let header = ResponseHeader { member_id: 0xa7, raft_term: 3, ..ResponseHeader::default() };
/// let answer = PutResponse { header: Some(header), prev_kv: None };
/// assert_eq!(answered_by(&answer), "member a7 in term 3");
/// ```
pub trait Headed {
    /// The header, if the server sent one.
    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! headed {
    ($($message:ty),* $(,)?) => {
        $(impl Headed for $message {
            fn header(&self) -> Option<&ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}

headed!(
    AlarmResponse,
    CompactionResponse,
    DeleteRangeResponse,
    HashKvResponse,
    LeaseGrantResponse,
    LeaseKeepAliveResponse,
    LeaseLeasesResponse,
    LeaseRevokeResponse,
    LeaseTimeToLiveResponse,
    MemberListResponse,
    PutResponse,
    RangeResponse,
    StatusResponse,
    TxnResponse,
);
