//! Counters of the scripted server. It remembers as many requests of a session as a cluster does.

use std::sync::atomic::Ordering;

use conclave_client::v1::{
    CounterAddRequest, CounterGetRequest, CounterResponse, CounterSetRequest,
    counter_service_server::CounterService,
};
use tonic::{Request, Response, Status};

use super::Scripted;

/// Most answers of one session that are kept.
const UNSETTLED_MAX: usize = 256;

#[tonic::async_trait]
impl CounterService for Scripted {
    async fn add(
        &self,
        request: Request<CounterAddRequest>,
    ) -> Result<Response<CounterResponse>, Status> {
        let CounterAddRequest { once, delta, .. } = request.into_inner();
        let answer =
            self.0.add_answers.lock().pop_front().unwrap_or(Ok(CounterResponse::default()));
        if delta == 0 {
            self.0.has_stuck.store(true, Ordering::Relaxed);
            let mut is_stuck = self.0.is_stuck.subscribe();
            is_stuck.wait_for(|is_stuck| !is_stuck).await.expect("the script is there");
        }
        if let Some(once) = once {
            let mut unsettled = self.0.unsettled.lock();
            unsettled.retain(|sequence| *sequence >= once.settled);
            if unsettled.len() >= UNSETTLED_MAX {
                let text = "conclave: too many requests of the session are unsettled";
                return Err(Status::failed_precondition(text));
            }
            unsettled.insert(once.sequence);
        }
        answer.map(Response::new)
    }

    async fn set(
        &self,
        _: Request<CounterSetRequest>,
    ) -> Result<Response<CounterResponse>, Status> {
        Err(Status::unimplemented("set"))
    }

    async fn get(
        &self,
        _: Request<CounterGetRequest>,
    ) -> Result<Response<CounterResponse>, Status> {
        Err(Status::unimplemented("get"))
    }
}
