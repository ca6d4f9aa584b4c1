//! The gateway where clients have certificates: no call there is a certificate's owner's.

use conclave_client::{Client, Tls};
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_testing::authority::{Authority, Files, Wish};
use conclave_transport::{self as transport, Connector, Pair, Target, Verification};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::auth::FAST;
use crate::cluster::{DEADLINE, within};
use crate::support::{Server, server};

/// What etcd says.
const REFUSAL: &str = "CommonName of client sending a request against gateway will be ignored";

/// An authority and whom it knows.
struct Stage {
    dir: TempDir,
    ca: Authority,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { dir: TempDir::new().unwrap(), ca: Authority::new("ca") };
        stage.ca.write(&stage.dir.path().join("ca.pem"));
        stage
    }

    fn issue(&self, name: &str, stem: &str) -> Files {
        self.ca.issue(Wish { common_name: name, ..Wish::default() }, self.dir.path(), stem)
    }

    async fn server(&self) -> Server {
        let Files { cert, key } = self.issue("server", "server");
        let flags = [
            FAST.to_owned(),
            "--listen-client-urls=https://127.0.0.1:0".to_owned(),
            "--advertise-client-urls=https://127.0.0.1:1".to_owned(),
            format!("--cert-file={}", cert.display()),
            format!("--key-file={}", key.display()),
            format!("--trusted-ca-file={}", self.dir.path().join("ca.pem").display()),
            "--client-cert-auth".to_owned(),
        ];
        server(&flags.each_ref().map(String::as_str)).await
    }

    /// Sends a request with somebody's certificate and reads the whole answer.
    async fn ask(&self, server: &Server, own: &Files, head: &str, body: &str) -> String {
        let tls = transport::Client {
            verification: Verification::Ca(self.dir.path().join("ca.pem")),
            identity: Some(Pair { cert: own.cert.clone(), key: own.key.clone() }),
            ..Default::default()
        };
        let address = server.running.client_addresses()[0].to_string();
        let target = Target::parse(&format!("https://{address}"), true).unwrap();
        let connector = Connector::new(target, Some(tls.follow().unwrap().into()), DEADLINE);
        let length = body.len();
        let request =
            format!("{head}\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}");
        let answer = async {
            let mut stream = connector.connect().await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // A server that closes without farewell has still answered.
            stream.read_to_end(&mut answer).await.unwrap_or_default();
            String::from_utf8(answer).unwrap()
        };
        within("an answer", answer).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_no_user_where_browsers_can_call() {
    let stage = Stage::new();
    let (root, nameless) = (stage.issue("root", "root"), stage.issue("", "nameless"));
    let server = stage.server().await;
    let tls = Tls::new().ca_file(stage.dir.path().join("ca.pem"));
    let tls = tls.client_certificate(&root.cert, &root.key);
    let endpoint = format!("https://{}", server.running.client_addresses()[0]);
    let client = Client::builder([endpoint]).tls(tls).build().unwrap();
    let mut auth = AuthClient::new(client.channel());
    let post = |path: &str, more: &str| format!("POST {path} HTTP/1.1\r\nconnection: close{more}");
    let put = r#"{"key":"YQ==","value":"Yg=="}"#;
    let open = stage.ask(&server, &root, &post("/v3/kv/put", ""), put).await;
    assert!(open.starts_with("HTTP/1.1 200"), "as long as nobody needs to be known: {open}");

    let (name, password) = ("root".to_owned(), "secret".to_owned());
    let add = etcd::AuthUserAddRequest { name, password, ..Default::default() };
    auth.user_add(add).await.unwrap();
    let (user, role) = ("root".to_owned(), "root".to_owned());
    auth.user_grant_role(etcd::AuthUserGrantRoleRequest { user, role }).await.unwrap();
    auth.auth_enable(etcd::AuthEnableRequest {}).await.unwrap();
    client.put("a", "by gRPC").await.unwrap();
    let (name, password) = ("root".to_owned(), "secret".to_owned());
    let login = auth.authenticate(etcd::AuthenticateRequest { name, password }).await.unwrap();
    let token = format!("\r\nauthorization: {}", login.into_inner().token);

    let socket = "GET /v3/kv/put HTTP/1.1\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\
                  sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    // As a browser sends it for the page of anybody: without asking, and with no type of its own.
    let simple = "\r\ncontent-type: text/plain\r\norigin: https://elsewhere.example";
    for head in [
        post("/v3/kv/put", simple),
        post("/v3beta/kv/put", simple),
        post("/etcdserverpb.KV/Put", simple),
        post("/v3/kv/put", &token),
        socket.to_owned(),
    ] {
        let answer = stage.ask(&server, &root, &head, put).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
        assert!(answer.contains(REFUSAL), "{head}: {answer}");
    }
    let nobody = stage.ask(&server, &nameless, &post("/v3/kv/put", ""), put).await;
    assert!(nobody.contains("etcdserver: user name is empty"), "{nobody}");
    let known = stage.ask(&server, &nameless, &post("/v3/kv/put", &token), put).await;
    assert!(known.starts_with("HTTP/1.1 200"), "{known}");
}
