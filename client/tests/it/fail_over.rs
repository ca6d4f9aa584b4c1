//! Endpoints that are dead, die, or fall silent.

use std::time::Duration;

use conclave_client::{Client, Error, LeaseState, Outcome};
use conclave_testing::process::signal;
use tokio::time::timeout;

use crate::{
    SOON,
    server::{Server, free_port, program},
    start,
};

#[tokio::test]
async fn a_dead_endpoint_costs_no_call() {
    let Some((server, _)) = start("a_dead_endpoint_costs_no_call").await else { return };
    let dead = format!("127.0.0.1:{}", free_port());
    let client = Client::builder([dead, server.endpoint()]).build().unwrap();
    for i in 0..200 {
        client.put("k", i.to_string()).await.unwrap();
        client.get("k").await.unwrap();
    }
}

#[tokio::test]
async fn nobody_there_is_known_not_to_be_applied() {
    let dead = format!("127.0.0.1:{}", free_port());
    let client = Client::builder([dead]).timeout(Duration::from_millis(500)).build().unwrap();
    // Ended by its own deadline, not by the test's.
    let error = timeout(SOON, client.put("k", "v")).await.expect("in time").unwrap_err();
    assert!(matches!(error, Error::Unavailable { outcome: Outcome::NotApplied, .. }), "{error:?}");
}

#[tokio::test]
async fn a_write_without_answer_is_unknown_and_not_sent_again() {
    let test = "a_write_without_answer_is_unknown_and_not_sent_again";
    let Some((server, client)) = start(test).await else { return };
    let before = client.put("k", "1").await.unwrap();
    signal(server.pid(), "STOP");
    let impatient = client.with_timeout(Duration::from_millis(300));
    let error = impatient.put("k", "2").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    signal(server.pid(), "CONT");
    client.put("k", "3").await.unwrap();
    let kv = client.get("k").await.unwrap().one().unwrap();
    assert!(kv.mod_revision <= before.revision() + 2, "written more than once: {kv:?}");
}

#[tokio::test]
async fn a_cluster_is_served_through_the_loss_of_a_member() {
    let test = "a_cluster_is_served_through_the_loss_of_a_member";
    let Some(program) = program(test) else { return };
    let mut servers = Server::cluster(program, 3);
    let endpoints = servers.iter().map(Server::endpoint);
    let client = Client::builder(endpoints).timeout(SOON).build().unwrap();
    client.ready().await.unwrap();
    let lease = client.lease(SOON).await.unwrap();
    let mut watcher = client.watch("k").created_notify().start();
    watcher.next().await.unwrap();
    for (i, victim) in servers.iter_mut().enumerate() {
        signal(victim.pid(), if i == 1 { "STOP" } else { "KILL" });
        let put = async {
            // Resolving an unknown outcome is up to the caller; here it is safe to write again.
            while client.with_timeout(Duration::from_secs(2)).put("k", "v").await.is_err() {}
        };
        timeout(SOON, put).await.expect("a write in time");
        timeout(SOON, client.get("k")).await.expect("in time").unwrap();
        let seen = timeout(SOON, watcher.next()).await.expect("in time");
        assert!(seen.unwrap().is_some());
        if i == 1 {
            signal(victim.pid(), "CONT");
        } else {
            victim.kill();
            victim.start();
        }
        client.ready().await.unwrap();
    }
    assert_ne!(*lease.state().borrow(), LeaseState::Lost);
}
