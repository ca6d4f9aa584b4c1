//! Withdraws what the streams of dead members left behind: lock waiters, and candidates that live
//! only as long as their stream.
//!
//! A member withdraws for its own streams while it lives. If it dies, its next run does so, after
//! the time that clients have to come back. If it does not restart, the leader does, after so long
//! that even a member that was only cut off has ended its streams. Both propose what the member
//! itself would have proposed. The state machine withdraws only what no other stream has asked for
//! since, so a client that came back keeps its place, and doing it twice does no harm.
//!
//! A place that was granted the lock is not withdrawn: nobody knows whether its client was told.
//! Therefore the leader lists the waiters of a member as soon as it falls silent, before their turn
//! can come.
//! soon as a member falls silent.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::v1;
use conclave_state_machine::locks::stranded::{self, STRANDED_MAX, Stranded};
use tokio::time::{Instant, sleep};

use super::{RESUME_GRACE, streams};
use crate::api::context::Context;
use crate::api::kv::off_thread;

/// How often the leader checks for silent members.
const LOOK: Duration = Duration::from_millis(500);
/// A member that is silent for this long may be gone: its waiters are listed.
const QUIET: Duration = Duration::from_secs(2);
/// Silence, in addition to two election timeouts, after which the leader withdraws: time for a
/// member without a leader to end its streams, and for clients to come back elsewhere.
const AWAY: Duration = Duration::from_secs(15);

/// Whose streams are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Member(u64),
    /// Streams of no current member: of a removed one, or in rows written before streams named
    /// their member.
    Nobody,
}

/// Withdraws what dead members left behind, until the node stops.
pub(crate) async fn run(context: Context) {
    let stopping = context.node.stopping().clone();
    tokio::select! {
        () = stopping.cancelled() => {}
        ((), ()) = futures::future::join(take_back(&context), lead(&context)) => {}
    }
}

/// Withdraws what earlier runs of this member left behind.
async fn take_back(context: &Context) {
    // After the barrier everything they proposed is applied here. It fails on a learner, which has
    // no streams.
    while context.read_barrier().await.is_err() {
        sleep(LOOK).await;
    }
    let own = context.node.member_id();
    let others = context.node.last_heard().into_iter().map(|(id, _)| id);
    let members: Vec<u64> = others.chain([own]).collect();
    loop {
        let (node, members) = (context.node.clone(), members.clone());
        let is_own = move |stream| {
            let is_former = node.turns().streams().is_former(own, stream);
            is_former && is_left_by(Who::Member(own), &members, stream)
        };
        let found = find(context, is_own).await;
        let is_all = found.len() < STRANDED_MAX;
        sleep(RESUME_GRACE).await;
        withdraw(context, found).await;
        if is_all {
            return;
        }
    }
}

/// Withdraws what silent members left behind, while this member leads. Never returns.
async fn lead(context: &Context) {
    let away = AWAY + context.node.settings().raft.election_timeout * 2;
    let mut listed: HashMap<Who, Vec<Stranded>> = HashMap::new();
    let (mut term, mut members) = (0, Vec::new());
    let mut since = Instant::now();
    loop {
        sleep(LOOK).await;
        let heard = context.node.last_heard();
        let own = context.node.member_id();
        let now = (
            context.node.status().term,
            heard.iter().map(|(id, _)| *id).chain([own]).collect::<Vec<u64>>(),
        );
        if !context.node.is_leader() || now != (term, members.clone()) {
            listed.clear();
            (term, members) = now;
            since = Instant::now();
            continue;
        }
        let silent = heard.into_iter().map(|(id, ago)| (Who::Member(id), ago));
        for (who, ago) in silent.chain([(Who::Nobody, None)]) {
            // A new leader has not heard anybody yet: silence counts from when it began to lead.
            let silence = ago.unwrap_or(Duration::MAX).min(since.elapsed());
            if silence < QUIET {
                listed.remove(&who);
                continue;
            }
            let found = match listed.entry(who) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let members = members.clone();
                    let is_left = move |stream| is_left_by(who, &members, stream);
                    place.insert(find(context, is_left).await)
                }
            };
            if silence >= away && !found.is_empty() {
                tracing::info!(requests = found.len(), "withdrawing what a dead member left");
                let is_all = found.len() < STRANDED_MAX;
                withdraw(context, std::mem::take(found)).await;
                if !is_all {
                    listed.remove(&who);
                }
            }
        }
    }
}

/// Whether a stream belongs to `who` and cannot belong to anybody else.
fn is_left_by(who: Who, members: &[u64], stream: u64) -> bool {
    let mut owners = members.iter().filter(|id| streams::is_of(**id, stream));
    match (owners.next(), owners.next()) {
        (None, _) => who == Who::Nobody,
        (Some(owner), None) => who == Who::Member(*owner),
        (Some(_), Some(_)) => false,
    }
}

async fn find(context: &Context, is_gone: impl Fn(u64) -> bool + Send + 'static) -> Vec<Stranded> {
    let reader = context.node.reader().clone();
    let found = off_thread(move || stranded::list(&reader, &is_gone)).await;
    match found {
        Ok(Ok(found)) => found,
        // Unreadable rows stop the member elsewhere.
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

async fn withdraw(context: &Context, found: Vec<Stranded>) {
    for stranded in found {
        context.withdraw(withdrawal(stranded)).await;
    }
}

/// The withdrawal that the member itself would have proposed.
fn withdrawal(stranded: Stranded) -> Message {
    let Stranded { mut names, session, request_id, stream: attempt, number } = stranded;
    let once = Some(v1::Once { session, undoes: number, ..v1::Once::default() });
    if request_id.is_empty() {
        let name = names.pop().unwrap_or_default();
        return Message::Leave(internal::Leave { name, session, fence: 0, attempt, once });
    }
    let once = once.filter(|_| number != 0);
    Message::LockRelease(internal::LockRelease { names, session, request_id, attempt, once })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordination::streams::Streams;

    #[test]
    fn what_a_member_left_is_nobody_elses() {
        let streams = Streams::default();
        let stream = streams.next(1);
        assert!(is_left_by(Who::Member(1), &[1, 2], stream));
        assert!(!is_left_by(Who::Member(2), &[1, 2], stream));
        assert!(!is_left_by(Who::Nobody, &[1, 2], stream));
        assert!(is_left_by(Who::Nobody, &[2, 3], stream), "it was removed");
        assert!(!is_left_by(Who::Member(1), &[1, 1 << 20], stream), "whose is it?");
    }
}
