//! A client of JSON and pages.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::cluster::within;
use crate::support::Server;

/// A browser, as it were.
pub(crate) struct Web {
    pub(crate) client: Client<HttpConnector, Full<Bytes>>,
    address: String,
}

impl Web {
    pub(crate) fn new(address: String) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), address }
    }

    pub(crate) fn of(server: &Server) -> Self {
        Self::new(server.running.client_addresses()[0].to_string())
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_ref()))).unwrap();
        within("an answer", self.client.request(request)).await.unwrap()
    }

    /// Users, roles and their rights, one call of the Auth service after the other.
    pub(crate) async fn set_up_users(&self, calls: &[(&str, &str)]) {
        for (path, body) in calls {
            let (status, answer) = self.post(&format!("/v3/auth/{path}"), &[], body).await;
            assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        }
    }

    /// From now on callers are users, of whom there is root with the password `secret`.
    pub(crate) async fn ask_for_users(&self) {
        self.set_up_users(&[
            ("user/add", r#"{"name":"root","password":"secret"}"#),
            ("user/grant", r#"{"user":"root","role":"root"}"#),
            ("enable", "{}"),
        ])
        .await;
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Posts and reads the whole answer.
    pub(crate) async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, Value) {
        let answer = self.send(Method::POST, path, headers, body).await;
        let status = answer.status();
        let text = text(answer).await;
        let json = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
        (status, json)
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = self.send(Method::GET, path, &[], "").await;
        (answer.status(), text(answer).await)
    }

    /// The first lines of an answer without an end.
    pub(crate) async fn lines(&self, path: &str, body: &str, count: usize) -> Vec<Value> {
        let mut lines = Lines::new(self.send(Method::POST, path, &[], body).await);
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(lines.next().await);
        }
        all
    }
}

async fn text(answer: Response<Incoming>) -> String {
    let bytes = within("the answer's end", answer.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An answer, line by line.
pub(crate) struct Lines {
    body: Incoming,
    received: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(answer: Response<Incoming>) -> Self {
        assert_eq!(answer.status(), StatusCode::OK);
        Self { body: answer.into_body(), received: Vec::new() }
    }

    pub(crate) async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let frame = within("a line", self.body.frame()).await.unwrap().unwrap();
            self.received.extend_from_slice(frame.data_ref().unwrap());
        }
    }
}
