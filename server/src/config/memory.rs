//! Determines how much memory this process may use.

use std::fs;
use std::path::{Path, PathBuf};

/// Assumed where the amount of memory is unknown.
const UNKNOWN_BYTES: u64 = 2 << 30;

/// Memory of the machine, or of the container or systemd unit if its limit is lower.
pub(super) fn usable_bytes() -> u64 {
    // A container may have a `/proc/meminfo` of its own; a service with `ProcSubset=pid` has none.
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_machine(&text));
    let machine = machine.or_else(of_kernel);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = files_of_limits(&groups).filter_map(|path| fs::read_to_string(path).ok());
    // Without a limit the file holds `max`, or a number larger than any machine's memory.
    let limits = limits.filter_map(|text| text.trim().parse().ok());
    machine.into_iter().chain(limits).min().unwrap_or(UNKNOWN_BYTES)
}

/// Limit files of the cgroups in `/proc/self/cgroup`; the limits of all their ancestors apply too.
fn files_of_limits(groups: &str) -> impl Iterator<Item = PathBuf> {
    let files = groups.lines().filter_map(|line| {
        let (kind, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match kind {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        let above = Path::new(path.trim_start_matches('/')).ancestors();
        Some(above.map(move |group| Path::new(root).join(group).join(file)))
    });
    files.flatten()
}

/// Total memory according to the `sysinfo` system call.
fn of_kernel() -> Option<u64> {
    let told = rustix::system::sysinfo();
    (told.totalram as u64).checked_mul(u64::from(told.mem_unit))
}

/// Total memory according to `/proc/meminfo`.
fn of_machine(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_where_linux_tells_it() {
        let text = "MemFree:  10 kB\nMemTotal:       24635108 kB\nMemAvailable: 5 kB\n";
        assert_eq!(of_machine(text), Some(24_635_108 * 1024));
        assert_eq!(of_machine("MemFree: 10 kB\n"), None);
        assert_eq!(of_machine("MemTotal: much\n"), None);
        assert!(usable_bytes() > 0);
        assert!(of_kernel().unwrap() > 0);
        let files = |groups| files_of_limits(groups).collect::<Vec<_>>();
        let unit = ["a.slice/b.service/", "a.slice/", ""];
        let unit = unit.map(|group| PathBuf::from(format!("/sys/fs/cgroup/{group}memory.max")));
        assert_eq!(files("0::/a.slice/b.service\n"), unit);
        let of_memory = ["/docker/x", ""].map(|group| {
            PathBuf::from(format!("/sys/fs/cgroup/memory{group}/memory.limit_in_bytes"))
        });
        let found = files("5:cpu:/docker/x\n4:memory:/docker/x\n");
        assert_eq!([&found[0], &found[2]], [&of_memory[0], &of_memory[1]]);
        assert_eq!(files("nonsense\n"), Vec::<PathBuf>::new());
    }
}
