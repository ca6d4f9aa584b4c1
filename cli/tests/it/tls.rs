//! Three of our own members that speak TLS with each other and with clients: `etcdctl` and we against
//! them, certificates that are replaced and revoked under load, and clients that say nothing.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use tempfile::TempDir;

use crate::{
    COMMAND_TIMEOUT, CONCLAVE,
    authority::{Authority, Files, Wish, replace},
    server::{Server, free_port},
    until,
};

/// Connections that say nothing.
const SILENT: usize = 400;
/// Serial number of the certificate that is revoked.
const BOB: u64 = 77;

/// Certificates of a cluster and its clients.
pub(crate) struct Stage {
    dir: TempDir,
    ca: Authority,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let stage = Self { dir: TempDir::new().unwrap(), ca: Authority::new("ca") };
        stage.ca.write(&stage.path("ca.pem"));
        stage.ca.revoke(&[], &stage.path("crl.pem"));
        stage.issue("server", 1);
        stage.issue("alice", 2);
        stage.issue("bob", BOB);
        // Under this name the binary is the server.
        symlink(CONCLAVE, stage.path("etcd")).unwrap();
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, name: &str, serial: u64) -> Files {
        self.ca.issue(Wish { common_name: name, serial, ..Wish::default() }, self.dir.path(), name)
    }

    /// Mutual TLS on both ports.
    pub(crate) fn flags(&self) -> Vec<String> {
        let dir = self.dir.path().display();
        let flags = |port: &str, list: &str| {
            vec![
                format!("--{port}cert-file={dir}/server.pem"),
                format!("--{port}key-file={dir}/server-key.pem"),
                format!("--{port}trusted-ca-file={dir}/ca.pem"),
                format!("--{port}client-cert-auth"),
                format!("--{list}={dir}/crl.pem"),
            ]
        };
        [flags("", "client-crl-file"), flags("peer-", "peer-crl-file")].concat()
    }

    pub(crate) fn cluster(&self, flags: &[String]) -> Vec<Server> {
        let servers = Server::secure(self.path("etcd"), 3, flags);
        for server in &servers {
            until("a member serves", || metrics(server).contains("etcd_server_has_leader 1"));
        }
        servers
    }

    /// Runs a client with somebody's certificate.
    fn run(&self, program: &str, name: &str, endpoint: &str, arguments: &[&str]) -> Output {
        let mut command = client(program, endpoint, arguments);
        command.env("ETCDCTL_CACERT", self.path("ca.pem"));
        if !name.is_empty() {
            command.env("ETCDCTL_CERT", self.path(&format!("{name}.pem")));
            command.env("ETCDCTL_KEY", self.path(&format!("{name}-key.pem")));
            // Who has a certificate must not fail on a slow machine; who has none waits in vain.
            command
                .env("ETCDCTL_COMMAND_TIMEOUT", COMMAND_TIMEOUT)
                .env("ETCDCTL_DIAL_TIMEOUT", "20s");
        }
        command.output().expect("the client runs")
    }
}

fn client(program: &str, endpoint: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", endpoint)
        .env("ETCDCTL_DIAL_TIMEOUT", "3s")
        .stdin(Stdio::null())
        .args(arguments);
    command
}

fn programs() -> Vec<&'static str> {
    let has_etcdctl = Command::new("etcdctl").arg("version").output().is_ok();
    if has_etcdctl { vec![CONCLAVE, "etcdctl"] } else { vec![CONCLAVE] }
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// What a member counts, asked for in the clear; empty if it does not answer.
fn metrics(server: &Server) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(server.plain())?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().unwrap_or_default()
}

/// A sample of a member.
fn sample(server: &Server, name: &str) -> u64 {
    let text = metrics(server);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn failures(server: &Server, port: &str, reason: &str) -> u64 {
    let labels = format!("{{port=\"{port}\",reason=\"{reason}\"}}");
    sample(server, &format!("conclave_tls_handshake_failures_total{labels}"))
}

fn reloads(server: &Server, port: &str, result: &str) -> u64 {
    let labels = format!("{{port=\"{port}\",result=\"{result}\"}}");
    sample(server, &format!("conclave_tls_reloads_total{labels}"))
}

#[test]
fn members_and_clients_know_each_other_by_certificates() {
    let stage = Stage::new();
    let servers = stage.cluster(&stage.flags());
    let endpoints: Vec<String> =
        servers.iter().map(|server| format!("https://{}", server.endpoint())).collect();
    let all = endpoints.join(",");
    let silent: Vec<TcpStream> = (0..SILENT)
        .map(|i| TcpStream::connect(servers[i % 2].endpoint()).expect("a connection"))
        .collect();
    for program in programs() {
        let run = |name: &str, arguments: &[&str]| stage.run(program, name, &all, arguments);
        for arguments in [
            &["put", "a", "1"][..],
            &["get", "a"],
            &["endpoint", "health"],
            &["endpoint", "status", "-w", "table"],
            &["member", "list"],
        ] {
            let output = run("alice", arguments);
            assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
        }
        let listed = text(&run("alice", &["member", "list"]));
        assert_eq!(listed.matches(", https://").count(), 6, "{listed}");
        let anonymous = run("", &["put", "a", "2"]);
        assert!(!anonymous.status.success(), "{program}: {}", text(&anonymous));
        let mut stranger = client(program, &all, &["put", "a", "2"]);
        let stranger = stranger.env("ETCDCTL_INSECURE_TRANSPORT", "false").output().unwrap();
        assert!(!stranger.status.success(), "{program} trusted anybody: {}", text(&stranger));
    }
    until("who presents nothing is counted", || {
        servers.iter().map(|server| failures(server, "client", "no_certificate")).sum::<u64>() > 0
    });
    drop(silent);
}

#[test]
fn certificates_are_replaced_and_revoked_under_load() {
    let stage = Stage::new();
    let servers = stage.cluster(&stage.flags());
    let endpoint = format!("https://{}", servers[0].endpoint());
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let output = stage.run(CONCLAVE, "alice", &endpoint, &["put", "load", "x"]);
                if output.status.success() {
                    written.fetch_add(1, Ordering::Relaxed);
                } else {
                    failed.push(text(&output));
                }
            }
            failed
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            replace_and_revoke(&stage, &servers, &written);
        }));
        stop.store(true, Ordering::Relaxed);
        let failed = load.join().expect("the load ends");
        assert!(done.is_ok(), "see above");
        assert!(failed.is_empty(), "{failed:#?}");
    });
}

fn replace_and_revoke(stage: &Stage, servers: &[Server], written: &AtomicU64) {
    let each = |port: &str, result: &str| -> Vec<u64> {
        servers.iter().map(|server| reloads(server, port, result)).collect()
    };
    let all_read = |before: &[u64], port: &str, result: &str| {
        until("all members read the changed files", || {
            each(port, result).iter().zip(before).all(|(now, before)| now > before)
        });
    };
    let written_before = written.load(Ordering::Relaxed);

    // A new certificate and key; in between they are no pair, which must do no harm.
    let before = [each("client", "success"), each("peer", "success")];
    stage.issue("server", 3);
    all_read(&before[0], "client", "success");
    all_read(&before[1], "peer", "success");

    // A broken file changes nothing.
    let before = each("client", "failure");
    let good = fs::read_to_string(stage.path("server.pem")).unwrap();
    replace(&stage.path("server.pem"), "half a file");
    all_read(&before, "client", "failure");
    let endpoint = format!("https://{}", servers[1].endpoint());
    let get = || stage.run(CONCLAVE, "bob", &endpoint, &["get", "load"]);
    assert!(get().status.success(), "what was read before stays in use");
    let before = each("client", "success");
    replace(&stage.path("server.pem"), &good);
    all_read(&before, "client", "success");

    // Bob is let in no more; the others are.
    let before = each("client", "success");
    stage.ca.revoke(&[BOB], &stage.path("crl.pem"));
    all_read(&before, "client", "success");
    assert!(!get().status.success(), "bob is revoked");
    until("the refusal is counted", || failures(&servers[1], "client", "revoked") > 0);
    until("the load goes on", || written.load(Ordering::Relaxed) > written_before + 3);
}

/// Starts one member with these flags and says how it ends.
fn refused(stage: &Stage, flags: &[String]) -> String {
    let client = format!("https://127.0.0.1:{}", free_port());
    let mut child: Child = Command::new(stage.path("etcd"))
        .env_clear()
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .arg("--data-dir")
        .arg(stage.path("refused"))
        .args(flags)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut complaint = String::new();
    let mut stderr = child.stderr.take().expect("a pipe");
    stderr.read_to_string(&mut complaint).expect("readable");
    assert!(!child.wait().expect("it ends").success(), "{complaint}");
    complaint
}

#[test]
fn files_that_cannot_be_used_end_the_start_with_their_names() {
    let stage = Stage::new();
    let old = Wish { days: (-2, -1), ..Wish::default() };
    stage.ca.issue(old, stage.dir.path(), "old");
    let flags = |cert: &str, key: &str, ca: &str| {
        let path = |name: &str| stage.path(name).display().to_string();
        let mut flags =
            vec![format!("--cert-file={}", path(cert)), format!("--key-file={}", path(key))];
        if !ca.is_empty() {
            flags.push(format!("--trusted-ca-file={}", path(ca)));
        }
        flags
    };
    for (flags, parts) in [
        (flags("missing.pem", "server-key.pem", ""), ["certificate file", "missing.pem"]),
        (flags("server.pem", "bob-key.pem", ""), ["does not belong to the certificate", "bob"]),
        (flags("old.pem", "old-key.pem", ""), ["old.pem", "expired"]),
        (flags("server.pem", "server-key.pem", "bob-key.pem"), ["CA file", "bob-key.pem"]),
        (vec![], ["TLS key/cert (--cert-file, --key-file) must be provided", "HTTPS scheme"]),
        (
            [flags("server.pem", "server-key.pem", ""), vec!["--client-cert-auth".to_owned()]]
                .concat(),
            ["--client-cert-auth needs --trusted-ca-file", ""],
        ),
    ] {
        let complaint = refused(&stage, &flags);
        for part in parts {
            assert!(complaint.contains(part), "{complaint:?} lacks {part:?}");
        }
    }
}

#[test]
fn members_can_sign_their_own_certificates() {
    let stage = Stage::new();
    let flags = ["--auto-tls", "--peer-auto-tls"].map(str::to_owned);
    let servers = stage.cluster(&flags);
    for program in programs() {
        let mut put = client(program, &servers[1].endpoint(), &["put", "a", "1"]);
        put.env("ETCDCTL_INSECURE_TRANSPORT", "false");
        let refused = put.output().unwrap();
        assert!(!refused.status.success(), "{program} believed it: {}", text(&refused));
        let put = put.env("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "true").output().unwrap();
        assert!(put.status.success(), "{program}: {}", text(&put));
    }
}

#[test]
fn a_unix_socket_serves_like_a_port() {
    let dir = TempDir::new().unwrap();
    let etcd = dir.path().join("etcd");
    symlink(CONCLAVE, &etcd).unwrap();
    let url = format!("unix://{}", dir.path().join("client").display());
    let mut child = serve_unix(&etcd, dir.path(), &url);
    for program in programs() {
        until("the socket serves", || {
            client(program, &url, &["put", "a", "1"]).output().unwrap().status.success()
        });
        // etcdctl 3.4 says the URL where an authority belongs.
        let status = client(program, &url, &["endpoint", "status"]).output().unwrap();
        assert!(status.status.success(), "{program}: {}", text(&status));
    }
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    // What the killed process left behind does not stop the next one.
    let mut child = serve_unix(&etcd, dir.path(), &url);
    until("it serves again", || {
        let get = client(CONCLAVE, &url, &["get", "a", "--print-value-only"]).output().unwrap();
        get.stdout == b"1\n"
    });
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}

fn serve_unix(etcd: &Path, dir: &Path, url: &str) -> Child {
    let peer = format!("unix://{}", dir.join("peer").display());
    Command::new(etcd)
        .env_clear()
        .args(["--listen-client-urls", url, "--advertise-client-urls", url])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}
