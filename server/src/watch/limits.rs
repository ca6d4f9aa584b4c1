//! Every bound of watching, by name.

use std::time::Duration;

/// Bounds of one hub. The defaults serve a node; tests use small ones to reach every path.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Watchers on one stream.
    pub stream_watchers: usize,
    /// Watchers on all streams of one connection.
    pub connection_watchers: usize,
    /// Watchers on all streams of this node.
    pub watchers: usize,
    /// Events published and not yet dispatched; beyond, watchers read them from the store.
    pub inbox_events: usize,
    /// Bytes of these.
    pub inbox_bytes: usize,
    /// Events on the ring. Keys and values count once; their wire bytes come on top.
    pub ring_events: usize,
    /// Bytes of these.
    pub ring_bytes: usize,
    /// Deliveries that wait for one stream; beyond, the stream catches up.
    pub mailbox_deliveries: usize,
    /// Revisions in one batch or window (etcd's catch-up batch).
    pub window_revisions: i64,
    /// Bytes at which a batch or window ends.
    pub window_bytes: usize,
    /// Windows of old events kept to be shared.
    pub windows: usize,
    /// Bytes of these, except that one is kept in any case.
    pub windows_bytes: usize,
    /// Reads of old events at one time.
    pub catch_up_reads: usize,
    /// Bytes of answers that a stream makes before it lets its connection send them.
    pub chunk_bytes: usize,
    /// Bytes of deliveries that are put together into one answer.
    pub response_bytes: usize,
    /// A fragmented answer is split here: the largest request plus what gRPC adds.
    pub fragment_bytes: usize,
    /// How long a stream whose client insists on a leader survives without one.
    pub leaderless: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            stream_watchers: usize::MAX,
            connection_watchers: usize::MAX,
            watchers: usize::MAX,
            inbox_events: 65_536,
            inbox_bytes: 16 << 20,
            ring_events: 32_768,
            ring_bytes: 16 << 20,
            mailbox_deliveries: 4_096,
            window_revisions: 1_000,
            window_bytes: 512 << 10,
            windows: 16,
            windows_bytes: 32 << 20,
            catch_up_reads: 2,
            chunk_bytes: 32 << 10,
            response_bytes: 1 << 20,
            fragment_bytes: 1_572_864 + (512 << 10),
            leaderless: Duration::from_secs(3),
        }
    }
}
