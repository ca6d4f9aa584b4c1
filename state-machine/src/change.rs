//! The only code that changes keys. It updates rows, lease attachments, queues of locks, the
//! registry's index, counters, digest and events together.

use bytes::Bytes;

use crate::digest;
use crate::events::Events;
use crate::head::Head;
use crate::live;
use crate::locks::front::{self, Fate, Leased, Moment};
use crate::overlay::Overlay;
use crate::read::{Read, Table};
use crate::registry::{self, index};
use crate::response::{Cause, Event, EventKind, Halt, KeyValue};
use crate::revision::Revision;
use crate::rows::State;
use crate::rows::key::KeyRow;
use crate::rows::lease::attachment_key;
use crate::rows::rev::RevRow;
use crate::rows::skips::Skips;

/// State of a key before a change.
pub(crate) struct Before {
    /// Revision of its last change, if the key has a row.
    pub(crate) modified: Option<Revision>,
    /// Skip links to its earlier changes.
    pub(crate) skips: Skips,
    /// The live key-value, if the key is live.
    pub(crate) kv: Option<KeyValue>,
}

impl Before {
    /// # Errors
    /// [`Halt`] if the storage fails or the row is damaged.
    pub(crate) fn load<R: Read>(rows: &R, key: &Bytes) -> Result<Before, Halt> {
        match rows.get(Table::Key, key)? {
            Some(row) => Before::from_row(rows, key, &row),
            None => Ok(Before::nothing()),
        }
    }

    /// State of a key that never existed.
    pub(crate) fn nothing() -> Before {
        Before { modified: None, skips: Skips::default(), kv: None }
    }

    /// Reads the state from the `Key` row of `key`.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or the row is damaged.
    pub(crate) fn from_row<R: Read>(rows: &R, key: &Bytes, row: &Bytes) -> Result<Before, Halt> {
        let decoded = KeyRow::decode(row)?;
        let kv = live::newest(rows, key, row, &decoded)?;
        let skips = Skips::decode(decoded.skips)?;
        Ok(Before { modified: Some(decoded.modified), skips, kv })
    }
}

/// All changes of one command at one revision.
pub(crate) struct Change<'a, 'b, R> {
    pub(crate) rows: &'a mut Overlay<'b, R>,
    pub(crate) head: &'a mut Head,
    events: &'a mut Events,
    next: Revision,
    cause: Cause,
}

impl<'a, 'b, R: Read> Change<'a, 'b, R> {
    /// Prepares the revision after the current one; the first change takes it.
    ///
    /// # Errors
    /// [`Halt::CorruptRow`] if the revisions are used up.
    pub(crate) fn begin(
        rows: &'a mut Overlay<'b, R>,
        head: &'a mut Head,
        events: &'a mut Events,
    ) -> Result<Change<'a, 'b, R>, Halt> {
        let main = head.revision.checked_add(1).ok_or_else(|| Halt::CorruptRow {
            table: "head",
            detail: "revisions are used up".to_owned(),
        })?;
        let next = Revision::first_of(main);
        Ok(Change { rows, head, events, next, cause: Cause::Deleted })
    }

    /// Whether a client waits for the answer.
    pub(crate) fn is_awaited(&self) -> bool {
        self.events.wanted.answers
    }

    /// Sets the cause that is stored with deletions from now on.
    pub(crate) fn because(&mut self, cause: Cause) {
        self.cause = cause;
    }

    /// Writes `value` and `lease` to `key`, whose state so far was `before`.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or a row is damaged.
    pub(crate) fn put(
        &mut self,
        key: &Bytes,
        before: Before,
        value: &Bytes,
        lease: i64,
    ) -> Result<(), Halt> {
        let at = self.take_revision();
        let (create_revision, version) = match &before.kv {
            Some(old) => (old.create_revision, old.version.saturating_add(1)),
            None => (at.main, 1),
        };
        let state = State { create_revision, version, lease, value };
        let is_instance = self.write_put(key, at, &before, state)?;
        let kv = KeyValue {
            key: key.clone(),
            create_revision,
            mod_revision: at.main,
            version,
            value: value.clone(),
            lease,
        };
        // A created key has no previous state, even if an earlier change of this revision deleted
        // it.
        let prev_kv = if version > 1 { self.prev(at.main, key, before)? } else { None };
        self.events.list.push(Event { kind: EventKind::Put, kv, prev_kv });
        if is_instance { registry::found(self, key) } else { Ok(()) }
    }

    /// Deletes `key`, whose state so far was `before`; does nothing if it is not live.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or a row is damaged.
    pub(crate) fn delete(&mut self, key: &Bytes, before: Before) -> Result<(), Halt> {
        if before.kv.is_none() {
            return Ok(());
        }
        let at = self.take_revision();
        self.write_deletion(key, at, &before)?;
        let kv = KeyValue { key: key.clone(), mod_revision: at.main, ..KeyValue::default() };
        let prev_kv = self.prev(at.main, key, before)?;
        self.events.list.push(Event { kind: EventKind::Delete, kv, prev_kv });
        Ok(())
    }

    /// Writes a change that happened in another store, at its own revision, without an event.
    ///
    /// # Errors
    /// [`Halt`] if the storage fails or a row is damaged.
    pub(crate) fn adopt(
        &mut self,
        at: Revision,
        key: &Bytes,
        before: &Before,
        state: Option<State<'_>>,
    ) -> Result<(), Halt> {
        match state {
            Some(state) => self.write_put(key, at, before, state).map(drop),
            None => self.write_deletion(key, at, before),
        }
    }

    /// Writes everything that a put changes except the revision counter. Returns whether the key is
    /// an instance of the registry now.
    fn write_put(
        &mut self,
        key: &Bytes,
        at: Revision,
        before: &Before,
        state: State<'_>,
    ) -> Result<bool, Halt> {
        self.write_rows(key, at, before, Some(state));
        let lease = state.lease;
        let old_lease = before.kv.as_ref().map_or(0, |old| old.lease);
        if old_lease != lease {
            self.detach(old_lease, key);
            self.attach(lease, key);
        }
        let State { create_revision: fence, version, value, .. } = state;
        let leased = Leased { fence, version, lease, value };
        let leased = (lease != 0).then_some(leased);
        let was_leased = before.kv.as_ref().and_then(Leased::of);
        let fate = if before.kv.is_none() { Fate::Created } else { Fate::Changed };
        let at = Moment { revision: at.main, unix_ms: self.events.unix_ms };
        front::note(self.rows, at, key, (was_leased, leased), fate)?;
        let old = before.kv.as_ref().map(|old| &old.value[..]);
        let is_instance = index::note(self.rows, key, old, Some(state.value))?;
        if before.kv.is_none() {
            self.head.key_count = self.head.key_count.saturating_add(1);
        }
        Ok(is_instance)
    }

    /// Writes everything that a deletion changes except the revision counter. The key need not be
    /// live.
    fn write_deletion(&mut self, key: &Bytes, at: Revision, before: &Before) -> Result<(), Halt> {
        self.write_rows(key, at, before, None);
        let Some(old) = &before.kv else { return Ok(()) };
        self.detach(old.lease, key);
        let at = Moment { revision: at.main, unix_ms: self.events.unix_ms };
        front::note(self.rows, at, key, (Leased::of(old), None), Fate::Deleted)?;
        index::note(self.rows, key, Some(&old.value), None)?;
        self.head.key_count = self.head.key_count.saturating_sub(1);
        Ok(())
    }

    /// The state of `key` before revision `main`, if the events have room for it.
    fn prev(&mut self, main: i64, key: &Bytes, before: Before) -> Result<Option<KeyValue>, Halt> {
        if !self.events.has_room() {
            self.events.leave_out();
            return Ok(None);
        }
        let prev = self.before_revision(main, key, before)?;
        Ok(prev.and_then(|prev| self.events.admit(prev)))
    }

    /// The state of `key` before revision `main`. It differs from the state before this change if an
    /// earlier change of the same revision touched the key.
    fn before_revision(
        &self,
        main: i64,
        key: &Bytes,
        before: Before,
    ) -> Result<Option<KeyValue>, Halt> {
        if before.modified.is_some_and(|modified| modified.main == main) {
            return live::get(self.rows, main.saturating_sub(1), key);
        }
        Ok(before.kv)
    }

    fn take_revision(&mut self) -> Revision {
        let at = self.next;
        self.head.revision = at.main;
        self.next = at.next();
        at
    }

    fn write_rows(&mut self, key: &Bytes, at: Revision, before: &Before, state: Option<State<'_>>) {
        // A compacted tombstone must not be linked to, whether or not it has been swept already.
        let compacted = self.head.compacted;
        let previous = before.modified.filter(|last| before.kv.is_some() || last.main >= compacted);
        let previous_value_bytes = before.kv.as_ref().map_or(0, |old| old.value.len());
        let cause = self.cause;
        let mut skips = if previous.is_some() { before.skips } else { Skips::default() };
        let links = skips.step(at);
        let skips = skips.to_bytes();
        let rev_row =
            RevRow { previous, skips: links.as_slice(), previous_value_bytes, key, state, cause };
        let rev_key = Bytes::copy_from_slice(&at.row_key());
        self.rows.put(Table::Rev, rev_key, rev_row.encode());
        let key_row = KeyRow::new(at, previous, skips.as_slice(), state);
        self.rows.put(Table::Key, key.clone(), key_row.encode());
        self.head.digest = digest::chain(self.head.digest, at, key, state.as_ref());
        self.head.add_event_bytes(key.len(), state.map_or(0, |state| state.value.len()));
    }

    fn attach(&mut self, lease: i64, key: &Bytes) {
        if lease != 0 {
            self.rows.put(Table::LeaseKey, attachment_key(lease, key), Bytes::new());
        }
    }

    fn detach(&mut self, lease: i64, key: &Bytes) {
        if lease != 0 {
            self.rows.delete(Table::LeaseKey, attachment_key(lease, key));
        }
    }
}
