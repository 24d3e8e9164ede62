//! WebSocket (RFC 6455) for ASGI applications, as the ASGI specification has it.

use futures_util::{SinkExt, StreamExt};
use http::Request;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use crate::python::wait_until;
use crate::support::websocket::{Binary, Socket, Text, asked_over_http2, open_over_http2};
use crate::support::{Served, program, request};

fn start() -> Served {
    Served::start(program("asgi-websocket"), &["--workers", "1"])
}

#[tokio::test]
async fn messages_of_every_size_come_back() {
    let app = start();
    let mut socket = Socket::open(&app.address, "/echo").await;
    for text in [
        "hällo",
        "",
        &"x".repeat(126),
        &"y".repeat(70_000),
        &"z".repeat(3_000_000),
    ] {
        socket.send(text).await;
        let back = socket.next().await;
        assert!(back == Text(text.into()), "{} bytes", text.len());
    }
    for length in [0, 1, 131_072, 5_000_000] {
        let data: Vec<u8> = (0..length).map(|at: u32| at as u8).collect();
        socket.stream.send(Message::binary(data.clone())).await.unwrap();
        assert!(socket.next().await == Binary(data.into()), "{length} bytes");
    }
    socket.stream.send(Message::Ping("there?".into())).await.unwrap();
    let pong = socket.any().await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("there?".into()));
    socket.close(1000, "").await;
    wait_until(async || app.get("/").await.json()["echo"] == json!([1000, ""])).await;
    app.stop();
}

#[tokio::test]
async fn the_scope_has_every_key_of_the_specification() {
    let app = start();
    let protocols = [("sec-websocket-protocol", "one, two"), ("x-header", "1")];
    let mut socket = Socket::open_with(&app.address, "/show-scope?a=%20", &protocols).await;
    let Text(scope) = socket.next().await else { panic!() };
    let scope: serde_json::Value = serde_json::from_str(&scope).unwrap();
    for (key, value) in [
        ("type", "'websocket'"),
        ("http_version", "'1.1'"),
        ("scheme", "'ws'"),
        ("path", "'/show-scope'"),
        ("raw_path", "b'/show-scope'"),
        ("query_string", "b'a=%20'"),
        ("root_path", "''"),
        ("subprotocols", "['one', 'two']"),
        ("extensions", "{'websocket.http.response': {}}"),
    ] {
        assert_eq!(scope[key], value, "{key}: {scope}");
    }
    assert_eq!(scope["state"], json!({"shared": ["from the lifespan"]}));
    assert!(
        scope["headers"].as_str().unwrap().contains("(b'x-header', b'1')"),
        "{scope}"
    );
    assert!(scope["client"].as_str().unwrap().contains("127.0.0.1"), "{scope}");
    app.stop();
}

#[tokio::test]
async fn what_the_program_accepts_with_is_in_the_handshake() {
    let app = start();
    let protocols = [("sec-websocket-protocol", "one, two")];
    let mut socket = Socket::open_with(&app.address, "/subprotocol", &protocols).await;
    let headers = socket.response.headers();
    assert_eq!(headers["sec-websocket-protocol"], "two");
    assert_eq!(headers["x-more"], "1");
    assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(socket.closed().await, (1000, String::new()));
    app.stop();
}

#[tokio::test]
async fn a_program_may_refuse() {
    let app = start();
    assert_eq!(Socket::refused(&app.address, "/reject").await.status, 403);
    wait_until(async || app.get("/").await.json()["reject"] == "websocket.disconnect").await;
    let denied = Socket::refused(&app.address, "/deny").await;
    assert_eq!((denied.status, denied.text().as_str()), (418, "no thanks"));
    assert_eq!(denied.all("x-why"), [b"not today"]);
    for (path, problem) in [
        ("/silent", "without an answer to websocket.connect"),
        (
            "/too-early",
            "'websocket.send' can't be sent to a WebSocket before it is accepted",
        ),
        ("/raises-before", "it can't even begin"),
        ("/deny-halfway", "sent only a part of its reply"),
    ] {
        let reply = Socket::refused(&app.address, path).await;
        assert_eq!(reply.status, 500, "{path}");
        assert!(reply.text().contains(problem), "{path}: {}", reply.text());
    }
    app.stop();
}

#[tokio::test]
async fn each_end_has_its_code() {
    let app = start();
    let mut socket = Socket::open(&app.address, "/closes").await;
    assert_eq!(socket.closed().await, (4321, "därum".into()));
    wait_until(async || app.get("/").await.json()["closes"] == "RuntimeError").await;
    let mut socket = Socket::open(&app.address, "/returns").await;
    assert_eq!(socket.next().await, Text("last words".into()));
    assert_eq!(socket.closed().await.0, 1000);
    for path in ["/raises", "/accepts-twice"] {
        let mut socket = Socket::open(&app.address, path).await;
        assert_eq!(socket.closed().await.0, 1011, "{path}");
    }
    app.wait_for("RuntimeError: it went wrong in the middle");
    let mut socket = Socket::open(&app.address, "/echo").await;
    socket.close(4000, "därum").await;
    wait_until(async || app.get("/").await.json()["echo"] == json!([4000, "därum"])).await;
    // A close without a code.
    let mut socket = Socket::open(&app.address, "/echo").await;
    socket.stream.close(None).await.unwrap();
    wait_until(async || app.get("/").await.json()["echo"] == json!([1005, ""])).await;
    // And an end without a close.
    drop(Socket::open(&app.address, "/sends-after-disconnect").await);
    wait_until(async || {
        let seen = app.get("/").await.json();
        seen["code"] == 1006 && seen["error"] == "Disconnected"
    })
    .await;
    app.stop();
}

#[tokio::test]
async fn what_came_before_the_close_can_be_read_after_it() {
    let app = start();
    let mut socket = Socket::open(&app.address, "/reads-what-came-before-the-close").await;
    socket.send("one").await;
    socket.send("two").await;
    socket.close(1000, "").await;
    Socket::open(&app.address, "/go").await;
    let types = json!(["websocket.receive", "websocket.receive", "websocket.disconnect"]);
    wait_until(async || app.get("/").await.json()["types"] == types).await;
    app.stop();
}

#[tokio::test]
async fn too_much_or_nonsense_is_told_by_its_code() {
    let app = start();
    let mut socket = Socket::open(&app.address, "/echo").await;
    let sent = socket.stream.send(Message::binary(vec![0; (16 << 20) + 1])).await;
    // The close may come before all of it is sent.
    if sent.is_ok() {
        assert_eq!(socket.closed().await.0, 1009);
    }
    wait_until(async || app.get("/").await.json()["echo"][0] == 1009).await;
    let handshake = "GET /echo HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // A frame that is not masked; text that is no UTF-8; a kind of frame that there is not.
    let frames: [(&[u8], u16); 3] = [
        (b"\x81\x01x", 1002),
        (b"\x81\x81\0\0\0\0\xff", 1007),
        (b"\x83\x80\0\0\0\0", 1002),
    ];
    for (frame, code) in frames {
        let mut stream = tokio::net::TcpStream::connect(&app.address).await.unwrap();
        stream.write_all(handshake.as_bytes()).await.unwrap();
        stream.write_all(frame).await.unwrap();
        let mut said = Vec::new();
        let read = stream.read_to_end(&mut said);
        tokio::time::timeout(crate::support::PATIENCE, read)
            .await
            .unwrap()
            .unwrap();
        // RFC 6455, section 1.3, has this key and its answer.
        assert!(String::from_utf8_lossy(&said).contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let close = said.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(said[close], 0x88, "{frame:?}: {said:?}");
        assert_eq!(
            u16::from_be_bytes([said[close + 2], said[close + 3]]),
            code,
            "{frame:?}"
        );
    }
    app.stop();
}

#[tokio::test]
async fn a_handshake_that_is_none_is_refused() {
    let app = start();
    let upgrade = |version: &str, key: &str| {
        Request::get("/echo")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", version)
            .header("sec-websocket-key", key)
    };
    let old = request(&app.address, upgrade("8", "dGhlIHNhbXBsZSBub25jZQ=="), "").await;
    assert_eq!((old.status, old.all("sec-websocket-version")), (426, vec![&b"13"[..]]));
    let short = request(&app.address, upgrade("13", "dGhl"), "").await;
    assert_eq!(short.status, 400);
    // A program that knows no WebSockets sees a request.
    let wsgi = Served::start(program("wsgi-app"), &[]);
    assert_eq!(Socket::refused(&wsgi.address, "/").await.text(), "Hello from WSGI\n");
    wsgi.stop();
    app.stop();
}

#[tokio::test]
async fn who_does_not_read_makes_the_other_wait() {
    let app = start();
    let flooded = Socket::open(&app.address, "/flood").await;
    let mut last = json!(-1);
    // It sends until everything on the way is full, and no further.
    wait_until(async || {
        let now = app.get("/").await.json()["flood"].clone();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        std::mem::replace(&mut last, now.clone()) == now && now != 0
    })
    .await;
    assert!(last.as_u64().unwrap() < 64 << 20, "{last}");
    drop(flooded);
    let mut lazy = Socket::open(&app.address, "/lazy").await;
    assert_eq!(lazy.next().await, Text("ready".into()));
    let piece = Message::binary(vec![0; 1 << 20]);
    let mut sent = 0;
    let filling = async {
        loop {
            lazy.stream.send(piece.clone()).await.unwrap();
            sent += 1;
        }
    };
    let filled = tokio::time::timeout(std::time::Duration::from_secs(2), filling).await;
    assert!(filled.is_err() && sent < 64, "{sent} MiB");
    Socket::open(&app.address, "/go").await;
    lazy.stream.flush().await.unwrap();
    lazy.close(1000, "").await;
    wait_until(async || app.get("/").await.json()["lazy"].as_u64() >= Some(sent << 20)).await;
    app.stop();
}

#[tokio::test]
async fn the_end_of_the_server_is_a_restart_to_both() {
    let app = start();
    let mut socket = Socket::open(&app.address, "/waits").await;
    assert_eq!(socket.next().await, Text("waiting".into()));
    let (closed, output) = tokio::join!(socket.closed(), tokio::task::spawn_blocking(move || app.stop()));
    assert_eq!(closed.0, 1012);
    let output = output.unwrap();
    assert!(output.contains("told of the end: 1012"), "{output}");
}

/// RFC 8441, whatever runs the program.
#[tokio::test]
async fn over_http2_they_are_as_over_http1() {
    let app = start();
    let socket = open_over_http2(&app.address, "/echo?x").await.unwrap();
    assert_eq!(asked_over_http2(socket, "hällo").await, "hällo");
    wait_until(async || app.get("/").await.json()["echo"] == json!([1005, ""])).await;
    let mut socket = open_over_http2(&app.address, "/show-scope?a=%20").await.unwrap();
    let scope = socket.next().await.unwrap().unwrap().into_text().unwrap();
    let scope: serde_json::Value = serde_json::from_str(&scope).unwrap();
    for (key, value) in [
        ("type", "'websocket'"),
        ("http_version", "'2'"),
        ("path", "'/show-scope'"),
        ("query_string", "b'a=%20'"),
    ] {
        assert_eq!(scope[key], value, "{key}: {scope}");
    }
    assert!(scope["headers"].as_str().unwrap().contains(&app.address), "{scope}");
    drop(socket);
    let denied = open_over_http2(&app.address, "/deny").await.unwrap_err();
    assert_eq!(denied, (418, "no thanks".to_owned()));
    app.wait_for("GET /echo?x");
    app.stop();
    // A program that knows no WebSockets sees a request, whose reply is not taken for one.
    let wsgi = Served::start(program("wsgi-app"), &[]);
    assert_eq!(open_over_http2(&wsgi.address, "/").await.unwrap_err().0, 501);
    wsgi.stop();
    // One that serves HTTP itself.
    let node = Served::start(program("node-websocket"), &[]);
    let socket = open_over_http2(&node.address, "/chat").await.unwrap();
    assert_eq!(asked_over_http2(socket, "hi").await, "/chat: hi");
    node.stop();
}

/// A server of Node's own that takes upgrades (`server.on("upgrade")`), exported and listening by itself.
#[tokio::test]
async fn node_servers_have_theirs() {
    for listens in ["", "1"] {
        let app = Served::start(program("node-websocket"), &["--env", &format!("LISTENS={listens}")]);
        assert_eq!(app.get("/page").await.text(), "a page");
        let mut socket = Socket::open(&app.address, "/chat?x=1").await;
        for text in ["one", &"x".repeat(100)] {
            socket.send(text).await;
            assert_eq!(socket.next().await, Text(format!("/chat?x=1: {text}").into()));
        }
        // What goes wrong in one conversation is the end of no other.
        let mut other = Socket::open(&app.address, "/chat").await;
        other.send("fail").await;
        assert!(!matches!(other.any().await, Some(Ok(_))));
        app.wait_for("Error: in the middle of a conversation");
        socket.send("two").await;
        assert_eq!(socket.next().await, Text("/chat?x=1: two".into()));
        socket.close(1000, "").await;
        assert_eq!(Socket::refused(&app.address, "/no").await.status, 403);
        app.stop();
    }
}
