//! Who calls, and what they may read.
//!
//! ```text
//! call ─► admit: path ─► access row; token or certificate ─► Caller in the request's extensions
//!            ├─ a write: the Caller travels in the log entry, and apply checks its rights
//!            └─ a read: checked here, by the same rules, against what this member has applied
//! ```
//! Passwords are hashed and tokens fingerprinted by the member that takes the call; neither leaves it.
//!
//! | module | what |
//! |---|---|
//! | `access` | the table: which RPC is open to whom |
//! | `identity` | what a call says about its caller |
//! | `feed` | what apply tells: tokens, and that something changed |
//! | `tokens` | simple tokens |
//! | `seen` | whose a token was that was looked at lately |
//! | `jwt`, `p521`, `pem` | signed tokens, one of their methods, and their keys |
//! | `passwords` | hashing, off the async threads and bounded |
//! | `rights`, `watch` | checks of reads and watches |

pub(crate) mod access;
mod feed;
mod identity;
mod jwt;
mod p521;
mod passwords;
mod pem;
mod rights;
mod seen;
mod tokens;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use conclave_proto::internal::{self, command::Command as Message};
use conclave_raft_store::Reader;
use conclave_state_machine::auth::{self, AuthHead, RightsCache};
use conclave_state_machine::command::{Caller, UserName};
use conclave_state_machine::response::{AuthChange, Rejection, Response as Answer};
use http::{Extensions, HeaderMap};
use parking_lot::Mutex;
use tonic::Status;

use crate::api::context::{Context, deadline_in, mismatch};
use crate::config::AuthSettings;
use crate::coordination::unix_ms;
use crate::propose::Haste;
use crate::status::{self, Fault};
use crate::tls::ClientName;

use access::Access;
pub(crate) use feed::Feed;
use identity::Identity;
use jwt::Jwt;
pub use jwt::JwtError;
pub(crate) use passwords::Passwords;
pub(crate) use rights::RightsCheck;
use seen::{Owner, Seen, Validity};
pub(crate) use watch::{Refused, WatchGuard};

/// The part of the time its client gave it that a call may wait for this member to hear of its token, which another
/// member gave out: if that is in vain, the client must hear so, to log in again.
const TOKEN_WAIT_PART: u32 = 2;
/// How long a signature that was verified is believed: a clock that is set is noticed as soon.
const SIGNED_FOR_MAX: Duration = Duration::from_secs(5);
/// How often a login begins again because users or roles changed meanwhile.
const LOGIN_ATTEMPTS_MAX: usize = 8;
/// The text of etcd for a member without a private key.
const VERIFY_ONLY: &str = "auth: token signing attempted with verify-only key";
/// The text of etcd for a user that is known by certificates only; it leaves with code Unknown.
pub(crate) const NO_PASSWORD_USER: &str =
    "auth: authentication failed, password was given for no password user";

/// Knows callers and their rights.
pub(crate) struct Auth {
    reader: Reader,
    feed: Arc<Feed>,
    passwords: Passwords,
    rights: Mutex<RightsCache>,
    seen: Seen,
    /// `None` for simple tokens.
    jwt: Option<Jwt>,
    /// How long a call may take that does not say so itself.
    timeout: Duration,
}

impl Auth {
    /// # Errors
    /// If tokens are to be signed with keys that cannot be used.
    pub(crate) fn new(
        reader: Reader,
        feed: Arc<Feed>,
        settings: &AuthSettings,
        timeout: Duration,
    ) -> Result<Self, JwtError> {
        let passwords = Passwords::new(settings.bcrypt_cost);
        let jwt = settings.jwt.as_ref().map(Jwt::load).transpose()?;
        let (rights, seen) = (Mutex::default(), Seen::new());
        Ok(Self { reader, feed, passwords, rights, seen, jwt, timeout })
    }

    /// Whether calls need a user, and the auth revision, as applied here.
    pub(crate) fn head(&self) -> AuthHead {
        self.reader.auth()
    }

    /// Like [`Auth::head`], for a call with these headers: a token that members know later than what is applied
    /// here is waited for, because that this member does not know yet that calls need a user makes nobody of
    /// its owner.
    pub(crate) async fn head_for(&self, headers: &HeaderMap) -> AuthHead {
        let head = self.head();
        if head.enabled || self.jwt.is_some() {
            return head;
        }
        if let Identity::Token(token) = identity::of(headers, None)
            && let Some((_, index)) = tokens::split(token)
        {
            self.heard_of(index, headers).await;
        }
        self.head()
    }

    /// Waits until this member has applied `index`, as long as the call has time for it; whether it has.
    async fn heard_of(&self, index: u64, headers: &HeaderMap) -> bool {
        if self.reader.applied().is_some_and(|id| id.index >= index) {
            return true;
        }
        let part = deadline_in(headers).map_or(Duration::MAX, |time| time / TOKEN_WAIT_PART);
        let applied = self.reader.wait_applied(index);
        tokio::time::timeout(part.min(self.timeout), applied).await.is_ok()
    }

    pub(crate) fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// Finds out who calls, and refuses whoever may not call `path` at all, as of the present `head`. The caller is
    /// to be put into the extensions of the request, where [`caller_of`] finds it.
    pub(crate) async fn admit(
        &self,
        head: AuthHead,
        path: &str,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Caller, Status> {
        if !head.enabled {
            return Ok(Caller::Anonymous);
        }
        let access = access::of_path(path);
        if access == Some(Access::Open) {
            return Ok(Caller::Anonymous);
        }
        let certificate = extensions.get::<ClientName>().map(|name| &*name.0);
        let caller = match identity::of(headers, certificate) {
            Identity::Nobody => return Err(Fault::UserEmpty.into()),
            Identity::Certificate(name) => {
                Caller::User { name: name.into(), auth_revision: head.revision }
            }
            Identity::Token(token) => {
                self.owner(head, token, headers).await.ok_or(Fault::InvalidAuthToken)?
            }
        };
        // Simple tokens are void by then.
        if self.jwt.is_some() && self.is_password_old(&caller)? {
            return Err(Fault::AuthOldRevision.into());
        }
        match access {
            Some(Access::Root) => self.check_root(&caller)?,
            Some(Access::User | Access::Keys | Access::Watch | Access::Open) => {}
            // What nobody thought of is nobody's.
            None => return Err(Fault::PermissionDenied.into()),
        }
        Ok(caller)
    }

    /// Whose token it is. The auth revision, and how often tokens became void, are read before the owner is looked
    /// for: a user who is deleted and added again meanwhile is another one.
    async fn owner(&self, head: AuthHead, token: &str, headers: &HeaderMap) -> Option<Caller> {
        let voids = self.feed.voids();
        let now = Instant::now();
        if let Some(owner) = self.seen.owner(token, voids, now) {
            return Some(owner.caller(head.revision));
        }
        let (owner, present, good_for) = match &self.jwt {
            Some(jwt) => {
                let said = jwt.verify(token, unix_seconds())?;
                let name = UserName::from(said.user);
                let owner = Owner { name, auth_revision: Some(said.auth_revision) };
                (owner, head.revision, said.good_for.min(SIGNED_FOR_MAX))
            }
            None => self.owner_of_simple(token, headers).await?,
        };
        self.seen.keep(token, &owner, Validity { voids, until: now + good_for });
        Some(owner.caller(present))
    }

    /// Whose simple token it is, the auth revision before it was looked for, and for how long that is so.
    async fn owner_of_simple(
        &self,
        token: &str,
        headers: &HeaderMap,
    ) -> Option<(Owner, u64, Duration)> {
        let (secret, index) = tokens::split(token)?;
        if !self.heard_of(index, headers).await {
            return None;
        }
        let present = self.head().revision;
        let found = self.feed.tokens.lock().owner(&tokens::fingerprint(secret), Instant::now());
        let (name, good_for) = found?;
        Some((Owner { name, auth_revision: None }, present, good_for))
    }

    /// Checks a password and gives out a token.
    pub(crate) async fn log_in(
        &self,
        context: &Context,
        name: &str,
        password: String,
    ) -> Result<String, Status> {
        let password = Arc::new(password);
        for _ in 0..LOGIN_ATTEMPTS_MAX {
            context.read_barrier().await?;
            let head = self.head();
            if !head.enabled {
                return Err(Fault::AuthNotEnabled.into());
            }
            self.check_password(name, Arc::clone(&password)).await?;
            let token = match &self.jwt {
                Some(jwt) if self.head() == head => {
                    let token = jwt.sign(name, head.revision, unix_seconds());
                    Some(token.ok_or_else(|| status::unknown(VERIFY_ONLY))?)
                }
                Some(_) => None,
                None => self.simple_token(context, name, head).await?,
            };
            if let Some(token) = token {
                return Ok(token);
            }
        }
        Err(Fault::AuthOldRevision.into())
    }

    /// Takes as long for a user that there is not, so that time does not tell who there is.
    async fn check_password(&self, name: &str, password: Arc<String>) -> Result<(), Status> {
        let user = auth::user(&self.reader, name).map_err(|_halt| status::halted())?;
        let hash = user.as_ref().map(|user| user.password_hash.clone()).unwrap_or_default();
        let is_right = self.passwords.verify(password, hash).await?;
        if user.is_some_and(|user| user.no_password) {
            return Err(status::unknown(NO_PASSWORD_USER));
        }
        if is_right { Ok(()) } else { Err(Fault::AuthFailed.into()) }
    }

    /// Tells all members of a token by its fingerprint; `None` if users or roles changed since `head`.
    async fn simple_token(
        &self,
        context: &Context,
        name: &str,
        head: AuthHead,
    ) -> Result<Option<String>, Status> {
        let secret = tokens::secret();
        let issue = internal::AuthToken {
            user: name.to_owned(),
            fingerprint: tokens::fingerprint(&secret).to_vec().into(),
            auth_revision: head.revision,
            issued_unix_ms: unix_ms(),
        };
        match context
            .offer(&Caller::Inside, Message::AuthToken(issue), Haste::Prompt)
            .await?
            .outcome
        {
            Ok(Answer::Auth(AuthChange::Token { index, .. })) => {
                Ok(Some(tokens::join(&secret, index)))
            }
            Ok(_) => Err(mismatch()),
            Err(Rejection::AuthOldRevision) => Ok(None),
            Err(Rejection::UserNotFound) => Err(Fault::AuthFailed.into()),
            Err(rejection) => Err(status::from_rejection(&rejection)),
        }
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Auth").field("head", &self.head()).finish_non_exhaustive()
    }
}

/// Wall clock: what a signed token's end is compared with.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The caller that [`Auth::admit`] found; nobody if it was not asked.
pub(crate) fn caller_of(extensions: &Extensions) -> Caller {
    extensions.get::<Caller>().cloned().unwrap_or_default()
}
