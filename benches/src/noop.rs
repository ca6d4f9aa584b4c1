//! A tonic server with etcd's messages that does nothing: the upper bound set by the transport on
//! this machine.

use bytes::Bytes;
use conclave_proto::etcdserverpb::kv_server::{Kv, KvServer};
use conclave_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, ResponseOp,
    TxnRequest, TxnResponse, response_op,
};
use conclave_proto::mvccpb::KeyValue;
use tokio::net::TcpListener;
use tokio_stream::Empty;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

const VALUE: [u8; 256] = [b'v'; 256];
const ROWS_MAX: i64 = 1000;

struct Noop;

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 1, member_id: 1, revision: 2, raft_term: 2 })
}

fn row(key: Bytes) -> KeyValue {
    let value = Bytes::from_static(&VALUE);
    KeyValue { key, value, create_revision: 2, mod_revision: 2, version: 1, lease: 0 }
}

#[tonic::async_trait]
impl Kv for Noop {
    type RangeStreamStream = Empty<Result<RangeStreamResponse, Status>>;

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let RangeRequest { key, range_end, limit, .. } = request.into_inner();
        let count = if range_end.is_empty() { 1 } else { limit.clamp(0, ROWS_MAX) };
        let kvs = (0..count).map(|_| row(key.clone())).collect();
        Ok(Response::new(RangeResponse { header: header(), kvs, more: false, count }))
    }

    async fn range_stream(
        &self,
        _: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("the no-op server streams nothing"))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(PutResponse { header: header(), prev_kv: None }))
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Ok(Response::new(DeleteRangeResponse {
            header: header(),
            deleted: 1,
            prev_kvs: Vec::new(),
        }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let put = PutResponse { header: header(), prev_kv: None };
        let put = ResponseOp { response: Some(response_op::Response::ResponsePut(put)) };
        let responses = request.into_inner().success.iter().map(|_| put.clone()).collect();
        Ok(Response::new(TxnResponse { header: header(), succeeded: true, responses }))
    }

    async fn compact(
        &self,
        _: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        Ok(Response::new(CompactionResponse { header: header() }))
    }
}

/// Serves on `listener` until the process ends.
///
/// # Errors
/// If the server fails.
pub async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder().add_service(KvServer::new(Noop)).serve_with_incoming(incoming).await?;
    Ok(())
}
