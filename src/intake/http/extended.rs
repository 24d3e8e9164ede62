//! WebSockets over HTTP/2 (RFC 8441): behind the intake they are what they are over HTTP/1.1, which is what programs and
//! engines know.
//!
//! ```text
//! CONNECT, :protocol websocket -> unfold -> GET, Upgrade: websocket -> ... -> 101 -> fold -> 200
//! ```

use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::ext::Protocol;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use crate::event::Body;

/// Makes the handshake of HTTP/1.1 of one for a WebSocket over HTTP/2; tells whether it is one. Its extensions have the
/// [`Protocol`] then.
pub fn unfold(request: &mut Request<Body>) -> bool {
    let is_one = request.method() == Method::CONNECT
        && request
            .extensions()
            .get::<Protocol>()
            .is_some_and(|protocol| protocol.as_str() == "websocket");
    if !is_one {
        return false;
    }
    let uri = request.uri();
    // What `:authority` and `:path` were made of is a header's value, and a target.
    let host = uri
        .authority()
        .and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    let target = uri.path_and_query().cloned();
    *request.uri_mut() = Uri::from(target.unwrap_or(PathAndQuery::from_static("/")));
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    if let Some(host) = host {
        headers.entry(HOST).or_insert(host);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is a header's value.
    headers.extend(
        HeaderValue::try_from(generate_key())
            .ok()
            .map(|key| (SEC_WEBSOCKET_KEY, key)),
    );
    true
}

/// The answer as over HTTP/2. There every 2xx opens the WebSocket: one that is no answer to the handshake would be taken
/// for its beginning.
pub fn fold(mut response: Response<Body>) -> Response<Body> {
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS && !status.is_success() {
        return response;
    }
    if status.is_success() {
        let mut refused = Response::new(Body::from("there is no WebSocket at this path\n"));
        *refused.status_mut() = StatusCode::NOT_IMPLEMENTED;
        return refused;
    }
    *response.status_mut() = StatusCode::OK;
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
        response.headers_mut().remove(name);
    }
    response
}
