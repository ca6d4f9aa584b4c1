//! Members, status, alarms, and other operator calls.
//!
//! Status, hash and defragmentation apply to one member: use the clients from [`Client::each`].

use conclave_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DowngradeRequest, DowngradeResponse,
    HashKvRequest, HashKvResponse, MemberAddRequest, MemberAddResponse, MemberListRequest,
    MemberListResponse, MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest,
    MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse, MoveLeaderRequest,
    StatusRequest, StatusResponse, alarm_request::AlarmAction, cluster_client::ClusterClient,
    downgrade_request::DowngradeAction, maintenance_client::MaintenanceClient,
};

use crate::{client::Client, error::Error, page, reply::Reply};

impl Client {
    /// Lists the members of the cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members(&self) -> Result<Reply<MemberListResponse>, Error> {
        let request = MemberListRequest { linearizable: true };
        let call = |channel| async move { ClusterClient::new(channel).member_list(request).await };
        self.read(call).await.map(Reply::new)
    }

    /// Adds a member with these peer URLs. A learner does not vote until it is promoted.
    ///
    /// # Errors
    /// [`Error::Refused`] if the change could cost the cluster its quorum, or for any reason of
    /// etcd's.
    pub async fn add_member(
        &self,
        peer_urls: Vec<String>,
        is_learner: bool,
    ) -> Result<Reply<MemberAddResponse>, Error> {
        let request = MemberAddRequest { peer_ur_ls: peer_urls, is_learner };
        let call = |channel| {
            let request = request.clone();
            async move { ClusterClient::new(channel).member_add(request).await }
        };
        self.write(call).await.map(Reply::new)
    }

    /// Removes a member permanently.
    ///
    /// # Errors
    /// As for [`Client::add_member`]; [`Error::NotFound`] if there is no such member.
    pub async fn remove_member(&self, id: u64) -> Result<Reply<MemberRemoveResponse>, Error> {
        let request = MemberRemoveRequest { id };
        let call =
            |channel| async move { ClusterClient::new(channel).member_remove(request).await };
        self.write(call).await.map(Reply::new)
    }

    /// Changes the peer URLs of a member.
    ///
    /// # Errors
    /// As for [`Client::remove_member`].
    pub async fn update_member(
        &self,
        id: u64,
        peer_urls: Vec<String>,
    ) -> Result<Reply<MemberUpdateResponse>, Error> {
        let request = MemberUpdateRequest { id, peer_ur_ls: peer_urls };
        let call = |channel| {
            let request = request.clone();
            async move { ClusterClient::new(channel).member_update(request).await }
        };
        self.write(call).await.map(Reply::new)
    }

    /// Promotes a learner that has caught up to a voter.
    ///
    /// # Errors
    /// As for [`Client::remove_member`].
    pub async fn promote_member(&self, id: u64) -> Result<Reply<MemberPromoteResponse>, Error> {
        let request = MemberPromoteRequest { id };
        let call =
            |channel| async move { ClusterClient::new(channel).member_promote(request).await };
        self.write(call).await.map(Reply::new)
    }

    /// Reads the state of one member.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<Reply<StatusResponse>, Error> {
        let call =
            |channel| async move { MaintenanceClient::new(channel).status(StatusRequest {}).await };
        self.read(call).await.map(Reply::new)
    }

    /// The hash of one member's keys and history up to `revision` (0 for the current one).
    ///
    /// # Errors
    /// [`Error::Compacted`] or [`Error::FutureRevision`] if `revision` cannot be read, and those of
    /// any read.
    pub async fn hash_kv(&self, revision: i64) -> Result<Reply<HashKvResponse>, Error> {
        let request = HashKvRequest { revision };
        let call = |channel| async move { MaintenanceClient::new(channel).hash_kv(request).await };
        self.read(call).await.map(Reply::new)
    }

    /// Lists the active alarms.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn alarms(&self) -> Result<Reply<AlarmResponse>, Error> {
        let request = AlarmRequest { action: AlarmAction::Get.into(), member_id: 0, alarm: 0 };
        let call = |channel| async move { MaintenanceClient::new(channel).alarm(request).await };
        self.read(call).await.map(Reply::new)
    }

    /// Disarms all active alarms and returns them. The result has no header: etcd has no request
    /// for all alarms, so one is sent for each.
    ///
    /// # Errors
    /// See [`Error`]; alarms before the failed one are disarmed.
    pub async fn disarm_alarms(&self) -> Result<AlarmResponse, Error> {
        let mut ended = AlarmResponse::default();
        for active in self.alarms().await?.into_inner().alarms {
            let request = AlarmRequest {
                action: AlarmAction::Deactivate.into(),
                member_id: active.member_id,
                alarm: active.alarm,
            };
            let call =
                |channel| async move { MaintenanceClient::new(channel).alarm(request).await };
            ended.alarms.extend(self.write(call).await?.alarms);
        }
        Ok(ended)
    }

    /// Returns free space in one member's store to the file system.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn defragment(&self) -> Result<(), Error> {
        let call = |channel| async move {
            MaintenanceClient::new(channel).defragment(DefragmentRequest {}).await
        };
        self.write(call).await.map(|_response| ())
    }

    /// Transfers leadership to the member `target`. Only the leader accepts this.
    ///
    /// # Errors
    /// [`Error::Refused`] if the member that answers does not lead, or the target cannot.
    pub async fn move_leader(&self, target: u64) -> Result<(), Error> {
        let request = MoveLeaderRequest { target_id: target };
        let call =
            |channel| async move { MaintenanceClient::new(channel).move_leader(request).await };
        self.write(call).await.map(|_response| ())
    }
    /// Validates, starts or cancels a downgrade of the cluster to `version`.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Invalid`] with the server's reason.
    pub async fn downgrade(
        &self,
        action: DowngradeAction,
        version: &str,
    ) -> Result<Reply<DowngradeResponse>, Error> {
        let request = DowngradeRequest { action: action.into(), version: version.to_owned() };
        let call = |channel| {
            let request = request.clone();
            async move { MaintenanceClient::new(channel).downgrade(request).await }
        };
        self.write(call).await.map(Reply::new)
    }

    /// Reads the metrics of one member in Prometheus format. An etcd without TLS does not serve
    /// them on its client connections.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn metrics(&self) -> Result<String, Error> {
        self.read(|channel| page::read(channel, "/metrics")).await
    }
}
