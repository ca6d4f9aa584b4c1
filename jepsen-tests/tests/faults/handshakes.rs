//! Handshakes that begin and do not go on, thousands of them: whoever goes on is served, and every one of them
//! is ended and counted.

use std::process::Command;
use std::time::{Duration, Instant};

use conclave_benches::access::Access;
use conclave_benches::certificates::Certificates;
use conclave_benches::cluster::{Cluster, Program};
use conclave_benches::connection::Connection;
use conclave_benches::process::Usage;
use conclave_jepsen_tests::members;
use conclave_proto::etcdserverpb::PutRequest;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_testing::port::free_port;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{START_TIMEOUT, eventually, sample};

/// How many, if the system lets a process have so many descriptors.
const HALF_OPEN: usize = 10_000;
/// Descriptors for everything else.
const SPARE: usize = 512;
/// Of a port; beyond, the oldest ends.
const PENDING_MAX: usize = 4_096;
/// Between two clients that do go on.
const STEP: usize = 1_000;
/// The head of a TLS record, and of a greeting of which nothing comes.
const HALF_A_GREETING: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// Lets this process, and those it starts, have as many descriptors as the system allows, up to what is
/// needed; returns how many connections that is.
fn room_for(connections: usize) -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("the limits of a process");
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4)).expect("a hard limit");
    let hard: usize = hard.parse().unwrap_or(usize::MAX);
    let wanted = hard.min(connections + SPARE);
    let arguments = [format!("--pid={}", std::process::id()), format!("--nofile={wanted}:")];
    let is_raised = Command::new("prlimit").args(arguments).status().is_ok_and(|it| it.success());
    let soft = line.and_then(|line| line.split_whitespace().nth(3)).and_then(|it| it.parse().ok());
    let descriptors = if is_raised { wanted } else { soft.unwrap_or(SPARE * 2) };
    connections.min(descriptors.saturating_sub(SPARE))
}

/// Puts over a connection of its own; how long that took.
async fn put(endpoint: &str, access: &Access) -> Option<Duration> {
    let begun = Instant::now();
    let connection = Connection::open_by(endpoint, access).await.ok()?;
    let origin = connection.origin();
    let request = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    KvClient::with_origin(connection, origin).put(request).await.ok()?;
    Some(begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_half_open_handshakes_keep_nobody_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let certificates = Certificates::create(dir.path());
    let count = room_for(HALF_OPEN);
    let metrics_port = free_port();
    let page = format!("--listen-metrics-urls=http://127.0.0.1:{metrics_port}");
    let program = Program::new(&members::program()).with_tls(&certificates.flags());
    let program = program.with_flags(&[page]);
    let mut cluster = Cluster::create(program, dir.path(), 1).expect("free ports");
    cluster.start_all().expect("the program starts");
    let endpoint = cluster.nodes()[0].endpoint();
    let access = Access::by_tls(certificates.client()).expect("files that can be used");
    let serves = async || put(&endpoint, &access).await.is_some();
    eventually("it serves", START_TIMEOUT, serves).await;
    let before = Usage::of(cluster.pids()[0]).expect("it runs").rss_bytes;

    let (mut open, mut slowest) = (Vec::with_capacity(count), Duration::ZERO);
    for begun in 1..=count {
        let address = ("127.0.0.1", cluster.nodes()[0].client_port());
        let mut stream = TcpStream::connect(address).await.expect("the system accepts");
        // It may have been ended already, by those that came after it.
        stream.write_all(HALF_A_GREETING).await.ok();
        open.push(stream);
        if begun % STEP == 0 || begun == count {
            let took = put(&endpoint, &access).await;
            slowest = slowest.max(took.expect("whoever goes on is served"));
        }
    }
    println!("{count} half-open handshakes; the slowest new client was served in {slowest:?}");
    let ended = async |reason: &str| {
        let name = "conclave_tls_handshake_failures_total";
        let labels = format!("{{port=\"client\",reason=\"{reason}\"}}");
        sample(metrics_port, &format!("{name}{labels}")).await as usize
    };
    let crowded = count.saturating_sub(PENDING_MAX);
    assert!(ended("crowded").await >= crowded, "{crowded} of {count} had to give way");
    eventually("all others are ended by time", START_TIMEOUT, async || {
        ended("crowded").await + ended("timeout").await >= count
    })
    .await;
    let now = Usage::of(cluster.pids()[0]).expect("it runs").rss_bytes;
    assert!(now < before + MEMORY_BYTES_MAX, "{before} bytes, then {now}");
    assert!(serves().await, "it serves afterwards");
    drop(open);
}
