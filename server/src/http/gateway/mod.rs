//! The JSON gateway: every RPC as a `POST` of JSON, at etcd's paths.
//!
//! A request becomes a gRPC call to this process itself, with the caller's token, so that
//! permissions and answers are decided in one place for both. No message type is known here; their
//! forms are read from the descriptors of the .proto files.
//!
//! A client certificate never authenticates a user here: a browser sends a `POST` for any page,
//! with the certificate it has for this server and without asking anybody.
//!
//! | module | what |
//! |---|---|
//! | `path` | maps paths to methods |
//! | `values` | splits a body into JSON values |
//! | `codec` | messages known by their descriptor only, and their JSON |
//! | `forms` | forms of JSON values that only Go's reader takes |
//! | `room` | limits how much is received |
//! | `rest` | reads what is left of a body when its request is answered |
//! | `socket`, `metered` | calls over web sockets, and limits on what they receive |
//! | `answer` | answers and errors as grpc-gateway writes them |

mod answer;
mod codec;
mod forms;
mod metered;
mod path;
mod rest;
mod room;
mod socket;
mod values;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use prost_reflect::MethodDescriptor;
use tonic::Status;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;

pub(super) use self::path::find;
pub(super) use self::rest::Rest;
pub(super) use self::room::Rooms;
pub(super) use self::socket::{SOCKETS_MAX, answer as socket, is_wanted as is_socket};

use self::codec::DynamicCodec;
use self::values::{Bounds, Values};
use super::route::{Hearing, Router};
use super::{deadline, pages, place};
use crate::api::context;
use crate::status;

/// Headers passed on as metadata unchanged: token and deadline.
const KEPT_HEADERS: [&str; 3] = ["authorization", "token", "grpc-timeout"];
/// The gRPC deadline header.
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Headers with this prefix become metadata without it.
const METADATA_PREFIX: &str = "grpc-metadata-";
/// etcd's text for a caller whose certificate has a common name while authentication is on.
const CERTIFIED: &str = "CommonName of client sending a request against gateway will be ignored and not used as expected\n";

/// The gateway's answer for a path without a method, as in etcd; `None` if the path is not one of
/// its own.
pub(super) fn nowhere(uri: &Uri) -> Option<Response<Body>> {
    if uri.path() == "/v3" {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        return Some(place::moved(&format!("/v3/{query}")));
    }
    let is_own = ["/v3/", "/v3beta/"].iter().any(|root| uri.path().starts_with(root));
    is_own.then(|| pages::text(StatusCode::NOT_FOUND, "Not Found\n".to_owned()))
}

/// Refuses a caller whose certificate would make it a user in gRPC, as etcd does, even if it has a
/// token: a call made as nobody or as another user would surprise it.
pub(super) fn certified() -> Response<Body> {
    pages::text(StatusCode::BAD_REQUEST, CERTIFIED.to_owned())
}

/// Answers a `POST` of JSON.
pub(super) async fn answer<B>(
    router: &Router,
    method: MethodDescriptor,
    request: Request<B>,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    let (head, mut body) = request.into_parts();
    let patience = match patience(&head.headers) {
        Ok(patience) => patience,
        Err(status) => return answer::failure(&status),
    };
    let is_stream = method.is_server_streaming();
    let path = path_of(&method);
    let hearing = router.hearing(path.path(), &metadata(&head.headers), &head.extensions).await;
    let room = router.rooms.of(hearing).clone();
    let requests = if hearing == Hearing::Nothing {
        // The call will say why it is refused, but only once the client has begun to send: over a
        // web socket it may not read before.
        drop(tokio::time::timeout(room.patience, body.frame()).await);
        stream::empty().boxed()
    } else {
        let bounds = Bounds { room, is_single: !method.is_client_streaming() };
        match requests(&method, Values::new(body, bounds)).await {
            Ok(requests) => requests,
            // For a stream too, because it has not begun.
            Err(status) => return answer::failure(&status),
        }
    };
    // For a stream, the time until its first answer.
    match in_time(patience, call(router, &method, head, requests)).await {
        Ok(answers) if is_stream => answer::lines(answers),
        Ok(mut answers) => match answers.next().await {
            Some(Ok(message)) => answer::one(&message),
            Some(Err(status)) => answer::failure(&status),
            None => answer::failure(&status::no_answer()),
        },
        Err(status) if is_stream => answer::failed_stream(&status),
        Err(status) => answer::failure(&status),
    }
}

/// The gRPC path of a method.
fn path_of(method: &MethodDescriptor) -> PathAndQuery {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    PathAndQuery::try_from(path).expect("invariant: names of methods fit into a path")
}

/// The encoded messages of a call; returns once the first has been read.
///
/// # Errors
/// If the first message cannot be read.
async fn requests<B>(
    method: &MethodDescriptor,
    mut values: Values<B>,
) -> Result<BoxStream<'static, Bytes>, Status>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    let input = method.input();
    let first = match values.next().await? {
        Some(value) => Some(codec::encode(input.clone(), &value)?),
        None => None,
    };
    if !method.is_client_streaming() {
        // No bytes are a message without fields.
        return Ok(stream::iter([first.unwrap_or_default()]).boxed());
    }
    // As in etcd, a later message that cannot be read ends the requests, not the answers.
    let others = stream::unfold(values, move |mut values| {
        let input = input.clone();
        async move {
            let value = values.next().await.ok()??;
            Some((codec::encode(input, &value).ok()?, values))
        }
    });
    Ok(stream::iter(first).chain(others).boxed())
}

/// Makes a call; returns once its first answer has arrived, because only then is it known whether
/// it fails.
async fn call(
    router: &Router,
    method: &MethodDescriptor,
    head: Parts,
    requests: BoxStream<'static, Bytes>,
) -> Result<answer::Answers, Status> {
    let path = path_of(method);
    let codec = DynamicCodec { answer: method.output() };
    let mut request = tonic::Request::new(requests);
    *request.metadata_mut() = MetadataMap::from_headers(metadata(&head.headers));
    *request.extensions_mut() = head.extensions;
    let service = tower::service_fn(|request| async {
        Ok::<_, std::convert::Infallible>(router.call(request).await)
    });
    let mut client = Grpc::new(service).max_decoding_message_size(usize::MAX);
    let mut answers = client.streaming(request, path, codec).await?.into_inner();
    match answers.next().await {
        None => Ok(stream::empty().boxed()),
        Some(first) => Ok(stream::iter([Ok(first?)]).chain(answers).boxed()),
    }
}

/// Limits a call to `patience`. A failure after that counts as a timeout even if the call noticed
/// first: a wait for a lock words it differently.
async fn in_time<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let begin = Instant::now();
    match tokio::time::timeout(patience, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) if begin.elapsed() < patience => Err(status),
        Ok(Err(_)) | Err(_) => Err(deadline::too_late()),
    }
}

/// The timeout that the caller gives in gRPC's deadline header; without the header there is none.
///
/// # Errors
/// If the header is malformed.
fn patience(headers: &HeaderMap) -> Result<Duration, Status> {
    let Some(text) = headers.get(TIMEOUT) else { return Ok(Duration::MAX) };
    let metadata = MetadataMap::from_headers(HeaderMap::from_iter([(TIMEOUT, text.clone())]));
    context::deadline(&metadata).ok_or_else(|| {
        let text = String::from_utf8_lossy(text.as_bytes());
        Status::invalid_argument(format!("invalid grpc-timeout: {text}"))
    })
}

/// The metadata of a call, from the headers of its request.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let kept = if KEPT_HEADERS.contains(&name.as_str()) {
            Some(name.clone())
        } else {
            let name = name.as_str().strip_prefix(METADATA_PREFIX);
            name.and_then(|name| HeaderName::try_from(name).ok())
        };
        if let Some(name) = kept {
            metadata.append(name, value.clone());
        }
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_hears_of_its_caller_and_of_what_is_marked() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("grpc-metadata-hasleader", "true"),
            ("cookie", "secret"),
            ("host", "a"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let metadata = metadata(&headers);
        assert_eq!(metadata.len(), 2);
        assert_eq!(metadata.get("authorization").unwrap(), "Bearer x");
        assert_eq!(metadata.get("hasleader").unwrap(), "true");
    }
}
