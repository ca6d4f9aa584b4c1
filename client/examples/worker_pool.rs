//! A pool of workers, one of which leads: it hands out numbered jobs, each exactly once.
//!
//! `make example-worker_pool` starts a server and runs this against it; with a server of your own:
//! `cargo run -p conclave-client --example worker_pool -- HOST:PORT,...`.
//!
//! Every worker campaigns. Leaders leave after a few jobs, as if they crashed, and another one goes on
//! where they stopped: the number of the next job is in the store, and handing one out is a
//! transaction that needs leadership at that very moment.

use std::{error::Error, io::Write, time::Duration};

use conclave_client::{Client, Leadership, kv::put};
use tokio::{task::JoinSet, time::timeout};

const WORKERS: usize = 3;
const JOBS: u32 = 8;
const JOBS_PER_TERM: u32 = 3;
const NEXT: &str = "pool/next";

type Failure = Box<dyn Error + Send + Sync>;

/// Campaigns and leads until all jobs are handed out; returns its terms as (token, first job, jobs).
async fn work(client: Client, name: String) -> Result<Vec<(i64, u32, u32)>, Failure> {
    let election = client.election("pool/leader").ttl(Duration::from_secs(10));
    let mut terms = Vec::new();
    loop {
        let leadership = election.campaign(name.as_str()).await?;
        let token = leadership.token();
        // Dropped at the next `await` if leadership is lost.
        let (first, jobs) = leadership.run(lead(&client, &leadership)).await??;
        if jobs == 0 {
            leadership.resign().await?;
            return Ok(terms);
        }
        terms.push((token, first, jobs));
        // The guard is dropped here, as if this process had crashed.
    }
}

/// Hands out some jobs; returns the first one and how many there were.
async fn lead(client: &Client, leadership: &Leadership) -> Result<(u32, u32), Failure> {
    let next = client.get(NEXT).await?.one();
    let first = next.map_or(Ok(1), |kv| String::from_utf8_lossy(&kv.value).parse::<u32>())?;
    let end = (first + JOBS_PER_TERM).min(JOBS + 1);
    for job in first..end {
        let hand_out = leadership.txn().then(put(NEXT, (job + 1).to_string()));
        hand_out.then(put(format!("pool/jobs/{job}"), "handed out")).commit().await?;
    }
    Ok((first, end - first))
}

/// Runs the pool until all jobs are done; prints to `out`.
pub(crate) async fn run(endpoints: &str, out: &mut impl Write) -> Result<(), Failure> {
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let client = Client::builder(endpoints.split(',')).build()?;
        workers.spawn(work(client, format!("worker-{worker}")));
    }
    let mut terms = Vec::new();
    while let Some(done) = timeout(Duration::from_secs(60), workers.join_next()).await? {
        terms.extend(done??);
    }
    // The token grows from leader to leader.
    terms.sort_unstable();
    for (term, (_token, first, jobs)) in terms.iter().enumerate() {
        writeln!(out, "term {}: {jobs} jobs from job {first} on", term + 1)?;
    }
    let client = Client::builder(endpoints.split(',')).build()?;
    let jobs = client.get("pool/jobs/").prefix().await?.into_inner().kvs;
    let is_once = jobs.iter().all(|job| job.version == 1);
    writeln!(out, "{} jobs were handed out, each once: {is_once}", jobs.len())?;
    Ok(())
}

#[cfg_attr(test, expect(dead_code, reason = "the tests call `run` instead"))]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let endpoints = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_owned());
    run(&endpoints, &mut std::io::stdout()).await
}
