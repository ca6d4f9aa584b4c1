//! gRPC-web, which browsers speak: over HTTP/1.1, with the trailers sent as a last message.
//!
//! Such a call is translated to an ordinary one; gRPC calls do not come here.

use std::convert::Infallible;
use std::fmt::Display;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version, header};
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::{BoxError, Layer as _, Service as _};

use super::route::Router;

/// Prefix of the content type of a gRPC call.
const GRPC: &[u8] = b"application/grpc";
/// What follows the prefix if the call is gRPC-web.
const WEB: &[u8] = b"-web";

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// gRPC.
    Grpc,
    /// gRPC-web.
    GrpcWeb,
    /// Neither.
    Http,
}

impl Kind {
    /// Decides by the content type; gRPC itself needs HTTP/2.
    pub(super) fn of(version: Version, headers: &HeaderMap) -> Self {
        let content_type = headers.get(header::CONTENT_TYPE);
        match content_type.and_then(|value| value.as_bytes().strip_prefix(GRPC)) {
            Some(rest) if rest.starts_with(WEB) => Self::GrpcWeb,
            Some(_) if version == Version::HTTP_2 => Self::Grpc,
            Some(_) | None => Self::Http,
        }
    }
}

/// Answers a gRPC-web call.
pub(super) async fn answer<B>(router: &Router, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Display,
{
    let service = tower::service_fn(move |mut request: Request<Body>| async move {
        *request.version_mut() = Version::HTTP_2;
        Ok::<_, Infallible>(router.call(request).await)
    });
    let Ok(response) = GrpcWebLayer::new().layer(service).call(request).await;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_says_how_a_request_calls() {
        for (value, kind) in [
            ("application/grpc", Kind::Grpc),
            ("application/grpc+proto", Kind::Grpc),
            ("application/grpc-web", Kind::GrpcWeb),
            ("application/grpc-web-text+proto", Kind::GrpcWeb),
            ("application/json", Kind::Http),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(Kind::of(Version::HTTP_2, &headers), kind, "{value}");
            let older = if kind == Kind::Grpc { Kind::Http } else { kind };
            assert_eq!(Kind::of(Version::HTTP_11, &headers), older, "{value}");
        }
        assert_eq!(Kind::of(Version::HTTP_2, &HeaderMap::new()), Kind::Http);
    }
}
