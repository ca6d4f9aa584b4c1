//! Locks that operators break and keys that somebody deletes: whoever held them hears of it.

use conclave_client::kv::put;
use conclave_client::{Client, Error, LockGuard, Loss, Session};
use conclave_proto::v1;
use tonic::Code;
use v1::lock_service_client::LockServiceClient;
use v1::session_service_client::SessionServiceClient;

use crate::native_lock::{client, lock, queue, session, soon};
use crate::support::{Plan, Server, server, servers};

/// The loss of a guard, as soon as it is told.
async fn loss(guard: &LockGuard) -> Loss {
    soon("the loss", guard.lost().cancelled()).await;
    guard.loss().expect("a reason")
}

fn broken(reason: &str) -> Loss {
    Loss::Broken { by: String::new(), reason: reason.to_owned() }
}

/// A client of each member.
fn each(servers: &[Server]) -> Vec<Client> {
    servers.iter().map(|server| client(std::slice::from_ref(server))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_a_lock_in_whatever_way_hears_that_it_was_broken_and_why() {
    let servers = servers(3, &[]).await;
    let clients = each(&servers);
    let mut sessions = Vec::new();
    for client in &clients {
        sessions.push(session(client, "a holder").await);
    }
    let operator = &clients[0];
    for holder in &sessions {
        let guard = lock(holder, "exclusive").await;
        assert_eq!(guard.loss(), None);
        let ending = guard.run(std::future::pending::<()>());
        let (ended, broke) =
            tokio::join!(soon("the end", ending), operator.lock_break("exclusive", 0, "stuck"));
        assert_eq!(broke.unwrap().len(), 1);
        let text = "lost: an operator took it away by force: stuck";
        assert_eq!(ended.unwrap_err().to_string(), text);
        assert_eq!(guard.loss(), Some(broken("stuck")));
        for server in &servers {
            let answer = fence_of(server, guard.locks()[0].clone()).await;
            let told = answer.broken.map(|broken| broken.reason);
            assert_eq!(
                (answer.held, told.as_deref()),
                (false, Some("stuck")),
                "whoever asks is told"
            );
        }
        assert_eq!(guard.release().await.unwrap_err().to_string(), text);
        assert!(!holder.is_lost(), "the session goes on");
    }
    let mut readers = Vec::new();
    for holder in &sessions {
        readers.push(soon("to read", holder.lock("doc").shared()).await.unwrap());
    }
    operator.lock_break("doc", readers[1].token(), "one of them").await.unwrap();
    assert_eq!(loss(&readers[1]).await, broken("one of them"));
    assert!(readers[0].loss().is_none() && readers[2].loss().is_none());
    operator.lock_break("doc", 0, "all").await.unwrap();
    assert_eq!((loss(&readers[0]).await, loss(&readers[2]).await), (broken("all"), broken("all")));

    let permits = soon("permits", sessions[1].lock("pool").permits(2, 3)).await.unwrap();
    operator.lock_break("pool", permits.token(), "").await.unwrap();
    assert_eq!(loss(&permits).await, broken(""));
    let many = soon("all of them", sessions[2].lock("a").and("b").and("c")).await.unwrap();
    operator.lock_break("b", 0, "one of three").await.unwrap();
    assert_eq!(loss(&many).await, broken("one of three"));
    drop(many);
    queue(operator, "a", 0, 0).await;
    let again = || sessions[0].lock("twice").reentrant();
    let twice = [soon("once", again()).await.unwrap(), soon("twice", again()).await.unwrap()];
    operator.lock_break("twice", 0, "both").await.unwrap();
    for guard in &twice {
        assert_eq!(loss(guard).await, broken("both"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_broke_a_lock_is_known_after_a_restart() {
    let plan = Plan::new(1, &[]);
    let server = plan.start(0).await;
    soon("a server is ready", server.running.ready()).await.unwrap();
    let client = client(std::slice::from_ref(&server));
    let holder = session(&client, "a holder").await;
    let guard = lock(&holder, "x").await;
    let place = guard.locks()[0].clone();
    client.lock_break("x", 0, "stuck").await.unwrap();
    let server = plan.restart(0, server).await;
    let told = fence_of(&server, place).await.broken.expect("who and why");
    assert_eq!((told.by.as_str(), told.reason.as_str()), ("", "stuck"));
}

/// What a member knows about a fence.
async fn fence_of(server: &Server, lock: v1::HeldLock) -> v1::CheckFenceResponse {
    let v1::HeldLock { name, key, fence } = lock;
    let request = v1::CheckFenceRequest { name, fence, key };
    let answered = async {
        loop {
            // Nobody may lead for a moment.
            let mut locks = LockServiceClient::new(server.channel.clone());
            match locks.check_fence(request.clone()).await {
                Ok(answer) => return answer.into_inner(),
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
            }
        }
    };
    soon("an answer", answered).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_deleted_or_taken_over_by_hand_is_lost() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let holder = session(&client, "a holder").await;
    let deleted = lock(&holder, "x").await;
    client.delete(deleted.locks()[0].key.clone()).await.unwrap();
    assert_eq!(loss(&deleted).await, Loss::Removed);
    let other = lock(&holder, "y").await;
    client.delete("y").prefix().await.unwrap();
    assert_eq!(loss(&other).await, Loss::Removed);
    let taken_over = lock(&holder, "z").await;
    client.put(taken_over.locks()[0].key.clone(), "mine").await.unwrap();
    assert_eq!(loss(&taken_over).await, Loss::Removed);
    let kept = lock(&holder, "k").await;
    kept.txn().then(put("by", "me")).commit().await.unwrap();
    assert_eq!(kept.loss(), None);
    kept.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_goes_on_through_conversions_and_other_peoples_ends() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let mut guard = lock(&one, "doc").await;
    guard.downgrade().await.unwrap();
    let reader = soon("to read", two.lock("doc").shared()).await.unwrap();
    let token = guard.token();
    assert!(matches!(guard.upgrade().await, Err(Error::Refused(_))));
    reader.release().await.unwrap();
    guard.upgrade().await.unwrap();
    assert!(guard.token() > token, "its key is another one now");
    two.close().await.unwrap();
    // What is told comes in order: this is told last.
    let last = lock(&one, "last").await;
    client.lock_break("last", 0, "").await.unwrap();
    loss(&last).await;
    assert_eq!(guard.loss(), None);
    guard.run(async {}).await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_lock_hears_who_broke_its_place() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let held = lock(&one, "x").await;
    let waiting = tokio::spawn(two.lock("x").into_future());
    queue(&client, "x", 1, 1).await;
    let places = client.lock_inspect("x").await.unwrap().places;
    client.lock_break("x", places[1].fence, "too late").await.unwrap();
    let ended = soon("the end", waiting).await.unwrap().unwrap_err();
    assert_eq!(ended.to_string(), "lost: an operator took it away by force: too late");
    held.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_an_operator_ends_is_lost_at_once() {
    let servers = servers(3, &[]).await;
    let clients = each(&servers);
    // Nothing but word of it would tell before the test gives up.
    let begin = clients[1].session().ttl(std::time::Duration::from_secs(100_000));
    let holder: Session = soon("a session", begin).await.unwrap();
    let guard = lock(&holder, "x").await;
    clients[0].session_end(holder.id()).await.unwrap();
    assert_eq!(loss(&guard).await, Loss::Session);
    assert!(holder.is_lost());
}

/// As an old version of the client crate does: it takes every message for the answer to its last heartbeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_not_ask_for_it_is_told_nothing_but_answers() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let holder = session(&client, "a holder").await;
    let (requests, outgoing) = tokio::sync::mpsc::channel(8);
    let beat = |sequence| v1::SessionOpenRequest {
        sequence,
        attach: vec![holder.id()],
        ..v1::SessionOpenRequest::default()
    };
    requests.send(beat(1)).await.unwrap();
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut service = SessionServiceClient::new(servers[0].channel.clone());
    let mut answers = soon("a stream", service.open(outgoing)).await.unwrap().into_inner();
    assert_eq!(soon("an answer", answers.message()).await.unwrap().unwrap().sequence, 1);
    let guard = lock(&holder, "x").await;
    client.lock_break("x", 0, "").await.unwrap();
    loss(&guard).await;
    client.session_end(holder.id()).await.unwrap();
    soon("the end", holder.lost().cancelled()).await;
    requests.send(beat(2)).await.unwrap();
    let answer = soon("an answer", answers.message()).await.unwrap().unwrap();
    let expected = v1::SessionOpenResponse {
        sequence: 2,
        lost: vec![holder.id()],
        ..v1::SessionOpenResponse::default()
    };
    assert_eq!(answer, expected);
}
