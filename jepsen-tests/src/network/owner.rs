//! Which member made a connection. All of them dial from the loopback address, so only the system knows whose socket
//! it is: Linux says so in `/proc`, to whoever owns both processes.

use std::fs;
use std::path::Path;

/// The sockets of IPv4, and those of IPv6, which may speak IPv4 as well.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// Which of `pids` holds the socket that connects from port `local` to port `remote` of the loopback address.
pub(super) fn owner(pids: &[Option<u32>], local: u16, remote: u16) -> Option<usize> {
    let tables = TABLES.iter().filter_map(|path| fs::read_to_string(path).ok());
    let inode = tables.into_iter().find_map(|table| inode(&table, local, remote))?;
    let link = format!("socket:[{inode}]");
    pids.iter().position(|pid| pid.is_some_and(|pid| holds(pid, &link)))
}

/// The inode of a socket in a table as the system prints it.
fn inode(table: &str, local: u16, remote: u16) -> Option<u64> {
    // A line: slot, local address, remote address, state, three more, uid, timeout, inode.
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = port(fields.get(1)?)? == local && port(fields.get(2)?)? == remote;
        // Closed already, it belongs to nobody.
        is_it.then(|| fields.get(9)?.parse().ok().filter(|inode| *inode != 0))?
    })
}

fn port(address: &str) -> Option<u16> {
    u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok()
}

fn holds(pid: u32, link: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let links = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    links.into_iter().any(|target| target == Path::new(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_both_of_its_ports() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0\n   \
             1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 22 1 0 20 4 30 10 -1\n   \
             2: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 33 1 0 20 4 30 10 -1\n   \
             3: 0100007F:C351 0100007F:1F90 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0\n";
        assert_eq!(inode(table, 50_000, 8080), Some(33));
        assert_eq!(inode(table, 8080, 50_000), Some(22));
        assert_eq!(inode(table, 50_001, 8080), None, "it is closed");
        assert_eq!(inode(table, 50_002, 8080), None);
    }
}
