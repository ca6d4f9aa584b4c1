//! What watchers are told, as the bytes of messages.

use bytes::Bytes;
use conclave_proto::v1;
use conclave_state_machine::registry::view::View;
use prost::Message as _;
use v1::instance_change::{Kind, Reason};
use v1::instance_watch_response::Snapshot;

use super::feed::Step;
use super::show::{Filter, instance};

/// About how many bytes of changes one message holds: clients take 4 MiB by default.
const MESSAGE_BYTES: usize = 1 << 20;

/// All messages of a revision, for who watches without a filter.
pub(super) fn step(step: &Step) -> Vec<Bytes> {
    let (mut messages, mut at) = (Vec::new(), Some(0));
    while let Some((message, rest)) = at.and_then(|at| filtered(step, at, &Filter::default())) {
        messages.push(message);
        at = rest;
    }
    messages
}

/// The next message of a revision from a place in it on, as the filter lets it through, and the place of the
/// one after it. `None` if there is nothing to tell.
pub(super) fn next(step: &Step, at: usize, filter: &Filter) -> Option<(Bytes, Option<usize>)> {
    if !filter.is_open() {
        return filtered(step, at, filter);
    }
    let messages = step.messages();
    let rest = Some(at + 1).filter(|next| *next < messages.len());
    messages.get(at).map(|message| (Bytes::clone(message), rest))
}

fn filtered(step: &Step, at: usize, filter: &Filter) -> Option<(Bytes, Option<usize>)> {
    let changes = step.changes.iter().enumerate().skip(at);
    let wanted = |(place, change)| Some((place, filter.change(change)?));
    let mut changes = changes.filter_map(wanted).peekable();
    changes.peek()?;
    let part = part(&mut changes);
    let rest = changes.peek().map(|(place, _)| *place);
    let part = part.into_iter().map(|(_, change)| change).collect();
    Some((message(step.revision, Snapshot::None, rest.is_some(), part), rest))
}

/// The next message of a snapshot: instances with ids after one of them. The last id that it tells if
/// there are more, and the message.
pub(super) fn snapshot(
    view: &View,
    after: Option<&str>,
    what: (i64, Snapshot),
    filter: &Filter,
) -> (Option<String>, Bytes) {
    let wanted = view.after(after).filter(|shown| filter.admits(shown));
    let mut found = wanted.map(|shown| (&shown.record.id, added(instance(shown)))).peekable();
    let (ids, part): (Vec<&String>, Vec<_>) = part(&mut found).into_iter().unzip();
    let last = ids.last().filter(|_| found.peek().is_some()).map(|id| String::clone(id));
    let message = message(what.0, what.1, last.is_some(), part);
    (last, message)
}

/// A message of a snapshot.
pub(super) fn listed(
    instances: Vec<v1::Instance>,
    (revision, why): (i64, Snapshot),
    more: bool,
) -> Bytes {
    message(revision, why, more, instances.into_iter().map(added).collect())
}

fn added(instance: v1::Instance) -> v1::InstanceChange {
    v1::InstanceChange {
        kind: Kind::Added.into(),
        reason: Reason::Unspecified.into(),
        instance: Some(instance),
    }
}

/// As many changes as one message holds, each with where it stands.
fn part<P>(
    changes: &mut impl Iterator<Item = (P, v1::InstanceChange)>,
) -> Vec<(P, v1::InstanceChange)> {
    let (mut part, mut bytes) = (Vec::new(), 0);
    while bytes < MESSAGE_BYTES
        && let Some((place, change)) = changes.next()
    {
        bytes += change.encoded_len();
        part.push((place, change));
    }
    part
}

fn message(
    revision: i64,
    snapshot: Snapshot,
    more: bool,
    changes: Vec<v1::InstanceChange>,
) -> Bytes {
    let snapshot = snapshot.into();
    v1::InstanceWatchResponse { revision, snapshot, more, changes }.encode_to_vec().into()
}
