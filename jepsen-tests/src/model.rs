//! etcd's key-value rules in their plainest form, for replaying histories: a map, and every past of every key.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::history::{
    Compare, Event, KeyValue, Operand, Range, Relation, Request, Response, Revision, Txn, in_range,
};

/// The revision of an empty store.
pub const EMPTY_REVISION: Revision = 1;

/// The live keys at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    live: BTreeMap<String, KeyValue>,
}

/// What a request does at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Its answer.
    pub response: Response,
    /// Its changes in order; none if it changes nothing and takes no revision.
    pub events: Vec<Event>,
}

impl State {
    /// Executes `request`; its changes get `revision`.
    pub fn apply(&mut self, request: &Request, revision: Revision) -> Effect {
        // Every compare, of nested transactions too, looks at the state before the transaction.
        let mut decisions = Vec::new();
        self.decide(request, &mut decisions);
        let mut decisions = decisions.into_iter();
        let mut events = Vec::new();
        let response = self.execute(request, revision, &mut decisions, &mut events);
        Effect { response, events }
    }

    /// What `request` would do, without doing it.
    #[must_use]
    pub fn preview(&self, request: &Request, revision: Revision) -> Effect {
        self.clone().apply(request, revision)
    }

    /// Executes known events, whatever request they came from.
    pub fn follow(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Put { kv, .. } => drop(self.live.insert(kv.key.clone(), kv.clone())),
                Event::Delete { key, .. } => drop(self.live.remove(key)),
            }
        }
    }

    /// The live key `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&KeyValue> {
        self.live.get(key)
    }

    /// The answer of a range on this state.
    #[must_use]
    pub fn range(&self, range: &Range) -> Response {
        let found: Vec<&KeyValue> = self.between(&range.start, &range.end).collect();
        let limit =
            usize::try_from(range.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
        let kvs = found.iter().take(limit).map(|&kv| kv.clone()).collect();
        Response::Range { kvs, count: found.len() as i64 }
    }

    fn between<'a>(&'a self, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a KeyValue> {
        self.live
            .range::<str, _>((Bound::Included(start), Bound::Unbounded))
            .take_while(move |(key, _)| in_range(key, start, end))
            .map(|(_, kv)| kv)
    }

    fn decide(&self, request: &Request, decisions: &mut Vec<bool>) {
        let Request::Txn(txn) = request else { return };
        let holds = txn.compares.iter().all(|compare| self.holds(compare));
        decisions.push(holds);
        let branch = if holds { &txn.success } else { &txn.failure };
        branch.iter().for_each(|request| self.decide(request, decisions));
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.live.get(&compare.key);
        let ordering = match &compare.operand {
            Operand::Version(wanted) => kv.map_or(0, |kv| kv.version).cmp(wanted),
            Operand::Create(wanted) => kv.map_or(0, |kv| kv.create).cmp(wanted),
            Operand::Modified(wanted) => kv.map_or(0, |kv| kv.modified).cmp(wanted),
            // A missing key has no value: every compare of it is false.
            Operand::Value(wanted) => match kv {
                Some(kv) => kv.value.cmp(wanted),
                None => return false,
            },
        };
        match compare.relation {
            Relation::Equal => ordering.is_eq(),
            Relation::NotEqual => ordering.is_ne(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
        }
    }

    fn execute(
        &mut self,
        request: &Request,
        revision: Revision,
        decisions: &mut impl Iterator<Item = bool>,
        events: &mut Vec<Event>,
    ) -> Response {
        match request {
            Request::Put { key, value } => self.put(key, value, revision, events),
            Request::Delete { start, end } => self.delete((start, end), revision, events),
            Request::Range(range) => self.range(range),
            Request::Txn(Txn { success, failure, .. }) => {
                let succeeded = decisions.next().expect("invariant: one decision per transaction");
                let branch = if succeeded { success } else { failure };
                let run = |request| self.execute(request, revision, decisions, events);
                Response::Txn { succeeded, responses: branch.iter().map(run).collect() }
            }
        }
    }

    fn put(
        &mut self,
        key: &str,
        value: &str,
        modified: Revision,
        events: &mut Vec<Event>,
    ) -> Response {
        let previous = self.live.get(key).cloned();
        let kv = KeyValue {
            key: key.to_owned(),
            value: value.to_owned(),
            create: previous.as_ref().map_or(modified, |kv| kv.create),
            modified,
            version: previous.as_ref().map_or(0, |kv| kv.version) + 1,
        };
        self.live.insert(key.to_owned(), kv.clone());
        events.push(Event::Put { kv, previous: previous.clone() });
        Response::Put { previous }
    }

    fn delete(
        &mut self,
        range: (&str, &str),
        revision: Revision,
        events: &mut Vec<Event>,
    ) -> Response {
        let previous: Vec<KeyValue> = self.between(range.0, range.1).cloned().collect();
        for kv in &previous {
            self.live.remove(&kv.key);
            events.push(Event::Delete {
                key: kv.key.clone(),
                revision,
                previous: Some(kv.clone()),
            });
        }
        Response::Delete { previous }
    }
}

/// Every change of every key, in revision order: the state at any revision.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    events: BTreeMap<Revision, Vec<Event>>,
}

impl Timeline {
    /// Adds the changes of the next revision.
    pub fn push(&mut self, revision: Revision, events: Vec<Event>) {
        self.events.insert(revision, events);
    }

    /// The changes of the revisions `first..=last`, in order; none if `first` is the greater one.
    pub fn between(&self, first: Revision, last: Revision) -> impl Iterator<Item = &Event> {
        self.events
            .range(first..=last.max(first))
            .flat_map(|(_, events)| events)
            .take_while(move |event| event.revision() <= last)
    }

    /// The newest revision.
    #[must_use]
    pub fn last(&self) -> Revision {
        self.events.last_key_value().map_or(EMPTY_REVISION, |(&revision, _)| revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Request {
        Request::Put { key: key.into(), value: value.into() }
    }

    #[test]
    fn nested_compares_look_at_the_state_before_the_transaction() {
        let mut state = State::default();
        let absent =
            Compare { key: "a".into(), relation: Relation::Equal, operand: Operand::Create(0) };
        let inner = Txn { compares: vec![absent], success: vec![put("b", "2")], failure: vec![] };
        let outer = Txn {
            compares: vec![],
            success: vec![put("a", "1"), Request::Txn(inner)],
            failure: vec![],
        };
        let effect = state.apply(&Request::Txn(outer), 2);
        assert_eq!(effect.events.len(), 2, "the inner put happened although `a` was just written");
        assert_eq!(state.get("b").map(|kv| (kv.create, kv.version)), Some((2, 1)));
    }

    #[test]
    fn a_deletion_ends_the_generation() {
        let mut state = State::default();
        state.apply(&put("a", "1"), 2);
        state.apply(&put("a", "2"), 3);
        let gone = state.apply(&Request::Delete { start: "a".into(), end: "b".into() }, 4);
        assert_eq!(gone.events.len(), 1);
        state.apply(&put("a", "3"), 5);
        assert_eq!(state.get("a").map(|kv| (kv.create, kv.modified, kv.version)), Some((5, 5, 1)));
    }

    #[test]
    fn a_limit_cuts_the_keys_but_not_the_count() {
        let mut state = State::default();
        ["a", "b", "c"].iter().zip(2..).for_each(|(key, at)| drop(state.apply(&put(key, "v"), at)));
        let range = Range {
            start: "a".into(),
            end: "\0".into(),
            revision: 0,
            limit: 2,
            serializable: false,
        };
        let Response::Range { kvs, count } = state.range(&range) else { panic!("a range") };
        assert_eq!((kvs.len(), count), (2, 3));
    }
}
