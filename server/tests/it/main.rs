//! In-process clusters: real RocksDB, real raft logs, real gRPC between members on loopback.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api_http;
mod api_kv;
mod api_lease;
mod api_maintenance;
mod auth;
mod auth_waits;
mod backup;
mod browser;
mod cluster;
mod deploy;
mod double_barrier;
mod election;
mod emptied;
mod gateway;
mod gateway_compare;
mod guides;
mod lease;
mod limits;
mod lock;
mod members;
mod metrics;
mod native_election;
mod native_lock;
mod native_lock_wire;
mod node;
mod peer;
mod primitives;
mod recipes_compare;
mod reflection;
mod registry;
mod registry_client;
mod registry_cluster;
mod registry_support;
mod registry_watch;
mod snapshot;
mod support;
mod trace;
mod watch_rules;
mod watch_server;
mod watch_streams;
mod watch_support;
mod web;
mod web_socket;
mod writes;

use conclave_testing::{port, server as reference};
