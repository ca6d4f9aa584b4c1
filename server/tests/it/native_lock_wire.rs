//! Native locks over their wire contract: what the client crate does not ask for.

use std::time::Duration;

use conclave_client::Session;
use conclave_proto::v1;
use tonic::{Code, Status, Streaming};
use v1::acquire_request::Wait;
use v1::acquire_response::Event;
use v1::ended::Reason;
use v1::lock_service_client::LockServiceClient;

use crate::cluster::HASTY;
use crate::native_lock::{client, lock, session, soon};
use crate::support::{server, servers};

/// What a client of the wire contract asks for.
fn acquire(session: &Session, wait: Wait) -> v1::AcquireRequest {
    v1::AcquireRequest {
        names: vec!["jobs".into()],
        session: session.id(),
        request_id: "acquire".into(),
        wait: Some(wait),
        ..Default::default()
    }
}

async fn next(answers: &mut Streaming<v1::AcquireResponse>) -> Result<Event, Status> {
    let answer = soon("an answer", answers.message()).await?;
    Ok(answer.expect("a stream says how it ends").event.expect("all kinds are known"))
}

/// A wait whose time ran out while it was resumed ends, also if the request stands in the queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_of_no_time_ends_though_the_request_is_queued() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let _held = lock(&one, "jobs").await;
    let mut locks = LockServiceClient::new(servers[0].channel.clone());
    let mut answers =
        locks.acquire(acquire(&two, Wait::WaitMs(60_000))).await.unwrap().into_inner();
    assert!(matches!(next(&mut answers).await, Ok(Event::Queued(_))));
    let mut again = locks.acquire(acquire(&two, Wait::WaitMs(0))).await.unwrap().into_inner();
    assert!(matches!(next(&mut again).await, Ok(Event::Queued(_))));
    let end = next(&mut again).await;
    assert!(
        matches!(&end, Ok(Event::Ended(ended)) if ended.reason() == Reason::Timeout),
        "{end:?}"
    );
}

/// A repetition that arrives late, on a stream that breaks, leaves the lock to its holder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_takes_no_lock_along_that_another_one_told_of() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let one = session(&client, "one").await;
    let mut locks = LockServiceClient::new(servers[0].channel.clone());
    let mut first =
        locks.acquire(acquire(&one, Wait::WaitForever(true))).await.unwrap().into_inner();
    let Ok(Event::Granted(granted)) = next(&mut first).await else { panic!("the lock is free") };
    drop(locks.acquire(acquire(&one, Wait::WaitForever(true))).await.unwrap());
    // Longer than the time in which a broken stream may be resumed.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(client.check_fence("jobs", granted.locks[0].fence).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_keeps_nobody_waiting() {
    let mut servers = servers(3, &[HASTY]).await;
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let _held = lock(&one, "jobs").await;
    let mut locks = LockServiceClient::new(servers[0].channel.clone());
    let mut answers =
        locks.acquire(acquire(&two, Wait::WaitForever(true))).await.unwrap().into_inner();
    assert!(matches!(next(&mut answers).await, Ok(Event::Queued(_))));
    for server in servers.drain(1..) {
        soon("to stop", server.running.stop()).await;
    }
    let end = next(&mut answers).await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "etcdserver: no leader"));
}
