//! Withdraws what streams left behind whose member is gone: who waits for a lock, and candidates that live with their stream.
//!
//! The member that has a stream sees to that by itself, until it dies. Then its next run does, after the time in which
//! clients may come back, and if there is none the leader, after so long that the streams of a member that is only cut
//! off have ended, too. Both do what the member itself would have done: the store withdraws what no other stream has
//! asked for since, so that whoever came back keeps its place, and doing it twice does no harm.
//!
//! Not found is who was granted a lock by then: nobody knows whether it heard of that. So the leader looks who waits as
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

/// How often the leader looks which members are silent.
const LOOK: Duration = Duration::from_millis(500);
/// A member that is silent for so long may be gone: what it has waiting is noted.
const QUIET: Duration = Duration::from_secs(2);
/// Time after which a member without a leader has ended its streams, beside two election timeouts, and for clients to
/// come back elsewhere.
const AWAY: Duration = Duration::from_secs(15);

/// Whose streams are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Member(u64),
    /// Of nobody who is a member, as of one that was removed or of rows from before streams told their member.
    Nobody,
}

/// Looks after what members that are gone left; for as long as the node runs.
pub(crate) async fn run(context: Context) {
    let stopping = context.node.stopping().clone();
    tokio::select! {
        () = stopping.cancelled() => {}
        ((), ()) = futures::future::join(take_back(&context), lead(&context)) => {}
    }
}

/// What earlier runs of this member left.
async fn take_back(context: &Context) {
    // Whatever they asked for is applied here by then. A learner has no streams.
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

/// What members left that are away, while this one leads. Never returns.
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
            // A new leader has heard nobody yet.
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

/// Whether a stream was one of `who`, and cannot be of anybody else.
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
        // What cannot be read stops the member elsewhere.
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

async fn withdraw(context: &Context, found: Vec<Stranded>) {
    for stranded in found {
        context.withdraw(withdrawal(stranded)).await;
    }
}

/// As the member would have withdrawn it.
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
