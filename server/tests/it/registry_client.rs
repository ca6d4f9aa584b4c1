//! The client crate on the native registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use conclave_client::balance::BalancedChannel;
use conclave_client::registry::{Check, CheckKind, Directory, Health, Record, Service, State};
use conclave_proto::v1;
use tonic::Code;
use v1::instance_change::{Kind, Reason};

use crate::limits::handled;
use crate::native_lock::{client, session, soon};
use crate::registry_cluster::instance;
use crate::registry_support::{SERVICE, named, registry, request};
use crate::support::{leader, server, servers};

async fn until(directory: &Directory, what: impl Fn(&[Record]) -> bool) {
    let mut listing = directory.listing();
    soon("the directory follows", listing.wait_for(|listing| what(&listing.records)))
        .await
        .unwrap();
}

fn ids(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.id.as_str()).collect()
}

/// Waits until an instance lives with another session.
async fn renewed(service: &Service, before: &v1::Instance) -> v1::Instance {
    let is_renewed =
        |found: &v1::Instance| found.id == before.id && found.session != before.session;
    let renewed = Box::pin(async {
        loop {
            let found = service.resolve(v1::InstanceFilter::default()).await.unwrap();
            if let Some(found) = found.into_iter().find(is_renewed) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    soon("it is registered again", renewed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_live_with_sessions_and_come_back() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let service = client.service("shop/api");
    let directory = service.discover().start();
    let own = session(&client, "one").await;
    let shared = service.register("h:1").id("a").session(&own).await.unwrap();
    let mut alone = service.register("h:2").id("b").tag("blue").await.unwrap();
    until(&directory, |records| ids(records) == ["a", "b"]).await;
    let found = service.resolve(v1::InstanceFilter::default()).await.unwrap();
    assert_eq!(found[0].session, own.id());
    assert_ne!(found[1].session, own.id());
    let owner = directory.current().records[1].details.owner.clone();
    assert_eq!(owner, "shop/api");

    alone.update(|record| record.details.health = Health::Critical).await.unwrap();
    let last = |records: &[Record]| records.last().cloned().unwrap_or_default();
    until(&directory, |records| last(records).health_shown() == Health::Critical).await;
    client.session_end(found[1].session).await.unwrap();
    let again = renewed(&service, &found[1]).await;
    assert_eq!(again.health(), v1::InstanceHealth::Critical, "with its last change");
    // A given session that is lost is followed by one of its own.
    own.close().await.unwrap();
    renewed(&service, &found[0]).await;
    until(&directory, |records| ids(records) == ["a", "b"]).await;

    let mut changes = service.changes(v1::InstanceFilter::default());
    soon("a snapshot", changes.next()).await.unwrap();
    service.drain("b", None).await.unwrap();
    until(&directory, |records| last(records).state_shown() == State::Draining).await;
    shared.drain(Duration::from_millis(10)).await.unwrap();
    until(&directory, |records| ids(records) == ["b"]).await;
    assert!(service.remove("b").await.unwrap() && !service.remove("b").await.unwrap());
    until(&directory, |records| records.is_empty()).await;
    let mut reasons = Vec::new();
    while reasons.len() < 4 {
        let message = soon("a change", changes.next()).await.unwrap();
        reasons.extend(message.changes.iter().map(|change| change.reason()));
    }
    assert_eq!(reasons[2..], [Reason::Deregistered, Reason::Admin], "by its owner, by another");
    drop((alone, changes));
    client.close().await;
    assert!(client.sessions().await.unwrap().is_empty(), "no session is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_goes_on_when_members_stop() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let service = client.service("api");
    let mut kept = Vec::new();
    for port in 1..=6 {
        kept.push(service.register(format!("h:{port}")).await.unwrap());
    }
    let directory = service.discover().start();
    let channel = directory.channel(BalancedChannel::builder());
    until(&directory, |records| records.len() == 6).await;
    let mut seen = directory.listing();
    let watching = tokio::spawn(async move {
        let mut least = usize::MAX;
        while seen.changed().await.is_ok() {
            least = least.min(seen.borrow_and_update().records.len());
        }
        least
    });
    let leader = leader(&servers).await;
    soon("the leader stops", servers.remove(leader).running.stop()).await;
    kept.push(soon("a registration", service.register("h:7")).await.unwrap());
    until(&directory, |records| records.len() == 7).await;
    drop((directory, channel));
    assert!(watching.await.unwrap() >= 6, "nobody who lives disappears");
    for registration in kept {
        soon("to deregister", registration.deregister()).await.unwrap();
    }
    assert!(service.instances().await.unwrap().is_empty());
}

/// A check that removes who is not well after a second.
fn strict() -> Check {
    Check {
        kind: CheckKind::Http,
        interval_ms: 500,
        timeout_ms: 30_000,
        failures: 1,
        remove_after_ms: 1_000,
        ..Check::default()
    }
}

/// It was removed for a reason that passes, and its owner lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_was_critical_for_too_long_comes_back_when_it_is_well() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let service = client.service("shop/api");
    let is_well = Arc::new(AtomicBool::new(true));
    let address = instance(Arc::clone(&is_well)).await;
    let register = service.register(address).id("a").named_check("live", strict());
    // Before the first check may change anything.
    let mut changes = service.changes(v1::InstanceFilter::default());
    soon("a snapshot", changes.next()).await.unwrap();
    // It is to outlive a machine that stands still.
    let registration = register.ttl(Duration::from_secs(60)).await.unwrap();
    let (first, mut is_registered) = (registration.token(), registration.is_registered());
    let mut until = async |wanted: (Kind, Reason), is_healthy: bool| {
        let is_wanted = |change: &v1::InstanceChange| {
            let healthy = change.instance.as_ref().is_some_and(|instance| instance.healthy);
            (change.kind(), change.reason()) == wanted && healthy == is_healthy
        };
        while !soon("a change", changes.next()).await.unwrap().changes.iter().any(is_wanted) {}
    };
    until((Kind::Updated, Reason::Unspecified), true).await;
    is_well.store(false, Ordering::Relaxed);
    until((Kind::Removed, Reason::Critical), false).await;
    soon("its owner is told", is_registered.wait_for(|is_registered| !is_registered))
        .await
        .unwrap();
    is_well.store(true, Ordering::Relaxed);
    // Nobody calls it before it is found well.
    until((Kind::Added, Reason::Unspecified), false).await;
    until((Kind::Updated, Reason::Unspecified), true).await;
    soon("it is registered", is_registered.wait_for(|is| *is)).await.unwrap();
    assert!(registration.token() > first);
    soon("to deregister", registration.deregister()).await.unwrap();
}

/// Its owner lives and would register it again, but its name is somebody else's by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_somebody_took_meanwhile_is_left_alone() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let other = session(&client, "other").await;
    // It takes connections, but is never well.
    let address = instance(Arc::default()).await;
    let service = client.service(SERVICE);
    let register = service.register(address).id("a").check(strict()).ttl(Duration::from_secs(60));
    let registration = register.await.unwrap();
    let mut is_registered = registration.is_registered();
    let mode = v1::register_request::Mode::IfAbsent.into();
    let wanted = v1::RegisterRequest { mode, ..request(other.id(), &named("a")) };
    // Should the owner come back first, it is removed once more.
    let taken = loop {
        soon("it is removed", is_registered.wait_for(|is_registered| !is_registered))
            .await
            .unwrap();
        match registry(server).register(wanted.clone()).await {
            Ok(answer) => break answer.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition),
        }
    };
    let looks = || handled(server, "conclave.v1.RegistryService", "Discover", "OK");
    let asked = looks().await;
    let again = Box::pin(async {
        while looks().await <= asked {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    soon("the owner looks", again).await;
    let is_left = async || {
        let found = service.resolve(v1::InstanceFilter::default()).await.unwrap().remove(0);
        (found.session, found.fence, found.mod_revision)
            == (other.id(), taken.fence, taken.mod_revision)
    };
    assert!(is_left().await && !*is_registered.borrow());
    soon("to deregister", registration.deregister()).await.unwrap();
    assert!(is_left().await, "nor does the owner take it out");
}

/// A member whose others stopped hears of no change: who follows it must learn that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_says_so_when_the_others_of_its_member_stopped() {
    let mut servers = servers(3, &[]).await;
    let all = client(&servers);
    let one = all.each().remove(0);
    let directory = one.service("api").discover().start();
    let _registration = all.service("api").register("h:1").await.unwrap();
    until(&directory, |records| records.len() == 1).await;
    let mut listing = directory.listing();
    for server in servers.split_off(1) {
        soon("the others stop", server.running.stop()).await;
    }
    let is_told = listing.wait_for(|listing| !listing.is_connected);
    let told = soon("it is told", is_told).await.unwrap();
    assert_eq!(told.records.len(), 1);
    assert_eq!(told.trouble.as_deref().map(|why| why.contains("no leader")), Some(true));
}
