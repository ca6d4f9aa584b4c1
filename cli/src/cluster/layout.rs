//! Directories and ports of the servers of a local cluster.
//!
//! Members know each other by their ports, so the ports are stored with the data.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    net::TcpListener,
    path::{Path, PathBuf},
};

use crate::failure::Failure;

const CLIENT_PORTS: [u16; 3] = [2379, 22379, 32379];
const PEER_PORTS: [u16; 3] = [2380, 22380, 32380];
const PORTS_FILE: &str = "ports";
/// How much of the end of a log is searched for its last line.
const LOG_TAIL_BYTES: u64 = 64 << 10;

/// Directory and ports of one server.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) client_port: u16,
    pub(super) peer_port: u16,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
}

impl Place {
    pub(super) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    pub(super) fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    pub(super) fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    /// The last line of the server's log.
    pub(super) fn last_log_line(&self) -> String {
        let tail = || -> std::io::Result<String> {
            let mut file = fs::File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        match tail() {
            Ok(text) => text.lines().last().unwrap_or("(nothing logged)").to_owned(),
            Err(error) => format!("({}: {error})", self.log.display()),
        }
    }
}

/// The layout of all servers.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) places: Vec<Place>,
}

impl Layout {
    /// Creates `dir`, or reuses it as it was left. Empty port lists mean the ports used before, or
    /// the default ones.
    ///
    /// # Errors
    /// If the directory cannot be used, or was used with other ports.
    pub(super) fn open(dir: &Path, client: &[u16], peer: &[u16]) -> Result<Self, Failure> {
        let fail = |error: std::io::Error| Failure::error(format!("{}: {error}", dir.display()));
        fs::create_dir_all(dir).map_err(fail)?;
        let dir = dir.canonicalize().map_err(fail)?;
        let file = dir.join(PORTS_FILE);
        let ports = match fs::read_to_string(&file) {
            Ok(text) => {
                let known = parse(&text).ok_or_else(|| {
                    Failure::error(format!("{} cannot be understood", file.display()))
                })?;
                if !client.is_empty() && known != pairs(client, peer)? {
                    let message = format!(
                        "{} belongs to a cluster on other ports ({}): leave out the ports, or \
                         choose another --dir",
                        dir.display(),
                        text.split_whitespace().collect::<Vec<_>>().join(" ")
                    );
                    return Err(Failure::error(message));
                }
                known
            }
            Err(_) if client.is_empty() => pairs(&CLIENT_PORTS, &PEER_PORTS)?,
            Err(_) => pairs(client, peer)?,
        };
        let text: String =
            ports.iter().map(|(client, peer)| format!("{client} {peer}\n")).collect();
        fs::write(&file, text).map_err(fail)?;
        let places = ports.into_iter().enumerate();
        let places = places.map(|(i, (client_port, peer_port))| {
            let name = format!("n{}", i + 1);
            let data_dir = dir.join(&name);
            let log = dir.join(format!("{name}.log"));
            Place { name, client_port, peer_port, data_dir, log }
        });
        Ok(Self { places: places.collect(), dir })
    }

    /// The value of `--initial-cluster`.
    pub(super) fn initial_cluster(&self) -> String {
        let members = self.places.iter();
        let members = members.map(|place| format!("{}={}", place.name, place.peer_url()));
        members.collect::<Vec<_>>().join(",")
    }

    /// # Errors
    /// If one of the ports is already in use.
    pub(super) fn check_ports(&self) -> Result<(), Failure> {
        for port in self.places.iter().flat_map(|place| [place.client_port, place.peer_port]) {
            if let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
                return Err(Failure::error(format!(
                    "port 127.0.0.1:{port} cannot be used ({error}). Does another cluster, or etcd, \
                     run here? Other ports: conclave cluster --dir ./other \
                     --client-ports 4379,4381,4383 --peer-ports 4380,4382,4384"
                )));
            }
        }
        Ok(())
    }
}

fn pairs(client: &[u16], peer: &[u16]) -> Result<Vec<(u16, u16)>, Failure> {
    if client.len() != CLIENT_PORTS.len() || peer.len() != CLIENT_PORTS.len() {
        return Err(Failure::bad_arguments(format!(
            "{} client ports and as many peer ports are needed",
            CLIENT_PORTS.len()
        )));
    }
    Ok(client.iter().copied().zip(peer.iter().copied()).collect())
}

fn parse(text: &str) -> Option<Vec<(u16, u16)>> {
    let pair = |line: &str| {
        let (client, peer) = line.split_once(' ')?;
        Some((client.parse().ok()?, peer.parse().ok()?))
    };
    text.lines().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_ports() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), &[1, 2, 3], &[4, 5, 6]).unwrap();
        let cluster = "n1=http://127.0.0.1:4,n2=http://127.0.0.1:5,n3=http://127.0.0.1:6";
        assert_eq!(layout.initial_cluster(), cluster);
        let again = Layout::open(dir.path(), &[], &[]).unwrap();
        assert_eq!(again.initial_cluster(), cluster);
        assert!(Layout::open(dir.path(), &[1, 2, 9], &[4, 5, 6]).is_err());
        assert!(Layout::open(dir.path(), &[1], &[4]).is_err());
    }
}
