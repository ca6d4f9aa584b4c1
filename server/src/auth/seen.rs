//! Tokens that were looked at lately: what the same text means is known without a digest, a lock that all calls
//! share, or a signature.
//!
//! One place for each of a few hundred hashes, so that nothing is searched, ordered or cleaned. The hash is keyed
//! and compared before the text, so that time tells nothing of the text of others' tokens.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Instant;

use conclave_state_machine::command::{Caller, UserName};
use parking_lot::Mutex;

/// Tokens that are known at once; a power of two.
const PLACES: usize = 256;
/// Longer tokens are looked at each time.
const TOKEN_BYTES_MAX: usize = 4 << 10;

/// Tokens that were looked at lately.
pub(super) struct Seen {
    hasher: RandomState,
    places: Box<[Mutex<Option<Known>>]>,
}

struct Known {
    hash: u64,
    token: Box<str>,
    owner: Owner,
    /// [`super::Feed::voids`] before the owner was found.
    voids: u64,
    until: Instant,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: UserName,
    /// Auth revision that the token itself names; without one it is good for whatever its owner may now.
    pub(super) auth_revision: Option<u64>,
}

/// Since when and how long an owner is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validity {
    pub(super) voids: u64,
    pub(super) until: Instant,
}

impl Owner {
    /// As of an auth revision that was the present one before the owner was found.
    pub(super) fn caller(self, present: u64) -> Caller {
        Caller::User { name: self.name, auth_revision: self.auth_revision.unwrap_or(present) }
    }
}

impl Seen {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), places: (0..PLACES).map(|_| Mutex::default()).collect() }
    }

    /// Whose token it is, if that is known since the last time that tokens became void.
    pub(super) fn owner(&self, token: &str, voids: u64, now: Instant) -> Option<Owner> {
        let hash = self.hasher.hash_one(token);
        let known = self.place(hash).lock();
        let known = known.as_ref()?;
        let is_good = known.hash == hash && known.voids == voids && now < known.until;
        (is_good && *known.token == *token).then(|| known.owner.clone())
    }

    /// Keeps what was found.
    pub(super) fn keep(&self, token: &str, owner: &Owner, valid: Validity) {
        if token.len() > TOKEN_BYTES_MAX {
            return;
        }
        let hash = self.hasher.hash_one(token);
        let Validity { voids, until } = valid;
        let known = Known { hash, token: token.into(), owner: owner.clone(), voids, until };
        *self.place(hash).lock() = Some(known);
    }

    fn place(&self, hash: u64) -> &Mutex<Option<Known>> {
        let place = usize::try_from(hash % PLACES as u64).expect("invariant: below PLACES");
        &self.places[place]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_owner_is_known_for_its_time_and_until_tokens_become_void() {
        let (seen, now) = (Seen::new(), Instant::now());
        let owner = Owner { name: "ann".into(), auth_revision: Some(7) };
        let until = now + Duration::from_secs(1);
        assert_eq!(seen.owner("secret.1", 0, now), None);
        seen.keep("secret.1", &owner, Validity { voids: 0, until });
        assert_eq!(seen.owner("secret.1", 0, now), Some(owner.clone()));
        for other in ["", "secret.2", "secret.11", "Secret.1"] {
            assert_eq!(seen.owner(other, 0, now), None, "{other:?}");
        }
        assert_eq!(seen.owner("secret.1", 1, now), None, "void");
        assert_eq!(seen.owner("secret.1", 0, until), None, "its time is over");
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        seen.keep(&long, &owner, Validity { voids: 0, until });
        assert_eq!(seen.owner(&long, 0, now), None, "too long to keep");
    }

    #[test]
    fn more_tokens_than_places_forget_and_never_mix() {
        let (seen, now) = (Seen::new(), Instant::now());
        let until = now + Duration::from_secs(1);
        let owner =
            |number: usize| Owner { name: format!("user {number}").into(), auth_revision: None };
        let tokens = 4 * PLACES;
        for number in 0..tokens {
            seen.keep(&format!("token {number}"), &owner(number), Validity { voids: 0, until });
        }
        let known = (0..tokens).filter(|number| {
            let found = seen.owner(&format!("token {number}"), 0, now);
            assert!(found.is_none() || found == Some(owner(*number)));
            found.is_some()
        });
        let known = known.count();
        assert!((1..=PLACES).contains(&known), "{known}");
    }

    #[test]
    fn a_token_with_a_revision_keeps_it() {
        let at = |auth_revision| Owner { name: "ann".into(), auth_revision }.caller(9);
        assert_eq!(at(Some(7)), Caller::User { name: "ann".into(), auth_revision: 7 });
        assert_eq!(at(None), Caller::User { name: "ann".into(), auth_revision: 9 });
    }
}
