//! `Maintenance.Snapshot`, and new clusters made of what it sent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use conclave_proto::etcdserverpb as etcd;
use conclave_server::backup::{self, Check, Plan, RestoreError, Restored};
use conclave_server::config::{self, Invocation, Settings};
use conclave_server::node::{Node, StartError};
use conclave_state_machine::read::{Read as _, Table};
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::cluster::{
    DEADLINE, eventually, flags_of, free_ports, get, must_grant, must_put, put_again_and_again,
    within,
};
use crate::native_lock::{client, lock, queue, session};
use crate::support::{Server, range, refused, server, servers};

/// What a client gets, as a file would hold it.
async fn snapshot(server: &Server) -> Vec<u8> {
    snapshot_as(server, None).await
}

/// As [`snapshot`], in the form that a header asks for.
async fn snapshot_as(server: &Server, format: Option<&'static str>) -> Vec<u8> {
    let request = asking(format);
    let mut stream = server.maintenance().snapshot(request).await.unwrap().into_inner();
    let mut bytes: Vec<u8> = Vec::new();
    let mut total = None;
    let mut last = 0;
    while let Some(piece) = stream.message().await.unwrap() {
        assert_eq!((piece.header, piece.version.as_str()), (None, "3.7.0"));
        assert!(piece.blob.len() <= 32 * 1024, "as etcd's");
        let total = *total.get_or_insert(piece.remaining_bytes + piece.blob.len() as u64);
        last = piece.blob.len();
        bytes.extend_from_slice(&piece.blob);
        assert_eq!(piece.remaining_bytes, total.saturating_sub(bytes.len() as u64));
    }
    assert_eq!((last, bytes.len() % 512), (32, 32), "the digest comes last, and alone");
    bytes
}

fn asking(format: Option<&'static str>) -> tonic::Request<etcd::SnapshotRequest> {
    let mut request = tonic::Request::new(etcd::SnapshotRequest {});
    if let Some(format) = format {
        request.metadata_mut().insert("conclave-snapshot-format", format.parse().unwrap());
    }
    request
}

/// All rows but those of members and of raft. Of keys only which there are: what they hold follows from the events, and how
/// often one changed is counted anew after etcd's form.
fn rows(node: &Node) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for table in Table::ALL.into_iter().filter(|table| *table != Table::Member) {
        let mut visit = |key: &[u8], row: &[u8]| {
            if !key.starts_with(b"raft/") {
                let row = if table == Table::Key { &[][..] } else { row };
                rows.push((table, key.to_vec(), row.to_vec()));
            }
            Ok(std::ops::ControlFlow::Continue(()))
        };
        node.reader().scan(table, &[], None, &mut visit).unwrap();
    }
    rows
}

/// A new cluster to restore into.
struct New {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
}

impl New {
    fn of(size: usize) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ports: free_ports(size) }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("n{i}"))
    }

    fn url(&self, i: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[i])
    }

    fn initial_cluster(&self) -> String {
        let members = (0..self.ports.len()).map(|i| format!("n{i}={}", self.url(i)));
        members.collect::<Vec<_>>().join(",")
    }

    fn plan(&self, i: usize, raise_revision: i64) -> Plan {
        Plan {
            file: self.file(),
            check: Check::Digest,
            name: format!("n{i}"),
            initial_cluster: self.initial_cluster(),
            token: "etcd-cluster".to_owned(),
            advertise_peer_urls: self.url(i),
            data_dir: self.data_dir(i),
            wal_dir: None,
            raise_revision,
        }
    }

    async fn restore(&self, i: usize, raise_revision: i64) -> Restored {
        restore(self.plan(i, raise_revision)).await.unwrap()
    }

    fn settings(&self, i: usize) -> Arc<Settings> {
        let mut arguments = vec![
            format!("--name=n{i}"),
            format!("--data-dir={}", self.data_dir(i).display()),
            format!("--listen-peer-urls={}", self.url(i)),
            format!("--initial-advertise-peer-urls={}", self.url(i)),
            format!("--initial-cluster={}", self.initial_cluster()),
        ];
        arguments.extend(flags_of(self.ports.len(), &[]));
        match config::parse(arguments, []).unwrap() {
            Invocation::Run(settings) => Arc::new(*settings),
            _ => panic!("not a start"),
        }
    }

    async fn start(&self) -> Vec<Arc<Node>> {
        let starts = (0..self.ports.len()).map(|i| Node::start(self.settings(i)));
        let nodes = futures::future::join_all(starts).await;
        let nodes: Vec<Arc<Node>> = nodes.into_iter().map(|node| node.unwrap()).collect();
        for node in &nodes {
            within("a restored member is ready", node.wait_ready()).await.unwrap();
        }
        nodes
    }
}

async fn restore(plan: Plan) -> Result<Restored, RestoreError> {
    let work = move || backup::restore(&plan, &mut |_, _| {});
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_a_moment_and_becomes_a_new_cluster() {
    let old = servers(3, &[]).await;
    old[0].grant(77, 600).await;
    let request = etcd::PutRequest { lease: 77, ..crate::support::put("leased", "v") };
    old[0].kv().put(request).await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = old
        .iter()
        .enumerate()
        .map(|(i, server)| {
            let (node, is_over) = (server.running.node().clone(), is_over.clone());
            tokio::spawn(async move {
                let mut n = 0u64;
                while !is_over.load(Ordering::Relaxed) {
                    put_again_and_again(&node, &format!("k{i}/{}", n % 50), &n.to_be_bytes()).await;
                    n += 1;
                }
            })
        })
        .collect();
    let head = || old[1].running.node().reader().head();
    eventually("writes flow", || head().revision > 200).await;
    let acknowledged = old[0].put("mark", "x").await;
    // Of any member, and with all that was acknowledged before.
    let bytes = snapshot(&old[1]).await;
    let after = head().revision;
    is_over.store(true, Ordering::Relaxed);
    for writer in load {
        within("the load ends", writer).await.unwrap();
    }

    let new = New::of(3);
    std::fs::write(new.file(), bytes).unwrap();
    let restored = new.restore(0, 0).await;
    let saved = restored.revision_saved;
    assert!(saved >= acknowledged && saved <= after, "{saved}");
    let again = futures::future::join_all((1..3).map(|i| new.restore(i, 0))).await;
    assert!(again.iter().all(|other| *other == restored), "all members are restored alike");
    let nodes = new.start().await;
    let hash = |node: &Node| node.reader().hash_kv(saved).unwrap();
    eventually("the last write is everywhere", || {
        old[2].running.node().reader().head().revision >= saved
    })
    .await;
    let expected = hash(old[2].running.node());
    for node in &nodes {
        assert_eq!(hash(node).hash, expected.hash, "equal at the backup's revision");
        assert_ne!(node.member_id(), old[0].running.node().member_id());
    }
    assert_eq!(get(&nodes[1], "leased").await.unwrap(), b"v");
    let leases = conclave_state_machine::leases::all(nodes[0].reader()).unwrap();
    assert_eq!(leases, [(77, 600)]);
    must_put(&nodes[2], "new", b"1").await;
    must_grant(&nodes[0], 78, 60).await;
    eventually("members converge", || {
        let digests = nodes.iter().map(|node| node.reader().head().digest);
        digests.collect::<std::collections::BTreeSet<_>>().len() == 1
    })
    .await;
    for node in nodes {
        within("a member stops", node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_in_either_form() {
    let old = [server(&[]).await];
    let client = client(&old);
    let (one, two) = (session(&client, "one").await, session(&client, "two").await);
    let _held = lock(&one, "jobs").await;
    let waiting = tokio::spawn(two.lock("jobs").into_future());
    queue(&client, "jobs", 1, 1).await;
    let api = client.service("shop/api");
    let _registered = api.register("h:1").id("a").tag("blue").session(&one).await.unwrap();
    old[0].grant(77, 600).await;
    let leased = etcd::PutRequest { lease: 77, ..crate::support::put("leased", "v") };
    old[0].kv().put(leased).await.unwrap();
    client.put("again", "1").await.unwrap();
    for i in 0..20 {
        old[0].put("history", &"x".repeat(i * 400)).await;
    }
    let mut auth = etcd::auth_client::AuthClient::new(old[0].channel.clone());
    auth.role_add(etcd::AuthRoleAddRequest { name: "few".to_owned() }).await.unwrap();
    let user = etcd::AuthUserAddRequest {
        name: "ann".to_owned(),
        password: "password".to_owned(),
        ..Default::default()
    };
    auth.user_add(user).await.unwrap();
    let node = old[0].running.node();
    for format in [None, Some("etcd"), Some("conclave")] {
        let expected = rows(node);
        let hash = node.reader().hash_kv(0).unwrap();
        let bytes = snapshot_as(&old[0], format).await;
        assert_eq!(bytes.starts_with(b"conclave backup"), format == Some("conclave"));
        assert!(rows(node) == expected, "nothing happens meanwhile");
        let new = New::of(1);
        std::fs::write(new.file(), bytes).unwrap();
        new.restore(0, 0).await;
        let nodes = new.start().await;
        let tables = |rows: &[(Table, Vec<u8>, Vec<u8>)]| {
            rows.iter().map(|(table, ..)| *table).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(tables(&expected).len(), Table::ALL.len() - 1, "each table has rows");
        assert!(rows(&nodes[0]) == expected, "{format:?}");
        assert_eq!(nodes[0].reader().hash_kv(0).unwrap(), hash);
        within("it stops", nodes[0].shutdown()).await;
    }
    let unknown = old[0].maintenance().snapshot(asking(Some("zip"))).await;
    assert_eq!(refused(unknown).0, Code::InvalidArgument);
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_the_old_cluster_hear_that_their_history_is_gone() {
    let old = server(&[]).await;
    for i in 0..5 {
        old.put("k", &i.to_string()).await;
    }
    let seen = old.range(range("k", "")).await.header.unwrap().revision;
    let new = New::of(1);
    std::fs::write(new.file(), snapshot(&old).await).unwrap();
    // Acknowledged, but not in the backup.
    old.put("lost", "x").await;
    let restored = new.restore(0, 1_000).await;
    assert_eq!((restored.revision_saved, restored.revision), (seen, seen + 1_000));

    let arguments = vec![
        "--name=n0".to_owned(),
        format!("--data-dir={}", new.data_dir(0).display()),
        "--listen-client-urls=http://127.0.0.1:0".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:1".to_owned(),
        format!("--listen-peer-urls={}", new.url(0)),
        format!("--initial-advertise-peer-urls={}", new.url(0)),
        format!("--initial-cluster={}", new.initial_cluster()),
    ];
    let Invocation::Run(settings) = config::parse(arguments, []).unwrap() else {
        panic!("not a start");
    };
    let running = conclave_server::start(*settings).await.unwrap();
    within("it serves", running.ready()).await.unwrap();
    let endpoint = tonic::transport::Endpoint::try_from(running.client_urls()[0].clone()).unwrap();
    let channel = endpoint.connect_lazy();
    let mut watch = etcd::watch_client::WatchClient::new(channel.clone());
    let create = etcd::WatchCreateRequest {
        key: "lost".into(),
        start_revision: seen + 1,
        ..Default::default()
    };
    let create = etcd::WatchRequest {
        request_union: Some(etcd::watch_request::RequestUnion::CreateRequest(create)),
    };
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut answers = watch.watch(requests).await.unwrap().into_inner();
    let ended = within("the end of the watch", async {
        loop {
            let answer = answers.message().await.unwrap().unwrap();
            if answer.canceled {
                return answer;
            }
        }
    })
    .await;
    assert_eq!(ended.compact_revision, seen + 1_000);
    let mut kv = etcd::kv_client::KvClient::new(channel);
    let got = kv.range(range("k", "")).await.unwrap().into_inner();
    assert_eq!((got.kvs[0].value.as_ref(), got.kvs[0].version), (b"4".as_slice(), 5));
    let old_read = etcd::RangeRequest { revision: seen, ..range("k", "") };
    assert_eq!(refused(kv.range(old_read).await).0, Code::OutOfRange);
    let written = kv.put(crate::support::put("k", "5")).await.unwrap().into_inner();
    assert_eq!(written.header.unwrap().revision, seen + 1_001);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_snapshots_are_sent_at_once() {
    let server = server(&[]).await;
    // Larger than what a connection takes in advance.
    for i in 0..40 {
        server.put(&format!("k{i}"), &random(&i.to_string())).await;
    }
    let mut held = Vec::new();
    for _ in 0..4 {
        let stream = server.maintenance().snapshot(etcd::SnapshotRequest {}).await.unwrap();
        held.push(stream.into_inner());
    }
    let refusal = refused(server.maintenance().snapshot(etcd::SnapshotRequest {}).await);
    assert_eq!(refusal, (Code::Unknown, "etcdserver: too many requests".to_owned()));
    drop(held);
    let again = async {
        while server.maintenance().snapshot(etcd::SnapshotRequest {}).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within("another snapshot", again).await;
}

/// A megabyte that does not compress.
fn random(seed: &str) -> String {
    let mut state = crc32c::crc32c(seed.as_bytes());
    let letter = |_| {
        state = crc32c::crc32c(&state.to_le_bytes());
        char::from(b'!' + (state % 90) as u8)
    };
    (0..1_000_000).map(letter).collect()
}

fn left_behind(new: &New) -> Vec<String> {
    let names = std::fs::read_dir(new.dir.path()).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_fails_leaves_nothing_behind() {
    let old = server(&[]).await;
    old.put("a", "1").await;
    let new = New::of(1);
    let (whole, own) = (snapshot(&old).await, snapshot_as(&old, Some("conclave")).await);
    // In etcd's form the fourth page holds the key.
    for (whole, at) in [(&whole, 4 * 4096 - 1), (&whole, 3 * 4096 + 32), (&own, own.len() / 2)] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(new.file(), bytes).unwrap();
        let error = restore(new.plan(0, 0)).await.unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert_eq!(left_behind(&new), ["file"]);
        if at == 4 * 4096 - 1 {
            // Nothing stands there.
            continue;
        }
        // Found only while it is written.
        let unchecked = Plan { check: Check::Skip, ..new.plan(0, 0) };
        let error = restore(unchecked).await.unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert_eq!(left_behind(&new), ["file"]);
    }
    for (whole, lost) in [(&whole, 32), (&whole, 4096), (&own, 512)] {
        std::fs::write(new.file(), &whole[..whole.len() - lost]).unwrap();
        restore(new.plan(0, 0)).await.unwrap_err();
        assert_eq!(left_behind(&new), ["file"]);
    }

    std::fs::write(new.file(), &whole).unwrap();
    let other = Plan { name: "x".to_owned(), ..new.plan(0, 0) };
    let error = restore(other).await.unwrap_err();
    assert!(error.to_string().contains("couldn't find local name"), "{error}");
    let beyond = restore(new.plan(0, i64::MAX)).await.unwrap_err();
    assert!(beyond.to_string().contains("cannot be raised"), "{beyond}");
    assert_eq!(left_behind(&new), ["file"]);

    // A directory that was there, such as a volume, stays, empty.
    std::fs::create_dir(new.data_dir(0)).unwrap();
    restore(new.plan(0, i64::MAX)).await.unwrap_err();
    assert!(is_empty(&new.data_dir(0)));
    std::fs::write(new.data_dir(0).join("x"), "y").unwrap();
    let error = restore(new.plan(0, 0)).await.unwrap_err();
    assert!(matches!(error, RestoreError::NotEmpty(_)), "{error}");
    std::fs::remove_file(new.data_dir(0).join("x")).unwrap();
    new.restore(0, 0).await;
    let error = restore(new.plan(0, 0)).await.unwrap_err();
    assert!(matches!(error, RestoreError::NotEmpty(_)), "{error}");
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_whose_restore_did_not_end_is_refused() {
    let new = New::of(1);
    std::fs::create_dir(new.data_dir(0)).unwrap();
    std::fs::write(new.data_dir(0).join("RESTORE_UNFINISHED"), "").unwrap();
    let refused = tokio::time::timeout(DEADLINE, Node::start(new.settings(0))).await.unwrap();
    let Err(StartError::Bootstrap(error)) = refused else { panic!("it must not start") };
    assert!(error.to_string().contains("restore the backup again"), "{error}");
}
