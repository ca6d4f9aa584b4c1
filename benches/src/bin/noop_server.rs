//! `noop-server [ADDRESS]`: answers Put, Range and Txn at once; prints the address it listens on.

use std::io::Write;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = tokio::net::TcpListener::bind(&address).await?;
    writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
    conclave_benches::noop::serve(listener).await
}
