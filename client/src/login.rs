//! The user of a client. Its token is fetched when first needed, sent with every call, and fetched
//! again when the server no longer accepts it.
//!
//! There is one login at a time for each endpoint; other calls to it wait for its token.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use conclave_proto::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};
use futures::future::Either;
use http::{HeaderMap, HeaderValue, Request, Response};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{
    Status,
    body::Body,
    transport::{self, channel::ResponseFuture},
};
use tower::Service;
use tracing::{Metadata, Span};

use crate::{deadline, endpoint::Endpoint, error::Error};

/// Name of the tracing span of one attempt.
pub(crate) const ATTEMPT: &str = "attempt";
/// The metadata key in which etcd expects the token.
const TOKEN: &str = "token";
/// How often in a row a call or stream is started again with a new token. In busy clusters a token
/// may become stale on its way.
const LOGINS_PER_CALL_MAX: u32 = 3;
/// Texts of a server whose users changed, or that was restarted. The call was not carried out.
const STALE: [&str; 3] =
    ["etcdserver: invalid auth token", OLD_REVISION, "etcdserver: user name is empty"];
/// Users or roles changed between the permission check and the call.
const OLD_REVISION: &str = "etcdserver: revision of auth store is old";
const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";

/// Whether a new token may help.
pub(crate) fn is_stale(text: &str) -> bool {
    STALE.iter().any(|stale| text.ends_with(stale))
}

impl Error {
    /// Whether the same call may succeed with a new token.
    pub(crate) fn wants_login(&self) -> bool {
        self.status().is_some_and(|status| is_stale(status.message()))
    }

    /// Whether users or roles changed while the call was under way.
    fn is_overtaken(&self) -> bool {
        self.status().is_some_and(|status| status.message().ends_with(OLD_REVISION))
    }
}

/// Counts how often in a row one call or stream was started again with a new token.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    times: u32,
}

impl Logins {
    /// Whether to start again. Nothing was carried out, the endpoint is healthy, and the next
    /// attempt fetches a token first. A client that authenticates by certificate needs no token:
    /// the server checks the certificate again.
    pub(crate) fn may_help(&mut self, error: &Error, endpoint: &Endpoint) -> bool {
        let is_stale =
            if endpoint.has_login() { error.wants_login() } else { error.is_overtaken() };
        let may_help = is_stale && self.times < LOGINS_PER_CALL_MAX;
        self.times += u32::from(may_help);
        may_help
    }

    /// The token was accepted.
    pub(crate) fn succeeded(&mut self) {
        self.times = 0;
    }
}

/// Name and password, and the token received for them.
pub(crate) struct Login {
    name: String,
    password: String,
    /// Never held across a call: an endpoint that does not answer must not block calls to others.
    token: Mutex<Token>,
}

#[derive(Clone, PartialEq, Eq)]
enum Token {
    /// Not fetched yet, or refused.
    Unknown,
    /// Authentication is disabled on the server.
    Unneeded,
    Known(HeaderValue),
}

impl Login {
    pub(crate) fn new(name: String, password: String) -> Self {
        Self { name, password, token: Mutex::new(Token::Unknown) }
    }

    fn known(&self) -> Token {
        self.token.lock().clone()
    }

    async fn ask(&self, channel: &transport::Channel) -> Result<Token, Status> {
        let request =
            AuthenticateRequest { name: self.name.clone(), password: self.password.clone() };
        match AuthClient::new(channel.clone()).authenticate(request).await {
            Ok(answer) => {
                let value = HeaderValue::try_from(answer.into_inner().token);
                // Not marked as sensitive: HTTP/2 would then send it in full, Huffman-coded, with
                // every call. It cannot be guessed from frame sizes, because only the whole value
                // matches (RFC 7541 section 7.1).
                Ok(Token::Known(value.map_err(|error| Status::internal(error.to_string()))?))
            }
            Err(status) if status.message() == NOT_ENABLED => Ok(Token::Unneeded),
            Err(status) => Err(status),
        }
    }

    /// Forgets a token that was refused, unless another one has been fetched since.
    fn refused(&self, refused: &Token) {
        let mut token = self.token.lock();
        if *token == *refused {
            *token = Token::Unknown;
        }
    }
}

/// Leaves the password out: debug output may end up in a log.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A user's login at one endpoint.
#[derive(Debug)]
pub(crate) struct Desk {
    login: Arc<Login>,
    /// Held by the one task that fetches a token here.
    turn: tokio::sync::Mutex<()>,
}

impl Desk {
    pub(crate) fn new(login: Arc<Login>) -> Self {
        Self { login, turn: tokio::sync::Mutex::default() }
    }

    /// The token, fetched over `channel` if it is not known.
    async fn token(&self, channel: &transport::Channel) -> Result<Token, Status> {
        let known = self.login.known();
        if known != Token::Unknown {
            return Ok(known);
        }
        let _turn = self.turn.lock().await;
        let known = self.login.known();
        if known != Token::Unknown {
            return Ok(known);
        }
        let answer = self.login.ask(channel).await?;
        self.login.token.lock().clone_from(&answer);
        Ok(answer)
    }

    /// Forgets the current token, whichever it is: a watcher was refused, and the answer does not
    /// say which token it had.
    pub(crate) fn forget(&self) {
        *self.login.token.lock() = Token::Unknown;
    }
}

/// A connection to one endpoint; every call on it carries the client's token.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::{Channel, Error, pb::{HashRequest, maintenance_client::MaintenanceClient}};
///
/// // A call that `Client` has no method for. It carries the client's token.
/// let channel: Channel = client.channel();
/// let answer = MaintenanceClient::new(channel).hash(HashRequest {}).await;
/// let answer = answer.map_err(|status| Error::from_status(status, "one of the members"))?;
/// println!("hash of all that is stored: {:x}", answer.into_inner().hash);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Channel {
    inner: transport::Channel,
    desk: Option<Arc<Desk>>,
    headers: Option<Headers>,
    /// The deadline of calls on this channel, if they have one.
    until: Option<Instant>,
}

/// What a program adds to the headers of every call.
#[derive(Clone)]
pub(crate) struct Headers(Arc<dyn Fn(&mut HeaderMap) + Send + Sync>);

impl Headers {
    pub(crate) fn new(add: impl Fn(&mut HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(add))
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Headers(..)")
    }
}

impl Channel {
    pub(crate) fn new(
        inner: transport::Channel,
        desk: Option<Arc<Desk>>,
        headers: Option<Headers>,
    ) -> Self {
        Self { inner, desk, headers, until: None }
    }

    /// The same channel for calls with this deadline, which the server is told.
    pub(crate) fn until(self, until: Instant) -> Self {
        Self { until: Some(until), ..self }
    }

    /// The same channel without a deadline, for a stream that goes on after the call that opens it.
    pub(crate) fn open_end(self) -> Self {
        Self { until: None, ..self }
    }
}

type Answer = Result<Response<Body>, transport::Error>;

/// Whether a span is one of [`crate::Client`]'s attempts, not a span of the program.
fn is_attempt(span: &Metadata<'_>) -> bool {
    span.name() == ATTEMPT && span.target().starts_with(env!("CARGO_CRATE_NAME"))
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = Either<ResponseFuture, Pin<Box<dyn Future<Output = Answer> + Send>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let span = Span::current();
        if span.metadata().is_some_and(is_attempt) {
            span.record("method", request.uri().path());
        }
        if let Some(until) = self.until {
            deadline::tell(request.headers_mut(), until.saturating_duration_since(Instant::now()));
        }
        if let Some(Headers(add)) = &self.headers {
            add(request.headers_mut());
        }
        match &self.desk {
            None => Either::Left(self.inner.call(request)),
            Some(desk) => {
                // `poll_ready` was called on the old channel, so that one makes the call and its
                // clone stays.
                let next = self.inner.clone();
                let ready_one = std::mem::replace(&mut self.inner, next);
                let call = with_token(ready_one, Arc::clone(desk), request);
                Either::Right(Box::pin(call))
            }
        }
    }
}

async fn with_token(
    mut channel: transport::Channel,
    desk: Arc<Desk>,
    mut request: Request<Body>,
) -> Answer {
    let token = match desk.token(&channel).await {
        Ok(token) => token,
        // If the server cannot be reached, the call itself fails as well, and its error tells the
        // caller whether anything was sent.
        Err(status) if std::error::Error::source(&status).is_some() => Token::Unknown,
        Err(status) => return Ok(status.into_http()),
    };
    if let Token::Known(value) = &token {
        request.headers_mut().insert(TOKEN, value.clone());
    }
    let response = channel.call(request).await?;
    let status = Status::from_header_map(response.headers());
    if status.is_some_and(|status| is_stale(status.message())) {
        desk.login.refused(&token);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_printed() {
        let login = Login::new("ann".to_owned(), "canary".to_owned());
        assert!(!format!("{login:?}").contains("canary"));
    }

    #[test]
    fn a_new_token_is_asked_for_only_where_it_may_help() {
        assert!(is_stale("etcdserver: invalid auth token"));
        assert!(is_stale(
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
        ));
        assert!(!is_stale("etcdserver: permission denied"));
        assert!(!is_stale("etcdserver: authentication failed, invalid user ID or password"));
    }
}
