//! HTTP between a client and a program that serves it, byte by byte where that matters: what an intermediary passes on,
//! and what it owes to either side (RFC 9110).

use futures_util::SinkExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::websocket::{Binary, Socket, Text};
use crate::support::{PATIENCE, Served, built, executable, request};

/// A server on raw sockets, so that a test sees every byte of a request and writes every byte of a reply.
/// `serve(client, head, rest)` is the test's own.
const RAW: &str = include_str!("programs/raw_http.py");

struct Raw {
    app: Served,
    _folder: tempfile::TempDir,
}

impl Raw {
    fn start(serve: &str) -> Self {
        let folder = executable("server", &format!("{RAW}{serve}\nlisten()\n"));
        Self {
            app: Served::start(folder.path(), &[]),
            _folder: folder,
        }
    }

    /// Sends bytes, and reads until `enough` of the reply is there.
    async fn exchange(&self, sent: &str, enough: impl Fn(&str) -> bool) -> String {
        let mut client = self.connect().await;
        client.write_all(sent.as_bytes()).await.unwrap();
        read_until(&mut client, enough).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.app.address).await.unwrap()
    }
}

async fn read_until(client: &mut TcpStream, enough: impl Fn(&str) -> bool) -> String {
    let mut said = Vec::new();
    let reading = async {
        while !enough(&String::from_utf8_lossy(&said)) {
            if client.read_buf(&mut said).await.unwrap() == 0 {
                break;
            }
        }
    };
    let done = tokio::time::timeout(PATIENCE, reading).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(done.is_ok(), "in time: {said}");
    said
}

#[tokio::test]
async fn websockets_pass_through() {
    let app = Served::start(built("node-koa"), &[]);
    let mut socket = Socket::open(&app.address, "/chat").await;
    assert_eq!(socket.next().await, Text("hello 127.0.0.1".into()));
    socket.send("écho").await;
    assert_eq!(socket.next().await, Text("écho".into()));
    let large: Vec<u8> = (0..2_000_000_u32).map(|at| at as u8).collect();
    socket.stream.send(Binary(large.clone().into())).await.unwrap();
    assert_eq!(socket.next().await, Binary(large.into()));
    // Others have theirs meanwhile, and requests go on.
    let mut other = Socket::open(&app.address, "/chat").await;
    assert_eq!(other.next().await, Text("hello 127.0.0.1".into()));
    assert_eq!(app.get("/").await.status, 200);
    socket.stream.close(None).await.unwrap();
    drop(other);
    assert_eq!(Socket::refused(&app.address, "/elsewhere").await.status, 400);
    app.stop();
}

#[tokio::test]
async fn any_protocol_can_take_over() {
    let raw = Raw::start(
        r#"
def serve(client, head, rest):
    if b"upgrade: shout" not in head.lower():
        reply(client, head)
        return
    client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\nX-Loud: yes\r\n\r\nready\n")
    while piece := client.recv(65536):
        client.sendall(piece.upper())
    client.sendall(b"end\n")
    return "close"
"#,
    );
    let mut client = raw.connect().await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: shout\r\n\r\n")
        .await
        .unwrap();
    let said = read_until(&mut client, |said| said.ends_with("ready\n")).await;
    assert!(said.starts_with("HTTP/1.1 101 "), "{said}");
    let fields = said.to_lowercase();
    for field in ["connection: upgrade", "upgrade: shout", "x-loud: yes"] {
        assert!(fields.contains(field), "{said}");
    }
    client.write_all(b"hello\n").await.unwrap();
    assert_eq!(read_until(&mut client, |said| said.ends_with('\n')).await, "HELLO\n");
    // One half may end before the other.
    client.shutdown().await.unwrap();
    assert_eq!(read_until(&mut client, |_| false).await, "end\n");
    // The program's other requests know nothing of it; nor does it hear of an upgrade to HTTP/2.
    let h2c = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let said = raw.exchange(h2c, |said| said.contains("127.0.0.1")).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    assert!(!said.to_lowercase().contains("h2c"), "{said}");
    raw.app.stop();
}

const EXPECTING: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_program_may_refuse_a_body_before_it_is_sent() {
    let raw = Raw::start(
        "def serve(client, head, rest):\n    reply(client, b'no', '417 Expectation Failed')\n    return 'close'",
    );
    let said = raw.exchange(EXPECTING, |said| said.ends_with("no")).await;
    assert!(said.starts_with("HTTP/1.1 417 "), "{said}");
    raw.app.stop();
}

#[tokio::test]
async fn a_program_may_ask_for_a_body() {
    let raw = Raw::start(
        r#"
def serve(client, head, rest):
    assert b"expect: 100-continue" in head.lower() and rest == b"", head
    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    reply(client, client.recv(65536))
"#,
    );
    let mut client = raw.connect().await;
    client.write_all(EXPECTING.as_bytes()).await.unwrap();
    let said = read_until(&mut client, |said| said.ends_with("\r\n\r\n")).await;
    assert_eq!(said, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.unwrap();
    let said = read_until(&mut client, |said| said.ends_with("hello")).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    raw.app.stop();
}

#[tokio::test]
async fn a_program_that_knows_no_expectations_gets_its_body() {
    let raw = Raw::start(
        r#"
def serve(client, head, rest):
    while len(rest) < 5:
        rest += client.recv(65536)
    reply(client, rest)
"#,
    );
    let said = raw
        .exchange(&format!("{EXPECTING}hello"), |said| said.ends_with("hello"))
        .await;
    assert!(said.contains("HTTP/1.1 200 "), "{said}");
    raw.app.stop();
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let raw = Raw::start(
        r#"
def serve(client, head, rest):
    while not rest.endswith(b"\r\n\r\n"):
        rest += client.recv(65536)
    body = repr(rest).encode()
    client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
    client.sendall(b"%x\r\n%s\r\n0\r\nX-Sum: 7\r\n\r\n" % (len(body), body))
"#,
    );
    let sent = "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\nTrailer: X-Mine\r\n\r\n\
                5\r\nhello\r\n0\r\nX-Mine: 8\r\n\r\n";
    let said = raw
        .exchange(sent, |said| said.to_lowercase().contains("x-sum: 7\r\n\r\n"))
        .await;
    assert!(said.contains("hello"), "{said}");
    assert!(said.to_lowercase().contains("x-mine: 8"), "{said}");
    raw.app.stop();
}

#[tokio::test]
async fn informational_replies_are_no_final_ones() {
    let raw = Raw::start(
        r#"
def serve(client, head, rest):
    client.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
    reply(client, b"final")
"#,
    );
    let said = raw
        .exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n", |said| said.ends_with("final"))
        .await;
    assert!(said.contains("HTTP/1.1 200 "), "{said}");
    raw.app.stop();
}

#[tokio::test]
async fn a_reply_to_head_has_no_body_and_its_length() {
    let raw = Raw::start(
        r#"
def serve(client, head, rest):
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")
"#,
    );
    let mut client = raw.connect().await;
    for _ in 0..2 {
        client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let said = read_until(&mut client, |said| said.ends_with("\r\n\r\n")).await;
        assert!(said.to_lowercase().contains("content-length: 12345\r\n"), "{said}");
    }
    raw.app.stop();
}

#[tokio::test]
async fn connections_are_used_again() {
    let raw = Raw::start(
        r#"
ports = set()
def serve(client, head, rest):
    ports.add(client.getpeername()[1])
    reply(client, str(len(ports)).encode())
"#,
    );
    for _ in 0..20 {
        assert_eq!(raw.app.get("/").await.text(), "1");
    }
    raw.app.stop();
}

#[tokio::test]
async fn fields_of_one_hop_stay_there() {
    let raw = Raw::start(
        r#"
def serve(client, head, rest):
    reply(client, head, headers="Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nProxy-Connection: x\r\nX-End: 2\r\n")
"#,
    );
    let asked = http::Request::get("/")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=9")
        .header("proxy-connection", "x")
        .header("forwarded", "for=198.51.100.7")
        .header("x-end", "2");
    let reply = request(&raw.app.address, asked, "").await;
    for name in ["x-hop", "keep-alive", "proxy-connection"] {
        assert!(!reply.headers.contains_key(name), "{reply:?}");
        assert!(
            !reply.text().to_lowercase().contains(&format!("\n{name}:")),
            "{reply:?}"
        );
    }
    assert_eq!(reply.headers["x-end"], "2");
    let head = reply.text().to_lowercase();
    assert!(head.contains("x-end: 2"), "{head}");
    assert!(head.contains("event-id: "), "{head}");
    assert!(head.contains("x-forwarded-proto: http"), "{head}");
    let own = format!(
        "for=198.51.100.7, for=127.0.0.1;host=\"{}\";proto=http",
        raw.app.address
    );
    assert!(head.contains(&own), "{head}");
    raw.app.stop();
}

/// A target that is whole says whom it is for, and not the field beside it (RFC 9112, section 3.2.2).
#[tokio::test]
async fn the_host_is_that_of_the_target() {
    let raw = Raw::start("def serve(client, head, rest):\n    reply(client, head)");
    let request = "GET http://real.example/path HTTP/1.1\r\nHost: other.example\r\n\r\n";
    let said = raw.exchange(request, |said| said.contains("X-Forwarded-Host")).await;
    assert!(said.contains("GET /path HTTP/1.1\r\nHost: real.example\r\n"), "{said}");
    assert!(!said.contains("other.example"), "{said}");
    raw.app.stop();
}

/// Whom it is for would be another one for each who reads it (RFC 9112, section 3.2).
#[tokio::test]
async fn a_request_with_two_hosts_or_none_is_refused() {
    let raw = Raw::start("def serve(client, head, rest):\n    reply(client, head)");
    for hosts in ["Host: a.example\r\nHost: b.example\r\n", ""] {
        let request = format!("GET / HTTP/1.1\r\n{hosts}\r\n");
        let said = raw.exchange(&request, |said| said.contains("\r\n\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
    }
    let old = raw
        .exchange("GET / HTTP/1.0\r\n\r\n", |said| said.contains("GET / "))
        .await;
    assert!(old.starts_with("HTTP/1.0 200 "), "{old}");
    raw.app.stop();
}
