//! Reads what the kernel knows about a process: CPU time, bytes written, resident memory, open
//! ports.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// Kernel ticks per second in /proc/PID/stat: 100 on every Linux that Debian builds.
const TICKS_PER_SECOND: u64 = 100;
const TCP_LISTEN: &str = "0A";

/// Counters of one process, or of several added up.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// User and system CPU time.
    pub cpu_us: u64,
    /// Bytes that reached the block layer.
    pub write_bytes: u64,
    /// Resident memory at present.
    pub rss_bytes: u64,
    /// Resident anonymous memory at present (without mapped files).
    pub rss_anon_bytes: u64,
}

impl Usage {
    /// Reads the counters of one process.
    ///
    /// # Errors
    /// If the process is gone or /proc is unreadable.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read stat")?;
        // The command name may contain spaces; fields count from after its closing parenthesis.
        let rest = stat.rsplit_once(')').context("stat has a name")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks =
            |index: usize| -> Result<u64> { Ok(fields.get(index).context("stat field")?.parse()?) };
        let cpu_us = (ticks(11)? + ticks(12)?) * (1_000_000 / TICKS_PER_SECOND);
        let io = fs::read_to_string(format!("/proc/{pid}/io")).context("read io")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read status")?;
        Ok(Self {
            cpu_us,
            write_bytes: field(&io, "write_bytes:")?,
            rss_bytes: field(&status, "VmRSS:")? * 1024,
            rss_anon_bytes: field(&status, "RssAnon:")? * 1024,
        })
    }

    /// The sum over several processes.
    ///
    /// # Errors
    /// If one of them is gone.
    pub fn of_all(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for &pid in pids {
            let one = Self::of(pid).with_context(|| format!("usage of process {pid}"))?;
            sum.cpu_us += one.cpu_us;
            sum.write_bytes += one.write_bytes;
            sum.rss_bytes += one.rss_bytes;
            sum.rss_anon_bytes += one.rss_anon_bytes;
        }
        Ok(sum)
    }
}

fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    value.with_context(|| format!("no {name}"))?.parse().with_context(|| format!("parse {name}"))
}

/// Checks that one of `pids` listens on `port` on loopback; otherwise a stale server would be
/// measured.
///
/// # Errors
/// If nobody, or another process, listens on the port.
pub fn check_port_owner(port: u16, pids: &[u32]) -> Result<()> {
    let inode = listening_inode(port)?.with_context(|| format!("nobody listens on port {port}"))?;
    let wanted = format!("socket:[{inode}]");
    let is_owner = pids.iter().any(|&pid| holds_descriptor(pid, &wanted));
    ensure!(is_owner, "port {port} is owned by none of the processes {pids:?}");
    Ok(())
}

fn listening_inode(port: u16) -> Result<Option<u64>> {
    let suffix = format!(":{port:04X}");
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(text) = fs::read_to_string(table) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.len() > 9 && fields[1].ends_with(&suffix) && fields[3] == TCP_LISTEN {
                return Ok(Some(fields[9].parse()?));
            }
        }
    }
    Ok(None)
}

fn holds_descriptor(pid: u32, wanted: &str) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link == Path::new(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_of_this_process_is_plausible() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 100_000 && usage.rss_anon_bytes <= usage.rss_bytes);
    }

    #[test]
    fn port_belongs_to_the_process_that_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        check_port_owner(port, &[std::process::id()]).unwrap();
        assert!(check_port_owner(port, &[1]).is_err());
        drop(listener);
        assert!(check_port_owner(port, &[std::process::id()]).is_err());
    }
}
