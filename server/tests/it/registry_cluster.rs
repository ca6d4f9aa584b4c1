//! The registry while leaders change: nobody who lives disappears, and checks go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::v1;
use conclave_server::node::Node;
use conclave_state_machine::registry::index;
use conclave_state_machine::registry::record::{Check, Record};
use conclave_state_machine::response::Response;
use tokio::net::TcpListener;
use v1::instance_change::Kind;

use crate::cluster::{Cluster, eventually, must_grant, put_again_and_again};
use crate::native_lock::{client, session, soon};
use crate::registry_support::{SERVICE, Watched, discover, ids, named, register, registry};
use crate::support::{leader, server, servers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_live_instance_disappears_when_leaders_change() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    // Short, so that a leader that forgets a renewal shows.
    let own = soon("a session", client.session().ttl(std::time::Duration::from_secs(20))).await;
    let own = own.unwrap();
    for number in 0..20 {
        register(&servers[number % 3], own.id(), &named(&format!("i{number:02}"))).await;
    }
    let gone = leader(&servers).await;
    let gone = servers.remove(gone);
    let mut watches = Vec::new();
    for server in &servers {
        let mut watched = Watched::open(server, 0).await;
        watched.until(|watched| watched.known.len() == 20).await;
        watches.push(watched);
    }
    soon("the leader stops", gone.running.stop()).await;
    leader(&servers).await;
    // Longer than the TTL of the session, and what a new leader adds.
    for number in 0..50 {
        register(&servers[number % 2], own.id(), &named(&format!("new{number:02}"))).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    for watched in &mut watches {
        watched.until(|watched| watched.known.len() == 70).await;
        assert!(watched.told.iter().all(|told| told.1 == Kind::Added), "{:?}", watched.told);
    }
    assert!(!own.is_lost());
    assert_eq!(ids(&servers[0], v1::InstanceFilter::default()).await.len(), 70);
}

/// An instance that takes connections while it is well.
pub(crate) async fn instance(is_well: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let is_well = Arc::clone(&is_well);
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut request = [0; 512];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let status = if is_well.load(Ordering::Relaxed) { "200 OK" } else { "500 No" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                if read > 0 {
                    stream.write_all(answer.as_bytes()).await.unwrap_or_default();
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_are_handed_over_to_the_next_leader() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let own = session(&client, "one").await;
    let is_well = Arc::new(AtomicBool::new(true));
    let check = Check {
        kind: conclave_state_machine::registry::record::CheckKind::Http,
        interval_ms: 500,
        timeout_ms: 30_000,
        failures: 2,
        ..Check::default()
    };
    let mut record =
        Record { id: "a".to_owned(), ..Record::new(instance(Arc::clone(&is_well)).await) };
    record.details.check = Some(check.clone());
    let ready = Check { target: "ready".to_owned(), ..check };
    record.details.checks.insert("ready".to_owned(), ready);
    let gone = leader(&servers).await;
    let gone = servers.remove(gone);
    let mut watched = Watched::open(&servers[0], 0).await;
    register(&servers[1], own.id(), &record).await;
    let health = |watched: &Watched| watched.known.get("a").map(v1::Instance::health);
    let found = |watched: &Watched| {
        let checks = watched.known.get("a").map(|known| known.checks.clone()).unwrap_or_default();
        checks.into_iter().map(|check| (check.name, check.output)).collect::<Vec<_>>()
    };
    let both = |output: &str| {
        [("", output), ("ready", output)].map(|(name, output)| (name.to_owned(), output.to_owned()))
    };
    watched.until(|watched| found(watched) == both("HTTP 200 OK")).await;
    assert_eq!(health(&watched), Some(v1::InstanceHealth::Passing));
    is_well.store(false, Ordering::Relaxed);
    watched.until(|watched| found(watched) == both("HTTP 500 Internal Server Error")).await;
    assert_eq!(health(&watched), Some(v1::InstanceHealth::Critical));
    soon("the leader stops", gone.running.stop()).await;
    is_well.store(true, Ordering::Relaxed);
    watched.until(|watched| health(watched) == Some(v1::InstanceHealth::Passing)).await;
    is_well.store(false, Ordering::Relaxed);
    watched.until(|watched| health(watched) == Some(v1::InstanceHealth::Critical)).await;
    // Registered, found well, then a commit for each change of one of the two and no more.
    assert!(watched.told.len() <= 11, "{:?}", watched.told);
}

/// Rows that the registry keeps beside keys, as text.
fn rows(node: &Node) -> String {
    let reader = node.reader();
    let services = index::services(reader, b"", b"", 100).unwrap();
    let (checks, due) = (index::checks(reader, b"", 100), index::due(reader, b"", 100));
    let flapping = index::flapping(reader, b"", 100);
    format!("{services:#?}\n{checks:#?}\n{due:#?}\n{flapping:#?}")
}

/// Seven instances of a service without damping, one of them checked, and all of their sessions lost but
/// that one's; five more that come and go too often.
async fn lose_most(node: &Node) {
    let propose = async |message| {
        let command = internal::Command { command: Some(message), ..Default::default() };
        node.propose(command).await.unwrap().outcome.unwrap()
    };
    let mut now_unix_ms = 1_000;
    let expire = async |id, now_unix_ms| {
        let (term, ids) = (node.status().term, vec![id]);
        let (guarded, damping, granted) = (true, true, Vec::new());
        let expire = internal::LeaseExpire { term, ids, now_unix_ms, guarded, damping, granted };
        propose(Message::LeaseExpire(expire)).await;
    };
    for (service, session, check) in
        [("calm", 1, false), ("calm", 2, true), ("wild", 3, false), ("wild", 3, false)]
    {
        must_grant(node, session, 600).await;
        for number in 0..if check { 1 } else { 6 } {
            let mut record = named(&format!("{session}.{number}"));
            record.details.check = check.then(Check::default);
            let request = Some(v1::RegisterRequest {
                service: service.to_owned(),
                id: record.id.clone(),
                session,
                record: record.encode().into(),
                ..Default::default()
            });
            let register = internal::RegistryRegister { request, now_unix_ms, damping: true };
            let answer = propose(Message::RegistryRegister(register)).await;
            assert!(matches!(answer, Response::Registry(_)));
        }
        if !check {
            expire(session, now_unix_ms).await;
        }
        now_unix_ms += 1_000;
    }
    let configure = v1::ServiceConfigureRequest {
        service: "calm".to_owned(),
        guard: None,
        damping: Some(false),
    };
    propose(Message::RegistryConfigure(configure)).await;
}

/// At once, and not when its penalty has faded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damped_is_shown_again_when_damping_is_turned_off() {
    let servers = [server(&[]).await];
    let (server, node) = (&servers[0], servers[0].running.node());
    let propose = async |message| {
        let command = internal::Command { command: Some(message), ..Default::default() };
        node.propose(command).await.unwrap().outcome.unwrap()
    };
    // Four losses within a moment, and here again.
    let now_unix_ms = 1_000;
    for session in 10..15 {
        server.grant(session, 600).await;
        let request = Some(v1::RegisterRequest {
            service: SERVICE.to_owned(),
            id: "i".to_owned(),
            session,
            record: named("i").encode().into(),
            ..Default::default()
        });
        let register = internal::RegistryRegister { request, now_unix_ms, damping: true };
        propose(Message::RegistryRegister(register)).await;
        if session < 14 {
            let expire = internal::LeaseExpire {
                term: node.status().term,
                ids: vec![session],
                now_unix_ms,
                damping: true,
                ..Default::default()
            };
            propose(Message::LeaseExpire(expire)).await;
        }
    }
    let damped = async || {
        let found = discover(server, v1::InstanceFilter::default()).await.instances;
        found.iter().filter(|found| found.damped).count()
    };
    assert_eq!(damped().await, 1);
    let service = SERVICE.to_owned();
    let off = v1::ServiceConfigureRequest { service, guard: None, damping: Some(false) };
    registry(server).configure(off).await.unwrap();
    soon("to be shown again", async { while damped().await > 0 {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_and_restarts_keep_all_of_the_registry() {
    let eager = ["--snapshot-count=20", "--snapshot-catchup-entries=5"];
    let mut cluster = Cluster::start(3, &eager).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.crash(follower);
    put_again_and_again(cluster.node(leader), "begin", b"v").await;
    lose_most(cluster.node(leader)).await;
    let before = rows(cluster.node(leader));
    for part in ["DropLost", "Flaps", "is_damping_off: true", "lost: 6", "id: \"2.0\""] {
        assert!(before.contains(part), "{part} in {before}");
    }
    for n in 0..100 {
        put_again_and_again(cluster.node(leader), &format!("k{n}"), b"v").await;
    }
    let node = Arc::clone(cluster.node(leader));
    node.cut_log().await.unwrap();
    let last = node.status().last_index;
    eventually("the log is cut", || node.status().purged_index + 20 > last).await;
    drop(node);
    cluster.restart(follower).await;
    cluster.converge().await;
    assert_eq!(rows(cluster.node(follower)), before, "of a snapshot");
    (0..3).for_each(|member| cluster.crash(member));
    cluster.restart_all().await;
    cluster.converge().await;
    for member in 0..3 {
        assert_eq!(rows(cluster.node(member)), before, "of what member {member} had stored");
    }
}
