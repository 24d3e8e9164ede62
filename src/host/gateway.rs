//! Between HTTP clients on this host and the guest: what the network's hosts do with a request, for one machine.
//!
//! ```text
//! client --HTTP--> intake::http -> [`handler`] -> link --vsock--> guest
//! ```

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, VARY};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

use super::link::{Error as LinkError, Link};
use crate::event::{Body, Event, Failure, FailureKind, Input, Reply};
use crate::intake::Handler;
use crate::program::archive::{self, ArchiveError};
use crate::wire::{EventAnswer, HttpAnswer, HttpScope, Scope};

/// What is sent here with POST becomes a network message for the guest, its body the message's JSON text. On the
/// network, messages come from the network; a developer has to send them from somewhere.
pub const MESSAGE_PATH: &str = "/_polyinit/message";

/// How requests are handed over.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest that a program may take for one event.
    pub event: Duration,
    /// The largest body of a request, in bytes.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            event: Duration::from_secs(300),
            body: 15 << 20,
        }
    }
}

/// Where what programs leave in /data is put, one answer's after the other's.
pub struct Output(Mutex<PathBuf>);

impl Output {
    /// In `folder`, which is made when it is needed.
    pub fn to(folder: PathBuf) -> Self {
        Self(Mutex::new(folder))
    }

    fn put(&self, zip: Bytes) {
        let folder = self.0.lock();
        let made = std::fs::create_dir_all(&*folder).map_err(ArchiveError::Read);
        match made.and_then(|()| archive::unzip_without_links(Cursor::new(zip), &folder)) {
            Ok(()) => tracing::info!("what the program has left in /data is in {}", folder.display()),
            Err(error) => tracing::warn!("what the program has left in /data can't be unpacked: {error}"),
        }
    }
}

/// Hands each event of an intake to the guest behind `link`, and to `output` what comes back beside the reply.
pub fn handler(link: Link, limits: Limits, output: Option<Output>) -> Handler {
    let output = output.map(Arc::new);
    Arc::new(move |event| Box::pin(hand_over(link.clone(), event, limits, output.clone())))
}

async fn hand_over(link: Link, event: Event, limits: Limits, output: Option<Arc<Output>>) -> Result<Reply, Failure> {
    let scope = match event.input {
        Input::Message(message) => Scope::Message(message.body),
        Input::Http(request) => scope_of(request, limits.body).await?,
    };
    let (answer, data) = link.event(&scope, limits.event).await.map_err(failure_of)?;
    if let (Some(output), false) = (output, data.is_empty()) {
        // Before the reply: whoever has that finds the data.
        let _ = tokio::task::spawn_blocking(move || output.put(data)).await;
    }
    match answer {
        EventAnswer::Http(answer) => Ok(Reply::Http(response_of(answer)?)),
        EventAnswer::Value(value) => Ok(Reply::Value(value)),
        EventAnswer::Failure { error, traceback } => Ok(Reply::Http(traceback_response(error, traceback))),
    }
}

async fn scope_of(request: Request<Body>, limit: usize) -> Result<Scope, Failure> {
    let (head, body) = request.into_parts();
    let body = body.collect(limit).await?;
    if head.uri.path() == MESSAGE_PATH && head.method == Method::POST {
        let text = String::from_utf8(body.into())
            .map_err(|_| Failure::new(FailureKind::BadEvent, "a message is JSON text, and this is not UTF-8"))?;
        return Ok(Scope::Message(text));
    }
    // In the order in which they came, except that a name's values stand together.
    let headers = head.headers.iter();
    let mut headers: Vec<_> = headers
        .map(|(name, value)| (name.as_str().to_owned().into(), value.as_bytes().to_vec().into()))
        .collect();
    // HTTP/2 has its host elsewhere; programs expect it where HTTP/1.1 has it.
    if let (false, Some(authority)) = (head.headers.contains_key(http::header::HOST), head.uri.authority()) {
        headers.insert(0, ("host".into(), authority.as_str().to_owned().into()));
    }
    Ok(Scope::Http(HttpScope {
        path: percent_decode_str(head.uri.path()).decode_utf8_lossy().into_owned(),
        method: head.method.as_str().to_owned(),
        query_string: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        body,
    }))
}

/// As the network's hosts do it: content-length where it is missing, and never what would say that the body is
/// compressed or in chunks.
fn response_of(answer: HttpAnswer) -> Result<Response<Body>, Failure> {
    let broken = |what: String| Failure::new(FailureKind::Gone, format!("the guest's reply has {what}"));
    let status = StatusCode::from_u16(answer.status).map_err(|_| broken(format!("the status {}", answer.status)))?;
    let length = answer.body.len();
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in &answer.headers {
        let header = |part: &[u8]| format!("a header that HTTP forbids: {:?}", part.escape_ascii().to_string());
        let name = HeaderName::from_bytes(name).map_err(|_| broken(header(name)))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| broken(header(value)))?;
        headers.append(name, value);
    }
    for name in [CONTENT_ENCODING, TRANSFER_ENCODING, VARY] {
        headers.remove(name);
    }
    if !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    Ok(response)
}

/// The network's hosts show the traceback to the client, as text.
fn traceback_response(error: String, traceback: String) -> Response<Body> {
    tracing::warn!("the program failed: {error}");
    let mut response = Response::new(Body::from(if traceback.is_empty() { error } else { traceback }));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

fn failure_of(error: LinkError) -> Failure {
    let kind = match &error {
        LinkError::Late { .. } => FailureKind::Timeout,
        LinkError::Connect { .. } | LinkError::Refused { .. } => FailureKind::Unavailable,
        _ => FailureKind::Gone,
    };
    Failure::new(kind, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(headers: &[(&'static str, &'static str)]) -> HttpAnswer {
        HttpAnswer {
            status: 200,
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            body: "hello".into(),
        }
    }

    #[test]
    fn headers_are_those_that_hosts_pass_on() {
        let response = response_of(answer(&[
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("content-encoding", "gzip"),
            ("vary", "accept"),
        ]))
        .unwrap();
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(response.headers()["content-length"], "5");
        assert!(!response.headers().contains_key("content-encoding"));
        assert!(!response.headers().contains_key("vary"));
    }

    #[test]
    fn a_reply_that_is_no_http_is_told() {
        let failure = response_of(answer(&[("a b", "c")])).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Gone);
        assert!(failure.message.contains("\"a b\""));
    }

    #[tokio::test]
    async fn requests_become_scopes() {
        let request = Request::get("http://example.org/caf%C3%A9/x?q=%20")
            .body(Body::empty())
            .unwrap();
        let Ok(Scope::Http(scope)) = scope_of(request, 10).await else {
            panic!("no HTTP scope");
        };
        assert_eq!((scope.path.as_str(), scope.query_string.as_str()), ("/café/x", "q=%20"));
        assert_eq!(scope.headers, [("host".into(), "example.org".into())]);

        let message = Request::post(MESSAGE_PATH).body(Body::from("{\"n\": 1}")).unwrap();
        assert_eq!(scope_of(message, 10).await, Ok(Scope::Message("{\"n\": 1}".into())));

        let large = Request::post("/").body(Body::from("12345678901")).unwrap();
        assert_eq!(scope_of(large, 10).await.unwrap_err().kind, FailureKind::TooLarge);
    }
}
