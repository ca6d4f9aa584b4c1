//! A file with the last answer of the cluster (settings or instances), for a start without the
//! cluster.
//!
//! The file has one line of text, `conclave-config 1 <saved> <request> <content>`, followed by the
//! cluster's answer as it was received. `saved` is in milliseconds since 1970. `request` is the
//! CRC-32C of the request and `content` that of time and answer, both in hexadecimal, so that
//! neither damaged files nor those of another program are used. A new file replaces the old one
//! atomically.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use conclave_proto::etcdserverpb::{TxnRequest, TxnResponse};
use prost::Message;

const MAGIC: &str = "conclave-config";
const VERSION: &str = "1";
/// Larger files are not read: no store sends that much in one answer.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// A file with the last good answer.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    path: PathBuf,
    /// How old the file may be; `None` for any age.
    max_staleness: Option<Duration>,
    request_crc: u32,
}

impl Cache {
    pub(crate) fn new(
        path: PathBuf,
        max_staleness: Option<Duration>,
        request: &TxnRequest,
    ) -> Self {
        Self { path, max_staleness, request_crc: crc32c::crc32c(&request.encode_to_vec()) }
    }

    /// How old the file may be; `None` for any age.
    pub(crate) fn max_staleness(&self) -> Option<Duration> {
        self.max_staleness
    }

    /// Writes the answer, readable only by its owner, because settings may hold secrets.
    ///
    /// # Errors
    /// If the file cannot be written. The old one is then unchanged.
    pub(crate) fn save(&self, answer: &TxnResponse) -> io::Result<()> {
        let content = answer.encode_to_vec();
        let saved = now_ms();
        let header = self.header(saved, &content);
        let temporary = self.temporary();
        let written = write(&temporary, header.as_bytes(), &content)
            .and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            // It may not have been created.
            fs::remove_file(&temporary).ok();
        }
        written?;
        match self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // After a power failure the new name exists only if the directory was synced, too.
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Why the file cannot be used.
    pub(crate) fn load(&self) -> Result<TxnResponse, String> {
        let about = |reason: &str| format!("{}: {reason}", self.path.display());
        let failed = |error: io::Error| about(&error.to_string());
        if fs::metadata(&self.path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(about("too large"));
        }
        let bytes = fs::read(&self.path).map_err(failed)?;
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| about("damaged"))?;
        let (header, content) = (&bytes[..=end], &bytes[end + 1..]);
        let header = std::str::from_utf8(header).map_err(|_invalid| about("damaged"))?;
        let mut words = header.split_whitespace();
        if (words.next(), words.next()) != (Some(MAGIC), Some(VERSION)) {
            return Err(about("not a file of this program's version"));
        }
        let saved: u64 =
            words.next().and_then(|word| word.parse().ok()).ok_or_else(|| about("damaged"))?;
        if words.next() != Some(&format!("{:08x}", self.request_crc)) {
            return Err(about("made for other keys"));
        }
        if header != self.header(saved, content) {
            return Err(about("damaged"));
        }
        let age = Duration::from_millis(now_ms().saturating_sub(saved));
        if self.max_staleness.is_some_and(|max| age > max) {
            return Err(about(&format!("{} s old, which is too old", age.as_secs())));
        }
        TxnResponse::decode(content).map_err(|error| about(&error.to_string()))
    }

    /// A temporary name beside the file that no other writer uses at the same time.
    fn temporary(&self) -> PathBuf {
        static SAVES: AtomicU64 = AtomicU64::new(0);
        let (process, save) = (std::process::id(), SAVES.fetch_add(1, Ordering::Relaxed));
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{process}.{save}.tmp"));
        name.into()
    }

    fn header(&self, saved: u64, content: &[u8]) -> String {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&saved.to_be_bytes()), content);
        format!("{MAGIC} {VERSION} {saved} {:08x} {crc:08x}\n", self.request_crc)
    }
}

/// The wall clock: it only has to tell hours from days.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn write(path: &Path, header: &[u8], content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(header)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use conclave_proto::etcdserverpb::ResponseHeader;
    use tempfile::TempDir;

    use super::*;
    use crate::{kv::get, txn::txn};

    fn answer(revision: i64) -> TxnResponse {
        let header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
        TxnResponse { header, succeeded: true, ..TxnResponse::default() }
    }

    fn cache(dir: &TempDir, prefix: &str, max_staleness: Option<Duration>) -> Cache {
        let request = txn().then(get(prefix).prefix()).request;
        Cache::new(dir.path().join("app.cache"), max_staleness, &request)
    }

    #[test]
    fn what_was_saved_last_is_loaded() {
        let dir = TempDir::new().unwrap();
        let cache = cache(&dir, "a/", Some(Duration::from_secs(60)));
        assert!(cache.load().is_err());
        for revision in [5, 6] {
            cache.save(&answer(revision)).unwrap();
            assert_eq!(cache.load().unwrap(), answer(revision));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn files_that_differ_in_the_extension_only_do_not_mix() {
        let dir = TempDir::new().unwrap();
        let request = TxnRequest::default();
        let caches =
            ["svc.v1", "svc.v2"].map(|name| Cache::new(dir.path().join(name), None, &request));
        // One save is half done when the other begins, or both write the same file at once.
        let temporaries = [&caches[0], &caches[1], &caches[0]].map(Cache::temporary);
        assert_ne!(temporaries[0], temporaries[1]);
        assert_ne!(temporaries[0], temporaries[2]);
        std::thread::scope(|scope| {
            for (cache, revision) in caches.iter().zip([1, 2]) {
                scope.spawn(move || {
                    for _ in 0..100 {
                        cache.save(&answer(revision)).unwrap();
                        assert_eq!(cache.load().unwrap(), answer(revision));
                    }
                });
            }
        });
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let dir = TempDir::new().unwrap();
        let cache = cache(&dir, "a/", None);
        cache.save(&answer(5)).unwrap();
        let good = fs::read(&cache.path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&cache.path, &bad).unwrap();
            assert!(cache.load().is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            fs::write(&cache.path, &good[..length]).unwrap();
            assert!(cache.load().is_err(), "length {length}");
        }
    }

    #[test]
    fn files_that_are_too_old_or_for_other_keys_are_not_used() {
        let dir = TempDir::new().unwrap();
        cache(&dir, "a/", None).save(&answer(5)).unwrap();
        let error = cache(&dir, "b/", None).load().unwrap_err();
        assert!(error.contains("other keys"), "{error}");
        let old = Cache { max_staleness: Some(Duration::ZERO), ..cache(&dir, "a/", None) };
        while now_ms() == saved(&old) {
            std::hint::spin_loop();
        }
        let error = old.load().unwrap_err();
        assert!(error.contains("too old"), "{error}");
    }

    fn saved(cache: &Cache) -> u64 {
        let bytes = fs::read(&cache.path).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.split_whitespace().nth(2).unwrap().parse().unwrap()
    }
}
