//! The write service: writes that are safe to retry.

use conclave_proto::internal::command::Command as Message;
use conclave_proto::{etcdserverpb as etcd, v1};
use conclave_raft_store::{Reader, command};
use conclave_state_machine::locks::check;
use conclave_state_machine::response::{Response as Answer, WriteAnswer, WriteResponse};
use conclave_state_machine::writes;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use v1::write_response::State;
use v1::write_service_server::{WriteService, WriteServiceServer};

use crate::api::context::{Context, mismatch};
use crate::api::{COMPRESSION, check as api_check, convert, limits};
use crate::auth::caller_of;
use crate::metrics::Method;
use crate::status;

/// Answers writes.
#[derive(Clone)]
struct WriteApi {
    context: Context,
}

/// Adds the service.
pub(super) fn add(routes: Routes, context: &Context) -> Routes {
    let most = context.limits.receive_bytes_max();
    let api = WriteApi { context: context.clone() };
    routes.add_service(
        WriteServiceServer::new(api).max_decoding_message_size(most).accept_compressed(COMPRESSION),
    )
}

impl WriteApi {
    async fn answer(
        &self,
        request: Request<v1::WriteRequest>,
    ) -> Result<v1::WriteResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let mut request = request.into_inner();
        let txn: &etcd::TxnRequest = request.txn.get_or_insert_default();
        let (cost, id) = (limits::txn_cost(txn), command::write::id(&request));
        let is_known = |reader: &Reader| writes::is_answered(reader, &id);
        self.context.check_quota_unless(cost, is_known).await?;
        let txn = request.txn.get_or_insert_default();
        api_check::txn(txn, self.context.limits.txn_ops_max)?;
        self.context.check_size(txn)?;
        let checked = command::write::write(request.clone())
            .and_then(|write| writes::check(&write.id).map(|()| write))
            .and_then(|write| check::guards(&write.guarded.guards));
        checked.map_err(|rejection| status::from_rejection(&rejection))?;
        match self.context.propose(&caller, Message::Write(request)).await? {
            (Answer::Write(answer), _) => Ok(self.convert(answer)),
            _ => Err(mismatch()),
        }
    }

    fn convert(&self, answer: WriteResponse) -> v1::WriteResponse {
        let WriteResponse { revision, answer } = answer;
        let (state, txn) = match answer {
            WriteAnswer::NotHeld => (State::NotHeld, None),
            WriteAnswer::Unkept => (State::Unkept, None),
            WriteAnswer::Forgotten => (State::Forgotten, None),
            WriteAnswer::Done(txn) => {
                (State::Done, Some(convert::txn(self.context.header(revision), txn)))
            }
        };
        v1::WriteResponse { state: state.into(), revision, txn }
    }
}

#[tonic::async_trait]
impl WriteService for WriteApi {
    async fn write(
        &self,
        request: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        self.context.metrics.call(Method::Write, self.answer(request)).await
    }
}
