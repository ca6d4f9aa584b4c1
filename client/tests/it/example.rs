//! The examples do what their documentation says.

use crate::start;

#[path = "../../examples/balanced_service.rs"]
mod balanced_service;
#[path = "../../examples/config_subscriber.rs"]
mod config_subscriber;
#[path = "../../examples/fenced_stock.rs"]
mod fenced_stock;
#[path = "../../examples/worker_pool.rs"]
mod worker_pool;

fn text(out: Vec<u8>) -> String {
    String::from_utf8(out).expect("text")
}

#[tokio::test]
async fn a_worker_pool_hands_out_each_job_once() {
    let Some((server, _)) = start("a_worker_pool_hands_out_each_job_once").await else { return };
    let mut out = Vec::new();
    worker_pool::run(&server.endpoint(), &mut out).await.expect("it runs to its end");
    assert_eq!(text(out), include_str!("../../examples/said/worker_pool.txt"));
}

#[tokio::test]
async fn a_fenced_stock_refuses_who_lost_the_lock() {
    let Some((server, _)) = start("a_fenced_stock_refuses_who_lost_the_lock").await else { return };
    let mut out = Vec::new();
    fenced_stock::run(&server.endpoint(), &mut out).await.expect("it runs to its end");
    assert_eq!(text(out), include_str!("../../examples/said/fenced_stock.txt"));
}

#[tokio::test]
async fn a_balanced_service_outlives_its_instances() {
    let test = "a_balanced_service_outlives_its_instances";
    let Some((server, _)) = start(test).await else { return };
    let mut out = Vec::new();
    balanced_service::run(&server.endpoint(), &mut out).await.expect("it runs to its end");
    assert_eq!(text(out), include_str!("../../examples/said/balanced_service.txt"));
}

#[tokio::test]
async fn a_config_subscriber_follows_its_settings() {
    let Some((server, _)) = start("a_config_subscriber_follows_its_settings").await else { return };
    let mut out = Vec::new();
    config_subscriber::run(&server.endpoint(), &mut out).await.expect("it runs to its end");
    assert_eq!(text(out), include_str!("../../examples/said/config_subscriber.txt"));
}
