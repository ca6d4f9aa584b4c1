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
    (&["role", "grant-permission", "r", "read", "", "--from-key"], ""),
    (&["role", "revoke-permission", "r", "", "--from-key"], ""),
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
    /// A cluster of one that serves.
    fn start(dir: &Path, flags: &[&str]) -> Self {
        let peer = format!("http://127.0.0.1:{}", free_port());
        let server = Self::spawn("default", dir, &peer, &format!("default={peer}"), flags);
        server.wait();
        server
    }

    /// A cluster of several that serve, each in a directory of its own name.
    fn cluster(dir: &Path, size: usize, flags: &[&str]) -> Vec<Self> {
        let peers: Vec<String> =
            (0..size).map(|_| format!("http://127.0.0.1:{}", free_port())).collect();
        let all: Vec<String> =
            peers.iter().enumerate().map(|(i, peer)| format!("n{i}={peer}")).collect();
        let spawn = |(i, peer): (usize, &String)| {
            let name = format!("n{i}");
            Self::spawn(&name, &dir.join(&name), peer, &all.join(","), flags)
        };
        let servers: Vec<Self> = peers.iter().enumerate().map(spawn).collect();
        servers.iter().for_each(Self::wait);
        servers
    }

    fn spawn(name: &str, dir: &Path, peer: &str, all: &str, flags: &[&str]) -> Self {
        let log = tempfile::tempfile().expect("a log file");
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let child = Command::new(CONCLAVE)
            .args(["server", "--log-level=debug", "--bcrypt-cost=4"])
            .args(flags)
            .arg(format!("--name={name}"))
            .arg(format!("--data-dir={}", dir.display()))
            .arg(format!("--listen-client-urls={endpoint}"))
            .arg(format!("--advertise-client-urls={endpoint}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster={all}"))
            .stdout(Stdio::null())
            .stderr(log.try_clone().expect("the log file"))
            .spawn()
            .expect("it starts");
        Self { child, endpoint, log }
    }

    fn wait(&self) {
        until("it serves", || {
            run(CONCLAVE, &self.endpoint, &["auth", "status"], "").status.success()
        });
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

impl Drop for Process {
    /// A test that failed leaves none behind.
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
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

/// The lock cannot be given back by who was verified before; how the command ended is said all the same.
#[test]
fn a_command_ends_with_its_code_though_its_user_has_another_password() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Process::start(dir.path(), &[]);
    for arguments in [["user", "add", "root:secret"].as_slice(), &["auth", "enable"]] {
        assert!(run(CONCLAVE, &server.endpoint, arguments, "").status.success());
    }
    let change = format!(
        "echo other | {CONCLAVE} --endpoints {} --user root:secret user passwd root --interactive=false; exit 7",
        server.endpoint
    );
    let arguments = ["--user", "root:secret", "lock", "jobs", "--", "sh", "-c", &change];
    let output = run(CONCLAVE, &server.endpoint, &arguments, "");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    let expected = "jobs was not given back, and may be held for 10s more: ";
    assert!(said.contains(expected) && said.contains("invalid user ID or password"), "{said}");
    server.end("TERM");
}

/// What is said of secrets at one member: two of three members forward it. Returns the secrets of the tokens.
fn say_secrets(
    endpoint: &str,
    others: &[&str],
    root: &str,
    user: &str,
    canary: &str,
) -> Vec<String> {
    let ok = |arguments: &[&str], input: &str| {
        let output = run(CONCLAVE, endpoint, arguments, input);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    ok(&["--user", root, "user", "add", &format!("{user}:{canary}")], "");
    ok(&["--user", root, "user", "grant-role", user, "root"], "");
    let wrong =
        run(CONCLAVE, endpoint, &["--user", &format!("{user}:{canary}x"), "get", "key"], "");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    let login = format!(r#"{{"name":"{user}","password":"{canary}"}}"#);
    let answer = post(endpoint, "", "/v3/auth/authenticate", &login);
    let by_json = answer.split(r#""token":""#).nth(1).expect("a token").split('"').next();
    let tokens = [token(endpoint, user, canary), by_json.expect("its end").to_owned()];
    // On members that did not give it out, good and as nobody's.
    for (token, other) in tokens.iter().zip(others) {
        let put = post(other, token, "/v3/kv/put", r#"{"key":"aw==","value":"dg=="}"#);
        assert!(put.starts_with("HTTP/1.1 200"), "{put}");
        let unknown = post(other, &format!("x{token}"), "/v3/kv/put", r#"{"key":"aw=="}"#);
        assert!(unknown.contains("invalid auth token"), "{unknown}");
    }
    let wrong = post(endpoint, "", "/v3/auth/authenticate", &login.replace(user, "nobody"));
    assert!(wrong.contains("authentication failed"), "{wrong}");
    let half = post(endpoint, "", "/v3/auth/authenticate", login.trim_end_matches('}'));
    assert!(!half.contains(canary), "{half}");
    let change = ["--user", root, "user", "passwd", user, "--interactive=false"];
    ok(&change, &format!("{canary}-changed\n"));
    let secret = |token: String| {
        let secret = token.split('.').next().expect("letters").to_owned();
        assert_eq!(secret.len(), 32, "{token}");
        secret
    };
    tokens.map(secret).into()
}

#[test]
fn neither_passwords_nor_tokens_leave_a_trace() {
    const CANARY: &str = "canary-password-7f3a";
    const FOUND: &str = "a value that is found";
    let dir = tempfile::tempdir().expect("a directory");
    // So that snapshots are made.
    let flags = ["--snapshot-count=10", "--snapshot-catchup-entries=5", "--election-timeout=5000"];
    let servers = Process::cluster(dir.path(), 3, &flags);
    let endpoints: Vec<&str> = servers.iter().map(|server| server.endpoint.as_str()).collect();
    let root = format!("root:{CANARY}");
    for arguments in [&["user", "add", &root][..], &["auth", "enable"]] {
        let output = run(CONCLAVE, endpoints[1], arguments, "");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    let mut secrets = Vec::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let ok = |arguments: &[&str]| {
            let output = run(CONCLAVE, endpoint, &[&["--user", &root], arguments].concat(), "");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        };
        until("this member has applied that calls need a user", || {
            !run(CONCLAVE, endpoint, &["get", "key"], "").status.success()
        });
        let others = [endpoints[(i + 1) % 3], endpoints[(i + 2) % 3]];
        secrets.extend(say_secrets(endpoint, &others, &root, &format!("user{i}"), CANARY));
        ok(&["put", &format!("key{i}"), FOUND]);
        ok(&["snapshot", "save", &backup(dir.path(), i)]);
    }
    let pages = ["/metrics", "/health", "/readyz?verbose", "/version", "/debug/vars"];
    let mut said: Vec<String> =
        endpoints.iter().flat_map(|endpoint| pages.map(|path| page(endpoint, path))).collect();
    for server in servers {
        let log = server.end("TERM");
        assert!(log.contains("\"level\":\"debug\""), "the log was read: {log}");
        said.push(log);
    }
    let mut with_value = Vec::new();
    for file in files(dir.path()) {
        let bytes = fs::read(&file).expect("readable");
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!has(CANARY) && !secrets.iter().any(|secret| has(secret)), "{}", file.display());
        if has(FOUND) {
            with_value.push(file);
        }
    }
    for i in 0..3 {
        let (backup, member) = (backup(dir.path(), i), dir.path().join(format!("n{i}")));
        assert!(with_value.contains(&backup.into()), "what is not secret is found in a backup");
        let is_found = with_value.iter().any(|file| file.starts_with(&member));
        assert!(is_found, "and in the files of a member, so the search works");
    }
    for text in said {
        let is_there = text.contains(CANARY) || secrets.iter().any(|secret| text.contains(secret));
        assert!(!is_there, "{text}");
    }
}

fn backup(dir: &Path, member: usize) -> String {
    dir.join(format!("backup{member}.db")).display().to_string()
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
