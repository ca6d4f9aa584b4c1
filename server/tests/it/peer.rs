//! What a member lets other members do: calls are sent by hand, as a wrong or hostile one would.

use conclave_proto::internal::peer_client::PeerClient;
use conclave_proto::internal::{
    AppendRequest, ChangeMembersRequest, LeaseRemainingRequest, LeaseRenewRequest, LogId, Member,
    Membership, ProposeRequest, ReadIndexRequest, Sender, SnapshotChunk, SnapshotData,
    SnapshotFile, SnapshotHeader, SnapshotMeta, StagedSnapshotRequest, TransferLeaderRequest, Vote,
    VoteRequest, VoterSet, append_response, snapshot_chunk,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::cluster::{Cluster, eventually, must_put, start_again, within};

type Client = PeerClient<Channel>;

/// What the file of an offered snapshot holds.
const TEN_BYTES: &[u8] = b"0123456789";

fn client(cluster: &Cluster, i: usize) -> Client {
    PeerClient::new(Endpoint::from_shared(cluster.peer_url(i)).unwrap().connect_lazy())
}

fn sender(cluster: &Cluster, from: usize, to: usize) -> Sender {
    Sender {
        cluster_id: cluster.node(to).cluster_id(),
        from: cluster.node(from).member_id(),
        to: cluster.node(to).member_id(),
    }
}

/// The refusals of every call that names its sender.
async fn refusals(mut client: Client, sender: Option<Sender>) -> Vec<Status> {
    let vote = Some(Vote { term: 1_000, leader: 1, committed: true });
    let append = AppendRequest { sender, vote, ..AppendRequest::default() };
    let election = VoteRequest { sender, vote, ..VoteRequest::default() };
    let transfer = TransferLeaderRequest { sender, ..TransferLeaderRequest::default() };
    let header = SnapshotHeader { sender, vote, ..SnapshotHeader::default() };
    let header = SnapshotChunk { chunk: Some(snapshot_chunk::Chunk::Header(header)) };
    let propose = ProposeRequest { sender, ..ProposeRequest::default() };
    let renew = LeaseRenewRequest { sender, ..LeaseRenewRequest::default() };
    let remaining = LeaseRemainingRequest { sender, ..LeaseRemainingRequest::default() };
    let stream = client.stream_append(tokio_stream::iter([append.clone()])).await;
    let stream = match stream {
        Ok(answers) => answers.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    let proposals = client.stream_propose(tokio_stream::iter([propose])).await;
    let proposals = match proposals {
        Ok(answers) => answers.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    let answers = [
        stream,
        proposals,
        client.append(append).await.map(drop),
        client.vote(election).await.map(drop),
        client.pre_vote(election).await.map(drop),
        client.transfer_leader(transfer).await.map(drop),
        client.install_snapshot(tokio_stream::iter([header])).await.map(drop),
        client.staged_snapshot(StagedSnapshotRequest { sender }).await.map(drop),
        client.read_index(ReadIndexRequest { sender }).await.map(drop),
        client.lease_renew(renew).await.map(drop),
        client.lease_remaining(remaining).await.map(drop),
        client
            .change_members(ChangeMembersRequest { sender, change: None, caller: None })
            .await
            .map(drop),
    ];
    answers.into_iter().map(Result::unwrap_err).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_by_every_call() {
    let cluster = Cluster::start(3, &[]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let term = cluster.node(follower).status().term;
    let right = sender(&cluster, leader, follower);
    let wrong = [
        (None, Code::InvalidArgument),
        (Some(Sender { cluster_id: right.cluster_id ^ 1, ..right }), Code::FailedPrecondition),
        (Some(Sender { to: right.from, ..right }), Code::FailedPrecondition),
        (Some(Sender { from: right.to, ..right }), Code::FailedPrecondition),
    ];
    for (sender, code) in wrong {
        let refused = within("refusals", refusals(client(&cluster, follower), sender)).await;
        for status in refused {
            assert_eq!(status.code(), code, "{sender:?}: {status}");
        }
    }
    must_put(cluster.node(follower), "still", b"working").await;
    assert_eq!(cluster.node(follower).status().term, term, "nobody was believed");
}

/// An append without entries, as the leader's heartbeats are, that begins behind everything there is.
fn beyond(cluster: &Cluster, leader: usize, to: usize) -> AppendRequest {
    let term = cluster.node(leader).status().term;
    AppendRequest {
        sender: Some(sender(cluster, leader, to)),
        vote: Some(Vote { term, leader: cluster.node(leader).member_id(), committed: true }),
        prev_log_id: Some(LogId { term, leader: 0, index: 1_000_000 }),
        ..AppendRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lacks_what_it_acknowledged_stops_and_never_starts_again() {
    for by_stream in [false, true] {
        let mut cluster = Cluster::start(3, &[]).await;
        let (leader, follower) = (cluster.leader().await, cluster.follower().await);
        let mut peer = client(&cluster, follower);
        let asked = beyond(&cluster, leader, follower);
        // A leader that only looks for the begin of what is missing hears so.
        let answer = within("an answer", peer.append(asked.clone())).await.unwrap().into_inner();
        assert_eq!(answer.result, Some(append_response::Result::Conflict(true)));

        let asked = AppendRequest { prev_is_acknowledged: true, ..asked };
        let lost = if by_stream {
            let answers = within("a stream", peer.stream_append(tokio_stream::iter([asked]))).await;
            within("an answer", answers.unwrap().into_inner().message()).await.unwrap_err()
        } else {
            within("an answer", peer.append(asked)).await.unwrap_err()
        };
        assert_eq!(lost.code(), Code::DataLoss, "{lost}");
        let reason = within("the end", cluster.node(follower).failed()).await;
        assert!(reason.contains("lost records") && reason.contains("1000000"), "{reason}");
        assert!(reason.ends_with("add it as a new member"), "{reason}");

        cluster.crash(follower);
        let settings = cluster.settings(follower, "new");
        let refused = start_again(&settings).await.map(drop).unwrap_err();
        assert_eq!(refused.to_string(), reason);
        must_put(cluster.node(leader), "the others", b"go on").await;
    }
}

fn membership(cluster: &Cluster) -> Membership {
    let ids: Vec<u64> = (0..3).map(|i| cluster.node(i).member_id()).collect();
    let members = ids.iter().map(|id| Member { id: *id, ..Member::default() });
    Membership { members: members.collect(), configs: vec![VoterSet { ids }] }
}

/// What the leader would send to begin a snapshot that ends at `index`.
fn header(cluster: &Cluster, leader: usize, to: usize, index: u64) -> SnapshotChunk {
    let term = cluster.node(leader).status().term;
    let header = SnapshotHeader {
        sender: Some(sender(cluster, leader, to)),
        vote: Some(Vote { term, leader: cluster.node(leader).member_id(), committed: true }),
        meta: Some(SnapshotMeta {
            last_log_id: Some(LogId { term, leader: 0, index }),
            membership_log_id: None,
            membership: Some(membership(cluster)),
        }),
        files: vec![SnapshotFile { name: "1.sst".to_owned(), size: 10, kept: 0 }],
    };
    SnapshotChunk { chunk: Some(snapshot_chunk::Chunk::Header(header)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_what_the_log_contains_is_done_without_installing() {
    let cluster = Cluster::start(3, &[]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let revision = must_put(cluster.node(follower), "a", b"1").await.revision;
    let index = cluster.node(follower).status().applied_index;
    // Only the header: files are not even asked for.
    let pieces = tokio_stream::iter([header(&cluster, leader, follower, index)]);
    let mut peer = client(&cluster, follower);
    let answer = within("an answer", peer.install_snapshot(pieces)).await.unwrap().into_inner();
    assert_eq!(answer.vote.unwrap().leader, cluster.node(leader).member_id());
    assert_eq!(cluster.node(follower).reader().head().revision, revision);
    must_put(cluster.node(follower), "b", b"2").await;
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_snapshot_waits_for_the_first() {
    let cluster = Cluster::start(3, &[]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let first = header(&cluster, leader, follower, 1_000_000);
    let (pieces, stream) = mpsc::channel(1);
    pieces.send(first.clone()).await.unwrap();
    let mut peer = client(&cluster, follower);
    let receiving =
        tokio::spawn(async move { peer.install_snapshot(ReceiverStream::new(stream)).await });
    let state = cluster.data_dir(follower).join("state");
    eventually("the first is being staged", || {
        let entries = std::fs::read_dir(&state).unwrap().flatten();
        entries.filter(|e| e.file_name().to_string_lossy().starts_with("db-")).count() == 2
    })
    .await;
    let mut peer = client(&cluster, follower);
    let second = peer.install_snapshot(tokio_stream::iter([first]));
    let refused = within("a refusal", second).await.unwrap_err();
    assert!(refused.message().contains("another snapshot"), "{refused}");
    assert_eq!(refused.code(), Code::Aborted);
    drop(pieces);
    let status = within("the first ends", receiving).await.unwrap().unwrap_err();
    assert!(status.message().contains("the end is missing"), "{status}");
    must_put(cluster.node(follower), "still", b"working").await;
    cluster.converge().await;
}

/// The ten bytes of the header's file as one piece, and the end.
fn data(crc32c: u32, end_crc32c: u32) -> [SnapshotChunk; 2] {
    let data = SnapshotData { file: 0, offset: 0, data: TEN_BYTES.into(), crc32c };
    let pieces = [snapshot_chunk::Chunk::Data(data), snapshot_chunk::Chunk::EndCrc32c(end_crc32c)];
    pieces.map(|chunk| SnapshotChunk { chunk: Some(chunk) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_was_damaged_on_its_way_is_not_installed() {
    let cluster = Cluster::start(3, &[]).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let revision = must_put(cluster.node(follower), "a", b"1").await.revision;
    let right = crc32c::crc32c(TEN_BYTES);
    for (crc, end, reason) in [(right ^ 1, right, "of a piece"), (right, right ^ 1, "of all data")]
    {
        let header = header(&cluster, leader, follower, 1_000_000);
        let pieces: Vec<SnapshotChunk> = [header].into_iter().chain(data(crc, end)).collect();
        let mut peer = client(&cluster, follower);
        let sent = peer.install_snapshot(tokio_stream::iter(pieces));
        let refused = within("a refusal", sent).await.unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss);
        assert!(refused.message().contains(reason), "{refused}");
    }
    assert_eq!(cluster.node(follower).reader().head().revision, revision);
    must_put(cluster.node(follower), "still", b"working").await;
    cluster.converge().await;
}
