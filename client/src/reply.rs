//! Answers of the server.

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

/// An answer with a header. Its fields are those of the message.
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
    /// The revision at which the request took effect; for what changes nothing, the current one.
    /// 0 if the server sent none.
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
