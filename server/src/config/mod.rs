//! Configuration: etcd's flags and environment variables, resolved once at start and immutable
//! afterwards.
//!
//! Raw flags (`flags`) -> checked settings (`resolve`) -> [`Settings`]. Nothing is silently
//! ignored: unknown flags and flags of missing features are refused by name.
//!
//! | module | what |
//! |---|---|
//! | `flags`, `suggest`, `go` | every flag by name; suggestions for mistyped names; values as Go parses them |
//! | `file` | `--config-file` |
//! | `resolve`, `settings` | turn strings into checked settings |
//! | `cluster`, `srv`, `urls` | initial members, also by DNS; lists of URLs |
//! | `tls`, `logs`, `gates` | flags of TLS and logging, and etcd's feature gates |
//! | `memory` | how much memory this process may use |

mod cluster;
mod file;
mod flags;
mod gates;
mod go;
mod logs;
mod memory;
mod resolve;
mod settings;
mod srv;
mod suggest;
#[cfg(test)]
mod tests;
mod tls;
mod urls;

pub(crate) use cluster::added_member_id;
pub use cluster::{InitialCluster, member_id};
pub use gates::Gates;
pub use go::{boolean, duration};
pub use settings::{
    AuthSettings, AutoCompaction, BootstrapSettings, CheckSettings, ChecksAllowed, ClusterState,
    JwtSettings, Limits, ListenSettings, LogFormat, LogOutput, LogRotation, LogSettings,
    MembershipSettings, PortIdentity, PortTls, RaftSettings, RegistrySettings, Settings,
    SlowSettings, SrvDiscovery, StoreSettings, TlsSettings, TraceSettings, WebSettings,
};
pub(crate) use settings::{log_dir, state_dir};
pub(crate) use urls::peer_urls;
pub use urls::{ListenUrl, Place};

/// What a command line asks the server to do.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// Start with these settings.
    Run(Box<Settings>),
    /// Print [`version_text`], or [`etcd_version_text`] if the program is called `etcd`, and exit.
    Version,
    /// Print [`usage`] and exit.
    Help,
}

/// Why the server cannot start with the given configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Neither a flag of etcd's nor one of ours.
    #[error(
        "flag provided but not defined: --{flag}{}",
        like.map(|like| format!(" (did you mean --{like}?)")).unwrap_or_default()
    )]
    UnknownFlag {
        /// As given.
        flag: String,
        /// The flag that was probably meant.
        like: Option<&'static str>,
    },
    /// The command line holds something other than flags.
    #[error("'{0}' is not a valid flag")]
    NotAFlag(String),
    /// A command of etcd's that does not exist here.
    #[error(
        "there is no '{0}': clients are given the addresses of all members, or of a TCP load balancer before them"
    )]
    NotACommand(String),
    /// The last flag needs a value.
    #[error("flag needs an argument: --{0}")]
    MissingValue(&'static str),
    /// A flag of etcd's whose feature does not exist here yet.
    #[error("--{0} is not supported yet")]
    NotSupportedYet(&'static str),
    /// A flag of etcd's whose purpose is served in another way here.
    #[error("--{flag} is not supported: {advice}")]
    NotSupported {
        /// The flag.
        flag: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// A flag of etcd's of which only one value is supported so far.
    #[error("--{flag} is not supported yet with a value other than {supported:?}")]
    OnlyValue {
        /// The flag.
        flag: &'static str,
        /// The value it may have.
        supported: &'static str,
    },
    /// Set both by flag and by variable.
    #[error(
        "conflicting environment variable {variable:?} is shadowed by corresponding command-line \
         flag (either unset environment variable or disable flag)"
    )]
    Shadowed {
        /// The variable.
        variable: String,
    },
    /// Set both by an ETCD_ and a CONCLAVE_ variable.
    #[error("--{flag} is set by an ETCD_ and a CONCLAVE_ variable; unset one")]
    TwoVariables {
        /// The flag.
        flag: &'static str,
    },
    /// A value on the command line that is not of its flag's type.
    #[error("invalid value {value:?} for flag --{flag}: {reason}")]
    Malformed {
        /// The flag.
        flag: &'static str,
        /// As given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value that is not allowed.
    #[error("invalid value {value:?} for flag --{flag}: {reason}")]
    InvalidValue {
        /// The flag.
        flag: &'static str,
        /// As given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Values that contradict each other.
    #[error("{0}")]
    Rule(String),
}

impl ConfigError {
    /// Exit code of the process, as in etcd: 2 for a malformed command line, 1 for bad values.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownFlag { .. } | Self::MissingValue(_) | Self::Malformed { .. } => 2,
            Self::NotAFlag(_)
            | Self::NotACommand(_)
            | Self::NotSupportedYet(_)
            | Self::NotSupported { .. }
            | Self::OnlyValue { .. }
            | Self::Shadowed { .. }
            | Self::TwoVariables { .. }
            | Self::InvalidValue { .. }
            | Self::Rule(_) => 1,
        }
    }
}

/// Resolves a command line (without the program name) and an environment.
///
/// # Errors
/// [`ConfigError`]: what is wrong, with the flag.
pub fn parse(
    arguments: impl IntoIterator<Item = String>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Invocation, ConfigError> {
    match flags::read(arguments, environment)? {
        flags::Asked::Run(raw) => Ok(Invocation::Run(Box::new(resolve::settings(raw)?))),
        flags::Asked::Version => Ok(Invocation::Version),
        flags::Asked::Help => Ok(Invocation::Help),
    }
}

/// The text of `--help`.
pub fn usage() -> String {
    flags::usage()
}

/// The text of `--version`. Drivers of etcd look for its line `etcd Version: 3.x.y`.
pub fn version_text() -> String {
    format!(
        "conclave Version: {}\netcd Version: {}\nOS/Arch: {}/{}\n",
        crate::version::CONCLAVE,
        crate::version::ETCD,
        std::env::consts::OS,
        std::env::consts::ARCH,
    )
}

/// The text of `etcd --version`: etcd's four lines, of which scripts read the first, and one naming
/// Conclave.
pub fn etcd_version_text() -> String {
    format!(
        "etcd Version: {}\nGit SHA: Not provided\nGo Version: none, this is Rust\nGo OS/Arch: {}/{}\n\
         Conclave Version: {}, which follows that etcd\n",
        crate::version::ETCD,
        std::env::consts::OS,
        go::architecture(),
        crate::version::CONCLAVE,
    )
}

impl Settings {
    /// Checks what matters only for a member without data: that the initial cluster names it with
    /// the URLs it advertises, or with URLs of the same addresses. To compare addresses it looks
    /// names up and blocks.
    ///
    /// # Errors
    /// [`ConfigError::Rule`] if the initial cluster and the advertised URLs disagree.
    pub fn verify_bootstrap(&self) -> Result<(), ConfigError> {
        verify_own(&self.bootstrap.initial_cluster, &self.name, &self.listen.advertise_peer_urls)
    }
}

/// Checks that the initial cluster names a member with the URLs it advertises, as
/// [`Settings::verify_bootstrap`] does.
///
/// # Errors
/// [`ConfigError::Rule`] if they disagree.
pub(crate) fn verify_own(
    cluster: &InitialCluster,
    name: &str,
    advertised: &[String],
) -> Result<(), ConfigError> {
    let Some(urls) = cluster.members.get(name) else {
        return Err(ConfigError::Rule(format!(
            "couldn't find local name {name:?} in the initial cluster configuration"
        )));
    };
    if !urls::are_same_places(urls, advertised) {
        return Err(ConfigError::Rule(format!(
            "--initial-cluster has {name}={} but --initial-advertise-peer-urls is {}",
            urls.join(","),
            advertised.join(","),
        )));
    }
    Ok(())
}
