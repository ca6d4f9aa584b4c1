//! The registry through its services: what is registered, found, watched and removed.

use bytes::Bytes;
use conclave_client::kv::put;
use conclave_proto::v1;
use conclave_state_machine::registry::record::Check;
use tonic::Code;
use v1::instance_change::{Kind, Reason};

use crate::api_http::http;
use crate::metrics::reaches;
use crate::native_lock::{client, session, soon};
use crate::registry_support::{
    SERVICE, Watched, discover, ids, named, register, registry, request, two,
};
use crate::support::{refused, server, servers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_keys_and_repetitions_change_nothing() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let (one, two) = two(&client).await;
    let first = register(server, one.id(), &named("a")).await;
    assert!(first.created && first.fence == first.mod_revision);
    let again = register(server, one.id(), &named("a")).await;
    assert_eq!((again.fence, again.mod_revision, again.created), (first.fence, first.fence, false));
    let kv = client.get("shop/api/a").await.unwrap().one().unwrap();
    assert!(kv.value.starts_with(br#"{"Op":0,"Addr":"10.0.0.1:1","Metadata":null,"Instance":{"#));
    assert_eq!((kv.lease, kv.create_revision), (one.id(), first.fence));

    let mut other = request(two.id(), &named("a"));
    other.set_mode(v1::register_request::Mode::IfAbsent);
    let (code, text) = refused(registry(server).register(other).await);
    let taken = "conclave: the instance belongs to another session";
    assert_eq!((code, text.as_str()), (Code::FailedPrecondition, taken));
    let mut bad = request(one.id(), &named("a"));
    bad.record = "text".into();
    let (code, _) = refused(registry(server).register(bad).await);
    assert_eq!(code, Code::InvalidArgument);
    let (code, _) = refused(registry(server).register(request(99, &named("b"))).await);
    assert_eq!(code, Code::NotFound);

    let update = v1::InstanceUpdateRequest {
        service: SERVICE.to_owned(),
        id: "a".to_owned(),
        session: one.id(),
        health: v1::InstanceHealth::Critical.into(),
        output: "disk full".to_owned(),
        ..Default::default()
    };
    let updated = registry(server).update(update.clone()).await.unwrap().into_inner();
    let again = registry(server).update(update).await.unwrap().into_inner();
    assert!(updated.mod_revision > first.mod_revision && updated == again);
    let found = discover(server, v1::InstanceFilter::default()).await;
    let found = &found.instances[0];
    assert_eq!((found.health(), found.healthy), (v1::InstanceHealth::Critical, false));

    let deregister = v1::DeregisterRequest {
        service: SERVICE.to_owned(),
        id: "a".to_owned(),
        session: two.id(),
        ..Default::default()
    };
    let (code, _) = refused(registry(server).deregister(deregister.clone()).await);
    assert_eq!(code, Code::FailedPrecondition);
    let own = v1::DeregisterRequest { session: one.id(), ..deregister };
    assert!(registry(server).deregister(own.clone()).await.unwrap().into_inner().removed);
    assert!(!registry(server).deregister(own).await.unwrap().into_inner().removed);
    assert!(client.get("shop/api/a").await.unwrap().one().is_none());
}

/// A copy of a request may be under way for long: its client went on with another member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_once_more_changes_nothing() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let (one, two) = two(&client).await;
    let once =
        |sequence| Some(v1::Once { session: one.id(), sequence, settled: 1, ..Default::default() });
    let first = v1::RegisterRequest { once: once(1), ..request(one.id(), &named("a")) };
    let told = registry(server).register(first.clone()).await.unwrap().into_inner();
    let drain = v1::InstanceUpdateRequest {
        service: SERVICE.to_owned(),
        id: "a".to_owned(),
        session: one.id(),
        state: v1::InstanceState::Draining.into(),
        once: once(2),
        ..Default::default()
    };
    let drained = registry(server).update(drain.clone()).await.unwrap().into_inner();
    assert_eq!(registry(server).register(first.clone()).await.unwrap().into_inner(), told);
    assert_eq!(registry(server).update(drain).await.unwrap().into_inner(), drained);
    let found = discover(server, v1::InstanceFilter::default()).await;
    assert_eq!(found.instances[0].state(), v1::InstanceState::Draining);
    let deregister = v1::DeregisterRequest {
        service: SERVICE.to_owned(),
        id: "a".to_owned(),
        session: one.id(),
        once: once(3),
        ..Default::default()
    };
    assert!(registry(server).deregister(deregister.clone()).await.unwrap().into_inner().removed);
    assert_eq!(registry(server).register(first).await.unwrap().into_inner(), told);
    assert!(ids(server, v1::InstanceFilter::default()).await.is_empty());
    let next = register(server, two.id(), &named("a")).await;
    assert!(next.fence > told.fence);
    assert!(registry(server).deregister(deregister).await.unwrap().into_inner().removed);
    // Whoever takes an id over has a fence of its own.
    let taken = register(server, one.id(), &named("a")).await;
    assert!(taken.fence > next.fence && !taken.created);
    // A request that was given up for one that registers anew does not take it out, should it come for the first time.
    let once = |sequence, settled| {
        Some(v1::Once { session: one.id(), sequence, settled, ..Default::default() })
    };
    let anew = v1::RegisterRequest { once: once(5, 5), ..request(one.id(), &named("a")) };
    registry(server).register(anew).await.unwrap();
    let service = SERVICE.to_owned();
    let late = v1::DeregisterRequest {
        service,
        id: "a".to_owned(),
        session: one.id(),
        once: once(4, 1),
        ..Default::default()
    };
    let (code, _) = refused(registry(server).deregister(late).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert_eq!(ids(server, v1::InstanceFilter::default()).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lost_instances_are_found_by_what_they_said() {
    const LOST: usize = 10_100;
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let own = session(&client, "one").await;
    for first in (0..LOST).step_by(100) {
        let mut txn = client.txn();
        for number in first..first + 100 {
            let mut record = named(&format!("i{number:05}"));
            record.zone = if number % 2_000 == 1_999 { "z" } else { "y" }.to_owned();
            (record.details.lost_ms, record.details.ttl_seconds) = (1, 120);
            let key = [b"shop/api/\0lost/", record.id.as_bytes()].concat();
            txn = txn.then(put(key, record.encode_lost()));
        }
        txn.commit().await.unwrap();
    }
    let mut last = named("i10500");
    last.zone = "z".to_owned();
    register(server, own.id(), &last).await;
    let filter = v1::InstanceFilter { zone: "z".to_owned(), ..Default::default() };
    let expected = ["i01999", "i03999", "i05999", "i07999", "i09999", "i10500"];
    assert_eq!(ids(server, filter).await, expected);
    let (mut from, mut found) = (Bytes::new(), Vec::new());
    loop {
        let service = SERVICE.to_owned();
        let request = v1::DiscoverRequest { service, from, ..Default::default() };
        let answer = registry(server).discover(request).await.unwrap().into_inner();
        found.extend(answer.instances.into_iter().map(|found| found.id));
        from = answer.next;
        if from.is_empty() {
            break;
        }
    }
    assert!(found.is_sorted_by(|one, next| one < next), "none twice");
    assert_eq!(found.len(), LOST + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_found_by_what_they_say_and_in_pages() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let own = session(&client, "one").await;
    for (place, number) in (0..40).enumerate() {
        let mut record = named(&format!("i{number:02}"));
        record.version = (number % 2).to_string();
        record.zone = if number < 10 { "x" } else { "y" }.to_owned();
        record.tags = vec![format!("t{}", number % 4), "all".to_owned()];
        record.metadata.insert("team".to_owned(), format!("m{}", number % 5).into());
        // Every member takes every call.
        register(&servers[place % 3], own.id(), &record).await;
    }
    client.put("shop/api/deeper/x", r#"{"Op":0,"Addr":"h:1"}"#).await.unwrap();
    client.put("shop/api/zgo", r#"{"Op":0,"Addr":"h:1","Metadata":null}"#).await.unwrap();
    client.put("shop/api/text", "text").await.unwrap();
    let server = &servers[1];
    let all = ids(server, v1::InstanceFilter::default()).await;
    assert_eq!((all.len(), all.last().unwrap().as_str()), (41, "zgo"));
    let filter = v1::InstanceFilter {
        version: "1".to_owned(),
        zone: "x".to_owned(),
        tags: vec!["all".to_owned(), "t3".to_owned()],
        metadata: [("team".to_owned(), "m2".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(ids(server, filter).await, ["i07"]);

    let mut paged = Vec::new();
    let mut request =
        v1::DiscoverRequest { service: SERVICE.to_owned(), limit: 7, ..Default::default() };
    loop {
        let answer = registry(server).discover(request.clone()).await.unwrap().into_inner();
        assert!(answer.instances.len() <= 7);
        paged.extend(answer.instances.into_iter().map(|found| found.id));
        if answer.next.is_empty() {
            break;
        }
        (request.from, request.revision) = (answer.next, answer.revision);
    }
    assert_eq!(paged, all);
    let list = v1::ServiceListRequest { prefix: "shop/".to_owned(), ..Default::default() };
    let list = registry(server).list_services(list).await.unwrap().into_inner().services;
    let list: Vec<_> = list.iter().map(|service| (service.name.as_str(), service.live)).collect();
    assert_eq!(list, [("shop/api", 41), ("shop/api/deeper", 1)]);

    let page = http(server, "GET /v1/discovery/prometheus?service=shop%2Fapi&healthy=true").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let (_, body) = page.split_once("\r\n\r\n").unwrap();
    let groups: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(groups.as_array().unwrap().len(), 41);
    let labels = &groups[7]["labels"];
    assert_eq!(groups[7]["targets"], serde_json::json!(["10.0.0.1:3"]));
    assert_eq!(labels["__meta_conclave_id"], "i07");
    assert_eq!(labels["__meta_conclave_tags"], ",t3,all,");
    assert_eq!(labels["__meta_conclave_metadata_team"], "m2");
    let page = http(server, "GET /v1/discovery/prometheus?service=none").await;
    assert!(page.ends_with("\r\n\r\n[]"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_are_made_of_own_addresses_only() {
    let servers = [server(&[]).await, server(&["--registry-checks=off"]).await];
    for (server, address, code) in [
        (&servers[0], "", None),
        (&servers[0], "127.0.0.1:2379", Some(Code::FailedPrecondition)),
        (&servers[1], "", Some(Code::FailedPrecondition)),
    ] {
        let own = session(&client(std::slice::from_ref(server)), "one").await;
        let mut record = named("a");
        let check = Check { address: address.to_owned(), ..Check::default() };
        record.details.check = Some(check);
        let answer = registry(server).register(request(own.id(), &record)).await;
        assert_eq!(answer.err().map(|status| status.code()), code, "{address:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_checks_are_told_of_and_one_instance_can_be_asked_for() {
    // Nobody is there, but that has to be found many times: what the checks would say is unknown.
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    let own = session(&client, "one").await;
    let mut record = named("a");
    let day = Check { interval_ms: 24 * 3_600 * 1_000, failures: 100, ..Check::default() };
    for name in ["live", "ready"] {
        record.details.checks.insert(name.to_owned(), day.clone());
    }
    record.details.check = Some(day.clone());
    register(server, own.id(), &record).await;
    register(server, own.id(), &named("b")).await;
    let one = async |id: &str| {
        let (service, id) = (SERVICE.to_owned(), id.to_owned());
        let request = v1::DiscoverRequest { service, id, ..Default::default() };
        registry(server).discover(request).await.unwrap().into_inner()
    };
    let found = one("a").await.instances.remove(0);
    let checks: Vec<_> = found.checks.iter().map(|check| check.name.as_str()).collect();
    assert_eq!((checks, found.schema_version), (vec!["", "live", "ready"], 2));
    assert_eq!((found.health(), found.healthy), (v1::InstanceHealth::Unknown, false));
    let found = one("b").await;
    assert_eq!((found.instances[0].id.as_str(), found.instances[0].schema_version), ("b", 1));
    for number in 0..6 {
        record.details.checks.insert(number.to_string(), day.clone());
    }
    let (code, text) = refused(registry(server).register(request(own.id(), &record)).await);
    let many = "conclave: an instance has at most 8 checks";
    assert_eq!((code, text.as_str()), (Code::InvalidArgument, many));

    let deregister = v1::DeregisterRequest {
        service: SERVICE.to_owned(),
        id: "a".to_owned(),
        ..Default::default()
    };
    registry(server).deregister(deregister).await.unwrap();
    let gone = one("a").await;
    assert_eq!((gone.instances.len(), gone.removed()), (0, Reason::Admin));
    assert_eq!(one("nobody").await.removed(), Reason::Unspecified);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mass_loss_keeps_instances_in_sight_for_a_while() {
    let servers = [server(&[]).await];
    let (server, client) = (&servers[0], client(&servers));
    // Nobody renews it, and it lives until all of them are registered.
    server.grant(7, 20).await;
    for number in 0..8 {
        register(server, 7, &named(&format!("i{number}"))).await;
    }
    let mut watched = Watched::open(server, 0).await;
    watched.until(|watched| watched.known.len() == 8).await;
    watched.until(|watched| watched.known.values().all(|known| known.stale)).await;
    assert!(watched.told.iter().all(|told| told.1 == Kind::Updated));
    let keys = client.get("shop/api/i").prefix().await.unwrap();
    assert!(keys.kvs.is_empty(), "a lease's keys go, whatever the registry keeps");
    let found = discover(server, v1::InstanceFilter::default()).await;
    assert_eq!((found.live, found.stale, found.instances.len()), (0, 8, 8));
    reaches(server, "conclave_registry_stale_instances", 8.0).await;
    let own = session(&client, "one").await;
    register(server, own.id(), &named("i3")).await;
    watched.until(|watched| !watched.known["i3"].stale).await;
    let off = v1::ServiceConfigureRequest {
        service: SERVICE.to_owned(),
        guard: Some(false),
        damping: None,
    };
    registry(server).configure(off).await.unwrap();
    watched.until_known(&["i3"]).await;
    assert_eq!(watched.last().1, Reason::SessionExpired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_dies_takes_its_instances_along() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let own = session(&client, "one").await;
    for number in 0..6 {
        register(&servers[0], own.id(), &named(&format!("i{number}"))).await;
    }
    servers[1].grant(7, 15).await;
    register(&servers[1], 7, &named("dead")).await;
    for server in &servers {
        let mut watched = Watched::open(server, 0).await;
        watched.until(|watched| watched.known.len() == 6).await;
        if let Some((_, kind, reason, id)) = watched.told.last() {
            assert_eq!(
                (*kind, *reason, id.as_str()),
                (Kind::Removed, Reason::SessionExpired, "dead")
            );
        }
        assert_eq!(ids(server, v1::InstanceFilter::default()).await.len(), 6);
    }
    let drain = v1::InstanceUpdateRequest {
        service: SERVICE.to_owned(),
        id: "i0".to_owned(),
        state: v1::InstanceState::Draining.into(),
        drain_ms: Some(300),
        session: own.id(),
        ..Default::default()
    };
    let mut watched = Watched::open(&servers[2], 0).await;
    watched.until(|watched| watched.revision > 0).await;
    registry(&servers[2]).update(drain).await.unwrap();
    watched.until(|watched| watched.known.len() == 5).await;
    assert_eq!(watched.last(), (Kind::Removed, Reason::Drained, "i0"));
    soon("to close", own.close()).await.unwrap();
    watched.until_known(&[]).await;
}
