//! Who a process is, for people who look at what it holds.

/// What a session says of an owner that nobody named: the process, and where it runs.
pub(crate) fn of_process() -> String {
    let process = format!("process {}", std::process::id());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => process,
        host => format!("{process} on {host}"),
    }
}
