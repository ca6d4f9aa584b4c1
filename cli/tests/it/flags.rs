//! The server as a process, by its flags: a file of settings, ports for pages only, log files, and
//! members that find each other by DNS.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{CONCLAVE, name_server, named, programs, run, server::free_port, until};

/// A process that is ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn serve(flags: &[String]) -> Running {
    let mut command = Command::new(CONCLAVE);
    command.env_clear().arg("server").args(flags).stdin(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().expect("it starts"))
}

/// A page, head and all; empty if nobody answers.
fn page(port: u16, path: &str, content_type: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\nConnection: \
             close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().unwrap_or_default()
}

fn settings(dir: &Path, client: u16, metrics: u16) -> String {
    let (dir, peer) = (dir.display(), free_port());
    format!(
        "name: n1\ndata-dir: {dir}/data\nlisten-client-urls: http://127.0.0.1:{client}\n\
         advertise-client-urls: http://127.0.0.1:{client}\n\
         listen-peer-urls: http://127.0.0.1:{peer}\n\
         initial-advertise-peer-urls: http://127.0.0.1:{peer}\n\
         initial-cluster: n1=http://127.0.0.1:{peer}\nmetrics: extensive\n\
         listen-metrics-urls: http://127.0.0.1:{metrics}\nlog-outputs: [{dir}/server.log]\n\
         max-wals: 5\n"
    )
}

#[test]
fn a_file_holds_all_settings() {
    let dir = TempDir::new().unwrap();
    let (client, metrics) = (free_port(), free_port());
    let file = dir.path().join("etcd.yml");
    fs::write(&file, settings(dir.path(), client, metrics)).unwrap();
    let _server = serve(&[format!("--config-file={}", file.display()), "--name=other".to_owned()]);
    let endpoint = format!("127.0.0.1:{client}");
    until("the server serves", || {
        run(CONCLAVE, &endpoint, &["put", "a", "1"], "").status.success()
    });
    let durations = page(metrics, "/metrics", "");
    assert!(durations.contains("grpc_server_handling_seconds_bucket{"), "{durations}");
    assert!(page(metrics, "/health", "").starts_with("HTTP/1.1 200 "));
    let call = page(metrics, "/etcdserverpb.KV/Range", "application/grpc");
    assert!(call.starts_with("HTTP/1.1 404 "), "{call}");
    // Calls are answered a moment before the log says so.
    for part in ["ready to serve client requests", "--name is ignored", "--max-wals has no effect"]
    {
        until(part, || {
            fs::read_to_string(dir.path().join("server.log")).is_ok_and(|log| log.contains(part))
        });
    }
}

#[test]
fn members_and_clients_find_servers_by_dns() {
    let dir = TempDir::new().unwrap();
    let ports: Vec<[u16; 2]> = (0..3).map(|_| [free_port(), free_port()]).collect();
    let records = |i: usize| ports.iter().map(|ports| ("localhost", ports[i], 0)).collect();
    let members = name_server::serve("etcd-server", "example.test", records(1), false);
    let clients = name_server::serve("etcd-client", "example.test", records(0), false);
    let _servers: Vec<Running> = ports
        .iter()
        .enumerate()
        .map(|(i, [client, peer])| {
            serve(&[
                format!("--name=n{i}"),
                format!("--data-dir={}/n{i}", dir.path().display()),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://localhost:{peer}"),
                "--discovery-srv=example.test".to_owned(),
                format!("--discovery-dns-server={members}"),
            ])
        })
        .collect();
    let server = clients.to_string();
    let found = ["--discovery-srv", "example.test", "--discovery-dns-server", &server];
    let by_dns = |arguments: &[&str]| run(CONCLAVE, "", &[&found, arguments].concat(), "");
    until("the cluster serves", || by_dns(&["put", "a", "1"]).status.success());
    let listed = by_dns(&["member", "list"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 3);
    let nothing = by_dns(&["--insecure-discovery=false", "get", "a"]);
    assert!(!nothing.status.success(), "none of them speaks TLS");
}

/// What `etcd --help` of 3.4.23 and of 3.5.1 names, and then what they know besides.
const OF_ETCD: &str = "advertise-client-urls auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention \
     auto-tls backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bcrypt-cost \
     cert-file cipher-suites client-cert-allowed-hostname client-cert-auth client-crl-file cors \
     data-dir debug discovery discovery-fallback discovery-proxy discovery-srv discovery-srv-name \
     election-timeout enable-log-rotation enable-pprof enable-v2 \
     experimental-backend-bbolt-freelist-type experimental-bootstrap-defrag-threshold-megabytes \
     experimental-compaction-batch-limit experimental-corrupt-check-time \
     experimental-distributed-tracing-address experimental-distributed-tracing-instance-id \
     experimental-distributed-tracing-service-name experimental-enable-distributed-tracing \
     experimental-enable-lease-checkpoint experimental-enable-v2v3 \
     experimental-initial-corrupt-check experimental-peer-skip-client-san-verification \
     experimental-txn-mode-write-with-shared-buffer experimental-warning-apply-duration \
     experimental-watch-progress-notify-interval force-new-cluster grpc-keepalive-interval \
     grpc-keepalive-min-time grpc-keepalive-timeout heartbeat-interval host-whitelist \
     initial-advertise-peer-urls initial-cluster initial-cluster-state initial-cluster-token \
     initial-election-tick-advance key-file listen-client-urls listen-metrics-urls listen-peer-urls \
     log-level log-outputs log-package-levels log-rotation-config-json logger \
     max-concurrent-streams max-request-bytes max-snapshots max-txn-ops max-wals metrics name \
     peer-auto-tls peer-cert-allowed-cn peer-cert-allowed-hostname peer-cert-file \
     peer-client-cert-auth peer-crl-file peer-key-file peer-trusted-ca-file pre-vote proxy \
     proxy-dial-timeout proxy-failure-wait proxy-read-timeout proxy-refresh-interval \
     proxy-write-timeout quota-backend-bytes self-signed-cert-validity snapshot-count \
     socket-reuse-address socket-reuse-port strict-reconfig-check trusted-ca-file unsafe-no-fsync \
     v2-deprecation wal-dir \
     cluster-active-size cluster-remove-delay cluster-sync-interval config force log-output \
     max-result-buffer max-retry-attempts peer-election-timeout peer-heartbeat-interval \
     retry-interval snapshot v vv";

#[test]
fn flags_of_etcd_are_known_by_name() {
    let known = |names: &BTreeSet<String>| {
        let flags = names.iter().map(|name| format!("--{name}="));
        let mut command = Command::new(CONCLAVE);
        // Unknown flags before `--version` are refused.
        let output = command.env_clear().arg("server").args(flags).arg("--version").output();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    known(&OF_ETCD.split_whitespace().map(str::to_owned).collect());
    for program in programs("etcd") {
        let output = Command::new(&program).arg("--help").output().expect("it runs");
        // 3.4 prints it as an error.
        let help = [output.stdout, output.stderr].concat();
        let help = String::from_utf8_lossy(&help).into_owned();
        let flags = help.lines().filter_map(|line| line.strip_prefix("  --"));
        let names: BTreeSet<String> =
            flags.filter_map(|flag| flag.split([' ', '=']).next().map(str::to_owned)).collect();
        assert!(names.len() > 70, "{}: {names:?}", program.display());
        known(&names);
    }
}

#[test]
fn the_version_begins_with_the_name_that_was_called() {
    let (_dir, etcd) = named("etcd");
    for (program, first) in [(etcd.to_str().unwrap(), "etcd Version: 3."), (CONCLAVE, "conclave ")]
    {
        let output = run(program, "", &["--version"], "");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.starts_with(first), "{text}");
    }
}

#[test]
fn slips_in_flags_are_told() {
    let output = run(CONCLAVE, "", &["server", "--data-dri=x"], "");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("did you mean --data-dir?"), "{text}");
}
