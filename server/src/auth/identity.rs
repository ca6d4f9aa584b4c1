//! What a call says about its caller: a token in the metadata, or the certificate of its connection.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

/// Where Go's client puts the token, and where browsers and other gRPC clients do. Names that are parsed already:
/// every call is asked for them.
static TOKEN_HEADERS: [HeaderName; 2] = [HeaderName::from_static("token"), AUTHORIZATION];
const BEARER: &str = "Bearer ";
/// Set by a JSON gateway: the connection's certificate is the gateway's, and not its caller's.
const GATEWAY_HEADER: &str = "grpcgateway-accept";

/// What a call says about its caller. Only the certificate is verified already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity<'a> {
    Nobody,
    Token(&'a str),
    Certificate(&'a str),
}

/// A token wins over a certificate, also a wrong one: whoever shows one wants to be its owner.
pub(super) fn of<'a>(headers: &'a HeaderMap, certificate: Option<&'a str>) -> Identity<'a> {
    if let Some(value) = TOKEN_HEADERS.iter().find_map(|name| headers.get(name)) {
        // What is not text is no token of ours.
        let token = value.to_str().unwrap_or_default();
        return Identity::Token(token.strip_prefix(BEARER).unwrap_or(token));
    }
    match certificate {
        Some(name) if !name.is_empty() && !headers.contains_key(GATEWAY_HEADER) => {
            Identity::Certificate(name)
        }
        Some(_) | None => Identity::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_token_comes_first_then_the_certificate() {
        let none = headers(&[]);
        assert_eq!(of(&none, None), Identity::Nobody);
        assert_eq!(of(&none, Some("ann")), Identity::Certificate("ann"));
        assert_eq!(of(&none, Some("")), Identity::Nobody);
        let token = headers(&[("token", "abc.1"), ("authorization", "other")]);
        assert_eq!(of(&token, Some("ann")), Identity::Token("abc.1"));
        let bare = headers(&[("authorization", "abc.1")]);
        assert_eq!(of(&bare, None), Identity::Token("abc.1"));
        let bearer = headers(&[("authorization", "Bearer abc.1")]);
        assert_eq!(of(&bearer, None), Identity::Token("abc.1"));
        let empty = headers(&[("token", "")]);
        assert_eq!(of(&empty, Some("ann")), Identity::Token(""), "shown, and wrong");
    }

    #[test]
    fn a_gateways_certificate_is_not_its_callers() {
        let gateway = headers(&[("grpcgateway-accept", "*/*")]);
        assert_eq!(of(&gateway, Some("gateway")), Identity::Nobody);
        let token = headers(&[("grpcgateway-accept", "*/*"), ("token", "abc.1")]);
        assert_eq!(of(&token, Some("gateway")), Identity::Token("abc.1"));
    }
}
