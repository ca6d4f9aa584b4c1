//! The network that can be cut, between this process, which is member 0, and shells, which are member 1.

use std::process::{Command, Stdio};
use std::time::Duration;

use conclave_benches::cluster::Pids;
use conclave_jepsen_tests::network::{Network, cut};
use conclave_testing::process::Talking;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Far longer than anything takes that happens.
const PATIENCE: Duration = Duration::from_secs(60);
/// A while in which nothing may happen.
const SILENCE: Duration = Duration::from_millis(300);

/// Listens as both members do.
struct Stage {
    listeners: [TcpListener; 2],
    network: Network,
    pids: Pids,
}

impl Stage {
    async fn new() -> Self {
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            TcpListener::bind("127.0.0.1:0").await.expect("a port"),
        ];
        let targets =
            listeners.each_ref().map(|listener| listener.local_addr().expect("an address").port());
        let pids = Pids::new(2);
        pids.set(0, std::process::id());
        let network = Network::before(&targets, &pids).await.expect("proxies");
        Self { listeners, network, pids }
    }

    /// A connection of this process to member 1: both of its ends.
    async fn connected(&self) -> (TcpStream, TcpStream) {
        let near =
            TcpStream::connect(("127.0.0.1", self.network.ports()[1])).await.expect("a connection");
        let (far, _) = soon(self.listeners[1].accept()).await.expect("a connection");
        (near, far)
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it happens")
}

/// What is sent at one end is there at the other.
async fn passes(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"word").await.expect("it is sent");
    arrives(to).await;
}

async fn arrives(to: &mut TcpStream) {
    let mut word = [0; 4];
    soon(to.read_exact(&mut word)).await.expect("it arrives");
    assert_eq!(&word, b"word");
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(SILENCE, stream.read_u8()).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_is_cut_by_itself_and_what_was_held_back_passes_later() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    passes(&mut near, &mut far).await;
    passes(&mut far, &mut near).await;

    stage.network.cut(cut::mute(0, 2));
    near.write_all(b"word").await.unwrap();
    passes(&mut far, &mut near).await;
    assert!(is_silent(&mut far).await);
    stage.network.heal();
    arrives(&mut far).await;

    stage.network.cut(cut::deaf(0, 2));
    far.write_all(b"word").await.unwrap();
    passes(&mut near, &mut far).await;
    assert!(is_silent(&mut near).await);
    drop(far);
    assert!(is_silent(&mut near).await, "nor is it told that the connection ended");
    stage.network.heal();
    arrives(&mut near).await;
    assert_eq!(soon(near.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_long_partition_connections_that_stood_still_break_and_others_do_not() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    let (mut idle_near, mut idle_far) = stage.connected().await;
    stage.network.cut(cut::isolated(0, 2));
    near.write_all(b"word").await.unwrap();
    assert!(is_silent(&mut far).await);
    // A new one is accepted, and as silent.
    let mut new = TcpStream::connect(("127.0.0.1", stage.network.ports()[1])).await.unwrap();
    new.write_all(b"word").await.unwrap();
    assert!(is_silent(&mut new).await);
    stage.network.heal_broken();
    for broken in [&mut near, &mut far, &mut new] {
        assert!(!matches!(soon(broken.read(&mut [0])).await, Ok(1..)), "it breaks");
    }
    passes(&mut idle_near, &mut idle_far).await;
}

/// Bash connects without another program.
fn shell(script: &str, port: u16) -> Talking {
    let mut command = Command::new("bash");
    // It begins once its process id is noted.
    let script = format!("read; exec 3<>/dev/tcp/127.0.0.1/{port}; {script}");
    Talking::start(command.args(["-c", &script]).stdin(Stdio::piped()))
}

fn begin(shell: &mut Talking) {
    use std::io::Write as _;
    let input = shell.child.stdin.as_mut().expect("a pipe");
    input.write_all(b"go\n").expect("it reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_told_apart_by_their_processes() {
    let stage = Stage::new().await;
    // Member 1 is not heard by member 0, from which it hears; the other way round there is nothing to cut here.
    stage.network.cut(cut::mute(1, 2));
    let mut one =
        shell("printf word >&3; read -N 4 word <&3; echo $word", stage.network.ports()[0]);
    stage.pids.set(1, one.child.id());
    begin(&mut one);
    let (mut far, _) = soon(stage.listeners[0].accept()).await.unwrap();
    assert!(is_silent(&mut far).await);
    far.write_all(b"word").await.unwrap();
    assert_eq!(tokio::task::block_in_place(|| one.line()), "word");
    // This process is heard by whoever listens for member 1.
    let (mut near, mut other) = stage.connected().await;
    near.write_all(b"word").await.unwrap();
    arrives(&mut other).await;
    stage.network.heal();
    arrives(&mut far).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_member_gets_no_connection() {
    let stage = Stage::new().await;
    let mut stranger = shell("read <&3; echo ended", stage.network.ports()[0]);
    begin(&mut stranger);
    assert_eq!(tokio::task::block_in_place(|| stranger.line()), "ended");
}
