//! Between the host's form of an event and ours.

use std::io::Read;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::event::{Body, Event, Failure, FailureKind, Reply};
use crate::wire::{EventAnswer, HttpAnswer, HttpScope, Scope};

/// What may not stand in a path as it is (RFC 3986, section 3.3). The percent sign is left: the host took one layer of
/// encoding off at most, and a path that still has some is to reach the program with it.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The same for a query (section 3.4).
const QUERY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The event that `message` is.
///
/// # Errors
/// [`FailureKind::BadEvent`], with what is wrong with it.
pub fn event(message: &Bytes) -> Result<Event, Failure> {
    match Scope::decode(message).map_err(|error| bad(error.to_string()))? {
        Scope::Message(body) => Ok(Event::message(body)),
        Scope::Http(scope) => http(scope),
    }
}

fn http(scope: HttpScope) -> Result<Event, Failure> {
    let uri = target(&scope.path, &scope.query_string);
    let method =
        Method::from_bytes(scope.method.as_bytes()).map_err(|_| bad(format!("{:?} is no method", scope.method)))?;
    let mut request = Request::new(Body::from(scope.body));
    *request.uri_mut() = Uri::try_from(&uri).map_err(|error| bad(format!("{uri:?} is no request target: {error}")))?;
    *request.method_mut() = method;
    let headers = request.headers_mut();
    headers.reserve(scope.headers.len());
    for (name, value) in scope.headers {
        let shown = String::from_utf8_lossy(&name).into_owned();
        let name = HeaderName::from_bytes(&name).map_err(|_| bad(format!("{shown:?} is no header's name")))?;
        // The host takes `content-encoding` off replies: what is asked for compressed would arrive as noise. And the
        // body is here whole, in no transfer coding.
        if name == ACCEPT_ENCODING || name == TRANSFER_ENCODING {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| bad(format!("the header {shown:?} has a value that no header may have")))?;
        headers.append(name, value);
    }
    // HTTP/1.1 has no request without one, and programs build their URLs from it.
    headers.entry(HOST).or_insert(HeaderValue::from_static("localhost"));
    let mut event = Event::http(request);
    event.context.decoded_path = Some(scope.path);
    Ok(event)
}

/// The request target (RFC 9112, section 3.2.1) for what the host has, which may have lost its percent-encoding.
fn target(path: &str, query: &str) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path = utf8_percent_encode(path, PATH);
    if query.is_empty() {
        format!("{slash}{path}")
    } else {
        format!("{slash}{path}?{}", utf8_percent_encode(query, QUERY))
    }
}

/// The answer that the host takes for `reply`, whose body is collected, up to `limit` bytes.
///
/// # Errors
/// Where the body is too large, or breaks off.
pub async fn answer(reply: Reply, limit: usize) -> Result<EventAnswer, Failure> {
    match reply {
        Reply::Value(value) => Ok(EventAnswer::Value(value)),
        Reply::Http(response) => {
            let (mut head, body) = response.into_parts();
            let body = body.collect(limit).await.map_err(|error| {
                let message = format!("the program's reply can't be passed on: {error}");
                Failure::new(FailureKind::Program, message)
            })?;
            let body = uncompressed(&mut head, body, limit);
            let headers = head.headers.iter().map(|(name, value)| {
                (
                    Bytes::copy_from_slice(name.as_str().as_bytes()),
                    Bytes::copy_from_slice(value.as_bytes()),
                )
            });
            Ok(EventAnswer::Http(HttpAnswer {
                status: head.status.as_u16(),
                headers: headers.collect(),
                body,
            }))
        }
    }
}

/// The host deletes `content-encoding`. A program that compresses though nobody asked for it would reach the browser
/// as noise, so that its body goes back as it was before.
fn uncompressed(head: &mut http::response::Parts, body: Bytes, limit: usize) -> Bytes {
    let gzip = head
        .headers
        .get(CONTENT_ENCODING)
        .is_some_and(|coding| coding == "gzip" || coding == "x-gzip");
    if !gzip {
        return body;
    }
    let mut plain = Vec::new();
    match flate2::read::MultiGzDecoder::new(&body[..])
        .take(limit as u64 + 1)
        .read_to_end(&mut plain)
    {
        Ok(_) if plain.len() <= limit => {}
        _ => return body,
    }
    head.headers.remove(CONTENT_ENCODING);
    if head.headers.contains_key(CONTENT_LENGTH) {
        head.headers.insert(CONTENT_LENGTH, plain.len().into());
    }
    plain.into()
}

fn bad(message: String) -> Failure {
    Failure::new(FailureKind::BadEvent, message)
}

impl From<Response<Body>> for Reply {
    fn from(response: Response<Body>) -> Self {
        Self::Http(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Input;
    use std::io::Write;

    #[test]
    fn targets_keep_what_is_encoded_and_encode_the_rest() {
        assert_eq!(target("/café/a b", "x=1&y=%20"), "/caf%C3%A9/a%20b?x=1&y=%20");
        assert_eq!(target("/%2e%2e/x", ""), "/%2e%2e/x");
        assert_eq!(target("a?b#c", "q=a b#c"), "/a%3Fb%23c?q=a%20b%23c");
        assert_eq!(target("", ""), "/");
    }

    fn request(headers: &[(&'static str, &'static str)]) -> Request<Body> {
        let scope = Scope::Http(HttpScope {
            path: "/a b".into(),
            method: "POST".into(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            ..HttpScope::default()
        });
        let event = event(&scope.encode().unwrap().into()).unwrap();
        assert_eq!(event.context.decoded_path.as_deref(), Some("/a b"));
        match event.input {
            Input::Http(request) => request,
            Input::Message(_) => panic!("an HTTP scope became a message"),
        }
    }

    #[test]
    fn accept_encoding_stays_here_and_a_host_there_is() {
        let request = request(&[("accept-encoding", "gzip"), ("cookie", "a=1"), ("cookie", "b=2")]);
        assert!(!request.headers().contains_key(ACCEPT_ENCODING));
        assert_eq!(request.headers().get_all("cookie").iter().count(), 2);
        assert_eq!(request.headers()[HOST], "localhost");
        assert_eq!(request.uri(), "/a%20b");
    }

    #[tokio::test]
    async fn what_is_compressed_goes_back_as_it_was_before() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").unwrap();
        let mut response = Response::new(Body::from(Bytes::from(gzip.finish().unwrap())));
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().insert(CONTENT_LENGTH, 25.into());
        let Ok(EventAnswer::Http(answer)) = answer(response.into(), 100).await else {
            panic!("no answer");
        };
        assert_eq!(answer.body, "hello");
        assert_eq!(answer.headers, [(Bytes::from("content-length"), Bytes::from("5"))]);
    }
}
