//! The Maintenance service: administration of a single member.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::command::Command as Message;
use conclave_raft_store::command;
use conclave_state_machine::response::Response as Answer;
use etcd::alarm_request::AlarmAction;
use etcd::downgrade_request::DowngradeAction;
use etcd::maintenance_server::Maintenance;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::context::{Context, mismatch};
use super::convert;
use super::kv::off_thread;
use super::snapshot::{self, Snapshots};
use crate::metrics::{Method, Pending};
use crate::node::{NodeStatus, TransferError};
use crate::status::{self, Fault};
use crate::version;

/// Answers maintenance calls.
#[derive(Clone)]
pub(crate) struct MaintenanceService {
    pub(crate) context: Context,
    /// One permit for each snapshot that may be sent at a time.
    pub(crate) snapshots: Arc<Semaphore>,
}

/// Accepts a downgrade by exactly one minor version.
fn check_downgrade(target: &str) -> Result<(), Fault> {
    let number = |text: &str| text.parse::<u32>().ok();
    let parts = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split('.');
        let (major, minor) = (number(parts.next()?)?, number(parts.next()?)?);
        let is_whole = parts.next().is_none_or(|patch| number(patch).is_some());
        (is_whole && parts.next().is_none()).then_some((major, minor))
    };
    let (major, minor) = parts(target).ok_or(Fault::WrongDowngradeVersionFormat)?;
    let now = parts(version::CLUSTER).ok_or(Fault::ClusterVersionUnavailable)?;
    if now == (major, minor.saturating_add(1)) {
        Ok(())
    } else {
        Err(Fault::InvalidDowngradeTarget)
    }
}

impl MaintenanceService {
    async fn answer_alarm(
        &self,
        request: Request<etcd::AlarmRequest>,
    ) -> Result<etcd::AlarmResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let change =
            command::alarm(&request).map_err(|refused| status::from_rejection(&refused))?;
        if request.action == AlarmAction::Get as i32 {
            return self.answer_alarm_list(change).await;
        }
        match self.context.propose(&caller, Message::Alarm(request)).await? {
            (Answer::Alarm(alarms), revision) => Ok(etcd::AlarmResponse {
                header: Some(self.context.header(revision)),
                alarms: convert::alarm_members(&alarms),
            }),
            _ => Err(mismatch()),
        }
    }

    /// Lists alarms; needs no log entry.
    async fn answer_alarm_list(
        &self,
        wanted: conclave_state_machine::command::AlarmChange,
    ) -> Result<etcd::AlarmResponse, Status> {
        use conclave_state_machine::command::AlarmKind;
        self.context.read_barrier().await?;
        let head = self.context.node.reader().head();
        let mut alarms = head.alarms.clone();
        alarms.retain(|(_, kind)| wanted.alarm == AlarmKind::None || *kind == wanted.alarm);
        Ok(etcd::AlarmResponse {
            header: Some(self.context.header(head.revision)),
            alarms: convert::alarm_members(&alarms),
        })
    }

    async fn answer_status(
        &self,
        request: Request<etcd::StatusRequest>,
    ) -> Result<etcd::StatusResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let node = &self.context.node;
        let NodeStatus { leader, term, committed_index, applied_index, is_learner, .. } =
            node.status();
        let head = node.reader().head();
        let sizes = node.reader().sizes();
        let mut errors = Vec::new();
        if leader.is_none() {
            errors.push(Fault::NoLeader.text().to_owned());
        }
        errors.extend(head.alarms.iter().map(convert::alarm_text));
        Ok(etcd::StatusResponse {
            header: Some(self.context.header(head.revision)),
            version: version::ETCD.to_owned(),
            db_size: sizes.total,
            leader: leader.unwrap_or(0),
            raft_index: committed_index,
            raft_term: term,
            raft_applied_index: applied_index,
            errors,
            db_size_in_use: sizes.in_use,
            is_learner,
            storage_version: version::STORAGE.to_owned(),
            db_size_quota: self.context.node.space().quota_bytes().unwrap_or(0),
            downgrade_info: Some(etcd::DowngradeInfo::default()),
        })
    }

    async fn answer_defragment(
        &self,
        request: Request<etcd::DefragmentRequest>,
    ) -> Result<etcd::DefragmentResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let context = self.context.clone();
        // It continues if the caller gives up, and counts as running until it is done.
        let done = off_thread(move || {
            tracing::info!("starting defragment");
            let _under_way = Pending::new(&context.metrics.defragmenting);
            let began = Instant::now();
            context.node.reader().defragment()?;
            context.metrics.defragmentations.observe(began.elapsed().as_secs_f64());
            tracing::info!("finished defragment");
            Ok(())
        });
        done.await?.map_err(|error: io::Error| status::internal(&error))?;
        // etcd leaves the header unset.
        Ok(etcd::DefragmentResponse { header: None })
    }

    async fn answer_hash(
        &self,
        request: Request<etcd::HashRequest>,
    ) -> Result<etcd::HashResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        let began = Instant::now();
        let head = self.context.node.reader().head();
        // The digest covers all history; it is folded to the width of the field.
        let hash = crc32c::crc32c(&head.digest.to_be_bytes());
        self.context.metrics.hashes.observe(began.elapsed().as_secs_f64());
        Ok(etcd::HashResponse { header: Some(self.context.header(head.revision)), hash })
    }

    async fn answer_hash_kv(
        &self,
        request: Request<etcd::HashKvRequest>,
    ) -> Result<etcd::HashKvResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let revision = request.revision;
        let reader = self.context.node.reader().clone();
        let began = Instant::now();
        let answer = off_thread(move || reader.hash_kv(revision)).await?;
        self.context.metrics.history_hashes.observe(began.elapsed().as_secs_f64());
        // Hashing may have taken minutes: check that the caller still has the right.
        self.context.auth.check_root(&caller)?;
        let found = answer.map_err(|error| status::from_read(&error))?;
        Ok(etcd::HashKvResponse {
            header: Some(self.context.header(found.current)),
            hash: found.hash,
            compact_revision: found.compacted,
            hash_revision: found.revision,
        })
    }

    /// Validates a target version, but refuses the downgrade itself: the store has one format only,
    /// so there is nothing to prepare.
    async fn answer_downgrade(
        &self,
        request: Request<etcd::DowngradeRequest>,
    ) -> Result<etcd::DowngradeResponse, Status> {
        self.context.check_metadata(request.metadata())?;
        self.context.read_barrier().await?;
        let etcd::DowngradeRequest { action, version } = request.into_inner();
        match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Validate) => check_downgrade(&version)?,
            Ok(DowngradeAction::Enable) => {
                check_downgrade(&version)?;
                return Err(status::no_older_format());
            }
            Ok(DowngradeAction::Cancel) => return Err(Fault::NoInflightDowngrade.into()),
            Err(_) => return Err(status::unknown("etcdserver: unknown method")),
        }
        let header = Some(self.context.current_header());
        Ok(etcd::DowngradeResponse { header, version: version::CLUSTER.to_owned() })
    }

    async fn answer_move_leader(
        &self,
        request: Request<etcd::MoveLeaderRequest>,
    ) -> Result<etcd::MoveLeaderResponse, Status> {
        let (caller, request) = self.context.accept(request)?;
        let target = request.target_id;
        if !self.context.node.is_leader() {
            return Err(status::from_transfer(&TransferError::NotLeader));
        }
        // Rights are checked here, after a barrier: a transfer is no log entry, so apply cannot
        // check them.
        self.context.read_barrier().await?;
        self.context.auth.check_root(&caller)?;
        self.context
            .node
            .transfer_leader(target)
            .await
            .map_err(|error| status::from_transfer(&error))?;
        // etcd leaves the header unset.
        Ok(etcd::MoveLeaderResponse { header: None })
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = Snapshots;

    async fn alarm(
        &self,
        request: Request<etcd::AlarmRequest>,
    ) -> Result<Response<etcd::AlarmResponse>, Status> {
        self.context.metrics.call(Method::Alarm, self.answer_alarm(request)).await
    }

    async fn status(
        &self,
        request: Request<etcd::StatusRequest>,
    ) -> Result<Response<etcd::StatusResponse>, Status> {
        self.context.metrics.call(Method::Status, self.answer_status(request)).await
    }

    async fn defragment(
        &self,
        request: Request<etcd::DefragmentRequest>,
    ) -> Result<Response<etcd::DefragmentResponse>, Status> {
        self.context.metrics.call(Method::Defragment, self.answer_defragment(request)).await
    }

    async fn hash(
        &self,
        request: Request<etcd::HashRequest>,
    ) -> Result<Response<etcd::HashResponse>, Status> {
        self.context.metrics.call(Method::Hash, self.answer_hash(request)).await
    }

    async fn hash_kv(
        &self,
        request: Request<etcd::HashKvRequest>,
    ) -> Result<Response<etcd::HashKvResponse>, Status> {
        self.context.metrics.call(Method::HashKv, self.answer_hash_kv(request)).await
    }

    async fn snapshot(
        &self,
        request: Request<etcd::SnapshotRequest>,
    ) -> Result<Response<Snapshots>, Status> {
        let opened = snapshot::open(&self.context, &self.snapshots, request);
        self.context.metrics.stream(Method::Snapshot, opened).await
    }

    async fn move_leader(
        &self,
        request: Request<etcd::MoveLeaderRequest>,
    ) -> Result<Response<etcd::MoveLeaderResponse>, Status> {
        self.context.metrics.call(Method::MoveLeader, self.answer_move_leader(request)).await
    }

    async fn downgrade(
        &self,
        request: Request<etcd::DowngradeRequest>,
    ) -> Result<Response<etcd::DowngradeResponse>, Status> {
        self.context.metrics.call(Method::Downgrade, self.answer_downgrade(request)).await
    }
}
