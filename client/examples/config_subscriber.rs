//! A service that follows its settings while it runs.
//!
//! `make example-config_subscriber` starts a server and runs this against it; with a server of your
//! own: `cargo run -p conclave-client --example config_subscriber -- HOST:PORT,...`.
//!
//! It puts the role of an operator beside the service: settings are changed, made invalid, mended and
//! rolled back, and the service prints what it sees.

use std::{error::Error, io::Write, time::Duration};

use conclave_client::{
    Client,
    config::{Config, Secret, Source},
    kv::put,
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

/// What the service can be told. Unknown settings are typing errors, so they are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    workers: u16,
    greeting: String,
    database: Database,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Database {
    host: String,
    password: Secret<String>,
}

fn validate(service: &Service) -> Result<(), String> {
    match service.workers {
        1..=64 => Ok(()),
        workers => Err(format!("{workers} workers are not between 1 and 64")),
    }
}

/// Plays service and operator; prints to `out`.
pub(crate) async fn run(endpoints: &str, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let client = Client::builder(endpoints.split(',')).build()?;
    let cache = std::env::temp_dir().join(format!("config-subscriber-{}", std::process::id()));
    client.put("shared/database.yaml", "host: db.internal\npassword: hunter2\n").await?;
    client.put("service.toml", "workers = 4\n").await?;

    let config = client
        .config::<Service>()
        .defaults(json!({"greeting": "hello"}))
        // `shared/database.yaml` holds what is at `database`.
        .shared(Source::prefix("shared/"))
        .app(Source::document("service.toml"))
        .environment("SERVICE_")
        .validate(validate)
        .cache(&cache)
        .start()
        .await?;
    let started = config.current();
    writeln!(out, "started: {} workers, {:?}", started.workers, started.database)?;
    let length = started.database.password.expose().len();
    writeln!(out, "the program itself sees the password, of {length} letters")?;
    writeln!(out, "{}", config.explain("database.host"))?;

    operate(&client, &config, out).await?;
    std::fs::remove_file(&cache)?;
    Ok(())
}

/// Changes settings as an operator would, and reports what the service sees of it.
async fn operate(
    client: &Client,
    config: &Config<Service>,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let soon = Duration::from_secs(60);
    let mut workers = config.on_change("workers");
    let mut rejections = config.rejections();

    // Two keys in one transaction are seen together, or not at all.
    let txn = client.txn().then(put("service.toml", "workers = 8\ngreeting = 'good day'\n"));
    txn.then(put("shared/database.yaml", "host: db2.internal\npassword: x\n")).commit().await?;
    let change = timeout(soon, workers.next()).await?.ok_or("the configuration has ended")?;
    let service = config.current();
    writeln!(out, "changed: {:?} -> {:?} workers", change.old, change.new)?;
    writeln!(out, "{} from {}", service.greeting, service.database.host)?;
    let good = config.revision();

    // What is wrong is refused and reported; the service goes on with what it has.
    client.put("service.toml", "workers = 500\n").await?;
    let rejection = timeout(soon, rejections.recv()).await??;
    writeln!(out, "refused: {}; still {} workers", rejection.reason, config.current().workers)?;

    // The way back: what was good is written again, as a new revision.
    client.rollback("service.toml", good).await?;
    let mut status = config.status();
    timeout(soon, status.wait_for(|status| status.rejection.is_none())).await??;
    writeln!(out, "rolled back: {} workers", config.current().workers)?;
    Ok(())
}

#[cfg_attr(test, expect(dead_code, reason = "the tests call `run` instead"))]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoints = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_owned());
    run(&endpoints, &mut std::io::stdout()).await
}
