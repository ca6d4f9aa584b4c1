//! The client port: gRPC and plain HTTP on one listener, HTTP/1.1 and HTTP/2 alike.
//!
//! A request with a gRPC content type goes to the services, any other to the few pages of `pages`.
//! Whatever arrives on the port, the worst that happens is that its connection ends.

mod authority;
mod client_stream;
mod listen;
mod pages;
mod route;

pub(crate) use listen::bind;
pub(crate) use route::Router;
