//! Native locks over their wire contract: what the client crate does not ask for.

use std::time::Duration;

use conclave_client::kv::put;
use conclave_client::{Error, Session};
use conclave_proto::etcdserverpb as watch;
use conclave_proto::v1;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, Streaming};
use v1::acquire_request::Wait;
use v1::acquire_response::Event;
use v1::campaign_response;
use v1::election_service_client::ElectionServiceClient;
use v1::ended::Reason;
use v1::lock_service_client::LockServiceClient;
use watch::watch_client::WatchClient;

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
async fn a_member_whose_others_stopped_keeps_nobody_waiting() {
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

/// A full store refuses what is new; who waits or leads goes on when its stream breaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_a_place_keeps_it_in_a_full_store() {
    let servers = [server(&["--quota-backend-bytes=300000"]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let _held = lock(&one, "jobs").await;
    let mut locks = LockServiceClient::new(servers[0].channel.clone());
    let mut elections = ElectionServiceClient::new(servers[0].channel.clone());
    let campaign = |resumes| v1::CampaignRequest {
        name: "boss".into(),
        session: one.id(),
        value: "me".into(),
        resumes,
        ..Default::default()
    };
    let mut waits = locks.acquire(acquire(&two, Wait::WaitForever(true))).await.unwrap();
    assert!(matches!(next(waits.get_mut()).await, Ok(Event::Queued(_))));
    let mut leads = elections.campaign(campaign(false)).await.unwrap().into_inner();
    soon("to lead", leads.message()).await.expect("the first candidate leads");

    let value = vec![b'v'; 50_000];
    let mut fills = 0;
    while client.put(format!("fill/{fills}"), value.clone()).await.is_ok() {
        fills += 1;
    }
    assert!(fills > 0, "there was room");
    let more = soon("a refusal", one.lock("others")).await;
    assert!(matches!(more, Err(Error::NoSpace(_))), "{more:?}");
    drop((waits, leads));

    let mut waits = locks.acquire(acquire(&two, Wait::WaitForever(true))).await.unwrap();
    assert!(matches!(next(waits.get_mut()).await, Ok(Event::Queued(_))), "where it stood");
    let mut leads = elections.campaign(campaign(true)).await.unwrap().into_inner();
    let event = soon("an event", leads.message()).await.expect("not refused for lack of space");
    let event = event.and_then(|event| event.event);
    assert!(
        matches!(
            event,
            Some(campaign_response::Event::Elected(_) | campaign_response::Event::Observed(_))
        ),
        "{event:?}"
    );
}

/// Everything that was ever put there.
fn all_of_bulk() -> watch::watch_request::RequestUnion {
    watch::watch_request::RequestUnion::CreateRequest(watch::WatchCreateRequest {
        key: "bulk/".into(),
        range_end: "bulk0".into(),
        start_revision: 1,
        ..Default::default()
    })
}

/// What readers leave unread keeps nobody else waiting who calls the same member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_do_not_read_hold_up_no_other_call() {
    const READERS: usize = 24;
    let servers = [server(&[]).await];
    let client = client(&servers);
    let value = vec![b'v'; 400_000];
    for number in 0..8 {
        client.put(format!("bulk/{number}"), value.clone()).await.unwrap();
    }
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let request = watch::WatchRequest { request_union: Some(all_of_bulk()) };
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut watcher = WatchClient::new(client.channel());
        readers.push(soon("a watcher", watcher.watch(requests)).await.unwrap());
        // Each leaves a megabyte unread on the way; with a window for all of them that few fill, one of
        // these calls would not be answered.
        for _ in 0..10 {
            soon("an answer", client.get("k").into_future()).await.unwrap();
        }
    }
    let one = session(&client, "one").await;
    let guard = lock(&one, "jobs").await;
    soon("a release", guard.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_says_so_when_it_does_not_count_all_who_wait() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let one = session(&client, "one").await;
    let _held = lock(&one, "jobs").await;
    let counted = async || {
        let locks = client.locks("jobs").await.unwrap();
        (locks[0].holders, locks[0].waiters, locks[0].more)
    };
    assert_eq!(counted().await, (1, 0, false));
    // Whatever stands below the name waits for it.
    for hundreds in 0..10 {
        let numbers = (0..100).map(|number| format!("jobs/{}", hundreds * 100 + number));
        let all = numbers.fold(client.txn(), |txn, key| txn.then(put(key, "").lease(one.id())));
        all.commit().await.unwrap();
        let last = hundreds == 9;
        let all = if last { 999 } else { (hundreds + 1) * 100 };
        assert_eq!(counted().await, (1, all, last));
    }
}
