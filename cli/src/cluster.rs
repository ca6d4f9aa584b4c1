//! `conclave cluster`: three servers as separate processes on this machine.
//!
//! A server that dies is reported and not restarted: somebody who tries out failures wants to see
//! them.

mod layout;
mod node;
mod view;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use conclave_client::Client;
use tokio::time::{MissedTickBehavior, interval};

use self::{
    layout::{Layout, Place},
    node::Node,
    view::View,
};
use crate::{failure::Failure, hint::Programs, output::write, stop::Stop};

/// How often the state is checked.
const TICK: Duration = Duration::from_secs(1);
/// Time for the cluster to elect a leader and serve.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for the servers to stop when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Flags of `cluster`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where the servers keep their data and logs.
    #[arg(long, default_value = "./.cluster")]
    dir: PathBuf,
    /// Ports for clients, one for each server [default: 2379,22379,32379, or as before in DIR].
    #[arg(long, value_delimiter = ',', requires = "peer_ports")]
    client_ports: Vec<u16>,
    /// Ports among the servers, one for each [default: 2380,22380,32380, or as before in DIR].
    #[arg(long, value_delimiter = ',', requires = "client_ports")]
    peer_ports: Vec<u16>,
}

/// Runs the cluster until it is asked to stop.
///
/// # Errors
/// If it does not start, e.g. because a port is taken, or does not stop in time.
pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let layout = Layout::open(&arguments.dir, &arguments.client_ports, &arguments.peer_ports)?;
    layout.check_ports()?;
    let mut nodes = Vec::new();
    for place in &layout.places {
        match Node::start(place.clone(), &layout.initial_cluster()) {
            Ok(node) => nodes.push(node),
            Err(failure) => {
                end(nodes).await?;
                return Err(failure);
            }
        }
    }
    let result = attend(&layout, &mut nodes, &mut stop).await;
    // The terminal may be gone; the servers must be stopped in order all the same.
    write(b"\nStopping.\n").ok();
    end(nodes).await?;
    let dir = layout.dir.display();
    write(format!("Stopped. The data is in {dir}; the next start goes on with it.\n").as_bytes())?;
    result
}

/// Waits until the cluster serves, then shows its state until asked to stop.
async fn attend(layout: &Layout, nodes: &mut [Node], stop: &mut Stop) -> Result<(), Failure> {
    let endpoints: Vec<String> = layout.places.iter().map(Place::endpoint).collect();
    let client = Client::builder(&endpoints).timeout(TICK).dial_timeout(TICK).build()?;
    write(format!("Starting three servers in {} ...\n", layout.dir.display()).as_bytes())?;
    tokio::select! {
        served = serves(&client, nodes) => served?,
        () = stop.requested() => return Ok(()),
    }
    write(greeting(layout, &endpoints.join(",")).as_bytes())?;
    let mut view = View::new(&client);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.requested() => return Ok(()),
        }
        for node in nodes.iter_mut() {
            if let Some(report) = node.report_death() {
                view.note(&report)?;
            }
        }
        if nodes.iter().all(|node| !node.is_running()) {
            return Err(Failure::error("all servers have ended"));
        }
        tokio::select! {
            shown = view.show(nodes) => shown?,
            () = stop.requested() => return Ok(()),
        }
    }
}

/// Waits until the cluster serves.
async fn serves(client: &Client, nodes: &mut [Node]) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        if let Some(report) = nodes.iter_mut().find_map(Node::report_death) {
            return Err(Failure::error(report));
        }
        match client.ready().await {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > START_TIMEOUT => {
                let logs: Vec<String> = nodes
                    .iter()
                    .map(|node| format!("  {}: {}", node.place.name, node.place.last_log_line()))
                    .collect();
                return Err(Failure::error(format!(
                    "the cluster does not serve after {START_TIMEOUT:?} ({error}); last log lines:\n{}",
                    logs.join("\n")
                )));
            }
            // Not reachable yet, or no leader yet; the call may have waited or failed at once.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Asks all servers to stop and waits for them.
async fn end(nodes: Vec<Node>) -> Result<(), Failure> {
    nodes.iter().for_each(Node::terminate);
    let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
    let mut stuck = Vec::new();
    for mut node in nodes {
        if !node.ended_by(deadline).await {
            stuck.push(node.place.name.clone());
        }
    }
    if stuck.is_empty() {
        return Ok(());
    }
    let names = stuck.join(", ");
    Err(Failure::error(format!("{names} did not end within {STOP_TIMEOUT:?} and had to be killed")))
}

fn greeting(layout: &Layout, endpoints: &str) -> String {
    let Programs { ours, etcdctl } = Programs::find();
    format!(
        "The cluster serves. Data and logs: {dir}. Ctrl-C stops it.\n\
         \n  endpoints: {endpoints}\n\
         \nTry in another terminal:\n\
         \n  {ours} --endpoints={endpoints} put greeting hello\
         \n  {etcdctl} --endpoints={endpoints} get --prefix greet\
         \n  {ours} --endpoints={endpoints} endpoint status -w table\n\n",
        dir = layout.dir.display()
    )
}
