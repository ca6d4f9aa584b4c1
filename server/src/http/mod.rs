//! The client port: gRPC and plain HTTP on one listener, HTTP/1.1 and HTTP/2 alike.
//!
//! A request with a gRPC content type goes to the services (a browser's by way of `grpc_web`), any
//! other to the pages of `pages` and `probes`, or to the gateway, which translates JSON calls.
//! Whatever arrives on the port, the worst outcome is that its connection is closed.
//!
//! | module | what |
//! |---|---|
//! | `listen`, `crowd`, `client_stream` | connections, their number per address, and their bytes |
//! | `route`, `authority`, `place` | which answer a request gets; invalid `:authority` values; path normalisation |
//! | `web`, `grpc_web` | what browsers may do, and gRPC-web |
//! | `pages`, `probes` | `/version`, `/metrics`, discovery for Prometheus; `/health`, `/livez`, `/readyz` |
//! | `gateway` | the JSON gateway |
//! | `deadline` | how long a call may take |
//! | `held` | answers whose memory is counted until they are sent |

mod authority;
mod client_stream;
mod crowd;
mod deadline;
mod gateway;
mod grpc_web;
mod held;
mod listen;
mod pages;
mod place;
mod probes;
mod route;
mod web;

pub(crate) use listen::bind;
pub(crate) use route::Router;
