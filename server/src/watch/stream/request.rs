//! Requests on a stream: create, cancel, progress (etcd v3, Watch).

use bytes::Bytes;
use conclave_proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType,
    watch_request::RequestUnion,
};
use conclave_state_machine::watcher_set::KeyRange;

use super::super::hub::Refusal;
use super::super::limits::Limits;
use super::deliver::Pass;
use super::{Member, Members, NO_WATCHER, Output, Wants, WatchStream};

/// Requests for progress answered at once; a client that sends more gets no more.
const PROGRESS_REQUESTS_MAX: u32 = 64;

/// Ids that stay taken after a compaction; of more the smallest are free again.
const SPENT_IDS_MAX: usize = 1_000;

const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// Why a create request makes no watcher.
enum NotCreated {
    /// Told to the client.
    Refused(String),
    /// The server stops; the stream ends by itself.
    Stopping,
}

impl From<String> for NotCreated {
    fn from(reason: String) -> NotCreated {
        NotCreated::Refused(reason)
    }
}

impl WatchStream {
    /// Handles one request and writes its answer, if it has one.
    pub fn request(&mut self, request: WatchRequest, out: &mut Output) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => match self.create(create) {
                Ok((id, revision)) => self.answer_created(id, revision, out),
                Err(NotCreated::Refused(reason)) => self.refuse(reason, out),
                // A refusal would end the watch for good; the end of the stream lets the client go elsewhere.
                Err(NotCreated::Stopping) => {}
            },
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id, out),
            // As etcd: without watchers there is no progress.
            Some(RequestUnion::ProgressRequest(_)) if self.ids.is_empty() => {}
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress.count = (self.progress.count + 1).min(PROGRESS_REQUESTS_MAX);
                self.progress.revision = self.hub.source().revision();
            }
            // As etcd: unknown kinds of requests are ignored.
            None => {}
        }
    }

    /// Refuses a create request before it is looked at, e.g. for want of permission.
    pub fn refuse(&mut self, reason: String, out: &mut Output) {
        let revision = self.hub.source().revision();
        out.control(&WatchResponse {
            header: Some(self.hub.source().header(revision)),
            watch_id: NO_WATCHER,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..WatchResponse::default()
        });
    }

    /// Cancels a watcher by its client's wish, also one that is cancelled already because of a compaction; an
    /// unknown one is ignored.
    fn cancel(&mut self, id: i64, out: &mut Output) {
        if !self.remove(id) && !self.spent.remove(&id) {
            return;
        }
        let revision = self.hub.source().revision();
        out.control(&WatchResponse {
            header: Some(self.hub.source().header(revision)),
            watch_id: id,
            canceled: true,
            ..WatchResponse::default()
        });
    }

    /// Adds a watcher; returns its id and the revision after which it starts by default.
    fn create(&mut self, create: WatchCreateRequest) -> Result<(i64, i64), NotCreated> {
        let wants = wants(&create);
        let (start, wanted_id) = (create.start_revision, create.watch_id);
        // Copies: a watcher must not keep the message, which may be large, for as long as it lives.
        let [key, range_end] =
            [&create.key, &create.range_end].map(|end| Bytes::copy_from_slice(end));
        let range = KeyRange::new(key, range_end).map_err(|error| error.to_string())?;
        // What is checked is what will be matched.
        self.admit_range(&range)?;
        if start < 0 {
            return Err(COMPACTED.to_owned().into());
        }
        let id = self.choose_id(wanted_id)?;
        let group = self.subscribe(&range).map_err(|refusal| match refusal {
            Refusal::Stopped => NotCreated::Stopping,
            Refusal::Stream(_) | Refusal::Connection(_) | Refusal::Member(_) => {
                self.hub.count_refused();
                NotCreated::Refused(refusal.to_string())
            }
        })?;
        // Read after subscribing: what comes later is dispatched to this stream.
        let revision = self.hub.source().revision();
        let next = if start == 0 { revision + 1 } else { start };
        // Progress that was asked for earlier must not fall short of what this answer says.
        self.progress.revision = self.progress.revision.max(revision);
        let member = Member { id, start, next, wants, is_behind: true, is_idle: true };
        // What was dispatched between the join and now is neither in the window nor in the mail.
        self.pass.iter_mut().for_each(Pass::forget_join);
        if wants.prev_kv {
            // The window may lack what this watcher wants; whoever is behind asks again.
            self.pass = None;
        }
        self.ids.insert(id, group);
        self.progress_watchers += usize::from(wants.progress);
        self.prev_watchers += usize::from(wants.prev_kv);
        self.behind.insert((next, id));
        self.groups
            .entry(group)
            .or_insert_with(|| Members { range, list: Vec::new() })
            .insert(member);
        Ok((id, revision))
    }

    /// Adds a watcher at the hub, if there may be one more of this stream, its connection and this member.
    fn subscribe(&mut self, range: &KeyRange) -> Result<u64, Refusal> {
        if self.is_inside {
            return self.hub.subscribe(&self.mailbox, range, usize::MAX);
        }
        let Limits { stream_watchers, connection_watchers, watchers, .. } = *self.hub.limits();
        if self.ids.len() >= stream_watchers {
            return Err(Refusal::Stream(stream_watchers));
        }
        if !self.share.take(connection_watchers) {
            return Err(Refusal::Connection(connection_watchers));
        }
        let subscribed = self.hub.subscribe(&self.mailbox, range, watchers);
        subscribed.inspect_err(|_refusal| self.share.give_back())
    }

    fn choose_id(&mut self, wanted: i64) -> Result<i64, String> {
        let is_taken = |id: i64| self.ids.contains_key(&id) || self.spent.contains(&id);
        if wanted != 0 {
            return if is_taken(wanted) { Err(DUPLICATE_ID.to_owned()) } else { Ok(wanted) };
        }
        while is_taken(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    fn answer_created(&mut self, id: i64, revision: i64, out: &mut Output) {
        out.control(&WatchResponse {
            header: Some(self.hub.source().header(revision)),
            watch_id: id,
            created: true,
            ..WatchResponse::default()
        });
        // Even if the events are still in memory: whether a start is too old must not depend on that.
        let compacted = self.hub.source().compacted();
        let start = self.member_mut(id).map_or(0, |member| member.start);
        if start != 0 && start < compacted {
            self.cancel_for_compaction(id, compacted, out);
        }
    }

    /// Cancels the watchers that need revisions before `compacted`.
    pub(super) fn cancel_compacted(&mut self, compacted: i64, out: &mut Output) {
        let kept = self.behind.split_off(&(compacted, i64::MIN));
        let lost = std::mem::replace(&mut self.behind, kept);
        for (_, id) in lost {
            self.cancel_for_compaction(id, compacted, out);
        }
    }

    fn cancel_for_compaction(&mut self, id: i64, compacted: i64, out: &mut Output) {
        self.remove(id);
        self.spent.insert(id);
        if self.spent.len() > SPENT_IDS_MAX {
            self.spent.pop_first();
        }
        out.control(&WatchResponse {
            // etcd says revision 0 here.
            header: Some(self.hub.source().header(0)),
            watch_id: id,
            canceled: true,
            compact_revision: compacted,
            ..WatchResponse::default()
        });
    }

    /// Takes a watcher away; says whether there was one.
    pub(super) fn remove(&mut self, id: i64) -> bool {
        let Some(group) = self.ids.remove(&id) else { return false };
        let members = self.groups.get_mut(&group).expect("invariant: every id has its group");
        let member = members.remove(id).expect("invariant: a group lists its members");
        self.behind.remove(&(member.next, id));
        self.progress_watchers -= usize::from(member.wants.progress);
        self.prev_watchers -= usize::from(member.wants.prev_kv);
        self.run.restart(group);
        self.hub.unsubscribe(self.mailbox.stream, &members.range, 1);
        self.share.give_back();
        if members.list.is_empty() {
            self.groups.remove(&group);
        }
        true
    }
}

fn wants(create: &WatchCreateRequest) -> Wants {
    let has = |filter: FilterType| create.filters.contains(&i32::from(filter));
    Wants {
        prev_kv: create.prev_kv,
        no_put: has(FilterType::Noput),
        no_delete: has(FilterType::Nodelete),
        fragment: create.fragment,
        progress: create.progress_notify,
    }
}
