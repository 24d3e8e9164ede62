//! The CGI convention of [RFC 3875] as data: a request becomes environment variables, the first lines that a guest
//! writes become the head of a reply. No I/O; `command` runs the guest between the two.
//!
//! Where we depart from the RFC: the program is the whole site, so `SCRIPT_NAME` is empty and `PATH_INFO` the whole
//! path; `Authorization` is passed on, because there is no server before the program that would check it; a
//! `Location` that is a path is sent to the client as a redirect and not followed here.
//!
//! [RFC 3875]: https://www.rfc-editor.org/rfc/rfc3875

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request, response};
use http_body::Body as _;
use percent_encoding::percent_decode_str;

use super::stdio::STDOUT_LIMIT;
use crate::event::{Body, Context, Failure, FailureKind};

/// A head has to be shorter than this, in bytes: as much as stdout holds before the guest has to wait, so that a guest
/// that writes no head is not waited for.
const HEAD_LIMIT: usize = STDOUT_LIMIT;

/// Headers about one connection (RFC 9110, section 7.6.1): ours with the client, no business of the guest.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The environment of a guest that is given a request (RFC 3875, section 4.1), and what of its `own` has other names.
///
/// # Errors
/// [`FailureKind::BadEvent`] if a value has a NUL in it, which no environment can hold.
pub(super) fn environment(
    own: &[(String, String)],
    parts: &request::Parts,
    body: &Body,
    context: &Context,
) -> Result<Vec<(String, String)>, Failure> {
    let path = match &context.decoded_path {
        Some(path) => Cow::Borrowed(path.as_str()),
        None => percent_decode_str(parts.uri.path()).decode_utf8_lossy(),
    };
    if path.contains('\0') {
        return Err(Failure::new(
            FailureKind::BadEvent,
            "the path has a NUL byte (%00) in it",
        ));
    }
    let (host, port) = host_and_port(parts, context);

    let mut all: Vec<(String, String)> = Vec::with_capacity(own.len() + parts.headers.len() + 18);
    let mut set = |name: &str, value: String| all.push((name.to_owned(), value));
    set("EVENT_TYPE", "http".into());
    set("GATEWAY_INTERFACE", "CGI/1.1".into());
    set(
        "SERVER_SOFTWARE",
        concat!("polyinit/", env!("CARGO_PKG_VERSION")).into(),
    );
    set("SERVER_PROTOCOL", format!("{:?}", parts.version));
    set("SERVER_NAME", host);
    set("SERVER_PORT", port);
    set("REQUEST_METHOD", parts.method.to_string());
    set("REQUEST_SCHEME", context.scheme.into());
    set(
        "REQUEST_URI",
        parts.uri.path_and_query().map_or("/", |uri| uri.as_str()).into(),
    );
    set("SCRIPT_NAME", String::new());
    set("PATH_INFO", path.into_owned());
    set("QUERY_STRING", parts.uri.query().unwrap_or_default().into());
    if context.scheme == "https" {
        set("HTTPS", "on".into());
    }
    if let Some(client) = context.client {
        set("REMOTE_ADDR", client.ip().to_canonical().to_string());
        set("REMOTE_PORT", client.port().to_string());
    }
    if let Some(kind) = parts.headers.get(CONTENT_TYPE) {
        set("CONTENT_TYPE", text(kind));
    }
    // What is really there wins over what the client said of it.
    if let Some(length) = body.size_hint().exact() {
        if length > 0 || parts.headers.contains_key(CONTENT_LENGTH) {
            set("CONTENT_LENGTH", length.to_string());
        }
    } else if let Some(length) = parts.headers.get(CONTENT_LENGTH) {
        set("CONTENT_LENGTH", text(length));
    }
    for name in parts.headers.keys() {
        if let Some(variable) = header_variable(name) {
            all.push((variable, joined(&parts.headers, name)));
        }
    }
    add(own, &mut all);
    Ok(all)
}

/// The environment of a guest that is given a network message on stdin.
pub(super) fn message_environment(own: &[(String, String)], length: usize) -> Vec<(String, String)> {
    let mut all = vec![
        ("EVENT_TYPE".into(), "message".into()),
        ("CONTENT_TYPE".into(), "application/json".into()),
        ("CONTENT_LENGTH".into(), length.to_string()),
    ];
    add(own, &mut all);
    all
}

/// Adds the variables whose names are not taken: of two with one name, which one a guest sees depends on its language.
fn add(own: &[(String, String)], all: &mut Vec<(String, String)>) {
    let taken = all.len();
    for variable in own {
        if !all[..taken].iter().any(|(name, _)| *name == variable.0) {
            all.push(variable.clone());
        }
    }
}

/// `User-Agent` is `HTTP_USER_AGENT`; `None` for what must not, or need not, be passed on.
fn header_variable(name: &HeaderName) -> Option<String> {
    let name = name.as_str();
    if matches!(name, "content-type" | "content-length" | "proxy") // HTTP_PROXY would redirect the guest's own requests (CVE-2016-5385)
        || name.contains('_') // `x_forwarded_for` must not pass for `x-forwarded-for`
        || HOP_BY_HOP.contains(&name)
    {
        return None;
    }
    let mut variable = String::with_capacity("HTTP_".len() + name.len());
    variable.push_str("HTTP_");
    variable.extend(
        name.chars()
            .map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }),
    );
    Some(variable)
}

/// All values of a header as one, as RFC 9110, section 5.3 joins them (and RFC 6265 cookies).
fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let separator = if name == COOKIE { "; " } else { ", " };
    let mut values = headers.get_all(name).iter();
    let mut all = values.next().map(text).unwrap_or_default();
    for value in values {
        all.push_str(separator);
        all.push_str(&text(value));
    }
    all
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// `SERVER_NAME` and `SERVER_PORT`: as the client addressed us, else our end of the connection.
fn host_and_port(parts: &request::Parts, context: &Context) -> (String, String) {
    let default_port = || {
        let port = if context.scheme == "https" { 443 } else { 80 };
        context.server.map_or(port, |server| server.port())
    };
    let authority = parts.uri.authority().cloned().or_else(|| {
        let host = parts.headers.get(HOST)?;
        http::uri::Authority::try_from(host.as_bytes()).ok()
    });
    let port = authority.as_ref().and_then(|authority| authority.port_u16());
    let host = match (&authority, context.server) {
        (Some(authority), _) => authority.host().to_owned(),
        (None, Some(server)) => server.ip().to_canonical().to_string(),
        (None, None) => "localhost".to_owned(),
    };
    (host, port.unwrap_or_else(default_port).to_string())
}

/// What is wrong with the head that a guest wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    #[error(
        "line {line} of stdout, {text:?}, is no header; a reply begins with headers, `Content-Type: text/plain` for one, and an empty line after them"
    )]
    NoHeader { line: usize, text: String },
    #[error("the header `Status: {0}` on stdout holds no status code from 200 to 999, as in `Status: 404 Not Found`")]
    BadStatus(String),
    #[error(
        "{HEAD_LIMIT} bytes on stdout and no empty line that ends the reply's headers; a reply begins with headers, `Content-Type: text/plain` for one, and an empty line after them"
    )]
    TooLong,
    #[error(
        "nothing on stdout; a reply is headers, `Content-Type: text/plain` for one, an empty line, and then the body"
    )]
    Nothing,
    #[error("stdout ends before the empty line that ends the reply's headers")]
    Unfinished,
}

/// The head of a reply (RFC 3875, section 6.3), if `output` holds all of it, and how many bytes it takes.
///
/// # Errors
/// [`HeadError`] as soon as it is plain that this becomes no head.
pub(super) fn parse_head(output: &[u8]) -> Result<Option<(response::Parts, usize)>, HeadError> {
    let mut head = Head::default();
    let mut read = 0;
    let mut number = 1;
    while let Some(length) = output[read..].iter().position(|byte| *byte == b'\n') {
        let line = &output[read..read + length];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        read += length + 1;
        if line.is_empty() {
            return Ok(Some((head.finish(), read)));
        }
        head.line(number, line)?;
        number += 1;
    }
    if output.len() >= HEAD_LIMIT {
        return Err(HeadError::TooLong);
    }
    Ok(None)
}

/// What was wrong with an output that is over and has no whole head.
pub(super) fn unfinished(output: &[u8]) -> HeadError {
    if output.is_empty() {
        return HeadError::Nothing;
    }
    let last = output.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let lines_before = output.iter().filter(|byte| **byte == b'\n').count();
    match Head::default().line(lines_before + 1, last) {
        Err(error) if !last.is_empty() => error,
        _ => HeadError::Unfinished,
    }
}

#[derive(Default)]
struct Head {
    status: Option<StatusCode>,
    headers: HeaderMap,
}

impl Head {
    fn line(&mut self, number: usize, line: &[u8]) -> Result<(), HeadError> {
        let no_header = || HeadError::NoHeader {
            line: number,
            text: String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned(),
        };
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(no_header)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| no_header())?;
        let value = line[colon + 1..].trim_ascii();
        if name == "status" {
            let code = value.split(|byte| *byte == b' ').next().unwrap_or_default();
            let status = StatusCode::from_bytes(code)
                .ok()
                .filter(|status| status.as_u16() >= 200);
            let bad = || HeadError::BadStatus(String::from_utf8_lossy(value).into_owned());
            self.status = Some(status.ok_or_else(bad)?);
            return Ok(());
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| no_header())?;
        if !HOP_BY_HOP.contains(&name.as_str()) {
            self.headers.append(name, value);
        }
        Ok(())
    }

    fn finish(self) -> response::Parts {
        let redirect = self.headers.contains_key(LOCATION);
        let default = if redirect { StatusCode::FOUND } else { StatusCode::OK };
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = self.status.unwrap_or(default);
        parts.headers = self.headers;
        parts
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn variables(request: http::Request<Body>, context: &Context) -> BTreeMap<String, String> {
        let (parts, body) = request.into_parts();
        let own = [("GREETING", "hello"), ("PATH_INFO", "/mine")].map(|(name, value)| (name.into(), value.into()));
        let all = environment(&own, &parts, &body, context).unwrap();
        let by_name: BTreeMap<_, _> = all.iter().cloned().collect();
        assert_eq!(by_name.len(), all.len(), "no name twice");
        by_name
    }

    fn head(text: &str) -> (response::Parts, usize) {
        parse_head(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_request_becomes_the_variables_of_the_rfc() {
        let request = http::Request::builder()
            .method("POST")
            .uri("/a%20b/%C3%A9?q=1%2B1&r")
            .header("host", "example.org:8080")
            .header("content-type", "text/plain")
            .header("content-length", "99")
            .header("user-agent", "curl")
            .header("accept", "a")
            .header("accept", "b")
            .header("cookie", "x=1")
            .header("cookie", "y=2")
            .body(Body::from("four"))
            .unwrap();
        let mut context = Context::next();
        context.client = Some("[::ffff:10.0.0.9]:4321".parse().unwrap());
        let all = variables(request, &context);
        for (name, value) in [
            ("GREETING", "hello"),
            ("EVENT_TYPE", "http"),
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_URI", "/a%20b/%C3%A9?q=1%2B1&r"),
            ("SCRIPT_NAME", ""),
            ("PATH_INFO", "/a b/é"),
            ("QUERY_STRING", "q=1%2B1&r"),
            ("CONTENT_TYPE", "text/plain"),
            ("CONTENT_LENGTH", "4"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("SERVER_NAME", "example.org"),
            ("SERVER_PORT", "8080"),
            ("REMOTE_ADDR", "10.0.0.9"),
            ("REMOTE_PORT", "4321"),
            ("HTTP_HOST", "example.org:8080"),
            ("HTTP_USER_AGENT", "curl"),
            ("HTTP_ACCEPT", "a, b"),
            ("HTTP_COOKIE", "x=1; y=2"),
        ] {
            assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!all.contains_key("HTTP_CONTENT_TYPE"));
        assert!(!all.contains_key("HTTPS"));
    }

    #[test]
    fn headers_that_could_deceive_the_guest_are_left_out() {
        let request = http::Request::builder()
            .uri("/")
            .header("proxy", "http://evil")
            .header("x_real_ip", "10.0.0.1")
            .header("connection", "close")
            .body(Body::empty())
            .unwrap();
        let all = variables(request, &Context::next());
        for name in ["HTTP_PROXY", "HTTP_X_REAL_IP", "HTTP_CONNECTION", "CONTENT_LENGTH"] {
            assert!(!all.contains_key(name), "{name}");
        }
        assert_eq!(all["SERVER_NAME"], "localhost");
        assert_eq!(all["SERVER_PORT"], "80");
    }

    #[test]
    fn a_path_that_was_decoded_already_is_not_decoded_again() {
        let mut context = Context::next();
        context.decoded_path = Some("/100%25".to_owned());
        let request = http::Request::builder().uri("/100%2525").body(Body::empty()).unwrap();
        assert_eq!(variables(request, &context)["PATH_INFO"], "/100%25");
    }

    #[test]
    fn a_nul_in_the_path_is_the_clients_fault() {
        let (parts, body) = http::Request::get("/a%00b").body(Body::empty()).unwrap().into_parts();
        let failure = environment(&[], &parts, &body, &Context::next()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::BadEvent);
    }

    #[test]
    fn heads_are_read_with_either_line_ending() {
        for text in [
            "Status: 404 Not Found\nContent-Type: text/plain\nSet-Cookie: a=1\nSet-Cookie: b=2\n\nbody",
            "status:404\r\ncontent-type:text/plain\r\nset-cookie:a=1\r\nset-cookie:b=2\r\n\r\nbody",
        ] {
            let (parts, length) = head(text);
            assert_eq!(parts.status, 404);
            assert_eq!(parts.headers["content-type"], "text/plain");
            assert_eq!(parts.headers.get_all("set-cookie").iter().count(), 2);
            assert_eq!(&text[length..], "body");
        }
    }

    #[test]
    fn a_location_without_a_status_redirects() {
        assert_eq!(head("Location: /there\n\n").0.status, 302);
        assert_eq!(head("Location: /there\nStatus: 201\n\n").0.status, 201);
        assert_eq!(head("Content-Type: a/b\n\n").0.status, 200);
        assert_eq!(head("\nno headers at all").0.status, 200);
    }

    #[test]
    fn headers_of_the_connection_are_dropped() {
        let (parts, _) = head("Content-Type: a/b\nTransfer-Encoding: chunked\nConnection: close\n\n");
        assert_eq!(parts.headers.len(), 1);
    }

    #[test]
    fn a_head_that_is_not_there_yet_is_waited_for() {
        for text in [
            "",
            "Content-",
            "Content-Type: a/b",
            "Content-Type: a/b\n",
            "Content-Type: a/b\r\n\r",
        ] {
            assert_eq!(
                parse_head(text.as_bytes()).map(|head| head.is_some()),
                Ok(false),
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_no_head_is_told_in_the_words_of_the_guest() {
        let hello = parse_head(b"Hello, world!\n").unwrap_err();
        assert!(
            hello
                .to_string()
                .starts_with("line 1 of stdout, \"Hello, world!\", is no header")
        );
        assert_eq!(
            parse_head(b"Status: teapot\n\n").unwrap_err(),
            HeadError::BadStatus("teapot".into())
        );
        assert_eq!(
            parse_head(b"Status: 100\n\n").unwrap_err(),
            HeadError::BadStatus("100".into())
        );
        assert_eq!(parse_head(&vec![b'a'; HEAD_LIMIT]).unwrap_err(), HeadError::TooLong);
        assert_eq!(
            parse_head(&b"A: b\n".repeat(HEAD_LIMIT)).unwrap_err(),
            HeadError::TooLong
        );
        assert_eq!(unfinished(b""), HeadError::Nothing);
        assert_eq!(unfinished(b"A: b\n"), HeadError::Unfinished);
        assert!(matches!(
            unfinished(b"A: b\nhello"),
            HeadError::NoHeader { line: 2, .. }
        ));
    }
}
