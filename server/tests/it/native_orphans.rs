//! What clients of the wire contract left waiting on a member that is gone.

use conclave_client::Session;
use conclave_proto::v1;
use tonic::Streaming;
use tonic::transport::Channel;
use v1::acquire_request::Wait;
use v1::election_service_client::ElectionServiceClient;
use v1::lock_service_client::LockServiceClient;

use crate::cluster::HASTY;
use crate::native_lock::{client, lock, queue, session, soon};
use crate::support::{Plan, leader, servers};

type Waits = Streaming<v1::AcquireResponse>;
type Leads = Streaming<v1::CampaignResponse>;

/// A waiter for `jobs` and a candidate of `boss` that have no number.
async fn enter(channel: &Channel, session: &Session) -> (Waits, Leads) {
    let acquire = v1::AcquireRequest {
        names: vec!["jobs".into()],
        session: session.id(),
        request_id: "acquire".into(),
        wait: Some(Wait::WaitForever(true)),
        ..Default::default()
    };
    let mut locks = LockServiceClient::new(channel.clone());
    let mut waits = soon("to acquire", locks.acquire(acquire)).await.unwrap().into_inner();
    soon("a place", waits.message()).await.unwrap();
    let (name, session) = ("boss".into(), session.id());
    let campaign = v1::CampaignRequest { name, session, ..Default::default() };
    let mut elections = ElectionServiceClient::new(channel.clone());
    let mut leads = soon("to campaign", elections.campaign(campaign)).await.unwrap().into_inner();
    soon("a place", leads.message()).await.unwrap();
    (waits, leads)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_withdraws_what_a_dead_member_left() {
    let mut servers = servers(3, &[HASTY]).await;
    let dies = (leader(&servers).await + 1) % 3;
    let dead = servers.remove(dies);
    let client = client(&servers);
    let (one, two, three) =
        (session(&client, "1").await, session(&client, "2").await, session(&client, "3").await);
    let held = lock(&one, "jobs").await;
    let _left = enter(&dead.channel, &two).await;
    // Comes back on another member, and keeps its place.
    let back = enter(&dead.channel, &three).await;
    queue(&client, "jobs", 1, 2).await;
    soon("to stop", dead.running.stop()).await;
    drop(back);
    let _back = enter(&servers[0].channel, &three).await;
    queue(&client, "jobs", 1, 1).await;
    queue(&client, "boss", 1, 0).await;
    let places = client.lock_inspect("jobs").await.unwrap().places;
    assert_eq!(places[1].session, three.id());
    held.release().await.unwrap();
    queue(&client, "jobs", 1, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_withdraws_what_its_last_run_left() {
    let plan = Plan::new(1, &[]);
    let server = [plan.start(0).await];
    soon("a server is ready", server[0].running.ready()).await.unwrap();
    let before = client(&server);
    let (one, two) = (session(&before, "1").await, session(&before, "2").await);
    let held = lock(&one, "jobs").await;
    let left = enter(&server[0].channel, &two).await;
    queue(&before, "jobs", 1, 1).await;
    let [server] = server;
    let server = [plan.restart(0, server).await];
    drop(left);
    let after = client(&server);
    queue(&after, "jobs", 1, 0).await;
    queue(&after, "boss", 0, 0).await;
    let sessions = after.sessions().await.unwrap();
    assert!(sessions.iter().any(|session| session.id == two.id()), "it lives");
    // Who was granted the lock has it.
    assert!(after.check_fence("jobs", held.token()).await.unwrap());
}
