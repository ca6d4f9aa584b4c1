//! A connection on which every request carries the token of whoever speaks at the moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use conclave_benches::connection::Connection;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderValue, Request, Uri};

/// Clones share who speaks.
#[derive(Clone, Debug)]
pub(super) struct Session {
    connection: Connection,
    tokens: Arc<Mutex<Tokens>>,
}

#[derive(Debug, Default)]
struct Tokens {
    known: BTreeMap<String, HeaderValue>,
    spoken: Option<HeaderValue>,
}

impl Session {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, tokens: Arc::default() }
    }

    pub(super) fn origin(&self) -> Uri {
        self.connection.origin()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Keeps a token that a user was given.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn learn(&self, user: String, token: &str) -> Result<(), Status> {
        let token = HeaderValue::try_from(token);
        let token = token.map_err(|error| Status::internal(error.to_string()))?;
        self.lock().known.insert(user, token);
        Ok(())
    }

    /// From now on this user speaks, or nobody; whether there is a token of it.
    pub(super) fn speak_as(&self, user: Option<&str>) -> bool {
        let mut tokens = self.lock();
        tokens.spoken = user.and_then(|user| tokens.known.get(user).cloned());
        tokens.spoken.is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().expect("nobody panics with it")
    }
}

impl Service<Request<Body>> for Session {
    type Response = <Connection as Service<Request<Body>>>::Response;
    type Error = <Connection as Service<Request<Body>>>::Error;
    type Future = <Connection as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connection.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(token) = self.lock().spoken.clone() {
            request.headers_mut().insert("token", token);
        }
        self.connection.call(request)
    }
}
