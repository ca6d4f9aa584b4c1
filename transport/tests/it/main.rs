//! Handshakes over loopback, and files that are replaced or broken.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod authority;
mod dns;
mod files;
mod handshake;
mod name_server;
