//! The gateway by web socket.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::api_http::http_with;
use crate::cluster::within;
use crate::support::{Server, server};
use crate::web::Web;

/// A web socket of a client, and what a part of a message is next.
struct Socket(WebSocketStream<TcpStream>, Data);

type Refusal = Box<Response<Option<Vec<u8>>>>;

impl Socket {
    async fn try_open(
        server: &Server,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Refusal> {
        let address = server.running.client_addresses()[0];
        let stream = TcpStream::connect(address).await.unwrap();
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        match within("a handshake", client_async(request, stream)).await {
            Ok((socket, _)) => Ok(Self(socket, Data::Text)),
            Err(Error::Http(refusal)) => Err(refusal),
            Err(error) => panic!("{error}"),
        }
    }

    async fn open(server: &Server, path: &str) -> Self {
        Self::try_open(server, path, &[]).await.unwrap()
    }

    async fn send(&mut self, request: Value) {
        self.0.send(Message::text(request.to_string())).await.unwrap();
    }

    /// The next message that is not of the protocol itself.
    async fn next(&mut self) -> Message {
        loop {
            match within("a message", self.0.next()).await.unwrap().unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    async fn json(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Sends bytes of a message that does not end with them.
    async fn begin(&mut self, count: usize) -> Result<(), Error> {
        let kind = OpCode::Data(std::mem::replace(&mut self.1, Data::Continue));
        let frame = Frame::message(vec![b' '; count], kind, false);
        self.0.send(Message::Frame(frame)).await
    }

    /// Why the server ends it; `None` if that got lost, as what it did not read makes it forget what it said.
    async fn end(&mut self) -> Option<CloseCode> {
        loop {
            match within("the end", self.0.next()).await {
                Some(Ok(Message::Close(frame))) => break frame.map(|frame| frame.code),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break None,
            }
        }
    }

    /// Why the server closes.
    async fn farewell(&mut self) -> CloseCode {
        match self.next().await {
            Message::Close(Some(frame)) => frame.code,
            other => panic!("{other:?}"),
        }
    }
}

/// A watch of the key `a`.
fn watch() -> Value {
    json!({"create_request": {"key": "YQ=="}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_is_a_conversation() {
    let server = server(&[]).await;
    let mut socket = Socket::open(&server, "/v3/watch").await;
    socket.send(watch()).await;
    assert_eq!(socket.json().await["result"]["created"], true);
    server.put("a", "1").await;
    let event = socket.json().await;
    assert_eq!(event["result"]["events"][0]["kv"]["value"], "MQ==", "{event}");
    // More than the call takes at once, while events come.
    for _ in 0..100 {
        socket.send(json!({"create_request": {"key": "Yg=="}})).await;
    }
    for _ in 0..100 {
        assert_eq!(socket.json().await["result"]["created"], true);
    }
    socket.send(json!({"cancel_request": {"watch_id": "0"}})).await;
    assert_eq!(socket.json().await["result"]["canceled"], true);
    socket.0.close(None).await.unwrap();
    let streams = async {
        while server.running.node().watch().stats().streams > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("a call ends with its socket", streams).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_with_one_answer_closes_behind_it() {
    let server = server(&[]).await;
    let mut socket = Socket::open(&server, "/v3/kv/put").await;
    socket.send(json!({"key": "YQ==", "value": "MQ=="})).await;
    assert_eq!(socket.json().await["header"]["revision"], "2");
    assert_eq!(socket.farewell().await, CloseCode::Normal);
    let mut socket = Socket::open(&server, "/v3/lease/keepalive").await;
    socket.send(json!({"ID": "7"})).await;
    assert_eq!(socket.json().await["result"]["ID"], "7");
    // What cannot be read ends the requests; as the first of them it is complained about.
    socket.0.send(Message::text("no JSON")).await.unwrap();
    assert_eq!(socket.farewell().await, CloseCode::Normal);
    for path in ["/v3/watch", "/v3/lease/keepalive", "/v3/kv/put"] {
        let mut socket = Socket::open(&server, path).await;
        socket.0.send(Message::text("no JSON")).await.unwrap();
        assert_eq!(socket.json().await["code"], 3, "{path}");
        assert_eq!(socket.farewell().await, CloseCode::Normal, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_is_refused() {
    let server = server(&["--cors=http://a.example", "--max-request-bytes=1000"]).await;
    let mut socket = Socket::open(&server, "/v3/watch").await;
    // Of several times what a request may have.
    let large = json!({"create_request": {"key": "A".repeat(4 << 20)}}).to_string();
    // It may close before it has read all.
    socket.0.send(Message::text(large)).await.unwrap_or_default();
    let end = socket.end().await;
    assert!(end.is_none_or(|code| code == CloseCode::Size), "{end:?}");
    let mut same = Socket::open(&server, "/v3/kv/put").await;
    same.send(json!({"key": "YQ=="})).await;
    assert_eq!(same.json().await["header"]["revision"], "2", "others are served");
    let of = async |origin| {
        let opened = Socket::try_open(&server, "/v3/watch", &[("origin", origin)]).await;
        opened.err().map(|refusal| refusal.status())
    };
    assert_eq!(of("http://a.example").await, None);
    assert_eq!(of("http://b.example").await, Some(StatusCode::FORBIDDEN));
    let nowhere = Socket::try_open(&server, "/nowhere", &[]).await;
    assert_eq!(nowhere.err().unwrap().status(), StatusCode::NOT_FOUND);
    let old = "Upgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\nSec-WebSocket-Version: 8\r\n\
               Connection: upgrade\r\n";
    let answer = http_with(&server, "GET /v3/watch", old).await;
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_not_complete_share_their_room() {
    // A message has at most 1.6 MB of JSON, and all have eight times that.
    let server = server(&["--max-request-bytes=1000"]).await;
    let mut sockets = Vec::new();
    for _ in 0..9 {
        let mut socket = Socket::open(&server, "/v3/watch").await;
        // Who is refused hears it before all was read.
        within("it is read", socket.begin(1_500_000)).await.unwrap_or_default();
        sockets.push(socket);
    }
    let ends = sockets.iter_mut().map(|socket| Box::pin(socket.end()));
    let (end, ..) = futures::future::select_all(ends).await;
    assert!(end.is_none_or(|code| code == CloseCode::Again), "{end:?}");
    drop(sockets);
    let web = Web::of(&server);
    within("there is room again", async {
        while web.post("/v3/kv/put", &[], r#"{"key":"YQ=="}"#).await.0 != StatusCode::OK {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_is_put_together_of_a_caller_without_rights() {
    let server = server(&["--bcrypt-cost=4"]).await;
    Web::of(&server)
        .set_up_users(&[
            ("user/add", r#"{"name":"root","password":"secret"}"#),
            ("user/grant", r#"{"user":"root","role":"root"}"#),
            ("enable", "{}"),
        ])
        .await;
    for path in ["/v3/watch", "/v3/kv/put", "/v3/auth/authenticate"] {
        let mut socket = Socket::open(&server, path).await;
        for _ in 0..2 {
            // It may close before it has read all.
            socket.begin(40_000).await.unwrap_or_default();
        }
        let end = socket.end().await;
        assert!(end.is_none_or(|code| code == CloseCode::Size), "{path}: {end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_comes_as_the_name_of_a_protocol() {
    let server = server(&["--bcrypt-cost=4"]).await;
    let web = Web::of(&server);
    web.ask_for_users().await;
    let login = r#"{"name":"root","password":"secret"}"#;
    let (_, answer) = web.post("/v3/auth/authenticate", &[], login).await;
    let names = format!("Bearer, {}", answer["token"].as_str().unwrap());
    let named = [("sec-websocket-protocol", names.as_str())];
    let mut root = Socket::try_open(&server, "/v3/kv/range", &named).await.unwrap();
    root.send(json!({"key": "YQ=="})).await;
    assert!(root.json().await["header"].is_object());
    let mut nobody = Socket::open(&server, "/v3/kv/range").await;
    nobody.send(json!({"key": "YQ=="})).await;
    assert_eq!(nobody.json().await["message"], "etcdserver: user name is empty");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_says_farewell() {
    let server = server(&[]).await;
    let mut socket = Socket::open(&server, "/v3/watch").await;
    socket.send(watch()).await;
    socket.json().await;
    let Server { running, .. } = server;
    let (_, end) = tokio::join!(within("it stops", running.stop()), async {
        loop {
            match socket.next().await {
                Message::Text(_) => {}
                Message::Close(frame) => break frame.map(|frame| frame.code),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(end, Some(CloseCode::Away));
}
