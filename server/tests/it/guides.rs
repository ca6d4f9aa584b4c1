//! The Rust of the guides in `docs/`, word for word, against a server. A block of a page has to stand here
//! as it does there, but for comments and white space; whoever changes one changes both.

use std::time::Duration;

use conclave_client::blocking::{Block as _, connect, iter};
use conclave_client::config::Source;
use conclave_client::election::CampaignEvent;
use conclave_client::kv::put;
use conclave_client::watch::OnCompaction;
use conclave_client::{Client, Error, Json as _, Session};
use futures::StreamExt;

use crate::cluster::within;
use crate::native_lock::{client, session};
use crate::support::{Server, server};

type Done = Result<(), Error>;

async fn node() -> (Server, Client) {
    let server = server(&[]).await;
    let client = client(std::slice::from_ref(&server));
    (server, client)
}

async fn work() {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client() -> Done {
    let (_server, client) = node().await;
    let team = client.with_namespace("/team-a/");
    team.put_json("orders/17", &("tea", 2))?.await?;
    let order: Option<(String, u32)> = team.get("orders/17").await?.json()?;
    let mut orders = Vec::new();
    let mut pages = team.get("orders/").prefix().pages(500);
    while let Some(page) = pages.next().await? {
        for kv in &page.kvs {
            orders.push(kv.json::<(String, u32)>()?);
        }
    }
    let watch = team.watch("orders/").prefix().from_revision(1);
    let mut changes = watch.on_compaction(OnCompaction::Resync).start();
    let next = changes.next().await?;

    assert_eq!((order.as_ref(), orders.len()), (orders.first(), 1));
    assert_eq!(next.expect("a change").events.len(), 1);
    Ok(())
}

#[test]
fn the_client_without_a_runtime() -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = runtime.block_on(server(&[]));
    let endpoints = server.running.client_urls().to_vec();
    let client = connect(Client::builder(endpoints))?;
    client.put("color", "red").block()?;
    let lock = client.lock("jobs/1").wait(Duration::from_secs(30)).block()?;
    lock.release().block()?;
    let mut changes = iter(client.watch("color").from_revision(1).start());
    let first = changes.next();

    assert_eq!(first.expect("a change")?.events.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters() -> Done {
    let (_server, client) = node().await;
    let session = client.session().owner("shop-1").await?;
    let stock = session.counter("stock/7");
    stock.set(100).await?;
    let left = stock.add(-3).await?;
    let exchange = stock.compare_and_set(97, 90).await?;
    let last = stock.set_if_unchanged(exchange.count, 95).await?;
    client.counter("hits").add(1).await?;

    assert_eq!((left.value, exchange.is_done, last.is_done), (97, true, true));
    assert_eq!(stock.get().await?.value, 95);
    Ok(())
}

/// What the other processes of the guide do.
async fn count_down(session: Session) {
    let latch = session.latch("loaded/2026-11-21");
    // Until it is there.
    while latch.count_down().await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latches() -> Done {
    let (_server, client) = node().await;
    let session = session(&client, "one").await;
    let others = [(); 2].map(|()| tokio::spawn(count_down(session.clone())));
    within("the guide", async {
        let loaded = session.latch("loaded/2026-11-21");
        loaded.create(3).await?;
        loaded.count_down().await?;
        loaded.wait().at_most(Duration::from_secs(60)).await?;
        loaded.remaining().await?;
        Done::Ok(())
    })
    .await?;
    for other in others {
        within("the others", other).await.unwrap();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn barriers() -> Done {
    let (_server, client) = node().await;
    let session = session(&client, "one").await;
    let held = session.hold_barrier("schema/migrating").await?;
    held.lift().await?;
    client.barrier("maintenance").raise().await?;
    client.barrier("maintenance").lift().await?;
    client.barrier("maintenance").wait().at_most(Duration::from_secs(60)).await?;
    Ok(())
}

async fn take_part(session: Session) -> Done {
    let inside =
        session.double_barrier("step/1", 3).note("worker-7").wait(Duration::from_secs(60)).await?;
    inside.leave().at_most(Duration::from_secs(60)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn double_barriers() -> Done {
    let (_server, client) = node().await;
    let mut participants = Vec::new();
    for owner in ["one", "two", "three"] {
        participants.push(tokio::spawn(take_part(session(&client, owner).await)));
    }
    for participant in participants {
        within("a participant", participant).await.unwrap()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups() -> Done {
    let (_server, client) = node().await;
    let session = session(&client, "one").await;
    let membership = session.group("workers").join("10.0.0.7:80").member("worker-7").await?;
    membership.update("10.0.0.8:80").await?;

    client.group("workers").members().await?;
    let mut followed = client.group("workers").follow();
    let members = followed.next().await?;

    membership.leave().await?;
    assert_eq!(members.expect("a list").len(), 1);
    assert_eq!(followed.next().await?.expect("a list").len(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elections() -> Done {
    let (_server, client) = node().await;
    let turn =
        client.queue("jobs/1").ttl(Duration::from_secs(60)).wait(Duration::from_secs(30)).await?;
    let token = turn.token();
    turn.txn().then(put("states/1", "running")).commit().await?;
    turn.run(work()).await?;
    turn.release().await?;

    let election = client.election("scheduler");
    let leadership = election.campaign("10.0.0.7:80").await?;
    leadership.proclaim("10.0.0.8:80").await?;
    leadership.resign().await?;
    let mut leaders = election.observe();

    // Nothing is left in the queue.
    client.queue("jobs/1").try_now().await?.release().await?;
    let next = election.campaign("10.0.0.9:80").await?;
    assert!(next.token() > token);
    let leader = within("a leader", leaders.next()).await.expect("a stream without end")?;
    assert!(leader.is_none_or(|leader| leader.value() == b"10.0.0.9:80"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_elections() -> Done {
    let (_server, client) = node().await;
    let session = session(&client, "one").await;
    let revision = client.put("before", "it").await?.revision();
    let leadership = session.election("scheduler").campaign("10.0.0.7:80").await?;
    let mut candidacy = session.election("standby").campaign("b").follow();
    let token = leadership.token();
    leadership.txn().then(put("jobs/next", "7")).commit().await?;
    leadership.run(work()).await?;
    let lost = leadership.lost();
    leadership.proclaim("10.0.0.8:80").await?;
    leadership.resign().await?;
    let mut leaders = client.election("scheduler").observe_from(revision);

    drop(lost);
    let mut is_elected = false;
    while let Some(event) = within("an event", candidacy.next()).await {
        is_elected = matches!(event?, CampaignEvent::Elected(_));
    }
    assert!(is_elected, "nobody else stands there");
    let mut told = Vec::new();
    while told.len() < 2 {
        let leader = within("a leader", leaders.next()).await.expect("a stream without end")?;
        told.extend(leader.map(|leader| (leader.token(), leader.value().to_vec())));
    }
    assert_eq!(told, [&b"10.0.0.7:80"[..], b"10.0.0.8:80"].map(|said| (token, said.to_vec())));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks() -> Done {
    let (_server, client) = node().await;
    let session = client.session().owner("worker-7").await?;
    let lock = session.lock("jobs/1").wait(Duration::from_secs(30)).await?;
    let token = lock.token();
    lock.txn().then(put("states/1", "running")).commit().await?;
    lock.run(work()).await?;
    lock.release().await?;

    let reading = session.lock("document").shared().await?;
    let permit = session.lock("pool").permits(1, 8).try_now().await?;
    let both = session.lock("a").and("b").await?;
    let other = client.lock("jobs/2").ttl(Duration::from_secs(60)).await?;

    // Nothing is left in the queue, for those who go by etcd's recipe either.
    client.queue("jobs/1").try_now().await?.release().await?;
    for held in [reading, permit, both, other] {
        assert!(held.token() > token);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions() -> Done {
    let (_server, client) = node().await;
    let session =
        client.session().ttl(Duration::from_secs(10)).owner("worker-7").tag("zone", "a").await?;
    client.put("workers/7", "busy").lease(session.id()).await?;
    let lost = session.lost();
    session.close().await?;

    within("its end", lost.cancelled()).await;
    assert!(client.get("workers/7").await?.one().is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes() -> Done {
    let server = server(&[]).await;
    let endpoints = server.running.client_urls().to_vec();
    let client = Client::builder(endpoints).build()?;
    client.put("k", "v").await?;
    client.txn().then(put("a", "1")).commit().await?;
    let lock = client.lock("jobs/1").await?;
    lock.txn().then(put("b", "2")).commit().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration() -> Result<(), Box<dyn std::error::Error>> {
    let (_server, client) = node().await;
    let then = client.put("config/app/port", "80").await?.revision();
    client.put("config/app/port", "81").await?;
    client.history("config/app/").prefix().limit(10).await?;
    client.rollback("config/app/", then).prefix().await?;
    client.read_config(&[Source::prefix("config/app/")], then).await?;
    assert_eq!(&client.get("config/app/port").await?.one().expect("a key").value[..], b"80");
    Ok(())
}

/// Without comments and white space.
fn bare(code: &str) -> String {
    let lines = code.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.flat_map(|line| line.chars().filter(|c| !c.is_whitespace())).collect()
}

#[test]
fn the_guides_show_what_is_run_here() {
    let pages = [
        ("client", include_str!("../../../docs/client.md"), 2),
        ("counters", include_str!("../../../docs/counters.md"), 1),
        ("latches", include_str!("../../../docs/latches.md"), 1),
        ("barriers", include_str!("../../../docs/barriers.md"), 2),
        ("groups", include_str!("../../../docs/groups.md"), 1),
        ("elections", include_str!("../../../docs/elections.md"), 1),
        ("native-elections", include_str!("../../../docs/native-elections.md"), 1),
        ("locks", include_str!("../../../docs/locks.md"), 1),
        ("sessions", include_str!("../../../docs/sessions.md"), 1),
        ("writes", include_str!("../../../docs/writes.md"), 1),
        // The first block is that of the client crate's module `config`, which its documentation compiles.
        ("config", include_str!("../../../docs/config.md"), 2),
    ];
    let run = bare(include_str!("guides.rs"));
    let compiled = include_str!("../../../client/src/config.rs").replace("//!", "");
    let known = run + &bare(&compiled);
    for (page, text, expected) in pages {
        let blocks: Vec<&str> = text.split("```rust\n").skip(1).collect();
        assert_eq!(blocks.len(), expected, "blocks of docs/{page}.md");
        for block in blocks {
            let (block, _) = block.split_once("```").expect("the block ends");
            assert!(known.contains(&bare(block)), "docs/{page}.md shows what is not run:\n{block}");
        }
    }
}
