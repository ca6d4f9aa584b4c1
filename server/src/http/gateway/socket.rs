//! The gateway over web sockets, for clients that cannot send a body while they read an answer:
//! each text message of the client is a JSON request, each answer a text message.
//!
//! ```text
//! client ─► message ─► body of a POST ─► gateway ─► call
//!    ▲                                                │
//!    └──── message ◄── line of the answer ◄───────────┘
//! ```
//! The client ends the call by closing, because it cannot end only its requests; the server closes
//! when the call has ended.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use futures::{FutureExt as _, SinkExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use prost_reflect::MethodDescriptor;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tonic::body::Body;

use super::super::listen::Seat;
use super::super::pages;
use super::super::route::Router;
use super::metered::Metered;

/// Web sockets open at one time.
pub(in crate::http) const SOCKETS_MAX: usize = 4_096;
/// Requests waiting to be read by the call; beyond, nothing more is read from the client.
const REQUESTS_MAX: usize = 16;
/// How often a client is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Longest silence of a client, pongs included; also the longest time for a client to accept a
/// message.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// Timeout of the handshake, and of closing.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Read and write buffer of each socket.
const BUFFER_BYTES: usize = 8 * 1024;
/// The only web socket version there is.
const VERSION: &str = "13";
/// Browsers cannot set headers for a web socket, only names of subprotocols: `Bearer, <token>`
/// passes a token.
const BEARER: &str = "Bearer";

type Socket = WebSocketStream<Metered<TokioIo<Upgraded>>>;

/// A message from the client, and its permits.
type Received = (Bytes, Option<OwnedSemaphorePermit>);

/// Whether a request asks for a web socket.
pub(in crate::http) fn is_wanted<B>(request: &Request<B>) -> bool {
    let has = |name, wanted: &str| {
        let values = request.headers().get_all(name).iter();
        let mut words = values.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
        words.any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    request.method() == Method::GET
        && has(header::UPGRADE, "websocket")
        && has(header::CONNECTION, "upgrade")
}

/// Answers the handshake; the conversation runs in the background.
pub(in crate::http) fn answer(
    router: &Arc<Router>,
    method: MethodDescriptor,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let headers = request.headers();
    let is_known = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|v| v == VERSION);
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_known) else {
        let mut refusal =
            refusal(StatusCode::UPGRADE_REQUIRED, "this is no web socket of version 13");
        let version = HeaderValue::from_static(VERSION);
        refusal.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
        return refusal;
    };
    let accept = derive_accept_key(key.as_bytes());
    let Ok(room) = Arc::clone(&router.sockets).try_acquire_owned() else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many web sockets");
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let token = bearer(headers);
    if let Some(token) = token {
        request.headers_mut().insert(header::AUTHORIZATION, token);
        let name = HeaderValue::from_static(BEARER);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    for (name, value) in [
        (header::UPGRADE, "websocket"),
        (header::CONNECTION, "Upgrade"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
    ] {
        let value = HeaderValue::from_str(value).expect("invariant: Base64 is a header value");
        response.headers_mut().insert(name, value);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let request = request.map(|_empty| ());
    let talk = talk(Arc::clone(router), method, request, (upgrade, room));
    router.context.background.spawn(talk);
    response
}

fn refusal(status: StatusCode, text: &str) -> Response<Body> {
    pages::text(status, format!("{text}\n"))
}

/// The token among the subprotocol names, in the form of an `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<HeaderValue> {
    let names = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let (scheme, token) = names.split_once(',')?;
    let is_bearer = scheme.trim().eq_ignore_ascii_case(BEARER);
    let token = is_bearer.then(|| token.trim())?;
    HeaderValue::from_str(&format!("{BEARER} {token}")).ok()
}

/// Runs a web socket from the handshake to its close.
async fn talk(
    router: Arc<Router>,
    method: MethodDescriptor,
    request: Request<()>,
    (upgrade, _room): (OnUpgrade, OwnedSemaphorePermit),
) {
    // The HTTP server drops its clone once the connection is upgraded to a web socket.
    let _seat = request.extensions().get::<Seat>().cloned();
    let Ok(Ok(upgraded)) = timeout(TURN_MAX, upgrade).await else { return };
    let (path, metadata) = (super::path_of(&method), super::metadata(request.headers()));
    let hearing = router.hearing(path.path(), &metadata, request.extensions()).await;
    let room = router.rooms.of(hearing).clone();
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(room.bytes_max))
        .max_frame_size(Some(room.bytes_max));
    let stream = Metered::new(TokioIo::new(upgraded), room);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (requests, received) = mpsc::channel::<Received>(REQUESTS_MAX);
    // The reader of this body takes permits of its own for what it reads.
    let body =
        ReceiverStream::new(received).map(|(bytes, _room)| Ok::<_, Infallible>(Frame::data(bytes)));
    let request = request.map(|()| StreamBody::new(body));
    let stopping = router.context.node.stopping().clone();
    let answers = answers(router, method, request);
    let mut talk = Talk { socket, requests, waiting: None, answers, heard: Instant::now() };
    let end = tokio::select! {
        biased;
        // Checked before the call, which ends for the same reason.
        () = stopping.cancelled() => Some((CloseCode::Away, "the server stops")),
        end = talk.run() => end,
    };
    // A client that does not read gets no close frame.
    timeout(TURN_MAX, talk.end(end)).await.unwrap_or_default();
}

/// The lines of the answer to a request whose body is still being written.
fn answers<B>(
    router: Arc<Router>,
    method: MethodDescriptor,
    request: Request<B>,
) -> BoxStream<'static, Bytes>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let answer = async move { super::answer(&router, method, request).await };
    // Each line of a stream is one frame, and so is the answer of a unary call.
    let pieces = |answer: Response<Body>| {
        let pieces = answer.into_body().into_data_stream();
        pieces
            .take_while(|piece| std::future::ready(piece.is_ok()))
            .filter_map(|piece| std::future::ready(piece.ok()))
    };
    answer.map(pieces).flatten_stream().boxed()
}

/// A call over a web socket.
struct Talk {
    socket: Socket,
    requests: mpsc::Sender<Received>,
    /// A request that the call cannot take yet.
    waiting: Option<Received>,
    answers: BoxStream<'static, Bytes>,
    /// When anything was last received from the client.
    heard: Instant,
}

/// Close code and reason if the server ends the call; `None` if the client did.
type End = Option<(CloseCode, &'static str)>;

/// The next event.
enum Turn {
    Heard(Option<Result<Message, Error>>),
    Answer(Option<Bytes>),
    Ping,
}

impl Talk {
    async fn run(&mut self) -> End {
        let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_waiting = self.waiting.is_some();
            let turn = tokio::select! {
                room = self.requests.reserve(), if is_waiting => {
                    // If the channel is closed the call reads no more requests, and ends by itself.
                    if let (Ok(room), Some(request)) = (room, self.waiting.take()) {
                        room.send(request);
                    }
                    continue;
                }
                message = self.socket.next(), if !is_waiting => Turn::Heard(message),
                answer = self.answers.next() => Turn::Answer(answer),
                _ = ping.tick() => Turn::Ping,
            };
            let sent = match turn {
                Turn::Heard(message) => match self.take(message) {
                    Ok(()) => continue,
                    Err(end) => return end,
                },
                Turn::Answer(Some(line)) => self.send(text(&line)).await,
                Turn::Answer(None) => return Some((CloseCode::Normal, "")),
                Turn::Ping if self.heard.elapsed() > IDLE_MAX => {
                    return Some((CloseCode::Policy, "nothing was heard of the client"));
                }
                Turn::Ping => self.send(Message::Ping(Bytes::new())).await,
            };
            if !sent {
                return None;
            }
        }
    }

    /// Handles a message from the client; `Err` with the reason if it was the last.
    fn take(&mut self, message: Option<Result<Message, Error>>) -> Result<(), End> {
        self.heard = Instant::now();
        let request = match message {
            Some(Ok(Message::Text(text))) => Bytes::from(text),
            Some(Ok(Message::Binary(bytes))) => bytes,
            // The protocol library answers pings.
            Some(Ok(Message::Ping(content) | Message::Pong(content))) => {
                self.socket.get_mut().control(content.len());
                return Ok(());
            }
            Some(Err(error)) => return Err(farewell(&error)),
            Some(Ok(Message::Close(_) | Message::Frame(_))) | None => return Err(None),
        };
        self.waiting = Some((request, self.socket.get_mut().message()));
        Ok(())
    }

    /// Sends a message; `false` if the client did not accept it in time.
    async fn send(&mut self, message: Message) -> bool {
        matches!(timeout(IDLE_MAX, self.socket.send(message)).await, Ok(Ok(())))
    }

    /// Closes the connection. Failures are the client's doing.
    async fn end(mut self, end: End) {
        let frame = end.map(|(code, reason)| CloseFrame { code, reason: reason.into() });
        self.socket.close(frame).await.unwrap_or_default();
        // Writes were gathered until here; this flushes them.
        self.socket.get_mut().shutdown().await.unwrap_or_default();
    }
}

/// The close code for a client whose messages cannot be read any further.
fn farewell(error: &Error) -> End {
    match error {
        Error::Capacity(_) => Some((CloseCode::Size, "the message is too large")),
        Error::Io(error) if error.kind() == ErrorKind::QuotaExceeded => {
            Some((CloseCode::Again, "too many requests in JSON are being received"))
        }
        Error::Io(error) if error.kind() == ErrorKind::TimedOut => {
            Some((CloseCode::Policy, "the request did not arrive in time"))
        }
        _ => None,
    }
}

/// Turns a line of an answer into a message.
fn text(line: &Bytes) -> Message {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    match String::from_utf8(line.to_vec()) {
        Ok(text) => Message::text(text),
        // JSON is always UTF-8; a page that is not is passed on unchanged.
        Err(error) => Message::binary(error.into_bytes()),
    }
}
