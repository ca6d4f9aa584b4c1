//! Members that come and go: clusters that grow and shrink while they are written to.

mod group;

use conclave_proto::etcdserverpb::CompactionRequest;
use conclave_proto::internal::peer_client::PeerClient;
use conclave_proto::internal::{self, ReadIndexRequest, Sender, VoteRequest, command};
use conclave_raft_store::RocksOptions;
use conclave_raft_store::engine::EngineKind;
use conclave_raft_store::log::OpenError;
use conclave_raft_store::store::{StateStore, StoreOptions};
use conclave_raft_store::types::{Batch, Entry, EntryPayload, LogId};
use conclave_server::config::Settings;
use conclave_server::node::{MemberInfo, Node, StartError};
use conclave_server::propose::ProposeError;
use conclave_server::raft::{BootstrapError, ChangeError};
use conclave_server::read_index::ReadIndexError;
use conclave_state_machine::command::Caller;
use conclave_state_machine::members::rules::{MemberChange, MemberRefusal};
use openraft::storage::RaftStateMachine as _;
use prost::Message as _;
use tonic::Code;
use tonic::transport::Endpoint;

use self::group::Load;
use crate::cluster::{eventually, get, must_put, put, start_again, within};

pub(crate) use group::Group;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_to_five_and_shrinks_to_one_while_it_is_written_to() {
    let mut group = Group::start(1, 5, &[]).await;
    let load = Load::start(group.node(0), "grow");
    for i in 1..5 {
        group.join(i, i - 1, false).await;
        group.voters_are(i + 1).await;
        load.goes_on().await;
    }
    load.stop("grow", group.node(4)).await;
    group.converge().await;

    let load = Load::start(group.node(4), "shrink");
    for _ in 0..4 {
        // The leader if it is not the last one, asked by somebody else.
        let leader = group.leader().await;
        let goes = if leader == 4 { *group.nodes.keys().next().unwrap() } else { leader };
        group.remove(goes, 4).await;
        load.goes_on().await;
    }
    load.stop("shrink", group.node(4)).await;
    assert_eq!(group.members(4).len(), 1);
    assert!(group.node(4).is_leader());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_costs_no_quorum_until_it_has_caught_up() {
    let mut group = Group::start(1, 2, &[]).await;
    group.change(0, group.addition(1, false)).await;
    let added = &group.members(0)[..];
    let added = added.iter().find(|member| member.id != group.id(0)).unwrap();
    assert!(!added.is_learner && added.name.is_empty(), "{added:?}");
    // In etcd two voters of which one does not run write nothing.
    must_put(group.node(0), "alone", b"v").await;
    let settings = group.settings(1, &[0, 1], &["--initial-cluster-state=existing"]);
    let node = Node::start(settings).await.unwrap();
    within("a new member is ready", node.wait_ready()).await.unwrap();
    group.nodes.insert(1, node);
    group.voters_are(2).await;
    assert_eq!(get(group.node(1), "alone").await.unwrap(), b"v");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_is_promoted_once_it_is_in_sync() {
    let mut group = Group::start(1, 3, &[]).await;
    for i in 0..50 {
        must_put(group.node(0), &format!("k{i}"), b"v").await;
    }
    let refused = |error| ChangeError::Refused(error);
    let id = group.change(0, group.addition(1, true)).await;
    let promotion = MemberChange::Promote { id };
    let early = group.node(0).change_members(&Caller::Inside, &promotion).await.unwrap_err();
    assert_eq!(early, refused(MemberRefusal::LearnerNotReady), "it was never started");
    let second =
        group.node(0).change_members(&Caller::Inside, &group.addition(2, true)).await.unwrap_err();
    assert_eq!(second, refused(MemberRefusal::TooManyLearners));

    let settings = group.settings(1, &[0, 1], &["--initial-cluster-state=existing"]);
    group.nodes.insert(1, Node::start(settings).await.unwrap());
    within("a learner is ready", group.node(1).wait_ready()).await.unwrap();
    eventually("it knows that it is a learner", || group.node(1).is_learner()).await;
    // Through the learner itself: it forwards.
    assert_eq!(group.change(1, promotion.clone()).await, id);
    group.voters_are(2).await;
    eventually("it knows that it votes", || !group.node(1).is_learner()).await;
    let again = group.node(1).change_members(&Caller::Inside, &promotion).await.unwrap_err();
    assert_eq!(again, refused(MemberRefusal::NotLearner));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_replaced_while_writes_go_on() {
    let mut group = Group::start(3, 4, &[]).await;
    let leader = group.leader().await;
    let dead = (leader + 1) % 3;
    let other = (leader + 2) % 3;
    let load = Load::start(group.node(other), "replace");
    load.goes_on().await;
    let id = group.id(dead);
    drop(group.nodes.remove(&dead).unwrap());
    group.change(other, MemberChange::Remove { id }).await;
    group.join(3, other, false).await;
    group.voters_are(3).await;
    load.goes_on().await;
    load.stop("replace", group.node(3)).await;
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_can_be_removed_as_soon_as_another_is_there() {
    let mut group = Group::start(1, 2, &[]).await;
    group.join(1, 0, false).await;
    // The new one is listed, and need not vote yet.
    group.remove(0, 0).await;
    assert_eq!(group.members(1).len(), 1);
    assert_eq!(group.leader().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_disturbs_nobody_and_never_starts_again() {
    let mut group = Group::start(3, 3, &[]).await;
    let leader = group.leader().await;
    let gone = (leader + 1) % 3;
    let id = group.id(gone);
    // It is down while it is removed, so that it cannot know.
    within("a member stops", group.nodes.remove(&gone).unwrap().shutdown()).await;
    group.change(leader, MemberChange::Remove { id }).await;
    let again =
        group.node(leader).change_members(&Caller::Inside, &MemberChange::Remove { id }).await;
    assert_eq!(again, Err(ChangeError::Refused(MemberRefusal::NotFound)));
    let term = group.node(leader).status().term;

    let settings = group.settings(gone, &[0, 1, 2], &[]);
    let back = start_again(&settings).await.unwrap();
    within("it hears that it was removed", back.removed()).await;
    within("it stops", back.shutdown()).await;
    drop(back);
    must_put(group.node(leader), "undisturbed", b"v").await;
    assert_eq!(group.node(leader).status().term, term);

    // Every call in its name is refused.
    let endpoint = Endpoint::from_shared(group.url(leader)).unwrap();
    let mut peer = PeerClient::new(endpoint.connect_lazy());
    let to = group.id(leader);
    let sender = Some(Sender { cluster_id: group.node(leader).cluster_id(), from: id, to });
    let vote = peer.pre_vote(VoteRequest { sender, ..VoteRequest::default() }).await;
    let read = peer.read_index(ReadIndexRequest { sender }).await;
    for status in [vote.map(drop).unwrap_err(), read.map(drop).unwrap_err()] {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("permanently removed"), "{status}");
    }
}

/// It hears of its removal though it would miss its leader only much later, and keeps nobody waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_removed_hears_of_it_and_refuses_at_once() {
    let mut group = Group::start(3, 3, &["--election-timeout=20000"]).await;
    let leader = group.leader().await;
    let gone = (leader + 1) % 3;
    let id = group.id(gone);
    let node = group.nodes.remove(&gone).unwrap();
    group.change(leader, MemberChange::Remove { id }).await;
    within("it hears that it was removed", node.removed()).await;
    assert!(node.has_leader(), "it is told, and has not missed its leader");
    // Nobody is kept waiting for as long as a request may take.
    let refused = within("a write is refused", node.propose(put("late", b"v"))).await;
    assert_eq!(refused.unwrap_err(), ProposeError::Stopped);
    let refused = within("so is a read", node.read_barrier()).await;
    assert_eq!(refused, Err(ReadIndexError::Stopped));
    within("it stops", node.shutdown()).await;
    must_put(group.node(leader), "undisturbed", b"v").await;
}

/// Who has started counts at once, though the leader is the last to apply that it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_ready_counts_as_started() {
    for _ in 0..8 {
        let mut group = Group::start(1, 3, &[]).await;
        group.join(1, 0, false).await;
        group.join(2, 0, false).await;
        for node in std::mem::take(&mut group.nodes).into_values() {
            within("a member stops", node.shutdown()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_knows_of_its_removal_refuses_to_start() {
    let mut group = Group::start(1, 2, &[]).await;
    group.join(1, 0, true).await;
    group.remove(1, 0).await;
    let settings = group.settings(1, &[0, 1], &["--initial-cluster-state=existing"]);
    let refused = start_again(&settings).await.map(drop).unwrap_err();
    assert!(matches!(&refused, StartError::Bootstrap(BootstrapError::Removed { .. })), "{refused}");
    let id = group.id(0);
    assert!(matches!(
        group.node(0).change_members(&Caller::Inside, &MemberChange::Remove { id }).await,
        Err(ChangeError::Refused(MemberRefusal::NotEnoughStarted))
    ));
    let settings = group.settings(1, &[0, 1], &["--initial-cluster-state=existing"]);
    eventually("the directory is let go", || {
        let dir = group.data_dir(1);
        std::fs::remove_dir_all(&dir).is_ok() || !dir.exists()
    })
    .await;
    let refused = start_again(&settings).await.map(drop).unwrap_err();
    assert!(
        matches!(&refused, StartError::Bootstrap(BootstrapError::NotAMember { .. })),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_moves_to_another_port() {
    let mut group = Group::start(3, 4, &[]).await;
    let leader = group.leader().await;
    let moves = (leader + 1) % 3;
    let id = group.id(moves);
    let update = MemberChange::Update { id, peer_urls: vec![group.url(3)] };
    group.change(leader, update.clone()).await;
    within("a member stops", group.nodes.remove(&moves).unwrap().shutdown()).await;
    let taken = MemberChange::Update { id, peer_urls: vec![group.url(leader)] };
    let refused = group.node(leader).change_members(&Caller::Inside, &taken).await.unwrap_err();
    assert_eq!(refused, ChangeError::Refused(MemberRefusal::PeerUrlExists));
    must_put(group.node(leader), "meanwhile", b"v").await;

    group.ports.swap(moves, 3);
    let node = start_again(&group.settings(moves, &[0, 1, 2], &[])).await.unwrap();
    within("a moved member is ready", node.wait_ready()).await.unwrap();
    group.nodes.insert(moves, node);
    assert_eq!(get(group.node(moves), "meanwhile").await.unwrap(), b"v");
    // It can lead from there, so the others reach it and it them.
    group.hand_over(moves).await;
    must_put(group.node(leader), "there", b"v").await;
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_rules_protect_the_quorum() {
    let mut group = Group::start(3, 4, &[]).await;
    let leader = group.leader().await;
    let (down, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (down_id, other_id) = (group.id(down), group.id(other));
    within("a member stops", group.nodes.remove(&down).unwrap().shutdown()).await;
    let refusal = async |change: MemberChange| loop {
        match group.node(other).change_members(&Caller::Inside, &change).await.unwrap_err() {
            ChangeError::Refused(refusal) => return refusal,
            ChangeError::Timeout => {}
            error => panic!("{change:?}: {error}"),
        }
    };
    // At once: that it was heard a moment ago does not count.
    assert_eq!(refusal(group.addition(3, false)).await, MemberRefusal::Unhealthy);
    let needed = MemberChange::Remove { id: other_id };
    assert_eq!(refusal(needed).await, MemberRefusal::Unhealthy);
    let gone = MemberChange::Remove { id: down_id };
    group.change(other, gone).await;
    must_put(group.node(leader), "goes on", b"v").await;
}

/// etcd's update made a learner a voter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_changes_nothing_but_the_urls() {
    let group = Group::start(1, 3, &[]).await;
    let added = group.change(0, group.addition(1, true)).await;
    let before = group.members(0);
    assert!(before.iter().any(|member| member.id == added && member.is_learner), "{before:?}");
    let peer_urls = vec![group.url(2)];
    let update = MemberChange::Update { id: added, peer_urls: peer_urls.clone() };
    assert_eq!(group.change(0, update).await, added);
    let expected = before.into_iter().map(|member| match member.id == added {
        true => MemberInfo { peer_urls: peer_urls.clone(), ..member },
        false => member,
    });
    assert_eq!(group.members(0), expected.collect::<Vec<_>>());
    let membership = group.node(0).reader().membership();
    let voters: Vec<u64> = membership.membership().voter_ids().collect();
    assert_eq!(voters, [group.id(0)], "it votes no more than before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_goes_on_alone_after_a_lost_quorum() {
    let mut group = Group::start(3, 4, &[]).await;
    let leader = group.leader().await;
    for i in 0..20 {
        must_put(group.node(leader), &format!("k{i}"), b"v").await;
    }
    group.converge().await;
    let survivor = (leader + 1) % 3;
    let others = [leader, (leader + 2) % 3];
    let ids = others.map(|i| group.id(i));
    for i in [survivor, others[0], others[1]] {
        within("a member stops", group.nodes.remove(&i).unwrap().shutdown()).await;
    }
    let settings = group.settings(survivor, &[0, 1, 2], &["--force-new-cluster"]);
    let node = within("it starts alone", start_again(&settings)).await.unwrap();
    within("it serves alone", node.wait_ready()).await.unwrap();
    group.nodes.insert(survivor, node);
    assert_eq!(group.members(survivor).len(), 1);
    for i in 0..20 {
        assert!(get(group.node(survivor), &format!("k{i}")).await.is_some());
    }
    must_put(group.node(survivor), "alone", b"v").await;

    // Another of them comes back: it is told that it does not belong here any more.
    let back = start_again(&group.settings(others[0], &[0, 1, 2], &[])).await.unwrap();
    within("it hears that it was removed", back.removed()).await;
    within("it stops", back.shutdown()).await;
    // The flag may stay, and the cluster grows again.
    within("it stops", group.nodes.remove(&survivor).unwrap().shutdown()).await;
    let settings = group.settings(survivor, &[0, 1, 2], &["--force-new-cluster"]);
    let node = within("it starts again", start_again(&settings)).await.unwrap();
    within("it serves again", node.wait_ready()).await.unwrap();
    group.nodes.insert(survivor, node);
    group.join(3, survivor, false).await;
    group.voters_are(2).await;
    assert!(group.members(3).iter().all(|member| !ids.contains(&member.id)));
    assert!(get(group.node(3), "alone").await.is_some());
}

/// Applies to the state of a stopped member, behind raft's back, what the log does not hold.
async fn diverge(settings: &Settings) {
    let options = StoreOptions { engine: EngineKind::Rocks(RocksOptions::default()) };
    let mut opened = None;
    // The member may still be letting go of its files.
    eventually("the state can be opened", || {
        opened = StateStore::open(&settings.state_dir(), options, Box::new(())).ok();
        opened.is_some()
    })
    .await;
    let (mut machine, reader) = opened.unwrap();
    let last = reader.applied().unwrap();
    let log_id = LogId::new(last.leader_id, last.index + 1);
    let commands = vec![put("k", b"another value")];
    let batch = internal::Batch { proposer: 7, sequence: 1, commands, proposed_unix_ms: 0 };
    let payload = EntryPayload::Normal(Batch { bytes: batch.encode_to_vec().into() });
    let entry = Entry { log_id, payload };
    machine.apply(futures::stream::iter([Ok((entry, None))])).await.unwrap();
    reader.flush().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_another_state_is_fenced_at_the_next_compaction() {
    let first = "--feature-gates=InitialCorruptCheck=true";
    for flags in [&[][..], &["--corrupt-check-time=200ms"], &[first]] {
        let mut group = Group::start(3, 3, flags).await;
        let leader = group.leader().await;
        must_put(group.node(leader), "k", b"v").await;
        group.converge().await;
        let ill = (leader + 1) % 3;
        within("a member stops", group.nodes.remove(&ill).unwrap().shutdown()).await;
        let settings = group.settings(ill, &[0, 1, 2], &[]);
        diverge(&settings).await;
        let revision = must_put(group.node(leader), "k", b"a value").await.revision;
        let node = within("it starts", start_again(&settings)).await.unwrap();
        if flags.is_empty() {
            within("it is ready", node.wait_ready()).await.unwrap();
            let compaction = CompactionRequest { revision, physical: false };
            let command = Some(command::Command::Compact(compaction));
            let compact = internal::Command { command, ..Default::default() };
            group.node(leader).propose(compact).await.unwrap().outcome.unwrap();
        }
        let reason = within("it is fenced", node.failed()).await;
        assert!(reason.contains("differs from that of most members"), "{reason}");
        drop(node);
        // The others go on, and it never comes back.
        must_put(group.node(leader), "k", b"v").await;
        let refused = start_again(&settings).await.map(drop).unwrap_err();
        assert!(matches!(refused, StartError::Log(OpenError::Lost { .. })), "{refused}");
    }
}

/// One of two others that differ is right: whoever is away for a moment must be asked again before all stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_differ_wait_for_the_word_of_the_third() {
    let mut group = Group::start(3, 3, &["--feature-gates=InitialCorruptCheck=true"]).await;
    let leader = group.leader().await;
    let (ill, away) = ((leader + 1) % 3, (leader + 2) % 3);
    must_put(group.node(leader), "k", b"v").await;
    group.converge().await;
    within("a member stops", group.nodes.remove(&ill).unwrap().shutdown()).await;
    let settings = group.settings(ill, &[0, 1, 2], &[]);
    diverge(&settings).await;
    must_put(group.node(leader), "k", b"a value").await;
    group.converge().await;
    within("a member stops", group.nodes.remove(&away).unwrap().shutdown()).await;
    let node = within("it starts", start_again(&settings)).await.unwrap();
    within("it is ready", node.wait_ready()).await.unwrap();
    let settings = group.settings(away, &[0, 1, 2], &[]);
    group.nodes.insert(away, within("it is back", start_again(&settings)).await.unwrap());
    let reason = within("it is fenced", node.failed()).await;
    assert!(reason.contains("differs from that of most members"), "{reason}");
    drop(node);
    let leader = group.leader().await;
    must_put(group.node(leader), "k", b"no alarm").await;
}
