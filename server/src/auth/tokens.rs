//! Simple tokens: random text that a member gives out, and of which all members know the fingerprint.
//!
//! As in etcd a token is good on every member, lives in memory only, is prolonged by use on each member
//! by itself, and ends with `.` and the log index from which on members know it. Other than in etcd the
//! log holds its SHA-256 and not the token. A log is also applied late: by a member that begins again or is new. So the
//! entry says when the token was given out, and there its life counts from then.

use std::time::{Duration, Instant};

use conclave_state_machine::command::UserName;
use lru::LruCache;
use rand::distr::{Alphabetic, SampleString as _};
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// Letters of a token: 182 bits.
const SECRET_LETTERS: usize = 32;
/// Tokens that a member knows; beyond, the one that was used longest ago is forgotten.
const TOKENS_MAX: usize = 200_000;

/// A token's use is noted so often while it lives; until then it is known without a look here.
const NOTES_PER_TTL: u32 = 64;

/// SHA-256 of a token's letters.
pub(crate) type Fingerprint = [u8; SHA256_OUTPUT_LEN];

/// What a member knows of tokens.
pub(crate) struct Tokens {
    ttl: Duration,
    /// Use moves a token to the front and prolongs it, so that those that expire first are near the end.
    live: LruCache<Fingerprint, Live>,
}

struct Live {
    user: UserName,
    until: Instant,
}

impl Tokens {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, live: LruCache::unbounded() }
    }

    /// Learns of a token that was given out `age` ago; one that has expired since is not taken.
    pub(crate) fn add(
        &mut self,
        fingerprint: Fingerprint,
        user: &str,
        age: Duration,
        now: Instant,
    ) {
        let Some(left) = self.ttl.checked_sub(age).filter(|left| !left.is_zero()) else { return };
        let is_over = |live: &LruCache<Fingerprint, Live>| {
            live.len() >= TOKENS_MAX || live.peek_lru().is_some_and(|(_, last)| last.until <= now)
        };
        while is_over(&self.live) && self.live.pop_lru().is_some() {}
        self.live.push(fingerprint, Live { user: user.into(), until: now + left });
    }

    /// Whose token it is, and how long from now that need not be asked again. It lives on from the end of that.
    pub(crate) fn owner(
        &mut self,
        fingerprint: &Fingerprint,
        now: Instant,
    ) -> Option<(UserName, Duration)> {
        let token = self.live.get_mut(fingerprint)?;
        if token.until <= now {
            self.live.pop(fingerprint);
            return None;
        }
        let good_for = self.ttl / NOTES_PER_TTL;
        token.until = now + good_for + self.ttl;
        Some((token.user.clone(), good_for))
    }

    /// Forgets the tokens of a user.
    pub(crate) fn void(&mut self, user: &str) {
        let is_own = |(fingerprint, live): (&Fingerprint, &Live)| {
            (live.user.as_str() == user).then_some(*fingerprint)
        };
        let own: Vec<Fingerprint> = self.live.iter().filter_map(is_own).collect();
        for fingerprint in own {
            self.live.pop(&fingerprint);
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.live.clear();
    }
}

/// How long ago a token was given out, by the wall clocks of the member that did and of this one; `None` if the log
/// does not say when. One of the future is new: the other clock is ahead of this one.
pub(super) fn age(issued_ms: i64, now_ms: i64) -> Option<Duration> {
    let age = now_ms.saturating_sub(issued_ms).max(0);
    (issued_ms != 0).then(|| Duration::from_millis(age.unsigned_abs()))
}

/// A new secret.
pub(super) fn secret() -> String {
    Alphabetic.sample_string(&mut rand::rng(), SECRET_LETTERS)
}

/// What members may know of a secret.
pub(super) fn fingerprint(secret: &str) -> Fingerprint {
    let mut fingerprint = [0; SHA256_OUTPUT_LEN];
    fingerprint.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    fingerprint
}

/// A token as its owner gets it.
pub(super) fn join(secret: &str, index: u64) -> String {
    format!("{secret}.{index}")
}

/// Takes apart what [`join`] made.
pub(super) fn split(token: &str) -> Option<(&str, u64)> {
    let (secret, index) = token.split_once('.')?;
    Some((secret, index.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(tokens: &mut Tokens, fingerprint: &Fingerprint, now: Instant) -> Option<String> {
        let (user, good_for) = tokens.owner(fingerprint, now)?;
        assert!(good_for < tokens.ttl, "use is noted before the token ends");
        Some(user.as_str().to_owned())
    }

    #[test]
    fn a_token_lives_as_long_as_it_is_used() {
        let mut tokens = Tokens::new(Duration::from_secs(10));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (ann, bob) = (fingerprint("a"), fingerprint("b"));
        tokens.add(ann, "ann", Duration::ZERO, begin);
        tokens.add(bob, "bob", Duration::ZERO, begin);
        assert_eq!(owner(&mut tokens, &ann, at(9)).as_deref(), Some("ann"));
        assert_eq!(owner(&mut tokens, &ann, at(18)).as_deref(), Some("ann"), "prolonged");
        assert_eq!(owner(&mut tokens, &bob, at(18)), None);
        tokens.add(bob, "bob", Duration::ZERO, at(29));
        assert_eq!(tokens.live.len(), 1, "what has expired is forgotten");
    }

    #[test]
    fn a_token_that_is_heard_of_late_does_not_live_longer() {
        let mut tokens = Tokens::new(Duration::from_secs(10));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        for (secret, age) in [("expired", 10), ("old", 6), ("new", 0)] {
            tokens.add(fingerprint(secret), "ann", Duration::from_secs(age), begin);
        }
        assert_eq!(owner(&mut tokens, &fingerprint("expired"), begin), None);
        assert_eq!(owner(&mut tokens, &fingerprint("old"), at(4)), None);
        assert_eq!(owner(&mut tokens, &fingerprint("new"), at(9)).as_deref(), Some("ann"));
        tokens.add(fingerprint("old"), "ann", Duration::from_secs(6), begin);
        assert_eq!(owner(&mut tokens, &fingerprint("old"), at(3)).as_deref(), Some("ann"));
        assert_eq!(owner(&mut tokens, &fingerprint("old"), at(12)).as_deref(), Some("ann"), "used");
    }

    #[test]
    fn the_age_of_a_token_is_never_less_than_nothing() {
        assert_eq!(age(1_000, 3_500), Some(Duration::from_millis(2_500)));
        assert_eq!(age(3_500, 1_000), Some(Duration::ZERO), "another clock is ahead");
        assert_eq!(age(i64::MIN, i64::MAX), Some(Duration::from_millis(i64::MAX.unsigned_abs())));
        assert_eq!(age(0, 1_000), None, "it is not known");
    }

    #[test]
    fn tokens_of_a_user_go_together() {
        let mut tokens = Tokens::new(Duration::from_secs(10));
        let now = Instant::now();
        for (secret, user) in [("1", "ann"), ("2", "ann"), ("3", "bob")] {
            tokens.add(fingerprint(secret), user, Duration::ZERO, now);
        }
        tokens.void("ann");
        assert_eq!(owner(&mut tokens, &fingerprint("1"), now), None);
        assert_eq!(owner(&mut tokens, &fingerprint("2"), now), None);
        assert_eq!(owner(&mut tokens, &fingerprint("3"), now).as_deref(), Some("bob"));
        tokens.clear();
        assert_eq!(owner(&mut tokens, &fingerprint("3"), now), None);
    }

    #[test]
    fn tokens_are_taken_apart_as_they_were_put_together() {
        let secret = secret();
        assert_eq!(secret.len(), SECRET_LETTERS);
        assert_eq!(split(&join(&secret, 7)), Some((secret.as_str(), 7)));
        for broken in ["", "abc", "abc.", "abc.x", "abc.-1", ".", "abc.99999999999999999999999"] {
            assert_eq!(split(broken), None, "{broken:?}");
        }
    }
}
