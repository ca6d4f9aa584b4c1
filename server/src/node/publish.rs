//! Publishes this member's name and URLs to the cluster.

use std::time::Duration;

use conclave_proto::internal;
use conclave_proto::internal::command::Command;
use conclave_raft_store::command::auth::inside;
use conclave_state_machine::members;

use super::Node;
use crate::version;

/// Pause before another attempt to publish.
const PUBLISH_PAUSE: Duration = Duration::from_millis(100);

impl Node {
    /// Publishes this member's name and URLs unless the cluster knows them; retries until it does.
    /// Then logs so, in the words that drivers of etcd up to 3.5 wait for.
    pub(super) async fn publish(&self) {
        let peer_urls = self
            .parts
            .reader
            .membership()
            .membership()
            .get_node(&self.parts.identity.member)
            .map_or_else(
                || self.settings.listen.advertise_peer_urls.clone(),
                |node| node.peer_urls.clone(),
            );
        let publish = internal::MemberPublish {
            id: self.parts.identity.member,
            name: self.settings.name.clone(),
            peer_urls,
            client_urls: self.settings.listen.advertise_client_urls.clone(),
        };
        loop {
            if self.read_barrier().await.is_ok() {
                let is_known = members::all(&self.parts.reader).is_ok_and(|members| {
                    members.iter().any(|member| {
                        member.id == publish.id
                            && member.name == publish.name
                            && member.peer_urls == publish.peer_urls
                            && member.client_urls == publish.client_urls
                    })
                });
                let command = inside(Command::MemberPublish(publish.clone()));
                if is_known || self.propose(command).await.is_ok() {
                    break;
                }
            }
            tokio::time::sleep(PUBLISH_PAUSE).await;
        }
        tracing::info!(
            local_member_id = %format_args!("{:x}", publish.id),
            local_member_name = %publish.name,
            "published local member to cluster through raft"
        );
        tracing::info!(cluster_version = version::CLUSTER, "enabled capabilities for version");
    }
}
