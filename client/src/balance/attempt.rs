//! One attempt of a call, whose outcome is reported to the instance's node and to the policy.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tonic::{Code, Status, body::Body};

use super::{
    Balancer,
    breaker::BreakerOptions,
    node::{InFlight, Outcome},
    snapshot::Pick,
};

/// An attempt in progress. Dropping it without a result means that the caller canceled it or that
/// its time was up.
pub(super) struct Attempt {
    pick: Pick,
    in_flight: InFlight,
    policy: Arc<dyn Balancer>,
    breaker: BreakerOptions,
    start: Instant,
    /// When the answer must have begun.
    deadline: Option<Instant>,
    is_done: bool,
}

impl Attempt {
    pub(super) fn begin(
        pick: Pick,
        policy: &Arc<dyn Balancer>,
        breaker: BreakerOptions,
        deadline: Instant,
    ) -> Self {
        Self {
            in_flight: pick.node.enter(),
            pick,
            policy: Arc::clone(policy),
            breaker,
            start: Instant::now(),
            deadline: Some(deadline),
            is_done: false,
        }
    }

    /// Records that no answer came.
    pub(super) fn failed(mut self, is_sent: bool) {
        let latency = self.start.elapsed();
        self.done(if is_sent { Outcome::Failure { latency } } else { Outcome::NotSent });
    }

    /// Records that the answer has begun. Its trailers, if it has any, show how it ends.
    pub(super) fn answered(mut self, response: http::Response<Body>) -> http::Response<Body> {
        let latency = self.start.elapsed();
        self.deadline = None;
        match is_failure(response.headers()) {
            Some(true) => self.done(Outcome::Failure { latency }),
            Some(false) => self.done(Outcome::Success { latency }),
            None => {}
        }
        self.in_flight.answered();
        let success = Outcome::Success { latency };
        response.map(|body| Body::new(Answer { body, attempt: self, success }))
    }

    fn done(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.is_done, true) {
            return;
        }
        if self.in_flight.node().done(outcome, &self.breaker, Instant::now()) {
            let instance = &self.pick.node.instance().id;
            tracing::warn!(instance, "the instance keeps failing and is left alone for a while");
        }
        self.policy.done(&self.pick, outcome);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let is_late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let latency = self.start.elapsed();
        self.done(if is_late { Outcome::Failure { latency } } else { Outcome::Canceled });
    }
}

/// Whether headers or trailers end the call, and if so, whether they mean that the instance could
/// not serve, not that the request was wrong.
fn is_failure(headers: &HeaderMap) -> Option<bool> {
    let status = Status::from_header_map(headers)?;
    Some(matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Internal
            | Code::DataLoss
    ))
}

/// The body of an answer; the call is in flight until it ends.
struct Answer {
    body: Body,
    attempt: Attempt,
    /// The outcome if nothing goes wrong from here on.
    success: Outcome,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let latency = self.attempt.start.elapsed();
        let outcome = match &frame {
            Some(Ok(frame)) => match frame.trailers_ref().and_then(is_failure) {
                Some(true) => Some(Outcome::Failure { latency }),
                Some(false) => Some(self.success),
                None => None,
            },
            Some(Err(_)) => Some(Outcome::Failure { latency }),
            None => Some(self.success),
        };
        if let Some(outcome) = outcome {
            self.attempt.done(outcome);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request. It may be sent to another instance as long as it has not been polled; it
/// is not polled while a connection is being made.
pub(super) struct Resend {
    body: Arc<Mutex<Body>>,
    is_touched: Arc<AtomicBool>,
}

impl Resend {
    pub(super) fn new(body: Body) -> Self {
        Self { body: Arc::new(Mutex::new(body)), is_touched: Arc::default() }
    }

    /// The body, for one attempt.
    pub(super) fn handle(&self) -> Body {
        let (body, is_touched) = (Arc::clone(&self.body), Arc::clone(&self.is_touched));
        Body::new(Self { body, is_touched })
    }

    /// Whether a part of it may have been sent.
    pub(super) fn is_touched(&self) -> bool {
        self.is_touched.load(Ordering::Acquire)
    }
}

impl http_body::Body for Resend {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.is_touched.store(true, Ordering::Release);
        Pin::new(&mut *self.body.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.lock().size_hint()
    }
}
