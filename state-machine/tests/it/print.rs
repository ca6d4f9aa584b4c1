//! Answers and events as lines of golden scripts.

use bytes::Bytes;
use conclave_state_machine::locks::claim::Claim;
use conclave_state_machine::locks::queue::Place;
use conclave_state_machine::registry::record::{may_be_instance, may_be_lost};
use conclave_state_machine::response::{
    Applied, AuthChange, DeleteRangeResponse, Event, EventKind, KeyValue, LeaseChange,
    LockResponse, OpResponse, RangeResponse, Response, Taken, TxnResponse, WriteAnswer,
    WriteResponse,
};

pub(crate) fn applied(applied: &Applied) -> Vec<String> {
    let mut lines = match &applied.outcome {
        Ok(answer) => response(answer),
        Err(rejection) => vec![format!("refused: {rejection}")],
    };
    if let Some(first) = lines.first_mut() {
        first.push_str(&format!(", revision {}", applied.revision));
    }
    lines.extend(applied.events.iter().map(event));
    for change in &applied.leases {
        lines.push(match change {
            LeaseChange::Granted { id, ttl, .. } => format!("lease {id} granted for {ttl} s"),
            LeaseChange::Ended { id } => format!("lease {id} ended"),
        });
    }
    lines
}

fn response(response: &Response) -> Vec<String> {
    match response {
        Response::Put(answer) => vec![format!("put{}", previous(answer.prev_kv.as_ref()))],
        Response::DeleteRange(answer) => delete(answer),
        Response::Txn(answer) => txn(answer),
        Response::Compact { .. } => vec!["compacted".to_owned()],
        Response::LeaseGrant { id, ttl } => vec![format!("granted {id}, ttl {ttl}")],
        Response::LeaseRevoke => vec!["revoked".to_owned()],
        Response::LeaseExpire { ended } => vec![format!("{ended} expired")],
        Response::Alarm(alarms) => vec![format!("alarms {alarms:?}")],
        Response::MemberPublish(member) => vec![format!("member {} {}", member.id, member.name)],
        Response::SessionBegin { id, ttl } => vec![format!("session {id}, ttl {ttl}")],
        Response::Lock(answer) => lock(answer),
        Response::GuardedTxn(Some(answer)) => txn(answer),
        Response::GuardedTxn(None) => vec!["not held".to_owned()],
        Response::Primitive(answer) => {
            let done = if answer.is_done { "done" } else { "not done" };
            vec![format!("{done} {} at {}", answer.number, answer.revision)]
        }
        Response::Auth(AuthChange::Token { user, index, .. }) => {
            vec![format!("token for {user} at {index}")]
        }
        Response::Auth(AuthChange::TokensVoid { user }) => vec![format!("tokens of {user} void")],
        Response::Auth(change) => vec![format!("{change:?}").to_lowercase()],
        Response::Write(WriteResponse { revision, answer }) => {
            let mut lines = match answer {
                WriteAnswer::NotHeld => vec!["not held".to_owned()],
                WriteAnswer::Unkept => vec!["done, answer not kept".to_owned()],
                WriteAnswer::Forgotten => vec!["forgotten".to_owned()],
                WriteAnswer::Done(answer) => txn(answer),
            };
            lines[0].push_str(&format!(" at {revision}"));
            lines
        }
        Response::Registry(answer) => crate::registry_words::response(answer),
    }
}

fn lock(response: &LockResponse) -> Vec<String> {
    match response {
        LockResponse::Places { state, taken } => vec![format!("{state:?}{}", places(taken))],
        LockResponse::Released { was_held: true } => vec!["released".to_owned()],
        LockResponse::Released { was_held: false } => vec!["nothing to release".to_owned()],
        LockResponse::HandedOver(next) => {
            vec![format!("places{}", places(std::slice::from_ref(next)))]
        }
        LockResponse::Seized { places: taken, .. } => vec![format!("places{}", places(taken))],
    }
}

fn places(taken: &[Taken]) -> String {
    taken.iter().map(|place| format!(" {} fence={}", text(&place.key), place.fence)).collect()
}

pub(crate) fn place(place: &Place) -> String {
    let lost = if place.is_lost() { " lost" } else { "" };
    format!(
        "{} fence={} session={} {}{lost}",
        text(&place.key),
        place.fence,
        place.session,
        value(&place.value)
    )
}

/// A value; that of a native place in words.
fn value(bytes: &Bytes) -> String {
    if may_be_instance(bytes) {
        return format!("({})", String::from_utf8_lossy(bytes));
    }
    if may_be_lost(bytes) {
        return "(lost)".to_owned();
    }
    let Some(claim) = Claim::decode(bytes) else { return text(bytes) };
    let requests: Vec<_> = claim.requests.iter().map(text).collect();
    let limit = if claim.limit == u32::MAX { "any".to_owned() } else { claim.limit.to_string() };
    let delay = if claim.delay_seconds == 0 { String::new() } else { " delayed".to_owned() };
    format!("({} of {limit}{delay} for {})", claim.permits, requests.join("+"))
}

fn delete(answer: &DeleteRangeResponse) -> Vec<String> {
    let mut lines = vec![format!("deleted {}", answer.deleted)];
    lines.extend(answer.prev_kvs.iter().map(|kv| format!("  was {}", key_value(kv))));
    lines
}

pub(crate) fn range(answer: &RangeResponse) -> Vec<String> {
    let more = if answer.more { ", more" } else { "" };
    let mut lines = vec![format!("count {}{more}", answer.count)];
    lines.extend(answer.kvs.iter().map(|kv| format!("  {}", key_value(kv))));
    lines
}

pub(crate) fn txn(answer: &TxnResponse) -> Vec<String> {
    let succeeded = if answer.succeeded { "succeeded" } else { "failed" };
    let mut lines = vec![format!("txn {succeeded}")];
    for (revision, op) in &answer.responses {
        let mut op_lines = match op {
            OpResponse::Range(answer) => range(answer),
            OpResponse::Put(answer) => vec![format!("put{}", previous(answer.prev_kv.as_ref()))],
            OpResponse::DeleteRange(answer) => delete(answer),
            OpResponse::Txn(answer) => txn(answer),
        };
        op_lines[0].push_str(&format!(" @{revision}"));
        lines.extend(op_lines.into_iter().map(|line| format!("  {line}")));
    }
    lines
}

pub(crate) fn event(event: &Event) -> String {
    let was = previous(event.prev_kv.as_ref());
    match event.kind {
        EventKind::Put => format!("PUT {}{was}", key_value(&event.kv)),
        EventKind::Delete => {
            format!("DELETE {} mod={}{was}", text(&event.kv.key), event.kv.mod_revision)
        }
    }
}

fn previous(kv: Option<&KeyValue>) -> String {
    kv.map_or(String::new(), |kv| format!(" (was {})", key_value(kv)))
}

pub(crate) fn key_value(kv: &KeyValue) -> String {
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease={}", kv.lease) };
    format!(
        "{}={} create={} mod={} version={}{lease}",
        text(&kv.key),
        value(&kv.value),
        kv.create_revision,
        kv.mod_revision,
        kv.version
    )
}

pub(crate) fn text(bytes: &Bytes) -> String {
    match bytes.len() {
        0 => "''".to_owned(),
        1..=40 => bytes.escape_ascii().to_string(),
        length => format!("<{length} bytes>"),
    }
}
