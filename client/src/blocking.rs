//! The client for programs without a runtime, with the feature `blocking`.
//!
//! Everything that is awaited elsewhere has the method [`Block::block`] here, and every stream [`iter`]. What a
//! client does in the background, as to keep leases alive, runs on one thread that this module starts when it is
//! first used and that all clients of the process share.
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

/// Ends with the process: what it keeps alive belongs to clients that may be anywhere.
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
    // Another thread may have been faster; its runtime counts, and this one ends.
    Ok(RUNTIME.get_or_init(|| made))
}

/// Makes a client whose own tasks run on the thread of this module. As [`Builder::build`], but outside of a
/// runtime.
///
/// # Errors
/// Those of [`Builder::build`], and [`Error::Config`] if the system refuses a thread.
pub fn connect(builder: Builder) -> Result<Client, Error> {
    let _entered = runtime()?.enter();
    builder.build()
}

/// Waits, on this thread, for what is awaited elsewhere: for calls, and for everything else that this crate returns.
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
    /// Waits for it.
    ///
    /// # Panics
    /// Within a task of a runtime, where it would keep others from running: await it there (`spawn_blocking` is no such
    /// place). And if the system refuses the thread that [`connect`] could not have gone without.
    fn block(self) -> Self::Output {
        let runtime = runtime().unwrap_or_else(|error| panic!("conclave: {error}"));
        runtime.block_on(self.into_future())
    }
}

impl<F: IntoFuture> Block for F {}

/// The items of a stream, each waited for on this thread: of a watch, an observer, or pages.
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
