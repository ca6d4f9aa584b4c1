//! The registry of the scripted server: records registrations and removals, and lists scripted
//! instances.

use std::sync::atomic::Ordering;

use conclave_client::registry::Record;
use conclave_client::v1::{
    DeregisterRequest, DeregisterResponse, DiscoverRequest, DiscoverResponse,
    InstanceUpdateRequest, InstanceUpdateResponse, InstanceWatchRequest, InstanceWatchResponse,
    RegisterRequest, RegisterResponse, ServiceConfigureRequest, ServiceConfigureResponse,
    ServiceListRequest, ServiceListResponse, discovery_service_server::DiscoveryService,
    instance_watch_response::Snapshot, registry_service_server::RegistryService,
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
        let told = self.0.changes.lock().pop_front();
        Ok(Response::new(self.0.say(told.unwrap_or_else(|| vec![nothing]))))
    }
}

#[tonic::async_trait]
impl RegistryService for Scripted {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let request = request.into_inner();
        let is_late = Record::decode(&request.id, &request.record)
            .is_some_and(|record| record.address == "late:1");
        let fence = {
            let mut registered = self.0.registered.lock();
            registered.push(request);
            i64::try_from(registered.len()).unwrap_or(i64::MAX)
        };
        let mut hang = self.0.do_registrations_hang.subscribe();
        if is_late && *hang.borrow() {
            hang.wait_for(|hang| !hang).await.expect("the script is there");
            return Err(Status::invalid_argument("the record is too long"));
        }
        if self.0.are_registrations_lost.load(Ordering::Relaxed) {
            return Err(Status::unavailable("etcdserver: leader changed"));
        }
        Ok(Response::new(RegisterResponse { fence, ..RegisterResponse::default() }))
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        if self.0.has_no_leader.load(Ordering::Relaxed) {
            return Err(Status::unavailable("etcdserver: no leader"));
        }
        self.0.deregistered.lock().push(request.into_inner());
        Ok(Response::new(DeregisterResponse { removed: true }))
    }

    async fn update(
        &self,
        _: Request<InstanceUpdateRequest>,
    ) -> Result<Response<InstanceUpdateResponse>, Status> {
        self.0.operations.fetch_add(1, Ordering::Relaxed);
        Err(Status::unavailable("etcdserver: leader changed"))
    }

    async fn discover(
        &self,
        _: Request<DiscoverRequest>,
    ) -> Result<Response<DiscoverResponse>, Status> {
        let found = self.0.found.lock().pop_front();
        self.0.discoveries.fetch_add(1, Ordering::Relaxed);
        match found {
            Some(found) => Ok(Response::new(found)),
            None => std::future::pending().await,
        }
    }

    async fn list_services(
        &self,
        _: Request<ServiceListRequest>,
    ) -> Result<Response<ServiceListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }

    async fn configure(
        &self,
        _: Request<ServiceConfigureRequest>,
    ) -> Result<Response<ServiceConfigureResponse>, Status> {
        self.0.operations.fetch_add(1, Ordering::Relaxed);
        Err(Status::unavailable("etcdserver: leader changed"))
    }
}
