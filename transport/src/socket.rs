//! An operating system connection: TCP or unix socket.

use std::net::IpAddr;

use tokio::net::{TcpStream, UnixStream};

use crate::delegate::read_and_write_by_variant;

/// An operating system connection.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// The address at the other end; `None` for a unix socket.
    #[must_use]
    pub fn peer_ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok().map(|address| address.ip()),
            Self::Unix(_) => None,
        }
    }
}

read_and_write_by_variant!(Socket { Tcp, Unix });
