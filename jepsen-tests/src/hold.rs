//! A process that holds a lock and changes a number under it: what tests pause and kill.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use conclave_client::kv::put;
use conclave_client::{Client, LockGuard};

/// Flags of the process.
#[derive(Clone, Debug, Args)]
pub struct Hold {
    /// The servers.
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// The lock.
    #[arg(long)]
    lock: String,
    /// The key of the number.
    #[arg(long)]
    number: String,
    /// TTL of the session in seconds.
    #[arg(long)]
    ttl: u64,
    /// Write as somebody does who believes to hold the lock as long as nobody says otherwise.
    #[arg(long)]
    unguarded: bool,
}

/// Takes the lock, says `held TOKEN NUMBER`, waits for a line, makes the number one less, and says
/// `written` or `refused`.
///
/// # Errors
/// If the lock cannot be taken, or the number not be read.
pub async fn run(hold: &Hold, out: &mut dyn Write) -> Result<()> {
    let client = Client::builder(hold.endpoints.clone()).build()?;
    let session = client.session().ttl(Duration::from_secs(hold.ttl)).owner("hold").await?;
    let guard = session.lock(hold.lock.as_str()).await?;
    let number = number(&client, &hold.number).await?;
    writeln!(out, "held {} {number}", guard.token())?;
    out.flush()?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    let word = if write(hold, &client, &guard, number - 1).await { "written" } else { "refused" };
    writeln!(out, "{word}")?;
    out.flush()?;
    Ok(())
}

/// Reads a number; 0 if there is none.
///
/// # Errors
/// If it cannot be read, or is none.
pub async fn number(client: &Client, key: &str) -> Result<i64> {
    let answer = client.get(key).await?;
    let Some(kv) = answer.kvs.first() else { return Ok(0) };
    std::str::from_utf8(&kv.value)?.parse().context("a number")
}

async fn write(hold: &Hold, client: &Client, guard: &LockGuard, number: i64) -> bool {
    let (key, number) = (hold.number.as_str(), number.to_string());
    if hold.unguarded {
        client.put(key, number).await.is_ok()
    } else {
        guard.txn().then(put(key, number)).commit().await.is_ok()
    }
}
