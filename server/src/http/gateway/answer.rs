//! Answers and errors, in the forms of the grpc-gateway versions that etcd has used.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use prost_reflect::DynamicMessage;
use serde_json::json;
use tonic::Status;
use tonic::body::Body;

use super::codec;
use crate::status;

/// The answers of a call.
pub(super) type Answers = BoxStream<'static, Result<DynamicMessage, Status>>;

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// A successful answer. etcd's gateway passes on gRPC's own content type as a header.
fn success(body: Body) -> Response<Body> {
    let mut response = response(StatusCode::OK, body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(HeaderName::from_static("grpc-metadata-content-type"), grpc);
    response
}

/// The answer of a unary call.
pub(super) fn one(message: &DynamicMessage) -> Response<Body> {
    let mut json = Vec::new();
    codec::write(message, &mut json);
    success(Body::new(Full::new(Bytes::from(json))))
}

/// The answer of a failed call.
pub(super) fn failure(failed: &Status) -> Response<Body> {
    // Formatted by hand to keep the order of fields, which a map would not.
    let message = json!(failed.message());
    let code = failed.code() as i32;
    let text = format!(r#"{{"error":{message},"code":{code},"message":{message},"details":[]}}"#);
    response(status::http(failed.code()), Body::new(Full::new(Bytes::from(text))))
}

/// The answer of a stream that failed before its first message.
pub(super) fn failed_stream(failed: &Status) -> Response<Body> {
    let line = Bytes::from(last_line(failed));
    response(status::http(failed.code()), Body::new(Full::new(line)))
}

/// Streams the answers, one per line.
pub(super) fn lines(answers: Answers) -> Response<Body> {
    let lines = answers.map(|answer| {
        let line = match answer {
            Ok(message) => line(&message),
            Err(failed) => last_line(&failed),
        };
        Ok::<_, Infallible>(Frame::data(Bytes::from(line)))
    });
    success(Body::new(StreamBody::new(lines)))
}

fn line(message: &DynamicMessage) -> Vec<u8> {
    let mut line = br#"{"result":"#.to_vec();
    codec::write(message, &mut line);
    line.extend_from_slice(b"}\n");
    line
}

/// The last line of a failed stream, with the fields of etcd's gateway up to 3.5.1 and those of
/// later releases.
fn last_line(failed: &Status) -> Vec<u8> {
    let http = status::http(failed.code());
    let (code, http_code) = (failed.code() as i32, http.as_u16());
    let (message, name) = (json!(failed.message()), json!(http.canonical_reason()));
    let early = format!(
        r#""grpc_code":{code},"http_code":{http_code},"message":{message},"http_status":{name}"#
    );
    format!("{{\"error\":{{{early},\"code\":{code},\"details\":[]}}}}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::*;

    fn text(answer: Response<Body>) -> String {
        let body = answer.into_body().collect().now_or_never().unwrap().unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn failures_have_the_fields_of_both_gateways() {
        let failed = Status::unavailable("no \"leader\"");
        let unary = r#"{"error":"no \"leader\"","code":14,"message":"no \"leader\"","details":[]}"#;
        assert_eq!(text(failure(&failed)), unary);
        let line = concat!(
            r#"{"error":{"grpc_code":14,"http_code":503,"message":"no \"leader\"","#,
            r#""http_status":"Service Unavailable","code":14,"details":[]}}"#,
            "\n",
        );
        assert_eq!(text(failed_stream(&failed)), line);
        let answers = futures::stream::iter([Err(failed)]).boxed();
        assert_eq!(text(lines(answers)), line);
    }
}
