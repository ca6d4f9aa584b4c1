//! Counts calls of the client port: how many began, how they ended, and their messages.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::stream::Stream;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tonic::{Code, Response, Status};

use super::Labels;
use super::duration::Durations;
use super::method::Method;
use crate::config::Settings;
use crate::sparse::Sparse;
use crate::status::{self, CODES};

tokio::task_local! {
    /// Whether the current call is being dropped because its deadline has passed, and not because
    /// its client disconnected.
    pub(crate) static IS_LATE: Arc<AtomicBool>;
}

/// Answer stream of a call.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Counters of one method.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    started: Counter,
    /// By gRPC code.
    handled: [Counter; CODES],
    received: Counter,
    sent: Counter,
    /// Durations, if they are measured.
    handling: Option<Histogram>,
    /// Durations of the calls that etcd always measures, by success.
    requests: Option<[Durations; 2]>,
    name: &'static str,
    /// `None` where calls wait by design, for example for a lock.
    slow: Option<Arc<Slow>>,
}

/// Logs a warning for slow unary calls.
#[derive(Debug)]
pub(super) struct Slow {
    /// etcd's `--warning-unary-request-duration`.
    pub(super) after: Duration,
    pub(super) lines: Sparse,
}

/// The gRPC health service, which needs no permissions and is not among our own services.
const HEALTH: &str = "grpc.health.v1.Health";

/// The counters of all methods.
pub(super) struct AllCalls {
    /// Indexed by method number.
    pub(super) methods: Vec<Arc<Calls>>,
    pub(super) health_check: Arc<Calls>,
    pub(super) health_watch: Arc<Calls>,
}

/// The metric families of all calls.
#[derive(Default)]
struct Families {
    started: Family<Labels<3>, Counter>,
    handled: Family<Labels<4>, Counter>,
    received: Family<Labels<3>, Counter>,
    sent: Family<Labels<3>, Counter>,
    /// Only if durations are measured.
    durations: Option<Family<Labels<3>, Histogram>>,
    requests: Family<Labels<2>, Durations>,
}

/// Registers the counters of all methods; with durations if the settings ask for them.
pub(super) fn register(registry: &mut Registry, settings: &Settings) -> AllCalls {
    let slow = Arc::new(Slow { after: settings.slow.request, lines: Sparse::default() });
    let mut families = Families::default();
    if settings.measures_calls {
        let durations = Family::<Labels<3>, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0005, 2.0, 16))
        });
        let help = "Durations of calls";
        registry.register("grpc_server_handling_seconds", help, durations.clone());
        families.durations = Some(durations);
    }
    let help = "Durations of requests";
    registry.register("etcd_server_request_duration_seconds", help, families.requests.clone());
    registry.register("grpc_server_handled", "Calls that ended", families.handled.clone());
    for (name, help, family) in [
        ("grpc_server_started", "Calls that began", &families.started),
        ("grpc_server_msg_received", "Messages from clients", &families.received),
        ("grpc_server_msg_sent", "Messages to clients", &families.sent),
    ] {
        registry.register(name, help, family.clone());
    }
    let of_method = |method: &Method| {
        let mut calls = families.calls(method.labels());
        let [_, (_, service), (_, name)] = method.labels();
        calls.slow = service.starts_with("etcdserverpb.").then(|| Arc::clone(&slow));
        calls.requests = method.is_measured().then(|| {
            ["false", "true"].map(|success| {
                let labels = [("type", name), ("success", success)];
                families.requests.get_or_create(&labels).clone()
            })
        });
        Arc::new(calls)
    };
    let of_health = |kind, name| {
        let labels = [("grpc_type", kind), ("grpc_service", HEALTH), ("grpc_method", name)];
        Arc::new(families.calls(labels))
    };
    AllCalls {
        methods: Method::ALL.iter().map(of_method).collect(),
        health_check: of_health("unary", "Check"),
        health_watch: of_health("server_stream", "Watch"),
    }
}

impl Families {
    /// The counters with these labels.
    fn calls(&self, labels: Labels<3>) -> Calls {
        let [kind, service, name] = labels;
        let code_counter = |code: usize| {
            let code = Code::from(i32::try_from(code).unwrap_or_default());
            let labels = [kind, service, name, ("grpc_code", status::code_name(code))];
            self.handled.get_or_create(&labels).clone()
        };
        Calls {
            started: self.started.get_or_create(&labels).clone(),
            handled: std::array::from_fn(code_counter),
            received: self.received.get_or_create(&labels).clone(),
            sent: self.sent.get_or_create(&labels).clone(),
            handling: self.durations.as_ref().map(|all| all.get_or_create(&labels).clone()),
            requests: None,
            name: name.1,
            slow: None,
        }
    }
}

impl Slow {
    fn see(&self, method: &str, took: Duration) {
        if took > self.after
            && let Some(unsaid) = self.lines.turn()
        {
            tracing::warn!(method, ?took, expected = ?self.after, unsaid, "a call took too long");
        }
    }
}

impl Calls {
    /// Counts a unary call.
    pub(crate) async fn unary<T>(
        self: &Arc<Self>,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let mut call = OpenCall::begin(Arc::clone(self));
        call.received(1);
        let answer = answer.await;
        let took = call.finish(answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
        if let Some(slow) = &self.slow {
            slow.see(self.name, took);
        }
        let answer = answer?;
        call.sent(1);
        Ok(Response::new(answer))
    }

    /// Counts a call with one request and a stream of answers.
    pub(crate) async fn stream<T: 'static>(
        self: &Arc<Self>,
        opened: impl Future<Output = Result<Answers<T>, Status>>,
    ) -> Result<Response<Answers<T>>, Status> {
        let mut call = OpenCall::begin(Arc::clone(self));
        match opened.await {
            Ok(answers) => Ok(Response::new(call.count(answers))),
            Err(status) => {
                call.end(status.code());
                Err(status)
            }
        }
    }

    fn took(&self, took: Duration, is_success: bool) {
        if let Some(requests) = &self.requests {
            requests[usize::from(is_success)].observe(took);
        }
        if let Some(handling) = &self.handling {
            handling.observe(took.as_secs_f64());
        }
    }

    /// Counts client messages of calls in progress.
    pub(crate) fn received(&self, messages: usize) {
        self.received.inc_by(messages as u64);
    }

    /// Counts a refused call.
    pub(crate) fn refuse(&self, status: &Status) {
        self.started.inc();
        self.handled[status.code() as usize].inc();
    }
}

/// A call in progress.
#[derive(Debug)]
pub(crate) struct OpenCall {
    calls: Arc<Calls>,
    began: Instant,
    has_ended: bool,
}

impl OpenCall {
    /// Counts the beginning of a call.
    pub(crate) fn begin(calls: Arc<Calls>) -> Self {
        calls.started.inc();
        Self { calls, began: Instant::now(), has_ended: false }
    }

    /// Counts messages from the client.
    pub(crate) fn received(&self, messages: u64) {
        self.calls.received.inc_by(messages);
    }

    /// Counts messages to the client.
    pub(crate) fn sent(&self, messages: u64) {
        self.calls.sent.inc_by(messages);
    }

    /// Counts the end of the call; only the first time.
    pub(crate) fn end(&mut self, code: Code) {
        if !self.has_ended {
            self.finish(code);
        }
    }

    /// Counts the end of the call; returns its duration.
    fn finish(&mut self, code: Code) -> Duration {
        let took = self.began.elapsed();
        self.has_ended = true;
        self.calls.handled[code as usize].inc();
        self.calls.took(took, code == Code::Ok);
        took
    }

    /// Counts the messages of `answers`, and its end.
    fn count<T: 'static>(self, answers: Answers<T>) -> Answers<T> {
        Box::pin(Counted { answers, call: self })
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        // A call is only dropped unfinished when its client disconnects or its deadline passes.
        let is_late = IS_LATE.try_with(|is_late| is_late.load(Ordering::Relaxed)).unwrap_or(false);
        self.end(if is_late { Code::DeadlineExceeded } else { Code::Cancelled });
    }
}

struct Counted<T> {
    answers: Answers<T>,
    call: OpenCall,
}

impl<T> Stream for Counted<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let answer = ready!(self.answers.as_mut().poll_next(cx));
        match &answer {
            Some(Ok(_)) => self.call.sent(1),
            Some(Err(status)) => self.call.end(status.code()),
            None => self.call.end(Code::Ok),
        }
        Poll::Ready(answer)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_call_that_is_given_up_has_ended() {
        let calls = Arc::new(Calls::default());
        assert!(calls.unary(std::future::pending::<Result<(), Status>>()).now_or_never().is_none());
        assert_eq!((calls.started.get(), calls.sent.get()), (1, 0));
        assert_eq!(calls.handled[Code::Cancelled as usize].get(), 1);
    }
}
