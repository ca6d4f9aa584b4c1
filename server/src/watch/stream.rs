//! One watch stream: its watchers, how far each got, and the answers that are due.
//!
//! Owned and polled by the connection that sends the answers, so nothing is made that cannot be sent:
//! a client that does not read costs its mailbox and no more. A watcher is either *live* (what its
//! stream finds in the mailbox is all it needs) or *behind* (it needs events from `next` on that never
//! will be in the mailbox). Its position `next` moves only when events are written to the output;
//! whatever arrives twice is recognised by it.
//!
//! The code is plain and synchronous; `api/watch.rs` puts it behind gRPC.

mod deliver;
mod guard;
mod request;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};

use conclave_proto::etcdserverpb::WatchResponse;
use conclave_state_machine::watcher_set::KeyRange;

pub use self::guard::Guard;

use self::deliver::{Pass, Run};
use self::guard::Guarded;
use super::connection::{Connection, Share};
use super::hub::{Hub, Need, Step};
use super::mailbox::{Delivery, End, Mailbox};
use super::response::Output;

/// Steps of work in one poll; beyond, other tasks of the thread get a turn.
const STEPS_MAX: usize = 256;
/// Watch id of answers that are about no watcher or about the whole stream.
const NO_WATCHER: i64 = -1;

/// A stream of watchers and the answers for its client.
#[derive(Debug)]
pub struct WatchStream {
    hub: Arc<Hub>,
    mailbox: Arc<Mailbox>,
    /// Watchers by the hub's group, which stands for their range.
    groups: HashMap<u64, Members>,
    /// Group of each watch id.
    ids: BTreeMap<i64, u64>,
    next_id: i64,
    /// Ids of watchers that a compaction cancelled: taken until the client cancels them, as in etcd.
    spent: BTreeSet<i64>,
    /// Watchers that are behind as (next, watch id).
    behind: BTreeSet<(i64, i64)>,
    /// Taken from the mailbox, in order.
    mail: VecDeque<Delivery>,
    /// Everyone falls behind here once `mail` is delivered.
    missed_from: Option<i64>,
    run: Run,
    pass: Option<Pass>,
    is_waiting: bool,
    /// Every event up to here had been found in the mailbox when it was last found empty.
    settled: i64,
    progress: ProgressRequests,
    /// Watchers that want regular progress notices.
    progress_watchers: usize,
    /// Watchers that want the state before each event.
    prev_watchers: usize,
    is_tick_due: bool,
    /// `None` for watches of this process itself.
    guarded: Option<Guarded>,
    /// Of the watchers of its connection.
    share: Share,
    /// It is the node's own, for which limits are not meant.
    is_inside: bool,
}

/// The watchers of one range.
#[derive(Debug)]
struct Members {
    range: KeyRange,
    /// Sorted by watch id.
    list: Vec<Member>,
}

/// One watcher.
#[derive(Clone, Debug)]
struct Member {
    id: i64,
    /// As asked for; 0 for "from now on".
    start: i64,
    /// First revision whose events it did not get yet.
    next: i64,
    wants: Wants,
    is_behind: bool,
    /// No event since the last tick of progress.
    is_idle: bool,
}

/// What a watcher asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Wants {
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    fragment: bool,
    progress: bool,
}

/// Requests for progress that are not answered yet.
#[derive(Debug, Default)]
struct ProgressRequests {
    count: u32,
    /// The revision of the store when the last one came.
    revision: i64,
}

impl WatchStream {
    pub(crate) fn new(hub: Arc<Hub>, mailbox: Arc<Mailbox>) -> Self {
        WatchStream {
            hub,
            mailbox,
            groups: HashMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            spent: BTreeSet::new(),
            behind: BTreeSet::new(),
            mail: VecDeque::new(),
            missed_from: None,
            run: Run::default(),
            pass: None,
            is_waiting: false,
            settled: 0,
            progress: ProgressRequests::default(),
            progress_watchers: 0,
            prev_watchers: 0,
            is_tick_due: false,
            guarded: None,
            share: Share::default(),
            is_inside: false,
        }
    }

    /// The same for the node itself, which waits for its clients also where they have as many watchers as there may be.
    pub(super) fn inside(mut self) -> Self {
        self.is_inside = true;
        self
    }

    /// Counts its watchers with the others of `connection` from now on; before the first one is created.
    pub fn belong_to(&mut self, connection: Connection) {
        self.share = Share::of(connection);
    }

    /// Writes what is due to `out`, until about a chunk is full. Ready when `out` is not empty;
    /// pending after arranging to be woken.
    ///
    /// # Errors
    /// Why the stream has to end.
    pub fn poll_output(&mut self, cx: &mut Context<'_>, out: &mut Output) -> Poll<Result<(), End>> {
        let full = out.len() + self.hub.limits().chunk_bytes;
        for _ in 0..STEPS_MAX {
            if out.len() >= full {
                return Poll::Ready(Ok(()));
            }
            // After the mail was taken: what is in it was applied before this is looked at.
            self.check_rights(out);
            if self.work(full, out) {
                continue;
            }
            match self.check_mail(cx) {
                Err(end) if out.is_empty() => return Poll::Ready(Err(end)),
                Err(_) => return Poll::Ready(Ok(())),
                Ok(true) => {}
                Ok(false) if self.report_progress(cx, out) => {}
                Ok(false) if out.is_empty() => return Poll::Pending,
                Ok(false) => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        if out.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Says that the interval of progress notices is over.
    pub fn tick(&mut self) {
        self.is_tick_due = true;
    }

    /// Whether a watcher wants regular progress notices.
    #[must_use]
    pub fn wants_ticks(&self) -> bool {
        self.progress_watchers > 0
    }

    /// Does one step of delivery or catch-up; says whether there was one.
    fn work(&mut self, full: usize, out: &mut Output) -> bool {
        if self.run.is_active() {
            self.deliver_run(full, out);
        } else if self.pass.is_some() {
            self.deliver_pass(full, out);
        } else if let Some(delivery) = self.mail.pop_front() {
            self.start_run(delivery);
        } else if let Some(revision) = self.missed_from.take() {
            self.put_behind(revision);
        } else {
            return !self.is_waiting && self.catch_up(out);
        }
        true
    }

    /// Asks the hub how the watchers that are behind get on; says whether something changed.
    fn catch_up(&mut self, out: &mut Output) -> bool {
        let Some((from, _)) = self.behind.first() else { return false };
        let need = Need { from: *from, prev_kv: self.prev_watchers > 0 };
        match self.hub.catch_up(&self.mailbox, need) {
            Step::Joined => self.join_after(i64::MIN),
            Step::Window { window, joined } => self.pass = Some(Pass::new(&window, joined)),
            Step::Wait => {
                self.is_waiting = true;
                return false;
            }
            Step::CheckMail => return false,
            Step::Compacted(revision) => self.cancel_compacted(revision, out),
        }
        true
    }

    /// Takes the mail; says whether there was any, and if not, asks to be woken.
    fn check_mail(&mut self, cx: &Context<'_>) -> Result<bool, End> {
        // Before the look into the mailbox: what is dispatched later may not be there yet.
        let dispatched = self.hub.dispatched();
        let mut post = self.mailbox.post.lock();
        if let Some(end) = &post.end {
            return Err(end.clone());
        }
        let was_waiting = std::mem::replace(&mut self.is_waiting, post.is_waiting);
        if post.deliveries.is_empty() && post.missed_from.is_none() {
            self.settled = dispatched;
            post.wake_me(cx);
            return Ok(was_waiting && !self.is_waiting);
        }
        std::mem::swap(&mut self.mail, &mut post.deliveries);
        self.missed_from = post.missed_from.take();
        Ok(true)
    }

    /// Drops all mail and puts every live watcher behind, at `revision` or where it is.
    fn fall_behind(&mut self, revision: i64) {
        self.run.clear();
        self.mail.clear();
        self.missed_from = None;
        self.mailbox.post.lock().discard();
        self.put_behind(revision);
    }

    fn put_behind(&mut self, revision: i64) {
        for member in self.groups.values_mut().flat_map(|members| &mut members.list) {
            if !member.is_behind {
                member.is_behind = true;
                member.next = member.next.max(revision);
                self.behind.insert((member.next, member.id));
            }
        }
    }

    /// Makes watchers live that need nothing up to `revision`, at which the stream joined.
    fn join_after(&mut self, revision: i64) {
        let joined = self.behind.split_off(&(revision.saturating_add(1), i64::MIN));
        for (_, id) in joined {
            if let Some(member) = self.member_mut(id) {
                member.is_behind = false;
            }
        }
    }

    /// Answers requests for progress and ticks, which may be done only when the mailbox is empty;
    /// says whether to look again.
    fn report_progress(&mut self, cx: &Context<'_>, out: &mut Output) -> bool {
        if std::mem::take(&mut self.is_tick_due) {
            self.report_idle(out);
        }
        if self.progress.count == 0 {
            return false;
        }
        let asked = self.progress.revision;
        let is_early = |member: &Member| member.start > asked;
        let any_early = self.groups.values().any(|members| members.list.iter().any(is_early));
        if !self.behind.is_empty() || self.ids.is_empty() || any_early {
            // As in etcd: no answer rather than a late one.
            self.progress.count = 0;
            return false;
        }
        if self.settled < asked {
            return !self.hub.wake_when_dispatched(asked, cx.waker());
        }
        for _ in 0..std::mem::take(&mut self.progress.count) {
            self.report(NO_WATCHER, out);
        }
        false
    }

    /// Tells idle live watchers that asked for it how far they are.
    fn report_idle(&mut self, out: &mut Output) {
        let mut idle = Vec::new();
        for member in self.groups.values_mut().flat_map(|members| &mut members.list) {
            let is_reached = self.settled >= member.start && self.settled >= member.next - 1;
            if member.wants.progress && member.is_idle && !member.is_behind && is_reached {
                idle.push(member.id);
            }
            member.is_idle = true;
        }
        for id in idle {
            self.report(id, out);
        }
    }

    fn report(&self, watch_id: i64, out: &mut Output) {
        out.control(&WatchResponse {
            header: Some(self.hub.source().header(self.settled)),
            watch_id,
            ..WatchResponse::default()
        });
    }

    fn member_mut(&mut self, id: i64) -> Option<&mut Member> {
        let group = self.ids.get(&id)?;
        self.groups.get_mut(group)?.member_mut(id)
    }
}

impl Members {
    fn member_mut(&mut self, id: i64) -> Option<&mut Member> {
        let at = self.list.binary_search_by_key(&id, |member| member.id).ok()?;
        Some(&mut self.list[at])
    }

    /// Adds a watcher whose id is new.
    fn insert(&mut self, member: Member) {
        let at = self.list.partition_point(|other| other.id < member.id);
        self.list.insert(at, member);
    }

    fn remove(&mut self, id: i64) -> Option<Member> {
        let at = self.list.binary_search_by_key(&id, |member| member.id).ok()?;
        Some(self.list.remove(at))
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        for members in self.groups.values() {
            self.hub.unsubscribe(self.mailbox.stream, &members.range, members.list.len());
        }
        self.hub.leave(self.mailbox.stream);
    }
}
