//! The words of golden scripts, turned into commands.
//!
//! ```text
//! put KEY VALUE [lease=N] [prev_kv] [ignore_value] [ignore_lease]
//! delete SPAN [prev_kv]
//! range SPAN [rev=N] [limit=N] [sort=asc|desc|none.key|version|create|mod|value] [keys_only]
//!            [count_only] [min_mod=N] [max_mod=N] [min_create=N] [max_create=N]
//! txn "[ COMPARE ; ... ] { OP ; ... } { OP ; ... }"      the last block may be missing
//! compact N     grant ID TTL     revoke ID     expire TERM [now=N] ID...
//! alarm get|raise|clear [member=N] [kind=nospace|corrupt]      member ID NAME
//! session ID TTL REQUEST [owner=WHO] [NAME=VALUE ...]
//! lock NAME,... SESSION REQUEST [shared] [permits=N limit=N] [try] [again] [delay=N] [attempt=N]
//! unlock NAME,... SESSION REQUEST [attempt=N]     convert NAME SESSION REQUEST PERMITS LIMIT
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

pub(crate) mod primitive;

use bytes::Bytes;
use conclave_state_machine::command::{
    AlarmAction, AlarmChange, AlarmKind, AuthCommand, Campaign, Command, Compact, Compare,
    CompareResult, CompareTarget, DeleteRange, Guard, GuardedTxn, HandOver, LeaseExpire,
    LeaseGrant, LeaseRevoke, Leave, LockAcquire, LockBreak, LockCommand, LockConvert, LockRelease,
    MemberRecord, Permission, PermissionKind, Put, Range, RoleGrant, RoleRevoke, SessionBegin,
    SortOrder, SortTarget, TokenIssue, Txn, TxnOp, UserAdd, UserChangePassword, UserRole, Write,
    WriteId,
};

use crate::registry_words;

pub(crate) type Parsed<T> = Result<T, String>;

/// Words of one command, taken from the front.
pub(crate) struct Words {
    words: std::collections::VecDeque<String>,
}

impl Words {
    pub(crate) fn new(words: impl IntoIterator<Item = String>) -> Words {
        Words { words: words.into_iter().collect() }
    }

    fn peek(&self) -> Option<&str> {
        self.words.front().map(String::as_str)
    }

    pub(crate) fn next(&mut self) -> Parsed<String> {
        self.words.pop_front().ok_or_else(|| "a word is missing".to_owned())
    }

    pub(crate) fn word(&mut self) -> Parsed<String> {
        self.next()
    }

    pub(crate) fn number(&mut self) -> Parsed<i64> {
        number(&self.next()?)
    }

    fn expect(&mut self, word: &str) -> Parsed<()> {
        let found = self.next()?;
        if found == word { Ok(()) } else { Err(format!("{word:?} expected, found {found:?}")) }
    }

    /// Takes the options up to the end of the operation: `name` or `name=value`.
    pub(crate) fn options(&mut self) -> Vec<(String, String)> {
        let mut options = Vec::new();
        while let Some(word) = self.peek() {
            if [";", "}", "]"].contains(&word) {
                break;
            }
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            options.push((name.to_owned(), value.to_owned()));
            self.words.pop_front();
        }
        options
    }

    pub(crate) fn finish(&self) -> Parsed<()> {
        self.peek().map_or(Ok(()), |word| Err(format!("unexpected {word:?}")))
    }
}

pub(crate) fn number<T: std::str::FromStr>(word: &str) -> Parsed<T> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}

/// `''` is empty, `x*9` is nine times x.
pub(crate) fn bytes(word: &str) -> Bytes {
    Bytes::from(match word.split_once('*') {
        Some((text, times)) => text.repeat(times.parse().unwrap_or(1)),
        None if word == "''" => String::new(),
        None => word.to_owned(),
    })
}

fn span(word: &str) -> (Bytes, Bytes) {
    let zero = Bytes::from_static(b"\0");
    if word == "all" {
        return (zero.clone(), zero);
    }
    let Some((start, end)) = word.split_once("..") else { return (bytes(word), Bytes::new()) };
    let start = if start.is_empty() { zero.clone() } else { bytes(start) };
    (start, if end.is_empty() { zero } else { bytes(end) })
}

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
        "convert" => Command::Lock(LockCommand::Convert(LockConvert {
            name: bytes(&words.next()?),
            session: words.number()?,
            request_id: bytes(&words.next()?),
            permits: number(&words.next()?)?,
            limit: number(&words.next()?)?,
        })),
        "break" => Command::Lock(LockCommand::Break(LockBreak {
            name: bytes(&words.next()?),
            fence: words.number()?,
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

fn name(word: &str) -> String {
    if word == "''" { String::new() } else { word.to_owned() }
}

fn auth(words: &mut Words) -> Parsed<AuthCommand> {
    Ok(match words.next()?.as_str() {
        "enable" => AuthCommand::Enable,
        "disable" => AuthCommand::Disable,
        other => return Err(format!("auth {other:?}?")),
    })
}

fn token(words: &mut Words) -> Parsed<AuthCommand> {
    Ok(AuthCommand::Token(TokenIssue {
        user: words.next()?,
        fingerprint: Bytes::from_static(b"fingerprint"),
        auth_revision: number(&words.next()?)?,
    }))
}

fn user(words: &mut Words) -> Parsed<AuthCommand> {
    let (what, user) = (words.next()?, name(&words.next()?));
    let password_hash = Bytes::from_static(b"hash");
    Ok(match what.as_str() {
        "add" => {
            let no_password = words.options().iter().any(|(option, _)| option == "no_password");
            let password_hash = if no_password { Bytes::new() } else { password_hash };
            AuthCommand::UserAdd(UserAdd { name: user, password_hash, no_password })
        }
        "delete" => AuthCommand::UserDelete(user),
        "passwd" => {
            AuthCommand::UserChangePassword(UserChangePassword { name: user, password_hash })
        }
        "grant" => AuthCommand::UserGrantRole(UserRole { user, role: words.next()? }),
        "revoke" => AuthCommand::UserRevokeRole(UserRole { user, role: words.next()? }),
        other => return Err(format!("user {other:?}?")),
    })
}

fn role(words: &mut Words) -> Parsed<AuthCommand> {
    let (what, role) = (words.next()?, name(&words.next()?));
    Ok(match what.as_str() {
        "add" => AuthCommand::RoleAdd(role),
        "delete" => AuthCommand::RoleDelete(role),
        "grant" if words.peek().is_none() => {
            AuthCommand::RoleGrant(RoleGrant { role, permission: None })
        }
        "grant" => {
            let kind = match words.next()?.as_str() {
                "r" => PermissionKind::Read,
                "w" => PermissionKind::Write,
                "rw" => PermissionKind::ReadWrite,
                other => return Err(format!("permission {other:?}?")),
            };
            let (key, range_end) = span(&words.next()?);
            let permission = Some(Permission { kind, key, range_end });
            AuthCommand::RoleGrant(RoleGrant { role, permission })
        }
        "revoke" => {
            let (key, range_end) = span(&words.next()?);
            AuthCommand::RoleRevoke(RoleRevoke { role, key, range_end })
        }
        other => return Err(format!("role {other:?}?")),
    })
}

fn quoted_txn(words: &mut Words) -> Parsed<Txn> {
    let source = words.next()?;
    let mut inner = Words::new(source.split_whitespace().map(str::to_owned));
    let txn = txn(&mut inner)?;
    inner.finish()?;
    Ok(txn)
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

fn session(words: &mut Words) -> Parsed<SessionBegin> {
    let mut begin = SessionBegin {
        id: words.number()?,
        ttl: words.number()?,
        request_id: bytes(&words.next()?),
        ..SessionBegin::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "owner" => begin.owner = value,
            _ => begin.metadata.push((option, value)),
        }
    }
    Ok(begin)
}

fn names(word: &str) -> Vec<Bytes> {
    word.split(',').map(bytes).collect()
}

fn acquire(words: &mut Words) -> Parsed<LockAcquire> {
    let mut acquire = LockAcquire {
        names: names(&words.next()?),
        session: words.number()?,
        request_id: bytes(&words.next()?),
        permits: 1,
        limit: 1,
        can_wait: true,
        ..LockAcquire::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "shared" => acquire.limit = u32::MAX,
            "permits" => acquire.permits = number(&value)?,
            "limit" => acquire.limit = number(&value)?,
            "try" => acquire.can_wait = false,
            "again" => acquire.is_reentrant = true,
            "delay" => acquire.delay_seconds = number(&value)?,
            "attempt" => acquire.attempt = number(&value)?,
            _ => return Err(format!("unknown option {option:?} of lock")),
        }
    }
    Ok(acquire)
}

fn release(words: &mut Words) -> Parsed<LockRelease> {
    Ok(LockRelease {
        names: names(&words.next()?),
        session: words.number()?,
        request_id: bytes(&words.next()?),
        attempt: attempt(words)?,
    })
}

fn campaign(words: &mut Words) -> Parsed<Campaign> {
    let mut campaign = Campaign {
        name: bytes(&words.next()?),
        session: words.number()?,
        value: bytes(&words.next()?),
        ..Campaign::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "attempt" => campaign.attempt = number(&value)?,
            "number" => campaign.number = number(&value)?,
            "by" => campaign.once = primitive::once(&value)?,
            "resumes" => campaign.resumes = true,
            _ => return Err(format!("unknown option {option:?} of campaign")),
        }
    }
    Ok(campaign)
}

fn leave(words: &mut Words) -> Parsed<Leave> {
    let mut leave = Leave {
        name: bytes(&words.next()?),
        session: words.number()?,
        fence: words.number()?,
        ..Leave::default()
    };
    for (option, value) in words.options() {
        match option.as_str() {
            "attempt" => leave.attempt = number(&value)?,
            "by" => leave.once = primitive::once(&value)?,
            _ => return Err(format!("unknown option {option:?} of leave")),
        }
    }
    Ok(leave)
}

fn attempt(words: &mut Words) -> Parsed<u64> {
    let mut attempt = 0;
    for (option, value) in words.options() {
        match option.as_str() {
            "attempt" => attempt = number(&value)?,
            _ => return Err(format!("unknown option {option:?}, only attempt is one")),
        }
    }
    Ok(attempt)
}

fn put(words: &mut Words) -> Parsed<Put> {
    let (key, value) = (bytes(&words.next()?), bytes(&words.next()?));
    let mut put = Put { key, value, ..Put::default() };
    for (option, value) in words.options() {
        match option.as_str() {
            "lease" => put.lease = number(&value)?,
            "prev_kv" => put.prev_kv = true,
            "ignore_value" => put.ignore_value = true,
            "ignore_lease" => put.ignore_lease = true,
            _ => return Err(format!("unknown option {option:?} of put")),
        }
    }
    Ok(put)
}

fn delete(words: &mut Words) -> Parsed<DeleteRange> {
    let (key, range_end) = span(&words.next()?);
    let mut delete = DeleteRange { key, range_end, prev_kv: false };
    for (option, _) in words.options() {
        match option.as_str() {
            "prev_kv" => delete.prev_kv = true,
            _ => return Err(format!("unknown option {option:?} of delete")),
        }
    }
    Ok(delete)
}

pub(crate) fn range(words: &mut Words) -> Parsed<Range> {
    let (key, range_end) = span(&words.next()?);
    let mut range = Range { key, range_end, ..Range::default() };
    for (option, value) in words.options() {
        match option.as_str() {
            "rev" => range.revision = number(&value)?,
            "limit" => range.limit = number(&value)?,
            "sort" => (range.sort_order, range.sort_target) = sort(&value)?,
            "keys_only" => range.keys_only = true,
            "count_only" => range.count_only = true,
            "min_mod" => range.min_mod_revision = number(&value)?,
            "max_mod" => range.max_mod_revision = number(&value)?,
            "min_create" => range.min_create_revision = number(&value)?,
            "max_create" => range.max_create_revision = number(&value)?,
            _ => return Err(format!("unknown option {option:?} of range")),
        }
    }
    Ok(range)
}

fn sort(word: &str) -> Parsed<(SortOrder, SortTarget)> {
    let (order, target) = word.split_once('.').unwrap_or((word, "key"));
    let order = match order {
        "none" => SortOrder::None,
        "asc" => SortOrder::Ascend,
        "desc" => SortOrder::Descend,
        _ => return Err(format!("unknown order {order:?}")),
    };
    let target = match target {
        "key" => SortTarget::Key,
        "version" => SortTarget::Version,
        "create" => SortTarget::Create,
        "mod" => SortTarget::Mod,
        "value" => SortTarget::Value,
        _ => return Err(format!("unknown sort target {target:?}")),
    };
    Ok((order, target))
}

fn txn(words: &mut Words) -> Parsed<Txn> {
    let mut txn = Txn::default();
    words.expect("[")?;
    while words.peek() != Some("]") {
        txn.compare.push(compare(words)?);
        if words.peek() == Some(";") {
            words.next()?;
        }
    }
    words.expect("]")?;
    txn.success = block(words)?;
    if words.peek() == Some("{") {
        txn.failure = block(words)?;
    }
    Ok(txn)
}

fn compare(words: &mut Words) -> Parsed<Compare> {
    let field = words.next()?;
    let (key, range_end) = span(&words.next()?);
    let relation = words.next()?;
    let operand = words.next()?;
    let target = match field.as_str() {
        "version" => CompareTarget::Version(number(&operand)?),
        "create" => CompareTarget::Create(number(&operand)?),
        "mod" => CompareTarget::Mod(number(&operand)?),
        "value" => CompareTarget::Value(bytes(&operand)),
        "lease" => CompareTarget::Lease(number(&operand)?),
        _ => return Err(format!("unknown field {field:?}")),
    };
    let result = match relation.as_str() {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        "<" => CompareResult::Less,
        ">" => CompareResult::Greater,
        _ => return Err(format!("unknown relation {relation:?}")),
    };
    Ok(Compare { key, range_end, result, target })
}

fn block(words: &mut Words) -> Parsed<Vec<TxnOp>> {
    let mut ops = Vec::new();
    words.expect("{")?;
    while words.peek() != Some("}") {
        let op = words.next()?;
        ops.push(match op.as_str() {
            "put" => TxnOp::Put(put(words)?),
            "delete" => TxnOp::DeleteRange(delete(words)?),
            "range" => TxnOp::Range(range(words)?),
            "txn" => TxnOp::Txn(txn(words)?),
            _ => return Err(format!("unknown operation {op:?}")),
        });
        if words.peek() == Some(";") {
            words.next()?;
        }
    }
    words.expect("}")?;
    Ok(ops)
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
