//! The default owner name of a session, for people who inspect what it holds.

/// The owner of a session for which none was given: this process and its host.
pub(crate) fn of_process() -> String {
    let process = format!("process {}", std::process::id());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => process,
        host => format!("{process} on {host}"),
    }
}
