//! Those who watch a run, and those who read the whole of it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::finale::Last;
use super::{FINISH_TIMEOUT, POLL, mix};
use crate::history::WatchSession;
use crate::load::Stage;
use crate::verdict::{Fault, Violation};
use crate::watcher::{Habit, Watcher};

const WATCHERS: u32 = 12;

/// The watchers of a run.
pub(super) struct Watchers {
    tasks: JoinSet<Vec<WatchSession>>,
    stop: watch::Sender<bool>,
    /// Those that have to see the end: how far they are, and what they watch.
    awaited: Vec<(Arc<AtomicI64>, WatchSession)>,
}

impl Watchers {
    pub(super) fn spawn(stage: &Arc<Stage>, progress: bool, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut watchers = Self { tasks: JoinSet::new(), stop, awaited: Vec::new() };
        for id in 0..WATCHERS {
            let habit = match id {
                0..6 => Habit::Pinned,
                6..9 => Habit::Roaming,
                _ => Habit::Wandering,
            };
            let asks_progress = progress && id % 2 == 0;
            let watcher =
                Watcher::new(stage.clone(), id, habit, asks_progress, mix(seed, 1000 + id));
            if watcher.must_finish() {
                watchers.awaited.push(watcher.position());
            }
            watchers.tasks.spawn(watcher.run(stopped.clone()));
        }
        watchers
    }

    /// Waits until everybody has seen the last change it wants.
    pub(super) async fn wait(&self, last: &Last, violations: &mut Vec<Violation>) {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        for (next, session) in &self.awaited {
            let wanted = last.wanted_by(session);
            while next.load(Ordering::Relaxed) <= wanted && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
            }
            let next = next.load(Ordering::Relaxed);
            if next <= wanted {
                let detail = format!(
                    "watcher {} on node {} got to revision {} of {wanted}",
                    session.watcher,
                    session.node,
                    next - 1
                );
                violations.push(Violation::new(Fault::Incomplete, detail));
            }
        }
    }

    pub(super) async fn stop(mut self) -> Result<Vec<WatchSession>> {
        self.stop.send_replace(true);
        let mut sessions = Vec::new();
        while let Some(recorded) = self.tasks.join_next().await {
            sessions.append(&mut recorded?);
        }
        Ok(sessions)
    }
}

/// Watches everything from the first revision on every member: the whole history as the store tells it.
pub(super) async fn read_back(
    stage: &Arc<Stage>,
    last: &Last,
    seed: u64,
    violations: &mut Vec<Violation>,
) -> Result<Vec<WatchSession>> {
    let (stop, stopped) = watch::channel(false);
    let mut readers = Watchers { tasks: JoinSet::new(), stop, awaited: Vec::new() };
    for node in 0..stage.endpoints.len() {
        let reader = Watcher::new(
            stage.clone(),
            node as u32,
            Habit::Pinned,
            false,
            mix(seed, 2000 + node as u32),
        );
        readers.awaited.push(reader.position());
        readers.tasks.spawn(reader.run(stopped.clone()));
    }
    readers.wait(last, violations).await;
    readers.stop().await
}
