//! `/livez` and `/readyz`: whether this process works at all, and whether it should receive
//! requests. Each is a list of checks; each check also has its own page below it.

use conclave_state_machine::command::AlarmKind;
use http::{Response, StatusCode};
use tonic::body::Body;

use super::pages;
use crate::api::context::Context;
use crate::metrics::{Check, Probe};

/// Answers a path below `/livez` or `/readyz`; `None` if there is no such check.
pub(super) async fn answer(context: &Context, path: &str, query: &str) -> Option<Response<Body>> {
    let probe = Probe::ALL.into_iter().find(|probe| {
        let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(probe.name()));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })?;
    let own = &path[1 + probe.name().len()..];
    let asked = match own.strip_prefix('/') {
        None => {
            probe.checks().iter().copied().filter(|check| !is_excluded(query, *check)).collect()
        }
        Some(name) => vec![*probe.checks().iter().find(|check| check.name() == name)?],
    };
    let (mut report, mut is_good) = (String::new(), true);
    for check in asked {
        let result = run(context, check).await;
        context.metrics.probes.count(probe, check, result.is_ok());
        match result {
            Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name())),
            Err(reason) => {
                tracing::warn!(probe = probe.name(), check = check.name(), reason, "probe failed");
                report.push_str(&format!("[-]{} failed: {reason}\n", check.name()));
                is_good = false;
            }
        }
    }
    if !is_good {
        return Some(pages::text(StatusCode::SERVICE_UNAVAILABLE, report));
    }
    let is_verbose = query.split('&').any(|pair| pair.split('=').next() == Some("verbose"));
    let report = if is_verbose { report } else { String::new() };
    Some(pages::text(StatusCode::OK, report + "ok\n"))
}

fn is_excluded(query: &str, check: Check) -> bool {
    query.split('&').any(|pair| pair.split_once('=') == Some(("exclude", check.name())))
}

/// Runs a check; the error says what is wrong.
async fn run(context: &Context, check: Check) -> Result<(), String> {
    match check {
        Check::SerializableRead => pages::read(context, true).await,
        Check::LinearizableRead => pages::read(context, false).await,
        Check::DataCorruption => {
            let head = context.node.reader().head();
            match head.alarms.iter().any(|&(_, kind)| kind == AlarmKind::Corrupt) {
                true => Err("alarm activated: CORRUPT".to_owned()),
                false => Ok(()),
            }
        }
        Check::NonLearner => match context.node.is_learner() {
            true => Err("not supported for learner".to_owned()),
            false => Ok(()),
        },
    }
}
