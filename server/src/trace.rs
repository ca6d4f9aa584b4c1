//! Spans of calls for OpenTelemetry: one for each call that a client has traced, or that is chosen by
//! chance, from its arrival until its last answer has left. Sent to a collector by OTLP in the
//! background; what it does not take in time is lost, and no call waits for it.
//!
//! Without `--enable-distributed-tracing` there is no [`Tracer`], and a call asks for one, no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{KeyValue, Value};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanExporter,
};
use tonic::Code;
use tonic::body::Body;

use crate::config::TraceSettings;
use crate::version;

/// Spans that wait to be sent; beyond, they are lost.
const QUEUE_SPANS_MAX: usize = 4_096;
/// Spans that are sent together.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch, and for all that is left when the server stops.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a span keeps of texts that a caller chooses: the call's name, and the state of its trace. Longer ones
/// are cut, or left out.
const TEXT_BYTES_MAX: usize = 512;
/// Where a call's outcome stands.
const OUTCOME: &str = "grpc-status";

/// Makes spans and sends them.
#[derive(Debug)]
pub(crate) struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    parents: TraceContextPropagator,
}

/// The headers of a request.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?;
        value.to_str().ok().filter(|text| text.len() <= TEXT_BYTES_MAX)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

impl Tracer {
    /// Connects when there is something to send; within a runtime.
    ///
    /// # Errors
    /// If the address is none.
    pub(crate) fn new(settings: &TraceSettings) -> Result<Self, ExporterBuildError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(settings.endpoint.clone())
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let exporter = Told { exporter, is_failing: AtomicBool::new(false) };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SPANS_MAX)
            .with_max_export_batch_size(BATCH_SPANS_MAX)
            .with_scheduled_delay(BATCH_INTERVAL)
            .build();
        let mut resource = Resource::builder_empty()
            .with_service_name(settings.service_name.clone())
            .with_attribute(KeyValue::new("service.version", version::CONCLAVE));
        if let Some(instance) = &settings.instance_id {
            let instance = KeyValue::new("service.instance.id", instance.clone());
            resource = resource.with_attribute(instance);
        }
        // As in etcd: whoever calls decides for its own calls, chance for those without a parent.
        let root = Sampler::TraceIdRatioBased(f64::from(settings.samples_per_million) / 1e6);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(
                BatchSpanProcessor::builder(exporter).with_batch_config(batches).build(),
            )
            .with_sampler(Sampler::ParentBased(Box::new(root)))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("conclave");
        Ok(Self { provider, tracer, parents: TraceContextPropagator::new() })
    }

    /// Begins the span of a call.
    pub(crate) fn begin<B>(&self, request: &Request<B>) -> CallSpan {
        let parent = self.parents.extract(&Headers(request.headers()));
        let name = request.uri().path().trim_start_matches('/');
        let name = &name[..name.floor_char_boundary(TEXT_BYTES_MAX)];
        let (service, method) = name.split_once('/').unwrap_or((name, ""));
        let attributes = [
            ("rpc.system", Value::from("grpc")),
            ("rpc.service", Value::from(service.to_owned())),
            ("rpc.method", Value::from(method.to_owned())),
        ];
        let attributes = attributes.map(|(key, value)| KeyValue::new(key, value));
        let span = self.tracer.span_builder(name.to_owned()).with_kind(SpanKind::Server);
        let span = span.with_attributes(attributes).start_with_context(&self.tracer, &parent);
        CallSpan(span)
    }

    /// Sends what is left.
    pub(crate) async fn end(self: Arc<Self>) {
        // It waits for the thread that sends, which the collector may keep.
        let ended = tokio::task::spawn_blocking(move || {
            self.provider.shutdown_with_timeout(EXPORT_TIMEOUT)
        });
        if !matches!(ended.await, Ok(Ok(()))) {
            tracing::warn!("the last spans were not sent");
        }
    }
}

/// An exporter that says when it begins to fail, and when it does no more.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    is_failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !was_failing => {
                tracing::warn!(%error, "spans are lost: the collector does not take them");
            }
            Ok(()) if was_failing => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The span of one call; it ends when this is dropped.
pub(crate) struct CallSpan(Span);

impl CallSpan {
    /// Follows an answer to its end.
    pub(crate) fn follow(mut self, answer: Response<Body>) -> Response<Body> {
        if !self.0.is_recording() {
            return answer;
        }
        self.see(answer.headers());
        answer.map(|body| {
            Body::new(body.inspect_frame(move |frame| {
                if let Some(trailers) = frame.trailers_ref() {
                    self.see(trailers);
                }
            }))
        })
    }

    /// Notes the outcome, if it is there.
    fn see(&mut self, headers: &HeaderMap) {
        let Some(code) = headers.get(OUTCOME) else { return };
        let code = Code::from_bytes(code.as_bytes());
        self.0.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)));
        if code != Code::Ok {
            self.0.set_status(Status::error(code.description()));
        }
    }
}
