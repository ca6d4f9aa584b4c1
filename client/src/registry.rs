//! Service discovery: instances register for as long as they live, and clients find them.
//!
//! An instance is the key `<service>/<id>`, attached to a session, in the layout of the package
//! `naming/endpoints` of etcd's Go client: `etcd:///<service>` of grpc-go finds our instances, and
//! we find theirs. Against a server that only speaks etcd's API a lease replaces the session, and
//! health checks, damping, the guard against mass loss and removal reasons are missing; everything
//! else works alike.
//!
//! ```text
//!  register ─► Registration: keeps the instance, registers again by itself after a loss, drains
//!  discover ─► Directory: a snapshot, then changes; keeps what it knows while the cluster is away
//!                  └──► BalancedChannel
//!  changes  ─► Changes: every change with its reason, for tools
//! ```
//! ```no_run
//! # async fn example(client: conclave_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use conclave_client::{balance::BalancedChannel, pb::kv_client::KvClient};
//!
//! let service = client.service("shop/api");
//! let registration = service.register("10.0.0.7:80").zone("a").version("1.4.0").await?;
//!
//! let channel = service.discover().start().channel(BalancedChannel::builder());
//! let api = KvClient::new(channel); // any generated client
//!
//! registration.drain(Duration::from_secs(10)).await?;
//! # Ok(())
//! # }
//! ```

mod admin;
mod changes;
mod directory;
mod entry;
mod hold;
mod keeper;
mod record;
mod registration;
mod replay;
mod source;

use bytes::Bytes;
use conclave_proto::{
    mvccpb::KeyValue,
    v1::{Instance, InstanceFilter},
};

use crate::{client::Client, error::Error};

pub use conclave_state_machine::registry::record::{
    Check, CheckKind, Checked, Details, Health, Record, State,
};

pub(crate) use self::entry::{Entries, Exit};
pub use self::{
    changes::Changes,
    directory::{Basis, Directory, Discover, Listing},
    registration::{Register, Registration},
};

impl Client {
    /// The service `name`.
    pub fn service(&self, name: impl Into<String>) -> Service {
        Service { client: self.bare(), name: name.into() }
    }
}

/// A service by name; see [`Client::service`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// // A single look; to call instances, use `discover`, which follows them.
/// for record in client.service("shop/api").instances().await? {
///     let word = if record.is_healthy() { "takes calls" } else { "does not" };
///     println!("{} at {} in {}: {word}", record.id, record.address, record.zone);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a service does nothing by itself"]
pub struct Service {
    client: Client,
    name: String,
}

impl Service {
    /// Describes an instance at `address` (`host:port`); await the result to register it.
    pub fn register(&self, address: impl Into<String>) -> Register {
        Register::new(self.clone(), Record::new(address))
    }

    /// Starts to describe a [`Directory`], which follows the instances.
    pub fn discover(&self) -> Discover {
        Discover::new(self.clone())
    }

    /// The current instances, read once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn instances(&self) -> Result<Vec<Record>, Error> {
        match self.resolve(InstanceFilter::default()).await {
            Ok(found) => Ok(found.iter().filter_map(record_of).collect()),
            Err(Error::Unimplemented(_)) => {
                let prefix = self.prefix();
                let answer = self.client.get(&prefix[..]).prefix().await?;
                Ok(answer.kvs.iter().filter_map(|kv| decode(&prefix, kv)).collect())
            }
            Err(error) => Err(error),
        }
    }

    /// The prefix of the keys of all instances.
    fn prefix(&self) -> Bytes {
        format!("{}/", self.name).into()
    }
}

/// Decodes the instance stored under a key; `None` if the key holds something else.
fn decode(prefix: &Bytes, kv: &KeyValue) -> Option<Record> {
    let id = std::str::from_utf8(kv.key.strip_prefix(&prefix[..])?).ok()?;
    Record::decode(id, &kv.value)
}

/// Decodes the instance in a message.
fn record_of(instance: &Instance) -> Option<Record> {
    Record::decode(&instance.id, &instance.record)
}
