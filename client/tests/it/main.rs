//! The client against real servers.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod auth;
mod backend;
mod balance;
mod config;
mod election;
mod example;
mod fail_over;
mod fake;
mod kv;
mod lease;
mod lock;
mod namespace;
mod native;
mod native_registry;
mod queue;
mod reading;
mod registry;
mod telling;
mod tls;
mod watch;
mod writes;

use std::time::{Duration, Instant};

use conclave_client::Client;
use conclave_testing::server::{Server, program};
use conclave_testing::{authority, server};

/// Longest wait for anything that must happen.
const SOON: Duration = Duration::from_secs(60);

/// A server and a ready client of it, or nothing if no server is installed.
async fn start(test: &str) -> Option<(Server, Client)> {
    let server = Server::single(program(test)?);
    let client = Client::builder([server.endpoint()]).timeout(SOON).build().expect("a client");
    client.ready().await.expect("the server serves");
    Some((server, client))
}

/// Waits until `check` gives a value.
async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
