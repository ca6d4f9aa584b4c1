//! Reads that leave out what is known to be dead, against a plain set of keys: whatever died, came back and was
//! compacted, each finds what lives.

use std::collections::BTreeSet;
use std::ops::Range as Span;

use bytes::Bytes;
use conclave_proto::etcdserverpb as etcd;
use conclave_proto::internal::command::Command;
use conclave_raft_store::EngineKind;
use conclave_state_machine::command::{Range, SortOrder};
use proptest::prelude::*;

use crate::harness::{ENGINES, State, compact, entry, put};

/// Enough for a dozen of buckets.
const KEYS_MAX: usize = 6_000;

#[derive(Clone, Debug)]
enum Step {
    /// Puts each n-th key of a range.
    Put(Span<usize>, usize),
    Delete(Span<usize>),
    /// Puts the keys of a range one by one, and deletes each when so many came after it.
    Queue(Span<usize>, usize),
    /// Compacts that many revisions below the current one and sweeps so many steps.
    Compact(i64, usize),
    Restart,
}

fn span(keys_max: usize) -> impl Strategy<Value = Span<usize>> {
    (0..KEYS_MAX, 1..keys_max).prop_map(|(start, keys)| start..(start + keys).min(KEYS_MAX))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (span(1_500), 1..4_usize).prop_map(|(keys, each)| Step::Put(keys, each)),
        4 => span(2_500).prop_map(Step::Delete),
        2 => (span(1_500), 1..400_usize).prop_map(|(keys, waiting)| Step::Queue(keys, waiting)),
        2 => (0..300_i64, 1..4_usize).prop_map(|(back, steps)| Step::Compact(back, steps)),
        1 => Just(Step::Restart),
    ]
}

fn name(n: usize) -> String {
    format!("{n:05}")
}

fn delete(keys: &Span<usize>) -> Command {
    Command::DeleteRange(etcd::DeleteRangeRequest {
        key: name(keys.start).into(),
        range_end: name(keys.end).into(),
        prev_kv: false,
    })
}

struct Member {
    engine: EngineKind,
    dir: tempfile::TempDir,
    state: Option<State>,
    index: u64,
    live: BTreeSet<usize>,
}

impl Member {
    fn new(engine: EngineKind) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let state = Some(State::open(dir.path(), engine));
        Member { engine, dir, state, index: 0, live: BTreeSet::new() }
    }

    fn state(&mut self) -> &mut State {
        self.state.as_mut().unwrap()
    }

    async fn apply(&mut self, commands: Vec<Command>) {
        self.index += 1;
        let entry = entry(self.index, commands);
        self.state().apply([entry]).await;
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Put(keys, each) => {
                let keys: Vec<usize> = keys.step_by(each).collect();
                self.live.extend(&keys);
                self.apply(keys.into_iter().map(|n| put(name(n), "v")).collect()).await;
            }
            Step::Delete(keys) => {
                self.live.retain(|n| !keys.contains(n));
                self.apply(vec![delete(&keys)]).await;
            }
            Step::Queue(keys, waiting) => {
                let mut commands = Vec::new();
                for n in keys.clone() {
                    self.live.insert(n);
                    commands.push(put(name(n), "v"));
                    if let Some(first) = n.checked_sub(waiting).filter(|n| keys.contains(n)) {
                        self.live.remove(&first);
                        commands.push(delete(&(first..first + 1)));
                    }
                }
                self.apply(commands).await;
            }
            Step::Compact(back, steps) => {
                let revision = self.state().reader.head().revision - back;
                for _ in 0..steps {
                    self.apply(vec![compact(revision)]).await;
                }
            }
            Step::Restart => {
                self.state().reader.flush().unwrap();
                self.state = None;
                self.state = Some(State::open(self.dir.path(), self.engine));
            }
        }
    }

    /// Whether a range is read as it is, at its beginning, at its end and as a whole.
    fn check(&mut self, keys: Span<usize>) {
        let within: Vec<String> = self.live.range(keys.clone()).map(|n| name(*n)).collect();
        for (limit, sort_order) in [
            (0, SortOrder::None),
            (1, SortOrder::None),
            (1, SortOrder::Descend),
            (300, SortOrder::Ascend),
            (300, SortOrder::Descend),
        ] {
            let request = Range {
                key: name(keys.start).into(),
                range_end: name(keys.end).into(),
                limit,
                sort_order,
                ..Range::default()
            };
            let mut expected: Vec<&[u8]> = within.iter().map(|key| key.as_bytes()).collect();
            if sort_order == SortOrder::Descend {
                expected.reverse();
            }
            let limit = usize::try_from(limit).unwrap();
            let is_cut = limit > 0 && expected.len() > limit;
            expected.truncate(if is_cut { limit } else { usize::MAX });
            let reader = &self.state().reader;
            let (answer, _) = reader.range(&request).unwrap();
            let found: Vec<&[u8]> = answer.kvs.iter().map(|kv| &kv.key[..]).collect();
            assert!(
                found == expected,
                "{} instead of {} keys: {request:?}",
                found.len(),
                expected.len()
            );
            assert_eq!((answer.count as usize, answer.more), (within.len(), is_cut), "{request:?}");
            let brief = reader.range_briefly(&request).unwrap().map(|(answer, _)| answer);
            assert_eq!(brief.as_ref().unwrap_or(&answer), &answer, "{request:?}");
        }
        let everything = Bytes::from_static(b"\0");
        let count = Range {
            key: everything.clone(),
            range_end: everything,
            count_only: true,
            ..Range::default()
        };
        let (answer, _) = self.state().reader.range(&count).unwrap();
        assert_eq!(answer.count as usize, self.live.len());
    }
}

async fn run(engine: EngineKind, steps: Vec<(Step, Vec<Span<usize>>)>) {
    let mut member = Member::new(engine);
    for (step, spans) in steps {
        member.take(step).await;
        for keys in spans.into_iter().chain(std::iter::once(0..KEYS_MAX)) {
            member.check(keys);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn what_lives_is_found_whatever_died_around_it(
        engine in prop::sample::select(ENGINES.to_vec()),
        steps in prop::collection::vec((step(), prop::collection::vec(span(3_000), 3)), 1..16),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(engine, steps));
    }
}
