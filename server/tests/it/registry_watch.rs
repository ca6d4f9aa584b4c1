//! Watches of a service: every change once, and snapshots of one revision.

use std::collections::BTreeMap;

use conclave_client::kv::put;
use conclave_proto::v1;
use conclave_state_machine::registry::record::Record;
use tonic::Code;
use v1::discovery_service_client::DiscoveryServiceClient;
use v1::instance_change::{Kind, Reason};
use v1::instance_watch_response::Snapshot;

use crate::native_lock::{client, session};
use crate::registry_support::{SERVICE, Watched, named, register, registry, two};
use crate::support::{server, servers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_hear_of_every_change_and_why() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let (one, two) = two(&client).await;
    register(server, one.id(), &named("a")).await;
    let mut all = Watched::open(server, 0).await;
    let healthy = v1::InstanceFilter { healthy: true, ..Default::default() };
    let mut healthy = Watched::filtered(server, 0, Some(healthy)).await;
    all.until_known(&["a"]).await;
    healthy.until_known(&["a"]).await;
    register(server, two.id(), &named("b")).await;
    all.until_known(&["a", "b"]).await;
    assert_eq!(all.last(), (Kind::Added, Reason::Unspecified, "b"));

    let drain = v1::InstanceUpdateRequest {
        service: SERVICE.to_owned(),
        id: "b".to_owned(),
        override_state: v1::InstanceState::Draining.into(),
        ..Default::default()
    };
    registry(server).update(drain).await.unwrap();
    healthy.until(|watched| watched.told.len() == 2).await;
    assert_eq!(healthy.last(), (Kind::Removed, Reason::Filtered, "b"));
    register(server, one.id(), &named("b")).await;
    all.until(|watched| watched.last().1 == Reason::Replaced).await;
    client.session_end(two.id()).await.unwrap();
    client.delete("shop/api/a").await.unwrap();
    all.until_known(&["b"]).await;
    assert_eq!(all.last(), (Kind::Removed, Reason::Deleted, "a"));
    healthy.until_known(&[]).await;
    register(server, one.id(), &named("c")).await;
    client.session_end(one.id()).await.unwrap();
    all.until_known(&[]).await;
    let ended = all.told.iter().filter(|told| told.2 == Reason::SessionEnded).count();
    assert_eq!(ended, 2, "{:?}", all.told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_watch_sees_no_gap_and_no_duplicate() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let own = session(&client, "one").await;
    let mut whole = Watched::open(&servers[0], 0).await;
    whole.until(|watched| watched.revision > 0).await;
    let begin = whole.revision;
    for number in 0..30 {
        let server = &servers[number % 3];
        let mut record = named(&format!("i{}", number % 4));
        record.weight = u32::try_from(number).unwrap();
        register(server, own.id(), &record).await;
        client.put(format!("other/{number}"), "x").await.unwrap();
        if number % 5 == 4 {
            let id = format!("i{}", number % 4);
            let service = SERVICE.to_owned();
            let request =
                v1::DeregisterRequest { service, id, session: own.id(), ..Default::default() };
            registry(server).deregister(request).await.unwrap();
        }
    }
    whole.until(|watched| watched.told.len() == 36).await;
    // From every revision on, on every member.
    for (place, told) in whole.told.iter().enumerate().step_by(5) {
        let mut resumed = Watched::open(&servers[place % 3], told.0).await;
        resumed.known = known_at(&whole, told.0);
        let expected: Vec<_> =
            whole.told.iter().filter(|later| later.0 > told.0).cloned().collect();
        resumed.until(|watched| watched.told.len() == expected.len()).await;
        assert_eq!(resumed.told, expected, "from {}", told.0);
    }
    let last = whole.revision;
    client.compact(last).await.unwrap();
    let mut late = Watched::open(&servers[2], begin).await;
    late.revision = 0;
    assert!(late.step().await);
    assert!(late.told.is_empty() && late.revision == last, "a snapshot instead");
    assert!(late.known.keys().eq(whole.known.keys()));
}

/// A snapshot of several messages is as of one revision, also if the service changes before its client takes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_of_one_revision_however_slowly_it_is_read() {
    const INSTANCES: usize = 600;
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    for first in (0..INSTANCES).step_by(50) {
        let mut txn = client.txn();
        for number in first..first + 50 {
            let mut record = named(&format!("i{number:03}"));
            record.metadata.insert("text".to_owned(), "x".repeat(14_000).into());
            txn = txn.then(put(format!("shop/api/i{number:03}"), record.encode()));
        }
        txn.commit().await.unwrap();
    }
    let mut watched = Watched::open(server, 0).await;
    assert!(watched.step().await);
    let (begun, told) = (watched.revision, watched.known.len());
    assert!(watched.snapshot == Snapshot::Asked && told < INSTANCES / 4, "there is more: {told}");
    let gone = INSTANCES / 2;
    for number in [0, gone, INSTANCES - 1] {
        client.delete(format!("shop/api/i{number:03}")).await.unwrap();
    }
    client.put("shop/api/new", named("new").encode()).await.unwrap();
    watched.until(|watched| watched.snapshot == Snapshot::None).await;
    assert_eq!((watched.revision, watched.known.len()), (begun, INSTANCES));
    watched.until(|watched| watched.told.len() == 4).await;
    assert_eq!(watched.known.len(), INSTANCES - 2);

    // What is compacted meanwhile breaks off, and has to be asked for again.
    let mut late = Watched::open(server, 0).await;
    assert!(late.step().await && late.snapshot == Snapshot::Asked);
    let last = client.put("shop/api/new", named("newer").encode()).await.unwrap().revision();
    client.compact(last).await.unwrap();
    let mut is_whole = false;
    while !is_whole {
        if late.step().await {
            is_whole = late.snapshot == Snapshot::None;
        } else {
            late = Watched::open(server, 0).await;
        }
    }
    late.until(|late| late.known["new"].mod_revision == last).await;
    assert_eq!(late.known.len(), INSTANCES - 2);
}

/// However many changes a window holds, its watcher knows the same as one who hears of each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_window_changes_is_told_as_one() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let own = session(&client, "one").await;
    let asked = |window_ms, after_revision| v1::InstanceWatchRequest {
        service: SERVICE.to_owned(),
        window_ms: Some(window_ms),
        after_revision,
        ..Default::default()
    };
    let mut discovery = DiscoveryServiceClient::new(server.channel.clone());
    let refused = discovery.watch(asked(10_001, 0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut each = Watched::asked(server, asked(0, 0)).await;
    let mut fewer = Watched::asked(server, asked(500, 0)).await;
    each.until(|watched| watched.revision > 0).await;
    fewer.until(|watched| watched.revision > 0).await;
    let remove = async |id: &str| {
        let (service, id) = (SERVICE.to_owned(), id.to_owned());
        let request = v1::DeregisterRequest { service, id, ..Default::default() };
        registry(server).deregister(request).await.unwrap();
    };
    // Until several fell into one window, however slow the machine is.
    for weight in 1.. {
        register(server, own.id(), &named("b")).await;
        remove("b").await;
        let mut last = 0;
        for step in 0..4 {
            let record = Record { weight: 4 * weight + step, ..named("a") };
            last = register(server, own.id(), &record).await.mod_revision;
        }
        each.until(|watched| watched.revision == last).await;
        fewer.until(|watched| watched.revision == last).await;
        assert_eq!(fewer.known, each.known);
        if fewer.told.len() < each.told.len() {
            break;
        }
    }
    remove("a").await;
    fewer.until_known(&[]).await;
    each.until_known(&[]).await;
    assert_eq!(fewer.last(), (Kind::Removed, Reason::Admin, "a"));
    for told in &fewer.told {
        assert!(known_at(&fewer, told.0).keys().eq(known_at(&each, told.0).keys()));
    }
    // From what was told of a window on nothing is told twice, and nothing left out.
    for told in &fewer.told {
        let mut resumed = Watched::asked(server, asked(500, told.0)).await;
        resumed.known = known_at(&each, told.0);
        let later = each.told.iter().filter(|later| later.0 > told.0);
        let expected: Vec<_> = later.cloned().collect();
        resumed.until(|watched| watched.told.len() == expected.len()).await;
        assert_eq!(resumed.told, expected, "what was missed is told revision by revision");
    }
}

/// Ids that were known at a revision, from what was told.
fn known_at(watched: &Watched, revision: i64) -> BTreeMap<String, v1::Instance> {
    let mut known = BTreeMap::new();
    for (_, kind, _, id) in watched.told.iter().filter(|told| told.0 <= revision) {
        match kind {
            Kind::Removed => _ = known.remove(id),
            _ => _ = known.insert(id.clone(), v1::Instance::default()),
        }
    }
    known
}
