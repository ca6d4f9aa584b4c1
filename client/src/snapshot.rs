//! A member's state as a stream of bytes, with a check that it is complete.

use std::time::Duration;

use bytes::Bytes;
use conclave_proto::etcdserverpb::{
    SnapshotRequest, SnapshotResponse, maintenance_client::MaintenanceClient,
};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use tokio::time::timeout;
use tonic::{Request, Status, Streaming, metadata::MetadataValue};

use crate::{
    client::Client,
    error::{Error, Outcome},
    login::Channel,
};

/// Longest wait for the next bytes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the first bytes: for etcd's format the member reads its whole state first.
const FIRST_MAX: Duration = Duration::from_secs(30 * 60);

/// Metadata key with which a client selects the format.
const FORMAT: &str = "conclave-snapshot-format";

/// The format of a snapshot. Both contain the whole state.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::snapshot::SnapshotFormat;
///
/// // A state of many GB that will not be restored into etcd.
/// let mut snapshot = client.snapshot_as(SnapshotFormat::Conclave).await?;
/// while let Some(_piece) = snapshot.next().await? {}
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnapshotFormat {
    /// A database file that etcd's own programs can read and restore.
    #[default]
    Etcd,
    /// The files of the member as they are: faster to save and restore.
    Conclave,
}

/// A snapshot of one member being received; see [`Client::snapshot`].
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::Write;
///
/// let mut file = std::fs::File::create("backup.part")?;
/// let mut snapshot = client.each()[0].snapshot().await?; // one member is enough
/// while let Some(piece) = snapshot.next().await? {
///     file.write_all(&piece.bytes)?;
/// }
/// file.sync_all()?; // only now all of it came, and its digest is right
/// std::fs::rename("backup.part", "backup.db")?;
/// # Ok(()) }
/// ```
pub struct Snapshot {
    stream: Streaming<SnapshotResponse>,
    has_begun: bool,
    endpoint: String,
    hash: Context,
    /// The last bytes received: the digest, if nothing follows.
    last: Vec<u8>,
}

/// The next bytes of a snapshot.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::snapshot::SnapshotPiece;
///
/// /// The progress of a backup, in percent.
/// fn progress(done_bytes: u64, piece: &SnapshotPiece) -> u64 {
///     done_bytes * 100 / (done_bytes + piece.remaining).max(1)
/// }
/// let (mut snapshot, mut done_bytes) = (client.snapshot().await?, 0);
/// while let Some(piece) = snapshot.next().await? {
///     done_bytes += piece.bytes.len() as u64;
///     eprintln!("{} %", progress(done_bytes, &piece));
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPiece {
    /// The bytes to append to those before.
    pub bytes: Bytes,
    /// About how many bytes follow.
    pub remaining: u64,
}

impl Client {
    /// Requests a member's whole state. Write the bytes unchanged to one file, for `conclave
    /// snapshot restore` or `etcdutl snapshot restore`.
    ///
    /// # Errors
    /// See [`Error`]. The client's time limit applies only until the stream has begun.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        self.snapshot_as(SnapshotFormat::Etcd).await
    }

    /// Like [`Client::snapshot`], in another format. An etcd always sends its own.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn snapshot_as(&self, format: SnapshotFormat) -> Result<Snapshot, Error> {
        let call = |channel: Channel| async move {
            let mut request = Request::new(SnapshotRequest {});
            if format == SnapshotFormat::Conclave {
                request.metadata_mut().insert(FORMAT, MetadataValue::from_static("conclave"));
            }
            MaintenanceClient::new(channel.open_end()).snapshot(request).await
        };
        let stream = self.read(call).await?;
        let endpoint = self.endpoints().join(",");
        Ok(Snapshot {
            stream,
            has_begun: false,
            endpoint,
            hash: Context::new(&SHA256),
            last: Vec::new(),
        })
    }
}

impl Snapshot {
    /// The next bytes; `None` after the last ones, when the digest of all bytes was verified. Not
    /// cancel-safe.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the digest does not match; [`Error::Deadline`] if nothing arrives for
    /// a minute (before the first bytes: half an hour); otherwise see [`Error`]. The bytes received
    /// are then useless.
    pub async fn next(&mut self) -> Result<Option<SnapshotPiece>, Error> {
        let limit = if self.has_begun { IDLE_MAX } else { FIRST_MAX };
        let answer = timeout(limit, self.stream.message()).await.map_err(|_| {
            let endpoint = self.endpoint.clone();
            Error::Deadline { outcome: Outcome::NotApplied, endpoint, timeout: limit }
        })?;
        let answer = answer.map_err(|status| Error::from_status(status, &self.endpoint))?;
        let Some(SnapshotResponse { blob, remaining_bytes, .. }) = answer else {
            return self.verify().map(|()| None);
        };
        self.has_begun = true;
        self.take(&blob);
        Ok(Some(SnapshotPiece { bytes: blob, remaining: remaining_bytes }))
    }

    /// Hashes all bytes except those that may be the digest.
    fn take(&mut self, bytes: &[u8]) {
        self.last.extend_from_slice(bytes);
        let ready = self.last.len().saturating_sub(SHA256_OUTPUT_LEN);
        self.hash.update(&self.last[..ready]);
        self.last.drain(..ready);
    }

    fn verify(&self) -> Result<(), Error> {
        if self.hash.clone().finish().as_ref() == self.last {
            return Ok(());
        }
        let text = "the snapshot is damaged or incomplete: its SHA-256 is wrong";
        Err(Error::Corrupt(Status::data_loss(text)))
    }
}
