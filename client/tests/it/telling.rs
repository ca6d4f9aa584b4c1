//! What an observed program learns about its calls, and what servers learn about them.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use conclave_client::{Client, Error, http::HeaderValue};
use parking_lot::Mutex;
use tonic::Status;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    instrument::WithSubscriber as _,
    span::{Attributes, Id, Record},
};
use tracing_core::span::Current;

use crate::{SOON, fake::Fake, native::IMPATIENT};

/// Fields of a span by name.
#[derive(Debug, Default, Clone)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

/// Records the spans of this crate's client on one thread.
#[derive(Debug, Default, Clone)]
struct Noted(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    spans: Vec<(&'static Metadata<'static>, Fields)>,
    entered: Vec<Id>,
}

impl State {
    fn fields(&mut self, id: &Id) -> &mut Fields {
        let index = usize::try_from(id.into_u64()).expect("a small number") - 1;
        &mut self.spans[index].1
    }
}

impl Subscriber for Noted {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("conclave_client")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        span.record(&mut fields);
        let mut state = self.0.lock();
        state.spans.push((span.metadata(), fields));
        Id::from_u64(state.spans.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        values.record(self.0.lock().fields(span));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, span: &Id) {
        self.0.lock().entered.push(span.clone());
    }

    fn exit(&self, _: &Id) {
        self.0.lock().entered.pop();
    }

    fn current_span(&self) -> Current {
        let state = self.0.lock();
        let Some(id) = state.entered.last() else { return Current::none() };
        let index = usize::try_from(id.into_u64()).expect("a small number") - 1;
        Current::new(id.clone(), state.spans[index].0)
    }
}

#[tokio::test]
async fn every_attempt_is_a_span_with_its_outcome() {
    let fake = Fake::start();
    fake.script.add_answers.lock().push_back(Err(Status::unavailable("etcdserver: no leader")));
    let noted = Noted::default();
    let client = Client::builder([fake.endpoint()]).timeout(SOON).build().unwrap();
    let adding = async { client.counter("c").add(1).await };
    adding.with_subscriber(noted.clone()).await.unwrap();
    let spans: Vec<Fields> = noted.0.lock().spans.iter().map(|span| span.1.clone()).collect();
    let expect = |number: &str, outcome: &str| {
        let of = |name: &'static str, value: String| (name, value);
        BTreeMap::from([
            of("method", "/conclave.v1.CounterService/Add".to_owned()),
            of("endpoint", fake.endpoint()),
            of("number", number.to_owned()),
            of("outcome", outcome.to_owned()),
        ])
    };
    let spans: Vec<_> = spans.into_iter().map(|fields| fields.0).collect();
    assert_eq!(spans, [expect("1", "Unavailable"), expect("2", "Ok")]);
}

#[tokio::test]
async fn every_call_takes_the_headers_of_its_program_along() {
    let fake = Fake::start();
    fake.script.token.store(7, Ordering::Relaxed);
    let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let client = Client::builder([fake.endpoint()]).user("ann", "secret").headers(move |headers| {
        headers.insert("traceparent", HeaderValue::from_static(context));
    });
    let client = client.build().unwrap();
    let session = client.session().await.unwrap();
    let lock = session.lock("x").await.unwrap();
    lock.release().await.unwrap();
    let traced = fake.script.traced.lock().clone();
    assert!(traced.len() >= 3, "{traced:?}");
    assert!(traced.iter().all(|traced| traced == context), "{traced:?}");
}

/// So that servers do not work on abandoned calls.
#[tokio::test]
async fn servers_learn_how_long_a_caller_waits() {
    let fake = Fake::start();
    let script = &fake.script;
    let client =
        Client::builder([fake.endpoint()]).timeout(Duration::from_secs(50)).build().unwrap();
    let told = |call: &str| {
        let told = std::mem::take(&mut *script.timeouts.lock());
        assert!(!told.is_empty(), "{call}");
        for told in told {
            let ms: u64 = told.strip_suffix('m').expect("milliseconds").parse().unwrap();
            assert!((1..=50_000).contains(&ms), "{call}: {told}");
        }
    };
    let session = client.session().ttl(Duration::from_secs(600)).await.unwrap();
    told("a session");
    // The deadline is sent whether or not the calls succeed.
    client.get("a").await.unwrap_err();
    told("a read");
    client.put("a", "1").await.unwrap_err();
    told("a write");
    client.lease_grant(9, 0).await.unwrap_err();
    told("a lease");
    let registration = client.service("s").register("h:1").session(&session).await.unwrap();
    told("a registration");
    registration.deregister().await.unwrap();
    told("its end");
    session.lock("x").await.unwrap().release().await.unwrap();
    told("a release");
}

#[tokio::test]
async fn a_server_may_be_the_first_to_notice_that_the_time_is_over() {
    let fake = Fake::start();
    let client = Client::builder([fake.endpoint()]).timeout(SOON).build().unwrap();
    let late = Status::deadline_exceeded("context deadline exceeded");
    fake.script.failure.lock().replace(late);
    let error = client.lease_grant(9, 0).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    let read = client.with_timeout(IMPATIENT).get("a").await.unwrap_err();
    assert!(matches!(read, Error::Deadline { .. }), "{read:?}");
}
