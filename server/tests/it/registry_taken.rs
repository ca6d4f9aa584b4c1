//! Registrations of the client crate whose id is taken over, or whose instance is removed, while they go on.

use std::time::Duration;

use conclave_client::registry::{Check, Record, Registration, Service, State};
use conclave_client::{Client, Error};
use conclave_proto::v1;
use tonic::Code;

use crate::limits::handled;
use crate::native_lock::{client, session, soon};
use crate::registry_support::{SERVICE, registry, request};
use crate::support::{Server, leader, server, servers};

/// Longer than a machine stands still.
const TTL: Duration = Duration::from_secs(60);

async fn register(service: &Service, address: &str) -> Registration {
    soon("it is registered", service.register(address).id("a").ttl(TTL)).await.unwrap()
}

async fn found(service: &Service) -> v1::Instance {
    let asked = Box::pin(service.resolve(v1::InstanceFilter::default()));
    let found = soon("an answer", asked).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

/// Its next word tells its owner, and so does everything after that.
async fn is_over(registration: &mut Registration) {
    let lost = registration.lost();
    for weight in [7, 8] {
        let error = registration.update(|record| record.weight = weight).await.unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error:?}");
        assert!(lost.is_cancelled() && !*registration.is_registered().borrow());
    }
    let ended = registration.run(async { unreachable!("it is over") }).await;
    assert!(matches!(ended, Err(Error::Lost { .. })), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_is_left_alone_by_who_had_its_id_before() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let service = client.service("shop/api");
    let shared = session(&client, "one").await;
    let mut in_shared = service.register("h:1").id("a").session(&shared).await.unwrap();
    let mut alone = register(&service, "h:2").await;
    let drained = register(&service, "h:3").await;
    let ended = register(&service, "h:4").await;
    let dropped = register(&service, "h:5").await;
    let mut successor = register(&service, "h:6").await;
    let before = found(&service).await;
    assert_eq!((before.address.as_str(), Some(before.fence)), ("h:6", successor.token()));
    is_over(&mut alone).await;
    drained.drain(Duration::from_millis(1)).await.unwrap();
    // Whoever leads, and whatever member is asked.
    let leader = leader(&servers).await;
    soon("the leader stops", servers.remove(leader).running.stop()).await;
    is_over(&mut in_shared).await;
    in_shared.drain(Duration::from_millis(1)).await.unwrap();
    alone.deregister().await.unwrap();
    ended.deregister().await.unwrap();
    drop(dropped);
    let owners = async |client: &Client| client.sessions().await.unwrap().len();
    let left = Box::pin(async {
        while owners(&client).await > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    soon("their sessions end", left).await;
    assert_eq!(found(&service).await, before);
    assert!(!shared.is_lost(), "that goes on");
    successor.update(|record| record.weight = 9).await.unwrap();
    assert_eq!(found(&service).await.fence, before.fence);
}

/// The same session has it, but each registration has a fence of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_registers_anew_is_left_alone_by_its_first_guard() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let service = client.service("shop/api");
    let shared = session(&client, "one").await;
    let register = |address| service.register(address).id("a").session(&shared);
    let mut first = register("h:1").await.unwrap();
    let (token, mut is_registered) = (first.token().unwrap(), first.is_registered());
    let second = register("h:2").await.unwrap();
    let mut third = register("h:3").await.unwrap();
    let before = found(&service).await;
    assert!(Some(token) < second.token() && second.token() < third.token());
    soon("it is told", is_registered.wait_for(|is_registered| !is_registered)).await.unwrap();
    let reason = "another guard of the session registered the id of the instance";
    assert_eq!(first.taken_away().as_deref(), Some(reason));
    is_over(&mut first).await;
    // What the first guard sent before that, and what arrives only now, without a number that would tell.
    let record = Record { id: "a".to_owned(), ..Record::new("h:1") };
    let mode = v1::register_request::Mode::IfAbsent.into();
    let late = v1::RegisterRequest { fence: token, mode, ..request(shared.id(), &record) };
    let late = registry(&servers[0]).register(late).await.unwrap_err();
    assert_eq!(late.code(), Code::Aborted, "{late}");
    let removal = v1::DeregisterRequest {
        service: SERVICE.to_owned(),
        id: "a".to_owned(),
        session: shared.id(),
        fence: token,
        once: None,
    };
    assert!(!registry(&servers[0]).deregister(removal).await.unwrap().into_inner().removed);
    first.deregister().await.unwrap();
    second.deregister().await.unwrap();
    assert_eq!(found(&service).await, before);
    // One that was refused leaves it to whom it was before.
    let nameless =
        service.register("h:4").id("a").session(&shared).endpoint("x", "y".repeat(20_000));
    let refused = nameless.await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
    third.update(|record| record.weight = 7).await.unwrap();
    assert_eq!(found(&service).await.fence, before.fence);
    third.deregister().await.unwrap();
    assert!(service.instances().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_removed_stays_away() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let service = client.service("shop/api");
    let mut updated = register(&service, "h:1").await;
    service.drain("a", None).await.unwrap();
    updated.update(|record| record.weight = 7).await.unwrap();
    assert_eq!(found(&service).await.state(), v1::InstanceState::Draining, "both words count");
    assert!(service.remove("a").await.unwrap());
    is_over(&mut updated).await;
    assert!(service.instances().await.unwrap().is_empty());
    // Deliberately anew, which is another registration.
    let drained = register(&service, "h:1").await;
    updated.deregister().await.unwrap();
    assert_eq!(Some(found(&service).await.fence), drained.token());
    assert!(service.remove("a").await.unwrap());
    drained.drain(Duration::from_millis(1)).await.unwrap();
    assert!(service.instances().await.unwrap().is_empty());
}

/// How often it was asked how an instance stands.
async fn looks(server: &Server) -> f64 {
    handled(server, "conclave.v1.RegistryService", "Discover", "OK").await
}

/// As after a pause: the session has expired, and another process has the id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_takes_no_place_that_another_has() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let service = client.service("shop/api");
    let mut late = register(&service, "h:1").await;
    let session = found(&service).await.session;
    let successor = register(&service, "h:2").await;
    let before = found(&service).await;
    client.session_end(session).await.unwrap();
    let mut is_registered = late.is_registered();
    soon("it is told", is_registered.wait_for(|is_registered| !is_registered)).await.unwrap();
    let asked = looks(server).await;
    let again = Box::pin(async {
        while looks(server).await < asked + 2.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    soon("it asks again", again).await;
    let error = late.update(|record| record.state = State::Draining).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "not for good: {error:?}");
    assert_eq!(found(&service).await, before);
    assert_eq!(client.sessions().await.unwrap().len(), 1, "no session is begun in vain");
    successor.deregister().await.unwrap();
    // The place is free.
    late.update(|record| record.state = State::Up).await.unwrap();
    let back = found(&service).await;
    assert_eq!((back.address.as_str(), Some(back.fence)), ("h:1", late.token()));
    late.deregister().await.unwrap();
}

/// The cluster does not know of the loss: the place is still the own one, and is taken in one commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_still_the_own_one_is_taken_at_once() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let service = client.service("shop/api");
    let shared = session(&client, "one").await;
    let mut other = service.register("h:1").id("a").session(&shared).await.unwrap();
    let before = found(&service).await;
    // For its owner it is lost from now on; for the cluster once this was carried out.
    let closing = shared.clone();
    let (closed, changed) = tokio::join!(closing.close(), other.update(|record| record.weight = 7));
    closed.unwrap();
    changed.unwrap();
    let after = found(&service).await;
    assert!(after.session != before.session && after.fence > before.fence);
    assert_eq!(Some(after.fence), other.token());
    other.deregister().await.unwrap();
}

/// A change that is refused for what it says must not keep the instance from coming back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_never_taken_is_undone() {
    let servers = [server(&["--registry-checks=off"]).await];
    let client = client(&servers);
    let service = client.service("shop/api");
    let mut registration = register(&service, "h:1").await;
    registration.update(|record| record.weight = 7).await.unwrap();
    let long = registration.update(|record| record.version = "y".repeat(20_000)).await.unwrap_err();
    assert!(matches!(long, Error::Invalid(_)), "{long:?}");
    let check = |record: &mut Record| record.details.check = Some(Check::default());
    let checked = registration.update(check).await.unwrap_err();
    assert!(matches!(checked, Error::Refused(_)), "{checked:?}");
    let record = registration.record();
    assert!(record.version.is_empty() && record.details.check.is_none() && record.weight == 7);
    let before = found(&service).await;
    client.session_end(before.session).await.unwrap();
    let back = Box::pin(async {
        loop {
            let found = service.resolve(v1::InstanceFilter::default()).await.unwrap();
            if let Some(found) = found.into_iter().find(|found| found.session != before.session) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let back = soon("it comes back", back).await;
    assert_eq!(Record::decode("a", &back.record).unwrap().weight, 7);
    registration.deregister().await.unwrap();
}
