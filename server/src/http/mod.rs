//! The client port: gRPC and plain HTTP on one listener, HTTP/1.1 and HTTP/2 alike.
//!
//! A request with a gRPC content type goes to the services, from a browser by way of `grpc_web`, any
//! other to the few pages of `pages` and `probes`, and to the gateway, which makes calls of JSON.
//! Whatever arrives on the port, the worst that happens is that its connection ends.
//!
//! | module | what |
//! |---|---|
//! | `listen`, `crowd`, `client_stream` | connections, how many an address has, and their bytes |
//! | `route`, `authority`, `place` | which answer a request gets; names that clients should not send; paths |
//! | `web`, `grpc_web` | what browsers may do, and gRPC as they can speak it |
//! | `pages`, `probes` | `/version`, `/metrics`, discovery for Prometheus; `/health`, `/livez`, `/readyz` |
//! | `gateway` | JSON |
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
