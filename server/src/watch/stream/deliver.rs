//! From batches to answers: the mail of live watchers, and windows for those behind.

use std::sync::{Arc, Weak};

use conclave_state_machine::response::EventKind;

use super::super::batch::{Batch, SharedEvent};
use super::super::limits::Limits;
use super::super::mailbox::Delivery;
use super::super::response::{Front, Output, Payload, Written};
use super::super::source::Source;
use super::{Member, Wants, WatchStream};

/// Deliveries put together into one answer per watcher.
const RUN_DELIVERIES_MAX: usize = 64;
/// Watchers looked at in one step of a pass.
const PASS_WATCHERS_MAX: usize = 1024;
/// gRPC answers end at 4 GiB and clients long before: larger ones are fragmented unasked.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Consecutive deliveries for one group on their way to its watchers.
#[derive(Debug, Default)]
pub(super) struct Run {
    parts: Vec<Delivery>,
    /// The next watcher of the group. Earlier ones have all parts, as their `next` tells.
    position: usize,
}

/// A window on its way to the watchers that are behind.
#[derive(Debug)]
pub(super) struct Pass {
    /// Weak, like mail: a client that stops reading must not pin old events.
    window: Weak<Batch>,
    first: i64,
    last: i64,
    /// The mailbox goes on where the window ends.
    joined: bool,
}

impl Run {
    pub(super) fn is_active(&self) -> bool {
        !self.parts.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.position = 0;
    }

    /// The watchers of `group` changed places.
    pub(super) fn restart(&mut self, group: u64) {
        if self.parts.first().is_some_and(|part| part.group == group) {
            self.position = 0;
        }
    }

    /// The batches of all parts, unless one fell off the ring.
    fn batches(&self) -> Option<Vec<Arc<Batch>>> {
        self.parts.iter().map(|part| part.batch.upgrade()).collect()
    }
}

impl Pass {
    pub(super) fn new(window: &Arc<Batch>, joined: bool) -> Self {
        let (first, last) = (window.first, window.last);
        Pass { window: Arc::downgrade(window), first, last, joined }
    }

    /// Whoever gets the window asks again afterwards.
    pub(super) fn forget_join(&mut self) {
        self.joined = false;
    }
}

impl WatchStream {
    /// Begins a run with `delivery` and what follows it for the same group.
    pub(super) fn start_run(&mut self, delivery: Delivery) {
        let group = delivery.group;
        let mut bytes = block_bytes(&delivery);
        self.run.clear();
        self.run.parts.push(delivery);
        while self.run.parts.len() < RUN_DELIVERIES_MAX
            && bytes < self.hub.limits().response_bytes
            && self.mail.front().is_some_and(|next| next.group == group)
        {
            let Some(next) = self.mail.pop_front() else { break };
            bytes += block_bytes(&next);
            self.run.parts.push(next);
        }
    }

    /// Writes the run to its watchers until `out` has `full` bytes.
    pub(super) fn deliver_run(&mut self, full: usize, out: &mut Output) {
        let (first, last) = match (self.run.parts.first(), self.run.parts.last()) {
            (Some(head), Some(tail)) => (head.first, tail.last),
            _ => return,
        };
        let Some(batches) = self.run.batches() else {
            self.fall_behind(first);
            return;
        };
        let group = self.run.parts[0].group;
        let Some(members) = self.groups.get_mut(&group) else {
            self.run.clear();
            return;
        };
        let events: Vec<&SharedEvent> = self
            .run
            .parts
            .iter()
            .zip(&batches)
            .flat_map(|(part, batch)| {
                let block = &batch.blocks[part.block as usize];
                block.iter().map(|position| &*batch.events[*position as usize])
            })
            .collect();
        let mut writer = RunWriter::new(self.hub.source(), self.hub.limits(), events, first);
        while let Some(member) = members.list.get_mut(self.run.position) {
            if out.len() >= full {
                return;
            }
            self.run.position += 1;
            if !member.is_behind && member.next <= last {
                writer.write(member, out);
                member.next = last + 1;
            }
        }
        self.run.clear();
    }

    /// Writes the window to the watchers that are behind in it, until `out` has `full` bytes.
    pub(super) fn deliver_pass(&mut self, full: usize, out: &mut Output) {
        let Some((window, pass)) = self.pass.as_ref().and_then(|p| Some((p.window.upgrade()?, p)))
        else {
            // Forgotten meanwhile; whoever is still behind asks again.
            self.pass = None;
            return;
        };
        let (first, last, joined) = (pass.first, pass.last, pass.joined);
        let source = Arc::clone(&self.hub);
        let front = Front::new(&source.source().header(source.source().revision()));
        let mut found = Vec::new();
        for _ in 0..PASS_WATCHERS_MAX {
            if out.len() >= full {
                return;
            }
            let mut inside = self.behind.range((first, i64::MIN)..=(last, i64::MAX));
            let Some((next, id)) = inside.next().copied() else {
                self.pass = None;
                if joined {
                    self.join_after(last);
                }
                return;
            };
            self.behind.remove(&(next, id));
            self.deliver_window(id, &window, &front, (&mut found, out));
            if !joined {
                self.behind.insert((last + 1, id));
            }
            if let Some(member) = self.member_mut(id) {
                member.next = last + 1;
                member.is_behind = !joined;
            }
            found.clear();
        }
    }

    fn deliver_window<'a>(
        &mut self,
        id: i64,
        window: &'a Batch,
        front: &Front,
        (found, out): (&mut Vec<&'a SharedEvent>, &mut Output),
    ) {
        let fragment_bytes = self.hub.limits().fragment_bytes;
        let group = self.ids.get(&id).expect("invariant: who is behind is a watcher");
        let members = self.groups.get_mut(group).expect("invariant: every id has its group");
        window.matching(&members.range, found);
        let Some(member) = members.member_mut(id) else { return };
        found.retain(|event| event.revision() >= member.next && member.wants.takes(event));
        if !found.is_empty() {
            member.is_idle = false;
            let payload = Payload { events: found, prev_kv: member.wants.prev_kv };
            out.fragments(front, id, &payload, member.wants.answer_max(fragment_bytes));
        }
    }
}

/// Writes the events of one run to one watcher after the other.
struct RunWriter<'a> {
    source: &'a dyn Source,
    limits: &'a Limits,
    events: Vec<&'a SharedEvent>,
    first: i64,
    front: Front,
    /// Bytes of the events without and with `prev_kv`.
    bytes: [usize; 2],
    /// The last answer without and with `prev_kv` that holds all events.
    written: [Option<Written>; 2],
}

impl<'a> RunWriter<'a> {
    fn new(
        source: &'a dyn Source,
        limits: &'a Limits,
        events: Vec<&'a SharedEvent>,
        first: i64,
    ) -> Self {
        let revision = events.last().map_or(0, |event| event.revision());
        let front = Front::new(&source.header(revision));
        RunWriter { source, limits, events, first, front, bytes: [0; 2], written: [None, None] }
    }

    fn write(&mut self, member: &mut Member, out: &mut Output) {
        let wants = member.wants;
        if member.next > self.first || wants.no_put || wants.no_delete {
            self.write_some(member, out);
            return;
        }
        member.is_idle = false;
        let form = usize::from(wants.prev_kv);
        if let Some(written) = &self.written[form]
            && self.bytes[form] < wants.answer_max(self.limits.fragment_bytes)
            && out.repeat(&self.front, member.id, written)
        {
            return;
        }
        let payload = Payload { events: &self.events, prev_kv: wants.prev_kv };
        let max = wants.answer_max(self.limits.fragment_bytes);
        self.bytes[form] = self.events.iter().map(|event| event.field(wants.prev_kv).len()).sum();
        if self.bytes[form] < max {
            self.written[form] = Some(out.events(&self.front, member.id, &payload, false));
        } else {
            out.fragments(&self.front, member.id, &payload, max);
        }
    }

    /// For watchers that start within the run or filter it.
    fn write_some(&self, member: &mut Member, out: &mut Output) {
        let (next, wants) = (member.next, member.wants);
        let takes = |event: &&SharedEvent| event.revision() >= next && wants.takes(event);
        let events: Vec<&SharedEvent> = self.events.iter().copied().filter(takes).collect();
        let Some(last) = events.last() else { return };
        member.is_idle = false;
        let front = Front::new(&self.source.header(last.revision()));
        let payload = Payload { events: &events, prev_kv: wants.prev_kv };
        out.fragments(&front, member.id, &payload, wants.answer_max(self.limits.fragment_bytes));
    }
}

impl Wants {
    fn takes(self, event: &SharedEvent) -> bool {
        match event.kind() {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }

    /// Bytes at which an answer is split.
    fn answer_max(self, fragment_bytes: usize) -> usize {
        if self.fragment { fragment_bytes } else { ANSWER_BYTES_MAX }
    }
}

fn block_bytes(delivery: &Delivery) -> usize {
    delivery.batch.upgrade().map_or(0, |batch| batch.block_bytes(delivery.block))
}
