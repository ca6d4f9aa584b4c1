//! Members, status, alarms, and what operators do.
//!
//! Status, hash and defragmentation concern one member: use the clients of [`Client::each`].

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
    /// The members of the cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members(&self) -> Result<Reply<MemberListResponse>, Error> {
        let request = MemberListRequest { linearizable: true };
        let call = |channel| async move { ClusterClient::new(channel).member_list(request).await };
        self.read(call).await.map(Reply::new)
    }

    /// Adds a member that will be reached by `peer_urls`; as a learner it does not vote until it is promoted.
    ///
    /// # Errors
    /// [`Error::Refused`] if the change could cost the cluster its quorum, or for any reason etcd has.
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

    /// Removes a member for good.
    ///
    /// # Errors
    /// As [`Client::add_member`]; [`Error::NotFound`] if there is no such member.
    pub async fn remove_member(&self, id: u64) -> Result<Reply<MemberRemoveResponse>, Error> {
        let request = MemberRemoveRequest { id };
        let call =
            |channel| async move { ClusterClient::new(channel).member_remove(request).await };
        self.write(call).await.map(Reply::new)
    }

    /// Tells the cluster that a member is reached by other URLs.
    ///
    /// # Errors
    /// As [`Client::remove_member`].
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

    /// Makes a learner that is in sync a voter.
    ///
    /// # Errors
    /// As [`Client::remove_member`].
    pub async fn promote_member(&self, id: u64) -> Result<Reply<MemberPromoteResponse>, Error> {
        let request = MemberPromoteRequest { id };
        let call =
            |channel| async move { ClusterClient::new(channel).member_promote(request).await };
        self.write(call).await.map(Reply::new)
    }

    /// The state of one member.
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
    /// [`Error::Compacted`] and [`Error::FutureRevision`] by revision, and those of any read.
    pub async fn hash_kv(&self, revision: i64) -> Result<Reply<HashKvResponse>, Error> {
        let request = HashKvRequest { revision };
        let call = |channel| async move { MaintenanceClient::new(channel).hash_kv(request).await };
        self.read(call).await.map(Reply::new)
    }

    /// The active alarms.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn alarms(&self) -> Result<Reply<AlarmResponse>, Error> {
        let request = AlarmRequest { action: AlarmAction::Get.into(), member_id: 0, alarm: 0 };
        let call = |channel| async move { MaintenanceClient::new(channel).alarm(request).await };
        self.read(call).await.map(Reply::new)
    }

    /// Ends all active alarms and answers with those ended. The answer has no header: etcd has no
    /// request for this, so it is one request for each alarm.
    ///
    /// # Errors
    /// See [`Error`]; alarms before the failed one are ended.
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

    /// Gives free space of one member's store back to the file system.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn defragment(&self) -> Result<(), Error> {
        let call = |channel| async move {
            MaintenanceClient::new(channel).defragment(DefragmentRequest {}).await
        };
        self.write(call).await.map(|_response| ())
    }

    /// Hands leadership to the member `target`. Only the leader accepts this.
    ///
    /// # Errors
    /// [`Error::Refused`] by a member that does not lead or if the target cannot.
    pub async fn move_leader(&self, target: u64) -> Result<(), Error> {
        let request = MoveLeaderRequest { target_id: target };
        let call =
            |channel| async move { MaintenanceClient::new(channel).move_leader(request).await };
        self.write(call).await.map(|_response| ())
    }
    /// Asks for a downgrade of the cluster to `version`, whether one is possible, or for the end of one.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::Invalid`] for any reason the server has.
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

    /// The metrics of one member, as Prometheus reads them. An etcd without TLS does not serve them on
    /// connections for calls.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn metrics(&self) -> Result<String, Error> {
        self.read(|channel| page::read(channel, "/metrics")).await
    }
}
