//! The registry of the scripted server: nothing is ever registered.

use conclave_client::v1::{
    InstanceWatchRequest, InstanceWatchResponse, discovery_service_server::DiscoveryService,
    instance_watch_response::Snapshot,
};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::Scripted;

#[tonic::async_trait]
impl DiscoveryService for Scripted {
    type WatchStream = BoxStream<'static, Result<InstanceWatchResponse, Status>>;

    async fn watch(
        &self,
        _: Request<InstanceWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let snapshot = Snapshot::Asked.into();
        let nothing = InstanceWatchResponse { revision: 1, snapshot, ..Default::default() };
        Ok(Response::new(self.0.say(vec![nothing])))
    }
}
