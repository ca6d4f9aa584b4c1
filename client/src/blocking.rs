//! The client for programs without an async runtime (feature `blocking`).
//!
//! Every future of this crate has the method [`Block::block`] here, and [`iter`] turns every stream
//! into an iterator. A client's background work, such as keeping leases alive, runs on one thread,
//! which is started when first needed and shared by all clients of the process.
//!
//! ```no_run
//! use std::time::Duration;
//! use conclave_client::{Client, blocking::{Block, connect, iter}};
//!
//! # fn main() -> Result<(), conclave_client::Error> {
//! let client = connect(Client::builder(["127.0.0.1:2379"]))?;
//! client.put("color", "red").block()?;
//! let color = client.get("color").block()?.one();
//!
//! let lock = client.lock("jobs/1").wait(Duration::from_secs(30)).block()?;
//! lock.txn().then(conclave_client::kv::put("states/1", "running")).commit().block()?;
//! lock.release().block()?;
//!
//! for response in iter(client.watch("color").start()) {
//!     println!("{} changes", response?.events.len());
//! }
//! client.close().block();
//! # Ok(()) }
//! ```

use std::{future::IntoFuture, sync::OnceLock};

use futures::{Stream, StreamExt as _};
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};

use crate::{builder::Builder, client::Client, error::Error};

/// Never shut down before the process ends: clients anywhere in the process depend on it.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();

fn runtime() -> Result<&'static Runtime, Error> {
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = RuntimeBuilder::new_multi_thread()
        .worker_threads(1)
        .thread_name("conclave-client")
        .enable_all()
        .build();
    let made = made.map_err(|error| Error::Config {
        message: format!("the system refuses a thread for the client: {error}"),
    })?;
    // Another thread may have been faster; its runtime is used, and this one is dropped.
    Ok(RUNTIME.get_or_init(|| made))
}

/// Makes a client whose background tasks run on this module's thread. Like [`Builder::build`], but
/// for use outside a runtime.
///
/// # Errors
/// Those of [`Builder::build`], and [`Error::Config`] if the thread cannot be started.
pub fn connect(builder: Builder) -> Result<Client, Error> {
    let _entered = runtime()?.enter();
    builder.build()
}

/// Waits on this thread for a future, such as a call or anything else to await in this crate.
///
/// ```no_run
/// # fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::blocking::Block;
///
/// let leadership = client.election("scheduler").campaign("10.0.0.7:80").block()?;
/// client.put("plan", "first a, then b").block()?;
/// leadership.resign().block()?;
/// # Ok(()) }
/// ```
pub trait Block: IntoFuture + Sized {
    /// Waits for the result.
    ///
    /// # Panics
    /// In an async task, where it would keep other tasks from running: use `.await` there
    /// (`spawn_blocking` is fine). Also if the thread cannot be started for which [`connect`]
    /// returns an error.
    fn block(self) -> Self::Output {
        let runtime = runtime().unwrap_or_else(|error| panic!("conclave: {error}"));
        runtime.block_on(self.into_future())
    }
}

impl<F: IntoFuture> Block for F {}

/// Iterates over a stream, waiting for each item on this thread: for watches, observers and pages.
///
/// ```no_run
/// # fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::blocking::iter;
///
/// for page in iter(client.get("orders/").prefix().pages(500)) {
///     println!("{} more orders", page?.kvs.len());
/// }
/// # Ok(()) }
/// ```
pub fn iter<S: Stream + Unpin>(stream: S) -> Iter<S> {
    Iter { stream }
}

/// A stream as an iterator; see [`iter`].
///
/// ```no_run
/// # fn example(client: conclave_client::Client) {
/// use conclave_client::{Watcher, blocking::{Iter, iter}};
///
/// struct Followed { changes: Iter<Watcher> }
///
/// let mut followed = Followed { changes: iter(client.watch("color").start()) };
/// println!("{} changes at first", followed.changes.by_ref().take(10).flatten().count());
/// # }
/// ```
#[derive(Debug)]
pub struct Iter<S> {
    stream: S,
}

impl<S: Stream + Unpin> Iterator for Iter<S> {
    type Item = S::Item;

    fn next(&mut self) -> Option<S::Item> {
        self.stream.next().block()
    }
}
