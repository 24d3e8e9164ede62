//! A `wasi:http/proxy` component: the host calls `handle` once for each request and lends it the request and a place for the response.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{DescriptorFlags, ErrorCode, OpenFlags, PathFlags};
use wasip2::http::types::{Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::{OutputStream, StreamError};

wasip2::http::proxy::export!(Component);

struct Component;

impl Guest for Component {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        report_panics_on_stderr();
        if let Err(error) = route(request, response) {
            complain(&format!("the response could not be sent: {error}"));
        }
    }
}

const TEXT: (&str, &str) = ("content-type", "text/plain; charset=utf-8");
const LENGTH: (&str, &str) = ("content-length", "6");
const JSON: (&str, &str) = ("content-type", "application/json");

fn route(request: IncomingRequest, response: ResponseOutparam) -> io::Result<()> {
    let target = request.path_with_query().unwrap_or_else(|| "/".into());
    let path = target.split('?').next().unwrap_or("/");
    match path {
        "/" => reply(response, 200, &[TEXT], b"Hello from a Rust component\n"),
        "/echo" => echo(request, response),
        "/headers" => reply(response, 200, &[JSON], describe(&request).as_bytes()),
        "/stream" => send(response, 200, &[TEXT], |body| {
            (1..=10).try_for_each(|n| {
                writeln!(body, "piece {n}")?;
                body.blocking_flush().map_err(io::Error::other)
            })
        }),
        "/cookies" => {
            let cookies = [TEXT, ("set-cookie", "a=1; Path=/"), ("set-cookie", "b=2; Path=/")];
            reply(response, 200, &cookies, b"two cookies\n")
        }
        // What HEAD and a cache that asks again get: the length of the text, and none of it.
        "/length" if matches!(request.method(), Method::Head) => reply(response, 200, &[TEXT, LENGTH], b""),
        "/length" => reply(response, 200, &[TEXT, LENGTH], b"hello\n"),
        "/unchanged" => reply(response, 304, &[LENGTH], b""),
        "/note" => match note() {
            Ok(note) => reply(response, 200, &[TEXT], &note),
            Err(error) => reply(response, 500, &[TEXT], format!("{error:?}\n").as_bytes()),
        },
        "/count" => {
            static REQUESTS: AtomicU32 = AtomicU32::new(0);
            let count = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
            reply(response, 200, &[TEXT], format!("{count}\n").as_bytes())
        }
        "/memory" => {
            let taken = take_memory_until_refused();
            reply(
                response,
                200,
                &[TEXT],
                format!("{taken} MiB, then no more\n").as_bytes(),
            )
        }
        "/panic" => panic!("asked to panic by the request for /panic"),
        "/spin" => loop {
            std::hint::black_box(());
        },
        _ => match path.strip_prefix("/status/").and_then(|code| code.parse().ok()) {
            Some(status @ 200..=599) => reply(response, status, &[TEXT], format!("status {status}\n").as_bytes()),
            _ => reply(response, 404, &[TEXT], format!("nothing at {path}\n").as_bytes()),
        },
    }
}

fn reply(response: ResponseOutparam, status: u16, headers: &[(&str, &str)], text: &[u8]) -> io::Result<()> {
    send(response, status, headers, |body| body.write_all(text))
}

/// Sends the head first and then whatever `write` writes, so that a body reaches the client while it is still being made.
fn send(
    response: ResponseOutparam,
    status: u16,
    headers: &[(&str, &str)],
    write: impl FnOnce(&mut OutputStream) -> io::Result<()>,
) -> io::Result<()> {
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value.as_bytes()).map_err(io::Error::other)?;
    }
    let head = OutgoingResponse::new(fields);
    head.set_status_code(status)
        .map_err(|()| io::Error::other(format!("the host refuses status {status}")))?;
    let body = head.body().map_err(|()| io::Error::other("the response has no body"))?;
    ResponseOutparam::set(response, Ok(head));

    let mut stream = body.write().map_err(|()| io::Error::other("the body has no stream"))?;
    write(&mut stream)?;
    stream.blocking_flush().map_err(io::Error::other)?;
    // A stream is a child of its body: the component model lets a parent go only after its children.
    drop(stream);
    OutgoingBody::finish(body, None).map_err(io::Error::other)
}

fn echo(request: IncomingRequest, response: ResponseOutparam) -> io::Result<()> {
    let content_type = request.headers().get("content-type").into_iter().next();
    let content_type = content_type.and_then(|value| String::from_utf8(value).ok());
    let content_type = content_type.as_deref().unwrap_or("application/octet-stream");
    let incoming = request
        .consume()
        .map_err(|()| io::Error::other("the request has no body"))?;
    let source = incoming
        .stream()
        .map_err(|()| io::Error::other("the request's body has no stream"))?;
    send(response, 200, &[("content-type", content_type)], |body| loop {
        match source.blocking_read(64 * 1024) {
            Ok(piece) => body.write_all(&piece)?,
            Err(StreamError::Closed) => return Ok(()),
            Err(StreamError::LastOperationFailed(error)) => return Err(io::Error::other(error)),
        }
    })
}

/// The beginning of `note.txt` in the folder that is granted.
fn note() -> Result<Vec<u8>, ErrorCode> {
    let (folder, _) = get_directories().pop().ok_or(ErrorCode::Access)?;
    let file = folder.open_at(PathFlags::empty(), "note.txt", OpenFlags::empty(), DescriptorFlags::READ)?;
    Ok(file.read(4096, 0)?.0)
}

/// The request as the guest sees it, as JSON.
fn describe(request: &IncomingRequest) -> String {
    let method = match request.method() {
        Method::Other(name) => name,
        named => format!("{named:?}").trim_start_matches("Method::").to_uppercase(),
    };
    let headers: Vec<String> = request
        .headers()
        .entries()
        .iter()
        .map(|(name, value)| format!("[{}, {}]", quote(name), quote(&String::from_utf8_lossy(value))))
        .collect();
    let optional = |value: Option<String>| value.map_or("null".into(), |text| quote(&text));
    format!(
        "{{\"method\": {}, \"path_with_query\": {}, \"scheme\": {}, \"authority\": {}, \"headers\": [{}]}}\n",
        quote(&method),
        optional(request.path_with_query()),
        optional(
            request
                .scheme()
                .map(|scheme| format!("{scheme:?}").trim_start_matches("Scheme::").to_lowercase())
        ),
        optional(request.authority()),
        headers.join(", "),
    )
}

/// A JSON string (RFC 8259, section 7).
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\0'..='\x1f' => quoted.push_str(&format!("\\u{:04x}", character as u32)),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// Allocates and fills one MiB after another, and gives all of it back before it returns how many there were.
fn take_memory_until_refused() -> usize {
    const MIB: usize = 1024 * 1024;
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(4096);
    loop {
        let mut block = Vec::new();
        if block.try_reserve_exact(MIB).is_err() {
            return taken.len();
        }
        block.resize(MIB, 1);
        taken.push(block);
    }
}

/// std's own panic message goes nowhere on wasm32-unknown-unknown; this one is seen on every target.
fn report_panics_on_stderr() {
    std::panic::set_hook(Box::new(|panic| complain(&panic.to_string())));
}

fn complain(text: &str) {
    // Nobody is left to tell when stderr itself fails.
    let _ = writeln!(wasip2::cli::stderr::get_stderr(), "rust-http: {text}");
}
