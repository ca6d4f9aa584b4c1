//! Applies log entries: one command in; rows, answer and events out.

use crate::alarms;
use crate::auth::{self, RightsCache};
use crate::change::Change;
use crate::command::{Action, AlarmKind, Caller, Command, LockCommand, RegistryCommand};
use crate::compaction::{self, Swept};
use crate::events::{Events, Wanted};
use crate::head::Head;
use crate::kv::{delete, put, txn};
use crate::leases;
use crate::locks;
use crate::members;
use crate::outcome::{Stop, split};
use crate::overlay::Overlay;
use crate::primitives;
use crate::read::Read;
use crate::registry;
use crate::response::{Applied, Halt, LeaseChange, Rejection, Response};
use crate::room;
use crate::sessions;
use crate::writes;

/// Log position of a command, and when it was proposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Term of the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: u64,
    /// When it was proposed, in milliseconds since 1970 by the proposing member's clock. For
    /// display only; 0: not known.
    pub unix_ms: i64,
}

/// Applies commands in log order.
///
/// After a [`Halt`] neither the machine nor the overlay may be used any more.
#[derive(Clone, Debug)]
pub struct Machine {
    head: Head,
    rights: RightsCache,
    /// For metrics only and not replicated: starts at zero when the member restarts.
    swept: Swept,
}

/// What a command changed besides the rows.
struct Changes {
    events: Events,
    leases: Vec<LeaseChange>,
}

impl Machine {
    /// Starts from the stored head row; also used after a snapshot was installed.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or the head row is damaged.
    pub fn load(rows: &impl Read) -> Result<Machine, Halt> {
        Ok(Machine {
            head: Head::load(rows)?,
            rights: RightsCache::default(),
            swept: Swept::default(),
        })
    }

    /// Counters as of the last applied command.
    ///
    /// Readers of a live store see a higher `compacted` before the batch is written, and the other
    /// counters only after it: see [`crate::range::range`].
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Returns what sweeps deleted since the last call, and resets it.
    pub fn take_swept(&mut self) -> Swept {
        std::mem::take(&mut self.swept)
    }

    /// Applies one command on behalf of `caller`. A rejection is an ordinary answer and leaves the
    /// rows unchanged.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or holds something impossible; the node must stop.
    pub fn apply<R: Read>(
        &mut self,
        rows: &mut Overlay<'_, R>,
        position: Position,
        caller: &Caller,
        command: &Command,
    ) -> Result<Applied, Halt> {
        self.apply_for(rows, position, (caller, command), &mut Wanted::default())
    }

    /// As [`Machine::apply`], but collects only the parts of the outcome that are `wanted`. What
    /// they used of the budget for previous values is subtracted from `wanted`.
    ///
    /// # Errors
    /// Those of [`Machine::apply`].
    pub fn apply_for<R: Read>(
        &mut self,
        rows: &mut Overlay<'_, R>,
        position: Position,
        (caller, command): (&Caller, &Command),
        wanted: &mut Wanted,
    ) -> Result<Applied, Halt> {
        let events = Events::new(*wanted, position.unix_ms);
        let mut changes = Changes { events, leases: Vec::new() };
        let outcome = match self.refusal(rows, caller, command)? {
            Some(rejection) => Err(rejection),
            None => split(self.dispatch(rows, position, (caller, command), &mut changes))?,
        };
        if matches!(command, Command::Compact(_)) {
            self.swept.add(compaction::sweep_step(rows, &mut self.head)?);
        }
        let Changes { events, leases } = changes;
        let Events { list: events, lack_prev, wanted: left, .. } = events;
        wanted.prev_bytes = left.prev_bytes;
        Ok(Applied { outcome, revision: self.head.revision, events, lack_prev, leases })
    }

    /// Writes the head row; once per batch, before the batch goes to the engine.
    pub fn finish<R: Read>(&self, rows: &mut Overlay<'_, R>) {
        self.head.write(rows);
    }

    /// Why a command must be rejected before its own rules are looked at.
    fn refusal<R: Read>(
        &mut self,
        rows: &Overlay<'_, R>,
        caller: &Caller,
        command: &Command,
    ) -> Result<Option<Rejection>, Halt> {
        let Machine { head, rights, .. } = self;
        let allowed = split(auth::check::command(rows, head, rights, caller, command))?;
        match allowed.err().or_else(|| refusal_by_alarm(head, command)) {
            Some(Rejection::NoSpace) if room::comes_again(rows, command)? => Ok(None),
            refusal => Ok(refusal),
        }
    }

    fn dispatch<R: Read>(
        &mut self,
        rows: &mut Overlay<'_, R>,
        position: Position,
        (caller, command): (&Caller, &Command),
        changes: &mut Changes,
    ) -> Result<Response, Stop> {
        let head = &mut self.head;
        let events = &mut changes.events;
        Ok(match command {
            Command::Put(command) => {
                events.list.reserve_exact(1);
                let mut change = Change::begin(rows, head, events)?;
                Response::Put(put::apply(&mut change, command)?)
            }
            Command::DeleteRange(command) => {
                let mut change = Change::begin(rows, head, events)?;
                Response::DeleteRange(delete::apply(&mut change, command)?)
            }
            Command::Txn(command) => {
                let mut change = Change::begin(rows, head, events)?;
                Response::Txn(txn::apply(&mut change, command)?)
            }
            Command::Compact(command) => {
                compaction::apply(head, *command)?;
                Response::Compact { digest: head.digest }
            }
            Command::LeaseGrant(command) => {
                changes.leases.push(leases::grant(rows, head, position, *command)?);
                Response::LeaseGrant { id: command.id, ttl: command.ttl }
            }
            Command::LeaseRevoke(command) => {
                let mut change = Change::begin(rows, head, events)?;
                changes.leases.push(leases::revoke(&mut change, *command)?);
                Response::LeaseRevoke
            }
            Command::LeaseExpire(command) => {
                changes.leases = leases::expire(rows, head, events, position, command)?;
                let is_end = |change: &&LeaseChange| matches!(change, LeaseChange::Ended { .. });
                Response::LeaseExpire { ended: changes.leases.iter().filter(is_end).count() }
            }
            Command::Alarm(command) => Response::Alarm(alarms::apply(head, *command)),
            Command::MemberPublish(member) => {
                members::publish(rows, member)?;
                Response::MemberPublish(member.clone())
            }
            Command::SessionBegin(command) => {
                let user = if head.auth.enabled { caller.user() } else { "" };
                let (ttl, granted) = sessions::begin(rows, head, position, (user, command))?;
                changes.leases.extend(granted);
                Response::SessionBegin { id: command.id, ttl }
            }
            Command::Lock(command) => {
                Response::Lock(locks::apply(rows, head, events, command, &mut changes.leases)?)
            }
            Command::GuardedTxn(command) => {
                let mut change = Change::begin(rows, head, events)?;
                Response::GuardedTxn(locks::guarded_txn(&mut change, command)?)
            }
            Command::Primitive(command) => {
                Response::Primitive(primitives::apply(rows, head, events, command)?)
            }
            Command::Auth(command) => Response::Auth(auth::apply(rows, head, position, command)?),
            Command::Registry(command) => {
                let command = (position.term, command);
                Response::Registry(registry::apply(rows, head, events, command)?)
            }
            Command::Write(command) => Response::Write(writes::apply(rows, head, events, command)?),
        })
    }
}

/// What an active alarm forbids: CORRUPT any command that touches keys or leases, NOSPACE any that
/// grows the store (unless it only [comes again](room)).
fn refusal_by_alarm(head: &Head, command: &Command) -> Option<Rejection> {
    if head.alarms.is_empty() {
        return None;
    }
    let (touches_keys, grows) = match command {
        Command::Put(_)
        | Command::LeaseGrant(_)
        | Command::SessionBegin(_)
        | Command::Lock(LockCommand::Acquire(_) | LockCommand::Campaign(_))
        | Command::Registry(RegistryCommand::Register(_)) => (true, true),
        Command::Txn(txn) => (true, txn::has_put(txn)),
        Command::GuardedTxn(guarded) => (true, txn::has_put(&guarded.txn)),
        Command::Write(write) => (true, txn::has_put(&write.guarded.txn)),
        Command::Primitive(primitive) => {
            let shrinks = matches!(
                primitive.action,
                Action::Lift(_) | Action::Exit { .. } | Action::Part { .. }
            );
            (true, !shrinks)
        }
        Command::DeleteRange(_)
        | Command::Compact(_)
        | Command::LeaseRevoke(_)
        | Command::LeaseExpire(_)
        | Command::Lock(
            LockCommand::Release(_)
            | LockCommand::Convert(_)
            | LockCommand::Break(_)
            | LockCommand::Leave(_)
            | LockCommand::HandOver(_),
        )
        | Command::Registry(
            RegistryCommand::Update(_)
            | RegistryCommand::Deregister(_)
            | RegistryCommand::Checked(_)
            | RegistryCommand::Settle(_)
            | RegistryCommand::Configure(_),
        ) => (true, false),
        Command::Alarm(_) | Command::MemberPublish(_) | Command::Auth(_) => (false, false),
    };
    if touches_keys && head.has_alarm(AlarmKind::Corrupt) {
        return Some(Rejection::Corrupt);
    }
    (grows && head.has_alarm(AlarmKind::NoSpace)).then_some(Rejection::NoSpace)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::command::{Compact, Put, Range};
    use crate::memory::MemoryRows;
    use crate::range;
    use crate::read::Table;

    fn apply(rows: &mut MemoryRows, command: &Command) -> Applied {
        rows.update(|overlay| {
            let mut machine = Machine::load(overlay)?;
            let applied = machine.apply(overlay, Position::default(), &Caller::Inside, command)?;
            machine.finish(overlay);
            Ok::<_, Halt>(applied)
        })
        .expect("memory does not fail")
    }

    fn value_at(rows: &MemoryRows, revision: i64) -> Result<Option<Bytes>, Rejection> {
        let head = Head::load(rows).unwrap();
        let request = Range { key: Bytes::from_static(b"k"), revision, ..Range::default() };
        let answer = range::range(rows, &head, &request).unwrap()?;
        Ok(answer.kvs.into_iter().next().map(|kv| kv.value))
    }

    #[test]
    fn old_revisions_stay_readable_until_compacted() {
        let mut rows = MemoryRows::default();
        for value in ["one", "two", "three"] {
            let put = Put { key: "k".into(), value: value.into(), ..Put::default() };
            let applied = apply(&mut rows, &Command::Put(put));
            assert!(applied.outcome.is_ok());
            assert_eq!(applied.events.len(), 1);
        }
        assert_eq!(value_at(&rows, 0), Ok(Some("three".into())));
        assert_eq!(value_at(&rows, 2), Ok(Some("one".into())));
        assert_eq!(value_at(&rows, 1), Ok(None));
        assert_eq!(value_at(&rows, 5), Err(Rejection::FutureRevision));
        let size = Head::load(&rows).unwrap().bytes_in_use;
        assert!(apply(&mut rows, &Command::Compact(Compact { revision: 3 })).outcome.is_ok());
        assert_eq!(value_at(&rows, 2), Err(Rejection::Compacted));
        assert_eq!(value_at(&rows, 3), Ok(Some("two".into())));
        assert_eq!(rows.rows(Table::Rev).count(), 2);
        assert!(Head::load(&rows).unwrap().bytes_in_use < size);
    }
}
