//! The Election service: campaigns, what leaders say, and who hears it.

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::v3electionpb as pb;
use tokio::task::JoinHandle;
use tonic::{Code, Status, Streaming};

use crate::cluster::within;
use crate::support::{Server, delete, range, refused, server, servers};

fn campaign(lease: i64, value: &'static str) -> pb::CampaignRequest {
    pb::CampaignRequest { name: "e".into(), lease, value: value.into() }
}

/// Begins to campaign, and returns when the candidate's key is there.
async fn begin(
    server: &Server,
    lease: i64,
    value: &'static str,
) -> JoinHandle<Result<pb::CampaignResponse, Status>> {
    let mut client = server.election();
    let call = async move { Ok(client.campaign(campaign(lease, value)).await?.into_inner()) };
    let campaigning = tokio::spawn(call);
    within("the candidate is there", async {
        while server.range(range(&format!("e/{lease:x}"), "")).await.count == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    campaigning
}

async fn elected(server: &Server, lease: i64, value: &'static str) -> pb::LeaderKey {
    let call = begin(server, lease, value).await;
    within("it is elected", call).await.unwrap().unwrap().leader.unwrap()
}

fn by_name() -> pb::LeaderRequest {
    pb::LeaderRequest { name: "e".into() }
}

async fn leader(server: &Server) -> Result<pb::LeaderResponse, Status> {
    Ok(server.election().leader(by_name()).await?.into_inner())
}

async fn proclaim(
    server: &Server,
    leader: &pb::LeaderKey,
    value: &'static str,
) -> Result<i64, Status> {
    let request = pb::ProclaimRequest { leader: Some(leader.clone()), value: value.into() };
    let answer = server.election().proclaim(request).await?.into_inner();
    Ok(answer.header.unwrap().revision)
}

async fn resign(server: &Server, leader: &pb::LeaderKey) -> i64 {
    let request = pb::ResignRequest { leader: Some(leader.clone()) };
    server.election().resign(request).await.unwrap().into_inner().header.unwrap().revision
}

/// The next that an observer sees: its revision, the key's name and value.
async fn next(leaders: &mut Streaming<pb::LeaderResponse>) -> (i64, String, String) {
    let seen = within("the observer hears", leaders.message()).await.unwrap().unwrap();
    let kv = seen.kv.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (seen.header.unwrap().revision, text(&kv.key), text(&kv.value))
}

fn seen(revision: i64, key: &str, value: &str) -> (i64, String, String) {
    (revision, key.to_owned(), value.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_speaks_until_it_resigns_and_the_next_follows() {
    let servers = servers(3, &[]).await;
    let [one, two, three] = &servers[..] else { panic!("three") };
    for lease in 1..=2 {
        one.grant(lease, 60).await;
    }
    let mut leaders = three.election().observe(by_name()).await.unwrap().into_inner();
    let first = elected(one, 1, "a").await;
    assert_eq!((&first.key[..], first.rev, first.lease), (&b"e/1"[..], 2, 1));
    assert_eq!(next(&mut leaders).await, seen(2, "e/1", "a"));
    let second = begin(two, 2, "b").await;
    assert_eq!(proclaim(three, &first, "c").await.unwrap(), 4);
    assert_eq!(next(&mut leaders).await, seen(4, "e/1", "c"));
    let found = leader(two).await.unwrap();
    assert_eq!((found.header.unwrap().revision, &found.kv.unwrap().value[..]), (4, &b"c"[..]));
    assert!(!second.is_finished());

    assert_eq!(resign(two, &first).await, 5);
    let answer = within("the next is elected", second).await.unwrap().unwrap();
    assert_eq!(answer.header.unwrap().revision, 3, "of its candidacy");
    assert_eq!(next(&mut leaders).await, seen(5, "e/2", "b"));
    assert_eq!(
        refused(proclaim(one, &first, "d").await),
        (Code::Unknown, "election: not leader".to_owned())
    );
    assert_eq!(resign(one, &first).await, 5, "what is resigned already is no error");
    resign(one, &answer.leader.unwrap()).await;
    assert_eq!(refused(leader(one).await), (Code::Unknown, "election: no leader".to_owned()));
    // An observer waits for the next one, whoever it is.
    elected(one, 1, "again").await;
    assert_eq!(next(&mut leaders).await, seen(7, "e/1", "again"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_that_comes_late_begins_with_the_present_leader() {
    let server = server(&[]).await;
    server.grant(1, 60).await;
    let first = elected(&server, 1, "a").await;
    proclaim(&server, &first, "b").await.unwrap();
    server.put("other", "1").await;
    let mut leaders = server.election().observe(by_name()).await.unwrap().into_inner();
    assert_eq!(next(&mut leaders).await, seen(4, "e/1", "b"));
    server.txn(crate::support::then(vec![crate::support::op(delete("e/1", ""))])).await;
    server.grant(2, 60).await;
    elected(&server, 2, "c").await;
    assert_eq!(next(&mut leaders).await, seen(6, "e/2", "c"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_says_something_else_keeps_its_place() {
    let server = server(&[]).await;
    for lease in 1..=3 {
        server.grant(lease, 60).await;
    }
    let first = elected(&server, 1, "a").await;
    let second = begin(&server, 2, "b").await;
    let third = begin(&server, 3, "c").await;
    let again = begin(&server, 2, "b2").await;
    within("it says so", async {
        while server.range(range("e/2", "")).await.kvs[0].value != "b2" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    resign(&server, &first).await;
    for call in [second, again] {
        let leader = within("it is elected", call).await.unwrap().unwrap().leader.unwrap();
        assert_eq!((&leader.key[..], leader.rev), (&b"e/2"[..], 3));
    }
    assert!(!third.is_finished());
}

// etcd#18163: there a candidate whose lease ended waits on, and is told that it leads when its turn comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_without_a_lease_is_no_candidate() {
    let server = server(&[]).await;
    server.grant(1, 60).await;
    let first = elected(&server, 1, "a").await;
    // Long enough to be seen in the queue before it ends.
    server.grant(2, 15).await;
    let zombie = begin(&server, 2, "b").await;
    let failed = within("its lease ends", zombie).await.unwrap();
    assert_eq!(refused(failed), (Code::Unknown, "election: session is expired".to_owned()));
    resign(&server, &first).await;
    assert_eq!(refused(leader(&server).await), (Code::Unknown, "election: no leader".to_owned()));
    let none = etcd::LeaseTimeToLiveRequest { id: 2, keys: false };
    assert_eq!(server.lease().lease_time_to_live(none).await.unwrap().into_inner().ttl, -1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_about_no_leader_says_what_it_lacks() {
    let server = server(&[]).await;
    let lacking = (Code::Unknown, "\"leader\" field must be provided".to_owned());
    let mut client = server.election();
    assert_eq!(refused(client.proclaim(pb::ProclaimRequest::default()).await), lacking);
    assert_eq!(refused(client.resign(pb::ResignRequest::default()).await), lacking);
    assert_eq!(
        refused(client.campaign(campaign(77, "v")).await),
        (Code::Unknown, "etcdserver: requested lease not found".to_owned())
    );
}
