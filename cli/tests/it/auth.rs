//! Users and roles through the binary: beside etcdctl, over several servers, and without a trace of what is
//! secret.

use std::{
    fs,
    io::{Read as _, Seek as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use conclave_testing::process::signal;

use crate::{
    CONCLAVE,
    compare::{beside_etcdctl, difference, normal},
    run,
    server::free_port,
    until,
};

/// Commands that etcdctl and we must answer alike, in order.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["auth", "enable"], ""),
    (&["auth", "enable", "now"], ""),
    (&["role", "add", "r"], ""),
    (&["role", "add", "r"], ""),
    (&["role", "add"], ""),
    (&["role", "grant-permission", "r", "read", "k"], ""),
    (&["role", "grant-permission", "r", "READWRITE", "b", "c"], ""),
    (&["role", "grant-permission", "r", "write", "p", "--prefix"], ""),
    (&["role", "grant-permission", "r", "read", "x", "--from-key"], ""),
    (&["role", "grant-permission", "r", "read", "a", "b", "--prefix"], ""),
    (&["role", "grant-permission", "r", "read", "a", "b", "--from-key"], ""),
    (&["role", "grant-permission", "r", "read", "a", "--prefix", "--from-key"], ""),
    (&["role", "grant-permission", "r", "look", "a"], ""),
    (&["role", "grant-permission", "r", "read"], ""),
    (&["role", "grant-permission", "q", "read", "a"], ""),
    (&["role", "get", "r"], ""),
    (&["role", "get", "q"], ""),
    (&["role", "get"], ""),
    (&["role", "list"], ""),
    (&["role", "list", "all"], ""),
    (&["role", "revoke-permission", "r", "k"], ""),
    (&["role", "revoke-permission", "r", "k"], ""),
    (&["role", "revoke-permission", "r", "b", "c"], ""),
    (&["role", "revoke-permission", "r", "x", "--from-key"], ""),
    (&["role", "revoke-permission", "r"], ""),
    (&["user", "add", "ann:secret"], ""),
    (&["user", "add", "ann:secret"], ""),
    (&["user", "add", ":secret"], ""),
    (&["user", "add"], ""),
    (&["user", "add", "bob", "--interactive=false"], "other\n"),
    (&["user", "add", "eve", "--no-password"], ""),
    (&["user", "grant-role", "ann", "r"], ""),
    (&["user", "grant-role", "ann", "q"], ""),
    (&["user", "grant-role", "ann"], ""),
    (&["user", "get", "ann"], ""),
    (&["user", "get", "nobody"], ""),
    (&["user", "get"], ""),
    (&["user", "list"], ""),
    (&["user", "list", "all"], ""),
    (&["user", "revoke-role", "bob", "r"], ""),
    (&["user", "revoke-role", "bob"], ""),
    (&["user", "passwd", "bob", "--interactive=false"], "another\n"),
    (&["user", "passwd"], ""),
    (&["user", "add", "root:rootpw"], ""),
    (&["auth", "enable"], ""),
    (&["get", "k"], ""),
    (&["--user", "ann:wrong", "get", "k"], ""),
    (&["--user", "nobody:x", "get", "k"], ""),
    (&["--user", "eve:x", "get", "k"], ""),
    (&["--user", "ann:secret", "put", "p1", "1"], ""),
    (&["--user", "ann", "--password", "secret", "put", "k", "1"], ""),
    (&["--user", "ann:secret", "get", "p1"], ""),
    (&["--user", "ann:secret", "user", "list"], ""),
    (&["--user", "ann:secret", "user", "get", "ann"], ""),
    (&["--user", "ann:secret", "role", "get", "r"], ""),
    (&["--user", "ann:secret", "role", "get", "root"], ""),
    (&["--user", "root:rootpw", "get", "p1"], ""),
    (&["--user", "root:rootpw", "user", "delete", "root"], ""),
    (&["--user", "root:rootpw", "role", "delete", "root"], ""),
    (&["--user", "root:rootpw", "user", "revoke-role", "root", "root"], ""),
    (&["--user", "root:rootpw", "role", "delete", "r"], ""),
    (&["--user", "root:rootpw", "user", "delete", "bob"], ""),
    (&["--user", "root:rootpw", "user", "list"], ""),
    (&["--user", "root:rootpw", "auth", "disable"], ""),
    (&["get", "p1"], ""),
];

/// Of names etcdctl has no fields; of root's role servers before 3.5 say nothing.
fn is_exempt(arguments: &[&str], format: &str) -> bool {
    let is_names = arguments.ends_with(&["list"]) || arguments.contains(&"get");
    format == "fields" && is_names && arguments.contains(&"user")
}

#[test]
fn auth_verbs_print_what_etcdctl_prints() {
    beside_etcdctl("auth_verbs_print_what_etcdctl_prints", |format, clients, differences| {
        for (arguments, input) in COMMANDS {
            let shown = clients.map(|(client, server)| {
                let form = format!("--write-out={format}");
                let arguments = [&[form.as_str()], *arguments].concat();
                normal(&run(client, &server.endpoint(), &arguments, input), &server.endpoint())
            });
            if !is_exempt(arguments, format) {
                differences.extend(difference(arguments, format, &shown));
            }
        }
    });
}

/// One of our servers as a process, and what it has said once it has ended.
struct Process {
    child: Child,
    endpoint: String,
    log: fs::File,
}

impl Process {
    fn start(dir: &Path, flags: &[&str]) -> Self {
        let log = tempfile::tempfile().expect("a log file");
        let (client, peer) = (free_port(), free_port());
        let endpoint = format!("http://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let child = Command::new(CONCLAVE)
            .args(["server", "--log-level=debug", "--bcrypt-cost=4"])
            .args(flags)
            .arg(format!("--data-dir={}", dir.display()))
            .arg(format!("--listen-client-urls={endpoint}"))
            .arg(format!("--advertise-client-urls={endpoint}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .stdout(Stdio::null())
            .stderr(log.try_clone().expect("the log file"))
            .spawn()
            .expect("it starts");
        until("it serves", || run(CONCLAVE, &endpoint, &["auth", "status"], "").status.success());
        Self { child, endpoint, log }
    }

    /// Ends it and returns what it said.
    fn end(mut self, by: &str) -> String {
        signal(self.child.id(), by);
        self.child.wait().expect("it ends");
        let mut said = String::new();
        self.log.rewind().expect("a file");
        self.log.read_to_string(&mut said).expect("readable");
        said
    }
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("readable"));
    entries
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() { files(&path) } else { vec![path] }
        })
        .collect()
}

/// `GET path`, with everything that is answered.
fn page(endpoint: &str, path: &str) -> String {
    ask(endpoint, &format!("GET {path} HTTP/1.1\r\n"), "")
}

/// `POST path` of a token's owner by the JSON gateway, with everything that is answered.
fn post(endpoint: &str, token: &str, path: &str, json: &str) -> String {
    let head = format!("POST {path} HTTP/1.1\r\ntoken: {token}\r\n");
    ask(endpoint, &head, json)
}

fn ask(endpoint: &str, head: &str, body: &str) -> String {
    use std::io::Write as _;
    let address = endpoint.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    let length = body.len();
    let request = format!(
        "{head}host: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn an_expired_token_stays_so_when_the_log_is_applied_again() {
    const TTL: Duration = Duration::from_secs(3);
    let dir = tempfile::tempdir().expect("a directory");
    let flags = [format!("--auth-token-ttl={}", TTL.as_secs())];
    let start = || Process::start(dir.path(), &flags.each_ref().map(String::as_str));
    let server = start();
    for arguments in [["user", "add", "root:secret"].as_slice(), &["auth", "enable"]] {
        assert!(run(CONCLAVE, &server.endpoint, arguments, "").status.success());
    }
    let is_good = |server: &Process, token: &str| {
        let answer = post(&server.endpoint, token, "/v3/auth/user/list", "{}");
        let is_refused = answer.contains("invalid auth token");
        assert!(is_refused || answer.starts_with("HTTP/1.1 200"), "{answer}");
        !is_refused
    };
    let early = token(&server.endpoint, "root", "secret");
    let issued = Instant::now();
    // What it has applied is not on disk yet, so that it is applied again.
    server.end("KILL");
    until("the token has expired", || issued.elapsed() > TTL);
    let server = start();
    let read = ["--user", "root:secret", "get", "key"];
    until("the log is applied again", || {
        run(CONCLAVE, &server.endpoint, &read, "").status.success()
    });
    assert!(!is_good(&server, &early), "it has expired before the log was applied again");
    until("a new one is good", || is_good(&server, &token(&server.endpoint, "root", "secret")));
    server.end("TERM");
}

#[test]
fn neither_passwords_nor_tokens_leave_a_trace() {
    const CANARY: &str = "canary-password-7f3a";
    let dir = tempfile::tempdir().expect("a directory");
    let server = Process::start(dir.path(), &[]);
    let endpoint = server.endpoint.clone();
    let ok = |arguments: &[&str]| {
        let output = run(CONCLAVE, &endpoint, arguments, "");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    ok(&["user", "add", &format!("root:{CANARY}")]);
    ok(&["auth", "enable"]);
    let root = format!("root:{CANARY}");
    ok(&["--user", &root, "put", "key", "a value that is found"]);
    let wrong = run(CONCLAVE, &endpoint, &["--user", &format!("root:{CANARY}x"), "get", "key"], "");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    let token = token(&endpoint, "root", CANARY);
    let login = format!(r#"{{"name":"root","password":"{CANARY}"}}"#);
    let answer = post(&endpoint, "", "/v3/auth/authenticate", &login);
    let by_json = answer.split(r#""token":""#).nth(1).expect("a token");
    let secrets = [token.as_str(), by_json].map(|token| {
        let secret = token.split('.').next().expect("letters");
        assert_eq!(secret.len(), 32, "{token}");
        secret
    });
    let wrong = post(&endpoint, "", "/v3/auth/authenticate", &login.replace("root", "nobody"));
    assert!(wrong.contains("authentication failed"), "{wrong}");
    let half = post(&endpoint, "", "/v3/auth/authenticate", login.trim_end_matches('}'));
    assert!(!half.contains(CANARY), "{half}");
    let backup = dir.path().join("backup.db");
    ok(&["--user", &root, "snapshot", "save", backup.to_str().expect("text")]);
    ok(&["--user", &root, "user", "passwd", "root", "--interactive=false"]);
    let metrics = page(&endpoint, "/metrics");
    let said = server.end("TERM");
    assert!(said.contains("enabled authentication"), "the log was read: {said}");
    let mut with_value = Vec::new();
    for file in files(dir.path()) {
        let bytes = fs::read(&file).expect("readable");
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!has(CANARY) && !secrets.iter().any(|secret| has(secret)), "{}", file.display());
        if has("a value that is found") {
            with_value.push(file);
        }
    }
    assert!(with_value.contains(&backup), "what is not secret is found, so the search works");
    assert!(with_value.len() > 1, "in the member's own files too");
    for (place, text) in [("log", said), ("metrics", metrics)] {
        let is_there = text.contains(CANARY) || secrets.iter().any(|secret| text.contains(secret));
        assert!(!is_there, "{place}: {text}");
    }
}

/// Logs in over the wire.
fn token(endpoint: &str, name: &str, password: &str) -> String {
    use conclave_client::pb::{AuthenticateRequest, auth_client::AuthClient};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let client = conclave_client::Client::builder([endpoint]).build().expect("a client");
        let (name, password) = (name.to_owned(), password.to_owned());
        let request = AuthenticateRequest { name, password };
        let answer = AuthClient::new(client.channel()).authenticate(request).await;
        answer.expect("a token").into_inner().token
    })
}
