//! What a manifest's `[http]` asks for around requests.

use std::convert::Infallible;
use std::io::{Read, Write};

use ::http::{Method, Request};
use ::polyinit::wire::{ConfigurationAnswer, EventAnswer, Scope};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::oneshot;

use crate::host::{Guest, configuration_for, http_scope};
use crate::manifest::polyinit;
use crate::support::{PATIENCE, Served, ask_h2, folder_with, request, send_h2};

const APP: &str = "\
import asyncio
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    headers = dict(scope['headers'])
    length, more = 0, True
    while more:
        event = await receive()
        length, more = length + len(event.get('body', b'')), event.get('more_body', False)
    if scope['path'] == '/slow':
        await asyncio.sleep(1000)
    told = b'%d %s ' % (length, headers.get(b'x-request-id', b'none'))
    if scope['path'] == '/long':
        told *= 1000
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': told})
";

fn app(http: &str, arguments: &[&str]) -> (tempfile::TempDir, Served) {
    let manifest = format!("[components.app]\nsource = \"main.py\"\n[http]\n{http}\n");
    let folder = folder_with("polyinit.toml", manifest);
    std::fs::write(folder.path().join("main.py"), APP).unwrap();
    let app = Served::start(folder.path(), arguments);
    (folder, app)
}

#[tokio::test]
async fn nothing_is_done_unless_it_is_asked_for() {
    let (_folder, app) = app("", &[]);
    let headers = [
        ("origin", "https://a.example"),
        ("accept-encoding", "gzip"),
        ("x-request-id", "mine"),
    ];
    let response = app.ask("/long", &headers).await;
    assert!(response.text().starts_with("0 mine 0 mine"), "{response:?}");
    for name in [
        "x-request-id",
        "access-control-allow-origin",
        "content-encoding",
        "vary",
    ] {
        assert!(response.all(name).is_empty(), "{name}");
    }
    app.stop();
}

#[tokio::test]
async fn request_ids_come_in_or_are_made_and_go_out() {
    let (_folder, app) = app("request_id = true\naccess_log = \"json\"", &[]);
    let given = app.ask("/", &[("x-request-id", "mine-1")]).await;
    assert_eq!(
        (given.text().as_str(), given.all("x-request-id")),
        ("0 mine-1 ", vec![&b"mine-1"[..]])
    );
    let made = app.ask("/a?b", &[("x-request-id", "not one")]).await;
    let id = String::from_utf8(made.all("x-request-id")[0].to_vec()).unwrap();
    assert_eq!(made.text(), format!("0 {id} "));
    assert_ne!(id, "not one");
    let line = app.wait_for(&id);
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["path"], &line["status"]), (&"/a?b".into(), &200.into()));
    assert!(line["ms"].as_f64().unwrap() > 0.0 && line["client"].is_string() && line["time"].is_number());
    app.stop();
}

#[tokio::test]
async fn the_access_log_is_as_asked_for() {
    let (_folder, app) = app("access_log = \"off\"", &[]);
    app.get("/unseen").await;
    assert!(!app.stop().contains("/unseen"));
    let (_folder, app) = self::app("access_log = \"off\"", &["--json"]);
    app.get("/seen").await;
    assert!(app.wait_for("/seen").starts_with('{'));
    app.stop();
}

#[tokio::test]
async fn replies_are_compressed_for_those_who_take_it() {
    let (_folder, app) = app("compression = true", &[]);
    let plain = app.get("/long").await;
    assert!(plain.all("content-encoding").is_empty());
    let packed = app.ask("/long", &[("accept-encoding", "gzip")]).await;
    assert_eq!(packed.all("content-encoding"), [b"gzip"]);
    assert!(packed.body.len() < plain.body.len() / 10, "{}", packed.body.len());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed.body[..])
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, plain.text());
    for encoding in ["br", "zstd"] {
        let packed = app.ask("/long", &[("accept-encoding", encoding)]).await;
        assert_eq!(packed.all("content-encoding"), [encoding.as_bytes()]);
    }
    // What is a few bytes only grows.
    let short = app.ask("/", &[("accept-encoding", "gzip")]).await;
    assert!(short.all("content-encoding").is_empty());
    app.stop();
}

/// What is compressed has no strong tag: whoever has half of it may not be given the other half of what is not.
#[tokio::test]
async fn what_is_compressed_is_told_apart_from_what_is_not() {
    let program = "\
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    headers = [(b'content-type', b'text/plain'), (b'etag', b'\"a\"')]
    if scope['path'] == '/as-it-is':
        headers.append((b'cache-control', b'max-age=1, No-Transform'))
    if scope['path'] == '/encoded':
        headers.append((b'content-encoding', b'deflate'))
    await send({'type': 'http.response.start', 'status': 201, 'headers': headers})
    await send({'type': 'http.response.body', 'body': b'x' * 1000})
";
    let (folder, app) = app("compression = true", &[]);
    app.stop();
    std::fs::write(folder.path().join("main.py"), program).unwrap();
    let app = Served::start(folder.path(), &[]);
    for (path, accepted, encoding, tag) in [
        ("/", "gzip", Some("gzip"), "W/\"a\""),
        ("/", "identity", None, "\"a\""),
        ("/as-it-is", "gzip", None, "\"a\""),
        ("/encoded", "gzip, deflate", Some("deflate"), "\"a\""),
        // Whoever takes nothing at all is given it all the same: the program has done what it was asked for.
        ("/", "*;q=0", None, "\"a\""),
    ] {
        let reply = app.ask(path, &[("accept-encoding", accepted)]).await;
        let encodings: Vec<&[u8]> = encoding.into_iter().map(str::as_bytes).collect();
        assert_eq!(reply.all("content-encoding"), encodings, "{path} {accepted}");
        assert_eq!(reply.all("etag"), [tag.as_bytes()], "{path} {accepted}");
        assert_eq!(reply.status, 201, "{path} {accepted}");
    }
    app.stop();
}

#[tokio::test]
async fn a_slow_reply_is_a_504() {
    let (_folder, app) = app("timeout = 0.2", &[]);
    let slow = app.get("/slow").await;
    assert_eq!(slow.status, 504);
    assert!(slow.text().contains("[http] timeout"), "{}", slow.text());
    assert_eq!(app.get("/").await.status, 200);
    app.stop();
}

#[tokio::test]
async fn a_body_beyond_its_limit_is_a_413_announced_or_not() {
    let (_folder, app) = app("body_limit = 10", &[]);
    assert!(app.post("/", "1234567890").await.text().starts_with("10 "));
    let refused = app.post("/", "12345678901").await;
    assert_eq!(refused.status, 413);
    assert!(refused.text().contains("body_limit, 10 bytes"), "{}", refused.text());
    // A length that nobody announced.
    let mut stream = std::net::TcpStream::connect(&app.address).unwrap();
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
            6\r\n123456\r\n6\r\n123456\r\n0\r\n\r\n",
        )
        .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    app.stop();
}

#[tokio::test]
async fn pages_of_other_origins() {
    let cors = "cors = { origins = [\"https://a.example\"], credentials = true, expose = [\"x-b\"], max_age = 60 }";
    let (_folder, app) = app(cors, &[]);
    let origin = ("origin", "https://a.example");
    let allowed = app.ask("/", &[origin]).await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.all("access-control-allow-origin"), [b"https://a.example"]);
    assert_eq!(allowed.all("access-control-allow-credentials"), [b"true"]);
    assert_eq!(allowed.all("access-control-expose-headers"), [b"x-b"]);
    let other = app.ask("/", &[("origin", "https://b.example")]).await;
    assert!(other.all("access-control-allow-origin").is_empty());
    // The question before a request (Fetch standard, CORS-preflight request) doesn't reach the program.
    let before = Request::options("/slow")
        .header(origin.0, origin.1)
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "x-c");
    let before = request(&app.address, before, "").await;
    assert_eq!(before.status, 200);
    assert_eq!(before.all("access-control-allow-methods"), [b"PUT"]);
    assert_eq!(before.all("access-control-allow-headers"), [b"x-c"]);
    assert_eq!(before.all("access-control-max-age"), [b"60"]);
    // What else asks for options is the program's to answer.
    let options = request(&app.address, Request::options("/").header(origin.0, origin.1), "").await;
    assert_eq!(options.text(), "0 none ");
    assert_eq!(options.all("access-control-allow-origin"), [b"https://a.example"]);
    app.stop();
}

#[tokio::test]
async fn who_asks_too_often_has_to_wait() {
    let http = "rate_limit = { requests = 2, seconds = 3600 }\nrequest_id = true\ncors = { origins = [\"*\"] }";
    let (_folder, app) = app(http, &[]);
    for _ in 0..3 {
        // A browser's question before a request is none.
        let before = Request::options("/")
            .header("origin", "https://a.example")
            .header("access-control-request-method", "PUT");
        assert_eq!(request(&app.address, before, "").await.status, 200);
    }
    assert_eq!(app.get("/").await.status, 200);
    assert_eq!(app.get("/").await.status, 200);
    let refused = app.get("/").await;
    assert_eq!(refused.status, 429);
    let wait: u32 = String::from_utf8_lossy(refused.all("retry-after")[0]).parse().unwrap();
    assert!((1700..=1800).contains(&wait), "{wait}");
    assert_eq!(refused.all("x-request-id").len(), 1);
    // A page that may not read the reply would not know why it has none.
    assert_eq!(refused.all("access-control-allow-origin"), [b"*"]);
    app.stop();
}

/// What a machine does: the program comes after the intake.
#[tokio::test]
async fn a_machines_own_intake_does_what_its_program_asks_for() {
    let http = "request_id = true\naccess_log = \"json\"\ncompression = true\nbody_limit = 10\n\
        rate_limit = { requests = 5, seconds = 3600 }\ncors = { origins = [\"https://a.example\"] }";
    let folder = folder_with(
        "polyinit.toml",
        format!("[components.app]\nsource = \"main.py\"\n[http]\n{http}\n"),
    );
    std::fs::write(folder.path().join("main.py"), APP).unwrap();
    let guest = Guest::start(&["--http", "127.0.0.1:0"]).await;
    let line = guest.wait_for("requests are taken on http://");
    let address = line.split(['/', ',']).nth(2).unwrap().to_owned();
    let ask = async |path: &str, headers: &[(&str, &str)], body: &str| {
        let asked = headers.iter().fold(Request::post(path), |request, (name, value)| {
            request.header(*name, *value)
        });
        request(&address, asked, body.to_owned()).await
    };
    let early = ask("/", &[], "").await;
    assert_eq!((early.status, early.all("x-request-id").len()), (503, 0));
    let answer = guest.configure(&configuration_for(folder.path(), "asgi", "")).await;
    assert_eq!(answer, ConfigurationAnswer::Success);

    let asked = [
        ("x-request-id", "mine"),
        ("accept-encoding", "gzip"),
        ("origin", "https://a.example"),
    ];
    let long = ask("/long", &asked, "").await;
    assert_eq!((long.status, long.all("x-request-id")), (200, vec![&b"mine"[..]]));
    assert_eq!(long.all("content-encoding"), [b"gzip"]);
    assert_eq!(long.all("access-control-allow-origin"), [b"https://a.example"]);
    let line: serde_json::Value = serde_json::from_str(&guest.wait_for("/long")).unwrap();
    assert_eq!((&line["request_id"], &line["status"]), (&"mine".into(), &200.into()));
    let large = ask("/", &[], "12345678901").await;
    assert_eq!(large.status, 413);
    assert!(!large.text().contains("body_limit"), "{}", large.text());
    while ask("/", &[], "").await.status == 200 {}
    assert_eq!(ask("/", &[], "").await.status, 429);

    // The host's own events: nobody can be counted, and nothing is compressed.
    let mut scope = http_scope("GET", "/long", "");
    if let Scope::Http(scope) = &mut scope {
        scope
            .headers
            .extend(asked.map(|(name, value)| (name.into(), value.into())));
    }
    let EventAnswer::Http(reply) = guest.event(&scope).await else {
        panic!("no reply");
    };
    let has = |name: &str, value: &str| {
        reply
            .headers
            .contains(&(name.to_owned().into(), value.to_owned().into()))
    };
    assert!(has("x-request-id", "mine") && has("access-control-allow-origin", "https://a.example"));
    assert!(reply.body.starts_with(b"0 mine 0 mine"));
    let mut scope = http_scope("POST", "/", "");
    if let Scope::Http(scope) = &mut scope {
        scope.body = "12345678901".into();
    }
    let EventAnswer::Failure { error, .. } = guest.event(&scope).await else {
        panic!("too large a body is taken");
    };
    assert!(error.contains("body_limit, 10 bytes"), "{error}");
    guest.stop().await;
}

#[test]
fn mistakes_are_told_before_anything_is_served() {
    for (http, expected) in [
        ("timeout = 0", "must be more than 0"),
        ("timeout = -1.5", "must be more than 0"),
        ("timeout = nan", "must be more than 0 seconds"),
        ("body_limit = -1", "must be 0 or more"),
        ("cors = { }", "the key `origins` is missing"),
        ("cors = { origins = [\"a.example\"] }", "\"a.example\" is no origin"),
        (
            "cors = { origins = [\"*\"], credentials = true }",
            "every origin can't be let in",
        ),
        (
            "cors = { origins = [\"*\"], methods = [\"get\"] }",
            "\"get\" is no HTTP method",
        ),
        (
            "cors = { origins = [\"*\"], expose = [\"a b\"] }",
            "\"a b\" is no header's name",
        ),
        ("rate_limit = { requests = 0 }", "must be 1 or more"),
        ("access_log = \"jsn\"", "did you mean `json`?"),
        ("compresion = true", "did you mean `compression`?"),
    ] {
        let folder = folder_with(
            "polyinit.toml",
            format!("[components.app]\nsource = \"main.py\"\n[http]\n{http}\n"),
        );
        std::fs::write(folder.path().join("main.py"), APP).unwrap();
        let (code, _, errors) = polyinit(&["check", folder.path().to_str().unwrap()]);
        assert_eq!(code, 1, "{http}");
        assert!(
            errors.contains("polyinit.toml:4:") && errors.contains(expected),
            "{http}: {errors}"
        );
    }
}

/// What says why must not be lost because the client is still sending.
#[tokio::test]
async fn who_sends_too_much_is_told_so() {
    let (_folder, app) = app("body_limit = 10", &[]);
    let body = vec![b'x'; 8 << 20];
    for _ in 0..3 {
        let mut stream = std::net::TcpStream::connect(&app.address).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        stream.write_all(&body).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    }
    app.stop();
}

/// Over HTTP/2, where nobody but us would leave it away.
#[tokio::test]
async fn what_has_no_body_has_none() {
    let manifest =
        "[components.python]\nsource = \"main.py\"\n[components.node]\nsource = \"main.mjs\"\nroutes = [\"/node/*\"]\n";
    let folder = folder_with("polyinit.toml", manifest);
    let python = "def handler(event, context):\n    return {'status': int(event['path'][-3:]), 'body': 'the body'}\n";
    let node = "export const handler = (event) => ({ status: Number(event.path.slice(-3)), body: 'the body' });\n";
    std::fs::write(folder.path().join("main.py"), python).unwrap();
    std::fs::write(folder.path().join("main.mjs"), node).unwrap();
    let app = Served::start(folder.path(), &[]);
    for prefix in ["", "/node"] {
        let ask = async |method, status: &str| ask_h2(&app.address, method, &format!("{prefix}/{status}"), &[]).await;
        let whole = ask(Method::GET, "200").await;
        assert_eq!(
            (whole.text().as_str(), whole.all("content-length")),
            ("the body", vec![&b"8"[..]])
        );
        let head = ask(Method::HEAD, "200").await;
        assert_eq!(
            (head.text().as_str(), head.all("content-length")),
            ("", vec![&b"8"[..]])
        );
        for status in ["204", "304"] {
            let none = ask(Method::GET, status).await;
            assert_eq!((none.status.to_string().as_str(), none.text().as_str()), (status, ""));
        }
    }
    app.stop();
}

/// A program's 200 would seem to be one.
#[tokio::test]
async fn nobody_gets_a_tunnel() {
    let (_folder, app) = app("", &[]);
    let mut stream = std::net::TcpStream::connect(&app.address).unwrap();
    stream
        .write_all(b"CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
    app.stop();
}

/// It would be taken for a host, and go before the one that is named.
#[tokio::test]
async fn a_target_without_its_slash_is_none() {
    let (_folder, app) = app("", &[]);
    let mut stream = std::net::TcpStream::connect(&app.address).unwrap();
    stream
        .write_all(b"GET page HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
    app.stop();
}

/// Clients that take the end of a stream for an error (curl 7.88, Node 20) would lose the reply.
#[tokio::test]
async fn an_upload_that_nobody_wants_may_be_sent_to_its_end() {
    let folder = folder_with("index.html", "hello");
    let app = Served::start(folder.path(), &[]);
    // More than the windows of a stream and of its connection have room for.
    let pieces = stream::iter(0..64).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 64 << 10]))));
    let (sends_last, last) = oneshot::channel();
    let end = stream::once(async move {
        let _ = sends_last.send(());
        Ok(Frame::data(Bytes::new()))
    });
    let body = StreamBody::new(Box::pin(pieces.chain(end)));
    let upload = Request::post("/").body(body).unwrap();
    assert_eq!(send_h2(&app.address, upload).await.status, 405);
    tokio::time::timeout(PATIENCE, last)
        .await
        .unwrap()
        .expect("all of it is sent");
    app.stop();
}
