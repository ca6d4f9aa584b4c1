//! One lock goes from hand to hand, between holders of every kind, while clients and leaders die and leaders are cut
//! off; and many who wait get it in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use conclave_client::{Client, Error, Session};
use conclave_jepsen_tests::members;
use conclave_jepsen_tests::network::cut;
use conclave_proto::v3lockpb::{LockRequest, lock_client::LockClient};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::holder::Holder;
use crate::support::{HASTY, Nodes, START_TIMEOUT, eventually, is_long};

const NAME: &str = "baton";
const TTL: Duration = Duration::from_secs(60);
/// Contenders of each kind.
const EACH: usize = 2;
/// Of the session of a holder that is killed: it waits in the queue before, while leaders change and machines
/// stand still, and must not lose it there.
const KILLED_TTL_SECONDS: u64 = 10;
const WAITERS: usize = 64;
/// For one attempt of a contender.
const ATTEMPT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Sees every hand-over.
#[derive(Default)]
struct Referee {
    is_held: AtomicBool,
    /// Token and kind of every holder, in order.
    holders: Mutex<Vec<(i64, &'static str)>>,
    is_over: AtomicBool,
}

impl Referee {
    async fn enter(&self, token: i64, kind: &'static str) {
        assert!(!self.is_held.swap(true, Ordering::SeqCst), "{kind} is the second holder");
        let mut holders = self.holders.lock().await;
        let last = holders.last().copied().unwrap_or_default();
        assert!(token > last.0, "{token} of {kind} after {last:?}");
        holders.push((token, kind));
    }

    fn leave(&self) {
        assert!(self.is_held.swap(false, Ordering::SeqCst), "it held");
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    async fn count(&self) -> usize {
        self.holders.lock().await.len()
    }
}

fn client(endpoints: &[String]) -> Client {
    Client::builder(endpoints.to_vec()).build().expect("a client")
}

/// Whether that may happen to a call while members are killed or cut off. Whatever else goes wrong is a fault.
fn is_expected(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Deadline { .. } | Error::Overloaded(_))
}

/// What a call brought, if a killed member did not keep it from doing so.
fn unless_killed<T>(what: &str, outcome: Result<T, Error>) -> Option<T> {
    match outcome {
        Ok(done) => Some(done),
        Err(error) if is_expected(&error) => None,
        Err(error) => panic!("{what}: {error:?}"),
    }
}

/// Holds by `conclave.v1`. Its session outlives every fault of this test, so that what it has is not lost.
async fn native(endpoints: Vec<String>, referee: Arc<Referee>) {
    let client = client(&endpoints);
    let mut session: Option<Session> = None;
    while !referee.is_over() {
        let Some(own) = &session else {
            session = unless_killed("a session", client.session().ttl(TTL).owner("native").await);
            continue;
        };
        let guard = match own.lock(NAME).wait(ATTEMPT).await {
            // The others had it for as long as that; or nobody led for so long that the place was withdrawn.
            Err(Error::Busy | Error::Lost { .. }) => None,
            outcome => unless_killed("a lock", outcome),
        };
        let Some(guard) = guard else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        referee.enter(guard.token(), "native").await;
        guard.run(tokio::task::yield_now()).await.expect("a lock that is held is not lost");
        let fence = unless_killed("a check of the fence", guard.is_held().await);
        assert_ne!(fence, Some(false), "the fence of whoever holds is good");
        referee.leave();
        unless_killed("a release", guard.release().await);
    }
}

/// Holds by etcd's recipe.
async fn recipe(endpoints: Vec<String>, referee: Arc<Referee>) {
    let client = client(&endpoints);
    while !referee.is_over() {
        let Ok(turn) = client.queue(NAME).ttl(TTL).wait(ATTEMPT).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        referee.enter(turn.token(), "recipe").await;
        turn.run(tokio::task::yield_now()).await.ok();
        referee.leave();
        turn.release().await.ok();
    }
}

/// Holds by etcd's Lock service, on one node: a lease for each attempt, which ends with it.
async fn v3lock(endpoints: Vec<String>, node: usize, referee: Arc<Referee>) {
    let client = client(&endpoints);
    let endpoint = Endpoint::try_from(endpoints[node].clone()).expect("an endpoint");
    let mut service = LockClient::new(endpoint.connect_lazy());
    while !referee.is_over() {
        let Ok(lease) = client.lease(TTL).await else { continue };
        let request = LockRequest { name: NAME.into(), lease: lease.id() };
        if let Ok(Ok(locked)) = tokio::time::timeout(ATTEMPT, service.lock(request)).await {
            let key = locked.into_inner().key;
            let found = client.get(&key[..]).await;
            // Who cannot ask for the token does not go in.
            if let Some(kv) = found.ok().and_then(|found| found.kvs.first().cloned()) {
                referee.enter(kv.create_revision, "v3lock").await;
                referee.leave();
            }
        }
        // Whatever became of the attempt, it ends with the lease.
        while !matches!(client.lease_revoke(lease.id()).await, Ok(_) | Err(Error::NotFound(_))) {
            tokio::time::sleep(PAUSE).await;
        }
        drop(lease);
    }
}

/// A process that takes the lock and is killed.
async fn kill_a_holder(endpoints: &[String], referee: &Referee) {
    let mut holder = Holder::start(endpoints, (NAME, "unused"), KILLED_TTL_SECONDS, &[]);
    let (token, _) = holder.held();
    referee.enter(token, "killed").await;
    // Until it is killed nobody else can hold, and after that its session lives for a moment only.
    referee.leave();
    drop(holder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_whoever_holds_and_whoever_dies() {
    let (hand_overs, between_kills) = if is_long() { (1_000, 50) } else { (60, 20) };
    let (mut nodes, network) = Nodes::parted(3, &[HASTY]).await;
    let endpoints = nodes.cluster.endpoints();
    let referee = Arc::new(Referee::default());
    let mut contenders = JoinSet::new();
    for number in 0..EACH {
        contenders.spawn(native(endpoints.clone(), Arc::clone(&referee)));
        contenders.spawn(recipe(endpoints.clone(), Arc::clone(&referee)));
        contenders.spawn(v3lock(endpoints.clone(), number, Arc::clone(&referee)));
    }
    let begun = Instant::now();
    let (mut kills, mut next) = (0, between_kills);
    while next <= hand_overs {
        eventually("the lock goes from hand to hand", 10 * START_TIMEOUT, async || {
            assert!(contenders.try_join_next().is_none(), "nobody gives up");
            referee.count().await >= next
        })
        .await;
        next += between_kills;
        kills += 1;
        kill_a_holder(&endpoints, &referee).await;
        let leader = nodes.leader().await;
        let is_killed = kills % 2 == 0;
        if is_killed {
            nodes.cluster.kill(leader).expect("it can be killed");
        } else {
            network.cut(cut::isolated(leader, 3));
        }
        // Some hand-overs without it.
        let before = referee.count().await;
        eventually("it goes on without the leader", 10 * START_TIMEOUT, async || {
            referee.count().await >= before + 5
        })
        .await;
        if is_killed {
            nodes.cluster.start(leader).expect("the program starts");
        } else {
            network.heal();
        }
        nodes.all_serve().await;
    }
    referee.is_over.store(true, Ordering::SeqCst);
    while let Some(ended) = contenders.join_next().await {
        ended.expect("nobody saw a second holder");
    }
    let holders = referee.holders.lock().await;
    let of = |kind| holders.iter().filter(|(_, holder)| *holder == kind).count();
    println!(
        "{} hand-overs in {:?}: native {}, recipe {}, v3lock {}; {kills} holders and {} leaders killed, {} cut off",
        holders.len(),
        begun.elapsed(),
        of("native"),
        of("recipe"),
        of("v3lock"),
        kills / 2,
        kills - kills / 2,
    );
    assert!(["native", "recipe", "v3lock"].iter().all(|kind| of(kind) > 0), "all take part");
    drop(holders);
    members::wait_until_serving(&endpoints, START_TIMEOUT).await.expect("they serve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_wait_get_the_lock_in_the_order_in_which_they_came() {
    let nodes = Nodes::serving(3, &[]).await;
    let client = client(&nodes.cluster.endpoints());
    let session = async || client.session().ttl(TTL).await.expect("a session");
    let first = session().await.lock(NAME).await.expect("the lock");
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = JoinSet::new();
    for number in 0..WAITERS {
        let (session, order) = (session().await, Arc::clone(&order));
        waiters.spawn(async move {
            let guard = session.lock(NAME).await.expect("the lock");
            order.lock().await.push((number, guard.token()));
            guard.release().await.expect("released");
            session.close().await.expect("closed");
        });
        eventually("it waits", START_TIMEOUT, async || {
            let places = client.lock_inspect(NAME).await.map(|queue| queue.places.len());
            places.is_ok_and(|places| places == number + 2)
        })
        .await;
    }
    let begun = Instant::now();
    first.release().await.expect("released");
    while let Some(waiter) = waiters.join_next().await {
        waiter.expect("it got the lock");
    }
    println!("{WAITERS} waiters served in {:?}", begun.elapsed());
    let order = order.lock().await;
    assert!(order.iter().map(|(number, _)| *number).eq(0..WAITERS), "first come, first served");
    assert!(order.is_sorted_by(|one, next| one.1 < next.1), "tokens grow");
}
