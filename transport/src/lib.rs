//! How bytes get from one process to another: TCP and unix sockets, and TLS on top of them whose files
//! may be replaced while a process runs. Used by the server for its two ports, by the client and by
//! the load generator. One TLS stack: rustls with ring.
//!
//! | module | what |
//! |---|---|
//! | `files` | certificates, keys and revocation lists from files, with errors that name them |
//! | `certificate` | what is read from a certificate: names and validity |
//! | `policy` | TLS versions and cipher suites |
//! | `allowed` | which names a verified certificate must have |
//! | `verify` | how the two sides verify each other |
//! | `pinned` | certificates that are trusted as they are, though they are an authority's |
//! | `server`, `client` | the two sides' settings -> rustls configurations |
//! | `follow` | a configuration that is made anew when its files change |
//! | `delegate` | streams that are one of several |
//! | `target`, `connect`, `socket` | an address, the way to it, and the bytes |
//! | `gather` | one write for what becomes ready together |
//! | `dns` | SRV and PTR records |
//! | `failure`, `error` | why a handshake failed, from a closed set; what is wrong with files and settings |

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
/// A connection that a server has accepted.
pub type Accepted = tokio_rustls::server::TlsStream<Socket>;
