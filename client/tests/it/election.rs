//! Elections, alone and together with etcd's.

use std::time::Duration;

use bytes::Bytes;
use conclave_client::{Client, Election, Error, election::Loss};
use conclave_proto::v3electionpb::{
    CampaignRequest, LeaderRequest, ResignRequest, election_client::ElectionClient,
};
use futures::StreamExt;
use tokio::time::timeout;

use crate::{SOON, eventually, start};

async fn until_candidates(client: &Client, count: i64) {
    eventually("all campaign", async || {
        let candidates = client.get("e/").prefix().count_only().await;
        (candidates.expect("an answer").count == count).then_some(())
    })
    .await;
}

fn words(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[tokio::test]
async fn leaders_follow_each_other_and_are_observed() {
    let test = "leaders_follow_each_other_and_are_observed";
    let Some((_server, client)) = start(test).await else { return };
    let election = client.election("e");
    assert!(election.leader().await.unwrap().is_none());
    let mut all = election.observe();
    assert!(all.next().await.unwrap().unwrap().is_none(), "nobody leads yet");
    let first = election.campaign("a").await.unwrap();
    let begin = first.token();
    let next = election.clone();
    let next = tokio::spawn(async move { next.campaign("b").await.unwrap() });
    until_candidates(&client, 2).await;
    first.proclaim("a2").await.unwrap();
    assert_eq!(election.leader().await.unwrap().unwrap().value(), b"a2");
    first.resign().await.unwrap();
    let second = timeout(SOON, next).await.unwrap().unwrap();
    assert!(second.token() > begin);
    second.resign().await.unwrap();

    let mut seen = Vec::new();
    while seen.last() != Some(&None) {
        let leader = timeout(SOON, all.next()).await.unwrap().unwrap().unwrap();
        seen.push(leader.map(|leader| (words(leader.value()), leader.token())));
    }
    let tokens: Vec<i64> = seen.iter().flatten().map(|(_, token)| *token).collect();
    assert!(tokens.is_sorted(), "{seen:?}");
    let values = |seen: &[Option<(String, i64)>]| -> Vec<String> {
        seen.iter().flatten().map(|(value, _)| value.clone()).collect()
    };
    assert_eq!(values(&seen), ["a", "a2", "b"]);

    // Replayed from the beginning, in the same steps.
    let mut again = election.observe_from(begin);
    let mut replayed = Vec::new();
    while replayed.last() != Some(&None) {
        let leader = timeout(SOON, again.next()).await.unwrap().unwrap().unwrap();
        replayed.push(leader.map(|leader| (words(leader.value()), leader.token())));
    }
    assert_eq!(replayed, seen);
}

#[tokio::test]
async fn a_candidate_whose_lease_ended_is_never_elected() {
    let test = "a_candidate_whose_lease_ended_is_never_elected";
    let Some((_server, client)) = start(test).await else { return };
    let election = client.election("e").ttl(Duration::from_secs(12));
    let leader = election.campaign("leader").await.unwrap();
    let campaign = |value: &'static str| {
        let election: Election = election.clone();
        tokio::spawn(async move { election.campaign(value).await })
    };
    let zombie = campaign("zombie");
    until_candidates(&client, 2).await;
    let next = campaign("next");
    until_candidates(&client, 3).await;
    let all = client.get("e/").prefix().await.unwrap().into_inner().kvs;
    let lease = all.iter().find(|kv| kv.value == "zombie").unwrap().lease;
    client.lease_revoke(lease).await.unwrap();
    let error = timeout(SOON, zombie).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    leader.resign().await.unwrap();
    let next = timeout(SOON, next).await.unwrap().unwrap().unwrap();
    assert_eq!(election.leader().await.unwrap().unwrap().token(), next.token());
}

#[tokio::test]
async fn a_canceled_campaign_leaves_no_candidate() {
    let test = "a_canceled_campaign_leaves_no_candidate";
    let Some((_server, client)) = start(test).await else { return };
    let election = client.election("e");
    let leader = election.campaign("leader").await.unwrap();
    for ms in 0..20 {
        let campaign = timeout(Duration::from_millis(ms), election.campaign("canceled"));
        assert!(campaign.await.is_err(), "somebody else leads");
    }
    let error = election.campaign("patient").wait(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, Error::Busy), "{error:?}");
    until_candidates(&client, 1).await;
    leader.resign().await.unwrap();
    assert!(election.leader().await.unwrap().is_none());
}

#[tokio::test]
async fn a_leader_that_is_cut_off_knows_it_first() {
    let Some((mut server, client)) = start("a_leader_that_is_cut_off_knows_it_first").await else {
        return;
    };
    // Long enough that it is not lost before the server is killed.
    let leadership = client.election("e").ttl(Duration::from_secs(8)).campaign("a").await.unwrap();
    assert_eq!(leadership.loss(), None);
    server.kill();
    timeout(SOON, leadership.lost().cancelled()).await.expect("lost");
    assert_eq!(leadership.loss(), Some(Loss::Session));
    server.start();
    client.with_timeout(SOON).ready().await.unwrap();
    // The lease may still live in the server, but a loss is final for the client.
    assert!(leadership.run(async {}).await.is_err());
}

#[tokio::test]
async fn candidates_of_etcds_service_stand_in_the_same_queue() {
    let test = "candidates_of_etcds_service_stand_in_the_same_queue";
    let Some((_server, client)) = start(test).await else { return };
    let election = client.election("e");
    let ours = election.campaign("ours").await.unwrap();
    let mut service = ElectionClient::new(client.channel());
    let name = Bytes::from_static(b"e");
    let leader = service.leader(LeaderRequest { name: name.clone() }).await.unwrap().into_inner();
    assert_eq!(leader.kv.unwrap().value, "ours");
    let lease = client.lease_grant(600, 0).await.unwrap().id;
    let request = CampaignRequest { name, lease, value: Bytes::from_static(b"theirs") };
    let mut candidate = service.clone();
    let theirs = tokio::spawn(async move { candidate.campaign(request).await.unwrap() });
    until_candidates(&client, 2).await;
    let mut leaders = election.observe();
    assert_eq!(leaders.leader().await.unwrap().unwrap().value(), b"ours");
    ours.resign().await.unwrap();
    let theirs = timeout(SOON, theirs).await.unwrap().unwrap().into_inner();
    assert_eq!(leaders.leader().await.unwrap().unwrap().value(), b"theirs");
    service.resign(ResignRequest { leader: theirs.leader }).await.unwrap();
    assert!(leaders.next().await.unwrap().unwrap().is_none());
}
