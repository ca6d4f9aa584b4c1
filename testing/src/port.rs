//! Ports for the servers that tests start.

use std::{
    net::TcpListener,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// The first port and their number: all below those that systems give to outgoing connections, any of
/// which could otherwise take a port after it was found free and before a server listens there.
const FIRST: u32 = 10_240;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of the loopback address where nobody listens, another one at each call.
pub fn free_port() -> u16 {
    // Processes that test at the same time begin at different places.
    let begin = process::id().wrapping_mul(7_919) % COUNT;
    for _ in 0..COUNT {
        let offset = (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("all of them are below 65,536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("{COUNT} ports are taken");
}
