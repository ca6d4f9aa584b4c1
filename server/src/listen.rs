//! Listening on a TCP port or a unix socket.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use conclave_transport::Socket;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::config::{ListenUrl, Place};

/// Connections that the system keeps until they are accepted.
const BACKLOG: u32 = 1_024;

/// An open port.
#[derive(Debug)]
pub(crate) struct Listener {
    inner: Inner,
    /// Whoever connects must speak TLS.
    pub(crate) is_tls: bool,
}

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Opens a port.
    ///
    /// # Errors
    /// Whatever the system reports, with the address.
    pub(crate) fn bind(url: &ListenUrl, reuses_ports: bool) -> io::Result<Self> {
        let inner = match &url.place {
            Place::Tcp(address) => bind_tcp(*address, reuses_ports).map(Inner::Tcp),
            Place::Unix(path) => bind_unix(path).map(|inner| Inner::Unix(inner, path.clone())),
        };
        let inner = inner.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {}: {error}", url.url))
        })?;
        Ok(Self { inner, is_tls: url.is_tls })
    }

    /// The address, with the port that the system chose; `None` for a unix socket.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match &self.inner {
            Inner::Tcp(listener) => listener.local_addr().ok(),
            Inner::Unix(..) => None,
        }
    }

    /// The URL by which this host reaches it.
    pub(crate) fn url(&self) -> String {
        let secure = if self.is_tls { "s" } else { "" };
        match (&self.inner, self.address()) {
            (Inner::Unix(_, path), _) => format!("unix{secure}://{}", path.display()),
            (Inner::Tcp(_), Some(address)) => format!("http{secure}://{address}"),
            (Inner::Tcp(_), None) => String::new(),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// Whatever the system reports, mostly that there are no file descriptors.
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        match &self.inner {
            Inner::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Without it small answers wait for the acknowledgement of earlier ones, up to 40 ms.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot disable Nagle's algorithm");
                }
                Ok(Socket::Tcp(stream))
            }
            Inner::Unix(listener, _) => {
                listener.accept().await.map(|(stream, _)| Socket::Unix(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Inner::Unix(_, path) = &self.inner {
            // Gone already, or another process listens there by now: nothing to do.
            fs::remove_file(path).ok();
        }
    }
}

fn bind_tcp(address: SocketAddr, reuses_ports: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if reuses_ports {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    // What an earlier process left behind; as in etcd. Nothing but a socket is removed.
    if fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}
