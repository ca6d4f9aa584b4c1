//! Elections of the scripted server: every candidate leads.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use conclave_client::pb::ResponseHeader;
use conclave_client::v1::{
    CampaignRequest, CampaignResponse, Elected, Leader, ObserveRequest, ObserveResponse,
    ProclaimRequest, ProclaimResponse, ResignRequest, ResignResponse, campaign_response::Event,
    election_service_server::ElectionService,
};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::Scripted;

#[tonic::async_trait]
impl ElectionService for Scripted {
    type CampaignStream = BoxStream<'static, Result<CampaignResponse, Status>>;
    type ObserveStream = BoxStream<'static, Result<ObserveResponse, Status>>;

    async fn campaign(
        &self,
        _: Request<CampaignRequest>,
    ) -> Result<Response<Self::CampaignStream>, Status> {
        let elected = Elected { key: Bytes::from_static(b"key"), fence: 1, revision: 1 };
        let elected = CampaignResponse { event: Some(Event::Elected(elected)) };
        let answers = self.0.say(vec![elected]);
        self.0.campaigns.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(answers))
    }

    async fn proclaim(
        &self,
        _: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        Err(Status::unimplemented("proclaim"))
    }

    async fn resign(&self, _: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        Ok(Response::new(ResignResponse { resigned: true }))
    }

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        // A leader with another fence each time, because an unchanged leader is not reported again.
        let streams = self.0.observers.fetch_add(1, Ordering::Relaxed) + 1;
        let fence = i64::try_from(streams).expect("few streams");
        let leader = Some(Leader { fence, ..Leader::default() });
        self.0.observed_from.lock().push(request.into_inner().start_revision);
        let cluster_id = self.0.cluster.load(Ordering::Relaxed);
        let header = Some(ResponseHeader { cluster_id, revision: 5, ..ResponseHeader::default() });
        let told = ObserveResponse { leader, revision: 5, header, ..ObserveResponse::default() };
        Ok(Response::new(self.0.say(vec![told])))
    }
}
