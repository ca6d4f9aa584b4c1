//! A stock counter under a lock, in a store that checks the fencing token.
//!
//! `make example-fenced_stock` starts a server and runs this against it; with a server of your own:
//! `cargo run -p conclave-client --example fenced_stock -- HOST:PORT,...`.
//!
//! One seller is paused (a long collection of garbage, a stalled machine) for longer than its lease
//! lives, and wakes up in the belief that it still holds the lock. No lock service can prevent that;
//! what the lock protects has to refuse it.

use std::{error::Error, io::Write, time::Duration};

use conclave_client::{Client, Error as Refused, kv::put, queue::Turn};
use tokio::time::timeout;

/// A store of another kind, e.g. a table with a column for the token:
/// `UPDATE stock SET pieces = $1, fence = $2 WHERE fence <= $2`.
#[derive(Default)]
struct Stock {
    pieces: u32,
    fence: i64,
}

impl Stock {
    /// Whether it was written: not if a later holder has been here.
    fn write(&mut self, pieces: u32, token: i64) -> bool {
        if token < self.fence {
            return false;
        }
        (self.pieces, self.fence) = (pieces, token);
        true
    }
}

/// Plays two sellers; prints to `out`.
pub(crate) async fn run(endpoints: &str, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let client = Client::builder(endpoints.split(',')).build()?;
    let mut stock = Stock { pieces: 10, fence: 0 };
    let ttl = Duration::from_secs(10);

    let sleepy = client.queue("stock/lock").ttl(ttl).await?;
    let seen = stock.pieces;
    writeln!(out, "the first seller holds the lock and has read {seen} pieces")?;
    pause(&client, &sleepy).await?;

    let turn = timeout(Duration::from_secs(30), client.queue("stock/lock").ttl(ttl)).await??;
    writeln!(
        out,
        "the second one holds it now, its token is larger: {}",
        turn.token() > sleepy.token()
    )?;
    let is_written = stock.write(stock.pieces - 1, turn.token());
    turn.txn().then(put("stock/pieces", stock.pieces.to_string())).commit().await?;
    writeln!(out, "it sells one piece: {is_written}, {} are left", stock.pieces)?;

    // The first seller wakes up where it stopped.
    let is_written = stock.write(seen - 1, sleepy.token());
    writeln!(
        out,
        "the first one writes what it had in mind: {is_written}, {} are left",
        stock.pieces
    )?;
    let guarded = sleepy.txn().then(put("stock/pieces", (seen - 1).to_string())).commit().await;
    let is_refused = matches!(guarded, Err(Refused::Lost { .. }));
    writeln!(out, "and Conclave refuses its transaction: {is_refused}")?;
    turn.release().await?;
    Ok(())
}

/// What happens to the lock of a process that stands still for longer than its TTL: the cluster ends
/// the lease. Done by hand here, so that nobody has to wait.
async fn pause(client: &Client, turn: &Turn) -> Result<(), Refused> {
    client.lease_revoke(turn.lease().id()).await.map(drop)
}

#[cfg_attr(test, expect(dead_code, reason = "the tests call `run` instead"))]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoints = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_owned());
    run(&endpoints, &mut std::io::stdout()).await
}
