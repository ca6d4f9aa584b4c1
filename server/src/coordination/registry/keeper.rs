//! What the leader does when a time of an instance is over: a lost one is kept no longer, a damped one
//! is shown again, one that was critical or draining for too long goes.
//!
//! The index says what is due and after how long; the time runs from when this leader saw it first, on
//! its monotonic clock. A new leader starts over, so that no time is ever too short.

use std::collections::hash_map::Entry as Known;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::internal::{self, command::Command as Message};
use conclave_raft_store::Reader;
use conclave_state_machine::command::{Caller, Settlement};
use conclave_state_machine::registry::check::SETTLE_MAX;
use conclave_state_machine::registry::damping;
use conclave_state_machine::registry::index::{self, Due, Entry, ServiceRow};
use conclave_state_machine::response::Halt;
use tokio::time::Instant;

use crate::api::context::Context;
use crate::api::kv::off_thread;
use crate::coordination::unix_ms;

/// How often the leader looks.
const LOOK: Duration = Duration::from_millis(250);
/// It rests so many times as long as a look took, however much there is to look at.
const REST_FACTOR: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(5);
/// How many looks pass until penalties that have faded are forgotten.
const FORGET_LOOKS: u64 = 40;
/// Entries that are looked after at once; those beyond wait until others are done.
const ENTRIES_MAX: usize = 200_000;
/// Penalties looked at in one look.
const PENALTIES_MAX: usize = 10_000;

/// Something that is due, and since when this leader knows.
type Seen = BTreeMap<(Entry, Settlement, i64), Instant>;

/// Looks after times while this member leads. Never returns.
pub(super) async fn run(context: &Context) {
    let mut seen = Seen::new();
    let mut term = 0;
    let mut took = Duration::ZERO;
    for number in 0_u64.. {
        tokio::time::sleep(LOOK.max(took * REST_FACTOR).min(REST_MAX)).await;
        let began = Instant::now();
        let status = context.node.status();
        if !context.node.is_leader() {
            seen.clear();
            continue;
        }
        if std::mem::replace(&mut term, status.term) != status.term {
            seen.clear();
        }
        let is_forgetting = number % FORGET_LOOKS == 0;
        if let Err(error) = attend(context, term, &mut seen, is_forgetting).await {
            tracing::debug!(error = error.message(), "what is due was not settled yet");
        }
        took = began.elapsed();
    }
}

async fn attend(
    context: &Context,
    term: u64,
    seen: &mut Seen,
    is_forgetting: bool,
) -> Result<(), tonic::Status> {
    let reader = context.node.reader().clone();
    let is_guarded = context.node.settings().registry.is_guarded;
    let found = off_thread(move || found(&reader, is_guarded, is_forgetting)).await?;
    let (due, faded) = found.map_err(|halt| crate::status::internal(&halt))?;
    let now = Instant::now();
    let mut known = Seen::new();
    let mut items = faded;
    for (entry, Due { what, stamp, wait_ms }) in due {
        let key = (entry, what, stamp);
        let since = seen.get(&key).copied().unwrap_or(now);
        if now.duration_since(since) >= Duration::from_millis(wait_ms) {
            items.push(item(&key.0, what, stamp));
        }
        known.insert(key, since);
    }
    *seen = known;
    for items in items.chunks(SETTLE_MAX) {
        let settle =
            internal::RegistrySettle { term, now_unix_ms: unix_ms(), items: items.to_vec() };
        context.propose(&Caller::Inside, Message::RegistrySettle(settle)).await?;
    }
    Ok(())
}

fn item(entry: &Entry, what: Settlement, stamp: i64) -> internal::RegistrySettleItem {
    internal::RegistrySettleItem {
        service: String::from_utf8_lossy(&entry.service).into_owned(),
        id: entry.id.clone(),
        stamp,
        what: i32::from(what.number()),
    }
}

/// The switches of services, each read once.
struct Services<'a> {
    reader: &'a Reader,
    known: HashMap<Bytes, ServiceRow>,
}

impl Services<'_> {
    fn of(&mut self, service: &Bytes) -> Result<&ServiceRow, Halt> {
        match self.known.entry(service.clone()) {
            Known::Occupied(known) => Ok(known.into_mut()),
            Known::Vacant(place) => Ok(place.insert(index::service(self.reader, service)?)),
        }
    }
}

type Found = (Vec<(Entry, Due)>, Vec<internal::RegistrySettleItem>);

/// What is due, with the time that is given to it, and penalties that have faded.
fn found(reader: &Reader, is_guarded: bool, is_forgetting: bool) -> Result<Found, Halt> {
    let mut found = Vec::new();
    let (due, _) = index::due(reader, b"", ENTRIES_MAX)?;
    let mut services = Services { reader, known: HashMap::new() };
    for (entry, dues) in due {
        for mut due in dues {
            match due.what {
                Settlement::DropLost => {
                    if !is_guarded || services.of(&entry.service)?.is_guard_off {
                        due.wait_ms = 0;
                    }
                }
                Settlement::Undamp => {
                    let flaps = damping::flaps(reader, &entry.service, &entry.id)?;
                    let is_off = services.of(&entry.service)?.is_damping_off;
                    due.wait_ms = if is_off { 0 } else { damping::wait_ms(flaps.penalty) };
                }
                Settlement::RemoveCritical | Settlement::RemoveDrained | Settlement::Forget => {}
            }
            found.push((entry.clone(), due));
        }
    }
    let mut faded = Vec::new();
    if is_forgetting {
        let now_ms = unix_ms();
        let (flapping, _) = index::flapping(reader, b"", PENALTIES_MAX)?;
        for (entry, flaps) in flapping {
            if flaps.at(now_ms) < damping::FORGET {
                faded.push(item(&entry, Settlement::Forget, 0));
            }
        }
    }
    Ok((found, faded))
}
