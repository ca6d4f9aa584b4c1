//! Authenticated calls against a real etcd, whose tokens end when a password changes.

use std::{future::IntoFuture, time::Duration};

use conclave_client::{
    Client, Error,
    auth::authpb::{Permission, permission::Type},
};
use futures::future::join_all;
use tokio::net::TcpListener;

use crate::{Server, eventually, start};

fn as_user(server: &Server, name: &str, password: &str) -> Client {
    Client::builder([server.endpoint()]).user(name, password).build().expect("a client")
}

/// Enables auth with root and ann, who may read and write keys that begin with `a/`.
async fn enable(client: &Client) {
    let auth = client.auth();
    auth.user_add("root", Some("rootpw")).await.expect("root may, while nobody needs to be");
    auth.role_add("root").await.expect("root may, while nobody needs to be");
    auth.user_grant_role("root", "root").await.expect("root may, while nobody needs to be");
    auth.user_add("ann", Some("annpw")).await.expect("root may, while nobody needs to be");
    auth.role_add("a").await.expect("root may, while nobody needs to be");
    let permission =
        Permission { perm_type: Type::Readwrite.into(), key: "a/".into(), range_end: "a0".into() };
    auth.role_grant_permission("a", permission).await.expect("root may, while nobody needs to be");
    auth.user_grant_role("ann", "a").await.expect("root may, while nobody needs to be");
    auth.enable().await.expect("root may, while nobody needs to be");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_logs_in_by_itself_and_again_when_its_token_is_void() {
    let Some((server, open)) = start("a_client_logs_in_by_itself").await else { return };
    let early = as_user(&server, "ann", "annpw");
    early.put("a/0", "before").await.expect("a server that wants no user is called without one");
    enable(&open).await;
    assert!(matches!(open.get("a/0").await, Err(Error::Denied(_))), "nobody may nothing");
    early.put("a/0", "after").await.expect("now the token is asked for");

    let (root, ann) = (as_user(&server, "root", "rootpw"), as_user(&server, "ann", "annpw"));
    root.put("b", "1").await.unwrap();
    assert!(matches!(ann.put("b", "2").await, Err(Error::Denied(_))));
    assert!(matches!(ann.get("b").await, Err(Error::Denied(_))));
    let wrong = as_user(&server, "ann", "wrong").get("a/0").await;
    assert!(matches!(wrong, Err(Error::Denied(_))), "{wrong:?}");
    let ready = as_user(&server, "ann", "wrong").ready().await;
    assert!(matches!(ready, Err(Error::Denied(_))), "{ready:?}");
    ann.ready().await.expect("a user without the permission is answered all the same");

    let mut changes = ann.watch("a/").prefix().start();
    for round in 0..3 {
        // All her tokens become invalid; the password stays the same.
        root.auth().user_change_password("ann", "annpw").await.unwrap();
        let ann = &ann;
        let put = async |i: i32| ann.put(format!("a/{i}"), format!("{round}")).await;
        let puts = (0..16).map(put);
        for put in join_all(puts).await {
            put.expect("a write is repeated with a new token");
        }
        let gets = join_all((0..16).map(async |i: i32| ann.get(format!("a/{i}")).await)).await;
        assert!(gets.into_iter().all(|get| get.unwrap().count == 1));
        ann.watch("a/0").from_revision(2).start().next().await.unwrap().expect("a watch opens");
    }
    let seen = changes.next().await.unwrap().unwrap();
    assert!(!seen.events.is_empty());
    let lease = ann.lease(Duration::from_secs(60)).await;
    drop(lease.expect("a lease of her own"));
    root.auth().disable().await.unwrap();
    eventually("everybody may", async || open.put("b", "3").await.ok()).await;
    ann.put("b", "4").await.expect("who is a user may, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_answer_holds_up_no_login_at_others() {
    let test = "a_member_that_does_not_answer_holds_up_no_login_at_others";
    let Some((server, open)) = start(test).await else { return };
    enable(&open).await;
    // Accepts connections but never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let client = Client::builder([endpoint, server.endpoint()]).user("ann", "annpw");
    let client = client.timeout(Duration::from_secs(600)).build().unwrap();
    // Its login goes to the silent endpoint; the next call goes to the less busy one.
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.put("a/1", "first").await }
    });
    let _connection = within(silent.accept()).await.unwrap();
    within(async { client.put("a/2", "second").await }).await.expect("the other member answers");
    assert!(!first.is_finished());
    first.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_outlives_the_tokens_of_a_member() {
    let test = "what_is_held_outlives_the_tokens_of_a_member";
    let Some((mut server, open)) = start(test).await else { return };
    enable(&open).await;
    let (root, ttl) = (as_user(&server, "root", "rootpw"), Duration::from_secs(600));
    let session = root.session().ttl(ttl).await.unwrap();
    let leadership = session.election("e").campaign("10.0.0.7").await.unwrap();
    let lock = root.lock("l").ttl(ttl).await.unwrap();
    let waiting = tokio::spawn(session.lock("l").into_future());
    let is_queued = async || {
        let places = root.get("l/").prefix().count_only().await.ok()?;
        (places.count == 2).then_some(())
    };
    eventually("it waits", is_queued).await;
    server.kill();
    server.start();
    let is_held = eventually("it serves again", async || leadership.is_held().await.ok()).await;
    assert!(is_held);
    lock.release().await.unwrap();
    let lock = within(waiting).await.unwrap().expect("the wait goes on");
    assert_eq!(leadership.loss(), None);
    lock.release().await.unwrap();
    leadership.resign().await.unwrap();
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it is not held up")
}
