//! Counters, latches, simple barriers and groups, through the client crate and over their wire contract.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use conclave_client::kv::put as put_op;
use conclave_client::{Client, Error};
use conclave_proto::v1;
use tonic::Code;
use v1::counter_service_client::CounterServiceClient;
use v1::ended::Reason;
use v1::patience::Wait;
use v1::wait_response::Event;

use crate::native_lock::{client, session, soon};
use crate::support::{Server, leader, server, servers};

pub(crate) const MOMENT: Duration = Duration::from_millis(50);

fn client_of(server: &Server) -> Client {
    client(std::slice::from_ref(server))
}

pub(crate) async fn value(client: &Client, key: &str) -> String {
    let kv = client.get(key).await.unwrap().one();
    kv.map_or_else(String::new, |kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// Stops the member that leads; which one it was.
pub(crate) async fn stop_leader(servers: &mut Vec<Server>) -> usize {
    let leader = leader(servers).await;
    servers.remove(leader).running.stop().await;
    leader
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_is_text_that_every_client_reads() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let session = session(&client, "one").await;
    let counter = session.counter("hits");
    assert_eq!(counter.get().await.unwrap().value, 0);
    let added = counter.add(5).await.unwrap();
    assert_eq!(added.value, 5);
    assert_eq!(client.counter("hits").add(-7).await.unwrap().value, -2);
    assert_eq!(value(&client, "hits").await, "-2");
    client.put("hits", "40").await.unwrap();
    let swapped = counter.compare_and_set(40, 41).await.unwrap();
    assert!(swapped.is_done);
    let refused = counter.compare_and_set(40, 42).await.unwrap();
    assert_eq!((refused.is_done, refused.count), (false, swapped.count));
    assert!(!counter.set_if_unchanged(added, 1).await.unwrap().is_done);
    assert!(counter.set_if_unchanged(swapped.count, 43).await.unwrap().is_done);
    counter.set(i64::MAX).await.unwrap();
    let overflow = counter.add(1).await.unwrap_err();
    assert_eq!(overflow.to_string(), "conclave: the sum does not fit 64 bits");
    assert_eq!(counter.get().await.unwrap().value, i64::MAX);
    client.put("hits", "many").await.unwrap();
    for refused in [counter.add(1).await, counter.get().await] {
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    }
    let unnamed = client.counter("").add(1).await;
    assert!(matches!(unnamed, Err(Error::Invalid(_))), "{unnamed:?}");
}

/// Leaders come and go, and every addition counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_addition_counts_once_while_leaders_stop() {
    const TASKS: usize = 4;
    const AFTER_STOP: i64 = 10;
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let session = session(&client, "adder").await;
    let has_stopped = Arc::new(AtomicBool::new(false));
    let adding = (0..TASKS).map(|_| {
        let (counter, has_stopped) = (session.counter("sum"), has_stopped.clone());
        tokio::spawn(async move {
            let (mut added, mut after) = (0, 0);
            while after < AFTER_STOP {
                after += i64::from(has_stopped.load(Ordering::Relaxed));
                // What failed may have been done: only the same request may be sent again, which the
                // client did for as long as its time limit allows.
                counter.add(1).await.unwrap();
                added += 1;
            }
            added
        })
    });
    let adding = futures::future::join_all(adding.collect::<Vec<_>>());
    let ((), added) = tokio::join!(
        async {
            soon("some additions", async {
                while session.counter("sum").get().await.map_or(0, |sum| sum.value) < AFTER_STOP {}
            })
            .await;
            stop_leader(&mut servers).await;
            has_stopped.store(true, Ordering::Relaxed);
        },
        soon("all additions", adding)
    );
    let added: i64 = added.into_iter().map(Result::unwrap).sum();
    assert!(added >= AFTER_STOP * i64::try_from(TASKS).unwrap());
    assert_eq!(session.counter("sum").get().await.unwrap().value, added);
}

/// The same request once more, on another member, is answered as it was; a late one is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_recognised_on_every_member() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let session = session(&client, "one").await;
    let add = |place: usize, sequence, settled| {
        let once = Some(v1::Once { session: session.id(), sequence, settled, undoes: 0 });
        let request = v1::CounterAddRequest { once, name: "n".into(), delta: 1 };
        let mut counters = CounterServiceClient::new(servers[place].channel.clone());
        async move { soon("to add", counters.add(request)).await.map(tonic::Response::into_inner) }
    };
    let first = add(0, 1, 1).await.unwrap();
    for place in 0..3 {
        assert_eq!(add(place, 1, 1).await.unwrap(), first);
    }
    assert_eq!(add(1, 2, 1).await.unwrap().value, 2);
    assert_eq!(add(2, 1, 1).await.unwrap(), first);
    assert_eq!(add(2, 3, 3).await.unwrap().value, 3);
    let late = add(0, 2, 2).await.unwrap_err();
    assert_eq!(
        (late.code(), late.message()),
        (Code::FailedPrecondition, "conclave: a later request came first")
    );
    assert_eq!(value(&client, "n").await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_latch_goes_on_at_zero() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let session = session(&client, "one").await;
    let latch = session.latch("ready");
    let early = latch.wait().at_most(Duration::ZERO).await;
    assert!(matches!(early, Err(Error::NotYet)), "{early:?}");
    assert!(matches!(latch.count_down().await, Err(Error::NotFound(_))));
    assert!(matches!(latch.remaining().await, Err(Error::NotFound(_))));
    // Each on a member of its own, also before there is a latch.
    let waiting = servers.iter().map(|server| {
        let wait = client_of(server).latch("ready").wait().at_most(Duration::from_secs(60));
        tokio::spawn(wait.into_future())
    });
    let mut waiting: Vec<_> = waiting.collect();
    assert_eq!(latch.create(3).await.unwrap().count, 3);
    assert_eq!(latch.create(9).await.unwrap().count, 3, "it is there already");
    let brief = latch.wait().at_most(MOMENT).await;
    assert!(matches!(brief, Err(Error::NotYet)), "{brief:?}");
    assert_eq!(latch.count_down().await.unwrap().count, 2);
    assert_eq!(value(&client, "ready").await, "2");
    // Those who wait through the client that knows all members go on with another one.
    let through_all = tokio::spawn(latch.wait().into_future());
    // Nobody answers any more to the one that knows only the member that stops.
    waiting.remove(stop_leader(&mut servers).await).abort();
    assert_eq!(soon("to count down", latch.count_down_by(5)).await.unwrap().count, 0);
    assert!(soon("the end", through_all).await.unwrap().is_ok());
    for waiting in waiting {
        soon("the end", waiting).await.unwrap().unwrap();
    }
    soon("no wait at all", latch.wait()).await.unwrap();
    assert_eq!(latch.count_down().await.unwrap().count, 0, "it stays there");
    client.put("odd", "x").await.unwrap();
    let odd = soon("to hear that it is none", client.latch("odd").wait()).await;
    assert!(matches!(odd, Err(Error::Refused(_))), "{odd:?}");
    let doomed = client.latch("doomed");
    doomed.create(1).await.unwrap();
    let waiting = tokio::spawn(doomed.wait().into_future());
    tokio::time::sleep(MOMENT).await;
    client.delete("doomed").await.unwrap();
    // It had begun to wait, or waits for a new one.
    doomed.create(0).await.unwrap();
    let end = soon("the end", waiting).await.unwrap();
    assert!(matches!(end, Ok(_) | Err(Error::Lost { .. })), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_stops_until_it_is_lifted() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let session = session(&client, "one").await;
    let barrier = client.barrier("door");
    soon("no wait at all", barrier.wait()).await.unwrap();
    let raised = barrier.raise().await.unwrap();
    assert!(raised.is_new);
    assert_eq!(barrier.raise().await.unwrap().fence, raised.fence);
    assert!(matches!(session.hold_barrier("door").await, Err(Error::Refused(_))));
    let brief = barrier.wait().at_most(MOMENT).await;
    assert!(matches!(brief, Err(Error::NotYet)), "{brief:?}");
    let waiting: Vec<_> = servers
        .iter()
        .map(|server| tokio::spawn(client_of(server).barrier("door").wait().into_future()))
        .collect();
    assert!(barrier.lift().await.unwrap());
    for waiting in waiting {
        soon("the end", waiting).await.unwrap().unwrap();
    }
    assert!(!barrier.lift().await.unwrap());
    // Guards: lifted by hand, by a drop, and with the session; by any client of etcd, too.
    let held = session.hold_barrier("door").await.unwrap();
    assert!(held.fence() > raised.fence);
    held.lift().await.unwrap();
    drop(session.hold_barrier("door").await.unwrap());
    soon("the drop lifts it", barrier.wait()).await.unwrap();
    let held = session.hold_barrier("door").await.unwrap();
    client.delete("door").await.unwrap();
    assert!(matches!(held.lift().await, Err(Error::Lost { .. })));
    let held = session.hold_barrier("door").await.unwrap();
    let waiting = tokio::spawn(barrier.wait().into_future());
    session.close().await.unwrap();
    assert!(held.lost().is_cancelled());
    soon("it goes with its session", waiting).await.unwrap().unwrap();
}

/// Who waited when a barrier was lifted goes on, also if it is raised again in the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lift_is_missed() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let barrier = client.barrier("door");
    barrier.raise().await.unwrap();
    let mut barriers =
        v1::barrier_service_client::BarrierServiceClient::new(servers[0].channel.clone());
    let patience = Some(v1::Patience { wait: Some(Wait::WaitForever(true)) });
    let request = v1::WaitRequest { name: "door".into(), patience, start_revision: 0 };
    let mut answers = barriers.wait(request.clone()).await.unwrap().into_inner();
    let first = soon("an answer", answers.message()).await.unwrap().unwrap().event.unwrap();
    let Event::Waiting(v1::Waiting { revision, .. }) = first else { panic!("{first:?}") };
    barrier.lift().await.unwrap();
    barrier.raise().await.unwrap();
    let end = soon("an answer", answers.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(end, Event::Passed(_)), "{end:?}");
    // A stream that begins where a broken one began has missed nothing either.
    let resumed = v1::WaitRequest { start_revision: revision, ..request.clone() };
    let mut answers = barriers.wait(resumed).await.unwrap().into_inner();
    soon("an answer", answers.message()).await.unwrap();
    let end = soon("an answer", answers.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(end, Event::Passed(_)), "{end:?}");
    for (start_revision, code) in [(i64::MAX, Code::OutOfRange), (-1, Code::InvalidArgument)] {
        let wrong = v1::WaitRequest { start_revision, ..request.clone() };
        let mut refused = barriers.wait(wrong).await.unwrap().into_inner();
        let refused = soon("a refusal", refused.message()).await.unwrap_err();
        assert_eq!(refused.code(), code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_over_says_so() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    client.barrier("door").raise().await.unwrap();
    let mut barriers =
        v1::barrier_service_client::BarrierServiceClient::new(servers[0].channel.clone());
    let request = v1::WaitRequest { name: "door".into(), ..Default::default() };
    let mut answers = barriers.wait(request).await.unwrap().into_inner();
    let end = soon("an answer", answers.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(&end, Event::Ended(ended) if ended.reason() == Reason::Timeout), "{end:?}");
    assert!(soon("the end", answers.message()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_with_their_sessions() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let mut followed = client.group("workers").follow();
    assert_eq!(soon("the first state", followed.next()).await.unwrap().unwrap(), []);
    let first = one.group("workers").join("at-1").member("a").await.unwrap();
    let joined = soon("a member", followed.next()).await.unwrap().unwrap();
    assert_eq!((&joined[0].id[..], &joined[0].value[..]), (&b"a"[..], &b"at-1"[..]));
    let taken = two.group("workers").join("at-2").member("a").await;
    assert!(matches!(taken, Err(Error::Refused(_))), "{taken:?}");
    let second = two.group("workers").join("at-2").await.unwrap();
    stop_leader(&mut servers).await;
    first.update("moved").await.unwrap();
    assert_eq!(value(&client, "workers/a").await, "moved");
    // What is no member: no lease, or deeper.
    client.txn().then(put_op("workers/none", "")).commit().await.unwrap();
    client.put("workers/a/b", "").lease(one.id()).await.unwrap();
    let members = client.group("workers").members().await.unwrap();
    let found = |id: &[u8]| members.iter().find(|member| member.member == id).expect("a member");
    assert_eq!(members.len(), 2);
    assert_eq!(found(second.member()).owner, "two");
    assert_eq!(found(b"a").fence, first.fence());
    client.session_end(two.id()).await.unwrap();
    soon("the dead are gone", async {
        loop {
            let members = followed.next().await.unwrap().unwrap();
            if members.len() == 1 && members[0].value == "moved" {
                return;
            }
        }
    })
    .await;
    // The same member once more: it goes with the last of its memberships.
    let again = one.group("workers").join("again").member("a").await.unwrap();
    first.leave().await.unwrap();
    assert_eq!(value(&client, "workers/a").await, "again");
    again.update("busy").await.unwrap();
    client.delete("workers/a").await.unwrap();
    let ended = again.update("revived").await;
    assert!(matches!(ended, Err(Error::Lost { .. })), "{ended:?}");
    assert!(matches!(again.leave().await, Err(Error::Lost { .. })), "its key was deleted");
    assert_eq!(value(&client, "workers/a").await, "");
    drop(one.group("workers").join("again").await.unwrap());
    soon("nobody is left", async {
        while !client.group("workers").members().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    drop(second);
}
