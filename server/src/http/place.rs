//! Normalises request paths as Go's server does: escapes are decoded, and a client with a
//! roundabout path is redirected to the direct one.

use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use tonic::body::Body;

use super::pages;

/// The request with its path decoded.
///
/// # Errors
/// The answer to a path that is redirected or malformed.
pub(super) fn straight<B>(mut request: Request<B>) -> Result<Request<B>, Box<Response<Body>>> {
    let path = request.uri().path();
    if is_plain(path) {
        return Ok(request);
    }
    let Some(meant) = unescape(path.as_bytes()) else {
        let text = format!("the path {path:?} has an escape that is none\n");
        return Err(Box::new(pages::text(StatusCode::BAD_REQUEST, text)));
    };
    let clean = clean(&meant);
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    if clean != meant {
        return Err(Box::new(moved(&(escape(&clean) + &query))));
    }
    // No page has other characters, so a path that cannot be rewritten may stay as it is.
    if let Ok(place) = PathAndQuery::try_from(escape(&meant) + &query) {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(place);
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_else(|_| request.uri().clone());
    }
    Ok(request)
}

/// A redirect to another path on this server.
pub(super) fn moved(to: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

/// Whether a path needs no normalisation, which is true of almost all.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && !["%", "//", "/."].iter().any(|odd| path.contains(odd))
}

/// Decodes escapes; `None` if one is cut off or not hexadecimal.
fn unescape(path: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut meant = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                (u8::try_from(digit(high)? * 16 + digit(low)?).ok()?, tail)
            }
            (b'%', _) => return None,
            (byte, tail) => (*byte, tail),
        };
        meant.push(byte);
        rest = tail;
    }
    Some(meant)
}

/// Removes empty parts, `.` and `..` from a path; a trailing slash stays.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    let mut clean = [b"/", parts.join(&b'/').as_slice()].concat();
    if path.ends_with(b"/") && !parts.is_empty() {
        clean.push(b'/');
    }
    clean
}

/// Encodes a path for a URL.
fn escape(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"/-._~$&+,:;=@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.extend(['%', hex(byte >> 4), hex(byte & 15)]);
        }
    }
    text
}

fn hex(digit: u8) -> char {
    char::from_digit(digit.into(), 16).unwrap_or('0').to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path that a request for `uri` gets, or the status and location of the answer.
    fn place(uri: &'static str) -> Result<String, (u16, String)> {
        let request = Request::builder().uri(uri).body(()).unwrap();
        match straight(request) {
            Ok(request) => Ok(request.uri().to_string()),
            Err(answer) => {
                let to = answer.headers().get(header::LOCATION).map(|to| to.to_str().unwrap());
                Err((answer.status().as_u16(), to.unwrap_or_default().to_owned()))
            }
        }
    }

    #[test]
    fn escapes_stand_for_what_they_mean() {
        for (uri, meant) in [
            ("/v3/kv/range?a=%61", "/v3/kv/range?a=%61"),
            ("/v3/kv/r%61nge?a=//b", "/v3/kv/range?a=//b"),
            ("/livez%2Fserializable_read", "/livez/serializable_read"),
            ("/a%20b%3f%c3%A4", "/a%20b%3F%C3%A4"),
            ("/v3/kv/..a/", "/v3/kv/..a/"),
        ] {
            assert_eq!(place(uri).as_deref(), Ok(meant), "{uri}");
        }
        for uri in ["/v3/%", "/%6", "/%zz"] {
            assert_eq!(place(uri), Err((400, String::new())), "{uri}");
        }
    }

    #[test]
    fn roundabout_paths_lead_to_the_straight_one() {
        for (uri, to) in [
            ("//v3/kv/range", "/v3/kv/range"),
            ("/v3//kv/range?a=b", "/v3/kv/range?a=b"),
            ("/v3/kv/../kv/range", "/v3/kv/range"),
            ("/v3/./kv/range/", "/v3/kv/range/"),
            ("/%2e%2E/../health", "/health"),
            ("/v3/..", "/"),
            ("/a//%0D%0Ab", "/a/%0D%0Ab"),
            ("////", "/"),
        ] {
            assert_eq!(place(uri), Err((301, to.to_owned())), "{uri}");
        }
    }
}
