//! The words of golden scripts, turned into commands.
//!
//! ```text
//! put KEY VALUE [lease=N] [prev_kv] [ignore_value] [ignore_lease]
//! delete SPAN [prev_kv]
//! range SPAN [rev=N] [limit=N] [sort=asc|desc|none.key|version|create|mod|value] [keys_only]
//!            [count_only] [min_mod=N] [max_mod=N] [min_create=N] [max_create=N]
//! txn "[ COMPARE ; ... ] { OP ; ... } { OP ; ... }"      the last block may be missing
//! compact N     grant ID TTL     revoke ID     expire TERM [now=N] ID [granted=N]...
//! alarm get|raise|clear [member=N] [kind=nospace|corrupt]      member ID NAME
//! session ID TTL REQUEST [owner=WHO] [NAME=VALUE ...]
//! lock NAME,... SESSION REQUEST [shared] [permits=N limit=N] [try] [again] [delay=N] [attempt=N]
//! unlock NAME,... SESSION REQUEST [attempt=N]     convert NAME SESSION REQUEST PERMITS LIMIT [by=ONCE]
//! campaign NAME SESSION VALUE [attempt=N] [number=N] [by=ONCE] [resumes]
//! leave NAME SESSION FENCE [attempt=N] [by=ONCE]
//! auth enable|disable     token USER AUTH_REVISION
//! user add|delete|passwd NAME [no_password]     user grant|revoke NAME ROLE
//! role add|delete NAME     role grant|revoke NAME r|w|rw SPAN      (revoke without r|w|rw)
//! break NAME FENCE     hand_over NAME SESSION FENCE KEY     guarded NAME FENCE "a txn"
//! primitive NAME add N | set N [if_value=N] [if_revision=N] | create N | down N | raise NOTE [bound] |
//!     lift FENCE | enter COUNT NOTE | exit [waiting] | join MEMBER VALUE | part MEMBER
//!     [by=ONCE]     ONCE is SESSION.SEQUENCE[.SETTLED[.UNDOES]]
//! register SERVICE ID SESSION ADDRESS [version=V] [tag=T] [zone=Z] [health=H] [absent] [at=N] [now=N]
//!          [by=SESSION.SEQUENCE[.SETTLED]]     is recognised, as others with it
//!          [check=MS] [remove=MS]     checks the instance; removes it when it was critical for so long
//! update SERVICE ID SESSION [state=S] [override=S|none] [health=H] [drain=MS] [now=N] [fence=N] [by=B]
//! checked SERVICE ID FENCE HEALTH [now=N]     deregister SERVICE ID SESSION [fence=N] [by=B]
//! write WRITER.SEQUENCE[.SETTLED[.SINCE]] "a txn" [guard=NAME fence=N]
//! settle TERM WHAT SERVICE ID STAMP [now=N]     switch SERVICE [guard=B] [damping=B]
//! ```
//! SPAN is `key`, `start..end`, `start..` or `all`; COMPARE is `FIELD SPAN = OPERAND` (also `!=`, `<`,
//! `>`) with FIELD `version`, `create`, `mod`, `value` or `lease`; OP is put, delete, range or txn.

mod auth;
mod kv;
mod lock;
pub(crate) mod primitive;
mod words;

use bytes::Bytes;
use conclave_state_machine::command::{
    AlarmAction, AlarmChange, AlarmKind, Command, Compact, Guard, GuardedTxn, HandOver,
    LeaseExpire, LeaseGrant, LeaseRevoke, LockBreak, LockCommand, MemberRecord, Write, WriteId,
};

use self::auth::{auth, role, token, user};
use self::kv::{delete, put, quoted_txn};
use self::lock::{acquire, campaign, convert, leave, release, session};
use crate::registry_words;

pub(crate) use kv::range;
pub(crate) use words::{Parsed, Words, bytes, number};

pub(crate) fn command(name: &str, words: &mut Words) -> Parsed<Command> {
    Ok(match name {
        "put" => Command::Put(put(words)?),
        "delete" => Command::DeleteRange(delete(words)?),
        "txn" => Command::Txn(quoted_txn(words)?),
        "compact" => Command::Compact(Compact { revision: words.number()? }),
        "grant" => Command::LeaseGrant(LeaseGrant { id: words.number()?, ttl: words.number()? }),
        "revoke" => Command::LeaseRevoke(LeaseRevoke { id: words.number()? }),
        "expire" => {
            let term = number(&words.next()?)?;
            let mut expire = LeaseExpire { term, is_damping: true, ..LeaseExpire::default() };
            while let Some(word) = words.peek() {
                if let Some(now_ms) = word.strip_prefix("now=") {
                    (expire.now_ms, expire.is_guarded) = (number(now_ms)?, true);
                    words.next()?;
                    continue;
                }
                if let Some(granted) = word.strip_prefix("granted=") {
                    // Of the lease before it.
                    expire.granted.resize(expire.ids.len().saturating_sub(1), 0);
                    expire.granted.push(number(granted)?);
                    words.next()?;
                    continue;
                }
                expire.ids.push(words.number()?);
            }
            Command::LeaseExpire(expire)
        }
        "alarm" => Command::Alarm(alarm(words)?),
        "member" => Command::MemberPublish(MemberRecord {
            id: number(&words.next()?)?,
            name: words.next()?,
            ..MemberRecord::default()
        }),
        "session" => Command::SessionBegin(session(words)?),
        "lock" => Command::Lock(LockCommand::Acquire(acquire(words)?)),
        "unlock" => Command::Lock(LockCommand::Release(release(words)?)),
        "convert" => Command::Lock(LockCommand::Convert(convert(words)?)),
        "break" => Command::Lock(LockCommand::Break(LockBreak {
            name: bytes(&words.next()?),
            fence: words.number()?,
            ..LockBreak::default()
        })),
        "hand_over" => Command::Lock(LockCommand::HandOver(HandOver {
            name: bytes(&words.next()?),
            session: words.number()?,
            fence: words.number()?,
            to: bytes(&words.next()?),
        })),
        "campaign" => Command::Lock(LockCommand::Campaign(campaign(words)?)),
        "leave" => Command::Lock(LockCommand::Leave(leave(words)?)),
        "auth" => Command::Auth(auth(words)?),
        "token" => Command::Auth(token(words)?),
        "user" => Command::Auth(user(words)?),
        "role" => Command::Auth(role(words)?),
        "guarded" => {
            let guard = Guard { name: bytes(&words.next()?), fence: words.number()? };
            Command::GuardedTxn(GuardedTxn { guards: vec![guard], txn: quoted_txn(words)? })
        }
        "write" => Command::Write(write(words)?),
        "primitive" => Command::Primitive(primitive::primitive(words)?),
        _ => match registry_words::command(name, words)? {
            Some(command) => Command::Registry(command),
            None => return Err(format!("unknown command {name:?}")),
        },
    })
}

fn write(words: &mut Words) -> Parsed<Write> {
    let id = words.next()?;
    let mut parts = id.split('.');
    let writer = parts.next().unwrap_or_default();
    let numbers = parts.map(number).collect::<Parsed<Vec<u64>>>()?;
    let part = |place: usize| numbers.get(place).copied().unwrap_or_default();
    let id = WriteId {
        writer: Bytes::from(format!("{writer:_<16}")),
        sequence: part(0),
        settled: part(1).max(1),
        since: part(2).cast_signed(),
    };
    let txn = quoted_txn(words)?;
    let mut guards = Vec::new();
    for (option, value) in words.options() {
        match option.as_str() {
            "guard" => guards.push(Guard { name: bytes(&value), fence: 0 }),
            "fence" if !guards.is_empty() => guards[0].fence = number(&value)?,
            _ => return Err(format!("unknown option {option:?} of write")),
        }
    }
    Ok(Write { id, guarded: GuardedTxn { guards, txn } })
}

fn alarm(words: &mut Words) -> Parsed<AlarmChange> {
    let action = match words.next()?.as_str() {
        "get" => AlarmAction::Get,
        "raise" => AlarmAction::Activate,
        "clear" => AlarmAction::Deactivate,
        other => return Err(format!("unknown action {other:?}")),
    };
    let mut change = AlarmChange { action, member: 0, alarm: AlarmKind::None };
    for (option, value) in words.options() {
        match (option.as_str(), value.as_str()) {
            ("member", id) => change.member = number(id)?,
            ("kind", "nospace") => change.alarm = AlarmKind::NoSpace,
            ("kind", "corrupt") => change.alarm = AlarmKind::Corrupt,
            _ => return Err(format!("unknown option {option}={value} of alarm")),
        }
    }
    Ok(change)
}
