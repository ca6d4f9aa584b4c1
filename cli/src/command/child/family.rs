//! The processes of a command: those of its group, and those that it and they have started.
//!
//! A shell that is asked to end does not pass that on to what it runs, so all of them must be
//! asked. They are found in `/proc`; without it only the group, or the command's own process, is
//! known. A process that has left both the group and the tree (a daemon that detached itself) is
//! not found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::pending,
};

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, waitpid,
};
use tokio::signal::unix::{self, SignalKind, signal};

/// Adopted processes: children of this process that it did not start.
#[derive(Debug, Default)]
pub(super) struct Orphans(Option<unix::Signal>);

impl Orphans {
    /// Makes this process adopt processes whose parent has ended, so that they are found even
    /// without a group of their own. No other process can wait for them then: see [`Family::reap`].
    pub(super) fn adopt() -> std::io::Result<Self> {
        let ended = signal(SignalKind::child())?;
        #[cfg(target_os = "linux")]
        rustix::process::set_child_subreaper(Some(getpid()))?;
        Ok(Self(Some(ended)))
    }

    /// Returns when an adopted process, or any other child, may have ended since the last call.
    /// Cancel-safe.
    pub(super) async fn ended(&mut self) {
        let Self(Some(ended)) = self else { return pending().await };
        if ended.recv().await.is_none() {
            self.0 = None;
        }
    }
}

/// The processes of one command.
#[derive(Debug)]
pub(super) struct Family {
    first: Pid,
    /// Whether the first process leads a group of its own.
    is_group: bool,
    /// Whether the first process may not have been waited for, so that its id is not reused.
    is_first_there: bool,
    /// The processes that were running at the last check.
    running: BTreeSet<Member>,
}

/// One process; its start time tells it from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    pid: i32,
    start: u64,
}

/// The entry of a process in `/proc`.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    parent: i32,
    group: i32,
    start: u64,
    has_ended: bool,
}

impl Family {
    pub(super) fn new(first: Pid, is_group: bool) -> Self {
        Self { first, is_group, is_first_there: true, running: BTreeSet::new() }
    }

    /// Must be called as soon as the first process has been waited for.
    pub(super) fn first_ended(&mut self) {
        self.is_first_there = false;
    }

    /// Sends a signal to all of them.
    pub(super) fn signal(&mut self, signal: Signal) {
        let processes = processes();
        self.look(&processes);
        let first = self.first.as_raw_pid();
        let is_of_group = |member: &Member| {
            self.is_group && processes.get(&member.pid).is_some_and(|it| it.group == first)
        };
        let has_group = self.is_group && self.running.iter().any(is_of_group);
        // The first process first, or with its group: it may start something when another one ends.
        let sent = match self.is_group {
            true if self.is_first_there || has_group => kill_process_group(self.first, signal),
            false if self.is_first_there => kill_process(self.first, signal),
            _ => Ok(()),
        };
        let others = self.running.iter().filter(|it| it.pid != first && !is_of_group(it));
        let others = others.filter_map(|it| Pid::from_raw(it.pid));
        for sent in [sent].into_iter().chain(others.map(|it| kill_process(it, signal))) {
            if let Err(error) = sent {
                tracing::debug!(%error, "a process of the command has ended meanwhile");
            }
        }
    }

    /// Whether none of them is running.
    pub(super) fn is_gone(&mut self) -> bool {
        let processes = processes();
        self.look(&processes);
        self.wait_for_orphans(&processes);
        !self.is_first_there && self.running.is_empty()
    }

    /// Waits for ended processes that this process has adopted. The first process is left to its
    /// own waiter, which needs its exit status.
    pub(super) fn reap(&self) {
        self.wait_for_orphans(&processes());
    }

    fn wait_for_orphans(&self, processes: &BTreeMap<i32, Process>) {
        for pid in self.ended_orphans(processes).into_iter().filter_map(Pid::from_raw) {
            if let Err(error) = waitpid(Some(pid), WaitOptions::NOHANG) {
                tracing::debug!(%error, "somebody else has waited for a process");
            }
        }
    }

    fn ended_orphans(&self, processes: &BTreeMap<i32, Process>) -> Vec<i32> {
        let (this, first) = (getpid().as_raw_pid(), self.first.as_raw_pid());
        let is_orphan = |pid: i32, it: &Process| {
            it.parent == this && it.has_ended && !(self.is_first_there && pid == first)
        };
        processes.iter().filter(|(pid, it)| is_orphan(**pid, it)).map(|(&pid, _)| pid).collect()
    }

    /// Updates which processes are running. One that once belonged to the family still does, even
    /// without its parent.
    fn look(&mut self, processes: &BTreeMap<i32, Process>) {
        let first = self.first.as_raw_pid();
        let this = getpid().as_raw_pid();
        let knows = |pid: i32, it: &Process| {
            // This process has no other children: see `Orphans`.
            (self.is_first_there && pid == first)
                || it.parent == this
                || (self.is_group && it.group == first)
                || self.running.contains(&Member { pid, start: it.start })
        };
        let known = processes.iter().filter(|(pid, it)| knows(**pid, it));
        let mut family: BTreeSet<i32> = known.map(|(&pid, _)| pid).collect();
        loop {
            let is_child = |(pid, it): &(&i32, &Process)| {
                family.contains(&it.parent) && !family.contains(*pid)
            };
            let children: Vec<i32> =
                processes.iter().filter(is_child).map(|(&pid, _)| pid).collect();
            if children.is_empty() {
                break;
            }
            family.extend(children);
        }
        let running = processes.iter().filter(|(pid, it)| family.contains(pid) && !it.has_ended);
        self.running = running.map(|(&pid, it)| Member { pid, start: it.start }).collect();
    }
}

/// All processes that are visible to this one.
fn processes() -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A process that has ended in the meantime is missing.
    pids.filter_map(|pid: i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, Process::parse(&String::from_utf8_lossy(&stat))?))
    })
    .collect()
}

impl Process {
    /// Parses a line of `/proc/PID/stat`, see proc(5).
    fn parse(stat: &str) -> Option<Self> {
        // The process name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        Some(Self {
            has_ended: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(parent: i32, group: i32) -> Process {
        Process { parent, group, start: 5, has_ended: false }
    }

    fn running(family: &Family) -> Vec<i32> {
        family.running.iter().map(|member| member.pid).collect()
    }

    #[test]
    fn a_line_is_read_whatever_the_name() {
        let stat = "42 (a) S 1 (b) Z 7 40 40 0 -1 4194560 120 0 0 0 0 0 0 0 20 0 1 0 98765 2 3";
        let process = Process { parent: 7, group: 40, start: 98765, has_ended: true };
        assert_eq!(Process::parse(stat), Some(process));
        assert_eq!(Process::parse("42 (sh"), None);
        assert_eq!(Process::parse("42 (sh) S 1"), None);
    }

    #[test]
    fn only_who_nobody_waits_for_is_waited_for() {
        let this = getpid().as_raw_pid();
        let first = Pid::from_raw(5_000_010).expect("an id");
        let mut family = Family::new(first, false);
        let ended = |parent| Process { has_ended: true, ..process(parent, parent) };
        let processes = BTreeMap::from([
            (5_000_010, ended(this)),
            (5_000_011, ended(this)),
            (5_000_012, process(this, this)),
            (5_000_013, ended(5_000_012)),
        ]);
        assert_eq!(family.ended_orphans(&processes), [5_000_011]);
        family.first_ended();
        assert_eq!(family.ended_orphans(&processes), [5_000_010, 5_000_011], "its id is free");
    }

    #[test]
    fn who_has_no_parent_any_more_is_of_the_family() {
        // No process has such an id, not even this one.
        let first = Pid::from_raw(5_000_010).expect("an id");
        let mut tree = Family::new(first, false);
        let mut group = Family::new(first, true);
        let mut processes = BTreeMap::from([
            (5_000_001, process(0, 5_000_001)),
            (5_000_010, process(5_000_001, 5_000_010)),
            (5_000_012, process(5_000_010, 5_000_010)),
            (5_000_011, process(5_000_012, 5_000_011)),
            (5_000_013, process(5_000_001, 5_000_010)),
        ]);
        tree.look(&processes);
        group.look(&processes);
        assert_eq!(running(&tree), [5_000_010, 5_000_011, 5_000_012]);
        assert_eq!(running(&group), [5_000_010, 5_000_011, 5_000_012, 5_000_013]);
        processes.remove(&5_000_010);
        processes.insert(5_000_012, process(5_000_001, 5_000_010));
        processes.get_mut(&5_000_011).expect("it is there").has_ended = true;
        for family in [&mut tree, &mut group] {
            family.first_ended();
            family.look(&processes);
        }
        assert_eq!(running(&tree), [5_000_012]);
        assert_eq!(running(&group), [5_000_012, 5_000_013]);
        processes.remove(&5_000_013);
        processes.insert(5_000_012, Process { start: 6, ..process(5_000_001, 5_000_012) });
        for family in [&mut tree, &mut group] {
            family.look(&processes);
            assert_eq!(running(family), [0; 0], "another process has that id");
        }
    }
}
