//! The server as a process, by its flags: a file of settings, ports for pages only, log files, and
//! members that find each other by DNS.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{CONCLAVE, name_server, run, server::free_port, until};

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

#[test]
fn slips_in_flags_are_told() {
    let output = run(CONCLAVE, "", &["server", "--data-dri=x"], "");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("did you mean --data-dir?"), "{text}");
}
