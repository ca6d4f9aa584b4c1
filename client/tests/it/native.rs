//! Sessions and Conclave's locks with misbehaving servers, runtimes and callers.

use std::{future::IntoFuture, pin::Pin, sync::atomic::Ordering, time::Duration};

use conclave_client::{Client, Error, Loss, Outcome, Session, SessionState, v1::InstanceFilter};
use tokio::{net::TcpListener, runtime::Runtime, task::yield_now, time::timeout};
use tonic::Status;

use crate::{
    SOON, eventually,
    fake::{Fake, Script, leases::Leases},
};

/// Time limit for calls that must fail; enough for one that is answered at once.
pub(crate) const IMPATIENT: Duration = Duration::from_secs(6);

pub(crate) fn client_of(fake: &Fake) -> Client {
    // The same endpoint twice, so that a retry is made at once.
    Client::builder([fake.endpoint(), fake.endpoint()]).build().expect("a client")
}

async fn session_of(fake: &Fake) -> Session {
    client_of(fake).session().ttl(Duration::from_secs(60)).await.expect("a session")
}

async fn until_released(script: &Script, count: usize) {
    let released = async || (script.released.lock().len() == count).then_some(());
    eventually("the lock is released", released).await;
}

#[tokio::test]
async fn a_cloned_acquisition_is_another_request() {
    let fake = Fake::start();
    let session = session_of(&fake).await;
    let acquire = session.lock("x");
    let first = acquire.clone().await.unwrap();
    let second = acquire.await.unwrap();
    let acquired = fake.script.acquired.lock().clone();
    assert_eq!(acquired.len(), 2);
    assert_ne!(acquired[0], acquired[1], "one place, two guards");
    drop((first, second));
    until_released(&fake.script, 2).await;
}

#[tokio::test]
async fn a_conversion_is_sent_again_with_its_number() {
    let fake = Fake::start();
    let lock = session_of(&fake).await.lock("x").await.unwrap();
    lock.downgrade().await.unwrap();
    let numbers = fake.script.conversions.lock().clone();
    assert!(matches!(numbers[..], [Some(1..), ..]), "{numbers:?}");
    assert!(numbers.len() > 1 && numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
}

#[tokio::test]
async fn a_release_in_the_background_is_tried_until_it_is_done() {
    let fake = Fake::start();
    let session = session_of(&fake).await;
    let lock = session.lock("x").await.unwrap();
    fake.script.refusals.store(4, Ordering::Relaxed);
    drop(lock);
    until_released(&fake.script, 1).await;
    assert!(!session.is_lost());
    assert_eq!(session.run(async { 7 }).await.unwrap(), 7);
}

#[tokio::test]
async fn a_release_that_fails_goes_on_in_the_background() {
    let fake = Fake::start();
    let session = session_of(&fake).await;
    let lock = session.lock("x").await.unwrap();
    fake.script.refusals.store(4, Ordering::Relaxed);
    let error = lock.release().await.unwrap_err();
    assert!(matches!(error, Error::Overloaded(_)), "{error:?}");
    until_released(&fake.script, 1).await;
    assert!(!session.is_lost());
}

#[test]
fn a_session_outlives_the_runtime_it_was_begun_on() {
    let fake = Fake::start();
    let runtime = Runtime::new().unwrap();
    let client = runtime.block_on(async { client_of(&fake) });
    let passing = Runtime::new().unwrap();
    // A heartbeat may be late by two thirds of the TTL.
    let begin = client.session().ttl(Duration::from_secs(12));
    let session = passing.block_on(async { begin.await.unwrap() });
    drop(passing);
    let heartbeats = || fake.script.heartbeats.load(Ordering::Relaxed);
    let enough = heartbeats() + 2;
    let beaten = async || (heartbeats() >= enough).then_some(());
    runtime.block_on(eventually("the session is kept alive", beaten));
    assert!(!session.is_lost());
}

#[test]
fn a_session_is_lost_with_the_runtime_of_its_client() {
    let fake = Fake::start();
    let runtime = Runtime::new().unwrap();
    let session = runtime.block_on(session_of(&fake));
    assert!(!session.is_lost());
    drop(runtime);
    assert!(session.lost().is_cancelled(), "nobody keeps it alive any more");
    assert_eq!(*session.state().borrow(), SessionState::Lost);
}

#[tokio::test]
async fn a_wait_ends_also_if_the_server_does_not_say_so() {
    let fake = Fake::start();
    let session = session_of(&fake).await;
    fake.script.is_held.store(true, Ordering::Relaxed);
    let acquire = session.lock("x").wait(Duration::from_millis(1)).into_future();
    let ended = timeout(SOON, acquire).await.expect("not for ever");
    assert!(matches!(ended, Err(Error::Busy)), "{ended:?}");
    until_released(&fake.script, 1).await;
    assert_eq!(*fake.script.acquired.lock(), *fake.script.released.lock());
}

#[tokio::test]
async fn a_wait_may_be_longer_than_clocks_can_count() {
    let fake = Fake::start();
    let session = session_of(&fake).await;
    let lock = session.lock("x").wait(Duration::MAX).await.unwrap();
    lock.release().await.unwrap();
    assert_eq!(fake.script.released.lock().len(), 1);
}

#[tokio::test]
async fn sessions_on_leases_are_renewed_together() {
    let leases = Leases::default();
    let endpoint = leases.serve().await;
    let client = Client::builder([endpoint.to_string()]).build().unwrap();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(client.session().await.unwrap());
    }
    leases.together.store(sessions.len(), Ordering::Relaxed);
    let mut rounds = leases.rounds.subscribe();
    timeout(SOON, rounds.wait_for(|rounds| *rounds > 0)).await.expect("all at once").unwrap();
    assert!(sessions.iter().all(|session| !session.is_lost()));
}

#[tokio::test]
async fn calls_may_have_all_the_time_there_is() {
    let fake = Fake::start();
    let client = Client::builder([fake.endpoint()]).timeout(Duration::MAX).build().unwrap();
    let session = client.session().await.unwrap();
    let lock = session.lock("x").try_now().await.unwrap();
    lock.release().await.unwrap();
    assert!(client.with_timeout(Duration::MAX).timeout() < Duration::MAX);
}

#[tokio::test]
async fn a_void_token_ends_neither_leaderships_nor_waits() {
    let fake = Fake::start();
    let script = &fake.script;
    script.token.store(1, Ordering::Relaxed);
    script.is_held.store(true, Ordering::Relaxed);
    let client = Client::builder([fake.endpoint()]).user("ann", "annpw").build().unwrap();
    let session = client.session().ttl(Duration::from_secs(600)).await.unwrap();
    let leadership = session.election("e").campaign("10.0.0.7").await.unwrap();
    let waiting = tokio::spawn(session.lock("x").into_future());
    let mut leaders = client.election("e").observe();
    leaders.leader().await.unwrap().unwrap();
    let mut changes = client.service("s").changes(InstanceFilter::default());
    changes.next().await.unwrap();
    eventually("it waits", async || (script.acquired.lock().len() == 1).then_some(())).await;

    // Tokens end with the member that issued them. A change of users makes them invalid, which is
    // reported in the middle of a stream.
    let stopped = Status::unavailable("etcdserver: server stopped");
    let changed = Status::invalid_argument("etcdserver: revision of auth store is old");
    for (round, end) in [stopped, changed].into_iter().enumerate() {
        let logins = script.logins.load(Ordering::Relaxed);
        script.token.store(2, Ordering::Relaxed);
        script.break_streams(end);
        let leader = timeout(SOON, leaders.leader()).await.expect("it is told again");
        leader.unwrap().unwrap();
        timeout(SOON, changes.next()).await.expect("it is told again").unwrap();
        let asked_again = async || {
            let campaigns = script.campaigns.load(Ordering::Relaxed);
            (campaigns == round + 2 && script.acquired.lock().len() == round + 2).then_some(())
        };
        eventually("both streams are opened again", asked_again).await;
        assert!(script.logins.load(Ordering::Relaxed) > logins, "with a new token");
    }
    assert_eq!(leadership.loss(), None);
    assert!(!leadership.lost().is_cancelled());
    script.is_held.store(false, Ordering::Relaxed);
    script.break_streams(Status::unavailable("etcdserver: server stopped"));
    drop(timeout(SOON, waiting).await.expect("it is granted").unwrap().unwrap());
}

#[tokio::test]
async fn who_leads_is_asked_anew_if_another_cluster_answers() {
    let fake = Fake::start();
    let script = &fake.script;
    script.cluster.store(7, Ordering::Relaxed);
    let mut leaders = client_of(&fake).election("e").observe();
    let mut next = async || {
        let leader = timeout(SOON, leaders.leader()).await.expect("it is told");
        leader.unwrap().unwrap().token()
    };
    assert_eq!(next().await, 1);
    for (cluster, told) in [(7, 2), (8, 4)] {
        script.cluster.store(cluster, Ordering::Relaxed);
        script.break_streams(Status::unavailable("etcdserver: server stopped"));
        assert_eq!(next().await, told);
    }
    // Restored from a backup, with all history compacted.
    script.cluster.store(9, Ordering::Relaxed);
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    script.break_streams(Status::out_of_range(compacted));
    assert_eq!(next().await, 5);
    // From 5 the second cluster reported the changes since a revision of the first one.
    assert_eq!(*script.observed_from.lock(), [0, 5, 5, 0, 0]);
}

#[tokio::test]
async fn a_learner_among_the_endpoints_fails_nothing() {
    let (voter, learner) = (Fake::start(), Fake::start());
    learner.script.is_learner.store(true, Ordering::Relaxed);
    let client = Client::builder([voter.endpoint(), learner.endpoint()]).build().unwrap();
    let session = client.session().ttl(Duration::from_secs(600)).await.unwrap();
    let leadership = session.election("e").campaign("10.0.0.7").await.unwrap();
    for round in 0..6 {
        session.lock("x").await.unwrap().release().await.unwrap();
        // Whichever endpoint the stream is opened on first.
        voter.script.break_streams(Status::unavailable("etcdserver: server stopped"));
        let campaigns = || voter.script.campaigns.load(Ordering::Relaxed);
        eventually("it goes on", async || (campaigns() == round + 2).then_some(())).await;
    }
    assert_eq!(leadership.loss(), None);
}

#[tokio::test]
async fn a_release_whose_answer_was_lost_is_no_lost_lock() {
    let fake = Fake::start();
    let session = session_of(&fake).await;
    let lock = session.lock("x").await.unwrap();
    let changed = Status::unavailable("etcdserver: leader changed");
    fake.script.release_answers.lock().extend([Err(changed), Ok(true)]);
    lock.release().await.expect("it was held until the first release");
    // The cluster recognises the second one as the first one.
    assert_eq!(*fake.script.release_numbers.lock(), [Some((2, 1)); 2]);
    let lock = session.lock("x").await.unwrap();
    fake.script.release_answers.lock().push_back(Ok(false));
    let lost = lock.release().await;
    assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?}");
}

#[tokio::test]
async fn an_addition_of_which_nobody_knows_is_unknown_whatever_came_after() {
    let fake = Fake::start();
    // What must succeed is retried until it does; what must fail takes the whole time limit.
    let client = client_of(&fake).with_timeout(IMPATIENT);
    let begin = || client.session().ttl(Duration::from_secs(600));
    let session = eventually("a session", async || begin().await.ok()).await;
    let add = || session.counter("stock");
    let changed = || Err(Status::unavailable("etcdserver: leader changed"));
    fake.script.add_answers.lock().extend([changed(), Err(Status::not_found("no session"))]);
    let error = add().add(1).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    let no_leader = || Err(Status::unavailable("etcdserver: no leader"));
    let no_leader = std::iter::repeat_with(no_leader).take(10_000);
    fake.script.add_answers.lock().extend(std::iter::once(changed()).chain(no_leader));
    let error = add().add(1).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    assert!(fake.script.add_answers.lock().len() < 10_000, "it was tried again");
    fake.script.add_answers.lock().clear();
    eventually("it is added", async || add().add(1).await.ok()).await;
}

#[tokio::test]
async fn a_request_that_takes_long_fails_no_others_of_its_session() {
    let fake = Fake::start();
    let client = client_of(&fake).with_timeout(SOON);
    let session = client.session().ttl(Duration::from_secs(600)).await.unwrap();
    let add = async |session: Session, delta| session.counter("stock").add(delta).await;
    fake.script.is_stuck.send_replace(true);
    let stuck = tokio::spawn(add(session.clone(), 0));
    let script = &fake.script;
    eventually("one is stuck", async || script.has_stuck.load(Ordering::Relaxed).then_some(()))
        .await;
    let mut others = tokio::task::JoinSet::new();
    for _ in 0..600 {
        others.spawn(add(session.clone(), 1));
    }
    let is_full = async || (script.unsettled.lock().len() > 100).then_some(());
    eventually("others are served meanwhile", is_full).await;
    script.is_stuck.send_replace(false);
    stuck.await.unwrap().unwrap();
    for added in others.join_all().await {
        added.unwrap();
    }
}

#[tokio::test]
async fn a_session_is_ended_in_the_background_if_nobody_awaits_its_close() {
    let fake = Fake::start();
    let session = client_of(&fake).session().ttl(Duration::from_secs(600)).await.unwrap();
    let (id, lost) = (session.id(), session.lost());
    fake.script.do_ends_hang.send_replace(true);
    let closing = tokio::spawn(session.close());
    let asked = async |count| (fake.script.ends.lock().len() == count).then_some(());
    eventually("it is asked to end", async || asked(1).await).await;
    assert!(lost.is_cancelled(), "before anybody else can have what it held");
    closing.abort();
    closing.await.unwrap_err();
    eventually("it is asked once more", async || asked(2).await).await;
    fake.script.do_ends_hang.send_replace(false);
    assert_eq!(*fake.script.ends.lock(), [id, id]);
}

#[tokio::test]
async fn what_a_dropped_future_began_is_ended() {
    let fake = Fake::start();
    let client = client_of(&fake);
    let ends = || fake.script.ends.lock().len();
    let ended = async |count| (ends() == count).then_some(());
    let mut dropped = 0;
    for yields in 0..20 {
        let begins: [Pin<Box<dyn Future<Output = ()> + Send>>; 3] = [
            Box::pin(async { drop(client.session().await) }),
            Box::pin(async { drop(client.lock("x").await) }),
            Box::pin(async { drop(client.election("x").campaign("me").await) }),
        ];
        for mut begin in begins {
            // It is under way when it is dropped, each time a little further.
            for _ in 0..=yields {
                tokio::select! {
                    biased;
                    () = &mut begin => {}
                    () = yield_now() => continue,
                }
                break;
            }
            drop(begin);
            dropped += 1;
        }
    }
    eventually("the sessions are ended", async || ended(dropped).await).await;
    client.close().await;
    assert_eq!(ends(), dropped);
}

#[test]
fn whoever_was_stopped_for_longer_than_its_session_lives_is_not_elected() {
    let fake = Fake::start();
    // The runtime stands still while nothing blocks on it, like a stopped process.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (session, mut campaign) = runtime.block_on(async {
        let session = client_of(&fake).session().ttl(Duration::from_secs(2)).await.unwrap();
        let mut campaign = session.election("e").campaign("10.0.0.7").into_future();
        assert!(futures::poll!(&mut campaign).is_pending());
        // If the machine is too slow for the session's TTL, there is nothing to test.
        let campaigns = || fake.script.campaigns.load(Ordering::Relaxed);
        let is_elected = async || (campaigns() == 1 || session.is_lost()).then_some(());
        eventually("it is elected", is_elected).await;
        // Two more heartbeats ensure that everything sent before was received.
        let heartbeats = || fake.script.heartbeats.load(Ordering::Relaxed);
        let enough = heartbeats() + 2;
        let is_heard = async || (heartbeats() >= enough || session.is_lost()).then_some(());
        eventually("that is heard", is_heard).await;
        (session, campaign)
    });
    let stopped = std::time::Instant::now();
    while !session.is_lost() {
        assert!(stopped.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(20));
    }
    let led = runtime.block_on(&mut campaign);
    assert!(matches!(led, Err(Error::Lost { .. })), "{led:?}");
}

#[tokio::test]
async fn a_wait_for_a_lock_includes_the_begin_of_its_session() {
    // Accepts connections but never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let client = Client::builder([endpoint]).timeout(Duration::from_secs(600)).build().unwrap();
    let lock = client.lock("x").wait(Duration::from_millis(1)).into_future();
    let campaign = client.election("e").campaign("a").wait(Duration::from_millis(1)).into_future();
    let ended = timeout(SOON, async { tokio::join!(lock, campaign) }).await;
    let (lock, campaign) = ended.expect("not after the time limit of a call");
    assert!(matches!(lock, Err(Error::Deadline { .. })), "{lock:?}");
    assert!(matches!(campaign, Err(Error::Deadline { .. })), "{campaign:?}");
}

#[tokio::test]
async fn what_was_taken_while_nobody_could_tell_is_asked_for() {
    let fake = Fake::start();
    let script = &fake.script;
    let session = session_of(&fake).await;
    let heartbeats = script.heartbeats.load(Ordering::Relaxed);
    let is_attached = async || (script.heartbeats.load(Ordering::Relaxed) > 0).then_some(());
    eventually("the session is kept alive", is_attached).await;
    let [one, other] = [session.lock("x").await.unwrap(), session.lock("y").await.unwrap()];
    script.break_streams(Status::unavailable("etcdserver: server stopped"));
    let asked =
        |count| async move || (script.fence_checks.load(Ordering::Relaxed) >= count).then_some(());
    eventually("it is asked for once the stream is there again", asked(2)).await;
    assert!(script.heartbeats.load(Ordering::Relaxed) > heartbeats);
    assert_eq!((one.loss(), other.loss()), (None, None), "both are held");
    other.release().await.unwrap();
    script.is_taken.store(true, Ordering::Relaxed);
    script.break_streams(Status::unavailable("etcdserver: server stopped"));
    timeout(SOON, one.lost().cancelled()).await.expect("it is told");
    assert_eq!(one.loss(), Some(Loss::Removed));
    let ended = one.run(async { unreachable!("it is lost") }).await;
    assert!(matches!(ended, Err(Error::Lost { .. })));
    assert!(!session.is_lost());
}
