//! Transport of bytes between processes: TCP and unix sockets, and TLS on top of them, whose files
//! may be replaced while a process runs. Used by the server for its two ports, by the client and by
//! the load generator. The only TLS stack: rustls with ring.
//!
//! | module | what |
//! |---|---|
//! | `files` | loads certificates, keys and revocation lists, with errors that name the file |
//! | `certificate` | parses names and validity from a certificate |
//! | `policy` | TLS versions and cipher suites |
//! | `allowed` | which names a verified certificate must have |
//! | `verify` | how the two sides verify each other |
//! | `pinned` | trusts certificates by equality, even if they are CA certificates |
//! | `server`, `client` | turn settings of the two sides into rustls configurations |
//! | `follow` | reloads a configuration when its files change |
//! | `delegate` | implements streams for enums of streams |
//! | `target`, `connect`, `socket` | an address, connecting to it, and the connection |
//! | `gather` | combines writes that become ready together |
//! | `dns` | SRV and PTR records |
//! | `failure`, `error` | why a handshake failed, from a closed set; errors in files and settings |

mod allowed;
mod certificate;
mod client;
mod connect;
mod delegate;
pub mod dns;
mod error;
mod failure;
mod files;
mod follow;
mod gather;
mod pinned;
mod policy;
mod server;
mod socket;
mod target;
mod verify;

pub use allowed::Allowed;
pub use certificate::{Certificate, Purposes};
pub use client::{Client, ClientTls, Verification};
pub use connect::{Connector, Stream};
pub use error::Error;
pub use failure::Reason;
pub use files::Pair;
pub use follow::Followed;
pub use gather::Gather;
pub use policy::{Policy, Version};
pub use server::{Server, ServerTls};
pub use socket::Socket;
pub use target::Target;
pub use tokio_rustls::TlsAcceptor;
/// A TLS connection that a server has accepted.
pub type Accepted = tokio_rustls::server::TlsStream<Socket>;
