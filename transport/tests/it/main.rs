//! Handshakes over loopback, and files that are replaced or broken.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod dns;
mod files;
mod handshake;

use conclave_testing::{authority, name_server};
