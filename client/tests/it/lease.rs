//! Leases and their guard.

use std::{future::IntoFuture, time::Duration};

use conclave_client::{Error, LeaseState};
use tokio::time::{Instant, timeout};

use crate::{SOON, eventually, start};

#[tokio::test]
async fn a_guard_keeps_its_lease_alive_until_revoked() {
    let test = "a_guard_keeps_its_lease_alive_until_revoked";
    let Some((_server, client)) = start(test).await else { return };
    // A keep-alive may be late by two thirds of the TTL.
    let ttl = Duration::from_secs(12);
    let lease = client.lease(ttl).await.unwrap();
    client.put("leased", "1").lease(lease.id()).await.unwrap();
    // Longer than the TTL: only keep-alives can explain that the lease is still there.
    assert!(timeout(ttl + ttl / 4, lease.lost()).await.is_err(), "lost while kept alive");
    assert_eq!(*lease.state().borrow(), LeaseState::Alive);
    let keys = client.lease_time_to_live(lease.id(), true).await.unwrap();
    assert_eq!((keys.granted_ttl, keys.keys.len()), (12, 1));
    let state = lease.state();
    lease.revoke().await.unwrap();
    assert!(client.get("leased").await.unwrap().one().is_none());
    eventually("the state says lost", async || (*state.borrow() == LeaseState::Lost).then_some(()))
        .await;
}

#[tokio::test]
async fn a_dropped_guard_revokes() {
    let Some((_server, client)) = start("a_dropped_guard_revokes").await else { return };
    let lease = client.lease(Duration::from_secs(600)).await.unwrap();
    client.put("leased", "1").lease(lease.id()).await.unwrap();
    drop(lease);
    eventually("the key is gone", async || {
        client.get("leased").await.unwrap().one().is_none().then_some(())
    })
    .await;
    let kept = client.lease(Duration::from_secs(600)).await.unwrap().detach();
    assert_eq!(client.lease_keep_alive_once(kept).await.unwrap().ttl, 600);
    client.lease_revoke(kept).await.unwrap();
    assert_eq!(client.lease_keep_alive_once(kept).await.unwrap().ttl, 0);
    let error = client.lease_revoke(kept).await.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    assert!(client.leases().await.unwrap().leases.is_empty());
}

#[tokio::test]
async fn what_a_dropped_future_granted_is_revoked() {
    let test = "what_a_dropped_future_granted_is_revoked";
    let Some((_server, client)) = start(test).await else { return };
    for micros in (0..4_000).step_by(200) {
        let lease = client.lease(Duration::from_secs(600));
        drop(timeout(Duration::from_micros(micros), lease).await);
        let session = client.session().ttl(Duration::from_secs(600));
        drop(timeout(Duration::from_micros(micros), session.into_future()).await);
    }
    client.close().await;
    assert!(client.leases().await.unwrap().leases.is_empty());
}

#[tokio::test]
async fn the_loss_is_reported_before_the_lease_can_end() {
    let test = "the_loss_is_reported_before_the_lease_can_end";
    let Some((mut server, client)) = start(test).await else { return };
    let ttl = Duration::from_secs(8);
    let lease = client.lease(ttl).await.unwrap();
    let mut state = lease.state();
    server.kill();
    let killed = Instant::now();
    state.wait_for(|state| *state == LeaseState::Suspended).await.unwrap();
    // A caller that asks learns it in time, however late waiting tasks are woken.
    eventually("the lease may end", async || (killed.elapsed() >= ttl).then_some(())).await;
    assert!(lease.is_lost());
    timeout(SOON, lease.lost()).await.expect("who waits hears it, too");
}

#[tokio::test]
async fn a_guard_notices_that_its_lease_was_revoked() {
    let test = "a_guard_notices_that_its_lease_was_revoked";
    let Some((_server, client)) = start(test).await else { return };
    let ttl = Duration::from_secs(30);
    let lease = client.lease(ttl).await.unwrap();
    client.lease_revoke(lease.id()).await.unwrap();
    // After a third of the TTL, before the lease would have expired.
    timeout(ttl * 5 / 6, lease.lost()).await.expect("reported with the next keep-alive");
}

#[tokio::test]
async fn a_guard_survives_a_restart_of_the_server() {
    let test = "a_guard_survives_a_restart_of_the_server";
    let Some((mut server, client)) = start(test).await else { return };
    // Longer than the server is down.
    let lease = client.lease(Duration::from_secs(30)).await.unwrap();
    let mut state = lease.state();
    server.kill();
    state.wait_for(|state| *state == LeaseState::Suspended).await.unwrap();
    server.start();
    state.wait_for(|state| *state != LeaseState::Suspended).await.unwrap();
    assert_eq!(*state.borrow(), LeaseState::Alive);
}

#[test]
fn a_lease_is_lost_with_the_runtime_of_its_client() {
    let test = "a_lease_is_lost_with_the_runtime_of_its_client";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let started = runtime.block_on(async {
        let (server, client) = start(test).await?;
        Some((server, client.lease(Duration::from_secs(600)).await.unwrap()))
    });
    let Some((_server, lease)) = started else { return };
    assert!(!lease.is_lost());
    drop(runtime);
    assert!(lease.is_lost(), "nobody keeps it alive any more");
    assert_eq!(*lease.state().borrow(), LeaseState::Lost);
}
