//! etcd's v3 services over one node.

pub mod watch;
