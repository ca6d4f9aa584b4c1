//! Native sessions and locks, through the client crate.

use std::time::{Duration, Instant, SystemTime};

use conclave_client::kv::put;
use conclave_client::{Client, Error, LockGuard, Session, SessionState};
use conclave_proto::v3lockpb::LockRequest;
use conclave_proto::{etcdserverpb as etcd, v1};
use tonic::Code;
use v1::acquire_response::Event;
use v1::lock_service_client::LockServiceClient;

use crate::cluster::{DEADLINE, eventually, within};
use crate::metrics::{samples, total};
use crate::support::{Server, leader, op, refused, server, servers, then};

const LONG: Duration = Duration::from_secs(60);

/// [`within`], for builders too.
pub(crate) async fn soon<T>(what: &str, work: impl IntoFuture<Output = T>) -> T {
    within(what, work.into_future()).await
}

pub(crate) fn client(servers: &[Server]) -> Client {
    let endpoints = servers.iter().map(|server| server.running.client_urls()[0].clone());
    Client::builder(endpoints).timeout(DEADLINE).build().unwrap()
}

pub(crate) async fn session(client: &Client, owner: &str) -> Session {
    soon("a session", client.session().ttl(LONG).owner(owner)).await.unwrap()
}

/// Waits until the queue of `name` has so many holders and waiters.
pub(crate) async fn queue(client: &Client, name: &str, holders: usize, waiters: usize) {
    soon("a queue", async {
        loop {
            let places = client.lock_inspect(name).await.unwrap().places;
            let held = places.iter().filter(|place| place.held).count();
            if (held, places.len() - held) == (holders, waiters) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub(crate) async fn lock(session: &Session, name: &str) -> LockGuard {
    soon("a lock", session.lock(name)).await.unwrap()
}

/// Whoever polls writes the log once for each try.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_that_found_the_lock_taken_is_not_taken_back() {
    const LOCK: &str =
        "etcd_server_apply_duration_seconds_count{version=\"v3\",op=\"Lock\",success=\"true\"}";
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let held = lock(&one, "jobs").await;
    for _ in 0..3 {
        assert!(matches!(two.lock("jobs").try_now().await, Err(Error::Busy)));
    }
    held.release().await.unwrap();
    // What was to be taken back would be before the session's end.
    two.close().await.unwrap();
    assert_eq!(total(&samples(&servers[0]).await, LOCK), 5.0);
}

/// Names lie among the keys of others: below them, and around them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_lock_is_listed_once_and_only_below_its_prefix() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let mut held = Vec::new();
    // So that keys of the first lock lie on both sides of those of the others.
    for owner in 0..16 {
        let session = session(&client, &owner.to_string()).await;
        held.push(soon("a share", session.lock("pg").shared()).await.unwrap());
        if owner == 0 {
            for name in ["pg/2", "pg/7/8", "pg", "other"] {
                held.push(soon("a share", session.lock(name).shared()).await.unwrap());
            }
        }
    }
    let mut locks = LockServiceClient::new(servers[0].channel.clone());
    for (prefix, expected) in [
        ("", &["other", "pg", "pg/2", "pg/7/8"][..]),
        ("pg", &["pg", "pg/2", "pg/7/8"]),
        ("pg/", &["pg/2", "pg/7/8"]),
        ("pg/2", &["pg/2"]),
    ] {
        for limit in [0, 1, 2, 3] {
            let (mut names, mut from) = (Vec::new(), bytes::Bytes::new());
            loop {
                let request = v1::LockListRequest { prefix: prefix.into(), from, limit };
                let page = locks.list(request).await.unwrap().into_inner();
                names.extend(page.locks.iter().map(|lock| lock.name.clone()));
                from = page.next;
                if from.is_empty() {
                    break;
                }
            }
            names.sort();
            assert_eq!(names, expected, "prefix {prefix:?}, {limit} a page");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_goes_from_hand_to_hand_in_order() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let first = lock(&one, "jobs").await;
    assert!(first.is_held().await.unwrap());
    first.txn().then(put("by", "first")).commit().await.unwrap();
    let waiting = tokio::spawn(two.lock("jobs").into_future());
    queue(&client, "jobs", 1, 1).await;
    assert!(matches!(two.lock("jobs").try_now().await, Err(Error::Busy)));
    let brief = one.lock("jobs").wait(Duration::from_millis(20)).await;
    assert!(matches!(brief, Err(Error::Busy)), "{brief:?}");
    queue(&client, "jobs", 1, 1).await;
    let token = first.token();
    let stale = first.txn();
    first.release().await.unwrap();
    let second = soon("the hand-over", waiting).await.unwrap().unwrap();
    assert!(second.token() > token, "{} > {token}", second.token());
    let refused = stale.then(put("by", "first, too late")).commit().await;
    assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    assert!(!client.check_fence("jobs", token).await.unwrap());
    assert!(client.check_fence("jobs", second.token()).await.unwrap());
    assert_eq!(client.get("by").await.unwrap().one().unwrap().value, "first");
    second.release().await.unwrap();
    queue(&client, "jobs", 0, 0).await;
}

/// How much was committed and applied so far.
async fn committed(server: &Server) -> u64 {
    let status = server.maintenance().status(etcd::StatusRequest {}).await;
    status.unwrap().into_inner().raft_applied_index
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_acquire_is_one_commit_and_so_is_to_hand_over() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let mut counts = Vec::new();
    // What was not answered in time is asked again, and counted again.
    while counts.len() < 5 && counts.last() != Some(&[1, 1, 1, 2]) {
        let before = committed(&servers[0]).await;
        let first = lock(&one, "jobs").await;
        let acquired = committed(&servers[0]).await;
        let waiting = tokio::spawn(two.lock("jobs").into_future());
        queue(&client, "jobs", 1, 1).await;
        let queued = committed(&servers[0]).await;
        first.release().await.unwrap();
        let second = soon("the hand-over", waiting).await.unwrap().unwrap();
        let handed_over = committed(&servers[0]).await;
        second.release().await.unwrap();
        let many = soon("all of them", one.lock("a").and("b").and("c").shared()).await.unwrap();
        let last = committed(&servers[0]).await;
        many.release().await.unwrap();
        counts.push([
            acquired - before,
            queued - acquired,
            handed_over - queued,
            last - handed_over,
        ]);
    }
    assert_eq!(
        counts.last(),
        Some(&[1, 1, 1, 2]),
        "the last: a release, and all together: {counts:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dropped_is_given_back() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let first = lock(&one, "jobs").await;
    let waiting = tokio::spawn(two.lock("jobs").into_future());
    queue(&client, "jobs", 1, 1).await;
    waiting.abort();
    queue(&client, "jobs", 1, 0).await;
    drop(first);
    queue(&client, "jobs", 0, 0).await;
    let own = soon("a lock with a session of its own", client.lock("jobs")).await.unwrap();
    assert_eq!(client.sessions().await.unwrap().len(), 3);
    drop((own, one, two));
    queue(&client, "jobs", 0, 0).await;
    soon("no session is left", async {
        while !client.sessions().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A lock of etcd's that finds a share under its lease must not take it for the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_does_not_pass_for_the_lock_of_its_lease() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let share = soon("a share", one.lock("doc").shared()).await.unwrap();
    let other = soon("a share", two.lock("doc").shared()).await.unwrap();
    let request = LockRequest { name: "doc".into(), lease: one.id() };
    let (code, text) = refused(within("an answer", servers[0].lock().lock(request)).await);
    assert!(code == Code::Unknown && text.contains("has a share"), "{text}");
    assert!(share.is_held().await.unwrap() && other.is_held().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_takes_its_locks_along() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    // Their ends are told by the next heartbeat.
    const TTL: Duration = Duration::from_secs(12);
    let holder = soon("a session", client.session().ttl(TTL)).await.unwrap();
    let waiter = soon("a session", client.session().ttl(TTL)).await.unwrap();
    let held = lock(&holder, "jobs").await;
    let waiting = tokio::spawn(waiter.lock("jobs").into_future());
    queue(&client, "jobs", 1, 1).await;
    let work = held.run(std::future::pending::<()>());
    let (work, ()) = tokio::join!(soon("the loss", work), async {
        client.session_end(waiter.id()).await.unwrap();
        client.session_end(holder.id()).await.unwrap();
    });
    assert!(matches!(work, Err(Error::Lost { .. })));
    assert_eq!(*holder.state().borrow(), SessionState::Lost);
    assert!(holder.is_lost());
    let waited = soon("the waiter's end", waiting).await.unwrap();
    assert!(matches!(waited, Err(Error::Lost { .. })), "{waited:?}");
    assert!(matches!(held.release().await, Err(Error::Lost { .. } | Error::NotFound(_))));
    holder.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_keeps_many_sessions_alive() {
    /// A heartbeat may be late by two thirds of it.
    const TTL: Duration = Duration::from_secs(12);
    let servers = [server(&[]).await];
    let client = client(&servers);
    let mut sessions = Vec::new();
    for _ in 0..20 {
        let begin = client.session().ttl(TTL).owner("many").tag("zone", "a");
        sessions.push(soon("a session", begin).await.unwrap());
    }
    let begun = Instant::now();
    client.put("leased", "1").lease(sessions[7].id()).await.unwrap();
    // Longer than the TTL: only heartbeats can explain that they are still there.
    eventually("the TTL has passed", || begun.elapsed() > TTL).await;
    assert!(sessions.iter().all(|session| !session.is_lost()));
    let found = client.sessions().await.unwrap();
    assert_eq!(found.len(), 20);
    assert!(found.iter().all(|info| info.owner == "many" && info.remaining_ms > 0));
    let with_key = found.iter().find(|info| info.id == sessions[7].id()).unwrap();
    assert_eq!(with_key.keys, ["leased"]);
    sessions.pop().unwrap().close().await.unwrap();
    assert_eq!(client.sessions().await.unwrap().len(), 19);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcds_recipe_stands_in_the_same_queue() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let native = session(&client, "native").await;
    let lease = client.lease_grant(60, 0).await.unwrap().id;
    let key = format!("jobs/{lease:x}");
    let mut place = crate::support::put(&key, "");
    place.lease = lease;
    let taken = servers[0].txn(then(vec![op(place)])).await;
    assert!(taken.succeeded);
    assert!(matches!(native.lock("jobs").try_now().await, Err(Error::Busy)));
    let waiting = tokio::spawn(native.lock("jobs").into_future());
    queue(&client, "jobs", 1, 1).await;
    let etcd = &client.lock_inspect("jobs").await.unwrap().places[0];
    assert!(etcd.foreign && etcd.held && etcd.key == key);
    client.delete(key.clone()).await.unwrap();
    let guard = soon("the hand-over from etcd's recipe", waiting).await.unwrap().unwrap();
    let place = client.get(guard.locks()[0].key.to_vec()).await.unwrap().one().unwrap();
    assert_eq!(place.create_revision, guard.token());
    assert_eq!(place.key, format!("jobs/{:x}", native.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_tells_since_when_a_lock_is_held() {
    let servers = servers(3, &[]).await;
    let clients: Vec<Client> = servers.chunks(1).map(client).collect();
    let (one, two) = (session(&clients[0], "one").await, session(&clients[1], "two").await);
    let first = lock(&one, "jobs").await;
    let waiting = tokio::spawn(two.lock("jobs").into_future());
    queue(&clients[2], "jobs", 1, 1).await;
    let since = async || {
        let mut told = Vec::new();
        for client in &clients {
            let places = soon("places", client.lock_inspect("jobs")).await.unwrap().places;
            told.push(places.iter().map(|place| place.held_since_unix_ms).collect::<Vec<_>>());
        }
        assert!(told[0] == told[1] && told[1] == told[2], "{told:?}");
        told.remove(0)
    };
    let told = since().await;
    assert!(told[0] > 0 && told[1] == 0, "{told:?}");
    let before = unix_ms();
    first.release().await.unwrap();
    let second = soon("the hand-over", waiting).await.unwrap().unwrap();
    let told = since().await;
    assert!(told.len() == 1 && told[0] >= before, "{told:?} after {before}");
    // And whatever hands it over.
    let waiting = tokio::spawn(one.lock("jobs").into_future());
    queue(&clients[2], "jobs", 1, 1).await;
    let before = unix_ms();
    clients[2].lease_revoke(two.id()).await.unwrap();
    let third = soon("the hand-over", waiting).await.unwrap().unwrap();
    let told = since().await;
    assert!(told.len() == 1 && told[0] >= before, "{told:?} after {before}");
    drop((second, third));
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_and_breaks_locks() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let one = session(&client, "one").await;
    let guard = soon("a lock", one.lock("jobs/1").note("backup")).await.unwrap();
    let _other = lock(&one, "jobs/2").await;
    let listed = client.locks("jobs/").await.unwrap();
    let names: Vec<_> = listed.iter().map(|lock| lock.name.to_vec()).collect();
    assert_eq!(names, [b"jobs/1", b"jobs/2"]);
    let place = client.lock_inspect("jobs/1").await.unwrap().places.remove(0);
    assert_eq!((place.owner.as_str(), &place.note[..]), ("one", &b"backup"[..]));
    assert!(place.asked_unix_ms > 0 && place.remaining_ms > 0 && place.fence == guard.token());
    assert!(place.held_since_unix_ms >= place.asked_unix_ms);
    let broken = client.lock_break("jobs/1", 0, "a test").await.unwrap();
    assert_eq!(broken[0].fence, guard.token());
    assert!(!guard.is_held().await.unwrap());
    assert!(matches!(guard.release().await, Err(Error::Lost { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_share_and_a_writer_is_alone() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let mut reader = soon("a reader", one.lock("doc").shared()).await.unwrap();
    let other = soon("a reader", two.lock("doc").shared()).await.unwrap();
    assert!(matches!(two.lock("doc").try_now().await, Err(Error::Busy)));
    assert!(matches!(reader.upgrade().await, Err(Error::Refused(_))));
    let tokens = (reader.token(), other.token());
    assert!(tokens.0 < tokens.1);
    other.release().await.unwrap();
    reader.upgrade().await.unwrap();
    assert!(
        reader.token() > tokens.1,
        "what a reader wrote before is older than what the writer writes"
    );
    assert!(!client.check_fence("doc", tokens.0).await.unwrap());
    assert!(reader.is_held().await.unwrap());
    let waiting = tokio::spawn(two.lock("doc").shared().into_future());
    queue(&client, "doc", 1, 1).await;
    reader.downgrade().await.unwrap();
    let other = soon("the reader behind", waiting).await.unwrap().unwrap();
    assert!(other.token() > reader.token());
    reader.txn().then(put("doc/read", "1")).commit().await.unwrap();
    drop((reader, other));
    let three = soon("permits", one.lock("pool").permits(2, 3)).await.unwrap();
    assert!(matches!(two.lock("pool").permits(2, 3).try_now().await, Err(Error::Busy)));
    let four = soon("a permit", two.lock("pool").permits(1, 3)).await.unwrap();
    drop((three, four));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_locks_are_taken_together_or_not_at_all() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let both = soon("two locks", one.lock("b").and("a")).await.unwrap();
    assert_eq!(both.locks().iter().map(|lock| &lock.name[..]).collect::<Vec<_>>(), [b"a", b"b"]);
    assert!(matches!(two.lock("b").and("c").try_now().await, Err(Error::Busy)));
    queue(&client, "c", 0, 0).await;
    let again = soon("the same once more", one.lock("x").reentrant()).await.unwrap();
    let inner = soon("the same once more", one.lock("x").reentrant()).await.unwrap();
    assert_eq!(again.token(), inner.token());
    again.release().await.unwrap();
    assert!(matches!(two.lock("x").try_now().await, Err(Error::Busy)));
    inner.release().await.unwrap();
    let waiting = tokio::spawn(two.lock("c").and("b").into_future());
    queue(&client, "b", 1, 1).await;
    both.release().await.unwrap();
    soon("both", waiting).await.unwrap().unwrap().release().await.unwrap();
    // Whoever worked under all of them hears that one was lost; the others are given back.
    let both = soon("two locks", one.lock("a").and("b")).await.unwrap();
    client.lock_break("a", 0, "a test").await.unwrap();
    assert!(matches!(both.release().await, Err(Error::Lost { .. })));
    queue(&client, "b", 0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_begins_no_session_is_known_all_the_same() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let _lock = soon("a lock", client.lock("a").ttl(LONG)).await.unwrap();
    let _named = soon("a lock", client.lock("b").ttl(LONG).owner("me")).await.unwrap();
    let election = client.election("c").ttl(LONG);
    let _leads = soon("to lead", election.campaign("at c")).await.unwrap();
    let election = client.election("d").ttl(LONG).owner("me");
    let _named_leads = soon("to lead", election.campaign("at d")).await.unwrap();
    let process = format!("process {}", std::process::id());
    for (name, owner, note) in
        [("a", process.as_str(), ""), ("b", "me", ""), ("c", &process, "at c"), ("d", "me", "at d")]
    {
        let place = client.lock_inspect(name).await.unwrap().places.remove(0);
        assert!(place.owner.starts_with(owner), "{name} is of {}", place.owner);
        assert_eq!((&place.note[..], place.foreign), (note.as_bytes(), false), "{name}");
    }
}

/// A holder that is paused: its session gets no heartbeat, and it does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_holder_writes_nothing_and_leaves_a_delay() {
    /// Long enough to be seen.
    const DELAY_SECONDS: u32 = 10;
    let servers = [server(&[]).await];
    let client = client(&servers);
    let waiter = session(&client, "waiter").await;
    let begin = v1::SessionBeginRequest {
        // Long enough to get the lock before it ends.
        ttl_seconds: 10,
        request_id: "begin".into(),
        ..Default::default()
    };
    let channel = servers[0].channel.clone();
    let mut sessions = v1::session_service_client::SessionServiceClient::new(channel.clone());
    let paused = sessions.begin(begin).await.unwrap().into_inner().id;
    let mut locks = LockServiceClient::new(channel);
    let acquire = v1::AcquireRequest {
        names: vec!["jobs".into()],
        session: paused,
        request_id: "acquire".into(),
        lock_delay_seconds: DELAY_SECONDS,
        ..Default::default()
    };
    let mut answers = locks.acquire(acquire).await.unwrap().into_inner();
    let granted = answers.message().await.unwrap().unwrap().event;
    let Some(Event::Granted(granted)) = granted else {
        panic!("the lock is free: {granted:?}");
    };
    let fence = granted.locks[0].fence;
    let waiting = tokio::spawn(waiter.lock("jobs").into_future());
    // The last time that it was seen to hold: it is lost after that.
    let mut held_at = Instant::now();
    soon("the holder is lost", async {
        loop {
            let asked = Instant::now();
            let first = client.lock_inspect("jobs").await.unwrap().places.remove(0);
            // Even if nobody looked while the lock was delayed.
            if first.delayed || first.session != paused {
                return;
            }
            held_at = asked;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let late = v1::CommitRequest {
        guards: vec![v1::Guard { name: "jobs".into(), fence }],
        txn: Some(then(vec![op(crate::support::put("x", "late"))])),
    };
    assert!(!locks.commit(late.clone()).await.unwrap().into_inner().held);
    let guard = soon("the lock after its delay", waiting).await.unwrap().unwrap();
    let delay = Duration::from_secs(DELAY_SECONDS.into());
    assert!(held_at.elapsed() >= delay, "{:?}", held_at.elapsed());
    assert!(guard.token() > fence);
    guard.txn().then(put("x", "by the new holder")).commit().await.unwrap();
    assert!(!locks.commit(late).await.unwrap().into_inner().held);
    assert_eq!(client.get("x").await.unwrap().one().unwrap().value, "by the new holder");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_outlive_their_leader() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let mut held = lock(&one, "jobs").await;
    let mut sessions = [&two, &one].into_iter().cycle();
    for round in 0..10 {
        let next = sessions.next().unwrap().clone();
        let waiting = tokio::spawn(next.lock("jobs").into_future());
        queue(&client, "jobs", 1, 1).await;
        if round == 4 {
            let leader = leader(&servers).await;
            servers.remove(leader).running.stop().await;
        }
        let token = held.token();
        soon("a release", held.release()).await.unwrap();
        held = soon("the hand-over", waiting).await.unwrap().unwrap();
        assert!(held.token() > token);
    }
    assert!(!one.is_lost() && !two.is_lost());
    soon("a release", held.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_behind_guards_that_are_dropped() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let session = session(&client, "busy").await;
    let cycles = (0..20).map(|task| {
        let session = session.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                drop(session.lock(format!("cycle/{}", task % 16)).await.unwrap());
            }
        })
    });
    for cycle in futures::future::join_all(cycles).await {
        cycle.unwrap();
    }
    soon("nothing is left", async {
        while client.get("cycle/").prefix().count_only().await.unwrap().count > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    session.close().await.unwrap();
    assert!(client.leases().await.unwrap().leases.is_empty());
}
