//! What a supervisor sees and does: systemd's notifications, and leadership given away before a stop.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use conclave_testing::process::signal;
use tempfile::TempDir;

use crate::port::free_port;
use crate::server::Server;
use crate::{CONCLAVE, PATIENCE, eventually, named, run};

/// What the process says next.
fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).expect("a notification in time");
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}

fn wait_for(socket: &UnixDatagram, wanted: &str) {
    let until = Instant::now() + PATIENCE;
    while heard(socket) != wanted {
        assert!(Instant::now() < until, "not said in {PATIENCE:?}: {wanted}");
    }
}

#[test]
fn systemd_is_told_that_a_member_is_ready_lives_and_stops() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let [client, peer] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
    let mut child = Command::new(CONCLAVE)
        .arg("server")
        .env_clear()
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "100000")
        .env("ETCD_NAME", "a")
        .env("ETCD_DATA_DIR", dir.path().join("a"))
        .env("ETCD_LISTEN_CLIENT_URLS", &client)
        .env("ETCD_ADVERTISE_CLIENT_URLS", &client)
        .env("ETCD_LISTEN_PEER_URLS", &peer)
        .env("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peer)
        .env("ETCD_INITIAL_CLUSTER", format!("a={peer}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts");
    wait_for(&socket, "READY=1");
    // More than one: it goes on telling.
    for _ in 0..3 {
        wait_for(&socket, "WATCHDOG=1");
    }
    signal(child.id(), "TERM");
    wait_for(&socket, "STOPPING=1");
    assert!(child.wait().expect("a child").success());
}

/// Starts a member that waits for its peers, stops it, and returns how it ended.
fn stop_while_waiting(program: &Path, first: &[&str], asked_by: &str) -> ExitStatus {
    let dir = TempDir::new().unwrap();
    let [a, b, client] = [(); 3].map(|()| format!("http://127.0.0.1:{}", free_port()));
    let mut child = Command::new(program)
        .args(first)
        .args(["--name=a", "--data-dir"])
        .arg(dir.path().join("a"))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={a}"))
        .arg(format!("--initial-advertise-peer-urls={a}"))
        .arg(format!("--initial-cluster=a={a},b={b}"))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let waits = lines.any(|line| line.unwrap().contains("waiting for peers"));
    assert!(waits, "it ended by itself");
    signal(child.id(), asked_by);
    lines.map(Result::unwrap).for_each(drop);
    child.wait().expect("a child")
}

#[test]
fn a_member_that_waits_for_its_peers_can_be_stopped() {
    let status = stop_while_waiting(Path::new(CONCLAVE), &["server"], "TERM");
    assert!(status.success(), "{status}");
}

#[test]
fn a_member_called_etcd_ends_by_the_signal_that_stopped_it() {
    let (_dir, etcd) = named("etcd");
    for (name, number) in [("TERM", 15), ("INT", 2)] {
        let status = stop_while_waiting(&etcd, &[], name);
        assert_eq!(status.signal(), Some(number), "{status}");
    }
}

/// The id of the member that leads, as all members see it, once they agree.
fn leader(servers: &[Server]) -> Option<String> {
    let leaders = servers.iter().map(|server| {
        let output = run(CONCLAVE, &server.endpoint(), &["endpoint", "status", "-w", "fields"], "");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("\"Leader\""))?;
        line.rsplit(' ').next().map(str::to_owned).filter(|id| id != "0")
    });
    let mut leaders: Vec<Option<String>> = leaders.collect();
    leaders.dedup();
    if let [leader] = leaders.as_mut_slice() { leader.take() } else { None }
}

#[test]
fn a_member_gives_leadership_away_before_it_is_stopped() {
    let (_dir, etcd) = named("etcd");
    let servers = Server::cluster(etcd, 3);
    let before = eventually("a leader", || leader(&servers));
    let mut handed_over = 0;
    for server in &servers {
        let output = run(CONCLAVE, &server.endpoint(), &["move-leader", "--away"], "");
        assert!(output.status.success(), "{output:?}");
        handed_over += usize::from(!output.stdout.is_empty());
        if handed_over == 1 {
            break;
        }
    }
    assert_eq!(handed_over, 1, "one of them led");
    eventually("another leads", || leader(&servers).filter(|now| *now != before));
}

#[test]
fn the_only_member_has_nobody_to_give_leadership_to() {
    let (_dir, etcd) = named("etcd");
    let server = Server::single(etcd);
    eventually("a leader", || leader(std::slice::from_ref(&server)));
    let output = run(CONCLAVE, &server.endpoint(), &["move-leader", "--away"], "");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}
