//! Limits the connections of each client address, so that one client cannot use up all of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use crate::sparse::Sparse;

/// Mask of an IPv6 host's network: all addresses with the same upper 64 bits count as one host.
const NETWORK_BITS: u128 = u128::MAX << 64;

/// Counts the connections of a port by client address.
#[derive(Debug)]
pub(super) struct Crowd {
    max: usize,
    from: Mutex<HashMap<IpAddr, usize>>,
    refused: Counter,
    lines: Sparse,
}

/// One connection, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    /// `None` for a unix socket, to which access is limited by its directory.
    from: Option<IpAddr>,
}

impl Crowd {
    /// At most `max` connections per address; `refused` counts the refused ones.
    pub(super) fn new(max: usize, refused: Counter) -> Arc<Self> {
        Arc::new(Self { max, from: Mutex::default(), refused, lines: Sparse::default() })
    }

    /// Counts a connection. `None` if its address has too many; that is counted and logged.
    pub(super) fn join(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Place> {
        let from = address.map(host);
        if let Some(from) = from {
            let mut all = self.from.lock();
            let connections = all.entry(from).or_default();
            // The address has connections already, so no empty entry is left behind.
            if *connections >= self.max {
                drop(all);
                self.refuse(from);
                return None;
            }
            *connections += 1;
        }
        Some(Place { crowd: Arc::clone(self), from })
    }

    fn refuse(&self, from: IpAddr) {
        self.refused.inc();
        let Some(unsaid) = self.lines.turn() else { return };
        let limit = self.max;
        tracing::warn!(remote_addr = %from, limit, unsaid, "too many connections of one address");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(from) = self.from else { return };
        let mut all = self.crowd.from.lock();
        let Some(connections) = all.get_mut(&from) else { return };
        *connections -= 1;
        if *connections == 0 {
            all.remove(&from);
        }
    }
}

/// The address that stands for the host of `address`.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK_BITS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_takes_none_of_others() {
        let refused = Counter::default();
        let crowd = Crowd::new(2, refused.clone());
        let join = |address: &str| crowd.join(Some(address.parse().unwrap()));
        let places = [join("10.0.0.1"), join("::ffff:10.0.0.1"), join("2001:db8::1")];
        let more = [join("2001:db8::ffff:2"), join("2001:db8:0:1::1"), join("10.0.0.2")];
        assert!(places.iter().chain(&more).all(Option::is_some));
        for address in ["10.0.0.1", "::ffff:a00:1", "2001:db8::3"] {
            assert!(join(address).is_none(), "{address}");
        }
        assert_eq!(refused.get(), 3);
        assert!((0..10).all(|_| crowd.join(None).is_some()), "unix sockets");
        drop(places);
        assert!(join("10.0.0.1").is_some());
        drop(more);
        assert!(crowd.from.lock().is_empty());
    }
}
