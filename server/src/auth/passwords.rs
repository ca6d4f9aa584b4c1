//! Hashing passwords with bcrypt: slow on purpose, so away from the async threads and bounded.

use std::sync::Arc;

use bcrypt::Version;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::status::{self, Fault};

/// Hashes that wait for their turn; beyond: `too many requests`. At about 50 ms each the last one waits
/// for some seconds.
const WAITING_MAX: usize = 128;
/// bcrypt knows no more of a password.
const PASSWORD_BYTES_MAX: usize = 72;
/// The text of Go's bcrypt for a longer one.
const TOO_LONG: &str = "bcrypt: password length exceeds 72 bytes";

/// Hashes a few passwords at once; clones share the bounds.
#[derive(Clone)]
pub(crate) struct Passwords {
    cost: u32,
    /// Being hashed.
    turns: Arc<Semaphore>,
    /// Being hashed or waiting for it.
    places: Arc<Semaphore>,
    /// Of no password; compared with where there is nothing to compare with, to take the same time.
    nobody: Arc<std::sync::OnceLock<String>>,
}

impl Passwords {
    pub(crate) fn new(cost: u32) -> Self {
        // Others need the processor, too.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let turns_max = (cores / 2).max(1);
        Self {
            cost,
            turns: Arc::new(Semaphore::new(turns_max)),
            places: Arc::new(Semaphore::new(turns_max + WAITING_MAX)),
            nobody: Arc::default(),
        }
    }

    /// Hashes a password for storing, in the form that etcd stores.
    pub(crate) async fn hash(&self, password: String) -> Result<Bytes, Status> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(status::unknown(TOO_LONG));
        }
        let cost = self.cost;
        let hashed = self.in_turn(move || bcrypt::hash_with_result(password, cost)).await?;
        let hashed = hashed.map_err(|error| status::internal(&error))?;
        Ok(hashed.format_for_version(Version::TwoA).into())
    }

    /// Whether a password has this hash; what is no hash is nobody's. A password that is too long to be
    /// stored counts as far as bcrypt knows it: etcd up to 3.5 stored such ones, and any etcd takes them.
    pub(crate) async fn verify(&self, password: Arc<String>, hash: Bytes) -> Result<bool, Status> {
        let (cost, nobody) = (self.cost, Arc::clone(&self.nobody));
        self.in_turn(move || {
            let stored = std::str::from_utf8(&hash).ok().filter(|hash| !hash.is_empty());
            let known = &password.as_bytes()[..password.len().min(PASSWORD_BYTES_MAX)];
            let compared = stored.unwrap_or_else(|| nobody.get_or_init(|| nobody_hash(cost)));
            let is_equal = bcrypt::verify(known, compared).unwrap_or(false);
            is_equal && stored.is_some()
        })
        .await
    }

    /// Runs `work` when it is its turn. Dropping the future does not end what has begun, and the turn
    /// ends with it.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_full| Status::from(Fault::TooManyRequests))?;
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.expect("invariant: the semaphore is never closed");
        let work = move || {
            let (_turn, _place) = (turn, place);
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| status::internal(&error))
    }
}

/// A hash that no password has that anybody knows.
fn nobody_hash(cost: u32) -> String {
    let password = rand::random::<[u8; 32]>();
    bcrypt::hash_with_result(password, cost)
        .map(|parts| parts.format_for_version(Version::TwoA))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// bcrypt's lowest: tests need not be slow.
    const COST: u32 = 4;

    #[tokio::test]
    async fn a_password_has_its_hash_and_no_other_has() {
        let passwords = Passwords::new(COST);
        let hash = passwords.hash("right".to_owned()).await.unwrap();
        assert!(hash.starts_with(b"$2a$04$"), "as Go writes it");
        let verify = |password: &str, hash: Bytes| {
            let password = Arc::new(password.to_owned());
            passwords.verify(password, hash)
        };
        assert!(verify("right", hash.clone()).await.unwrap());
        assert!(!verify("wrong", hash.clone()).await.unwrap());
        assert!(!verify("", Bytes::new()).await.unwrap(), "nobody has no hash");
        assert!(!verify("right", Bytes::from_static(b"no hash")).await.unwrap());
    }

    #[tokio::test]
    async fn long_passwords_are_not_stored_but_taken() {
        let passwords = Passwords::new(COST);
        let longest = "x".repeat(PASSWORD_BYTES_MAX);
        let hash = passwords.hash(longest.clone()).await.unwrap();
        assert!(passwords.verify(Arc::new(longest.clone()), hash.clone()).await.unwrap());
        assert!(passwords.verify(Arc::new(longest.clone() + "y"), hash.clone()).await.unwrap());
        let shorter = longest[1..].to_owned();
        assert!(!passwords.verify(Arc::new(shorter), hash).await.unwrap());
        let refused = passwords.hash(longest + "y").await.unwrap_err();
        assert_eq!(refused.message(), TOO_LONG);
    }

    #[tokio::test]
    async fn too_many_at_once_are_refused() {
        let passwords = Passwords::new(COST);
        let all = Arc::clone(&passwords.places);
        let taken = all.try_acquire_many(u32::try_from(all.available_permits()).unwrap()).unwrap();
        let refused = passwords.hash("p".to_owned()).await.unwrap_err();
        assert_eq!(refused.message(), Fault::TooManyRequests.text());
        drop(taken);
        assert!(passwords.hash("p".to_owned()).await.is_ok());
    }
}
