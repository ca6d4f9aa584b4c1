//! Services: registered, found, drained, and found without the cluster.

use std::{collections::BTreeMap, time::Duration};

use conclave_client::{
    Client, Error, Outcome,
    balance::{BalancedChannel, RoundRobin, SnapshotOptions},
    registry::{Basis, Directory, Listing, State},
};

use conclave_testing::process::signal;
use tokio::time::timeout;

use crate::{
    SOON,
    backend::{backends, call, counts},
    eventually,
    native::IMPATIENT,
    start,
};

fn ids(listing: &Listing) -> Vec<&str> {
    listing.records.iter().map(|record| record.id.as_str()).collect()
}

async fn until_listed(directory: &Directory, expected: &[&str]) {
    eventually("the directory follows", async || {
        (ids(&directory.current()) == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn instances_come_change_and_go() {
    let Some((_server, client)) = start("instances_come_change_and_go").await else { return };
    let service = client.service("shop/api");
    let first = service.register("10.0.0.1:80").id("a").zone("x").version("1").await.unwrap();
    let value = client.get("shop/api/a").await.unwrap().one().unwrap().value;
    let expected =
        r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":null,"Instance":{"version":"1","zone":"x"}}"#;
    assert_eq!(value, expected);
    // As a Go client would put it.
    client.put("shop/api/go", r#"{"Op":0,"Addr":"10.0.0.9:80","Metadata":null}"#).await.unwrap();
    client.put("shop/api-other/x", r#"{"Op":0,"Addr":"10.0.0.8:80"}"#).await.unwrap();

    let all = service.discover().start();
    let tagged = service.discover().filter(|record| record.tags.contains(&"blue".to_owned()));
    let tagged = tagged.filter(|record| record.weight > 5).start();
    until_listed(&all, &["a", "go"]).await;
    let mut second = service.register("10.0.0.2:80").id("b").tag("blue").weight(7).await.unwrap();
    until_listed(&all, &["a", "b", "go"]).await;
    until_listed(&tagged, &["b"]).await;
    second.update(|record| record.weight = 3).await.unwrap();
    until_listed(&tagged, &[]).await;
    let metadata = service.register("10.0.0.3:80").metadata("owner", "shop").state(State::Down);
    let third = metadata.await.unwrap();
    until_listed(&all, &["10.0.0.3:80", "a", "b", "go"]).await;
    let listing = all.current();
    assert!(listing.is_connected && listing.basis == Basis::Cluster && listing.revision > 0);
    let down = &listing.records[0];
    assert_eq!((down.state, &down.metadata["owner"]), (State::Down, &"shop".into()));
    assert_eq!(&listing.records, &service.instances().await.unwrap());

    first.deregister().await.unwrap();
    drop(third);
    until_listed(&all, &["b", "go"]).await;
    second.drain(Duration::from_millis(10)).await.unwrap();
    until_listed(&all, &["go"]).await;
    client.close().await;
    assert!(client.leases().await.unwrap().leases.is_empty());
}

#[tokio::test]
async fn a_lost_registration_is_made_again_with_its_last_change() {
    let test = "a_lost_registration_is_made_again_with_its_last_change";
    let Some((_server, client)) = start(test).await else { return };
    let service = client.service("api");
    // The lease has to live until it is revoked.
    let ttl = Duration::from_secs(9);
    let mut registration = service.register("h:1").ttl(ttl).await.unwrap();
    registration.update(|record| record.version = "2".to_owned()).await.unwrap();
    for _ in 0..3 {
        eventually("it knows", async || (!registration.lost().is_cancelled()).then_some(())).await;
        let lease = client.get("api/h:1").await.unwrap().one().unwrap().lease;
        assert_eq!(registration.run(async { 7 }).await.unwrap(), 7);
        let running = registration.run(std::future::pending::<()>());
        let lost = registration.lost();
        client.lease_revoke(lease).await.unwrap();
        assert!(matches!(running.await, Err(Error::Lost { .. })));
        assert!(lost.is_cancelled());
        eventually("it is registered again", async || {
            let instances = service.instances().await.unwrap();
            (instances.len() == 1 && instances[0].version == "2").then_some(())
        })
        .await;
    }
    let mut is_registered = registration.is_registered();
    is_registered.wait_for(|is_registered| *is_registered).await.unwrap();
    assert!(!registration.lost().is_cancelled(), "that of this registration");
    registration.deregister().await.unwrap();
    assert!(service.instances().await.unwrap().is_empty());
}

/// The outcome of the update is unknown, which is no reason to end the registration.
#[tokio::test]
async fn an_update_without_an_answer_ends_no_registration() {
    let test = "an_update_without_an_answer_ends_no_registration";
    let Some((server, client)) = start(test).await else { return };
    let service = client.with_timeout(IMPATIENT).service("api");
    let register = service.register("h:1").ttl(Duration::from_secs(600));
    let mut registration = register.await.unwrap();
    signal(server.pid(), "STOP");
    let unknown = registration.update(|record| record.weight = 7).await.unwrap_err();
    assert_eq!(unknown.outcome(), Outcome::Unknown, "{unknown:?}");
    signal(server.pid(), "CONT");
    assert!(*registration.is_registered().borrow() && registration.taken_away().is_none());
    eventually("it is updated", async || {
        registration.update(|record| record.weight = 8).await.ok()
    })
    .await;
    assert_eq!(client.service("api").instances().await.unwrap()[0].weight, 8);
    registration.deregister().await.unwrap();
}

/// A channel to the instances of `api`, and its directory.
async fn balanced(client: &Client) -> (Directory, BalancedChannel) {
    let directory = client.service("api").discover().start();
    let options = SnapshotOptions { slow_start: Duration::ZERO, ..SnapshotOptions::default() };
    let builder = BalancedChannel::builder().policy(RoundRobin::default()).snapshot(options);
    (directory.clone(), directory.channel(builder))
}

#[tokio::test]
async fn a_channel_follows_the_registry_and_outlives_it() {
    let test = "a_channel_follows_the_registry_and_outlives_it";
    let Some((mut server, client)) = start(test).await else { return };
    let (directory, channel) = balanced(&client).await;
    let mut backends = backends();
    let mut guards = BTreeMap::new();
    for backend in &backends {
        let instance = backend.instance();
        let register = client.service("api").register(&instance.address).id(&instance.id);
        // Longer than the cluster is unavailable.
        guards.insert(instance.id, register.ttl(Duration::from_secs(60)).await.unwrap());
    }
    let until_answered = async |expected: &[&str]| {
        eventually("calls go where they should", async || {
            let mut names = BTreeMap::new();
            for _ in 0..30 {
                names.insert(call(&channel).await.unwrap_or_else(|_| "error".to_owned()), ());
            }
            names.keys().eq(expected).then_some(())
        })
        .await;
    };
    until_answered(&["a", "b", "c"]).await;
    guards.get_mut("a").unwrap().update(|record| record.state = State::Draining).await.unwrap();
    until_answered(&["b", "c"]).await;

    server.kill();
    let mut listing = directory.listing();
    let told = timeout(SOON, listing.wait_for(|listing| !listing.is_connected)).await.unwrap();
    let why = told.unwrap().trouble.clone().expect("it says why");
    assert!(why.starts_with(server.endpoint().trim_start_matches("http://")), "{why}");
    assert_eq!(counts(&channel, 30).await.len(), 2, "the last list stays in use");
    backends[1].kill();
    until_answered(&["c"]).await;
    server.start();
    client.ready().await.unwrap();
    eventually("it is connected", async || directory.current().is_connected.then_some(())).await;
    assert_eq!(directory.current().trouble, None);
    backends[1].serve();
    guards.remove("c").unwrap().deregister().await.unwrap();
    until_answered(&["b"]).await;
}

#[tokio::test]
async fn a_start_without_the_cluster_uses_what_was_known() {
    let test = "a_start_without_the_cluster_uses_what_was_known";
    let Some((mut server, client)) = start(test).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.cache");
    let service = client.service("api");
    let registration = service.register("h:1").ttl(Duration::from_secs(600)).await.unwrap();
    let first = service.discover().cache(&path).start();
    until_listed(&first, &["h:1"]).await;
    eventually("the file is written", async || path.exists().then_some(())).await;
    drop(first);
    server.kill();

    let second = service.discover().cache(&path).start();
    until_listed(&second, &["h:1"]).await;
    let listing = second.current();
    assert!(listing.basis == Basis::Cache && !listing.is_connected && listing.revision > 0);
    let other = client.service("other").discover().cache(&path).start();
    server.start();
    let mut listing = second.listing();
    listing.wait_for(|listing| listing.basis == Basis::Cluster).await.unwrap();
    assert_eq!(ids(&second.current()), ["h:1"]);
    let mut listing = other.listing();
    listing.wait_for(|listing| listing.basis == Basis::Cluster).await.unwrap();
    assert!(other.current().records.is_empty(), "the file of another service is not ours");
    registration.deregister().await.unwrap();
}

/// The last one to register an id keeps it, whatever its predecessor does.
#[tokio::test]
async fn who_was_taken_over_leaves_the_successor_alone() {
    let test = "who_was_taken_over_leaves_the_successor_alone";
    let Some((_server, client)) = start(test).await else { return };
    let service = client.service("api");
    let ttl = Duration::from_secs(60);
    let register = |address| service.register(address).id("a").ttl(ttl);
    let mut taken = register("h:1").await.unwrap();
    let returning = register("h:2").await.unwrap();
    let lease = client.get("api/a").await.unwrap().one().unwrap().lease;
    let _successor = register("h:3").await.unwrap();
    let is_left = async || {
        let found = client.get("api/a").await.unwrap().one().unwrap();
        found.version == 3 && service.instances().await.unwrap()[0].address == "h:3"
    };
    let lost = taken.lost();
    let error = taken.update(|record| record.weight = 7).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }) && lost.is_cancelled(), "{error:?}");
    assert!(!*taken.is_registered().borrow());
    assert!(is_left().await);
    taken.drain(Duration::from_millis(1)).await.unwrap();
    // It also lost its lease, and tries to register again.
    let mut is_registered = returning.is_registered();
    client.lease_revoke(lease).await.unwrap();
    is_registered.wait_for(|is_registered| !is_registered).await.unwrap();
    eventually("it tries", async || {
        let leases = client.leases().await.unwrap().leases.len();
        (leases == 2).then_some(())
    })
    .await;
    assert!(is_left().await);
    returning.drain(Duration::from_millis(1)).await.unwrap();
    assert!(is_left().await);
    client.delete("api/a").await.unwrap();
}

/// A deleted instance is not registered again.
#[tokio::test]
async fn an_instance_that_was_deleted_is_not_put_again() {
    let test = "an_instance_that_was_deleted_is_not_put_again";
    let Some((_server, client)) = start(test).await else { return };
    let service = client.service("api");
    let mut registration = service.register("h:1").ttl(Duration::from_secs(60)).await.unwrap();
    client.delete("api/h:1").await.unwrap();
    let error = registration.update(|record| record.weight = 7).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    let ended = registration.run(async { unreachable!("it is over") }).await;
    assert!(matches!(ended, Err(Error::Lost { .. })), "{ended:?}");
    registration.deregister().await.unwrap();
    assert!(service.instances().await.unwrap().is_empty());
}
