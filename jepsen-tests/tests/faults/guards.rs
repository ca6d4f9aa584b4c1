//! Guards of every kind come and go, and nothing of them stays: no task, no connection, no lease.

use std::time::{Duration, Instant};

use anyhow::Result;
use conclave_client::balance::BalancedChannel;
use conclave_client::config::Source;
use conclave_client::v1::InstanceFilter;
use conclave_client::{Client, Session};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{Nodes, START_TIMEOUT, eventually, is_long};

const TTL: Duration = Duration::from_secs(60);
/// Cycles of one kind that run at once.
const AT_ONCE: usize = 32;

/// What is made and given back.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Session,
    Lease,
    Lock,
    Shared,
    Permit,
    Several,
    Reentrant,
    LockAlone,
    Turn,
    Leadership,
    LeadershipAlone,
    Registration,
    Membership,
    Barrier,
    Inside,
    Directory,
    Channel,
    Changes,
    Config,
    Watcher,
    Observer,
    Followed,
}

const KINDS: [Kind; 22] = [
    Kind::Session,
    Kind::Lease,
    Kind::Lock,
    Kind::Shared,
    Kind::Permit,
    Kind::Several,
    Kind::Reentrant,
    Kind::LockAlone,
    Kind::Turn,
    Kind::Leadership,
    Kind::LeadershipAlone,
    Kind::Registration,
    Kind::Membership,
    Kind::Barrier,
    Kind::Inside,
    Kind::Directory,
    Kind::Channel,
    Kind::Changes,
    Kind::Config,
    Kind::Watcher,
    Kind::Observer,
    Kind::Followed,
];

/// Makes a guard, and gives it back by name or drops it.
async fn cycle(kind: Kind, client: &Client, session: &Session, number: usize) -> Result<()> {
    let is_dropped = number.is_multiple_of(2);
    let name = format!("guard/{kind:?}/{}", number % AT_ONCE);
    match kind {
        Kind::Session => {
            let guard = client.session().ttl(TTL).await?;
            if is_dropped { drop(guard) } else { guard.close().await? }
        }
        Kind::Lease => {
            let guard = client.lease(TTL).await?;
            if is_dropped { drop(guard) } else { guard.revoke().await? }
        }
        Kind::Lock
        | Kind::Shared
        | Kind::Permit
        | Kind::Several
        | Kind::Reentrant
        | Kind::LockAlone => {
            let lock = session.lock(&name[..]);
            let lock = match kind {
                Kind::Reentrant => lock.reentrant(),
                Kind::LockAlone => client.lock(&name[..]).ttl(TTL),
                Kind::Shared => lock.shared(),
                Kind::Permit => lock.permits(2, 3),
                Kind::Several => lock.and(format!("{name}/second")),
                _ => lock,
            };
            let again =
                if matches!(kind, Kind::Reentrant) { Some(lock.clone().await?) } else { None };
            let guard = lock.await?;
            drop(again);
            if is_dropped { drop(guard) } else { guard.release().await? }
        }
        Kind::Turn => {
            let guard = client.queue(name).ttl(TTL).await?;
            if is_dropped { drop(guard) } else { guard.release().await? }
        }
        Kind::Leadership | Kind::LeadershipAlone => {
            let election = match kind {
                Kind::Leadership => session.election(name),
                _ => client.election(name).ttl(TTL),
            };
            let guard = election.campaign("me").await?;
            if is_dropped { drop(guard) } else { guard.resign().await? }
        }
        Kind::Registration => {
            let service = client.service(name);
            let register = service.register(format!("h:{}", number + 1));
            let guard =
                if number % 4 < 2 { register.session(session).await? } else { register.await? };
            if is_dropped { drop(guard) } else { guard.deregister().await? }
        }
        Kind::Membership => {
            let guard = session.group(name).join("value").member(number.to_string()).await?;
            if is_dropped { drop(guard) } else { guard.leave().await? }
        }
        Kind::Barrier => {
            let guard = session.hold_barrier(format!("{name}/{number}")).await?;
            if is_dropped { drop(guard) } else { guard.lift().await? }
        }
        Kind::Inside => {
            let guard = session.double_barrier(format!("{name}/{number}"), 1).await?;
            if is_dropped { drop(guard) } else { guard.leave().await? }
        }
        follower => follow(follower, client, name).await?,
    }
    Ok(())
}

/// Makes what follows something until it has heard of it; that has no other end than to be dropped.
async fn follow(kind: Kind, client: &Client, name: String) -> Result<()> {
    match kind {
        Kind::Directory | Kind::Channel => {
            let directory = client.service(name).discover().start();
            let builder = BalancedChannel::builder();
            let _channel = matches!(kind, Kind::Channel).then(|| directory.channel(builder));
            directory.listing().wait_for(|listing| listing.is_connected).await?;
        }
        Kind::Changes => {
            client.service(name).changes(InstanceFilter::default()).next().await?;
        }
        Kind::Config => {
            let settings = client.config::<Value>().app(Source::prefix(format!("{name}/")));
            settings.start().await?;
        }
        Kind::Watcher => {
            client.watch(name).created_notify().start().next().await?;
        }
        Kind::Observer => {
            let election = client.election(name).ttl(TTL);
            let _leadership = election.campaign("me").await?;
            election.observe().leader().await?;
        }
        Kind::Followed => {
            client.group(name).follow().next().await?;
        }
        guard => unreachable!("{guard:?} is given back"),
    }
    Ok(())
}

/// Runs so many cycles of each kind with a client of its own, and waits until nothing of them is left.
#[expect(clippy::print_stdout, reason = "a figure of the test")]
async fn run(nodes: &Nodes, cycles: usize) {
    let client = Client::builder(nodes.cluster.endpoints()).build().expect("a client");
    let session = client.session().ttl(TTL).await.expect("a session");
    for kind in KINDS {
        let begun = Instant::now();
        let mut lanes = JoinSet::new();
        for lane in 0..AT_ONCE {
            let (client, session) = (client.clone(), session.clone());
            lanes.spawn(async move {
                for number in (lane..cycles).step_by(AT_ONCE) {
                    cycle(kind, &client, &session, number).await.expect("a guard");
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.expect("no cycle fails");
        }
        println!("{cycles} cycles of {kind:?} in {:?}", begun.elapsed());
    }
    eventually("only the session is left", START_TIMEOUT, async || {
        client.leases().await.is_ok_and(|leases| leases.leases.len() == 1)
    })
    .await;
    eventually("no key is left", START_TIMEOUT, async || {
        let keys = client.get("").prefix().count_only().await;
        keys.is_ok_and(|keys| keys.count == 0)
    })
    .await;
    session.close().await.expect("closed");
    client.close().await;
    assert!(client.leases().await.expect("an answer").leases.is_empty());
}

/// Open files of a process.
fn files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count()
}

/// Connections of this process to the nodes. Of its files, others may be those of other tests.
fn connections(nodes: &Nodes) -> usize {
    let ports: Vec<u16> = nodes.cluster.nodes().iter().map(|node| node.client_port()).collect();
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("a table");
    // `0: 0100007F:9C40 0100007F:2710 01 ...`: the number, both ends, and the state.
    let is_open = |line: &&str| {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let remote = cells.get(2).and_then(|cell| cell.split_once(':'));
        let port = remote.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        port.is_some_and(|port| ports.contains(&port)) && cells.get(3) == Some(&ESTABLISHED)
    };
    table.lines().filter(is_open).count()
}

/// Tasks here, connections from here, and open files of all nodes.
fn held(nodes: &Nodes) -> (usize, usize, usize) {
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let of_nodes = nodes.cluster.pids().into_iter().map(files).sum();
    (tasks, connections(nodes), of_nodes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_guard_stays() {
    let cycles = if is_long() { 10_000 } else { 100 };
    let nodes = Nodes::serving(3, &[]).await;
    // Whatever a first client makes others open for good.
    run(&nodes, 2 * AT_ONCE).await;
    let mut before = held(&nodes);
    eventually("it is quiet", START_TIMEOUT, async || {
        let last = std::mem::replace(&mut before, held(&nodes));
        tokio::time::sleep(Duration::from_secs(1)).await;
        last == before && held(&nodes) == before
    })
    .await;
    run(&nodes, cycles).await;
    eventually("as few tasks, connections and files as before", START_TIMEOUT, async || {
        let (tasks, own, of_nodes) = held(&nodes);
        // The nodes' stores open and close files of their own.
        tasks <= before.0 && own <= before.1 && of_nodes <= before.2 + STORE_FILES
    })
    .await;
    println!("tasks, connections, files of nodes: {before:?} before, {:?} after", held(&nodes));
}

/// In the table of connections.
const ESTABLISHED: &str = "01";
/// Files that the stores of three nodes may have opened meanwhile.
const STORE_FILES: usize = 60;
