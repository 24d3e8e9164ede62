//! What an intermediary owes to the head of a message that it passes on: hop-by-hop fields stay behind (RFC 9110,
//! section 7.6.1), framing is told anew, and everything else goes on as it came. A program learns from whom a request
//! came by `X-Forwarded-For`, `-Host` and `-Proto` and by `Forwarded` (RFC 7239), which are continued where a proxy before
//! us began them, and by `Event-Id` what it is called in the log.

use std::net::{IpAddr, SocketAddr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, StatusCode, Uri, Version, response};
use http_body::Body as _;

use crate::event::{Body, Context, Failure, FailureKind};

/// Fields that mean the connection they came on, beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

const EVENT_ID: HeaderName = HeaderName::from_static("event-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The request as a program gets it over HTTP/1.1: the same method and target, byte for byte, and the same fields.
/// `address` is where the program listens: its `Host` if the client named none. With `upgrade`, the client's wish to go on
/// in another protocol is passed on, too.
///
/// # Errors
/// [`FailureKind::BadEvent`] where the target names a host that is no field value.
pub fn outgoing(
    request: Request<Body>,
    context: &Context,
    address: SocketAddr,
    upgrade: bool,
) -> Result<Request<Body>, Failure> {
    let (mut parts, body) = request.into_parts();
    let protocol = upgrade.then(|| parts.headers.get(UPGRADE).cloned()).flatten();
    let takes_trailers = has_token(&parts.headers, &TE, "trailers");
    remove_hop_by_hop(&mut parts.headers);
    if let Some(protocol) = protocol {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
    } else if takes_trailers {
        // So do we: they go on to the client.
        parts.headers.insert(CONNECTION, HeaderValue::from_static("te"));
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
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
    tell_of_the_client(&mut parts.headers, context);
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
    let protocol = (parts.status == StatusCode::SWITCHING_PROTOCOLS).then(|| parts.headers.get(UPGRADE).cloned());
    // Beside chunks a length means nothing (RFC 9112, section 6.3).
    if parts.headers.contains_key(TRANSFER_ENCODING) {
        parts.headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(&mut parts.headers);
    if let Some(Some(protocol)) = protocol {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
    }
    parts.version = Version::HTTP_11;
}

/// Whether one of the comma-separated words of the field is this one, in whatever case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// What the client was, as the program can't see it.
fn tell_of_the_client(headers: &mut HeaderMap, context: &Context) {
    headers.insert(EVENT_ID, context.id.value());
    let Some(client) = context.client else { return };
    let address = client.ip().to_canonical();
    let written = address.to_string();
    let host = headers.get(HOST).cloned();
    // A host with a port is no token (RFC 7239, section 4), nor is one that needs quoting itself to be believed.
    let named = host
        .as_ref()
        .and_then(|host| host.to_str().ok())
        .filter(|host| !host.contains(['"', '\\']));
    let mut forwarded = String::with_capacity(128);
    match address {
        IpAddr::V4(_) => forwarded.extend(["for=", &written]),
        IpAddr::V6(_) => forwarded.extend(["for=\"[", &written, "]\""]),
    }
    if let Some(host) = named {
        forwarded.extend([";host=\"", host, "\""]);
    }
    forwarded.extend([";proto=", context.scheme]);
    continue_list(headers, FORWARDED, forwarded);
    continue_list(headers, X_FORWARDED_FOR, written);
    // A proxy before us knows better what the client saw.
    let scheme = HeaderValue::from_static(context.scheme);
    headers.entry(X_FORWARDED_PROTO).or_insert(scheme);
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

/// Appends to a field that is a list.
fn continue_list(headers: &mut HeaderMap, name: HeaderName, element: String) {
    let before: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    let list = if before.is_empty() {
        HeaderValue::try_from(element)
    } else {
        HeaderValue::from_bytes(&[&before.join(&b", "[..])[..], b", ", element.as_bytes()].concat())
    };
    // Made of what has been a value before, and of an address.
    if let Ok(list) = list {
        headers.insert(name, list);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn to_program(request: http::request::Builder, body: &'static str) -> Request<Body> {
        let address = ([127, 0, 0, 1], 8080).into();
        let mut request = outgoing(request.body(body.into()).unwrap(), &Context::next(), address, false).unwrap();
        assert!(request.headers_mut().remove(EVENT_ID).is_some());
        request
    }

    #[test]
    fn tells_of_the_client() {
        let forwarded = |client: &str, request: http::request::Builder| {
            let mut context = Context::next();
            context.client = Some(client.parse().unwrap());
            let request = request.header(HOST, "a.example:81").body(Body::empty()).unwrap();
            let request = outgoing(request, &context, ([127, 0, 0, 1], 8080).into(), false).unwrap();
            [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST]
                .map(|name| request.headers()[name].to_str().unwrap().to_owned())
        };
        assert_eq!(
            forwarded("192.0.2.1:5", Request::get("/")),
            [
                "for=192.0.2.1;host=\"a.example:81\";proto=http",
                "192.0.2.1",
                "http",
                "a.example:81"
            ]
        );
        let behind = Request::get("/")
            .header("x-forwarded-for", "203.0.113.9")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "shop.example")
            .header("forwarded", "for=203.0.113.9;proto=https");
        assert_eq!(
            forwarded("[2001:db8::1]:5", behind),
            [
                "for=203.0.113.9;proto=https, for=\"[2001:db8::1]\";host=\"a.example:81\";proto=http",
                "203.0.113.9, 2001:db8::1",
                "https",
                "shop.example"
            ]
        );
    }

    #[test]
    fn trailers_and_upgrades_are_asked_for_anew() {
        let request = to_program(Request::get("/").header("te", "gzip, Trailers").header(HOST, "a"), "");
        assert_eq!(
            (&request.headers()[TE], &request.headers()[CONNECTION]),
            (&"trailers".parse().unwrap(), &"te".parse().unwrap())
        );
        let request = Request::get("/")
            .header("connection", "Upgrade, x-mine")
            .header("x-mine", "1")
            .header("upgrade", "websocket");
        let address = ([127, 0, 0, 1], 8080).into();
        let request = outgoing(request.body(Body::empty()).unwrap(), &Context::next(), address, true).unwrap();
        assert_eq!(request.headers()[CONNECTION], "upgrade");
        assert_eq!(request.headers()[UPGRADE], "websocket");
        assert!(!request.headers().contains_key("x-mine"));
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
            .header("te", "deflate")
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
}
