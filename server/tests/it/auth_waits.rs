//! Rights that go while somebody waits: nothing is granted or told any more, and no place stays behind.

use std::fmt::Debug;
use std::time::Duration;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::v1;
use conclave_proto::v3lockpb::LockRequest;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use v1::acquire_request::Wait;
use v1::barrier_service_client::BarrierServiceClient;
use v1::double_barrier_service_client::DoubleBarrierServiceClient;
use v1::election_service_client::ElectionServiceClient;
use v1::lock_service_client::LockServiceClient;
use v1::session_service_client::SessionServiceClient;
use v1::{acquire_response, campaign_response, wait_response};

use crate::auth::{FAST, add_user, auth, by, denied, enable, log_in};
use crate::cluster::within;
use crate::support::{Server, range, refused, server};

/// Between two looks.
const MOMENT: Duration = Duration::from_millis(10);
const FOR_EVER: Option<v1::Patience> =
    Some(v1::Patience { wait: Some(v1::patience::Wait::WaitForever(true)) });

/// A user and its session.
struct User<'a> {
    server: &'a Server,
    token: String,
    session: i64,
}

impl<'a> User<'a> {
    async fn new(server: &'a Server, token: &str, session: i64) -> User<'a> {
        let begin = v1::SessionBeginRequest {
            id: session,
            ttl_seconds: 600,
            request_id: "session".into(),
            ..Default::default()
        };
        let mut sessions = SessionServiceClient::new(server.channel.clone());
        sessions.begin(by(token, begin)).await.unwrap();
        User { server, token: token.to_owned(), session }
    }

    fn channel(&self) -> Channel {
        self.server.channel.clone()
    }

    fn once(&self, sequence: u64) -> Option<v1::Once> {
        Some(v1::Once { session: self.session, sequence, settled: 1, undoes: 0 })
    }

    async fn acquire(&self, request_id: &'static str) -> Streaming<v1::AcquireResponse> {
        let acquire = v1::AcquireRequest {
            names: vec!["a/lock".into()],
            session: self.session,
            request_id: request_id.into(),
            wait: Some(Wait::WaitForever(true)),
            ..Default::default()
        };
        let mut locks = LockServiceClient::new(self.channel());
        locks.acquire(by(&self.token, acquire)).await.unwrap().into_inner()
    }

    async fn campaign(&self, once: Option<v1::Once>) -> Streaming<v1::CampaignResponse> {
        let campaign = v1::CampaignRequest {
            name: "a/boss".into(),
            session: self.session,
            attempt: 1,
            once,
            ..Default::default()
        };
        let mut elections = ElectionServiceClient::new(self.channel());
        elections.campaign(by(&self.token, campaign)).await.unwrap().into_inner()
    }

    async fn wait(&self) -> Streaming<v1::WaitResponse> {
        let wait =
            v1::WaitRequest { name: "a/barrier".into(), patience: FOR_EVER, ..Default::default() };
        let mut barriers = BarrierServiceClient::new(self.channel());
        barriers.wait(by(&self.token, wait)).await.unwrap().into_inner()
    }

    async fn enter(&self) -> Streaming<v1::WaitResponse> {
        let enter = v1::DoubleBarrierEnterRequest {
            once: self.once(1),
            name: "a/step".into(),
            count: 2,
            patience: FOR_EVER,
            ..Default::default()
        };
        let mut barriers = DoubleBarrierServiceClient::new(self.channel());
        barriers.enter(by(&self.token, enter)).await.unwrap().into_inner()
    }

    async fn release(&self, request_id: &'static str) {
        let release = v1::ReleaseRequest {
            names: vec!["a/lock".into()],
            session: self.session,
            request_id: request_id.into(),
            ..Default::default()
        };
        LockServiceClient::new(self.channel()).release(by(&self.token, release)).await.unwrap();
    }

    async fn keys(&self, from: &str, to: &str) -> i64 {
        self.server.kv().range(by(&self.token, range(from, to))).await.unwrap().get_ref().count
    }
}

async fn next<T: Debug>(answers: &mut Streaming<T>) -> Result<T, Status> {
    within("an answer", answers.message()).await.map(|answer| answer.expect("it says why it ends"))
}

/// Why a candidacy ends of which nothing but the leader was told meanwhile.
async fn end(candidate: &mut Streaming<v1::CampaignResponse>) -> (Code, String) {
    loop {
        let told = next(candidate).await;
        let is_leader = |answer: &v1::CampaignResponse| {
            matches!(answer.event, Some(campaign_response::Event::Observed(_)))
        };
        if !told.as_ref().is_ok_and(is_leader) {
            return refused(told);
        }
    }
}

async fn raise(root: &User<'_>) {
    let raise = v1::BarrierRaiseRequest { name: "a/barrier".into(), ..Default::default() };
    BarrierServiceClient::new(root.channel()).raise(by(&root.token, raise)).await.unwrap();
}

/// Users `root`, `ann` and `bob`, who may all take part in what begins with `a/`.
async fn users(server: &Server) -> [User<'_>; 3] {
    let [root, ann] = enable(server).await;
    add_user(server, &root, "bob", &["a"]).await;
    let bob = log_in(server, "bob", "bob-password").await.unwrap();
    // Simple tokens are good whatever changes later.
    let root = User::new(server, &root, 1).await;
    [root, User::new(server, &ann, 2).await, User::new(server, &bob, 3).await]
}

async fn revoke(root: &User<'_>, user: &str) {
    let revoke = etcd::AuthUserRevokeRoleRequest { name: user.to_owned(), role: "a".to_owned() };
    auth(root.server).user_revoke_role(by(&root.token, revoke)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_right_waits_for_nothing_and_stands_in_nobodys_way() {
    let server = server(&[FAST]).await;
    let [root, ann, bob] = users(&server).await;
    raise(&root).await;
    let mut held = root.acquire("root").await;
    let granted = next(&mut held).await.unwrap().event;
    assert!(matches!(granted, Some(acquire_response::Event::Granted(_))), "{granted:?}");
    let mut leads = root.campaign(None).await;
    let elected = next(&mut leads).await.unwrap().event;
    assert!(matches!(elected, Some(campaign_response::Event::Elected(_))), "{elected:?}");

    let mut waits = ann.acquire("ann").await;
    // A repetition makes the place one that no stream gives up by itself.
    let mut again = ann.acquire("ann").await;
    for waits in [&mut waits, &mut again] {
        let queued = next(waits).await.unwrap().event;
        assert!(matches!(queued, Some(acquire_response::Event::Queued(_))), "{queued:?}");
    }
    let mut campaigns = ann.campaign(ann.once(2)).await;
    let queued = next(&mut campaigns).await.unwrap().event;
    assert!(matches!(queued, Some(campaign_response::Event::Queued(_))), "{queued:?}");
    let (mut stops, mut enters) = (ann.wait().await, ann.enter().await);
    for waits in [&mut stops, &mut enters] {
        let waiting = next(waits).await.unwrap().event;
        assert!(matches!(waiting, Some(wait_response::Event::Waiting(_))), "{waiting:?}");
    }
    let mut after = bob.acquire("bob").await;
    let queued = next(&mut after).await.unwrap().event;
    assert!(matches!(queued, Some(acquire_response::Event::Queued(_))), "{queued:?}");

    revoke(&root, "ann").await;
    assert_eq!(refused(next(&mut waits).await), denied());
    assert_eq!(refused(next(&mut again).await), denied());
    assert_eq!(refused(next(&mut stops).await), denied());
    assert_eq!(refused(next(&mut enters).await), denied());
    assert_eq!(end(&mut campaigns).await, denied());
    assert_eq!(root.keys("a/lock/", "a/lock0").await, 2, "root's and bob's");
    assert_eq!(root.keys("a/boss/", "a/boss0").await, 1, "root's");
    assert_eq!(root.keys("a/step", "a/step0").await, 0);
    root.release("root").await;
    let granted = next(&mut after).await.unwrap().event;
    assert!(matches!(granted, Some(acquire_response::Event::Granted(_))), "{granted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_right_leads_no_more() {
    let server = server(&[FAST]).await;
    let [root, ann, bob] = users(&server).await;
    let mut leads = ann.campaign(ann.once(1)).await;
    let elected = next(&mut leads).await.unwrap().event;
    assert!(matches!(elected, Some(campaign_response::Event::Elected(_))), "{elected:?}");
    let mut follows = bob.campaign(None).await;
    let queued = next(&mut follows).await.unwrap().event;
    assert!(matches!(queued, Some(campaign_response::Event::Queued(_))), "{queued:?}");
    let delete = etcd::AuthUserDeleteRequest { name: "ann".to_owned() };
    auth(&server).user_delete(by(&root.token, delete)).await.unwrap();
    assert_eq!(end(&mut leads).await, denied());
    loop {
        let event = next(&mut follows).await.unwrap().event;
        if matches!(event, Some(campaign_response::Event::Elected(_))) {
            break;
        }
    }
    assert_eq!(root.keys("a/boss/2", "").await, 0);
}

/// Users that are enabled take nothing from who has a right, and only has to say who it is.
#[tokio::test(flavor = "multi_thread")]
async fn who_led_before_users_were_enabled_leads_on() {
    let server = server(&[FAST]).await;
    let nobody = User::new(&server, "", 2).await;
    let mut leads = nobody.campaign(nobody.once(1)).await;
    let Some(campaign_response::Event::Elected(elected)) = next(&mut leads).await.unwrap().event
    else {
        panic!("nobody else is there");
    };
    let [_, ann] = enable(&server).await;
    let (code, text) = end(&mut leads).await;
    assert_eq!((code, text.as_str()), (Code::InvalidArgument, "etcdserver: user name is empty"));
    let ann = User { server: &server, token: ann, session: 2 };
    let mut again = ann.campaign(ann.once(1)).await;
    let Some(campaign_response::Event::Elected(leader)) = next(&mut again).await.unwrap().event
    else {
        panic!("it leads still");
    };
    assert_eq!(leader.fence, elected.fence);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_right_leaves_the_queue_of_etcds_lock() {
    let server = server(&[FAST]).await;
    let [root, ann, _] = users(&server).await;
    let lock = |user: &User<'_>| {
        let request = LockRequest { name: "a/lock".into(), lease: user.session };
        let (mut locks, request) = (server.lock(), by(&user.token, request));
        async move { locks.lock(request).await }
    };
    lock(&root).await.unwrap();
    let waits = tokio::spawn(lock(&ann));
    let queued = async {
        while root.keys("a/lock/", "a/lock0").await < 2 {
            tokio::time::sleep(MOMENT).await;
        }
    };
    within("ann waits", queued).await;
    revoke(&root, "ann").await;
    let refusal = refused(within("the end", waits).await.unwrap());
    assert_eq!(refusal, (Code::Unknown, denied().1));
    let gone = async {
        while root.keys("a/lock/", "a/lock0").await > 1 {
            tokio::time::sleep(MOMENT).await;
        }
    };
    within("nothing stays behind", gone).await;
}
