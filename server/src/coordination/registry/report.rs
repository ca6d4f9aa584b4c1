//! What owners report about their instances with heartbeats: proposed as updates, as far as it is news.
//!
//! Heartbeats never wait for it. Of several reports of an instance only the last one waits; those that wait together
//! are proposed together, and share an entry of the log. What has no answer is not proposed again here: whoever
//! reports says it again with later heartbeats.

use std::collections::BTreeMap;

use bytes::Bytes;
use conclave_proto::internal::{self, command::Command as Message};
use conclave_proto::v1;
use conclave_raft_store::command;
use conclave_state_machine::command::{Caller, RegistryCommand};
use conclave_state_machine::registry;
use futures::future::{BoxFuture, join_all};
use tonic::Status;

use super::checked;
use crate::api::context::{Context, mismatch};
use crate::api::kv::off_thread;
use crate::auth::RightsCheck;
use crate::coordination::unix_ms;
use crate::propose::Haste;
use crate::status;

/// Reports of one stream that wait for those before them; what is beyond is refused.
const WAITING_MAX: usize = 10_000;
/// Reports that are compared and proposed together.
const TOGETHER_MAX: usize = 256;
/// Refusals of one message.
const TOLD_MAX: usize = 256;

/// The reports of one stream of heartbeats.
pub(in crate::coordination) struct Reports {
    context: Context,
    caller: Caller,
    /// By session, service and id.
    waiting: BTreeMap<(i64, String, String), v1::InstanceReport>,
    refused: Vec<v1::ReportRefused>,
    /// What becomes of those before, and who of them is refused.
    round: Option<BoxFuture<'static, Vec<v1::ReportRefused>>>,
}

impl Reports {
    pub(in crate::coordination) fn new(context: Context, caller: Caller) -> Self {
        let (waiting, refused) = (BTreeMap::new(), Vec::new());
        Self { context, caller, waiting, refused, round: None }
    }

    /// Takes a report, to be carried out by [`Reports::next`].
    pub(in crate::coordination) fn add(&mut self, report: v1::InstanceReport, is_attached: bool) {
        let key = (report.session, report.service.clone(), report.id.clone());
        let is_room = self.waiting.len() < WAITING_MAX || self.waiting.contains_key(&key);
        if !is_attached {
            let reason = "conclave: the session is not attached to this stream";
            self.refused.push(refusal(&report, &Status::failed_precondition(reason)));
        } else if !is_room {
            let reason = "conclave: too many reports at once";
            self.refused.push(refusal(&report, &Status::resource_exhausted(reason)));
        } else {
            self.waiting.insert(key, report);
        }
    }

    /// Carries reports out, for as long as it is waited for; returns some that were refused. Cancel-safe.
    pub(in crate::coordination) async fn next(&mut self) -> Vec<v1::ReportRefused> {
        while self.refused.is_empty() {
            if self.round.is_none() && self.waiting.is_empty() {
                std::future::pending::<()>().await;
            }
            let round = self.round.get_or_insert_with(|| {
                let reports = std::mem::take(&mut self.waiting).into_values().collect();
                Box::pin(carry_out(self.context.clone(), self.caller.clone(), reports))
            });
            self.refused = round.await;
            self.round = None;
        }
        let told = self.refused.len().min(TOLD_MAX);
        self.refused.drain(..told).collect()
    }
}

fn refusal(report: &v1::InstanceReport, status: &Status) -> v1::ReportRefused {
    v1::ReportRefused {
        session: report.session,
        service: report.service.clone(),
        id: report.id.clone(),
        fence: report.fence,
        code: status.code().into(),
        reason: status.message().to_owned(),
    }
}

/// Proposes reports as far as they are news; those that were refused.
async fn carry_out(
    context: Context,
    caller: Caller,
    reports: Vec<v1::InstanceReport>,
) -> Vec<v1::ReportRefused> {
    let mut refused = Vec::new();
    let mut reports = reports.into_iter();
    loop {
        let together: Vec<_> = reports.by_ref().take(TOGETHER_MAX).collect();
        if together.is_empty() {
            return refused;
        }
        let (asked, by) = (context.clone(), caller.clone());
        let judge = move |report| (is_news(&asked, &by, &report), report);
        let judged = off_thread(move || together.into_iter().map(judge).collect::<Vec<_>>()).await;
        let Ok(judged) = judged.inspect_err(not_carried_out) else { return refused };
        let carried = judged.into_iter().map(|(is_news, report)| {
            let (context, caller) = (&context, &caller);
            async move {
                let status = match is_news {
                    Ok(true) => propose(context, caller, &report).await?,
                    Ok(false) => return None,
                    Err(status) => status,
                };
                Some(refusal(&report, &status))
            }
        });
        refused.extend(join_all(carried).await.into_iter().flatten());
    }
}

fn not_carried_out(status: &Status) {
    tracing::debug!(error = status.message(), "a report waits to be said again");
}

/// Whether a report has to be proposed, as far as this member knows.
///
/// # Errors
/// Why nobody would carry it out.
fn is_news(
    context: &Context,
    caller: &Caller,
    report: &v1::InstanceReport,
) -> Result<bool, Status> {
    let command = checked(command::registry::update(message(context, report)))?;
    let RegistryCommand::Update(update) = command else { return Err(mismatch()) };
    let key = registry::key(&update.service, &update.id);
    let part = RightsCheck::ReadWrite(vec![(key, Bytes::new())]);
    // Who may not read it must not learn what it says. Apply has the last word on rights.
    if context.auth.check_by_name(caller, &part).is_err() {
        return Ok(true);
    }
    let is_news = registry::is_news(context.node.reader(), &update);
    is_news.map_err(|halt| status::internal(&halt))
}

/// Why a report was refused, if it was.
async fn propose(
    context: &Context,
    caller: &Caller,
    report: &v1::InstanceReport,
) -> Option<Status> {
    let update = Message::RegistryUpdate(message(context, report));
    // What the streams of this member report at about the same time shares an entry.
    match context.offer(caller, update, Haste::Patient).await {
        Ok(applied) => applied.outcome.err().map(|rejection| status::from_rejection(&rejection)),
        Err(status) => {
            not_carried_out(&status);
            None
        }
    }
}

fn message(context: &Context, report: &v1::InstanceReport) -> internal::RegistryUpdate {
    let request = v1::InstanceUpdateRequest {
        service: report.service.clone(),
        id: report.id.clone(),
        session: report.session,
        fence: report.fence,
        health: report.health,
        output: report.output.clone(),
        weight: report.weight,
        ..v1::InstanceUpdateRequest::default()
    };
    let damping = context.node.settings().registry.is_damping;
    internal::RegistryUpdate { request: Some(request), now_unix_ms: unix_ms(), damping }
}
