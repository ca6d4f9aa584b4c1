//! Bytes that no client sends, on the client port and on the peer port: the node goes on serving, within its
//! memory, and nothing panics.

use std::time::Duration;

use conclave_benches::process::Usage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Client, Nodes, START_TIMEOUT, eventually, is_long, sample, skipped};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// What a node may keep for all of these connections together.
const MEMORY_BYTES_MAX: u64 = 192 << 20;
const ANSWER_PATIENCE: Duration = Duration::from_millis(20);
const PUT: &str = "/etcdserverpb.KV/Put";
const APPEND: &str = "/conclave.internal.v1.Peer/Append";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("small").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The head of a gRPC call: literal header fields without indexing.
fn head(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "127.0.0.1"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend(text.bytes());
        }
    }
    block
}

/// A connection with its settings sent and one call begun.
fn begun(path: &str) -> Vec<u8> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    [PREFACE, &settings, &frame(HEADERS, END_HEADERS, 1, &head(path))].concat()
}

/// A message of gRPC that says it is `length` bytes long.
fn message(length: u32, body: &[u8]) -> Vec<u8> {
    [&[0][..], &length.to_be_bytes(), body].concat()
}

fn noise(rng: &mut StdRng, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rng.fill_bytes(&mut noise);
    noise
}

/// Everything one hostile connection sends.
fn attack(kind: usize, path: &str, rng: &mut StdRng) -> Vec<u8> {
    match kind {
        0 => noise(rng, 4096),
        1 => [PREFACE, &noise(rng, 4096)].concat(),
        // A frame of 16 MiB, of which nothing comes.
        2 => [PREFACE, &[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]].concat(),
        // A message of 4 GiB, of which little comes.
        3 => [begun(path), frame(DATA, 0, 1, &message(u32::MAX, &noise(rng, 1000)))].concat(),
        // A message whose first field is longer than the message; the call ends.
        4 => [begun(path), frame(DATA, 1, 1, &message(3, &[0x0a, 0xff, 0x7f]))].concat(),
        // A message cut short by the end of the call.
        5 => [begun(path), frame(DATA, 1, 1, &message(1000, &noise(rng, 10)))].concat(),
        // Noise as a message, well framed.
        6 => [begun(path), frame(DATA, 1, 1, &message(64, &noise(rng, 64)))].concat(),
        // Half a request.
        7 => b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Le".to_vec(),
        8 => b"GET /health HTTP/1.1\r\nHost: ".repeat(3000),
        9 => b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\nabc".to_vec(),
        // Half a head, continued for ever.
        10 => {
            let begin =
                [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, &head(path))].concat();
            [begin, frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b").repeat(5000)].concat()
        }
        // Empty frames without end.
        11 => [begun(path), frame(DATA, 0, 1, &[]).repeat(20_000)].concat(),
        12 => [begun(path), frame(PING, 0, 0, b"12345678").repeat(5000)].concat(),
        // Calls begun and reset at once.
        13 => {
            let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
            for stream in (1..4000).step_by(2) {
                bytes.extend(frame(HEADERS, END_HEADERS, stream, &head(path)));
                bytes.extend(frame(RESET, 0, stream, &8u32.to_be_bytes()));
            }
            bytes
        }
        // Settings out of range, a frame on stream 0, a head that is no HPACK.
        14 => [PREFACE, &frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])].concat(),
        15 => [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(DATA, 0, 0, b"x")].concat(),
        _ => [
            PREFACE,
            &frame(SETTINGS, 0, 0, &[]),
            &frame(HEADERS, END_HEADERS, 1, &noise(rng, 500)),
        ]
        .concat(),
    }
}

const KINDS: usize = 17;

/// Sends one attack and keeps the connection open.
async fn strike(port: u16, bytes: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    // The node may hang up in the middle, or not read on: both are its right.
    let sent = tokio::time::timeout(ANSWER_PATIENCE, stream.write_all(bytes)).await;
    if let Ok(Err(_)) = sent {
        return None;
    }
    let mut answer = [0; 4096];
    match tokio::time::timeout(ANSWER_PATIENCE, stream.read(&mut answer)).await {
        Ok(Ok(0) | Err(_)) => None,
        Ok(Ok(_)) | Err(_) => Some(stream),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_through_garbage_on_both_its_ports() {
    let nodes = Nodes::serving(3, &[]).await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let rounds = if is_long() { 100 } else { 3 };
    let pids = nodes.cluster.pids();
    let before: Vec<u64> =
        pids.iter().map(|&pid| Usage::of(pid).expect("it runs").rss_bytes).collect();
    let mut open = Vec::new();
    let honest = [nodes.client(0).await, nodes.client(1).await, nodes.client(2).await];
    for round in 0..rounds {
        for kind in 0..KINDS {
            for node in nodes.cluster.nodes() {
                for (port, path) in [(node.client_port(), PUT), (node.peer_port(), APPEND)] {
                    open.extend(strike(port, &attack(kind, path, &mut rng)).await);
                }
            }
            for (node, client) in honest.iter().enumerate() {
                let key = format!("k-{round}-{kind}-{node}");
                client.insist(&key, b"v").await;
            }
        }
    }
    println!("{} connections are still open", open.len());
    for (node, (&pid, &before)) in pids.iter().zip(&before).enumerate() {
        let now = Usage::of(pid).expect("it runs").rss_bytes;
        println!("node {node}: {} MiB, {} MiB before", now >> 20, before >> 20);
        assert!(now < before + MEMORY_BYTES_MAX, "node {node}: {before} bytes, then {now}");
        assert!(!nodes.log(node).contains("panicked"), "{}", nodes.log(node));
    }
    let (_, keys) = nodes.client(0).await.keys("k").await.expect("an answer");
    assert_eq!(keys.len(), rounds * KINDS * 3);
    assert_eq!(nodes.cluster.pids(), pids);
}

/// Connections that never finish their first line do not keep others out, and are hung up on; one that is idle
/// is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_connections_keep_nobody_out() {
    const PEERS: usize = 100;
    let nodes = Nodes::serving(1, &[]).await;
    let node = &nodes.cluster.nodes()[0];
    let idle = nodes.client(0).await;
    idle.insist("k", b"before").await;
    let (mut slow, mut most_open) = (Vec::new(), 0.0_f64);
    for (port, count) in [(node.client_port(), 1000), (node.peer_port(), PEERS)] {
        for _ in 0..count {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
            stream.write_all(b"PRI * HT").await.expect("it is read");
            slow.push(stream);
            if slow.len() % 250 == 0 {
                most_open = most_open.max(sample(node.client_port(), "process_open_fds").await);
            }
        }
    }
    nodes.client(0).await.insist("k", b"meanwhile").await;
    assert!(most_open >= 200.0, "{most_open} descriptors");
    for mut stream in slow {
        let mut said = Vec::new();
        let ended = tokio::time::timeout(START_TIMEOUT, stream.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "a silent connection stays");
    }
    for (port, least) in [("client", 1000), ("peer", PEERS)] {
        let name = format!("conclave_rpc_silent_connections_total{{port=\"{port}\"}}");
        let count = sample(node.client_port(), &name).await as usize;
        assert!(count >= least, "{count} of {least} were counted on the {port} port");
    }
    idle.put("k", "after").await.expect("an idle connection stays");
}

/// How many descriptors a process has open.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

/// A process may have no more than this many descriptors from now on.
fn limit_descriptors(pid: u32, count: usize) -> bool {
    let arguments = [format!("--pid={pid}"), format!("--nofile={count}:")];
    let ended = std::process::Command::new("prlimit").args(arguments).status();
    ended.is_ok_and(|status| status.success())
}

/// An accept that fails is no reason to accept no more (RUSTSEC-2024-0376).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_out_of_descriptors_serves_again_when_some_return() {
    const SPARE: usize = 12;
    let nodes = Nodes::serving(1, &[]).await;
    let before = nodes.client(0).await;
    before.insist("k", b"before").await;
    let pid = nodes.cluster.pids()[0];
    if !limit_descriptors(pid, descriptors(pid) + SPARE) {
        return skipped("a_node_out_of_descriptors", "prlimit does not run");
    }
    for port in [nodes.cluster.nodes()[0].client_port(), nodes.cluster.nodes()[0].peer_port()] {
        let mut open = Vec::new();
        for _ in 0..SPARE * 4 {
            open.push(TcpStream::connect(("127.0.0.1", port)).await.expect("the system accepts"));
        }
        eventually("the node says that it cannot accept", START_TIMEOUT, async || {
            nodes.log(0).contains("cannot accept a connection")
        })
        .await;
        before.insist("k", b"meanwhile").await;
        drop(open);
        let fresh = async || match Client::open(&nodes.endpoint(0)).await {
            Ok(client) => client.put("k", "after").await.is_ok(),
            Err(_) => false,
        };
        eventually("new clients are served", START_TIMEOUT, fresh).await;
    }
    assert!(!nodes.log(0).contains("panicked"), "{}", nodes.log(0));
    assert_eq!(nodes.cluster.pids(), [pid]);
}
