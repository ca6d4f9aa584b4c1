//! TLS of the two ports and of health checks: certificates made or read, handshakes with a timeout,
//! and files that are reloaded when they change.
//! `accept` performs a handshake, `pending` limits how many are in progress, `address` compares a
//! member's certificate with its address, `self_signed` makes a certificate.

mod accept;
mod address;
mod pending;
mod self_signed;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use conclave_transport::{
    Client, ClientTls, Error, Followed, Pair, Server, ServerTls, Verification,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub(crate) use accept::{Acceptor, ClientName, Shaken};

use crate::config::{PortIdentity, PortTls};
use crate::metrics::PortCounts;

/// How often files are checked for changes. A check costs a few microseconds; a revoked certificate
/// should not be accepted for much longer.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Makes the certificate if it is self-signed, and reads the files of the accepting side.
///
/// # Errors
/// [`Error`] if a file or setting cannot be used.
pub(crate) fn accepting(
    settings: &PortTls,
    protocols: &'static [&'static [u8]],
) -> Result<Followed<ServerTls>, Error> {
    let server = Server {
        identity: pair(&settings.identity)?,
        trusted_ca: settings.trusted_ca.clone(),
        revocations: settings.revocations.clone(),
        allowed: settings.allowed.clone(),
        policy: settings.policy.clone(),
        protocols,
    };
    server.follow()
}

/// Reads the files of the connecting side, for calls to other members. They are read again before a
/// handshake if they have changed; reloads are counted, and failures logged once per reason.
///
/// # Errors
/// [`Error`] if a file or setting cannot be used.
pub(crate) fn connecting(
    settings: &PortTls,
    counts: PortCounts,
) -> Result<Followed<ClientTls>, Error> {
    let own = pair(&settings.identity)?;
    let verification = match (&settings.identity, &settings.trusted_ca) {
        // Members that sign their own certificates cannot verify each other's.
        (PortIdentity::SelfSigned { .. }, _) => Verification::Skipped,
        (PortIdentity::Files(_), Some(ca)) => Verification::Ca(ca.clone()),
        (PortIdentity::Files(_), None) => Verification::System,
    };
    let client = Client {
        verification,
        identity: Some(settings.outgoing.clone().unwrap_or(own)),
        server_name: None,
        revocations: settings.revocations.clone(),
        allowed: settings.allowed.clone(),
        policy: settings.policy.clone(),
    };
    Ok(observed(client.follow()?, counts))
}

/// Reads the CA certificates that checks trust; they are read again before a handshake if they have
/// changed.
///
/// # Errors
/// [`Error`] if they cannot be used.
pub(crate) fn checking(ca: &Path) -> Result<Followed<ClientTls>, Error> {
    let verification = Verification::Ca(ca.to_owned());
    Client { verification, ..Client::default() }.follow()
}

/// Counts reloads of the connecting side's files and logs failures.
pub(crate) fn observed(tls: Followed<ClientTls>, counts: PortCounts) -> Followed<ClientTls> {
    let observer = move |outcome: Result<(), &Error>| {
        counts.reloaded(outcome.is_ok());
        if let Err(error) = outcome {
            tracing::warn!(
                port = counts.port(),
                %error,
                "changed TLS files cannot be used to connect; what was read before stays in use"
            );
        }
    };
    tls.observed(observer)
}

fn pair(identity: &PortIdentity) -> Result<Pair, Error> {
    match identity {
        PortIdentity::Files(pair) => Ok(pair.clone()),
        PortIdentity::SelfSigned { dir, hosts, years } => {
            self_signed::find_or_make(dir, hosts, *years)
        }
    }
}

/// Reloads the files of a port whenever they change, until `stop`.
pub(crate) async fn follow(
    tls: Arc<Followed<ServerTls>>,
    counts: PortCounts,
    stop: CancellationToken,
) {
    counts.expires(tls.current().not_after);
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let looked = tls.clone();
        let Ok(looked) = tokio::task::spawn_blocking(move || looked.look()).await else { return };
        let Some(outcome) = looked else { continue };
        counts.reloaded(outcome.is_ok());
        match outcome {
            Ok(()) => {
                counts.expires(tls.current().not_after);
                tracing::info!(port = counts.port(), "read the changed TLS files");
            }
            Err(error) => tracing::error!(
                port = counts.port(),
                %error,
                "changed TLS files cannot be used; what was read before stays in use"
            ),
        }
    }
}
