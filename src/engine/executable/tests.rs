//! Real programs: Python servers and shell scripts, each in a folder of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};

use super::*;
use crate::engine::listen;
use crate::engine::testing::{SECONDS, text, until};
use crate::event::BodyError;
use crate::program::{EngineKind, Entrypoint};

/// Answers on raw sockets, so that a test sees every byte of the request and writes every byte of the reply.
/// `serve(client, head, rest)` is the test's own.
const RAW: &str = include_str!("../../../tests/programs/raw_http.py");

/// A program in a folder that goes with it.
struct Program {
    folder: tempfile::TempDir,
    component: Component,
    settings: Settings,
}

impl Program {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server");
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let entrypoint = Entrypoint::File("server".into());
        let component = Component::new("server", folder.path(), EngineKind::Executable, entrypoint);
        let settings = Settings {
            conventional_port: listen::free_port().unwrap(),
            start_timeout: SECONDS,
            event_timeout: SECONDS,
            ..Settings::default()
        };
        Self {
            folder,
            component,
            settings,
        }
    }

    /// With `serve` in Python, and what follows it.
    fn raw(serve: &str) -> Self {
        Self::new(&format!("{RAW}{serve}\nlisten()\n"))
    }

    async fn start(&self) -> Arc<dyn Engine> {
        match start(&self.component, &self.settings).await {
            Ok(engine) => engine,
            Err(error) => panic!("{error}\n{}", error.traceback.as_deref().unwrap_or_default()),
        }
    }

    async fn fail(&self) -> StartError {
        start(&self.component, &self.settings)
            .await
            .err()
            .expect("that it does not start")
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

async fn send(engine: &Arc<dyn Engine>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    match tokio::time::timeout(SECONDS, engine.handle(Event::http(request)))
        .await
        .expect("a reply in time")?
    {
        Reply::Http(response) => Ok(response),
        Reply::Value(value) => panic!("a value: {value:?}"),
    }
}

async fn get(engine: &Arc<dyn Engine>, target: &str) -> Response<Body> {
    send(engine, Request::get(target).body(Body::empty()).unwrap())
        .await
        .unwrap()
}

const ECHO_HEAD: &str = "def serve(client, head, rest): reply(client, head)";

#[tokio::test]
async fn the_request_arrives_as_it_came() {
    let engine = Program::raw(ECHO_HEAD).start().await;
    let request = Request::get("/%2e%2e/x//../y?a=%20b%2520&c=+")
        .header("host", "a.example")
        .header("accept-encoding", "gzip")
        .header("x-latin", http::HeaderValue::from_bytes(b"caf\xe9").unwrap())
        .header("x-two", "1")
        .header("x-two", "2")
        .header("connection", "close")
        .body(Body::empty())
        .unwrap();
    let body = send(&engine, request)
        .await
        .unwrap()
        .into_body()
        .collect(1 << 20)
        .await
        .unwrap();
    let lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).collect();
    assert_eq!(lines[0], b"GET /%2e%2e/x//../y?a=%20b%2520&c=+ HTTP/1.1");
    let mut fields = lines[1..].to_vec();
    // What the log calls it is the only thing that is added.
    let id = fields
        .iter()
        .position(|field| field.starts_with(b"Event-Id: "))
        .expect("its id");
    fields.remove(id);
    fields.sort_unstable();
    let expected: [&[u8]; 5] = [
        b"Accept-Encoding: gzip",
        b"Host: a.example",
        b"X-Latin: caf\xe9",
        b"X-Two: 1",
        b"X-Two: 2",
    ];
    assert_eq!(fields, expected);
}

#[tokio::test]
async fn the_reply_goes_back_as_it_is() {
    let engine = Program::raw(
        r#"
def serve(client, head, rest):
    import gzip
    reply(client, gzip.compress(b"zipped", mtime=0), "302 Found",
          "Location: http://127.0.0.1:1/\r\nSet-Cookie: a=1\r\nX-Latin: caf\xe9\r\nSet-Cookie: b=2\r\n"
          "Content-Encoding: gzip\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\n")
"#,
    )
    .start()
    .await;
    let response = get(&engine, "/").await;
    assert_eq!(response.status(), StatusCode::FOUND);
    let headers = response.headers();
    assert_eq!(headers["location"], "http://127.0.0.1:1/");
    assert_eq!(headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!(headers["x-latin"].as_bytes(), b"caf\xe9");
    assert_eq!(headers["content-encoding"], "gzip");
    assert!(!headers.contains_key("connection") && !headers.contains_key("keep-alive"));
    let body = response.into_body().collect(1 << 20).await.unwrap();
    assert_eq!(body[..2], [0x1f, 0x8b]);
}

#[tokio::test]
async fn replies_without_a_body() {
    let engine = Program::raw(
        r#"
def serve(client, head, rest):
    method, target = head.split(b" ")[:2]
    if method == b"HEAD":
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")
    elif target == b"/early":
        client.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        reply(client, b"later")
    else:
        client.sendall(b"HTTP/1.1 " + target[1:] + b" Nothing\r\n\r\n")
"#,
    )
    .start()
    .await;
    let head = send(&engine, Request::head("/").body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(head.headers()["content-length"], "12345");
    assert!(head.body().is_end_stream());
    for status in ["204", "304"] {
        let response = get(&engine, &format!("/{status}")).await;
        assert_eq!(response.status().as_str(), status);
        assert!(response.body().is_end_stream());
    }
    assert_eq!(text(get(&engine, "/early").await).await, "later");
}

#[tokio::test]
async fn connections_are_used_again() {
    let engine = Program::raw("def serve(client, head, rest): reply(client, str(client.getpeername()[1]).encode())")
        .start()
        .await;
    let first = text(get(&engine, "/").await).await;
    for _ in 0..3 {
        assert_eq!(text(get(&engine, "/").await).await, first);
    }
    // By now it is known that this program keeps connections, so that this may be trusted to one too.
    let post = Request::post("/").body(Body::empty()).unwrap();
    assert_eq!(text(send(&engine, post).await.unwrap()).await, first);
}

#[tokio::test]
async fn chunked_bodies_leave_the_connection_usable() {
    let engine = Program::raw(
        r#"
def serve(client, head, rest):
    body = b"%x\r\n%s\r\n" % (5, b"%05d" % client.getpeername()[1])
    client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n")
"#,
    )
    .start()
    .await;
    let response = get(&engine, "/").await;
    assert!(!response.headers().contains_key("transfer-encoding"));
    let first = text(response).await;
    assert_eq!(text(get(&engine, "/").await).await, first);
}

#[tokio::test]
async fn a_program_may_close_after_each_reply_without_saying_so() {
    let engine = Program::raw("def serve(client, head, rest):\n    reply(client, head.split()[0])\n    return 'close'")
        .start()
        .await;
    for _ in 0..30 {
        assert_eq!(text(get(&engine, "/").await).await, "GET");
        let post = Request::post("/").body(Body::from("x")).unwrap();
        assert_eq!(text(send(&engine, post).await.unwrap()).await, "POST");
    }
}

#[tokio::test]
async fn a_body_may_end_with_the_connection() {
    let engine = Program::raw(
        r#"
def serve(client, head, rest):
    client.sendall(b"HTTP/1.0 200 OK\r\n\r\nto the end")
    return "close"
"#,
    )
    .start()
    .await;
    assert_eq!(text(get(&engine, "/").await).await, "to the end");
}

#[tokio::test]
async fn one_connection_at_a_time_is_enough() {
    // Reads the same connection until its end before it accepts the next one.
    let script = format!(
        "{RAW}{}",
        r#"
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
def serve(client, head, rest): reply(client, b"served")
while True: connection(server.accept()[0])
"#
    );
    let engine = Program::new(&script).start().await;
    let events = (0..8).map(|_| async { text(get(&engine, "/").await).await });
    let replies = futures_util::future::join_all(events).await;
    assert_eq!(replies, ["served"; 8]);
}

#[tokio::test]
async fn more_at_once_than_the_program_queues() {
    let engine = Program::new(
        r#"#!/usr/bin/env python3
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"served")
http.server.HTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"#,
    )
    .start()
    .await;
    let events = (0..64).map(|_| async { text(get(&engine, "/").await).await });
    assert_eq!(futures_util::future::join_all(events).await, ["served"; 64]);
}

const DIGEST: &str = r#"
def serve(client, head, rest):
    import hashlib
    length = int(head.lower().split(b"content-length: ")[1].split()[0])
    digest = hashlib.sha256(rest)
    length -= len(rest)
    while length:
        piece = client.recv(min(length, 1 << 20))
        length -= len(piece)
        digest.update(piece)
    reply(client, digest.hexdigest().encode())
"#;

fn ten_mebibytes() -> Vec<u8> {
    (0..10 << 20)
        .map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}

fn streamed(bytes: Vec<u8>) -> Body {
    let pieces: Vec<Result<_, BodyError>> = bytes
        .chunks(100_000)
        .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    Body::stream(StreamBody::new(futures_util::stream::iter(pieces)))
}

#[tokio::test]
async fn large_requests() {
    let engine = Program::raw(DIGEST).start().await;
    let bytes = ten_mebibytes();
    let expected = sha256(&bytes);
    let whole = Request::post("/").body(Body::from(Bytes::from(bytes.clone()))).unwrap();
    assert_eq!(text(send(&engine, whole).await.unwrap()).await, expected);
    let pieces = Request::post("/")
        .header("content-length", bytes.len())
        .body(streamed(bytes))
        .unwrap();
    assert_eq!(text(send(&engine, pieces).await.unwrap()).await, expected);
}

#[tokio::test]
async fn large_replies() {
    let program = Program::raw("def serve(client, head, rest): reply(client, open('body', 'rb').read())");
    fs::write(program.file("body"), ten_mebibytes()).unwrap();
    let engine = program.start().await;
    let body = get(&engine, "/").await.into_body().collect(10 << 20).await.unwrap();
    assert_eq!(sha256(&body), sha256(&ten_mebibytes()));
}

#[tokio::test]
async fn pieces_arrive_while_the_program_goes_on() {
    // The second piece is only sent when the client, who has seen the first, makes the file.
    let program = Program::raw(
        r#"
def serve(client, head, rest):
    client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
    while not os.path.exists("seen"): time.sleep(0.001)
    client.sendall(b"3\r\ntwo\r\n0\r\nX-Trailer: 3\r\n\r\n")
"#,
    );
    let engine = program.start().await;
    let mut body = get(&engine, "/").await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    fs::write(program.file("seen"), "").unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_trailers().unwrap()["x-trailer"],
        "3"
    );
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn requests_stream_too() {
    let engine = Program::raw(
        r#"
def serve(client, head, rest):
    assert b"Transfer-Encoding: chunked" in head
    client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not rest.endswith(b"0\r\n\r\n"):
        if rest: client.sendall(b"%x\r\n%s\r\n" % (len(rest), rest))
        rest = client.recv(65536)
    client.sendall(b"0\r\n\r\n")
"#,
    )
    .start()
    .await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((Ok::<_, BodyError>(Frame::data(Bytes::from(piece))), receiver))
    });
    let request = Request::post("/")
        .body(Body::stream(StreamBody::new(Box::pin(pieces))))
        .unwrap();
    let mut body = send(&engine, request).await.unwrap().into_body();
    for word in ["first", "second"] {
        sender.send(word).unwrap();
        let echoed = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(echoed, format!("{:x}\r\n{word}\r\n", word.len()));
    }
    drop(sender);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_reply_that_comes_too_late() {
    let mut program = Program::raw("def serve(client, head, rest): time.sleep(60)");
    program.settings.event_timeout = Duration::from_millis(80);
    let engine = program.start().await;
    let failure = send(&engine, Request::get("/").body(Body::empty()).unwrap())
        .await
        .unwrap_err();
    assert_eq!(
        (failure.kind, &failure.message[..]),
        (FailureKind::Timeout, "server sent no reply within 80ms")
    );
}

#[tokio::test]
async fn a_reply_that_falls_silent_or_breaks_off() {
    let mut program = Program::raw(
        r#"
def serve(client, head, rest):
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
    if b"silent" in head: time.sleep(60)
    return "close"
"#,
    );
    program.settings.event_timeout = Duration::from_millis(500);
    let engine = program.start().await;
    for (target, expected) in [
        ("/silent", "the program sent nothing more of its reply for 500ms"),
        ("/broken", "the program broke its reply off"),
    ] {
        let error = get(&engine, target)
            .await
            .into_body()
            .collect(1 << 20)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_length_beside_chunks_means_nothing() {
    let engine = Program::raw(
        "def serve(client, head, rest):\n    client.sendall(b'HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\
         Content-Length: 3\\r\\n\\r\\n5\\r\\nhello\\r\\n0\\r\\n\\r\\n')\n    return 'close'",
    )
    .start()
    .await;
    let response = get(&engine, "/").await;
    assert!(!response.headers().contains_key("content-length"), "{response:?}");
    assert_eq!(text(response).await, "hello");
}

#[tokio::test]
async fn old_ways_to_write_fields() {
    let engine = Program::raw(
        "def serve(client, head, rest): reply(client, b'', headers='X-Folded: a\\r\\n b\\r\\nX-Spaced : c\\r\\n')",
    )
    .start()
    .await;
    let response = get(&engine, "/").await;
    assert_eq!(response.headers()["x-spaced"], "c");
    let folded = response.headers()["x-folded"].to_str().unwrap();
    assert_eq!(folded.split_ascii_whitespace().collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn a_reply_to_a_request_that_is_not_read() {
    // Closing with the rest unread resets the connection, when there is more to be written already.
    let engine = Program::raw(
        "def serve(client, head, rest):\n    reply(client, b'too large', '413 Content Too Large')\n    return 'close'",
    )
    .start()
    .await;
    for _ in 0..20 {
        let request = Request::post("/").body(streamed(ten_mebibytes())).unwrap();
        let response = send(&engine, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(text(response).await, "too large");
    }
}

#[tokio::test]
async fn what_is_no_http() {
    let engine =
        Program::raw("def serve(client, head, rest):\n    client.sendall(b'hello\\r\\n\\r\\n')\n    return 'close'")
            .start()
            .await;
    let failure = send(&engine, Request::get("/").body(Body::empty()).unwrap())
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::Gone);
    assert!(
        failure
            .message
            .starts_with("server answered with something that is no HTTP/1.1 reply"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_by_the_program() {
    let program = Program::raw(
        r#"
def serve(client, head, rest):
    open("got", "w").close()
    if client.recv(1) == b"": open("gone", "w").close()
"#,
    );
    let engine = program.start().await;
    let handling = engine.handle(Event::http(Request::get("/").body(Body::empty()).unwrap()));
    let got = program.file("got");
    tokio::select! {
        _ = handling => panic!("there is no reply"),
        () = until("the request arrived", || got.exists()) => {}
    }
    until("the program saw the end", || program.file("gone").exists()).await;
}

#[tokio::test]
async fn listens_where_it_likes() {
    let conventional = "import os; address = ('127.0.0.1', int(os.environ['CONVENTIONAL']))";
    let told = "import os; address = ('::', int(os.environ['PORT']))";
    for address in [conventional, told] {
        let mut program = Program::new(&format!(
            r#"#!/usr/bin/env python3
{address}
import http.server, socketserver, socket
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if address[0] == "::" else socket.AF_INET
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%s %s" % (os.environ["HOST"].encode(), os.getcwd().encode()))
Server(address, Handler).serve_forever()
"#
        ));
        let port = program.settings.conventional_port;
        program
            .component
            .environment
            .insert("CONVENTIONAL".to_owned(), port.to_string());
        let engine = program.start().await;
        assert_eq!(
            engine.describe().ends_with(&format!(":{port}")),
            address == conventional
        );
        let root = program.folder.path().display();
        assert_eq!(text(get(&engine, "/").await).await, format!("127.0.0.1 {root}"));
    }
}

#[tokio::test]
async fn a_port_of_its_own_choice() {
    let mut program = Program::raw(ECHO_HEAD);
    let port = listen::free_port().unwrap();
    program
        .component
        .environment
        .insert("PORT".to_owned(), port.to_string());
    assert_eq!(
        program.start().await.describe(),
        format!("serves HTTP on 127.0.0.1:{port}")
    );
    program
        .component
        .environment
        .insert("PORT".to_owned(), "http".to_owned());
    assert_eq!(
        program.fail().await.message,
        "server: PORT=http in its environment is no port number"
    );
}

#[tokio::test]
async fn the_server_may_be_a_child() {
    let script = format!("{RAW}{ECHO_HEAD}\nlisten()\n");
    let program = Program::new("#!/bin/sh\npython3 child.py &\nwait\n");
    fs::write(program.file("child.py"), script).unwrap();
    let engine = program.start().await;
    assert!(text(get(&engine, "/x").await).await.starts_with("GET /x "));
}

#[tokio::test]
async fn a_listener_of_somebody_else_is_not_taken() {
    let mut program = Program::new("#!/bin/sh\necho waiting >&2\nexec sleep 100\n");
    let before = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    program.settings.conventional_port = before.local_addr().unwrap().port();
    program.settings.start_timeout = Duration::from_millis(300);
    let error = program.fail().await;
    assert!(error.message.ends_with("within 300ms: it listens nowhere"), "{error}");
    assert_eq!(error.traceback.as_deref(), Some("waiting"));

    // Nor one that appears after the program has started.
    program.settings.conventional_port = listen::free_port().unwrap();
    program.settings.start_timeout = Duration::from_millis(500);
    let script = "#!/bin/sh\n: > started\nexec sleep 100\n";
    fs::write(program.file("server"), script).unwrap();
    let started = program.file("started");
    let listen_meanwhile = async {
        until("it started", || started.exists()).await;
        std::net::TcpListener::bind(("127.0.0.1", program.settings.conventional_port)).unwrap()
    };
    let (_listener, error) = tokio::join!(listen_meanwhile, program.fail());
    assert!(error.message.ends_with("it listens nowhere"), "{error}");
}

#[tokio::test]
async fn a_program_that_listens_elsewhere() {
    let mut program = Program::raw("listen(int(os.environ['ELSEWHERE']))");
    let port = listen::free_port().unwrap();
    program
        .component
        .environment
        .insert("ELSEWHERE".to_owned(), port.to_string());
    program.settings.start_timeout = Duration::from_secs(1);
    let error = program.fail().await;
    assert!(
        error.message.contains(&format!(
            "within 1s: it listens on 127.0.0.1:{port}; one that takes a port of its own"
        )),
        "{error}"
    );
    let environment = &mut program.component.environment;
    environment.insert("PORT".to_owned(), port.to_string());
    program.settings.start_timeout = SECONDS;
    program.start().await;
}

#[tokio::test]
async fn a_program_that_dies_at_start() {
    let error = Program::new("#!/bin/sh\necho no database >&2\nexit 3\n").fail().await;
    assert!(
        error
            .message
            .contains("exited with status 3 before it listened on port "),
        "{error}"
    );
    assert_eq!(error.traceback.as_deref(), Some("no database"));
    let error = Program::new("#!/bin/sh\nkill -ABRT $$\n").fail().await;
    assert!(
        error.message.contains("was killed by SIGABRT before it listened"),
        "{error}"
    );
}

#[test]
fn a_program_that_ran_is_for_this_machine() {
    let told = |status, foreign| super::launch::advice(status, || foreign);
    for status in [2, 126, 127] {
        assert_eq!(told(Some(status), true), "it is made for another kind of machine");
        assert!(told(Some(status), false).ends_with("serve HTTP there"));
    }
    for status in [Some(0), Some(3), None] {
        assert!(told(status, true).ends_with("serve HTTP there"));
    }
}

#[tokio::test]
async fn what_cannot_be_started() {
    let mut program = Program::new("#!/no/such/interpreter\n");
    let error = program.fail().await;
    assert!(
        error.message.contains("the interpreter that its first line names"),
        "{error}"
    );
    let error = Program::new("#!/bin/sh\r\nexit 0\r\n").fail().await;
    assert!(error.message.contains("its first line ends in CR LF"), "{error}");
    let for_arm = "\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x28\0";
    let error = Program::new(for_arm).fail().await;
    assert!(
        error.message.ends_with("it is made for another kind of machine"),
        "{error}"
    );
    program.component.entrypoint = Entrypoint::File("absent".into());
    assert!(program.fail().await.message.contains("absent: No such file"));
    program.component.entrypoint = Entrypoint::File(".".into());
    assert!(program.fail().await.message.ends_with("is no file"));
    program.component.entrypoint = Entrypoint::Module {
        module: "main".to_owned(),
        attribute: None,
    };
    assert!(program.fail().await.message.contains("is a file, not a module"));
}

#[tokio::test]
async fn is_made_executable() {
    let program = Program::raw(ECHO_HEAD);
    let file = program.file("server");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    program.start().await;
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o750);
}

#[tokio::test]
async fn dies_with_an_event_and_is_started_again() {
    let program = Program::raw(
        r#"
def serve(client, head, rest):
    if b"/die" in head:
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(9)
    reply(client, str(os.getpid()).encode())
"#,
    );
    let engine = program.start().await;
    let first = text(get(&engine, "/").await).await;
    let failure = send(&engine, Request::get("/die").body(Body::empty()).unwrap())
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::Gone);
    assert_eq!(failure.message, "server exited with status 9 while it had this event");
    assert_eq!(failure.traceback.as_deref(), Some("out of luck"));
    // Waits for the restart.
    assert_ne!(text(get(&engine, "/").await).await, first);
}

#[tokio::test]
async fn a_program_that_cannot_be_started_again() {
    let program = Program::raw(
        r#"
if os.path.exists("once"): sys.exit("no second time")
open("once", "w").close()
def serve(client, head, rest): os.kill(os.getpid(), signal.SIGKILL)
"#,
    );
    let engine = program.start().await;
    let failure = send(&engine, Request::get("/").body(Body::empty()).unwrap())
        .await
        .unwrap_err();
    assert_eq!(failure.message, "server was killed by SIGKILL while it had this event");
    let failure = send(&engine, Request::get("/").body(Body::empty()).unwrap())
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(
        failure.message.contains("server is down and will be started again in "),
        "{failure}"
    );
    assert!(
        failure.message.contains("exited with status 1 before it listened"),
        "{failure}"
    );
    assert_eq!(failure.traceback.as_deref(), Some("no second time"));
}

#[tokio::test]
async fn an_end_between_events_is_noticed_at_once() {
    let program = Program::raw(
        r#"
open(f"pid-{os.getpid()}", "w").close()
def serve(client, head, rest): reply(client, b"")
"#,
    );
    let engine = program.start().await;
    let runs = || fs::read_dir(program.folder.path()).unwrap().count() - 1;
    assert_eq!(runs(), 1);
    let name = fs::read_dir(program.folder.path())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("pid-")?.parse().ok());
    let id = nix::unistd::Pid::from_raw(name.last().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).unwrap();
    until("it runs again, though no event came", || runs() == 2).await;
    get(&engine, "/").await;
}

#[tokio::test]
async fn stops_gently_and_for_good() {
    let program = Program::raw(
        r#"
def bye(*_):
    open("bye", "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, bye)
def serve(client, head, rest): reply(client, b"")
"#,
    );
    let engine = program.start().await;
    engine.stop(SECONDS).await;
    assert!(program.file("bye").exists());
    let failure = send(&engine, Request::get("/").body(Body::empty()).unwrap())
        .await
        .unwrap_err();
    assert_eq!(
        (failure.kind, &failure.message[..]),
        (FailureKind::Unavailable, "server was stopped")
    );
    engine.stop(SECONDS).await;
}

#[tokio::test]
async fn is_killed_when_nobody_has_it_any_more() {
    let program = Program::raw("def serve(client, head, rest): reply(client, str(os.getpid()).encode())");
    let engine = program.start().await;
    let id: i32 = text(get(&engine, "/").await).await.parse().unwrap();
    drop(engine);
    until("it is gone", || {
        crate::engine::process::members(nix::unistd::Pid::from_raw(id)).is_empty()
    })
    .await;
}

#[tokio::test]
async fn messages() {
    let mut program = Program::raw(
        r#"
def serve(client, head, rest):
    if b"Event-Type: message" not in head: return
    if rest == b"{}": reply(client, head.split(b"\r\n")[0] + b" " + rest)
    else: reply(client, b"not this one", "422 No")
"#,
    );
    let engine = program.start().await;
    let failure = engine.handle(Event::message("{}")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotFound);
    program.component.messages = true;
    let engine = program.start().await;
    match engine.handle(Event::message("{}")).await.unwrap() {
        Reply::Value(value) => assert_eq!(value, "POST / HTTP/1.1 {}"),
        Reply::Http(response) => panic!("{response:?}"),
    }
    let failure = engine.handle(Event::message("[]")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Program);
    assert_eq!(failure.traceback.as_deref(), Some("not this one"));
}
