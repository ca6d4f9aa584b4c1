//! `conclave service`: registers an instance while a command runs, lists and watches instances, and
//! drains them. `checks` holds the flags for checks that the server performs.

mod checks;

use std::{future::pending, pin::pin, time::Duration};

use clap::{Args, Subcommand};
use conclave_client::{
    registry::{Details, Record, Registration, Service, State},
    v1::{
        Instance, InstanceChange, InstanceFilter, ServiceSummary, instance_change::Kind,
        instance_watch_response::Snapshot,
    },
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::checks::Checks;
use super::{Context, child::Child, tell_connection};
use crate::{
    failure::Failure,
    output::{Format, Rows, complain, printable, write},
    stop::Stop,
};

/// How often `register` checks whether the instance was taken away.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What to do with services.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Register an instance while a command runs, or until this is stopped; then drain it.
    Register(Box<Register>),
    /// Print the services whose names begin with a prefix.
    Ls {
        /// Prefix of the names.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Print the instances of a service.
    Resolve(Wanted),
    /// Print the instances of a service, then every change with its reason.
    Watch(Watch),
    /// Drain an instance: it gets no new work. Works on instances of any owner.
    Drain(Drain),
    /// Remove an instance, even of another owner.
    Deregister {
        /// The service.
        name: String,
        /// The instance.
        id: String,
    },
    /// Set the switches of a service: how lost or flapping instances are treated.
    Configure(Configure),
}

/// Flags and arguments of `service register`.
#[derive(Debug, Args)]
pub(crate) struct Register {
    /// The service.
    name: String,
    /// Address of the instance: host:port.
    address: String,
    /// A command to run while it is registered.
    #[arg(last = true, value_name = "COMMAND ARGUMENT...")]
    command: Vec<String>,
    /// Id of the instance; its address if not given.
    #[arg(long)]
    id: Option<String>,
    /// Version of the service.
    #[arg(long, default_value = "")]
    version: String,
    /// Zone of the instance, such as eu-1a.
    #[arg(long, default_value = "")]
    zone: String,
    /// A tag; may be repeated.
    #[arg(long)]
    tag: Vec<String>,
    /// Metadata; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,
    /// Weight: how many calls it gets, compared to other instances.
    #[arg(long, default_value_t = 100)]
    weight: u32,
    /// How long it stays registered if this process dies.
    #[arg(long, default_value = "10s", value_parser = conclave_server::config::duration)]
    ttl: Duration,
    #[command(flatten)]
    checks: Checks,
    /// Time for clients to notice that it drains, before the command is ended.
    #[arg(long, default_value = "2s", value_parser = conclave_server::config::duration)]
    drain: Duration,
}

/// A service, and which of its instances.
#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// The service.
    name: String,
    /// Only healthy ones.
    #[arg(long)]
    healthy: bool,
    /// Only this version.
    #[arg(long, default_value = "")]
    version: String,
    /// Only this zone.
    #[arg(long, default_value = "")]
    zone: String,
    /// Only those with this tag; may be repeated.
    #[arg(long)]
    tag: Vec<String>,
    /// Only those with this metadata; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,
}

/// Flags and arguments of `service watch`.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    wanted: Wanted,
    /// Combine the changes within this time into one per instance; 0s prints each revision by
    /// itself. Default: 100ms for services of 50 instances or more, else 0s.
    #[arg(long, value_parser = conclave_server::config::duration)]
    window: Option<Duration>,
}

/// Flags and arguments of `service drain`.
#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The service.
    name: String,
    /// The instance.
    id: String,
    /// Remove it after this time.
    #[arg(long, value_parser = conclave_server::config::duration)]
    remove_after: Option<Duration>,
    /// End the drain.
    #[arg(long, conflicts_with = "remove_after")]
    undo: bool,
}

/// Flags and arguments of `service configure`.
#[derive(Debug, Args)]
pub(crate) struct Configure {
    /// The service.
    name: String,
    /// Keep showing lost instances when most are lost at once: on or off.
    #[arg(long, value_parser = switch)]
    guard: Option<bool>,
    /// Damp instances that come and go too often: on or off.
    #[arg(long, value_parser = switch)]
    damping: Option<bool>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".to_owned()),
    }
}

impl Wanted {
    fn filter(&self) -> InstanceFilter {
        InstanceFilter {
            healthy: self.healthy,
            version: self.version.clone(),
            tags: self.tag.clone(),
            zone: self.zone.clone(),
            metadata: self.meta.iter().cloned().collect(),
        }
    }
}

pub(super) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let service = |name: &str| context.client.service(name);
    match verb {
        Verb::Register(arguments) => {
            let done = register(context, *arguments).await;
            // The instance's session ends in the background.
            context.client.close().await;
            done
        }
        Verb::Ls { prefix } => {
            let services = context.client.services(prefix).await?;
            summaries(context, &services)
        }
        Verb::Resolve(wanted) => {
            let found = service(&wanted.name).resolve(wanted.filter()).await?;
            instances(context, &found)
        }
        Verb::Watch(Watch { wanted, window }) => watch(context, &wanted, window).await,
        Verb::Drain(Drain { name, id, undo: true, .. }) => Ok(service(&name).undrain(id).await?),
        Verb::Drain(Drain { name, id, remove_after, .. }) => {
            Ok(service(&name).drain(id, remove_after).await?)
        }
        Verb::Deregister { name, id } => match service(&name).remove(&id).await? {
            true => Ok(()),
            false => Err(Failure::error(format!("{name} has no instance {id}"))),
        },
        Verb::Configure(Configure { name, guard, damping }) => {
            let summary = service(&name).configure(guard, damping).await?;
            summaries(context, &[summary])
        }
    }
}

async fn register(context: &Context, arguments: Register) -> Result<(), Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let service = context.client.service(&arguments.name);
    let registration = tokio::select! {
        registration = registered(&service, &arguments) => registration?,
        () = stop.requested() => return Err(Failure::stopped("the instance was registered")),
    };
    let id = registration.record().id.clone();
    write(format!("{} of {} is registered\n", id, arguments.name).as_bytes())?;
    match Child::new(&arguments.command) {
        Some(child) => run_drained(child, registration, &arguments, &mut stop).await,
        None => {
            tokio::select! {
                () = stop.requested() => {}
                () = tell_loss(&registration, &arguments.name) => {}
            }
            Ok(registration.drain(arguments.drain).await?)
        }
    }
}

async fn registered(service: &Service, arguments: &Register) -> Result<Registration, Failure> {
    let mut register = service.register(&arguments.address).ttl(arguments.ttl);
    register = register.look_every(LOOK_EVERY);
    register = register.version(&arguments.version).zone(&arguments.zone).weight(arguments.weight);
    if let Some(id) = &arguments.id {
        register = register.id(id);
    }
    for tag in &arguments.tag {
        register = register.tag(tag);
    }
    for (name, value) in &arguments.meta {
        register = register.metadata(name, value.as_str());
    }
    for (name, check) in arguments.checks.all()? {
        register =
            if name.is_empty() { register.check(check) } else { register.named_check(name, check) };
    }
    Ok(register.await?)
}

/// Runs the command. When asked to end, marks the instance as draining and ends the command once
/// clients have had time to notice.
async fn run_drained(
    child: Child,
    mut registration: Registration,
    arguments: &Register,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let ending = CancellationToken::new();
    let done = {
        let mut running = pin!(child.run_until(&ending));
        tokio::select! {
            done = &mut running => done,
            () = tell_loss(&registration, &arguments.name) => unreachable!("it never returns"),
            () = stop.requested() => {
                let marked = registration.update(|record| record.state = State::Draining).await;
                if let Err(error) = marked {
                    tracing::warn!(%error, "the instance could not be marked as draining");
                }
                tokio::time::sleep(arguments.drain).await;
                ending.cancel();
                running.await
            }
        }
    };
    let removed = registration.deregister().await;
    done.and(removed.map_err(Failure::from))
}

/// Reports if the instance is taken away. The command keeps running: its current work should end
/// normally, and the new owner of the instance has no say in it. Never returns.
async fn tell_loss(registration: &Registration, name: &str) {
    let mut is_registered = registration.is_registered();
    while is_registered.wait_for(|is_registered| !is_registered).await.is_ok() {
        if let Some(reason) = registration.taken_away() {
            let id = &registration.record().id;
            complain(&format!("{id} of {name} is registered no more: {reason}"));
            break;
        }
        // Lost, but registered again automatically.
        if is_registered.changed().await.is_err() {
            break;
        }
    }
    pending().await
}

fn summaries(context: &Context, services: &[ServiceSummary]) -> Result<(), Failure> {
    let rows = services.iter().map(|service| {
        let on = |is_off: bool| json!(if is_off { "off" } else { "on" });
        vec![
            json!(service.name),
            json!(service.live),
            json!(service.stale),
            on(service.guard_off),
            on(service.damping_off),
        ]
    });
    let titles = &["service", "instances", "stale", "guard", "damping"];
    context.print(&Rows { titles, rows: rows.collect() })
}

const TITLES: &[&str] =
    &["id", "address", "state", "health", "version", "zone", "tags", "marks", "session", "checks"];

fn instances(context: &Context, found: &[Instance]) -> Result<(), Failure> {
    let rows = found.iter().map(cells).collect();
    context.print(&Rows { titles: TITLES, rows })
}

fn cells(instance: &Instance) -> Vec<Value> {
    let record = Record::decode(&instance.id, &instance.record).unwrap_or_default();
    let marks =
        [(instance.healthy, "healthy"), (instance.stale, "stale"), (instance.damped, "damped")];
    let marks: Vec<&str> =
        marks.into_iter().filter(|(holds, _)| *holds).map(|(_, mark)| mark).collect();
    vec![
        json!(instance.id),
        json!(instance.address),
        json!(record.state_shown()),
        json!(record.health_shown()),
        json!(record.version),
        json!(record.zone),
        json!(record.tags.join(" ")),
        json!(marks.join(" ")),
        json!(format!("{:016x}", instance.session)),
        json!(checks(&record.details)),
    ]
}

/// The last result of each check.
fn checks(details: &Details) -> String {
    let found = details.all_checks().map(|(name, _)| {
        let result = details.result(name);
        let name = if name.is_empty() { "check" } else { name };
        match result {
            None => format!("{name} unknown"),
            Some(found) => {
                let health = json!(found.health);
                let health = health.as_str().unwrap_or_default();
                format!("{name} {health} ({})", found.output)
            }
        }
    });
    found.collect::<Vec<_>>().join("; ")
}

async fn watch(
    context: &Context,
    wanted: &Wanted,
    window: Option<Duration>,
) -> Result<(), Failure> {
    let mut stop = Stop::listen().map_err(|error| Failure::error(error.to_string()))?;
    let mut changes = context.client.service(&wanted.name).changes(wanted.filter());
    if let Some(window) = window {
        changes = changes.window(window);
    }
    let mut connection = changes.connection();
    loop {
        let message = tokio::select! {
            message = changes.next() => message?,
            trouble = connection.changed() => {
                tell_connection(trouble.as_deref());
                continue;
            }
            () = stop.requested() => return Ok(()),
        };
        let snapshot = message.snapshot();
        for change in &message.changes {
            let line = match context.printer.format {
                Format::Json => json_line(message.revision, snapshot, change),
                _ => simple_line(message.revision, snapshot, change),
            };
            write(format!("{line}\n").as_bytes())?;
        }
    }
}

/// A change in one word; instances in a snapshot are `present`.
fn word(snapshot: Snapshot, kind: Kind) -> &'static str {
    match kind {
        Kind::Added if snapshot != Snapshot::None => "present",
        Kind::Added => "added",
        Kind::Updated => "updated",
        Kind::Removed => "removed",
        Kind::Unspecified => "unknown",
    }
}

/// The last part of the reason's name, in lower case.
fn reason(change: &InstanceChange) -> String {
    let name = change.reason().as_str_name();
    let name = name.strip_prefix("REASON_").unwrap_or(name).to_ascii_lowercase();
    if name == "unspecified" { String::new() } else { name }
}

fn simple_line(revision: i64, snapshot: Snapshot, change: &InstanceChange) -> String {
    let instance = change.instance.clone().unwrap_or_default();
    let mut line =
        format!("{revision} {} {}", word(snapshot, change.kind()), printable(&instance.id));
    if change.kind() != Kind::Removed {
        let record = Record::decode(&instance.id, &instance.record).unwrap_or_default();
        let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
        let (state, health) = (json!(record.state_shown()), json!(record.health_shown()));
        let address = printable(&instance.address);
        line.push_str(&format!(" {address} {} {}", text(state), text(health)));
    }
    for (holds, mark) in [(instance.stale, " stale"), (instance.damped, " damped")] {
        line.push_str(if holds { mark } else { "" });
    }
    let reason = reason(change);
    if reason.is_empty() { line } else { format!("{line} ({reason})") }
}

fn json_line(revision: i64, snapshot: Snapshot, change: &InstanceChange) -> String {
    let instance = change.instance.clone().unwrap_or_default();
    let mut line = json!({
        "revision": revision,
        "change": word(snapshot, change.kind()),
        "reason": reason(change),
        "id": instance.id,
    });
    if change.kind() != Kind::Removed {
        for (title, cell) in TITLES.iter().zip(cells(&instance)).skip(1) {
            line[*title] = cell;
        }
    }
    line.to_string()
}
