//! The cost of permission checks and TLS: puts on three nodes without either, with users, and with
//! certificates on both ports.
//!
//! The three kinds take turns within each round, every time on a new cluster, and each round begins
//! with another kind, so that a machine that becomes slower over time affects all of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use conclave_proto::authpb::{Permission, permission::Type};
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_proto::etcdserverpb::kv_client::KvClient;
use conclave_proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, PutRequest,
};
use serde::Serialize;

use crate::access::{Access, User};
use crate::certificates::Certificates;
use crate::cluster::{Cluster, Program};
use crate::compare::{NODES, Scratch};
use crate::connection::Connection;
use crate::drill;
use crate::options::{Load, Workload};
use crate::report::Report;
use crate::runner::{self, Target};
use crate::table::median;

const WRITER: &str = "writer";
const KEYS: (&str, &str) = ("/bench/", "/bench0");
const PASSWORD: &str = "not a secret";
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
const TOKEN_PAUSE: Duration = Duration::from_millis(10);

/// How the servers are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Auth,
    Tls,
}

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Auth, Kind::Tls];

/// Medians over the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    server_cpu_us_per_op: f64,
    client_cpu_us_per_op: f64,
    errors: u64,
    /// Rate relative to that without authentication and TLS: 0.95 is a loss of 5 %.
    rate_ratio: f64,
    /// Server CPU per operation relative to that.
    cpu_ratio: f64,
}

/// Result of the drill.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    rounds: usize,
    plain: Cost,
    auth: Cost,
    tls: Cost,
    /// Rates of each round, in the order plain, auth, TLS.
    rates: Vec<[f64; 3]>,
}

/// Parameters of the drill.
pub(crate) struct Setting<'a> {
    pub(crate) program: &'a Program,
    pub(crate) dir: &'a std::path::Path,
    pub(crate) load: &'a Load,
    pub(crate) rounds: usize,
}

/// Runs all rounds.
pub(crate) fn measure(setting: &Setting<'_>) -> Result<Finding> {
    ensure!(setting.rounds > 0, "the drill needs a round");
    let mut reports: [Vec<Report>; 3] = Default::default();
    for round in 0..setting.rounds {
        for turn in 0..KINDS.len() {
            let index = (round + turn) % KINDS.len();
            let kind = KINDS[index];
            let report = one(setting, kind).with_context(|| format!("puts with {kind:?}"))?;
            eprintln!("round {} {kind:?}: {}", round + 1, report.line());
            reports[index].push(report);
        }
    }
    let rates = (0..setting.rounds).map(|round| reports.each_ref().map(|all| all[round].rate));
    let rates = rates.collect();
    let [plain, auth, tls] = reports.each_ref().map(|all| cost(all, &reports[0]));
    Ok(Finding { rounds: setting.rounds, plain, auth, tls, rates })
}

fn cost(reports: &[Report], plain: &[Report]) -> Cost {
    let middle = |reports: &[Report], figure: fn(&Report) -> f64| {
        median(reports.iter().map(figure).collect())
    };
    let of = |figure| middle(reports, figure);
    let rate: fn(&Report) -> f64 = |report| report.rate;
    let server_cpu: fn(&Report) -> f64 =
        |report| report.server.map_or(f64::NAN, |server| server.cpu_us_per_op);
    Cost {
        rate: of(rate),
        p50_ms: of(|report| report.latency.p50_us / 1000.0),
        p99_ms: of(|report| report.latency.p99_us / 1000.0),
        server_cpu_us_per_op: of(server_cpu),
        client_cpu_us_per_op: of(|report| report.client_cpu_us_per_op),
        errors: reports.iter().map(|report| report.errors).sum(),
        rate_ratio: of(rate) / middle(plain, rate),
        cpu_ratio: of(server_cpu) / middle(plain, server_cpu),
    }
}

/// Measures puts on a new cluster of one kind.
fn one(setting: &Setting<'_>, kind: Kind) -> Result<Report> {
    let scratch = Scratch::create(setting.dir)?;
    let mut program = setting.program.clone();
    let mut access = Access::default();
    if kind == Kind::Tls {
        let certificates = Certificates::create(scratch.path());
        program = program.with_tls(&certificates.flags());
        access = Access::by_tls(certificates.client())?;
    }
    let mut cluster = Cluster::create(program, scratch.path(), NODES)?;
    cluster.start_all()?;
    drill::wait_until_serving_by(&cluster.endpoints(), &access)?;
    if kind == Kind::Auth {
        access = drill::runtime()?.block_on(protect(&cluster.endpoints()))?;
    }
    let mut target = Target { access, ..Target::of(&cluster) };
    target.leader_first()?;
    runner::run(Workload::Put, setting.load, &target)
}

/// Enables authentication, and logs in as a user that may write only the keys of the load.
async fn protect(endpoints: &[String]) -> Result<Access> {
    let first = endpoints.first().context("an endpoint")?;
    let connection = Connection::open(first).await?;
    let origin = connection.origin();
    let mut auth = AuthClient::with_origin(connection, origin);
    auth.role_add(AuthRoleAddRequest { name: WRITER.to_owned() }).await?;
    let perm =
        Permission { perm_type: Type::Write.into(), key: KEYS.0.into(), range_end: KEYS.1.into() };
    auth.role_grant_permission(AuthRoleGrantPermissionRequest {
        name: WRITER.to_owned(),
        perm: Some(perm),
    })
    .await?;
    for (user, role) in [("root", "root"), (WRITER, WRITER)] {
        let (name, password) = (user.to_owned(), PASSWORD.to_owned());
        auth.user_add(AuthUserAddRequest { name, password, ..Default::default() }).await?;
        let (user, role) = (user.to_owned(), role.to_owned());
        auth.user_grant_role(AuthUserGrantRoleRequest { user, role }).await?;
    }
    auth.auth_enable(AuthEnableRequest {}).await?;
    let access = Access::default().log_in(first, &User::new(WRITER, PASSWORD)).await?;
    for endpoint in endpoints {
        wait_until_known(endpoint, &access).await?;
    }
    Ok(access)
}

/// Waits until a member has applied the token, and checks that the member requires one.
async fn wait_until_known(endpoint: &str, access: &Access) -> Result<()> {
    let deadline = Instant::now() + TOKEN_TIMEOUT;
    while let Err(error) = put(endpoint, access, KEYS.0).await {
        ensure!(Instant::now() < deadline, "{endpoint} does not know the token: {error:#}");
        tokio::time::sleep(TOKEN_PAUSE).await;
    }
    let is_open = put(endpoint, &Access::default(), KEYS.0).await.is_ok()
        || put(endpoint, access, "elsewhere").await.is_ok();
    ensure!(!is_open, "{endpoint} asks for no right");
    Ok(())
}

async fn put(endpoint: &str, access: &Access, key: &str) -> Result<()> {
    let connection = Connection::open_by(endpoint, access).await?;
    let origin = connection.origin();
    let request =
        PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
    KvClient::with_origin(connection, origin).put(request).await?;
    Ok(())
}
