//! Static facts about this server: versions, member id, features.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Labels;
use crate::config::Gates;
use crate::version;

pub(super) fn register_features(registry: &mut Registry, gates: Gates) {
    let family = Family::<Labels<2>, Gauge>::default();
    for (name, stage, is_on) in gates.all() {
        family.get_or_create(&[("name", name), ("stage", stage)]).set(is_on.into());
    }
    let help = "Whether what a feature gate of etcd switches on is so here";
    registry.register("etcd_server_feature_enabled", help, family);
}

/// The version without its patch level, as etcd tells that of a cluster.
fn minor(version: &'static str) -> &'static str {
    version.rsplit_once('.').map_or(version, |(minor, _patch)| minor)
}

pub(super) fn register_versions(registry: &mut Registry, member_id: u64) {
    let one = |name: &'static str, value: String| {
        let family = Family::<Vec<(&'static str, String)>, Gauge>::default();
        family.get_or_create(&vec![(name, value)]).set(1);
        family
    };
    registry.register(
        "etcd_server_version",
        "Version of etcd whose interface this server speaks",
        one("server_version", version::ETCD.to_owned()),
    );
    registry.register(
        "etcd_cluster_version",
        "Lowest such version in the cluster",
        one("cluster_version", minor(version::CLUSTER).to_owned()),
    );
    registry.register(
        "etcd_server_id",
        "Id of this member",
        one("server_id", format!("{member_id:x}")),
    );
    registry.register(
        "conclave_build_info",
        "Version of this server",
        one("version", version::CONCLAVE.to_owned()),
    );
}
