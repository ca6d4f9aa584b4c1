//! Services: instances say where they are for as long as they live, and others find them.
//!
//! An instance is the key `<service>/<id>`, attached to a lease, in the layout of the package
//! `naming/endpoints` of etcd's Go client, so that `etcd:///<service>` of grpc-go finds ours and we find
//! theirs. It needs nothing but etcd's v3 API.
//!
//! ```text
//!  register ─► Registration: keeps the key, registers again by itself after a loss, drains
//!  discover ─► Directory: a snapshot, then changes; keeps what it knows while the cluster is away
//!                  └──► BalancedChannel
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

mod directory;
mod record;
mod registration;

use bytes::Bytes;

use crate::{client::Client, error::Error};

pub use self::{
    directory::{Basis, Directory, Discover, Listing},
    record::{Record, State},
    registration::{Register, Registration},
};

impl Client {
    /// The service `name`.
    pub fn service(&self, name: impl Into<String>) -> Service {
        Service { client: self.clone(), name: name.into() }
    }
}

/// A service: what can be done with its name; see [`Client::service`].
#[derive(Debug, Clone)]
#[must_use = "a service does nothing by itself"]
pub struct Service {
    client: Client,
    name: String,
}

impl Service {
    /// Describes an instance at `address` (`host:port`); await it to register it.
    pub fn register(&self, address: impl Into<String>) -> Register {
        Register::new(self.clone(), Record::new(address))
    }

    /// Follows the instances.
    pub fn discover(&self) -> Discover {
        Discover::new(self.clone())
    }

    /// The instances as of now.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn instances(&self) -> Result<Vec<Record>, Error> {
        let prefix = self.prefix();
        let answer = self.client.get(&prefix[..]).prefix().await?;
        Ok(answer.kvs.iter().filter_map(|kv| Record::decode(&prefix, kv)).collect())
    }

    /// What the keys of all instances begin with.
    fn prefix(&self) -> Bytes {
        format!("{}/", self.name).into()
    }
}
