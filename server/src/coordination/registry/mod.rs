//! The registry service: instances of services, and who watches them.
//!
//! ```text
//!  Register, Update, ... ─► propose ─► apply: the key of the instance, and what the index knows of it
//!                                        │ events of the service's keys
//!                                        ▼
//!  Watch ◄─ bytes, encoded once ◄─ feed: one view for all who watch a service on this member
//!  leader: keeper (what is due), checks (who is well) ─► propose
//! ```
//!
//! | module | what |
//! |---|---|
//! | `show` | instances as messages, filters |
//! | `discover` | pages of instances, services, Prometheus' targets |
//! | `feed`, `watch` | one view of each watched service; its watchers |
//! | `encoded` | what watchers are told, as bytes |
//! | `ring` | what watchers are still to be told, bounded |
//! | `window` | what one of them takes of it, in a large service several steps as one |
//! | `history` | what watchers missed that resume |
//! | `keeper` | times that the leader measures |
//! | `checks`, `schedule`, `probe` | active checks by the leader |

mod checks;
mod discover;
mod encoded;
mod feed;
mod history;
mod keeper;
mod probe;
mod ring;
mod schedule;
mod show;
mod watch;
mod window;

use std::sync::Arc;

use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::v1;
use conclave_raft_store::command;
use conclave_state_machine::command::{Caller, RegistryCommand};
use conclave_state_machine::registry::{check, record::Check};
use conclave_state_machine::response::{RegistryResponse, Rejection, Response as Answer};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use v1::registry_service_server::{RegistryService, RegistryServiceServer};

use crate::api::COMPRESSION;
use crate::api::context::{Context, mismatch};
use crate::auth::caller_of;
use crate::config::ChecksAllowed;
use crate::coordination::unix_ms;
use crate::metrics::Method;
use crate::status;

pub(crate) use checks::Changed;
pub(crate) use discover::{counted, targets};
pub(crate) use probe::Trust;

/// Adds the services of the registry.
pub(super) fn add(routes: Routes, context: &Context) -> Routes {
    let registry = RegistryServiceServer::new(RegistryApi { context: context.clone() })
        .max_decoding_message_size(context.limits.receive_bytes_max())
        .accept_compressed(COMPRESSION);
    let discovery = watch::DiscoveryServer::new(context.clone(), Arc::new(feed::Feeds::default()));
    routes.add_service(registry).add_service(discovery)
}

/// What only a leader does; for as long as the node runs. Checks by TLS believe whom `trust` says.
pub(crate) async fn lead(context: Context, trust: Trust) {
    let trust = Arc::new(trust);
    let stopping = context.node.stopping().clone();
    tokio::select! {
        () = stopping.cancelled() => {}
        () = keeper::run(&context) => {}
        () = checks::run(&context, &trust) => {}
    }
}

/// Answers registry calls.
#[derive(Clone)]
struct RegistryApi {
    context: Context,
}

/// What apply would refuse is refused before it is proposed.
fn checked(command: Result<RegistryCommand, Rejection>) -> Result<RegistryCommand, Status> {
    let command = command.and_then(|command| check::command(&command).map(|()| command));
    command.map_err(|rejection| status::from_rejection(&rejection))
}

impl RegistryApi {
    fn is_damping(&self) -> bool {
        self.context.node.settings().registry.is_damping
    }

    async fn propose(&self, caller: &Caller, message: Message) -> Result<RegistryResponse, Status> {
        match self.context.propose(caller, message).await? {
            (Answer::Registry(answer), _) => Ok(answer),
            _ => Err(mismatch()),
        }
    }

    async fn answer_register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<v1::RegisterResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        let cost = request.service.len() + request.id.len() + request.record.len();
        self.context.check_quota(cost).await?;
        let now_unix_ms = unix_ms();
        let damping = self.is_damping();
        let message = internal::RegistryRegister { request: Some(request), now_unix_ms, damping };
        let command = checked(Ok(command::registry::register(message.clone())))?;
        if let RegistryCommand::Register(register) = &command {
            let record = check::register(register).and_then(|record| {
                check::address(&record.address)?;
                Ok(record)
            });
            let record = record.map_err(|rejection| status::from_rejection(&rejection))?;
            let allowed = self.context.node.settings().registry.checks;
            for (_, check) in record.details.all_checks() {
                check_allowed(check, &record.address, allowed)?;
            }
        }
        match self.propose(&caller, Message::RegistryRegister(message)).await? {
            RegistryResponse::Registered { fence, mod_revision, is_new } => {
                Ok(v1::RegisterResponse { fence, mod_revision, created: is_new })
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_update(
        &self,
        request: Request<v1::InstanceUpdateRequest>,
    ) -> Result<v1::InstanceUpdateResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = Some(request.into_inner());
        let now_unix_ms = unix_ms();
        let damping = self.is_damping();
        let message = internal::RegistryUpdate { request, now_unix_ms, damping };
        checked(command::registry::update(message.clone()))?;
        match self.propose(&caller, Message::RegistryUpdate(message)).await? {
            RegistryResponse::Updated { fence, mod_revision } => {
                Ok(v1::InstanceUpdateResponse { fence, mod_revision })
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_deregister(
        &self,
        request: Request<v1::DeregisterRequest>,
    ) -> Result<v1::DeregisterResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        checked(Ok(command::registry::deregister(request.clone())))?;
        match self.propose(&caller, Message::RegistryDeregister(request)).await? {
            RegistryResponse::Removed { was_there } => {
                Ok(v1::DeregisterResponse { removed: was_there })
            }
            _ => Err(mismatch()),
        }
    }

    async fn answer_configure(
        &self,
        request: Request<v1::ServiceConfigureRequest>,
    ) -> Result<v1::ServiceConfigureResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let caller = caller_of(request.extensions());
        let request = request.into_inner();
        let name = request.service.clone();
        checked(Ok(command::registry::configure(request.clone())))?;
        match self.propose(&caller, Message::RegistryConfigure(request)).await? {
            RegistryResponse::Configured(row) => {
                let service = Some(show::summary(name, &row));
                Ok(v1::ServiceConfigureResponse { service })
            }
            _ => Err(mismatch()),
        }
    }
}

/// A check makes this member connect to wherever an owner says: only to the instance's own address,
/// unless the operator allows more.
fn check_allowed(check: &Check, address: &str, allowed: ChecksAllowed) -> Result<(), Status> {
    let target = if check.address.is_empty() { address } else { &check.address };
    match allowed {
        ChecksAllowed::Any => Ok(()),
        ChecksAllowed::Off => Err(Status::failed_precondition(
            "conclave: this cluster makes no active checks (--registry-checks)",
        )),
        ChecksAllowed::Own if target != address => Err(Status::failed_precondition(
            "conclave: checks go to the instance's own address only (--registry-checks)",
        )),
        ChecksAllowed::Own => Ok(()),
    }
}

#[tonic::async_trait]
impl RegistryService for RegistryApi {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let answer = self.answer_register(request);
        self.context.metrics.call(Method::RegistryRegister, answer).await
    }

    async fn update(
        &self,
        request: Request<v1::InstanceUpdateRequest>,
    ) -> Result<Response<v1::InstanceUpdateResponse>, Status> {
        self.context.metrics.call(Method::RegistryUpdate, self.answer_update(request)).await
    }

    async fn deregister(
        &self,
        request: Request<v1::DeregisterRequest>,
    ) -> Result<Response<v1::DeregisterResponse>, Status> {
        let answer = self.answer_deregister(request);
        self.context.metrics.call(Method::RegistryDeregister, answer).await
    }

    async fn discover(
        &self,
        request: Request<v1::DiscoverRequest>,
    ) -> Result<Response<v1::DiscoverResponse>, Status> {
        let answer = discover::discover(&self.context, request);
        self.context.metrics.call(Method::RegistryDiscover, answer).await
    }

    async fn list_services(
        &self,
        request: Request<v1::ServiceListRequest>,
    ) -> Result<Response<v1::ServiceListResponse>, Status> {
        let answer = discover::services(&self.context, request);
        self.context.metrics.call(Method::RegistryListServices, answer).await
    }

    async fn configure(
        &self,
        request: Request<v1::ServiceConfigureRequest>,
    ) -> Result<Response<v1::ServiceConfigureResponse>, Status> {
        let answer = self.answer_configure(request);
        self.context.metrics.call(Method::RegistryConfigure, answer).await
    }
}
