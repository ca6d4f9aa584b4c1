//! `grpc.health.v1` with the one service `""`, as in etcd: SERVING as long as this process runs.
//! Its calls are counted like all others.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use crate::metrics::{Answers, Metrics};

/// The health service, with its calls counted.
pub(super) struct CountedHealth {
    service: HealthService,
    metrics: Arc<Metrics>,
}

impl CountedHealth {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        // The reporter registers the service name "" as SERVING, the only one that etcd has.
        let service = HealthService::from_health_reporter(HealthReporter::new());
        Self { service, metrics }
    }
}

#[tonic::async_trait]
impl Health for CountedHealth {
    type WatchStream = Answers<HealthCheckResponse>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let answer = async { Ok(self.service.check(request).await?.into_inner()) };
        self.metrics.health_check.unary(answer).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let calls = &self.metrics.health_watch;
        calls.received(1);
        let opened = async {
            let answers = self.service.watch(request).await?.into_inner();
            Ok(Box::pin(answers) as Self::WatchStream)
        };
        calls.stream(opened).await
    }
}
