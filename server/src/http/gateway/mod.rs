//! The JSON gateway: every RPC as a `POST` of JSON, at the paths that etcd gives them.
//!
//! A request becomes a gRPC call of this process itself, with the caller's token, so what a call may do and
//! what it answers is decided in one place for both. Nothing here knows a message: what they look like is read
//! from the descriptors of the .proto files.
//!
//! No call here is that of a certificate's owner: a browser sends a `POST` for any page, with the certificate that
//! it has for this server, and asks nobody before.
//!
//! | module | what |
//! |---|---|
//! | `path` | which path is which method |
//! | `values` | a body as JSON values |
//! | `codec` | messages that are known by their descriptor only, and their JSON |
//! | `forms` | values in JSON that Go's reader takes, too |
//! | `room` | how much is received |
//! | `rest` | what is left of a body when its request is answered |
//! | `socket`, `metered` | calls by web socket, and what they receive |
//! | `answer` | answers and failures as grpc-gateway writes them |

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

/// Headers that become metadata as they are: who calls, and until when.
const KEPT_HEADERS: [&str; 3] = ["authorization", "token", "grpc-timeout"];
/// The last of them.
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What this is put in front of becomes metadata without it.
const METADATA_PREFIX: &str = "grpc-metadata-";
/// What etcd's gateway says to whoever has a certificate with a name while calls need a user.
const CERTIFIED: &str = "CommonName of client sending a request against gateway will be ignored and not used as expected\n";

/// The answer of the gateway where it has no method, as in etcd; `None` where that is no path of its own.
pub(super) fn nowhere(uri: &Uri) -> Option<Response<Body>> {
    if uri.path() == "/v3" {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        return Some(place::moved(&format!("/v3/{query}")));
    }
    let is_own = ["/v3/", "/v3beta/"].iter().any(|root| uri.path().starts_with(root));
    is_own.then(|| pages::text(StatusCode::NOT_FOUND, "Not Found\n".to_owned()))
}

/// Refuses a caller whose certificate would make it a user of gRPC, as etcd does, also one with a token: a call that
/// is answered to nobody, or to somebody else, would surprise it.
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
        // The call tells why, once the caller has begun to speak: by web socket it may not listen before.
        drop(tokio::time::timeout(room.patience, body.frame()).await);
        stream::empty().boxed()
    } else {
        let bounds = Bounds { room, is_single: !method.is_client_streaming() };
        match requests(&method, Values::new(body, bounds)).await {
            Ok(requests) => requests,
            // Also of a stream, which has not begun.
            Err(status) => return answer::failure(&status),
        }
    };
    // Of a stream, until it has begun to answer.
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

/// The path by which gRPC knows a method.
fn path_of(method: &MethodDescriptor) -> PathAndQuery {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    PathAndQuery::try_from(path).expect("invariant: names of methods fit into a path")
}

/// The messages of a call as gRPC has them, the first of which is there.
///
/// # Errors
/// If that one cannot be read.
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
    // As in etcd a later one that cannot be read ends the requests, not the answers.
    let others = stream::unfold(values, move |mut values| {
        let input = input.clone();
        async move {
            let value = values.next().await.ok()??;
            Some((codec::encode(input, &value).ok()?, values))
        }
    });
    Ok(stream::iter(first).chain(others).boxed())
}

/// The answers of a call, the first of which is there: only then is it known whether it fails.
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

/// Makes a call that may take so long. One that fails later failed for that, if it noticed first: a wait for a lock says
/// so in other words.
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

/// How long the caller waits for an answer, as it says in the header that gRPC has for it.
///
/// # Errors
/// If that cannot be read.
fn patience(headers: &HeaderMap) -> Result<Duration, Status> {
    let Some(text) = headers.get(TIMEOUT) else { return Ok(Duration::MAX) };
    let metadata = MetadataMap::from_headers(HeaderMap::from_iter([(TIMEOUT, text.clone())]));
    context::deadline(&metadata).ok_or_else(|| {
        let text = String::from_utf8_lossy(text.as_bytes());
        Status::invalid_argument(format!("invalid grpc-timeout: {text}"))
    })
}

/// What a call is told of the headers of its request.
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
