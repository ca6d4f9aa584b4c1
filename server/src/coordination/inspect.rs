//! Lists locks, their holders and their waiters.

use std::collections::BTreeSet;

use bytes::Bytes;
use conclave_proto::v1;
use conclave_raft_store::Reader;
use conclave_raft_store::store::ReadError;
use conclave_state_machine::auth::check::queue_span;
use conclave_state_machine::command::Range;
use conclave_state_machine::leases::{self, LeaseRow};
use conclave_state_machine::locks::candidate;
use conclave_state_machine::locks::check::NOTE_BYTES_MAX;
use conclave_state_machine::locks::claim::Claim;
use conclave_state_machine::locks::queue::{self, Admission, Place};
use conclave_state_machine::response::{Halt, KeyValue};
use tonic::{Request, Status};

use super::session::tags;
use crate::api::context::Context;
use crate::api::kv::off_thread;
use crate::auth::{RightsCheck, caller_of};
use crate::status;

/// Most locks in one answer.
const LIST_MAX: usize = 1_000;
/// Most keys read for one answer.
const LIST_KEYS_MAX: usize = 10_000;
/// Most places in one answer.
const PLACES_MAX: usize = 1_000;

/// Answers `List`.
pub(super) async fn list(
    context: &Context,
    request: Request<v1::LockListRequest>,
) -> Result<v1::LockListResponse, Status> {
    context.check_metadata(request.metadata())?;
    let caller = caller_of(request.extensions());
    let request = request.into_inner();
    context.read_barrier().await?;
    // An empty prefix selects everything; the empty key is no valid start of a range.
    let key = request.prefix.clone().max(Bytes::from_static(b"\0"));
    let wanted = RightsCheck::Range(key, prefix_end(&request.prefix));
    let reader = context.node.reader().clone();
    let read = off_thread(move || list_now(&reader, request));
    let answer = context.auth.checked(&caller, &wanted, read).await?;
    answer.map_err(|error| status::from_read(&error))
}

fn list_now(
    reader: &Reader,
    request: v1::LockListRequest,
) -> Result<v1::LockListResponse, ReadError> {
    let limit = usize::try_from(request.limit).unwrap_or(LIST_MAX);
    let limit = if limit == 0 { LIST_MAX } else { limit.min(LIST_MAX) };
    let from = request.prefix.clone().max(request.from).max(Bytes::from_static(b"\0"));
    let keys =
        Range { key: from.clone(), range_end: prefix_end(&request.prefix), ..Range::default() };
    let at = reader.head().revision;
    let mut found = reader.page(&keys, at, LIST_KEYS_MAX)?;
    let mut next = Bytes::new();
    if found.len() >= LIST_KEYS_MAX {
        next = found.pop().map(|kv| kv.key).unwrap_or_default();
    }
    let mut names: BTreeSet<Bytes> = BTreeSet::new();
    for kv in found {
        // A key can begin with the prefix although its name does not: the prefix may be longer than
        // the name.
        let Some(name) = lock_name(&kv).filter(|name| name.starts_with(&request.prefix)) else {
            continue;
        };
        if names.len() >= limit && !names.contains(name) {
            next = kv.key;
            break;
        }
        if !names.contains(name) {
            names.insert(kv.key.slice_ref(name));
        }
    }
    // A page may end between two keys of a name. Such a name was in the page before. Only names
    // that are ancestors of the first key can be affected, one per slash in it.
    for name in cut_names(&from) {
        if names.contains(&name) && has_keys_before(reader, (&name, &from), at)? {
            names.remove(&name);
        }
    }
    let locks = names.into_iter().map(|name| summary(reader, name));
    let locks = locks.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    Ok(v1::LockListResponse { locks, next })
}

/// All names whose keys may include `key`: its prefixes before each slash.
fn cut_names(key: &Bytes) -> impl Iterator<Item = Bytes> {
    let slashes = key.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| key.slice(..at))
}

/// Whether a lock has places with keys before `from`, at a revision.
fn has_keys_before(
    reader: &Reader,
    (name, from): (&Bytes, &Bytes),
    at: i64,
) -> Result<bool, ReadError> {
    let (key, _) = queue_span(name);
    let mut before = Range { key, range_end: from.clone(), ..Range::default() };
    // Runs at most once per page of the list so far.
    loop {
        let found = reader.page(&before, at, LIST_KEYS_MAX)?;
        if found.iter().any(|kv| lock_name(kv) == Some(name)) {
            return Ok(true);
        }
        let Some(last) = found.last().filter(|_| found.len() >= LIST_KEYS_MAX) else {
            return Ok(false);
        };
        before.key = [&last.key[..], b"\0"].concat().into();
    }
}

/// End of the range for a prefix, as in etcd: `"\0"` means no end.
pub(super) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// The name of the lock that a key is a place of. Our places are recognised by value, those of
/// etcd's recipe by key.
fn lock_name(kv: &KeyValue) -> Option<&[u8]> {
    if kv.lease == 0 {
        return None;
    }
    let name = queue::name_of(&kv.key)?;
    (Claim::decode(&kv.value).is_some() || queue::key(name, kv.lease) == kv.key).then_some(name)
}

fn summary(reader: &Reader, name: Bytes) -> Result<Option<v1::LockSummary>, ReadError> {
    let (mut places, _) = reader.places(&name, PLACES_MAX + 1)?;
    let more = places.len() > PLACES_MAX;
    places.truncate(PLACES_MAX);
    let mut admission = Admission::default();
    let holders = places.iter().filter(|place| admission.admits(place.share())).count();
    let Some(first) = places.first() else { return Ok(None) };
    Ok(Some(v1::LockSummary {
        fence: first.fence,
        holders: holders as u64,
        waiters: (places.len() - holders) as u64,
        name,
        more,
    }))
}

/// Answers `Inspect`.
pub(super) async fn inspect(
    context: &Context,
    request: Request<v1::InspectRequest>,
) -> Result<v1::InspectResponse, Status> {
    context.check_metadata(request.metadata())?;
    let caller = caller_of(request.extensions());
    let name = request.into_inner().name;
    context.read_barrier().await?;
    let answer = inspect_now(context, &name);
    context.auth.checked(&caller, &RightsCheck::queue(&name), answer).await
}

async fn inspect_now(context: &Context, name: &[u8]) -> Result<v1::InspectResponse, Status> {
    let (reader, name) = (context.node.reader().clone(), Bytes::copy_from_slice(name));
    let found = off_thread(move || {
        let (places, tenure, revision) = reader.timed_places(&name, PLACES_MAX + 1)?;
        let places = places.into_iter().map(|place| Standing::of(&reader, place));
        Ok((places.collect::<Result<Vec<_>, Halt>>()?, tenure, revision))
    });
    let found = found.await?.map_err(|error: ReadError| status::from_read(&error));
    let (mut places, tenure, revision) = found?;
    let more = places.len() > PLACES_MAX;
    places.truncate(PLACES_MAX);
    let ids: Vec<i64> = places.iter().map(|standing| standing.place.session).collect();
    let remaining = context.node.lessor().remaining_ms(&ids).await;
    // The holders are worth showing even if there is no leader to ask for remaining TTLs.
    let remaining = remaining.unwrap_or_else(|_| vec![-1; ids.len()]);
    let mut admission = Admission::default();
    let infos = places.into_iter().zip(remaining).map(|(standing, remaining_ms)| {
        let held = admission.admits(standing.place.share());
        let held_since_unix_ms = if held { tenure.since(&standing.place) } else { 0 };
        v1::PlaceInfo { held, held_since_unix_ms, ..standing.info(remaining_ms) }
    });
    Ok(v1::InspectResponse { places: infos.collect(), more, revision })
}

/// A place with its lease, and whether it is a candidate.
struct Standing {
    lease: LeaseRow,
    is_candidate: bool,
    place: Place,
}

impl Standing {
    fn of(reader: &Reader, place: Place) -> Result<Self, Halt> {
        let lease = leases::lease(reader, place.session)?.unwrap_or_default();
        let is_candidate = candidate::is_candidate(reader, &place)?;
        Ok(Self { lease, is_candidate, place })
    }

    fn info(self, remaining_ms: i64) -> v1::PlaceInfo {
        let Self { lease, is_candidate, place } = self;
        let (permits, limit) = place.share();
        let delayed = place.is_lost();
        let foreign = place.claim.is_none() && !is_candidate;
        let claim = place.claim.unwrap_or_default();
        let said = Some(place.value).filter(|said| is_candidate && said.len() <= NOTE_BYTES_MAX);
        v1::PlaceInfo {
            key: place.key,
            fence: place.fence,
            session: place.session,
            permits,
            limit,
            asked_unix_ms: claim.asked_ms,
            note: said.unwrap_or(claim.note),
            owner: lease.owner,
            metadata: tags(lease.metadata),
            remaining_ms,
            delayed,
            foreign,
            ..v1::PlaceInfo::default()
        }
    }
}
