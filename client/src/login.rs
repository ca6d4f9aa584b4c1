//! The user of a client: its token is asked for when first needed, put into every call, and asked for
//! again when the server does not know it any more.
//!
//! One login at a time and endpoint: whoever else needs a token there meanwhile waits for that one's.

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

/// Name of the span of one attempt of a call.
pub(crate) const ATTEMPT: &str = "attempt";
/// Where etcd looks for the token.
const TOKEN: &str = "token";
/// How often in a row a call or stream begins again with a new token. Tokens of busy clusters may age while
/// they travel.
const LOGINS_PER_CALL_MAX: u32 = 3;
/// What a server says whose users changed, or that was started again. None of it was carried out.
const STALE: [&str; 3] =
    ["etcdserver: invalid auth token", OLD_REVISION, "etcdserver: user name is empty"];
/// Users or roles changed between the look at who calls and the call.
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

/// How often in a row one call or stream began again with a new token.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    times: u32,
}

impl Logins {
    /// Whether to begin again. Nothing was carried out, the endpoint is well, and the next attempt
    /// asks for a token first. Whoever calls by a certificate needs none: the server looks at it anew.
    pub(crate) fn may_help(&mut self, error: &Error, endpoint: &Endpoint) -> bool {
        let is_stale =
            if endpoint.has_login() { error.wants_login() } else { error.is_overtaken() };
        let may_help = is_stale && self.times < LOGINS_PER_CALL_MAX;
        self.times += u32::from(may_help);
        may_help
    }

    /// The token was good.
    pub(crate) fn succeeded(&mut self) {
        self.times = 0;
    }
}

/// Name and password, and the token that they are worth.
pub(crate) struct Login {
    name: String,
    password: String,
    /// Never locked over a call: an endpoint that does not answer must not hold up calls to others.
    token: Mutex<Token>,
}

#[derive(Clone, PartialEq, Eq)]
enum Token {
    /// None was asked for yet, or it was refused.
    Unknown,
    /// The server wants none.
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
                // Not marked as sensitive: HTTP/2 would send it whole, in Huffman's code, with every call. Nobody
                // guesses it by the sizes of frames, for only all of it matches (RFC 7541 §7.1).
                Ok(Token::Known(value.map_err(|error| Status::internal(error.to_string()))?))
            }
            Err(status) if status.message() == NOT_ENABLED => Ok(Token::Unneeded),
            Err(status) => Err(status),
        }
    }

    /// Forgets a token that was refused, unless another one is known by now.
    fn refused(&self, refused: &Token) {
        let mut token = self.token.lock();
        if *token == *refused {
            *token = Token::Unknown;
        }
    }
}

/// Without the password: what is printed may end in a log.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A user at one endpoint.
#[derive(Debug)]
pub(crate) struct Desk {
    login: Arc<Login>,
    /// Whose turn it is to ask here for a token.
    turn: tokio::sync::Mutex<()>,
}

impl Desk {
    pub(crate) fn new(login: Arc<Login>) -> Self {
        Self { login, turn: tokio::sync::Mutex::default() }
    }

    /// The token, asked for over `channel` if it is not known.
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

    /// Forgets the token, whichever it is: a watcher was refused, and the answer does not name it.
    pub(crate) fn forget(&self) {
        *self.login.token.lock() = Token::Unknown;
    }
}

/// A connection to one endpoint on which every call carries the client's token.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::{Channel, Error, pb::{HashRequest, maintenance_client::MaintenanceClient}};
///
/// // A call that `Client` has no method for. The client's token goes with it.
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
    /// When nobody waits any more for the answers of calls on it.
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

    /// The same for calls whose answers nobody waits for any more from then on, which the server is told.
    pub(crate) fn until(self, until: Instant) -> Self {
        Self { until: Some(until), ..self }
    }

    /// The same for a stream that goes on after the call that opens it.
    pub(crate) fn open_end(self) -> Self {
        Self { until: None, ..self }
    }
}

type Answer = Result<Response<Body>, transport::Error>;

/// Whether a span is that of an attempt ([`crate::Client`]), and none of the program's.
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
                // The clone takes the place of the one that is ready.
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
        // A server that cannot be reached is not reached by the call itself either, and the caller
        // learns from that one whether anything was sent.
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
