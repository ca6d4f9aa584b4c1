//! Random logs with restarts, crashes and snapshot installs: both engines stay equal, whatever
//! happened to each of them on the way.

use bytes::Bytes;
use conclave_proto::internal::command::Command;
use conclave_proto::{etcdserverpb as etcd, internal};
use conclave_raft_store::EngineKind;
use conclave_raft_store::types::Entry;
use openraft::storage::RaftStateMachine;
use proptest::prelude::*;

use crate::harness::{ENGINES, State, compact, crash_image, entry, put};

/// What happens to one member, independent of the log.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Nothing,
    Flush,
    Restart,
    Crash,
    Install,
    Defragment,
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Command>),
    Fates([Fate; 2]),
}

fn key() -> impl Strategy<Value = Bytes> {
    (0_u8..12).prop_map(|n| format!("k{n}").into())
}

/// Now and then one that is too large to stand with the newest state of its key.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![9 => "[a-z]{0,9}", 1 => "[a-z]".prop_map(|letter| letter.repeat(2_500))]
}

fn command() -> impl Strategy<Value = Command> {
    let lease = 0_i64..3;
    prop_oneof![
        6 => (key(), value(), lease.clone()).prop_map(|(key, value, lease)| {
            let Command::Put(request) = put(key, value) else { unreachable!() };
            Command::Put(etcd::PutRequest { lease, ..request })
        }),
        2 => (key(), key()).prop_map(|(key, range_end)| Command::DeleteRange(
            etcd::DeleteRangeRequest { key, range_end, prev_kv: true }
        )),
        2 => (key(), 0_i64..4).prop_map(|(key, version)| Command::Txn(txn(key, version))),
        1 => (1_i64..60).prop_map(compact),
        1 => (1_i64..3).prop_map(|id| Command::LeaseGrant(
            etcd::LeaseGrantRequest { id, ttl: 10 }
        )),
        1 => (1_i64..3).prop_map(|id| Command::LeaseRevoke(etcd::LeaseRevokeRequest { id })),
        1 => (1_i64..3, 1_u64..3).prop_map(|(id, term)| Command::LeaseExpire(
            internal::LeaseExpire { term, ids: vec![id], ..Default::default() }
        )),
    ]
}

fn txn(key: Bytes, version: i64) -> etcd::TxnRequest {
    let put = |value: &'static str| etcd::RequestOp {
        request: Some(etcd::request_op::Request::RequestPut(etcd::PutRequest {
            key: key.clone(),
            value: Bytes::from_static(value.as_bytes()),
            ..Default::default()
        })),
    };
    let compare = etcd::Compare {
        key: key.clone(),
        target: etcd::compare::CompareTarget::Version as i32,
        target_union: Some(etcd::compare::TargetUnion::Version(version)),
        ..Default::default()
    };
    let (success, failure) = (vec![put("then")], vec![put("else")]);
    etcd::TxnRequest { compare: vec![compare], success, failure }
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        Just(Fate::Nothing),
        Just(Fate::Flush),
        Just(Fate::Restart),
        Just(Fate::Crash),
        Just(Fate::Install),
        Just(Fate::Defragment),
    ];
    prop_oneof![
        4 => proptest::collection::vec(command(), 0..6).prop_map(Step::Apply),
        1 => [fate.clone(), fate].prop_map(Step::Fates),
    ]
}

/// One member with the directory it lives in now.
struct Member {
    engine: EngineKind,
    dir: tempfile::TempDir,
    state: Option<State>,
}

impl Member {
    fn new(engine: EngineKind) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let state = Some(State::open(dir.path(), engine));
        Member { engine, dir, state }
    }

    fn state(&mut self) -> &mut State {
        self.state.as_mut().unwrap()
    }

    async fn suffer(&mut self, fate: Fate, log: &[Entry]) {
        match fate {
            Fate::Nothing => {}
            Fate::Flush => self.state().reader.flush().unwrap(),
            Fate::Defragment => self.state().reader.defragment().unwrap(),
            Fate::Restart => {
                self.state = None;
                self.state = Some(State::open(self.dir.path(), self.engine));
            }
            Fate::Crash => {
                let flushed = self.state().reader.flushed().unwrap();
                let image = crash_image(self.dir.path());
                self.state = Some(State::open(image.path(), self.engine));
                self.dir = image;
                assert_eq!(self.state().reader.applied(), flushed);
            }
            Fate::Install => self.replace().await,
        }
        // What a restart lost, the log brings back.
        let applied = self.state().reader.applied().map_or(0, |id| id.index);
        self.state().apply(log[usize::try_from(applied).unwrap()..].iter().cloned()).await;
    }

    /// A new member takes over by a snapshot.
    async fn replace(&mut self) {
        let Some(snapshot) = self.state().machine.get_current_snapshot().await.unwrap() else {
            return;
        };
        let mut next = Member::new(self.engine);
        next.state().machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
        *self = next;
    }
}

async fn run(steps: Vec<Step>) {
    let mut members = ENGINES.map(Member::new);
    let mut log = Vec::new();
    for step in steps {
        match step {
            Step::Apply(commands) => {
                log.push(entry(log.len() as u64 + 1, commands));
                for member in &mut members {
                    member.state().apply(log.last().cloned()).await;
                }
            }
            Step::Fates(fates) => {
                for (member, fate) in members.iter_mut().zip(fates) {
                    member.suffer(fate, &log).await;
                }
            }
        }
        let [a, b] = &mut members;
        let [a, b] = [a.state(), b.state()];
        assert_eq!(a.reader.head(), b.reader.head());
        assert_eq!(a.reader.hash_kv(0).unwrap(), b.reader.hash_kv(0).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn engines_stay_equal_through_restarts_crashes_and_installs(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(steps));
    }
}
