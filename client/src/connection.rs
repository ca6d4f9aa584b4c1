//! Whether a stream is currently served, for programs that must not mistake an outage for quiet.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether a server currently reports changes to a stream. The stream itself resumes where it
/// stopped; this tells the program that its data may be out of date meanwhile.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::connection::Connection;
///
/// let mut followed = client.group("workers").follow();
/// let mut connection: Connection = followed.connection();
/// loop {
///     tokio::select! {
///         members = followed.next() => println!("{:?}", members?),
///         trouble = connection.changed() => match trouble {
///             Some(why) => eprintln!("the members may be others by now: {why}"),
///             None => eprintln!("the members are told again"),
///         },
///     }
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Connection {
    trouble: watch::Receiver<Option<Arc<str>>>,
}

impl Connection {
    /// Why no server currently reports changes; `None` while one does, or none was tried yet.
    #[must_use]
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.trouble.borrow().clone()
    }

    /// Waits until the connection is lost (returns why) or restored (`None`). Never returns after
    /// the stream has ended. Cancel-safe.
    pub async fn changed(&mut self) -> Option<Arc<str>> {
        if self.trouble.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.trouble.borrow_and_update().clone()
    }
}

/// Publishes the connection state of a stream.
#[derive(Debug, Default)]
pub(crate) struct Reporter(watch::Sender<Option<Arc<str>>>);

impl Reporter {
    pub(crate) fn connection(&self) -> Connection {
        Connection { trouble: self.0.subscribe() }
    }

    /// Reports that a server serves the stream.
    pub(crate) fn is_there(&self) {
        self.0.send_if_modified(|trouble| trouble.take().is_some());
    }

    /// Reports that no server does, and why. Only the first reason since the loss is published.
    pub(crate) fn is_lost(&self, why: impl FnOnce() -> Arc<str>) {
        self.0.send_if_modified(|trouble| {
            let is_news = trouble.is_none();
            if is_news {
                *trouble = Some(why());
            }
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loss_is_told_once_and_so_is_its_end() {
        let reporter = Reporter::default();
        let mut connection = reporter.connection();
        reporter.is_there();
        assert!(!connection.trouble.has_changed().unwrap(), "it never was lost");
        reporter.is_lost(|| "cut".into());
        assert_eq!(connection.changed().await.as_deref(), Some("cut"));
        reporter.is_lost(|| "refused".into());
        assert!(!connection.trouble.has_changed().unwrap());
        reporter.is_there();
        assert_eq!(connection.changed().await, None);
    }
}
