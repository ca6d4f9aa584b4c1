//! The checkers against seeded faults, and real nodes against the checkers.

mod checkers;
mod cluster;
mod differential;
mod network;
mod rights;
mod simulated;
