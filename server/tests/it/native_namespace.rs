//! What the native API names, for a client that takes a part of the key space for all of it.

use std::time::Duration;

use conclave_client::kv::{get, put};
use conclave_client::pb::response_op::Response;
use conclave_client::{Client, Error};
use conclave_proto::v3lockpb::LockRequest;

use crate::native_lock::{client, session, soon};
use crate::support::{Server, server};

/// A client of everything, and one of what begins with `/team/`.
async fn both() -> (Server, Client, Client) {
    let server = server(&[]).await;
    let all = client(std::slice::from_ref(&server));
    let team = all.with_namespace("/team/");
    (server, all, team)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_of_a_namespace_is_that_of_the_whole_name() {
    let (server, all, team) = both().await;
    let inner = session(&team, "inner").await;
    let outer = session(&all, "outer").await;
    let lock = soon("the lock", inner.lock("jobs").and("more")).await.unwrap();
    assert!(matches!(outer.lock("/team/jobs").try_now().await, Err(Error::Busy)));
    assert!(matches!(outer.lock("/team/more").try_now().await, Err(Error::Busy)));
    soon("another name", outer.lock("jobs")).await.unwrap().release().await.unwrap();
    let lease = outer.id();
    let mut locks = server.lock();
    let etcd = locks.lock(LockRequest { name: "/team/jobs".into(), lease });
    assert!(tokio::time::timeout(Duration::from_millis(200), etcd).await.is_err(), "etcd's, too");

    assert!(lock.is_held().await.unwrap());
    assert!(team.check_fence("jobs", lock.token()).await.unwrap());
    assert!(all.check_fence("/team/jobs", lock.token()).await.unwrap());
    assert!(!team.check_fence("/team/jobs", lock.token()).await.unwrap());
    let names = |locks: Vec<conclave_client::v1::LockSummary>| {
        locks.into_iter().map(|lock| lock.name).collect::<Vec<_>>()
    };
    assert_eq!(names(team.locks("").await.unwrap()), ["jobs", "more"]);
    assert_eq!(names(all.locks("").await.unwrap()), ["/team/jobs", "/team/more"]);
    assert!(team.lock_inspect("jobs").await.unwrap().places[0].held);

    let txn = lock.txn().then(put("state", "running")).then(get("").prefix()).commit();
    let answer = txn.await.unwrap().into_inner();
    let Some(Response::ResponseRange(range)) = answer.responses[1].response.clone() else {
        panic!("no range")
    };
    // Not of what stands beside the namespace.
    let keys: Vec<_> = range.kvs.iter().map(|kv| kv.key.clone()).collect();
    assert!(keys.contains(&"state".into()), "{keys:?}");
    assert!(keys.iter().all(|key| !key.starts_with(b"/team/")), "{keys:?}");
    assert_eq!(all.get("/team/state").await.unwrap().one().unwrap().value, "running");
    lock.release().await.unwrap();
    let broken = soon("the lock", inner.lock("jobs")).await.unwrap();
    assert_eq!(team.lock_break("jobs", 0, "a test").await.unwrap().len(), 1);
    soon("it is lost", broken.lost().cancelled()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_are_elections_and_the_rest() {
    let (_server, all, team) = both().await;
    let inner = session(&team, "inner").await;
    let leadership = soon("leadership", inner.election("boss").campaign("me")).await.unwrap();
    let mut seen = all.election("/team/boss").observe();
    assert_eq!(soon("a leader", seen.leader()).await.unwrap().unwrap().value(), b"me");
    assert_eq!(
        soon("a leader", team.election("boss").leader()).await.unwrap().unwrap().value(),
        b"me"
    );
    assert!(leadership.is_held().await.unwrap());
    leadership.txn().then(put("plan", "x")).commit().await.unwrap();
    assert!(all.get("/team/plan").await.unwrap().one().is_some());
    leadership.resign().await.unwrap();

    inner.counter("hits").add(2).await.unwrap();
    assert_eq!(team.counter("hits").get().await.unwrap().value, 2);
    assert_eq!(all.get("/team/hits").await.unwrap().one().unwrap().value, "2");
    inner.latch("loaded").create(1).await.unwrap();
    all.latch("/team/loaded").count_down().await.unwrap();
    soon("the latch", team.latch("loaded").wait()).await.unwrap();
    let held = inner.hold_barrier("step").await.unwrap();
    assert!(all.barrier("/team/step").lift().await.unwrap());
    soon("the barrier", team.barrier("step").wait()).await.unwrap();
    drop(held);
    let member = inner.group("workers").join("here").member("w1").await.unwrap();
    let members = all.group("/team/workers").members().await.unwrap();
    assert_eq!(members[0].member, "w1");
    let mut followed = team.group("workers").follow();
    assert_eq!(soon("members", followed.next()).await.unwrap().unwrap()[0].id, "w1");
    member.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_those_of_the_cluster() {
    let (_server, all, team) = both().await;
    let registration = soon("it registers", team.service("api").register("h:1")).await.unwrap();
    let seen = all.service("api").instances().await.unwrap();
    assert_eq!(seen.len(), 1);
    registration.deregister().await.unwrap();
    let config = team.config::<serde_json::Value>();
    let config = config.app(conclave_client::config::Source::prefix("app/"));
    all.put("/team/app/port", "80").await.unwrap();
    let config = soon("settings", Box::pin(config.start())).await.unwrap();
    assert_eq!(config.current()["port"], "80", "settings are keys");
}
