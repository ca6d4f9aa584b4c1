//! Registrations, operators and watchers of services with misbehaving servers.

use std::{future::IntoFuture, sync::atomic::Ordering, time::Duration};

use conclave_client::{
    Error, Outcome,
    registry::Check,
    v1::{
        DiscoverResponse, Instance, InstanceChange, InstanceFilter, InstanceWatchResponse,
        instance_change::Reason, instance_watch_response::Snapshot, register_request::Mode,
    },
};
use tokio::{net::TcpListener, time::timeout};
use tonic::Status;

use crate::{
    SOON, eventually,
    fake::Fake,
    native::{IMPATIENT, client_of},
};

#[tokio::test]
async fn an_instance_leaves_a_session_that_goes_on_however_long_that_takes() {
    let fake = Fake::start();
    let script = &fake.script;
    // What must succeed is retried until it does; what must fail takes the whole time limit.
    let client = client_of(&fake).with_timeout(IMPATIENT);
    let begin = || client.session().ttl(Duration::from_secs(600));
    let session = eventually("a session", async || begin().await.ok()).await;
    let register = |id: &str| client.service("s").register("10.0.0.7:80").id(id).session(&session);
    let again = register("again").await.unwrap();
    let late = register("late").await.unwrap();
    script.has_no_leader.store(true, Ordering::Relaxed);
    late.deregister().await.unwrap_err();
    again.deregister().await.unwrap_err();
    // The pending deregistration of the first one must not affect this one.
    let again = register("again").await.unwrap();
    script.are_registrations_lost.store(true, Ordering::Relaxed);
    let unknown = register("unknown").await.unwrap_err();
    assert_eq!(unknown.outcome(), Outcome::Unknown, "{unknown:?}");
    script.has_no_leader.store(false, Ordering::Relaxed);
    // The fence, and the number of the request that is undone.
    let gone = |id: &str| {
        let deregistered = script.deregistered.lock();
        let mut gone: Vec<_> = deregistered.iter().filter(|gone| gone.id == id).collect();
        gone.dedup_by_key(|gone| gone.fence);
        gone.iter().map(|gone| (gone.fence, gone.once.unwrap().undoes)).collect::<Vec<_>>()
    };
    let asked = script.registered.lock()[3].once.unwrap().sequence;
    eventually("all are taken out", async || {
        let all = [gone("late"), gone("unknown"), gone("again")];
        (all == [[(2, 0)], [(0, asked)], [(1, 0)]]).then_some(())
    })
    .await;
    assert_eq!(again.token(), Some(3), "that of the third request");
    assert_eq!(again.run(async { 7 }).await.unwrap(), 7);
    drop(again);
    eventually("it goes with its guard", async || {
        (gone("again") == [(1, 0), (3, 0)]).then_some(())
    })
    .await;
    assert!(!session.is_lost());
}

/// While it is unknown whether another guard of the session has the id, the first one keeps it.
#[tokio::test]
async fn a_registration_that_is_refused_changes_nothing_of_the_one_before() {
    let fake = Fake::start();
    let script = &fake.script;
    let client = client_of(&fake).with_timeout(SOON);
    let session = client.session().ttl(Duration::from_secs(600)).await.unwrap();
    let service = client.service("s");
    let register = |id, address| service.register(address).id(id).session(&session);
    let mut updated = register("updated", "h:1").await.unwrap();
    let dropped = register("dropped", "h:2").await.unwrap();
    script.do_registrations_hang.send_replace(true);
    let mut refused = tokio::task::JoinSet::new();
    for id in ["updated", "updated", "dropped"] {
        refused.spawn(register(id, "late:1").into_future());
    }
    let are_asked = async || (script.registered.lock().len() == 5).then_some(());
    eventually("they are asked", are_asked).await;
    updated.update(|record| record.weight = 7).await.expect("it has the id");
    drop(dropped);
    let is_gone =
        || script.deregistered.lock().iter().any(|gone| (&*gone.id, gone.fence) == ("dropped", 2));
    eventually("it is taken out", async || is_gone().then_some(())).await;
    script.do_registrations_hang.send_replace(false);
    for refused in refused.join_all().await {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    }
    updated.update(|record| record.weight = 8).await.expect("it has the id still");
    assert!(*updated.is_registered().borrow() && updated.taken_away().is_none());
    assert_eq!(updated.run(async { 7 }).await.unwrap(), 7);
    let removed = script.deregistered.lock().len();
    updated.deregister().await.unwrap();
    let deregistered = script.deregistered.lock().clone();
    assert_eq!(deregistered.len(), removed + 1, "what was refused is not taken out");
    assert_eq!(deregistered[removed].id, "updated");
}

/// A dropped future leaves its outcome unknown.
#[tokio::test]
async fn a_registration_that_nobody_awaits_is_taken_back() {
    let fake = Fake::start();
    let script = &fake.script;
    let client = client_of(&fake).with_timeout(SOON);
    let session = client.session().ttl(Duration::from_secs(600)).await.unwrap();
    let service = client.service("s");
    let first = service.register("h:1").id("a").session(&session).await.unwrap();
    script.do_registrations_hang.send_replace(true);
    let second = tokio::spawn(service.register("late:1").id("a").session(&session).into_future());
    let is_asked = async || (script.registered.lock().len() == 2).then_some(());
    eventually("it is asked", is_asked).await;
    second.abort();
    second.await.unwrap_err();
    let asked = script.registered.lock()[1].once.unwrap().sequence;
    let is_taken_back = || {
        let deregistered = script.deregistered.lock();
        deregistered.iter().any(|gone| gone.once.unwrap().undoes == asked)
    };
    eventually("it is taken back", async || is_taken_back().then_some(())).await;
    assert_eq!(script.deregistered.lock().len(), 1, "that, and nothing else");
    assert!(*first.is_registered().borrow());
}

/// It may arrive after the next update, which has other content.
#[tokio::test]
async fn an_update_without_an_answer_is_taken_back_by_the_next() {
    let fake = Fake::start();
    let script = &fake.script;
    let client = client_of(&fake).with_timeout(IMPATIENT);
    let begin = || client.session().ttl(Duration::from_secs(600));
    let session = eventually("a session", async || begin().await.ok()).await;
    let register = client.service("s").register("h:1").session(&session);
    let mut registration = register.await.unwrap();
    script.are_registrations_lost.store(true, Ordering::Relaxed);
    let unknown = registration.update(|record| record.weight = 7).await.unwrap_err();
    assert_eq!(unknown.outcome(), Outcome::Unknown, "{unknown:?}");
    script.are_registrations_lost.store(false, Ordering::Relaxed);
    eventually("it is updated", async || {
        registration.update(|record| record.weight = 8).await.ok()
    })
    .await;
    registration.update(|record| record.weight = 9).await.unwrap();
    let numbers: Vec<_> =
        script.registered.lock().iter().map(|asked| asked.once.unwrap()).collect();
    let [.., first, last] = numbers.as_slice() else { panic!("{numbers:?}") };
    assert!((2..first.sequence).contains(&first.undoes), "the one in doubt: {numbers:?}");
    assert_eq!(last.undoes, 0, "none is in doubt");
}

fn gone(reason: Reason) -> DiscoverResponse {
    DiscoverResponse { removed: reason.into(), ..DiscoverResponse::default() }
}

/// After a removal by a check the keeper looks before it registers again: an operator may have
/// removed the id meanwhile.
#[tokio::test]
async fn who_comes_back_after_a_check_looks_first() {
    let fake = Fake::start();
    let client = client_of(&fake).with_timeout(SOON);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    fake.script.found.lock().extend([gone(Reason::Critical), gone(Reason::Admin)]);
    let check = Check { remove_after_ms: 1, ..Check::default() };
    let register = client.service("s").register(address).check(check);
    let registration = register.ttl(Duration::from_secs(600)).await.unwrap();
    let mut is_registered = registration.is_registered();
    let told = timeout(SOON, is_registered.wait_for(|is_registered| !is_registered)).await;
    told.expect("it is told of the check").unwrap();
    let is_over = async || registration.taken_away();
    let reason = eventually("it is told of the operator", is_over).await;
    assert_eq!(reason, "somebody removed the instance");
    assert_eq!(fake.script.registered.lock().len(), 1, "it stays away");
}

/// Even if a compaction dropped the reason.
#[tokio::test]
async fn who_is_not_there_for_no_known_reason_comes_back() {
    let fake = Fake::start();
    let client = client_of(&fake).with_timeout(SOON);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    fake.script.found.lock().extend([gone(Reason::Unspecified), gone(Reason::Unspecified)]);
    let check = Check { remove_after_ms: 1, ..Check::default() };
    let register = client.service("s").register(address).check(check);
    let registration = register.ttl(Duration::from_secs(600)).await.unwrap();
    let is_back = async || (fake.script.registered.lock().len() == 2).then_some(());
    eventually("it is registered again", is_back).await;
    let again = fake.script.registered.lock()[1].clone();
    assert_eq!((again.mode(), again.former.unwrap().fence), (Mode::IfAbsent, 1));
    drop(registration);
}

/// Its number stays open until it is answered, and a session has only so many numbers.
#[tokio::test]
async fn an_instance_whose_return_was_not_answered_is_asked_for_again_soon() {
    let fake = Fake::start();
    let script = &fake.script;
    // What must succeed is retried until it does; what must fail takes the whole time limit.
    let client = client_of(&fake).with_timeout(Duration::from_secs(2));
    let begin = || client.session().ttl(Duration::from_secs(600));
    let session = eventually("a session", async || begin().await.ok()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    script.found.lock().extend([(); 100].map(|()| gone(Reason::Unspecified)));
    let check = Check { remove_after_ms: 1, ..Check::default() };
    let service = client.service("s");
    let register = || service.register(&address).check(check.clone()).session(&session);
    let registration = eventually("an instance", async || register().await.ok()).await;
    script.are_registrations_lost.store(true, Ordering::Relaxed);
    // Each attempt has its own number, and undoes the previous one.
    let times = || {
        let registered = script.registered.lock();
        let numbers = registered.iter().map(|asked| asked.once.unwrap().sequence);
        numbers.collect::<std::collections::BTreeSet<_>>().len()
    };
    eventually("it is asked for again and again", async || (times() > 7).then_some(())).await;
    script.are_registrations_lost.store(false, Ordering::Relaxed);
    let mut is_registered = registration.is_registered();
    let back = timeout(SOON, is_registered.wait_for(|is_registered| *is_registered)).await;
    back.expect("it is back").unwrap();
    let last = script.registered.lock().last().cloned().unwrap().once.unwrap();
    assert!(last.undoes > 1, "it takes the one before back: {last:?}");
}

#[tokio::test]
async fn who_wants_to_hear_that_an_instance_was_taken_away_does() {
    let fake = Fake::start();
    let client = client_of(&fake).with_timeout(SOON);
    let successor = Instance {
        id: "a".to_owned(),
        address: "h:2".to_owned(),
        session: 0x1f,
        fence: 9,
        ..Instance::default()
    };
    let taken = DiscoverResponse { instances: vec![successor], ..DiscoverResponse::default() };
    fake.script.found.lock().push_back(taken);
    let register = client.service("s").register("h:1").id("a").ttl(Duration::from_secs(600));
    let registration = register.look_every(Duration::from_millis(1)).await.unwrap();
    let reason = eventually("it is told", async || registration.taken_away()).await;
    assert_eq!(reason, "another registered the id of the instance (h:2, session 000000000000001f)");
    assert!(registration.lost().is_cancelled() && !*registration.is_registered().borrow());
    registration.deregister().await.unwrap();
    assert!(fake.script.deregistered.lock().is_empty(), "the successor is left alone");
}

/// Ending a registration does not wait for a lookup of the instance.
#[tokio::test]
async fn an_order_goes_before_what_is_being_found_out() {
    let fake = Fake::start();
    let client = client_of(&fake).with_timeout(Duration::from_secs(3_600));
    let check = Check { remove_after_ms: 1, ..Check::default() };
    let register = client.service("s").register("10.0.0.7:80").check(check);
    let mut registration = register.ttl(Duration::from_secs(600)).await.unwrap();
    let is_asked = |times| {
        let script = &fake.script;
        async move || (script.discoveries.load(Ordering::Relaxed) >= times).then_some(())
    };
    eventually("it is asked how the instance stands", is_asked(1)).await;
    let updated = timeout(SOON, registration.update(|record| record.weight = 7)).await;
    updated.expect("it is not held up").unwrap();
    eventually("it is asked again", is_asked(2)).await;
    timeout(SOON, registration.deregister()).await.expect("it is not held up").unwrap();
}

#[tokio::test]
async fn what_an_operator_says_of_an_instance_is_never_sent_twice() {
    let fake = Fake::start();
    let service = client_of(&fake).service("s");
    let said = [
        service.drain("a", Some(Duration::from_secs(30))).await,
        service.undrain("a").await,
        service.configure(Some(false), None).await.map(drop),
    ];
    for said in said {
        assert_eq!(said.unwrap_err().outcome(), Outcome::Unknown);
    }
    assert_eq!(fake.script.operations.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn changes_are_whole_though_a_stream_broke_within_them() {
    let fake = Fake::start();
    let part = |snapshot: Snapshot, more, ids: &[&str]| {
        let change = |id: &&str| InstanceChange {
            instance: Some(Instance { id: (*id).to_owned(), ..Instance::default() }),
            ..InstanceChange::default()
        };
        let changes = ids.iter().map(change).collect();
        InstanceWatchResponse { revision: 7, snapshot: snapshot.into(), more, changes }
    };
    let (asked, none) = (Snapshot::Asked, Snapshot::None);
    fake.script.changes.lock().extend([
        vec![part(asked, false, &["a"]), part(none, true, &["b"])],
        vec![part(asked, true, &["a", "b"])],
        vec![part(asked, true, &["b", "c"]), part(asked, false, &["d"])],
    ]);
    let mut changes = client_of(&fake).service("s").changes(InstanceFilter::default());
    let mut ids = async || {
        let told = timeout(SOON, changes.next()).await.expect("it goes on").unwrap();
        assert!(told.snapshot() == asked && !told.more && told.revision == 7);
        let ids = told.changes.into_iter().filter_map(|change| change.instance);
        ids.map(|instance| instance.id).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, ["a"]);
    let broken = async {
        for left in [1, 0] {
            // The previous watch has delivered everything.
            eventually("it watches", async || {
                fake.script.break_streams(Status::unavailable("etcdserver: server stopped"));
                (fake.script.changes.lock().len() <= left).then_some(())
            })
            .await;
        }
    };
    let (ids, ()) = tokio::join!(ids(), broken);
    assert_eq!(ids, ["b", "c", "d"]);
}
