//! The same calls of the Lock and Election services to Debian's etcd and to ours: same keys, same
//! revisions, same refusals. Skipped where there is no etcd.

use std::time::Duration;

use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::lease_client::LeaseClient;
use conclave_proto::v3electionpb as election;
use conclave_proto::v3electionpb::election_client::ElectionClient;
use conclave_proto::v3lockpb as lock;
use conclave_proto::v3lockpb::lock_client::LockClient;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::cluster::within;
use crate::reference::{self, program};
use crate::support;

/// The waiter whose lease ended. etcd 3.4 gives it the lock when its turn comes (later versions do not):
/// the one answer that must differ.
const WITHOUT_LEASE: &str = "waiter without a lease";

/// Makes calls and writes down the answers.
struct Script {
    kv: KvClient<Channel>,
    leases: LeaseClient<Channel>,
    locks: LockClient<Channel>,
    elections: ElectionClient<Channel>,
    lines: Vec<String>,
}

fn shown<T>(answer: Result<Response<T>, Status>, show: impl Fn(T) -> String) -> String {
    match answer {
        Ok(answer) => show(answer.into_inner()),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

fn revision(header: Option<etcd::ResponseHeader>) -> i64 {
    header.map_or(-1, |header| header.revision)
}

fn show_locked(answer: lock::LockResponse) -> String {
    format!("rev {} key {}", revision(answer.header), answer.key.escape_ascii())
}

fn show_elected(answer: election::CampaignResponse) -> String {
    let leader = answer.leader.unwrap();
    let (name, key) = (leader.name.escape_ascii(), leader.key.escape_ascii());
    let at = revision(answer.header);
    format!("rev {at} leader {name} {key} {} {:x}", leader.rev, leader.lease)
}

fn show_leader(answer: election::LeaderResponse) -> String {
    format!("rev {} {}", revision(answer.header), show_kv(&answer.kv.unwrap()))
}

fn show_kv(kv: &conclave_proto::mvccpb::KeyValue) -> String {
    let (key, value) = (kv.key.escape_ascii(), kv.value.escape_ascii());
    let (created, modified, version) = (kv.create_revision, kv.mod_revision, kv.version);
    format!("{key}={value} c{created} m{modified} v{version} lease {:x}", kv.lease)
}

impl Script {
    async fn open(endpoint: &str) -> Self {
        let channel = Endpoint::from_shared(endpoint.to_owned()).unwrap().connect_lazy();
        let mut kv = KvClient::new(channel.clone());
        within("the server serves", async {
            while kv.range(support::range("ready", "")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        Self {
            kv,
            leases: LeaseClient::new(channel.clone()),
            locks: LockClient::new(channel.clone()),
            elections: ElectionClient::new(channel),
            lines: Vec::new(),
        }
    }

    fn note(&mut self, what: &str, answer: &str) {
        self.lines.push(format!("{what}: {answer}"));
    }

    async fn grant(&mut self, ids: std::ops::RangeInclusive<i64>) {
        for id in ids {
            self.leases.lease_grant(etcd::LeaseGrantRequest { ttl: 600, id }).await.unwrap();
        }
    }

    /// Everything under a name.
    async fn dump(&mut self, name: &str) {
        let range = support::range(&format!("{name}/"), &format!("{name}0"));
        let found = self.kv.range(range).await.unwrap().into_inner();
        let rows: Vec<String> = found.kvs.iter().map(show_kv).collect();
        self.note("dump", &format!("rev {} {}", revision(found.header), rows.join("; ")));
    }

    async fn lock(&mut self, name: &'static [u8], lease: i64) {
        let request = lock::LockRequest { name: name.into(), lease };
        let answer = shown(self.locks.lock(request).await, show_locked);
        self.note(&format!("lock {} {lease:x}", name.escape_ascii()), &answer);
    }

    async fn begin_lock(&mut self, name: &'static str, lease: i64) -> JoinHandle<String> {
        let mut locks = self.locks.clone();
        let request = lock::LockRequest { name: name.into(), lease };
        let call = tokio::spawn(async move { shown(locks.lock(request).await, show_locked) });
        self.until_count(&format!("{name}/{lease:x}"), 1).await;
        call
    }

    async fn until_count(&mut self, key: &str, count: i64) {
        within("the key comes or goes", async {
            while self.kv.range(support::range(key, "")).await.unwrap().into_inner().count != count
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn unlock(&mut self, key: &'static str) {
        let request = lock::UnlockRequest { key: key.into() };
        let show = |answer: lock::UnlockResponse| format!("rev {}", revision(answer.header));
        let answer = shown(self.locks.unlock(request).await, show);
        self.note(&format!("unlock {key}"), &answer);
    }

    async fn revoke(&mut self, id: i64) {
        self.leases.lease_revoke(etcd::LeaseRevokeRequest { id }).await.unwrap();
    }

    async fn campaign(&mut self, lease: i64, value: &'static str) {
        let request = election::CampaignRequest { name: "e".into(), lease, value: value.into() };
        let answer = shown(self.elections.campaign(request).await, show_elected);
        self.note(&format!("campaign {lease:x} {value}"), &answer);
    }

    async fn begin_campaign(&mut self, lease: i64, value: &'static str) -> JoinHandle<String> {
        let mut elections = self.elections.clone();
        let request = election::CampaignRequest { name: "e".into(), lease, value: value.into() };
        let call =
            tokio::spawn(async move { shown(elections.campaign(request).await, show_elected) });
        self.until_count(&format!("e/{lease:x}"), 1).await;
        call
    }

    async fn leader(&mut self, name: &'static str) {
        let request = election::LeaderRequest { name: name.into() };
        let answer = shown(self.elections.leader(request).await, show_leader);
        self.note(&format!("leader {name}"), &answer);
    }

    async fn proclaim(&mut self, leader: Option<election::LeaderKey>, value: &'static str) {
        let request = election::ProclaimRequest { leader, value: value.into() };
        let show = |answer: election::ProclaimResponse| format!("rev {}", revision(answer.header));
        let answer = shown(self.elections.proclaim(request).await, show);
        self.note(&format!("proclaim {value}"), &answer);
    }

    async fn resign(&mut self, leader: Option<election::LeaderKey>) {
        let request = election::ResignRequest { leader };
        let show = |answer: election::ResignResponse| format!("rev {}", revision(answer.header));
        let answer = shown(self.elections.resign(request).await, show);
        self.note("resign", &answer);
    }

    async fn ended(&mut self, what: &str, call: JoinHandle<String>) {
        let answer = within("the call ends", call).await.unwrap();
        self.note(what, &answer);
    }

    async fn locks(&mut self) {
        self.grant(1..=5).await;
        self.lock(b"n", 99).await;
        self.lock(b"n", -255).await;
        self.unlock("").await;
        self.lock(b"", 1).await;
        self.dump("").await;
        self.unlock("/1").await;
        self.unlock("/1").await;
        self.lock(b"\x00\xff/", 1).await;
        self.lock(b"n", 1).await;
        self.lock(b"n", 1).await;
        let second = self.begin_lock("n", 2).await;
        let third = self.begin_lock("n", 3).await;
        let fourth = self.begin_lock("n", 4).await;
        self.dump("n").await;
        third.abort();
        self.until_count("n/3", 0).await;
        self.revoke(4).await;
        self.unlock("n/1").await;
        self.ended("second", second).await;
        self.dump("n").await;
        self.unlock("n/2").await;
        self.ended(WITHOUT_LEASE, fourth).await;
        self.dump("n").await;
    }

    async fn elections(&mut self) {
        self.leader("e").await;
        self.campaign(99, "x").await;
        self.campaign(1, "a").await;
        self.campaign(1, "a").await;
        self.campaign(1, "a2").await;
        self.leader("e").await;
        let request = election::LeaderRequest { name: "e".into() };
        let mut leaders = self.elections.observe(request).await.unwrap();
        let second = self.begin_campaign(2, "b").await;
        let found = self.kv.range(support::range("e/1", "")).await.unwrap().into_inner();
        let rev = found.kvs[0].create_revision;
        let key = election::LeaderKey { name: "e".into(), key: "e/1".into(), rev, lease: 1 };
        let wrong = election::LeaderKey { rev: rev + 1, ..key.clone() };
        for _ in 0..2 {
            let seen = within("it observes", leaders.get_mut().message()).await.unwrap().unwrap();
            self.note("observed", &show_kv(seen.kv.as_ref().unwrap()));
            self.proclaim(Some(key.clone()), "c").await;
        }
        self.proclaim(Some(wrong.clone()), "d").await;
        self.proclaim(Some(election::LeaderKey { lease: 99, ..key.clone() }), "d").await;
        self.proclaim(Some(election::LeaderKey::default()), "d").await;
        self.proclaim(None, "d").await;
        self.resign(Some(wrong)).await;
        self.resign(None).await;
        self.resign(Some(election::LeaderKey { lease: 1, ..Default::default() })).await;
        self.dump("e").await;
        self.resign(Some(key.clone())).await;
        self.ended("second", second).await;
        for _ in 0..2 {
            let seen = within("it observes", leaders.get_mut().message()).await.unwrap().unwrap();
            self.note("observed", &show_leader(seen));
        }
        self.resign(Some(key)).await;
        self.dump("e").await;
    }
}

async fn transcript(endpoint: &str) -> Vec<String> {
    let mut script = Script::open(endpoint).await;
    script.locks().await;
    script.elections().await;
    script.lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_elections_answer_as_etcd_does() {
    let Some(program) = program("locks_and_elections_answer_as_etcd_does") else { return };
    let theirs = reference::Server::single(program);
    let mut theirs = transcript(&format!("http://{}", theirs.endpoint())).await;
    let ours = support::server(&[]).await;
    let ours = transcript(&ours.running.client_urls()[0]).await;
    let without_lease = format!("{WITHOUT_LEASE}: Unknown mutex: session is expired");
    assert!(ours.contains(&without_lease), "{ours:?}");
    if let Some(wrong) = theirs.iter_mut().find(|line| line.starts_with(WITHOUT_LEASE)) {
        *wrong = without_lease;
    }
    assert_eq!(ours, theirs);
}
