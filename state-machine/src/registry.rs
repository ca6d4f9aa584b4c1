//! The registry: instances of services as ordinary keys.
//!
//! An *instance* is a key `service/id` whose value has the format of Go's `naming/endpoints`
//! ([`record`]), usually attached to a session's lease and deleted with it, whatever wrote the key.
//! The commands here write such keys with more checks. The index of services, of health checks and
//! of due times follows the keys themselves ([`index`]). An instance that is lost together with
//! most others of its service leaves a key `service/\0lost/id` behind for a while ([`loss`]). For
//! etcd's clients the lease's key is gone, and a watch of the service's keys sees both changes at
//! one revision.
//!
//! | module | what |
//! |---|---|
//! | [`record`] | the record of an instance, and its only encoding |
//! | [`check`] | validity checks of commands |
//! | [`index`] | services, health checks and due times |
//! | [`damping`] | flap damping: instances that come and go too often |
//! | [`loss`] | what happens to instances whose session expires |
//! | [`threshold`] | how many checks in a row change a state |
//! | [`view`] | the instances of one service, and how a revision changes them |
//! | [`coalesce`] | how several successive revisions change them |
//! | `enroll`, `amend`, `settle` | the commands |
//! | `again` | retries of commands |

mod again;
mod amend;
pub mod check;
pub mod coalesce;
pub mod damping;
mod enroll;
pub mod index;
pub mod loss;
pub mod record;
mod settle;
pub mod threshold;
pub mod view;

use bytes::Bytes;

use crate::change::{Before, Change};
use crate::command::RegistryCommand;
use crate::events::Events;
use crate::head::Head;
use crate::outcome::Stop;
use crate::overlay::Overlay;
use crate::primitives::once::Kind;
use crate::read::{Read, Table};
use crate::response::{Cause, Halt, KeyValue, RegistryResponse};
use crate::rows::rev::RevRow;
use record::Record;

/// Separates the name of a service from the id in the key of a lost instance.
const LOST: &[u8] = b"/\0lost/";

/// Key of an instance.
#[must_use]
pub fn key(service: &[u8], id: &str) -> Bytes {
    [service, b"/", id.as_bytes()].concat().into()
}

/// Key of an instance that was lost but is kept for a while.
#[must_use]
pub fn lost_key(service: &[u8], id: &str) -> Bytes {
    [service, LOST, id.as_bytes()].concat().into()
}

/// First key and range end of all instances of a service, lost ones included.
#[must_use]
pub fn span(service: &[u8]) -> (Bytes, Bytes) {
    ([service, b"/"].concat().into(), [service, b"0"].concat().into())
}

/// The registry's reading of a key, from the key alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The service.
    pub service: &'a [u8],
    /// Id of the instance.
    pub id: &'a str,
    /// Whether it is the key of a lost instance.
    pub is_lost: bool,
}

impl<'a> Name<'a> {
    /// Reads `key`; `None` if it cannot be the key of an instance.
    #[must_use]
    pub fn of(key: &'a [u8]) -> Option<Name<'a>> {
        let (parent, child) = crate::rows::place::parent(key)?;
        let id = std::str::from_utf8(child).ok()?;
        let lost = LOST.strip_suffix(b"/").and_then(|lost| parent.strip_suffix(lost));
        let service = lost.unwrap_or(parent);
        // A key that no command could name is not an instance, whoever wrote it.
        check::names(service, id).ok()?;
        Some(Name { service, id, is_lost: lost.is_some() })
    }

    /// The other key of the same instance: one is used while it is registered, the other after its
    /// loss.
    #[must_use]
    pub fn twin(self) -> Bytes {
        let Name { service, id, is_lost } = self;
        if is_lost { key(service, id) } else { lost_key(service, id) }
    }

    /// Decodes the record of the instance from the key's value.
    #[must_use]
    pub fn decode(self, value: &[u8]) -> Option<Record> {
        if self.is_lost {
            Record::decode_lost(self.id, value)
        } else {
            record::may_be_instance(value).then(|| Record::decode(self.id, value)).flatten()
        }
    }
}

/// Carries out a command of the registry.
pub(crate) fn apply<R: Read>(
    rows: &mut Overlay<'_, R>,
    head: &mut Head,
    events: &mut Events,
    (term, command): (u64, &RegistryCommand),
) -> Result<RegistryResponse, Stop> {
    check::command(command)?;
    let mut change = Change::begin(rows, head, events)?;
    match command {
        RegistryCommand::Register(command) => {
            again::apply(&mut change, (command.once, Kind::Register), again::registered, |change| {
                enroll::register(change, command)
            })
        }
        RegistryCommand::Deregister(command) => {
            again::apply(&mut change, (command.once, Kind::Deregister), again::removed, |change| {
                enroll::deregister(change, command)
            })
        }
        RegistryCommand::Update(command) => {
            again::apply(&mut change, (command.once, Kind::Update), again::updated, |change| {
                amend::update(change, command)
            })
        }
        RegistryCommand::Checked(command) => {
            Ok(again::updated(amend::checked(&mut change, command)?))
        }
        RegistryCommand::Settle(command) => Ok(settle::apply(&mut change, term, command)?),
        RegistryCommand::Configure(command) => Ok(settle::configure(&mut change, command)?),
    }
}

/// Returns why an instance that does not exist was removed; `None` if it exists, or if the reason
/// is not known or no longer known: a compaction may have deleted it meanwhile.
///
/// # Errors
/// [`Halt`] if the storage fails or a row is damaged.
pub fn removal<R: Read>(rows: &R, service: &[u8], id: &str) -> Result<Option<Cause>, Halt> {
    let before = Before::load(rows, &key(service, id))?;
    let Before { modified: Some(at), kv: None, .. } = before else { return Ok(None) };
    let row = rows.get(Table::Rev, &at.row_key())?;
    row.map(|row| RevRow::decode(at, &row).map(|row| row.cause)).transpose()
}

/// An instance as it is stored.
struct Stored {
    key: Bytes,
    before: Before,
    kv: KeyValue,
    record: Record,
}

impl Stored {
    /// Whether `session` registered it with this fence.
    fn is_of(&self, session: i64, fence: i64) -> bool {
        (self.kv.lease, self.kv.create_revision) == (session, fence)
    }
}

/// Reads an instance that is registered.
fn stored<R: Read>(rows: &R, service: &[u8], id: &str) -> Result<Option<Stored>, Halt> {
    let key = key(service, id);
    let before = Before::load(rows, &key)?;
    let Some(kv) = before.kv.clone() else { return Ok(None) };
    let record = Record::decode(id, &kv.value);
    Ok(record.map(|record| Stored { key, before, kv, record }))
}

/// Called when an instance is registered, whatever wrote it: deletes the key that kept its loss, at
/// the same revision.
pub(crate) fn found<R: Read>(change: &mut Change<'_, '_, R>, key: &[u8]) -> Result<(), Halt> {
    let Some(Name { service, id, .. }) = Name::of(key) else { return Ok(()) };
    if index::service(change.rows, service)?.lost > 0 {
        drop_lost(change, service, id)?;
    }
    Ok(())
}

/// Deletes the key that keeps a lost instance. Returns whether there was one.
fn drop_lost<R: Read>(
    change: &mut Change<'_, '_, R>,
    service: &[u8],
    id: &str,
) -> Result<bool, Halt> {
    let key = lost_key(service, id);
    let before = Before::load(change.rows, &key)?;
    let was_there = before.kv.is_some();
    change.delete(&key, before)?;
    Ok(was_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_services_and_instances() {
        let name = |service: &'static str, id, is_lost| {
            Some(Name { service: service.as_bytes(), id, is_lost })
        };
        assert_eq!(Name::of(&key(b"shop/api", "a:1")), name("shop/api", "a:1", false));
        assert_eq!(Name::of(&lost_key(b"shop/api", "a:1")), name("shop/api", "a:1", true));
        let long = [&[b'a'; check::SERVICE_BYTES_MAX + 1][..], b"/a"].concat();
        let others: [&[u8]; 7] =
            [b"plain", b"/a", b"a/", b"/\0lost/a", b"a//b", b"a\xff/b", long.as_slice()];
        for other in others {
            assert_eq!(Name::of(other), None, "{}", other.escape_ascii());
        }
        let (start, end) = span(b"api");
        for key in [key(b"api", "x"), lost_key(b"api", "x")] {
            assert!(start <= key && key < end);
        }
    }
}
