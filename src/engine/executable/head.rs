//! What an intermediary owes to the head of a message that it passes on: hop-by-hop fields stay behind (RFC 9110,
//! section 7.6.1), framing is told anew, and everything else goes on as it came.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri, Version, response};
use http_body::Body as _;

use crate::event::{Body, Failure, FailureKind};

/// Fields that mean the connection they came on, beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The request as a program gets it over HTTP/1.1: the same method and target, byte for byte, and the same fields.
/// `address` is where the program listens: its `Host` if the client named none.
///
/// # Errors
/// [`FailureKind::BadEvent`] for CONNECT, whose target is no path.
pub fn outgoing(request: Request<Body>, address: std::net::SocketAddr) -> Result<Request<Body>, Failure> {
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Failure::new(
            FailureKind::BadEvent,
            "CONNECT asks for a tunnel, which programs don't offer",
        ));
    }
    remove_hop_by_hop(&mut parts.headers);
    if !parts.headers.contains_key(HOST) {
        // HTTP/2 has the name in the target, `:authority`.
        let host = parts
            .uri
            .authority()
            .map_or_else(|| address.to_string(), |authority| authority.to_string());
        let host = HeaderValue::try_from(host)
            .map_err(|_| Failure::new(FailureKind::BadEvent, "the request's host is no valid field value"))?;
        parts.headers.insert(HOST, host);
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    if let Some(length) = body.size_hint().exact()
        && parts
            .headers
            .get(CONTENT_LENGTH)
            .is_some_and(|told| told.as_bytes() != length.to_string().as_bytes())
    {
        parts.headers.insert(CONTENT_LENGTH, length.into());
    }
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = origin_form(parts.uri);
    *outgoing.headers_mut() = parts.headers;
    Ok(outgoing)
}

/// The reply's head as it goes on to the client.
pub fn incoming(parts: &mut response::Parts) {
    remove_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
}

/// The target without scheme and authority, its bytes untouched (RFC 9112, section 3.2.1).
fn origin_form(uri: Uri) -> Uri {
    if uri.authority().is_none() {
        return uri;
    }
    Uri::from(
        uri.into_parts()
            .path_and_query
            .unwrap_or(PathAndQuery::from_static("/")),
    )
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| name != HOST && name != CONTENT_LENGTH)
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// HTTP/2 clients may cut the cookies into several fields, which HTTP/1.1 does not know (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_program(request: http::request::Builder, body: &'static str) -> Request<Body> {
        outgoing(request.body(body.into()).unwrap(), ([127, 0, 0, 1], 8080).into()).unwrap()
    }

    #[test]
    fn the_target_stays_as_it_is() {
        for target in ["/%2e%2e/x?a=%20b&c=+%2520", "/a//b/../c", "/?", "*"] {
            assert_eq!(to_program(Request::options(target), "").uri(), target);
        }
        let request = Request::get("http://example.org/%2e%2e/x?y").version(Version::HTTP_2);
        let request = to_program(request, "");
        assert_eq!(request.uri(), "/%2e%2e/x?y");
        assert_eq!(request.headers()[HOST], "example.org");
        assert_eq!(request.version(), Version::HTTP_11);
    }

    #[test]
    fn nothing_is_invented_but_a_missing_host() {
        let request = to_program(Request::get("/"), "");
        assert_eq!(request.headers().len(), 1);
        assert_eq!(request.headers()[HOST], "127.0.0.1:8080");
        let request = to_program(Request::get("/").header(HOST, "a.example"), "");
        assert_eq!(request.headers()[HOST], "a.example");
    }

    #[test]
    fn hop_by_hop_fields_stay_behind() {
        let request = Request::post("/")
            .header("connection", "close, X-Mine")
            .header("connection", "host")
            .header("x-mine", "1")
            .header("keep-alive", "timeout=5")
            .header("te", "trailers")
            .header("upgrade", "h2c")
            .header("transfer-encoding", "chunked")
            .header("proxy-connection", "keep-alive")
            .header("x-other", "caf\u{e9}")
            .header("x-other", "2")
            .header(HOST, "a.example");
        let request = to_program(request, "body");
        let mut names: Vec<_> = request.headers().iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "x-other", "x-other"]);
    }

    #[test]
    fn a_wrong_length_is_put_right() {
        let request = to_program(Request::post("/").header(CONTENT_LENGTH, "400"), "body");
        assert_eq!(request.headers()[CONTENT_LENGTH], "4");
    }

    #[test]
    fn cookies_of_http_2_are_one_field() {
        let request = Request::get("/")
            .version(Version::HTTP_2)
            .header(COOKIE, "a=1")
            .header(COOKIE, "b=2");
        let request = to_program(request, "");
        assert_eq!(
            request.headers().get_all(COOKIE).iter().collect::<Vec<_>>(),
            ["a=1; b=2"]
        );
    }

    #[test]
    fn tunnels_are_refused() {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("example.org:443")
            .body(Body::empty())
            .unwrap();
        let failure = outgoing(request, ([127, 0, 0, 1], 8080).into()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::BadEvent);
    }
}
