//! Native elections over their wire contract, and through the client crate.

use std::time::Duration;

use bytes::Bytes;
use conclave_client::Error;
use conclave_client::election::{CampaignEvent, Candidacy, Loss};
use conclave_client::kv::put;
use conclave_proto::v1;
use conclave_proto::v1::election_service_client::ElectionServiceClient;
use futures::StreamExt as _;
use tonic::{Code, Streaming};
use v1::campaign_lost::Reason;
use v1::campaign_response::Event;

use crate::cluster::HASTY;
use crate::native_lock::{client, queue, session, soon};
use crate::support::{Server, leader, server, servers};

type Election = ElectionServiceClient<tonic::transport::Channel>;

fn election(server: &Server) -> Election {
    ElectionServiceClient::new(server.channel.clone())
}

/// A candidacy of the election `boss`.
struct Candidate {
    session: i64,
    events: Streaming<v1::CampaignResponse>,
}

impl Candidate {
    async fn new(election: &Election, session: i64, value: &'static str) -> Self {
        let (name, value) = ("boss".into(), value.into());
        let request = v1::CampaignRequest { name, session, value, ..Default::default() };
        let events = soon("a campaign", election.clone().campaign(request)).await.unwrap();
        Self { session, events: events.into_inner() }
    }

    async fn next(&mut self) -> Event {
        let event = soon("an event of a campaign", self.events.message()).await;
        event.unwrap().expect("a campaign ends with LOST").event.expect("all kinds are known")
    }

    /// Skips what is observed meanwhile.
    async fn elected(&mut self) -> v1::Elected {
        loop {
            match self.next().await {
                Event::Elected(elected) => return elected,
                Event::Queued(_) | Event::Observed(_) => {}
                lost @ Event::Lost(_) => panic!("{lost:?}"),
            }
        }
    }

    async fn observed(&mut self) -> v1::Leader {
        loop {
            match self.next().await {
                Event::Observed(v1::Observed { leader: Some(leader), .. }) => return leader,
                Event::Queued(_) | Event::Observed(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn lost(&mut self) -> Reason {
        loop {
            match self.next().await {
                Event::Lost(lost) => {
                    let end = soon("the end", self.events.message()).await.unwrap();
                    assert_eq!(end, None, "LOST is the last word");
                    return lost.reason();
                }
                Event::Queued(_) | Event::Observed(_) => {}
                elected @ Event::Elected(_) => panic!("{elected:?}"),
            }
        }
    }

    fn key(&self) -> Bytes {
        format!("boss/{:x}", self.session).into()
    }
}

async fn resign(election: &Election, candidate: &Candidate, fence: i64, to: Bytes) -> bool {
    let (name, session) = ("boss".into(), candidate.session);
    let request = v1::ResignRequest { name, session, fence, hand_over_to: to, once: None };
    let answer = soon("to resign", election.clone().resign(request)).await;
    answer.unwrap().into_inner().resigned
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_follow_each_other_and_everybody_hears_of_it() {
    let servers = [server(&[]).await];
    let (client, election) = (client(&servers), election(&servers[0]));
    let [one, two, three] =
        [session(&client, "1").await, session(&client, "2").await, session(&client, "3").await];
    let mut first = Candidate::new(&election, one.id(), "at one").await;
    let led = first.elected().await;
    let mut second = Candidate::new(&election, two.id(), "at two").await;
    assert_eq!(second.observed().await.value, "at one");
    let mut third = Candidate::new(&election, three.id(), "at three").await;
    assert_eq!(third.observed().await.fence, led.fence);
    // What the leader says is its key's value, for etcd's clients, too.
    let proclaim = |candidate: &Candidate, fence, value: &'static str| {
        let (name, session) = ("boss".into(), candidate.session);
        let request = v1::ProclaimRequest { name, session, fence, value: value.into() };
        let mut election = election.clone();
        async move { soon("to proclaim", election.proclaim(request)).await }
    };
    proclaim(&first, led.fence, "moved").await.unwrap();
    assert_eq!(second.observed().await.value, "moved");
    assert_eq!(client.get(first.key().to_vec()).await.unwrap().one().unwrap().value, "moved");
    let refused = proclaim(&second, led.fence, "usurped").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    // The third is chosen; the second goes behind it, with a higher fence.
    assert!(resign(&election, &first, led.fence, third.key()).await);
    assert_eq!(first.lost().await, Reason::Removed);
    let chosen = third.elected().await;
    assert!(chosen.fence > led.fence);
    assert!(resign(&election, &third, chosen.fence, Bytes::new()).await);
    assert_eq!(third.lost().await, Reason::Removed);
    let last = second.elected().await;
    assert!(last.fence > chosen.fence);
    assert!(!resign(&election, &third, chosen.fence, Bytes::new()).await, "it is done");
    observed_from(&election, led.revision, &[led.fence, led.fence, chosen.fence, last.fence]).await;
}

/// Every term, and every word of it, from the past on, and from now on that nobody leads.
async fn observed_from(election: &Election, start_revision: i64, fences: &[i64]) {
    let mut election = election.clone();
    let request = v1::ObserveRequest { name: "boss".into(), start_revision };
    let mut seen = soon("to observe", election.observe(request)).await.unwrap().into_inner();
    let mut revision = 0;
    for fence in fences {
        let next = soon("a leader", seen.message()).await.unwrap().unwrap();
        assert_eq!(next.leader.unwrap().fence, *fence);
        assert!(next.revision > revision);
        revision = next.revision;
    }
    let future = v1::ObserveRequest { name: "boss".into(), start_revision: i64::MAX };
    let refused = soon("to observe", election.observe(future)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let name = Bytes::from_static(b"nobody");
    let request = v1::ObserveRequest { name, start_revision: 0 };
    let mut nobody = soon("to observe", election.observe(request)).await.unwrap().into_inner();
    assert_eq!(soon("nobody", nobody.message()).await.unwrap().unwrap().leader, None);
}

/// A key that got its lease later stands in no queue, whoever looks, and since when.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_observes_sees_the_leader_of_the_queue() {
    let servers = [server(&[]).await];
    let (client, election) = (client(&servers), election(&servers[0]));
    let one = session(&client, "1").await;
    client.put("boss/late", "early").await.unwrap();
    client.put("boss/late", "late").lease(one.id()).await.unwrap();
    let mut first = Candidate::new(&election, one.id(), "one").await;
    let led = first.elected().await;
    // Also when how it began is compacted.
    for is_compacted in [false, true] {
        if is_compacted {
            client.compact(led.revision).await.unwrap();
        }
        for start_revision in [0, led.revision] {
            let request = v1::ObserveRequest { name: "boss".into(), start_revision };
            let seen = soon("to observe", election.clone().observe(request)).await.unwrap();
            let next = soon("a leader", seen.into_inner().message()).await.unwrap().unwrap();
            assert_eq!(next.leader.unwrap().fence, led.fence);
        }
    }
}

/// A candidate whose session ends hears of that instead of being elected (etcd#18163), and one whose
/// client goes without a word does not stay in the queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_candidate_haunts_the_election() {
    let servers = [server(&[]).await];
    let (client, election) = (client(&servers), election(&servers[0]));
    let [one, two, three] =
        [session(&client, "1").await, session(&client, "2").await, session(&client, "3").await];
    let mut first = Candidate::new(&election, one.id(), "one").await;
    let led = first.elected().await;
    let mut second = Candidate::new(&election, two.id(), "two").await;
    let mut third = Candidate::new(&election, three.id(), "three").await;
    queue(&client, "boss", 1, 2).await;
    client.session_end(two.id()).await.unwrap();
    assert_eq!(second.lost().await, Reason::SessionLost);
    // Another stream of the same candidate goes on with it: the first one may break.
    let mut again = Candidate::new(&election, one.id(), "one").await;
    assert_eq!(again.elected().await.fence, led.fence);
    drop(first);
    // The leader's client is gone, though its session lives.
    drop(again);
    let next = third.elected().await;
    assert!(next.fence > led.fence);
    queue(&client, "boss", 1, 0).await;
    // An operator takes the leadership away.
    client.lock_break("boss", 0, "a test").await.unwrap();
    assert_eq!(third.lost().await, Reason::Removed);
    let unknown =
        v1::CampaignRequest { name: "boss".into(), session: 12_345, ..Default::default() };
    let mut refused = election.clone().campaign(unknown).await.unwrap().into_inner();
    let refused = soon("a refusal", refused.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidacy_is_resumed_on_another_member_when_its_own_stops() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let [one, two] = [session(&client, "1").await, session(&client, "2").await];
    let mut leader = Candidate::new(&election(&servers[2]), one.id(), "one").await;
    let led = leader.elected().await;
    let mut waiting = Candidate::new(&election(&servers[1]), two.id(), "two").await;
    assert_eq!(waiting.observed().await.fence, led.fence);
    servers.remove(2).running.stop().await;
    let mut resumed = Candidate::new(&election(&servers[0]), one.id(), "one").await;
    assert_eq!(resumed.elected().await.fence, led.fence, "it leads on");
    assert!(resign(&election(&servers[0]), &resumed, led.fence, Bytes::new()).await);
    assert_eq!(resumed.lost().await, Reason::Removed);
    assert!(waiting.elected().await.fence > led.fence);
}

/// A leader on a member whose others stopped learns that it may not lead any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_others_stopped_keeps_no_candidate() {
    let mut servers = servers(3, &[HASTY]).await;
    let client = client(&servers);
    let one = session(&client, "1").await;
    let mut leader = Candidate::new(&election(&servers[0]), one.id(), "one").await;
    leader.elected().await;
    for server in servers.drain(1..) {
        soon("to stop", server.running.stop()).await;
    }
    let end = loop {
        match soon("the end", leader.events.message()).await {
            Ok(Some(event)) => {
                assert!(matches!(event.event, Some(Event::Observed(_))), "{event:?}")
            }
            Ok(None) => panic!("the reason is said"),
            Err(status) => break status,
        }
    };
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "etcdserver: no leader"));
}

/// Nobody gives away what another one leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_hands_over() {
    let servers = [server(&[]).await];
    let (client, election) = (client(&servers), election(&servers[0]));
    let [one, two] = [session(&client, "1").await, session(&client, "2").await];
    let mut first = Candidate::new(&election, one.id(), "one").await;
    let led = first.elected().await;
    let second = Candidate::new(&election, two.id(), "two").await;
    queue(&client, "boss", 1, 1).await;
    let request = v1::ResignRequest {
        name: "boss".into(),
        session: two.id(),
        fence: led.fence,
        hand_over_to: second.key(),
        once: None,
    };
    let refused = soon("to resign", election.clone().resign(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(resign(&election, &first, led.fence, second.key()).await);
}

/// The guard of the client crate, over the native API, while leaders of the cluster stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_leads_proclaims_and_hands_over() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let [one, two, three] =
        [session(&client, "1").await, session(&client, "2").await, session(&client, "3").await];
    let mut leaders = client.election("boss").observe();
    // It sees all that comes from now on, and not only from when its call is answered.
    assert!(soon("nobody leads yet", leaders.next()).await.unwrap().unwrap().is_none());
    let first = soon("to be elected", one.election("boss").campaign("at one")).await.unwrap();
    let second = tokio::spawn(two.election("boss").campaign("at two").into_future());
    queue(&client, "boss", 1, 1).await;
    let third = tokio::spawn(three.election("boss").campaign("at three").into_future());
    queue(&client, "boss", 1, 2).await;
    let busy = client.election("boss").campaign("no").wait(Duration::ZERO).await;
    assert!(matches!(busy, Err(Error::Busy)), "{busy:?}");
    first.proclaim("moved").await.unwrap();
    first.txn().then(put("by", "first")).commit().await.unwrap();
    assert!(first.is_held().await.unwrap());
    let leader = leader(&servers).await;
    servers.remove(leader).running.stop().await;
    first.run(async {}).await.unwrap();
    assert!(soon("it leads on", first.is_held()).await.unwrap());
    let (token, stale) = (first.token(), first.txn());
    let chosen = format!("boss/{:x}", three.id());
    soon("to hand over", first.resign_to(chosen.clone())).await.unwrap();
    let third = soon("to be elected", third).await.unwrap().unwrap();
    assert!(third.token() > token && third.key() == chosen.as_bytes());
    let refused = stale.then(put("by", "first, too late")).commit().await;
    assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    soon("to resign", third.resign()).await.unwrap();
    let second = soon("to be elected", second).await.unwrap().unwrap();
    // An operator takes it away, and the guard hears of it.
    client.lock_break("boss", 0, "a test").await.unwrap();
    soon("the loss", second.lost().cancelled()).await;
    let broken = Loss::Broken { by: String::new(), reason: "a test".to_owned() };
    assert_eq!(second.loss(), Some(broken));
    assert!(matches!(second.run(async {}).await, Err(Error::Lost { .. })));
    assert!(matches!(second.proclaim("usurped").await, Err(Error::Lost { .. })));
    assert!(matches!(second.resign().await, Err(Error::Lost { .. })));
    let again = soon("to be elected", two.election("boss").campaign("again")).await.unwrap();
    drop(again);
    queue(&client, "boss", 0, 0).await;
    let mut told = Vec::new();
    while told.last().is_none_or(|value| value != "again") {
        let leader = soon("a leader", leaders.leader()).await.unwrap().expect("it goes on");
        told.push(String::from_utf8(leader.value().to_vec()).unwrap());
    }
    assert_eq!(told, ["at one", "moved", "at three", "at two", "again"]);
    assert!(client.election("boss").leader().await.unwrap().is_none());
    soon("to end", two.close()).await.unwrap();
    let ended = two_campaigns_after_its_end(&client).await;
    assert!(matches!(ended, Err(Error::Lost { .. } | Error::NotFound(_))), "{ended:?}");
}

/// Two campaigns of one session lead together: neither ends the leadership of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_that_is_shared_is_not_handed_over() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "1").await, session(&client, "2").await);
    let [first, second] = [
        soon("to be elected", one.election("boss").campaign("at one")).await.unwrap(),
        soon("to be elected", one.election("boss").campaign("at one")).await.unwrap(),
    ];
    let next = tokio::spawn(two.election("boss").campaign("at two").into_future());
    queue(&client, "boss", 1, 1).await;
    let chosen = format!("boss/{:x}", two.id());
    let refused = soon("an answer", first.resign_to(chosen.clone())).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert!(soon("it leads on", second.is_held()).await.unwrap());
    let token = second.token();
    second.resign().await.unwrap();
    let next = soon("to be elected", next).await.unwrap().unwrap();
    assert!(next.token() > token && next.key() == chosen.as_bytes());
}

/// A session that ends while it campaigns is never elected.
async fn two_campaigns_after_its_end(
    client: &conclave_client::Client,
) -> Result<conclave_client::Leadership, Error> {
    let session = session(client, "ended").await;
    let _leader = soon("to be elected", client.election("e").campaign("leads")).await.unwrap();
    let waiting = tokio::spawn(session.election("e").campaign("waits").into_future());
    queue(client, "e", 1, 1).await;
    client.session_end(session.id()).await.unwrap();
    soon("the loss", waiting).await.unwrap()
}

/// A campaign that was canceled leaves no candidate, however late its request comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canceled_campaign_of_a_session_leaves_no_candidate() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "1").await, session(&client, "2").await);
    let leader = soon("to be elected", one.election("boss").campaign("leads")).await.unwrap();
    for ms in 0..20 {
        let campaign = two.election("boss").campaign("canceled").into_future();
        let canceled = tokio::time::timeout(Duration::from_millis(ms), campaign).await;
        assert!(canceled.is_err(), "somebody else leads");
    }
    let patient = two.election("boss").campaign("patient").wait(Duration::from_millis(50)).await;
    assert!(matches!(patient, Err(Error::Busy)), "{patient:?}");
    queue(&client, "boss", 1, 0).await;
    soon("to resign", leader.resign()).await.unwrap();
    queue(&client, "boss", 0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_of_the_client_tells_how_it_goes() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "1").await, session(&client, "2").await);
    let first = soon("to be elected", one.election("boss").campaign("at one")).await.unwrap();
    let mut second = two.election("boss").campaign("at two").follow();
    stands_behind(&mut second, "at one", first.token()).await;
    Box::pin(soon("to proclaim", first.proclaim("moved"))).await.unwrap();
    stands_behind(&mut second, "moved", first.token()).await;
    // A campaign that nobody follows any more leaves no candidate.
    let mut third = client.election("boss").campaign("at three").follow();
    let waits = soon("an event", third.next()).await;
    assert!(matches!(waits, Some(Ok(CampaignEvent::Waiting(_)))), "{waits:?}");
    drop(third);
    queue(&client, "boss", 1, 1).await;

    let begin = first.token();
    soon("to resign", first.resign()).await.unwrap();
    let elected = loop {
        match soon("an event", second.next()).await.unwrap().unwrap() {
            CampaignEvent::Waiting(_) => {}
            CampaignEvent::Elected(leadership) => break leadership,
        }
    };
    assert!(elected.token() > begin);
    assert!(second.next().await.is_none(), "nothing comes after the election");
    soon("to resign", elected.resign()).await.unwrap();
}

/// Waits until a candidate hears that it is the second, behind who says this.
async fn stands_behind(candidacy: &mut Candidacy, value: &'static str, fence: i64) {
    loop {
        let event = soon("an event", candidacy.next()).await;
        let Some(Ok(CampaignEvent::Waiting(waiting))) = event else { panic!("{event:?}") };
        let leader = waiting.leader.map(|leader| (leader.value, leader.fence));
        if waiting.ahead == 1 && leader == Some((value.into(), fence)) {
            return;
        }
    }
}
