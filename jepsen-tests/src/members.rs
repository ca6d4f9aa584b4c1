//! The members of a cluster as a whole: whether all serve, and whether all agree.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use conclave_benches::connection::Connection;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use conclave_proto::etcdserverpb::{HashKvRequest, RangeRequest};

use crate::history::Revision;
use crate::verdict::{Fault, Violation};

const TRY_TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);

/// The server under test: `CONCLAVE_BINARY` (an absolute path: cargo runs tests in their package's
/// directory), or `conclave` beside the test's own binaries.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("CONCLAVE_BINARY") {
        let given = PathBuf::from(path);
        assert!(given.exists(), "CONCLAVE_BINARY: there is no {} here", given.display());
        return given;
    }
    // target/PROFILE/deps/TEST-HASH: the programs lie two steps up.
    let test = std::env::current_exe().expect("a process has a path");
    let beside = test.ancestors().nth(2).expect("a target directory").join("conclave");
    assert!(beside.exists(), "build the server first: cargo build --bin conclave");
    beside
}

/// Waits until every endpoint answers a linearizable read.
///
/// # Errors
/// If one does not within `patience`.
pub async fn wait_until_serving(endpoints: &[String], patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    for endpoint in endpoints {
        loop {
            let answer = tokio::time::timeout(TRY_TIMEOUT, read(endpoint)).await;
            let error = match answer {
                Ok(Ok(())) => break,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() >= deadline {
                bail!("{endpoint} does not serve after {patience:?}: {error}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

async fn read(endpoint: &str) -> Result<()> {
    let connection = Connection::open(endpoint).await?;
    let origin = connection.origin();
    let request = RangeRequest { key: "health".into(), ..Default::default() };
    KvClient::with_origin(connection, origin).range(request).await?;
    Ok(())
}

/// Compares the hashes of all members at `revision`.
pub async fn compare(endpoints: &[String], revision: Revision, violations: &mut Vec<Violation>) {
    let mut hashes = Vec::new();
    for endpoint in endpoints {
        match hash(endpoint, revision).await {
            Ok(hash) => hashes.push(hash),
            Err(error) => {
                let detail = format!("no hash of {endpoint} at revision {revision}: {error:#}");
                violations.push(Violation::new(Fault::Diverged, detail));
            }
        }
    }
    if hashes.windows(2).any(|pair| pair[0] != pair[1]) {
        let detail = format!("hashes at revision {revision} differ: {hashes:?}");
        violations.push(Violation::new(Fault::Diverged, detail));
    }
}

async fn hash(endpoint: &str, revision: Revision) -> Result<u32> {
    let deadline = Instant::now() + CATCH_UP_TIMEOUT;
    let connection = Connection::open(endpoint).await?;
    let origin = connection.origin();
    let mut client = MaintenanceClient::with_origin(connection, origin);
    loop {
        match client.hash_kv(HashKvRequest { revision }).await {
            Ok(answer) => return Ok(answer.into_inner().hash),
            Err(status) if Instant::now() >= deadline => return Err(status).context("hash"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
