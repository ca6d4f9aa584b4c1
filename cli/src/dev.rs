//! `conclave dev`: one server in a temporary directory, to try things out.

use clap::Args;
use conclave_server::config::{self, Invocation, Settings};

use crate::{failure::Failure, hint::Programs, output::write, stop::Stop};

/// Flags of `dev`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Port for clients; 0 for any free one.
    #[arg(long, default_value_t = 2379)]
    port: u16,
    /// Port for other members, of which there are none; 0 for any free one.
    #[arg(long, default_value_t = 2380)]
    peer_port: u16,
    /// What to log on standard error: debug, info, warn or error.
    #[arg(long, default_value = "warn")]
    log_level: String,
}

/// Runs the server until it is asked to stop, then deletes its data.
///
/// # Errors
/// If it does not start, e.g. because the port is taken.
pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let fail = |error: std::io::Error| Failure::error(error.to_string());
    let mut stop = Stop::listen().map_err(fail)?;
    let dir = tempfile::Builder::new().prefix("conclave-dev-").tempdir().map_err(fail)?;
    let settings = settings(&arguments, &dir.path().join("data").to_string_lossy())?;
    conclave_server::logging::init(&settings.log)
        .map_err(|error| Failure::error(error.to_string()))?;
    let running = conclave_server::start(settings).await.map_err(|error| {
        Failure::error(format!("{error} (another port: conclave dev --port 0 --peer-port 0)"))
    })?;
    tokio::select! {
        ready = running.ready() => ready.map_err(Failure::error)?,
        () = stop.requested() => {
            running.stop().await;
            return Ok(());
        }
    }
    let addresses: Vec<String> =
        running.client_addresses().iter().map(ToString::to_string).collect();
    let endpoints = addresses.join(",");
    write(greeting(&endpoints, &dir.path().to_string_lossy()).as_bytes())?;
    let failed = tokio::select! {
        () = stop.requested() => None,
        reason = running.node().failed() => Some(reason),
    };
    match failed {
        None => {
            running.stop().await;
            Ok(())
        }
        Some(reason) => Err(Failure::error(reason)),
    }
}

fn settings(arguments: &Arguments, data_dir: &str) -> Result<Settings, Failure> {
    let client = format!("http://127.0.0.1:{}", arguments.port);
    let peer = format!("http://127.0.0.1:{}", arguments.peer_port);
    let flags = [
        "--name=dev".to_owned(),
        format!("--data-dir={data_dir}"),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=dev={peer}"),
        format!("--log-level={}", arguments.log_level),
    ];
    match config::parse(flags, []) {
        Ok(Invocation::Run(settings)) => Ok(*settings),
        Ok(_) => Err(Failure::error("the flags of a server were not understood as such")),
        Err(error) => Err(Failure::error(error.to_string())),
    }
}

fn greeting(endpoints: &str, dir: &str) -> String {
    let Programs { ours, etcdctl } = Programs::find();
    format!(
        "One server is running; its data is in {dir} and goes with it. Ctrl-C stops it.\n\
         \n  endpoint: {endpoints}\n\
         \nTry in another terminal:\n\
         \n  {ours} --endpoints={endpoints} watch --prefix greet &\
         \n  {ours} --endpoints={endpoints} put greeting hello\
         \n  {etcdctl} --endpoints={endpoints} get --prefix greet\n\n"
    )
}
