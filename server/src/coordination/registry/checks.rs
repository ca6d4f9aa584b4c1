//! Active checks: one checker for each check that an instance asks for, run by the leader.
//!
//! Whoever becomes leader begins with the index and follows what apply notes; whoever leads no more stops.
//! Checks are spread over their interval, a bounded number runs at once (`schedule`), and only what changes the
//! state that enough of them agree on is a commit.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::internal::{self, command::Command as Message};
use conclave_raft_store::{ReadError, Reader};
use conclave_state_machine::command::{Caller, Range};
use conclave_state_machine::registry::check::{self, CHECK_INTERVAL_MS, OUTPUT_BYTES_MAX};
use conclave_state_machine::registry::record::{Check, Health, may_be_instance};
use conclave_state_machine::registry::threshold::Streak;
use conclave_state_machine::registry::view::View;
use conclave_state_machine::registry::{Name, index, key};
use conclave_state_machine::response::Event;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::probe::{Finding, Reach, Trust, probe};
use super::schedule::{Place, Schedule};
use super::{check_allowed, show};
use crate::api::context::Context;
use crate::api::kv::off_thread;
use crate::config::ChecksAllowed;
use crate::coordination::unix_ms;
use crate::sparse::Sparse;

/// Results on their way into the log.
const PROPOSED_MAX: usize = 256;
/// Changed instances that are noted one by one; beyond, all are looked at again.
const CHANGED_MAX: usize = 100_000;
/// Checks that are made again and again.
const CHECKED_MAX: usize = 200_000;
/// Instances read from the index at once, and looked at between two looks at what is due.
const PAGE: usize = 1_000;
/// Longest pause between two looks at what is due, and at whether this member leads.
const LOOK: Duration = Duration::from_millis(250);
/// Pause before instances that could not be read are looked at again.
const READ_PAUSE: Duration = LOOK;
/// Share of the interval by which checks are spread.
const JITTER: f64 = 0.1;
/// A check that has found nothing yet, so that its instance waits for calls, is made within this time.
const FIRST: Duration = Duration::from_secs(1);
/// What the value of an instance with a check holds, or with several.
const MARKS: [&[u8]; 2] = [br#""check":{"#, br#""checks":{"#];

/// Instances whose checks may have changed, noted by apply while this member leads.
#[derive(Default)]
pub(crate) struct Changed {
    is_wanted: AtomicBool,
    noted: Mutex<Noted>,
    news: Notify,
}

#[derive(Default)]
struct Noted {
    places: BTreeSet<Place>,
    /// Too many to tell.
    is_all: bool,
}

impl Changed {
    /// Notes what was applied. Called by apply: nothing here waits.
    pub(crate) fn note(&self, events: &[Event]) {
        if !self.is_wanted.load(Ordering::Acquire) {
            return;
        }
        let has_check = |value: &[u8]| {
            let holds = |mark: &[u8]| value.windows(mark.len()).any(|part| part == mark);
            may_be_instance(value) && MARKS.into_iter().any(holds)
        };
        let mut is_news = false;
        for event in events {
            let before = event.prev_kv.as_ref().map(|kv| &kv.value[..]);
            if !has_check(&event.kv.value) && !before.is_some_and(has_check) {
                continue;
            }
            let Some(name) = Name::of(&event.kv.key).filter(|name| !name.is_lost) else { continue };
            let mut noted = self.noted.lock();
            if noted.places.len() >= CHANGED_MAX {
                noted.is_all = true;
            } else {
                noted.places.insert((Bytes::copy_from_slice(name.service), name.id.to_owned()));
            }
            is_news = true;
        }
        if is_news {
            self.news.notify_one();
        }
    }

    /// Everything may have changed: a snapshot took the place of the state.
    pub(crate) fn note_all(&self) {
        self.noted.lock().is_all = true;
        self.news.notify_one();
    }

    fn take(&self) -> Noted {
        std::mem::take(&mut self.noted.lock())
    }
}

/// Checks while this member leads. Never returns.
pub(super) async fn run(context: &Context, trust: &Arc<Trust>) {
    let allowed = context.node.settings().registry.checks;
    if allowed == ChecksAllowed::Off {
        return std::future::pending().await;
    }
    let changed = Arc::clone(context.node.changed_checks());
    loop {
        while !context.node.is_leader() {
            tokio::time::sleep(LOOK).await;
        }
        let mut board = Board::new(context.clone(), allowed, Arc::clone(trust));
        changed.note_all();
        changed.is_wanted.store(true, Ordering::Release);
        while context.node.is_leader() {
            board.learn(changed.take()).await;
            board.start_due();
            tokio::select! {
                () = tokio::time::sleep(board.until_due()) => {}
                () = changed.news.notified() => {}
                Some(done) = board.running.join_next() => board.finished(done),
                Some(_) = board.proposed.join_next() => {}
            }
        }
        // Dropping the board ends what runs.
        context.metrics.instances.waiting_checks.set(0);
        changed.is_wanted.store(false, Ordering::Release);
        changed.take();
    }
}

/// What is to be checked, as the state says.
struct Subject {
    /// Empty for the check that has no name.
    name: String,
    check: Check,
    address: String,
    fence: i64,
    /// What the record says that checks found.
    shown: Option<Health>,
}

/// A check that is made.
struct Watched {
    /// The instance.
    id: String,
    subject: Subject,
    streak: Streak,
    due: Instant,
    is_running: bool,
}

/// What a check found; `None` if it could not be made for a reason of this member.
type Done = (Place, i64, Option<Finding>);

/// The place of one check of an instance among all checks: no id holds a zero byte.
fn place_of(name: &str, (service, id): &Place) -> Place {
    (Bytes::clone(service), format!("{id}\0{name}"))
}

/// All checks of a leader.
struct Board {
    context: Context,
    allowed: ChecksAllowed,
    reach: Reach,
    trust: Arc<Trust>,
    /// By [`place_of`].
    watched: HashMap<Place, Watched>,
    /// Names of the checks of each instance among them.
    names: HashMap<Place, Vec<String>>,
    /// Those that are still to be looked at.
    unseen: BTreeSet<Place>,
    /// The index is still to be looked at.
    is_all_unseen: bool,
    /// No look before, since the last one could not read.
    not_before: Option<Instant>,
    /// Those that do not run.
    schedule: Schedule,
    running: JoinSet<Done>,
    proposed: JoinSet<()>,
    /// Lines about instances that are too many to be checked.
    lines: Sparse,
}

impl Board {
    fn new(context: Context, allowed: ChecksAllowed, trust: Arc<Trust>) -> Self {
        let reach = Reach::new(allowed, &context.node.settings().listen);
        Self {
            context,
            allowed,
            reach,
            trust,
            watched: HashMap::new(),
            names: HashMap::new(),
            unseen: BTreeSet::new(),
            is_all_unseen: false,
            not_before: None,
            schedule: Schedule::default(),
            running: JoinSet::new(),
            proposed: JoinSet::new(),
            lines: Sparse::default(),
        }
    }

    /// Takes in what has changed, and looks at some of it: at the rest the next time, so that checks go on
    /// meanwhile.
    async fn learn(&mut self, noted: Noted) {
        self.unseen.extend(noted.places);
        let reader = self.context.node.reader().clone();
        let is_early = self.not_before.is_some_and(|until| Instant::now() < until);
        self.is_all_unseen |= noted.is_all;
        if is_early {
            return;
        }
        self.not_before = None;
        if std::mem::take(&mut self.is_all_unseen) {
            // Those that are gone are found by looking at each once more.
            self.unseen.extend(self.names.keys().cloned());
            let reader = reader.clone();
            match off_thread(move || all(&reader)).await {
                Ok(Ok(found)) => self.unseen.extend(found),
                Ok(Err(error)) => self.look_at_all_again(&error),
                Err(error) => self.look_at_all_again(&error.message()),
            }
        }
        let places: Vec<Place> =
            std::iter::from_fn(|| self.unseen.pop_first()).take(PAGE).collect();
        if places.is_empty() {
            return;
        }
        let allowed = self.allowed;
        let wanted = places.clone();
        let look = move || -> Vec<_> {
            let look = |place| (subjects(&reader, &place, allowed), place);
            wanted.into_iter().map(look).collect()
        };
        match off_thread(look).await {
            Ok(seen) => {
                for (subjects, place) in seen {
                    match subjects {
                        Ok(subjects) => self.see(place, subjects),
                        Err(error) => self.look_again([place], &error),
                    }
                }
            }
            Err(error) => self.look_again(places, &error.message()),
        }
    }

    /// Keeps the checks of `places` as they are, and looks at them again after [`READ_PAUSE`].
    fn look_again(&mut self, places: impl IntoIterator<Item = Place>, error: &dyn Display) {
        self.unseen.extend(places);
        self.pause(error);
    }

    /// Keeps all checks as they are, and looks at the index again after [`READ_PAUSE`].
    fn look_at_all_again(&mut self, error: &dyn Display) {
        self.is_all_unseen = true;
        self.pause(error);
    }

    fn pause(&mut self, error: &dyn Display) {
        if self.not_before.is_none() {
            tracing::warn!(%error, "cannot read which instances to check: trying again");
        }
        self.not_before = Some(Instant::now() + READ_PAUSE);
    }

    /// Begins, changes or ends the checks of an instance.
    fn see(&mut self, instance: Place, subjects: Vec<Subject>) {
        for name in self.names.remove(&instance).unwrap_or_default() {
            if subjects.iter().any(|subject| subject.name == name) {
                continue;
            }
            let place = place_of(&name, &instance);
            if let Some(watched) = self.watched.remove(&place) {
                self.schedule.remove(&place, watched.due);
            }
        }
        let mut names = Vec::new();
        for subject in subjects {
            let name = subject.name.clone();
            if self.see_one(&instance, subject) {
                names.push(name);
            }
        }
        if !names.is_empty() {
            self.names.insert(instance, names);
        }
    }

    /// Begins or changes one check; `false` if there are too many.
    fn see_one(&mut self, instance: &Place, subject: Subject) -> bool {
        let place = place_of(&subject.name, instance);
        if let Some(Watched { subject: known, .. }) = self.watched.get_mut(&place)
            && known.fence == subject.fence
            && known.check == subject.check
            && known.address == subject.address
        {
            known.shown = subject.shown;
            return true;
        }
        if self.watched.len() >= CHECKED_MAX && !self.watched.contains_key(&place) {
            if let Some(unsaid) = self.lines.turn() {
                let limit = CHECKED_MAX;
                tracing::warn!(limit, unsaid, "too many instances to check: some are not");
            }
            return false;
        }
        // The first one soon, but not all at once.
        let interval = interval(&subject.check);
        let within = if subject.shown.is_none() { interval.min(FIRST) } else { interval };
        let due = Instant::now() + within.mul_f64(rand::random::<f64>());
        let id = instance.1.clone();
        let watched = Watched { id, subject, streak: Streak::default(), due, is_running: false };
        if let Some(old) = self.watched.insert(place.clone(), watched) {
            self.schedule.remove(&place, old.due);
        }
        self.schedule.add(place, due);
        true
    }

    fn until_due(&self) -> Duration {
        if !self.unseen.is_empty() && self.not_before.is_none() {
            return Duration::ZERO;
        }
        let next = self.schedule.next();
        next.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK))
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        while let Some(place) = self.schedule.begin(now) {
            let Some(watched) = self.watched.get_mut(&place) else {
                self.schedule.ended(&place.0);
                continue;
            };
            watched.is_running = true;
            let Subject { check, address, fence, .. } = &watched.subject;
            let (check, address, fence) = (check.clone(), address.clone(), *fence);
            let (reach, trust) = (self.reach, Arc::clone(&self.trust));
            self.running.spawn(async move {
                let finding = probe(&check, &address, reach, &trust).await;
                (place, fence, finding)
            });
        }
        let waiting = i64::try_from(self.schedule.waiting()).unwrap_or(i64::MAX);
        self.context.metrics.instances.waiting_checks.set(waiting);
    }

    fn finished(&mut self, done: Result<Done, tokio::task::JoinError>) {
        self.context.metrics.instances.checks.inc();
        // A check does not panic, and is ended only together with the board.
        let Ok((place, fence, finding)) = done else { return };
        self.schedule.ended(&place.0);
        let Some(watched) = self.watched.get_mut(&place).filter(|watched| {
            // Otherwise it is about an instance that is another now.
            watched.subject.fence == fence && watched.is_running
        }) else {
            return;
        };
        watched.is_running = false;
        let spread = 1.0 - JITTER + 2.0 * JITTER * rand::random::<f64>();
        let Subject { check, shown, .. } = &watched.subject;
        watched.due = Instant::now() + interval(check).mul_f64(spread);
        self.schedule.add(place.clone(), watched.due);
        let Some(finding) = finding else { return };
        let Some(health) = watched.streak.note(finding.health, check, *shown) else { return };
        if self.proposed.len() < PROPOSED_MAX {
            let (id, name) = (watched.id.clone(), watched.subject.name.clone());
            self.propose((place.0, id), (name, fence), Finding { health, ..finding });
        }
        // Otherwise the next check finds the same.
    }

    fn propose(&mut self, (service, id): Place, (check, fence): (String, i64), finding: Finding) {
        let mut output = finding.output;
        output.truncate(output.floor_char_boundary(OUTPUT_BYTES_MAX));
        let message = internal::RegistryChecked {
            service: String::from_utf8_lossy(&service).into_owned(),
            id,
            fence,
            check,
            health: show::health(finding.health).into(),
            output,
            now_unix_ms: unix_ms(),
            damping: self.context.node.settings().registry.is_damping,
        };
        let context = self.context.clone();
        self.proposed.spawn(async move {
            match context.propose(&Caller::Inside, Message::RegistryChecked(message)).await {
                Ok(_) => _ = context.metrics.instances.check_changes.inc(),
                Err(error) => tracing::debug!(error = error.message(), "a result was not noted"),
            }
        });
    }
}

fn interval(check: &Check) -> Duration {
    let ms = if check.interval_ms == 0 { CHECK_INTERVAL_MS } else { check.interval_ms };
    Duration::from_millis(ms)
}

/// The checks of the instance at a place. None for an instance that was not written by `Register` and
/// asks for more than `Register` allows. Fails if the instance cannot be read.
fn subjects(
    reader: &Reader,
    (service, id): &Place,
    allowed: ChecksAllowed,
) -> Result<Vec<Subject>, ReadError> {
    let range = Range { key: key(service, id), ..Range::default() };
    let (answer, _) = reader.range(&range)?;
    let view = View::load(Bytes::clone(service), answer.kvs);
    let Some(shown) = view.get(id).filter(|shown| !shown.record.is_stale()) else {
        return Ok(Vec::new());
    };
    let (details, address) = (&shown.record.details, &shown.record.address);
    if check::checks(details).is_err() {
        return Ok(Vec::new());
    }
    let is_allowed = |check: &Check| check_allowed(check, address, allowed).is_ok();
    let wanted = details.all_checks().filter(|(_, check)| is_allowed(check));
    let subject = |(name, check): (&str, &Check)| Subject {
        name: name.to_owned(),
        check: check.clone(),
        address: address.clone(),
        fence: shown.fence,
        shown: details.result(name).map(|found| found.health),
    };
    Ok(wanted.map(subject).collect())
}

/// All instances with a check.
fn all(reader: &Reader) -> Result<Vec<Place>, conclave_state_machine::response::Halt> {
    let mut found = Vec::new();
    let mut from = Bytes::new();
    loop {
        let (page, next) = index::checks(reader, &from, PAGE)?;
        found.extend(page.into_iter().map(|entry| (entry.service, entry.id)));
        match next {
            Some(next) if found.len() < CHECKED_MAX => from = next,
            _ => return Ok(found),
        }
    }
}
