//! The examples of the client crate, as they are, against three nodes.

use crate::support::Nodes;

#[path = "../../../client/examples/balanced_service.rs"]
mod balanced_service;
#[path = "../../../client/examples/config_subscriber.rs"]
mod config_subscriber;
#[path = "../../../client/examples/fenced_stock.rs"]
mod fenced_stock;
#[path = "../../../client/examples/worker_pool.rs"]
mod worker_pool;

/// Runs an example with three nodes of its own, and compares what it prints with what it ought to.
macro_rules! example {
    ($test:ident, $name:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let nodes = Nodes::serving(3, &[]).await;
            let mut out = Vec::new();
            let endpoints = nodes.cluster.endpoints().join(",");
            $name::run(&endpoints, &mut out).await.expect("it runs to its end");
            let said =
                include_str!(concat!("../../../client/examples/said/", stringify!($name), ".txt"));
            assert_eq!(String::from_utf8(out).expect("text"), said);
        }
    };
}

example!(a_worker_pool_hands_out_each_job_once_on_three_nodes, worker_pool);
example!(a_fenced_stock_refuses_who_lost_the_lock_on_three_nodes, fenced_stock);
example!(a_balanced_service_outlives_its_instances_on_three_nodes, balanced_service);
example!(a_config_subscriber_follows_its_settings_on_three_nodes, config_subscriber);
