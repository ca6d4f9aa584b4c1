//! Reads: instances page by page, services, and Prometheus' targets.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave_proto::v1;
use conclave_raft_store::Reader;
use conclave_raft_store::store::ReadError;
use conclave_state_machine::command::{Caller, Range, Settlement};
use conclave_state_machine::registry::view::{Shown, View};
use conclave_state_machine::registry::{self, check, index, key, lost_key, span};
use conclave_state_machine::response::{Halt, KeyValue, Rejection};
use serde_json::{Map, Value, json};
use tonic::{Request, Status};

use super::show::{self, Filter};
use crate::api::context::Context;
use crate::api::kv::off_thread;
use crate::auth::{RightsCheck, caller_of};
use crate::coordination::inspect::prefix_end;
use crate::status;

/// Instances, or services, of one answer.
const LIST_MAX: usize = 1_000;
/// About how many bytes of instances one answer holds: clients take 4 MiB by default.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Attempts to read the current revision before it is compacted.
const CURRENT_READS_MAX: usize = 3;
/// Keys looked at for one answer, and in one read.
const LOOKED_AT_MAX: usize = 20_000;
const READ_KEYS: usize = 2_000;
/// Services that Prometheus is told of when it asks for none in particular, and instances of all.
const TARGET_SERVICES_MAX: usize = 1_000;
const TARGETS_MAX: usize = 50_000;
/// About how many bytes of instances Prometheus is told of.
const TARGETS_BYTES_MAX: usize = 64 << 20;
/// Rows that are counted for the metrics.
const COUNTED_MAX: usize = 100_000;
/// Before a piece of metadata in a label, as Prometheus' own discoveries have it.
const META_PREFIX: &str = "__meta_conclave_";

/// The right to see the instances of a service.
pub(super) fn may_see(service: &[u8]) -> RightsCheck {
    let (start, end) = span(service);
    RightsCheck::Range(start, end)
}

fn limit(wanted: u32) -> usize {
    match usize::try_from(wanted) {
        Ok(0) | Err(_) => LIST_MAX,
        Ok(wanted) => wanted.min(LIST_MAX),
    }
}

/// Answers `Discover`.
pub(super) async fn discover(
    context: &Context,
    request: Request<v1::DiscoverRequest>,
) -> Result<v1::DiscoverResponse, Status> {
    context.check_metadata(request.metadata())?;
    let caller = caller_of(request.extensions());
    let request = request.into_inner();
    let service = Bytes::from(request.service.clone());
    let refused = |rejection| status::from_rejection(&rejection);
    check::service(&service).map_err(refused)?;
    let mut wanted = may_see(&service);
    if !request.id.is_empty() {
        check::names(&service, &request.id).map_err(refused)?;
        wanted = RightsCheck::key(&key(&service, &request.id));
    }
    context.read_barrier().await?;
    let reader = context.node.reader().clone();
    let read = off_thread(move || match request.id.is_empty() {
        true => discover_now(&reader, &service, request),
        false => one_now(&reader, &service, &request),
    });
    let answer = context.auth.checked(&caller, &wanted, read).await?;
    answer.map_err(|error| status::from_read(&error))
}

fn discover_now(
    reader: &Reader,
    service: &Bytes,
    request: v1::DiscoverRequest,
) -> Result<v1::DiscoverResponse, ReadError> {
    let filter = Filter::new(request.filter);
    let wanted = Wanted {
        from: request.from,
        revision: request.revision,
        limit: limit(request.limit),
        bytes_max: ANSWER_BYTES_MAX,
    };
    let show = |shown: &Shown| filter.admits(shown).then(|| show::instance(shown));
    let Page { found: instances, next, revision } = page(reader, service, &wanted, show)?;
    let row = index::service(reader, service)?;
    let (live, stale) = (row.live, row.lost);
    Ok(v1::DiscoverResponse { instances, revision, next, live, stale, ..Default::default() })
}

/// The instance with one id, or why it went.
fn one_now(
    reader: &Reader,
    service: &Bytes,
    request: &v1::DiscoverRequest,
) -> Result<v1::DiscoverResponse, ReadError> {
    let filter = Filter::new(request.filter.clone());
    let wanted = Wanted {
        from: Bytes::copy_from_slice(request.id.as_bytes()),
        revision: request.revision,
        limit: 1,
        bytes_max: ANSWER_BYTES_MAX,
    };
    // The first that is shown has this id, or comes after it.
    let Page { found, revision, .. } = page(reader, service, &wanted, |shown| Some(shown.clone()))?;
    let found = found.into_iter().find(|shown| shown.record.id == request.id);
    let removed = match &found {
        Some(_) => v1::instance_change::Reason::Unspecified,
        None => show::reason(registry::removal(reader, service, &request.id)?),
    };
    let wanted = found.filter(|shown| filter.admits(shown));
    let instances = wanted.iter().map(show::instance).collect();
    Ok(v1::DiscoverResponse { instances, revision, removed: removed.into(), ..Default::default() })
}

/// Instances of a service as of a revision, from one on, as many as one message holds; and where to go on,
/// empty at the end. Blocks.
///
/// # Errors
/// [`Rejection::Compacted`] if the revision is.
pub(super) fn as_of(
    reader: &Reader,
    service: &Bytes,
    (from, revision): (Bytes, i64),
    filter: &Filter,
) -> Result<(Vec<v1::Instance>, Bytes), ReadError> {
    let wanted = Wanted { from, revision, limit: usize::MAX, bytes_max: ANSWER_BYTES_MAX };
    let show = |shown: &Shown| filter.admits(shown).then(|| show::instance(shown));
    let Page { found, next, .. } = page(reader, service, &wanted, show)?;
    Ok((found, next))
}

/// Which instances of a service are wanted.
struct Wanted {
    /// The first id, or what lies between two.
    from: Bytes,
    /// 0: the current one.
    revision: i64,
    limit: usize,
    bytes_max: usize,
}

struct Page<T> {
    found: Vec<T>,
    /// Where to go on; empty at the end.
    next: Bytes,
    revision: i64,
}

/// A page of instances for which `show` gives something.
fn page<T>(
    reader: &Reader,
    service: &Bytes,
    wanted: &Wanted,
    show: impl Fn(&Shown) -> Option<T>,
) -> Result<Page<T>, ReadError> {
    if wanted.revision > 0 {
        return page_at(reader, service, (wanted, wanted.revision), &show);
    }
    let mut result = Err(ReadError::Rejected(Rejection::Compacted));
    for _ in 0..CURRENT_READS_MAX {
        result = page_at(reader, service, (wanted, reader.head().revision), &show);
        // What was the current revision a moment ago can be compacted by now.
        if !matches!(result, Err(ReadError::Rejected(Rejection::Compacted))) {
            break;
        }
    }
    result
}

fn page_at<T>(
    reader: &Reader,
    service: &Bytes,
    (wanted, at): (&Wanted, i64),
    show: &impl Fn(&Shown) -> Option<T>,
) -> Result<Page<T>, ReadError> {
    if at > reader.head().revision {
        return Err(ReadError::Rejected(Rejection::FutureRevision));
    }
    let read = |key: Bytes, range_end: Bytes, limit| {
        reader.page(&Range { key, range_end, ..Range::default() }, at, limit)
    };
    let (live_before, live_end) = span(service);
    let lost_before = lost_key(service, "");
    let lost_end = Bytes::from([service.as_ref(), b"/\0lost0"].concat());
    let mut from = Bytes::clone(&wanted.from);
    let (mut found, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
    loop {
        // The lost ones stand before, by names that begin with a zero byte.
        let live_from = [&live_before[..], (&from[..]).max(b"\x01")].concat().into();
        let live = read(live_from, live_end.clone(), READ_KEYS)?;
        let lost_from = [&lost_before[..], &from[..]].concat().into();
        let lost = read(lost_from, lost_end.clone(), READ_KEYS)?;
        looked_at += live.len() + lost.len();
        // Beyond the last key of either that was looked at nothing is known, of the other neither.
        let known_to = |kvs: &[KeyValue], before: &Bytes| {
            let last = kvs.last().filter(|_| kvs.len() >= READ_KEYS)?;
            Some(Bytes::from([&last.key[before.len()..], &[0]].concat()))
        };
        let ends = [known_to(&live, &live_before), known_to(&lost, &lost_before)];
        let next = ends.into_iter().flatten().min();
        let is_known = |id: &[u8]| next.as_ref().is_none_or(|next| id < &next[..]);
        let mut kvs = live;
        kvs.retain(|kv| is_known(&kv.key[live_before.len()..]));
        kvs.extend(lost.into_iter().filter(|kv| is_known(&kv.key[lost_before.len()..])));
        for shown in View::load(Bytes::clone(service), kvs).all() {
            let Some(shown_as) = show(shown) else { continue };
            if found.len() >= wanted.limit || bytes >= wanted.bytes_max {
                let next = Bytes::copy_from_slice(shown.record.id.as_bytes());
                return Ok(Page { found, next, revision: at });
            }
            bytes += shown.value.len();
            found.push(shown_as);
        }
        match next {
            Some(next) if looked_at < LOOKED_AT_MAX => from = next,
            next => return Ok(Page { found, next: next.unwrap_or_default(), revision: at }),
        }
    }
}

/// Answers `ListServices`.
pub(super) async fn services(
    context: &Context,
    request: Request<v1::ServiceListRequest>,
) -> Result<v1::ServiceListResponse, Status> {
    context.check_metadata(request.metadata())?;
    let caller = caller_of(request.extensions());
    let v1::ServiceListRequest { prefix, from, limit: wanted } = request.into_inner();
    let limit = limit(wanted);
    context.read_barrier().await?;
    // What begins with no prefix is everything.
    let key = Bytes::copy_from_slice(prefix.as_bytes()).max(Bytes::from_static(b"\0"));
    let may_see = RightsCheck::Range(key, prefix_end(prefix.as_bytes()));
    let reader = context.node.reader().clone();
    let read =
        off_thread(move || index::services(&reader, prefix.as_bytes(), from.as_bytes(), limit + 1));
    let found = context.auth.checked(&caller, &may_see, read).await?;
    let mut found = found.map_err(|halt| status::internal(&halt))?;
    let name = |name: &Bytes| String::from_utf8_lossy(name).into_owned();
    let next = if found.len() > limit { found.pop() } else { None };
    let next = next.map(|(found, _)| name(&found)).unwrap_or_default();
    let services = found.iter().map(|(found, row)| show::summary(name(found), row)).collect();
    Ok(v1::ServiceListResponse { services, next })
}

/// Prometheus' `http_sd`: targets of the services, or of all, as JSON.
pub(crate) async fn targets(
    context: &Context,
    caller: &Caller,
    services: BTreeSet<String>,
    is_healthy: bool,
) -> Result<String, Status> {
    context.read_barrier().await?;
    let mut wanted: Vec<_> = services.iter().map(|service| may_see(service.as_bytes())).collect();
    if wanted.is_empty() {
        let all = Bytes::from_static(b"\0");
        wanted.push(RightsCheck::Range(Bytes::clone(&all), all));
    }
    let reader = context.node.reader().clone();
    let found = off_thread(move || targets_now(&reader, services, is_healthy)).await?;
    // After the answer was made, which nobody has seen yet.
    for wanted in &wanted {
        context.auth.check(caller, wanted)?;
    }
    let groups = found.map_err(|error| status::from_read(&error))?;
    Ok(Value::Array(groups).to_string())
}

fn targets_now(
    reader: &Reader,
    services: BTreeSet<String>,
    is_healthy: bool,
) -> Result<Vec<Value>, ReadError> {
    let mut services: Vec<Bytes> = services.into_iter().map(Bytes::from).collect();
    if services.is_empty() {
        let all = index::services(reader, b"", b"", TARGET_SERVICES_MAX)?;
        services = all.into_iter().map(|(name, _)| name).collect();
    }
    let revision = reader.head().revision;
    let (mut groups, mut bytes_left) = (Vec::new(), TARGETS_BYTES_MAX);
    for service in services {
        if check::service(&service).is_err() {
            continue;
        }
        let name = String::from_utf8_lossy(&service);
        let mut from = Bytes::new();
        loop {
            let limit = LIST_MAX.min(TARGETS_MAX - groups.len());
            let bytes_max = ANSWER_BYTES_MAX.min(bytes_left);
            if limit == 0 || bytes_max == 0 {
                return Ok(groups);
            }
            let wanted = Wanted { from, revision, limit, bytes_max };
            let show = |shown: &Shown| {
                let is_wanted = !is_healthy || shown.record.is_healthy();
                is_wanted.then(|| (shown.value.len(), target(&name, shown)))
            };
            let Page { found, next, .. } = page(reader, &service, &wanted, show)?;
            for (bytes, group) in found {
                bytes_left = bytes_left.saturating_sub(bytes);
                groups.push(group);
            }
            if next.is_empty() {
                break;
            }
            from = next;
        }
    }
    Ok(groups)
}

/// One instance as a group of its own, because its labels are.
fn target(service: &str, shown: &Shown) -> Value {
    let record = &shown.record;
    let mut labels = Map::new();
    let mut label = |name: &str, text: String| {
        if !text.is_empty() {
            labels.insert(format!("{META_PREFIX}{name}"), Value::String(text));
        }
    };
    label("service", service.to_owned());
    label("id", record.id.clone());
    label("version", record.version.clone());
    label("zone", record.zone.clone());
    label("region", record.details.region.clone());
    // Separators around it, so that one expression finds a tag wherever it stands.
    let tags =
        if record.tags.is_empty() { String::new() } else { format!(",{},", record.tags.join(",")) };
    label("tags", tags);
    for (what, value) in
        [("state", json!(record.state_shown())), ("health", json!(record.health_shown()))]
    {
        label(what, value.as_str().unwrap_or_default().to_owned());
    }
    for (name, value) in &record.metadata {
        if let Some(text) = value.as_str() {
            label(&format!("metadata_{}", label_name(name)), text.to_owned());
        }
    }
    json!({ "targets": [record.address], "labels": labels })
}

/// A name as labels can have it.
fn label_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// What the metrics say about the registry.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    /// Services with instances, or switches.
    pub(crate) services: u64,
    /// Instances that live.
    pub(crate) live: u64,
    /// Instances that are kept after their loss.
    pub(crate) stale: u64,
    /// Instances that are damped.
    pub(crate) damped: u64,
}

/// Counts services and instances.
///
/// # Errors
/// [`Halt`] if the state cannot be read.
pub(crate) fn counted(reader: &Reader) -> Result<Counted, Halt> {
    let mut counted = Counted::default();
    for (_, row) in index::services(reader, b"", b"", COUNTED_MAX)? {
        counted.services += 1;
        counted.live += row.live;
        counted.stale += row.lost;
    }
    let (due, _) = index::due(reader, b"", COUNTED_MAX)?;
    let mut kinds: BTreeMap<Settlement, u64> = BTreeMap::new();
    for due in due.into_iter().flat_map(|(_, dues)| dues) {
        *kinds.entry(due.what).or_default() += 1;
    }
    counted.damped = kinds.get(&Settlement::Undamp).copied().unwrap_or(0);
    Ok(counted)
}
