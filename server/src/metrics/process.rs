//! The system's figures for this process, from `/proc`; zeros where there is none.

use std::fs;

/// Clock ticks per second in `/proc/self/stat`; fixed in Linux's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// Resource usage at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    /// Soft limit on virtual memory; `u64::MAX` if there is none.
    pub(super) virtual_bytes_max: u64,
    pub(super) cpu_seconds: f64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
}

impl Process {
    /// Reads the current usage.
    pub(super) fn now() -> Self {
        Self {
            resident_bytes: memory_bytes("VmRSS:").unwrap_or_default(),
            virtual_bytes: memory_bytes("VmSize:").unwrap_or_default(),
            virtual_bytes_max: limit("Max address space").unwrap_or_default(),
            cpu_seconds: cpu_seconds().unwrap_or_default(),
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64),
            max_fds: limit("Max open files").unwrap_or_default(),
        }
    }
}

fn memory_bytes(kind: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(kind))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The process name in parentheses may hold anything; fields are counted after it.
    let fields = stat.rsplit_once(')')?.1;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// A soft limit of this process.
fn limit(name: &str) -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}
