//! Large ranges read in pages, all at one revision.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use conclave_proto::etcdserverpb::{
    RangeRequest, RangeResponse,
    range_request::{SortOrder, SortTarget},
};
use futures::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tonic::Status;

use crate::{client::Client, error::Error, kv::Get, namespace::Namespace, reply::Reply};

impl Get<Client> {
    /// Reads the range in pages of at most `size` key-value pairs, in key order: for ranges that
    /// are too large for one answer or not needed at once. All pages are read at the revision of
    /// the first one, or at the requested one; if it is compacted meanwhile, the stream ends with
    /// [`Error::Compacted`]. A limit applies to all pages together. For a serializable range only
    /// the first page is read without a quorum.
    ///
    /// Each page is requested only when it is awaited.
    pub fn pages(self, size: u32) -> Pages {
        let (client, request) = self.into_parts();
        let left = (request.limit > 0).then_some(request.limit);
        // Read with full keys: the first key of a namespace may be the empty name, after which no
        // range can begin.
        let (bare, namespace) = (client.bare(), client.namespace().clone());
        let whole = namespace.range(request);
        let read = Some(whole.map(|request| Read { client: bare, namespace, left, request }));
        let pages = stream::try_unfold(read, move |read| async move {
            match read {
                Some(read) => read?.page(size).await.map(Some),
                None => Ok(None),
            }
        });
        Pages { pages: Mutex::new(pages.fuse().boxed()) }
    }
}

/// A range read page by page; see [`Get::pages`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// let mut pages = client.get("orders/").prefix().pages(500);
/// while let Some(page) = pages.next().await? {
///     for kv in &page.kvs {
///         println!("{} as of {}", String::from_utf8_lossy(&kv.key), page.revision());
///     }
/// }
/// # Ok(()) }
/// ```
#[must_use = "nothing is read until a page is awaited"]
pub struct Pages {
    /// Never locked: it makes the type `Sync`, which the stream is not.
    pages: Mutex<stream::BoxStream<'static, Result<Reply<RangeResponse>, Error>>>,
}

impl Pages {
    /// The next page, or `None` after the last one. Cancel-safe: a cancelled call continues when
    /// awaited again, within its original time limit.
    ///
    /// # Errors
    /// Why the page could not be read, returned once; see [`Error`]. [`Error::Invalid`] for an
    /// order other than key order, or a page size of 0.
    pub async fn next(&mut self) -> Result<Option<Reply<RangeResponse>>, Error> {
        self.pages.get_mut().next().await.transpose()
    }
}

impl Stream for Pages {
    type Item = Result<Reply<RangeResponse>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pages.get_mut().poll_next_unpin(cx)
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// What follows a page, or why nothing can; `None` after the last page.
type Rest = Option<Result<Read, Error>>;

/// The part of the range still to be read.
struct Read {
    client: Client,
    namespace: Namespace,
    request: RangeRequest,
    /// The remaining limit, if there is one.
    left: Option<i64>,
}

impl Read {
    async fn page(mut self, size: u32) -> Result<(Reply<RangeResponse>, Rest), Error> {
        let is_by_key = self.request.sort_order() == SortOrder::None
            || (self.request.sort_target(), self.request.sort_order())
                == (SortTarget::Key, SortOrder::Ascend);
        if size == 0 || !is_by_key {
            let text = "conclave: pages have at least one pair and come in the order of the keys";
            return Err(Error::Invalid(Status::invalid_argument(text)));
        }
        let size = i64::from(size);
        self.request.limit = self.left.map_or(size, |left| left.min(size));
        let page = self.client.send_range(self.request.clone()).await?;
        if self.request.revision == 0 {
            self.request.revision = page.revision();
        }
        // The next page may be read from another member, which must have that revision.
        self.request.serializable = false;
        self.left = self.left.map(|left| left - self.request.limit);
        let is_last = !page.more || self.left == Some(0);
        let last = page.kvs.last().filter(|_| !is_last).map(|kv| after(&kv.key));
        let page = Reply::new(self.namespace.ranged(page.into_inner()));
        Ok(match last {
            Some(next) => {
                self.request.key = next;
                (page, Some(Ok(self)))
            }
            None => (page, None),
        })
    }
}

/// The first possible key after `key`.
fn after(key: &[u8]) -> Bytes {
    [key, b"\0"].concat().into()
}
