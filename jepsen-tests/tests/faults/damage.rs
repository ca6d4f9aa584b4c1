//! Bytes changed behind a stopped node's back: it refuses and says what to do, or the change was harmless; it
//! never serves what is not so.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use conclave_jepsen_tests::members;
use conclave_proto::etcdserverpb::RangeRequest;
use conclave_proto::mvccpb;

use crate::support::{Nodes, START_TIMEOUT, change};

const POLL: Duration = Duration::from_millis(20);
const VICTIM: usize = 1;
const KEYS: usize = 60;
const VALUE_BYTES: usize = 600;
/// Where a log segment's records begin.
const HEADER_BYTES: usize = 512;
/// Before a record's body, and two of its fields.
const RECORD_HEADER_BYTES: usize = 32;
const BODY_BYTES: Range<usize> = 4..8;
const SEQUENCE: Range<usize> = 16..24;

fn key(index: usize) -> String {
    format!("k{index:03}")
}

/// Different bytes for every key and round, hard to compress.
fn value(index: usize, round: usize) -> Vec<u8> {
    let mut state = (index as u64 * 2 + round as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(VALUE_BYTES).collect()
}

async fn fill(nodes: &Nodes, node: usize, round: usize) -> i64 {
    let client = nodes.client(node).await;
    let mut revision = 0;
    for index in 0..KEYS {
        revision = client.insist(&key(index), &value(index, round)).await;
    }
    revision
}

/// Where in a file a value of [`fill`] lies.
fn position(file: &Path, value: &[u8]) -> usize {
    let bytes = std::fs::read(file).expect("a file");
    bytes.windows(value.len()).position(|window| window == value).expect("the value")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_log_is_refused_with_advice() {
    let mut nodes = Nodes::serving(3, &[]).await;
    fill(&nodes, VICTIM, 0).await;
    nodes.cluster.kill(VICTIM).expect("it can be killed");
    let segment = nodes.segments(VICTIM)[0].clone();
    // In a record, not between two: the bytes that align them mean nothing.
    let middle = position(&segment, &value(KEYS / 2, 0));
    change(&segment, |bytes| bytes[middle] ^= 0x40);

    nodes.cluster.start(VICTIM).expect("the program starts");
    nodes.fails(VICTIM);
    let words = nodes.last_words(VICTIM);
    let begin = format!("raft log is damaged: {} at byte ", segment.display());
    let advice = "This member must not start with it: remove it from the cluster, delete its data directory \
                  and add it as a new member";
    assert!(words.starts_with(&begin) && words.ends_with(advice), "{words}");
    assert!(words.contains("is unreadable, but was durable"), "{words}");
    nodes.client(0).await.insist("k-others", b"two of three go on").await;

    // Nothing was changed by the refusal: with the byte as it was, the member is as it was.
    change(&segment, |bytes| bytes[middle] ^= 0x40);
    nodes.cluster.start(VICTIM).expect("the program starts");
    nodes.serves(VICTIM).await;
    assert_eq!(nodes.client(VICTIM).await.keys("k").await.expect("an answer").1.len(), KEYS + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_last_record_is_cut_off_with_a_warning_and_written_again() {
    let mut nodes = Nodes::serving(3, &[]).await;
    fill(&nodes, VICTIM, 0).await;
    for torn_bytes in [RECORD_HEADER_BYTES, 200, VALUE_BYTES] {
        nodes.cluster.kill(VICTIM).expect("it can be killed");
        let segment = nodes.segments(VICTIM)[0].clone();
        let mut offset = 0;
        // The beginning of the record that would have come next. The last whole one was acknowledged, so a disk
        // that keeps its promises cannot tear it.
        change(&segment, |bytes| {
            let records = records(bytes);
            let last = records.last().expect("records");
            let sequence = &bytes[last.start + SEQUENCE.start..last.start + SEQUENCE.end];
            let next = u64::from_le_bytes(sequence.try_into().expect("eight bytes")) + 1;
            offset = last.end;
            let put = records.iter().find(|record| record.len() > VALUE_BYTES).expect("a put");
            bytes.copy_within(put.start..put.start + torn_bytes, offset);
            bytes[offset + SEQUENCE.start..offset + SEQUENCE.end]
                .copy_from_slice(&next.to_le_bytes());
        });
        nodes.cluster.start(VICTIM).expect("the program starts");
        nodes.serves(VICTIM).await;
        let warning =
            "the raft log ends in a record that was never durable as a whole; cutting it off";
        let log = nodes.log(VICTIM);
        let line = log.lines().rfind(|line| line.contains(warning)).expect("a warning");
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        assert_eq!(
            (line["level"].as_str(), line["offset"].as_u64()),
            (Some("warn"), Some(offset as u64))
        );
        assert_eq!(line["path"].as_str(), segment.to_str());
        assert!(line["bytes"].as_u64().is_some_and(|bytes| bytes > VALUE_BYTES as u64), "{line}");
        let client = nodes.client(VICTIM).await;
        for index in 0..KEYS {
            assert_eq!(client.get(&key(index)).await.expect("an answer"), Some(value(index, 0)));
        }
        client.insist("k-last", &value(KEYS, torn_bytes)).await;
    }
}

/// The records of a segment, found by following the lengths.
fn records(segment: &[u8]) -> Vec<Range<usize>> {
    let mut records = Vec::new();
    let mut at = HEADER_BYTES;
    loop {
        let header = &segment[at..at + RECORD_HEADER_BYTES];
        if header.iter().all(|&byte| byte == 0) {
            return records;
        }
        let body = u32::from_le_bytes(header[BODY_BYTES].try_into().expect("four bytes")) as usize;
        let end = (at + RECORD_HEADER_BYTES + body).next_multiple_of(8);
        records.push(at..end);
        at = end;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_lost_acknowledged_records_stops_and_the_others_go_on() {
    let mut nodes = Nodes::serving(3, &[]).await;
    let leader = nodes.leader().await;
    let victim = (leader + 1) % 3;
    // Through itself, so that it has all of it.
    fill(&nodes, victim, 0).await;
    nodes.cluster.kill(victim).expect("it can be killed");
    let mut others = nodes.cluster.pids();
    // Everything from the middle on is gone, as if it had never been written: nothing in the log tells.
    let segment = nodes.segments(victim)[0].clone();
    let middle = position(&segment, &value(KEYS / 2, 0)) - RECORD_HEADER_BYTES;
    change(&segment, |bytes| bytes[middle..].fill(0));

    // At the second start by what it noted at the first, whoever leads then.
    for _ in 0..2 {
        nodes.cluster.start(victim).expect("the program starts");
        nodes.fails(victim);
        let words = nodes.last_words(victim);
        let advice =
            "remove it from the cluster, delete its data directory and add it as a new member";
        assert!(words.contains("lost records") && words.ends_with(advice), "{words}");
        assert!(words.contains("knows that this member had acknowledged entry"), "{words}");
    }
    nodes.client(leader).await.insist("k-others", b"two of three go on").await;
    let mut pids = nodes.cluster.pids();
    others.sort_unstable();
    pids.sort_unstable();
    assert_eq!(pids, others, "no healthy member ended");
    nodes.says(leader, "a member lost records and stops").await;
    for node in [leader, (leader + 2) % 3] {
        assert!(!nodes.log(node).contains("panicked"), "{}", nodes.log(node));
        let (_, keys) = nodes.client(node).await.keys("k").await.expect("an answer");
        assert_eq!(keys.len(), KEYS + 1);
    }
}

/// What is stored at each revision of a node with two rounds of puts.
struct Truth {
    first: i64,
    last: i64,
}

impl Truth {
    /// Asks for every key at the end of both rounds; `Err` is the refusal or silence of the node.
    async fn check(&self, nodes: &Nodes) -> anyhow::Result<()> {
        for (round, revision) in [(0, self.first), (1, self.last)] {
            let request = RangeRequest {
                key: "k".into(),
                range_end: "l".into(),
                revision,
                serializable: true,
                ..Default::default()
            };
            let found = nodes.client(0).await.kv().range(request).await?.into_inner();
            let value_of = |kv: &mvccpb::KeyValue| (kv.key.to_vec(), kv.value.to_vec());
            let found: BTreeMap<_, _> = found.kvs.iter().map(value_of).collect();
            let wanted = (0..KEYS).map(|index| (key(index).into_bytes(), value(index, round)));
            assert!(found.into_iter().eq(wanted), "wrong data at revision {revision}");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_state_never_becomes_a_wrong_answer() {
    let mut nodes = Nodes::serving(1, &[]).await;
    let truth = Truth { first: fill(&nodes, 0, 0).await, last: fill(&nodes, 0, 1).await };
    truth.check(&nodes).await.expect("sound answers");
    nodes.cluster.terminate(0, START_TIMEOUT).expect("it ends well");
    let kept = tempfile::tempdir().expect("a directory");
    let state = nodes.data_dir(0).join("state");
    copy(&state, kept.path());
    let (mut refused, mut stopped, mut harmless) = (0, 0, 0);
    for table in nodes.tables(0) {
        let bytes = std::fs::metadata(&table).expect("a table").len() as usize;
        // Keys and values, then filters, indexes and properties, then the footer.
        for at in [bytes / 3, bytes * 2 / 3, bytes * 9 / 10, bytes - 30] {
            change(&table, |bytes| bytes[at] ^= 0x01);
            nodes.cluster.start(0).expect("the program starts");
            match outcome(&mut nodes, &truth).await {
                Outcome::Refused => refused += 1,
                Outcome::Stopped => stopped += 1,
                Outcome::Harmless => harmless += 1,
            }
            nodes.cluster.kill(0).expect("it can be killed");
            // The log brings the state up to date again.
            std::fs::remove_dir_all(&state).expect("the damaged state");
            copy(&kept.path().join("state"), nodes.data_dir(0));
        }
    }
    println!("{refused} refused at the start, {stopped} found when read, {harmless} harmless");
    assert!(refused > 0, "a damaged table must be noticed");
    nodes.cluster.start(0).expect("the program starts");
    nodes.serves(0).await;
    truth.check(&nodes).await.expect("sound answers");
}

/// Copies `from` into the directory `to`.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "{status}");
}

enum Outcome {
    /// It did not start, with advice.
    Refused,
    /// It started, and stopped with advice when it met the damage.
    Stopped,
    /// Everything reads as it should.
    Harmless,
}

async fn outcome(nodes: &mut Nodes, truth: &Truth) -> Outcome {
    let advice = "add it again as a new member, or restore a backup if it is the only one";
    let endpoints = nodes.cluster.endpoints();
    let serving = members::wait_until_serving(&endpoints, START_TIMEOUT);
    let ended = async {
        while nodes.cluster.reap_dead().expect("a process").is_empty() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::select! {
        served = serving => served.expect("it serves or ends"),
        () = ended => {
            let words = nodes.last_words(0);
            assert!(words.contains("is damaged") && words.ends_with(advice), "{words}");
            return Outcome::Refused;
        }
    }
    match truth.check(nodes).await {
        Ok(()) => Outcome::Harmless,
        Err(_) => {
            nodes.fails(0);
            let words = nodes.last_words(0);
            assert!(words.contains("is damaged") && words.ends_with(advice), "{words}");
            Outcome::Stopped
        }
    }
}
