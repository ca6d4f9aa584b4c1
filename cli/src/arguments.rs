//! The command line.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use conclave_client::{Client, Tls, discover};
use tracing::Level;
use tracing_subscriber::{
    filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::{
    cluster,
    command::{self, Verb},
    dev,
    failure::Failure,
    output::{Format, Printer, Style},
    prompt,
};

/// etcd disconnects clients that probe a connection more often than every 5 s.
const PING_INTERVAL_MIN: Duration = Duration::from_secs(6);

/// Distributed coordination: keys, watches, leases and leadership, over etcd's v3 API.
#[derive(Debug, Parser)]
#[command(name = "conclave", disable_version_flag = true, arg_required_else_help = true)]
pub(crate) struct Conclave {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) task: Task,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Run a server; takes etcd's flags and ETCD_* variables (`conclave server --help`).
    #[command(disable_help_flag = true)]
    Server {
        /// Flags as of etcd.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
    /// Run one server in a temporary directory, to try things out.
    Dev(dev::Arguments),
    /// Run a cluster of three servers on this machine and show their state.
    Cluster(cluster::Arguments),
    #[command(flatten)]
    Client(Verb),
}

/// The name that this program was called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    /// Whatever suits people best.
    Conclave,
    /// Whatever etcdctl does.
    Etcdctl,
}

/// The same client verbs under the name `etcdctl`, which may be cut short as there: `member` to `mem`.
#[derive(Debug, Parser)]
#[command(
    name = "etcdctl",
    disable_version_flag = true,
    arg_required_else_help = true,
    infer_subcommands = true
)]
pub(crate) struct Etcdctl {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags of all client verbs; each may also be set by a variable `ETCDCTL_...`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Client options")]
pub(crate) struct Global {
    /// Addresses of the servers, with commas between them.
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    pub(crate) endpoints: Vec<String>,
    /// Form of the output: simple, json, fields, table or protobuf.
    #[arg(short, long, global = true, env = "ETCDCTL_WRITE_OUT", default_value = "simple")]
    write_out: String,
    /// Print keys and values as hexadecimal numbers.
    #[arg(long, global = true, env = "ETCDCTL_HEX")]
    hex: bool,
    /// Say on standard error what the client does.
    #[arg(long, global = true, env = "ETCDCTL_DEBUG")]
    debug: bool,
    /// Time for making a connection.
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_DIAL_TIMEOUT",
        default_value = "2s",
        value_parser = conclave_server::config::duration
    )]
    dial_timeout: Duration,
    /// Time for a command that does not run until it is stopped.
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_COMMAND_TIMEOUT",
        default_value = "5s",
        value_parser = conclave_server::config::duration
    )]
    command_timeout: Duration,
    /// How often a connection in use is probed (at least every 6s).
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_KEEPALIVE_TIME",
        default_value = "6s",
        value_parser = conclave_server::config::duration
    )]
    keepalive_time: Duration,
    /// Time for the answer to such a probe.
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_KEEPALIVE_TIMEOUT",
        default_value = "6s",
        value_parser = conclave_server::config::duration
    )]
    keepalive_timeout: Duration,
    /// Name of the user to call as, perhaps with the password: NAME or NAME:PASSWORD.
    #[arg(long, global = true, env = "ETCDCTL_USER", hide_env_values = true)]
    user: Option<String>,
    /// Password of the user, whose name then holds none.
    #[arg(long, global = true, env = "ETCDCTL_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    #[command(flatten)]
    tls: TlsArguments,
    #[command(flatten)]
    discovery: Discovery,
}

/// Flags of discovery: with a domain they replace `--endpoints`.
#[derive(Debug, Clone, Args)]
struct Discovery {
    /// Domain whose SRV records name the servers.
    #[arg(short, long, global = true, env = "ETCDCTL_DISCOVERY_SRV", value_name = "DOMAIN")]
    discovery_srv: Option<String>,
    /// Suffix of the SRV service.
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_DISCOVERY_SRV_NAME",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    discovery_srv_name: String,
    /// Take servers without TLS from the SRV records, too.
    #[arg(long, global = true, env = "ETCDCTL_INSECURE_DISCOVERY", default_value_t = true)]
    insecure_discovery: bool,
    /// DNS server to ask, if not the system's.
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    discovery_dns_server: Option<SocketAddr>,
}

impl Discovery {
    /// The servers that the domain names; `None` without a domain.
    fn endpoints(&self) -> Result<Option<Vec<String>>, Failure> {
        let domain = self.discovery_srv.as_deref().filter(|domain| !domain.is_empty());
        let Some(domain) = domain else { return Ok(None) };
        let mut endpoints = discover(domain, &self.discovery_srv_name, self.discovery_dns_server)?;
        if !self.insecure_discovery {
            endpoints.retain(|endpoint| endpoint.starts_with("https://"));
        }
        Ok(Some(endpoints))
    }
}

/// Flags of TLS.
#[derive(Debug, Clone, Args)]
pub(crate) struct TlsArguments {
    /// Authorities that sign the servers' certificates (PEM).
    #[arg(long, global = true, env = "ETCDCTL_CACERT", value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// Certificate to present to the servers (PEM).
    #[arg(
        id = "tls-cert",
        long = "cert",
        global = true,
        env = "ETCDCTL_CERT",
        value_name = "FILE"
    )]
    pub(crate) cert: Option<PathBuf>,
    /// Key of that certificate.
    // The ids differ from the flags because verbs have arguments called `cert` and `key`.
    #[arg(id = "tls-key", long = "key", global = true, env = "ETCDCTL_KEY", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Use no TLS for endpoints without a scheme if no certificates are given.
    #[arg(long, global = true, env = "ETCDCTL_INSECURE_TRANSPORT", default_value_t = true)]
    pub(crate) insecure_transport: bool,
    /// Do not verify the server's certificate; for tests only.
    #[arg(long, global = true, env = "ETCDCTL_INSECURE_SKIP_TLS_VERIFY")]
    pub(crate) insecure_skip_tls_verify: bool,
}

impl TlsArguments {
    /// The TLS settings that the flags ask for; `None` if they ask for none, so that only `https://`
    /// endpoints use TLS.
    fn settings(&self, endpoints: &[String]) -> Result<Option<Tls>, Failure> {
        let mut tls = Tls::new();
        if let Some(path) = set(&self.cacert) {
            tls = tls.ca_file(path);
        }
        match (set(&self.cert), set(&self.key)) {
            (Some(cert), Some(key)) => tls = tls.client_certificate(cert, key),
            (None, None) => {}
            (cert, key) => {
                let [cert, key] = [cert, key]
                    .map(|path| path.map(|path| path.display().to_string()).unwrap_or_default());
                return Err(Failure::bad_arguments(format!(
                    "KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"
                )));
            }
        }
        if self.insecure_skip_tls_verify {
            tls = tls.insecure_skip_verify();
        }
        let is_given = [&self.cacert, &self.cert].into_iter().any(|path| set(path).is_some());
        // Skipping verification does not enable TLS: it only changes how an enabled TLS verifies.
        let is_secure = |endpoint: &String| {
            ["https://", "unixs://"].iter().any(|scheme| endpoint.starts_with(scheme))
        };
        let is_altered = self.insecure_skip_tls_verify && endpoints.iter().any(is_secure);
        Ok((is_given || !self.insecure_transport || is_altered).then_some(tls))
    }
}

/// The path if it is given and not empty.
fn set(path: &Option<PathBuf>) -> Option<&PathBuf> {
    path.as_ref().filter(|path| !path.as_os_str().is_empty())
}

impl Global {
    /// Makes the client and the printer that the flags ask for.
    ///
    /// # Errors
    /// If the endpoints or the output form cannot be parsed.
    pub(crate) fn context(&self, flavor: Flavor) -> Result<command::Context, Failure> {
        let format = Format::parse(&self.write_out)?;
        let is_strict = flavor == Flavor::Etcdctl;
        let style = Style { hex: self.hex, values_only: false };
        let printer = Printer { format, style, is_strict };
        if self.debug {
            say_what_is_done();
        }
        let global = self.with_password()?;
        let discovered = global.discovery.endpoints()?;
        let client = global.client(discovered.as_ref().unwrap_or(&global.endpoints))?;
        Ok(command::Context { client, printer, global, flavor })
    }

    /// The same settings with the user's password filled in: given separately, after the name, or
    /// asked for once.
    fn with_password(&self) -> Result<Self, Failure> {
        let mut global = self.clone();
        let given = self.user.as_deref().filter(|user| !user.is_empty());
        global.user = given.map(str::to_owned);
        let (Some(user), None | Some("")) = (given, self.password.as_deref()) else {
            return Ok(global);
        };
        let (name, password) = match user.split_once(':') {
            Some((name, password)) => (name, password.to_owned()),
            None => (user, prompt::password("Password: ")?),
        };
        global.user = Some(name.to_owned());
        global.password = Some(password);
        Ok(global)
    }

    /// The same settings for another cluster, with another user and TLS settings.
    pub(crate) fn elsewhere(
        &self,
        tls: TlsArguments,
        user: Option<String>,
        password: Option<String>,
    ) -> Result<Self, Failure> {
        Self { tls, user, password, ..self.clone() }.with_password()
    }

    /// A client of other endpoints with the same settings.
    ///
    /// # Errors
    /// If the endpoints cannot be parsed.
    pub(crate) fn client(&self, endpoints: &[String]) -> Result<Client, Failure> {
        let endpoints: Vec<String> =
            endpoints.iter().map(|endpoint| endpoint.trim().to_owned()).collect();
        let tls = self.tls.settings(&endpoints)?;
        let mut builder = Client::builder(endpoints)
            .timeout(self.command_timeout)
            .dial_timeout(self.dial_timeout)
            // A single write is not worth an entry in the cluster's record of writes.
            .remembered_writes(false)
            .keep_alive(self.keepalive_time.max(PING_INTERVAL_MIN), self.keepalive_timeout);
        if let Some(tls) = tls {
            builder = builder.tls(tls);
        }
        if let (Some(name), Some(password)) = (&self.user, &self.password) {
            builder = builder.user(name, password);
        }
        builder.build().map_err(Failure::unusable)
    }
}

/// Prints what this program and its client log, and nothing of the crates below, which see secrets.
fn say_what_is_done() {
    let own = Targets::new().with_target("conclave", Level::DEBUG);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    // Another subscriber, if set, would print it as well.
    tracing_subscriber::registry().with(own).with(lines).try_init().ok();
}
