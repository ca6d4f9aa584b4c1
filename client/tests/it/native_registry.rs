//! Registrations, operators and watchers of services when servers misbehave.

use std::{sync::atomic::Ordering, time::Duration};

use conclave_client::{
    Outcome,
    registry::Check,
    v1::{
        Instance, InstanceChange, InstanceFilter, InstanceWatchResponse,
        instance_watch_response::Snapshot,
    },
};
use tokio::time::timeout;
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
    // What must succeed is tried until it does; what must fail takes as long as a call may.
    let client = client_of(&fake).with_timeout(IMPATIENT);
    let begin = || client.session().ttl(Duration::from_secs(600));
    let session = eventually("a session", async || begin().await.ok()).await;
    let register = |id: &str| client.service("s").register("10.0.0.7:80").id(id).session(&session);
    let again = register("again").await.unwrap();
    let late = register("late").await.unwrap();
    script.has_no_leader.store(true, Ordering::Relaxed);
    late.deregister().await.unwrap_err();
    again.deregister().await.unwrap_err();
    // What is still to take it out leaves this one alone.
    let again = register("again").await.unwrap();
    script.are_registrations_lost.store(true, Ordering::Relaxed);
    let unknown = register("unknown").await.unwrap_err();
    assert_eq!(unknown.outcome(), Outcome::Unknown, "{unknown:?}");
    script.has_no_leader.store(false, Ordering::Relaxed);
    let gone = |id: &str| script.deregistered.lock().iter().any(|gone| gone == id);
    eventually("both are taken out", async || (gone("late") && gone("unknown")).then_some(()))
        .await;
    assert!(!gone("again"));
    assert_eq!(again.token(), Some(3), "that of the third request");
    assert_eq!(again.run(async { 7 }).await.unwrap(), 7);
    drop(again);
    eventually("it goes with its guard", async || gone("again").then_some(())).await;
    assert!(!session.is_lost());
}

/// Whoever ends a registration does not wait until it is known how the instance stands.
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
            // The watch before has said all that it has to say.
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
