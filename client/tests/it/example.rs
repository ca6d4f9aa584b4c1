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
    let expected = "\
term 1: 3 jobs from job 1 on
term 2: 3 jobs from job 4 on
term 3: 2 jobs from job 7 on
8 jobs were handed out, each once: true
";
    assert_eq!(text(out), expected);
}

#[tokio::test]
async fn a_fenced_stock_refuses_who_lost_the_lock() {
    let Some((server, _)) = start("a_fenced_stock_refuses_who_lost_the_lock").await else { return };
    let mut out = Vec::new();
    fenced_stock::run(&server.endpoint(), &mut out).await.expect("it runs to its end");
    let expected = "\
the first seller holds the lock and has read 10 pieces
the second one holds it now, its token is larger: true
it sells one piece: true, 9 are left
the first one writes what it had in mind: false, 9 are left
and Conclave refuses its transaction: true
";
    assert_eq!(text(out), expected);
}

#[tokio::test]
async fn a_balanced_service_outlives_its_instances() {
    let test = "a_balanced_service_outlives_its_instances";
    let Some((server, _)) = start(test).await else { return };
    let mut out = Vec::new();
    balanced_service::run(&server.endpoint(), &mut out).await.expect("it runs to its end");
    let expected = "\
3 instances answer, 0 calls failed
b is killed and still listed (3), at most 2 calls failed: true
2 others answer
a has gone in order: [\"c\"] answers, 0 calls failed
";
    assert_eq!(text(out), expected);
}

#[tokio::test]
async fn a_config_subscriber_follows_its_settings() {
    let Some((server, _)) = start("a_config_subscriber_follows_its_settings").await else { return };
    let mut out = Vec::new();
    config_subscriber::run(&server.endpoint(), &mut out).await.expect("it runs to its end");
    let expected = "\
started: 4 workers, Database { host: \"db.internal\", password: (secret) }
the program itself sees the password, of 7 letters
database.host = \"db.internal\"
  shared shared/database.yaml at revision 2: \"db.internal\"
changed: Some(Number(4)) -> Some(Number(8)) workers
good day from db2.internal
refused: 500 workers are not between 1 and 64; still 8 workers
rolled back: 8 workers
";
    assert_eq!(text(out), expected);
}
