//! The client against real servers.

mod fail_over;
mod kv;
mod lease;
mod server;
mod watch;

use conclave_client::Client;

use server::Server;

/// A server and a ready client of it, or nothing if no server is installed.
async fn start(test: &str) -> Option<(Server, Client)> {
    let server = Server::single(server::program(test)?);
    let client = Client::builder([server.endpoint()]).build().expect("a client");
    client.ready().await.expect("the server serves");
    Some((server, client))
}
