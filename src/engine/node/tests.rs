//! Real Node programs, each in a folder of its own. Where there is no Node on the machine they fail, saying so.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};

use crate::engine::testing::{SECONDS, text, until};
use crate::engine::{Engine, Settings, StartError};
use crate::event::{Body, BodyError, Event, Failure, FailureKind, Reply};
use crate::program::{Component, EngineKind, Entrypoint};

/// A program in a folder that goes with it.
struct Program {
    folder: tempfile::TempDir,
    component: Component,
    settings: Settings,
}

impl Program {
    /// With these files, the first of which is where it begins.
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let entrypoint = Entrypoint::File(files[0].0.into());
        let component = Component::new("program", folder.path(), EngineKind::Node, entrypoint);
        let conventional = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            conventional_port: conventional.local_addr().unwrap().port(),
            start_timeout: SECONDS,
            event_timeout: SECONDS,
            workers: Some(1),
            ..Settings::default()
        };
        Self {
            folder,
            component,
            settings,
        }
    }

    async fn start(&self) -> Arc<dyn Engine> {
        match super::start(&self.component, &self.settings).await {
            Ok(engine) => engine,
            Err(error) => panic!("{error}\n{}", error.traceback.as_deref().unwrap_or_default()),
        }
    }

    async fn fail(&self) -> StartError {
        super::start(&self.component, &self.settings)
            .await
            .err()
            .expect("that it does not start")
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

async fn start(program: &str) -> (Arc<dyn Engine>, Program) {
    let program = Program::new(&[("main.mjs", program)]);
    (program.start().await, program)
}

async fn send(engine: &Arc<dyn Engine>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let handling = engine.handle(Event::http(request));
    match tokio::time::timeout(SECONDS, handling)
        .await
        .expect("a reply in time")?
    {
        Reply::Http(response) => Ok(response),
        Reply::Value(value) => panic!("a value: {value:?}"),
    }
}

fn request(target: &str) -> Request<Body> {
    Request::get(target).body(Body::empty()).unwrap()
}

async fn get(engine: &Arc<dyn Engine>, target: &str) -> Response<Body> {
    send(engine, request(target)).await.unwrap()
}

fn there(path: &Path) -> impl Fn() -> bool {
    move || path.exists()
}

#[tokio::test]
async fn every_form_of_a_program() {
    let fetch = "async function fetch(request) { return new Response(new URL(request.url).pathname) }";
    let forms: [(&str, String, &str); 9] = [
        (
            "main.mjs",
            format!("{fetch}; export default {{ fetch }}"),
            "`export default { fetch }`",
        ),
        ("main.mjs", format!("export {fetch}"), "`export function fetch`"),
        (
            "main.mjs",
            format!("export default {fetch}"),
            "`export default function`",
        ),
        (
            "main.js",
            format!("{fetch}; module.exports = {{ fetch }}"),
            "`module.exports = { fetch }`",
        ),
        (
            "main.cjs",
            "require('http').createServer((request, response) => response.end(request.url)).listen(process.env.PORT)"
                .to_owned(),
            "serves HTTP on ",
        ),
        (
            "main.mjs",
            "import { createServer } from 'node:http';
             await new Promise((done) => setTimeout(done, 20));
             setTimeout(() => createServer((request, response) => response.end(request.url))
                 .listen(process.env.PORT, '127.0.0.1'), 20)"
                .to_owned(),
            "serves HTTP on 127.0.0.1:",
        ),
        (
            "main.js",
            "module.exports = require('http').createServer((request, response) => response.end(request.url))"
                .to_owned(),
            "serves HTTP on 127.0.0.1:",
        ),
        (
            "main.mjs",
            "export default (request, response) => response.end(request.url)".to_owned(),
            "serves HTTP on 127.0.0.1:",
        ),
        (
            "main.js",
            "const server = require('http').createServer((request, response) => response.end(request.url))
             if (require.main === module) server.listen(process.env.PORT)"
                .to_owned(),
            "serves HTTP on ",
        ),
    ];
    for (file, source, expected) in forms {
        let program = Program::new(&[(file, &source)]);
        let engine = program.start().await;
        let description = engine.describe();
        assert!(description.starts_with(expected), "{description}: {source}");
        assert_eq!(text(get(&engine, "/a/b").await).await, "/a/b", "{source}");
    }
}

#[tokio::test]
async fn what_is_exported_is_served_wherever_it_listens() {
    let (engine, _program) = start(
        "import { createServer } from 'node:http';
         const server = createServer((request, response) => response.end(request.url));
         server.listen(0, '127.0.0.1');
         export default server",
    )
    .await;
    assert_eq!(text(get(&engine, "/a").await).await, "/a");
    assert!(engine.has_own_port(), "another one can't run beside it");
    let program = "require('http').createServer().listen(0);
        module.exports = (request, response) => response.end(request.url)";
    let program = Program::new(&[("main.js", program)]);
    assert_eq!(text(get(&program.start().await, "/b").await).await, "/b");
    let (engine, _program) = start(
        "import { createServer } from 'node:http';
         createServer().listen(0);
         export default function (request) { return new Response(new URL(request.url).pathname) }",
    )
    .await;
    assert_eq!(text(get(&engine, "/c").await).await, "/c");
}

/// Node 20.12 and newer (nodejs.org/api/process.html#processloadenvfilepath).
fn reads_env_files() -> bool {
    let asked = std::process::Command::new("node")
        .args(["-p", "typeof process.loadEnvFile"])
        .output()
        .unwrap();
    asked.stdout == b"function\n"
}

#[tokio::test]
async fn a_package_begins_where_it_says() {
    let module = "export default { fetch: () => new Response(import.meta.url.split('/').at(-1)) }";
    for (package, expected) in [
        (r#"{ "type": "module", "main": "src/a.js" }"#, "a.js"),
        (
            r#"{ "type": "module", "main": "src/a.js", "scripts": { "start": "node src/b.js" } }"#,
            "b.js",
        ),
        (
            r#"{ "main": "src/c.mjs", "scripts": { "start": "next start" } }"#,
            "c.mjs",
        ),
    ] {
        let files = [
            ("src/a.js", module),
            ("src/b.js", module),
            ("src/c.mjs", module),
            ("package.json", package),
        ];
        let mut program = Program::new(&files);
        program.component.entrypoint = Entrypoint::File(".".into());
        let engine = program.start().await;
        assert_eq!(text(get(&engine, "/").await).await, expected);
    }
    let started = "export default { fetch: () => Response.json([...process.argv.slice(2), process.env.MODE, globalThis.before]) }";
    for (start, expected) in [
        (
            r"MODE=production node src/a.mjs --loud 'two words'",
            r#"["--loud","two words","production",null]"#,
        ),
        (
            r"node --no-warnings -r ./before.js --env-file=.env src/a.mjs",
            if reads_env_files() {
                r#"["from a file","here"]"#
            } else {
                r#"[null,"here"]"#
            },
        ),
        ("cross-env MODE=x node --import ./before.js src/a", r#"["x","here"]"#),
        ("node --conditions before.js src/a.mjs x", r#"["x",null,null]"#),
        // What is loaded ahead may take TypeScript, whatever Node takes.
        ("tsx src/b.ts x", r#"["x",null,"by tsx"]"#),
    ] {
        let package = serde_json::json!({ "scripts": { "start": start } }).to_string();
        let files = [
            ("src/a.mjs", started),
            (
                "src/a.js",
                "import('./a.mjs'); module.exports = import('./a.mjs').then((a) => a.default)",
            ),
            ("src/b.ts", "module.exports = require('./a.js')"),
            ("node_modules/tsx/index.js", "globalThis.before = 'by tsx'"),
            ("before.js", "globalThis.before = 'here'"),
            (".env", "MODE='from a file'"),
            ("package.json", &package),
        ];
        let mut program = Program::new(&files);
        program.component.entrypoint = Entrypoint::File(".".into());
        assert_eq!(text(get(&program.start().await, "/").await).await, expected, "{start}");
    }
    for file in ["index.mjs", "server.mjs", ".output/server/index.mjs"] {
        let mut program = Program::new(&[(file, module), ("package.json", "{}")]);
        program.component.entrypoint = Entrypoint::File(".".into());
        let begun = text(get(&program.start().await, "/").await).await;
        assert!(file.ends_with(&begun), "{begun}");
    }
    let mut program = Program::new(&[
        ("bin/b.mjs", module),
        ("package.json", r#"{ "bin": { "b": "bin/b.mjs" } }"#),
    ]);
    program.component.entrypoint = Entrypoint::File(".".into());
    assert_eq!(text(get(&program.start().await, "/").await).await, "b.mjs");
    let mut program = Program::new(&[("index.mjs", module), ("server.mjs", ""), ("package.json", "{}")]);
    program.component.entrypoint = Entrypoint::File(".".into());
    assert_eq!(text(get(&program.start().await, "/").await).await, "index.mjs");
    let package = r#"{ "scripts": { "start": "node dist/missing.js" } }"#;
    let mut program = Program::new(&[("package.json", package)]);
    program.component.entrypoint = Entrypoint::File(".".into());
    let error = program.fail().await;
    assert!(
        error.message.ends_with("under scripts.start; there is: package.json"),
        "{error}"
    );
    let package = r#"{ "scripts": { "start": "next start" } }"#;
    let mut program = Program::new(&[("package.json", package)]);
    program.component.entrypoint = Entrypoint::File(".".into());
    let error = program.fail().await;
    assert!(
        error
            .message
            .contains(r#"which is "next start" (to run that: a run.sh"#),
        "{error}"
    );
    let mut program = Program::new(&[("other.js", ""), ("package.json", "{}")]);
    program.component.entrypoint = Entrypoint::File(".".into());
    let error = program.fail().await;
    assert!(
        error.message.contains("package.json names no file that is there"),
        "{error}"
    );
    assert!(error.message.ends_with("there is: other.js, package.json"), "{error}");
}

#[tokio::test]
async fn node_is_told_what_the_script_tells_it() {
    let shown = "const { heap_size_limit } = require('v8').getHeapStatistics();
        const found = [process.execArgv, typeof gc, heap_size_limit < 2 ** 28];
        module.exports = { fetch: () => Response.json(found) }";
    for start in [
        "node --expose-gc --max-old-space-size=100 a.js",
        "NODE_OPTIONS='--expose-gc --max-old-space-size=100' node a.js",
    ] {
        let package = serde_json::json!({ "scripts": { "start": start } }).to_string();
        let mut program = Program::new(&[("a.js", shown), ("package.json", &package)]);
        program.component.entrypoint = Entrypoint::File(".".into());
        let found = text(get(&program.start().await, "/").await).await;
        assert_eq!(found, r#"[["--expose-gc","--max-old-space-size=100"],"function",true]"#);
    }
}

#[tokio::test]
async fn variables_of_the_script_are_there_when_node_starts() {
    let first = "const first = require('fs').readFileSync('/proc/self/environ', 'latin1').split('\\0');
        const found = first.filter((line) => /^(UV_|NODE_EXTRA|MODE=)/.test(line)).sort();
        module.exports = { fetch: () => new Response(found.join()) }";
    let start = "UV_THREADPOOL_SIZE=2 NODE_EXTRA_CA_CERTS=ca.pem MODE=script node a.js";
    let package = serde_json::json!({ "scripts": { "start": start } }).to_string();
    let mut program = Program::new(&[("a.js", first), ("package.json", &package), ("ca.pem", "")]);
    program.component.entrypoint = Entrypoint::File(".".into());
    let own = [("MODE".to_owned(), "own".to_owned())];
    program.component.environment.extend(own);
    super::warm_up(&program.settings.warm, &program.settings);
    until("one is warm", || {
        format!("{:?}", program.settings.warm).contains("Node")
    })
    .await;
    let found = text(get(&program.start().await, "/").await).await;
    let certificates = program.file("./ca.pem");
    let expected = format!(
        "MODE=own,NODE_EXTRA_CA_CERTS={},UV_THREADPOOL_SIZE=2",
        certificates.display()
    );
    assert_eq!(found, expected);
}

#[tokio::test]
async fn the_request_is_the_standards_own() {
    let (engine, _program) = start(
        r#"
export default {
  async fetch(request, env) {
    const headers = [...request.headers].map(([name, value]) => `${name}=${value}`).join("|");
    const body = await request.text();
    return Response.json([request.method, request.url, headers, body, request instanceof Request, typeof env.PORT]);
  },
}"#,
    )
    .await;
    let post = Request::post("/a%20b/%C3%A9?q=%2520&r=+")
        .header("host", "a.example:81")
        .header("x-latin", http::HeaderValue::from_bytes(b"caf\xe9 \"\\").unwrap())
        .header("x-two", "1")
        .header("x-two", "2")
        .body(Body::from("né"))
        .unwrap();
    assert_eq!(
        text(send(&engine, post).await.unwrap()).await,
        r#"["POST","http://a.example:81/a%20b/%C3%A9?q=%2520&r=+","host=a.example:81|x-latin=café \"\\|x-two=1, 2","né",true,"string"]"#
    );
    let chunked = Request::post("/")
        .header("transfer-encoding", "chunked")
        .header("expect", "100-continue")
        .body(Body::from("x"));
    let seen = text(send(&engine, chunked.unwrap()).await.unwrap()).await;
    assert_eq!(seen, r#"["POST","http://localhost/","","x",true,"string"]"#);
    let h2 = Request::get("https://b.example/").body(Body::empty()).unwrap();
    assert!(text(send(&engine, h2).await.unwrap()).await.contains("host=b.example"));
    let odd = Request::get("/x")
        .header("host", "a b@c")
        .body(Body::from("dropped"))
        .unwrap();
    assert!(
        text(send(&engine, odd).await.unwrap())
            .await
            .contains("http://localhost/x")
    );
    let trace = Request::builder().method("TRACE").uri("/").body(Body::empty()).unwrap();
    assert_eq!(send(&engine, trace).await.unwrap().status(), 501);
}

#[tokio::test]
async fn the_reply_goes_back_as_it_is() {
    let (engine, _program) = start(
        r#"
export default {
  fetch(request) {
    if (request.url.endsWith("/empty")) return new Response(null, { status: 204 });
    const headers = new Headers([["set-cookie", "a=1"], ["location", "/x"], ["set-cookie", "b=2"], ["x-latin", "caf\xe9"]]);
    return new Response("moved", { status: 302, headers });
  },
}"#,
    )
    .await;
    let response = get(&engine, "/").await;
    assert_eq!(response.status(), 302);
    let headers = response.headers();
    assert_eq!(headers["location"], "/x");
    assert_eq!(headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!(headers["x-latin"].as_bytes(), b"caf\xe9");
    assert_eq!(
        response.body().size_hint().exact(),
        Some(5),
        "small replies come in one frame"
    );
    assert_eq!(text(response).await, "moved");
    let empty = get(&engine, "/empty").await;
    assert_eq!((empty.status().as_u16(), empty.body().is_end_stream()), (204, true));
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let (engine, _program) = start(
        r#"
export default {
  fetch(request) {
    const upper = new TransformStream({
      transform(piece, controller) { controller.enqueue(new TextEncoder().encode(new TextDecoder().decode(piece).toUpperCase())) },
    });
    return new Response(request.body.pipeThrough(upper));
  },
}"#,
    )
    .await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((Ok::<_, BodyError>(Frame::data(Bytes::from(piece))), receiver))
    });
    let body = Body::stream(StreamBody::new(Box::pin(pieces)));
    sender.send("first").unwrap();
    let mut body = send(&engine, Request::post("/").body(body).unwrap())
        .await
        .unwrap()
        .into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "FIRST");
    sender.send("second").unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "SECOND");
    drop(sender);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn large_bodies() {
    let (engine, _program) = start(
        r#"
import { createHash } from "node:crypto";
export default {
  async fetch(request) {
    if (request.method === "GET") return new Response(new Uint8Array(10 << 20).map((_, index) => index % 251));
    return new Response(createHash("sha256").update(new Uint8Array(await request.arrayBuffer())).digest("hex"));
  },
}"#,
    )
    .await;
    let bytes: Vec<u8> = (0..10 << 20).map(|index: u32| (index % 251) as u8).collect();
    let reply = get(&engine, "/").await.into_body().collect(10 << 20).await.unwrap();
    assert!(reply == bytes);
    let digest = {
        use sha2::Digest;
        data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(&bytes))
    };
    let post = Request::post("/").body(Body::from(Bytes::from(bytes))).unwrap();
    assert_eq!(text(send(&engine, post).await.unwrap()).await, digest);
}

#[tokio::test]
async fn a_slow_client_slows_the_program_down() {
    let program = Program::new(&[(
        "main.mjs",
        r#"
import { writeFileSync } from "node:fs";
let sent = 0;
export default {
  fetch(request) {
    if (request.url.endsWith("/sent")) return new Response(String(sent));
    return new Response(new ReadableStream({
      pull(controller) {
        sent += 1;
        controller.enqueue(new Uint8Array(100_000));
        if (sent === 100) controller.close();
      },
    }));
  },
}"#,
    )]);
    let engine = program.start().await;
    let mut body = get(&engine, "/").await.into_body();
    body.frame().await.unwrap().unwrap();
    let sent = async || text(get(&engine, "/sent").await).await.parse::<u32>().unwrap();
    // It stops at the window, however long nobody reads.
    let mut before = 0;
    loop {
        let now = sent().await;
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < 20, "{before}");
    assert_eq!(body.collect(10_000_000).await.unwrap().len(), 99 * 100_000);
    assert_eq!(sent().await, 100);
}

#[tokio::test]
async fn a_client_that_goes_away_aborts_the_signal() {
    let program = Program::new(&[(
        "main.mjs",
        r#"
import { writeFileSync } from "node:fs";
export default {
  async fetch(request) {
    if (request.url.endsWith("/stream")) {
      return new Response(new ReadableStream({
        pull(controller) { controller.enqueue("piece") ; return new Promise((done) => setTimeout(done, 5)) },
        cancel(reason) { writeFileSync("cancelled", reason.name) },
      }));
    }
    request.signal.addEventListener("abort", () => writeFileSync("aborted", request.signal.reason.name));
    writeFileSync("waiting", "");
    await new Promise(() => {});
  },
}"#,
    )]);
    let engine = program.start().await;
    let waiting = program.file("waiting");
    tokio::select! {
        _ = send(&engine, request("/")) => panic!("there is no reply"),
        () = until("the request arrived", there(&waiting)) => {}
    }
    let is_abort = |name: &str| fs::read_to_string(program.file(name)).is_ok_and(|reason| reason == "AbortError");
    until("the signal was aborted", || is_abort("aborted")).await;
    let mut body = get(&engine, "/stream").await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    until("the stream was cancelled", || is_abort("cancelled")).await;
}

#[tokio::test]
async fn what_goes_wrong_is_the_failure_of_one_event() {
    let (engine, _program) = start(
        r#"
export default {
  async fetch(request) {
    switch (new URL(request.url).pathname) {
      case "/throw": throw new TypeError("thrown", { cause: new Error("the cause") });
      case "/nothing": return;
      case "/string": return "text";
      case "/reject":
        Promise.reject(new Error("rejected"));
        await new Promise(() => {});
      case "/timer":
        setTimeout(() => { throw new Error("in a timer") }, 1);
        await new Promise(() => {});
      case "/status": return { status: 99, headers: [], body: null };
      case "/stream":
        return new Response(new ReadableStream({
          start(controller) { controller.enqueue("begin"); setTimeout(() => controller.error(new Error("in the stream")), 5) },
        }));
    }
    await new Promise((done) => setTimeout(done, 50));
    return new Response("fine");
  },
}"#,
    )
    .await;
    let other = tokio::spawn({
        let engine = engine.clone();
        async move { text(get(&engine, "/").await).await }
    });
    for (target, message, account) in [
        ("/throw", "TypeError: thrown", "[cause]: Error: the cause"),
        (
            "/nothing",
            "TypeError: the program's fetch gave undefined where a Response belongs",
            "",
        ),
        (
            "/string",
            "TypeError: the program's fetch gave a string where a Response belongs",
            "",
        ),
        ("/reject", "Error: rejected", "main.mjs:9"),
        ("/timer", "Error: in a timer", "main.mjs:12"),
        ("/status", "the program's Response has the status 99", ""),
    ] {
        let failure = send(&engine, request(target)).await.unwrap_err();
        assert_eq!((failure.kind, &failure.message[..]), (FailureKind::Program, message));
        let traceback = failure.traceback.unwrap_or_default();
        assert!(traceback.contains(account), "{traceback}");
        assert!(
            !traceback.contains("polyinit") && !traceback.contains("node:internal"),
            "{traceback}"
        );
    }
    let error = get(&engine, "/stream")
        .await
        .into_body()
        .collect(100)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("in the stream"), "{error}");
    assert_eq!(other.await.unwrap(), "fine");
}

#[tokio::test]
async fn messages() {
    let program = "export default { fetch: () => new Response(''), async message(message) {
        if (message.kind === 'bytes') return new Uint8Array([1, 255]);
        if (message.kind === 'none') return;
        if (message.kind === 'text') return 'text';
        return { got: message };
    } }";
    let (engine, _program) = start(program).await;
    for (message, expected) in [
        (r#"{"kind": "bytes"}"#, &b"\x01\xff"[..]),
        (r#"{"kind": "none"}"#, b""),
        (r#"{"kind": "text"}"#, b"text"),
        (r#"{"kind": [1]}"#, br#"{"got":{"kind":[1]}}"#),
        ("no json", br#"{"got":"no json"}"#),
    ] {
        match engine.handle(Event::message(message)).await.unwrap() {
            Reply::Value(value) => assert_eq!(value, expected),
            Reply::Http(response) => panic!("{response:?}"),
        }
    }
    let (engine, _program) = start("export function message() { return 'only' }").await;
    assert!(matches!(engine.handle(Event::message("{}")).await, Ok(Reply::Value(value)) if value == "only"));
    assert_eq!(get(&engine, "/").await.status(), 404);
    let (engine, _program) = start("export const fetch = () => new Response('')").await;
    let failure = engine.handle(Event::message("{}")).await.unwrap_err();
    assert_eq!(
        failure.message,
        "the program takes no messages: it exports neither `message` nor `handler`"
    );
}

#[tokio::test]
async fn a_program_that_cannot_be_loaded() {
    for (files, message, account) in [
        (
            vec![("main.mjs", "import './other.mjs'"), ("other.mjs", "\nfoo(")],
            "SyntaxError: Unexpected end of input",
            "other.mjs:2",
        ),
        (
            vec![("main.js", "\nfoo(")],
            "SyntaxError: Unexpected end of input",
            "main.js:2",
        ),
        (
            vec![("main.mjs", "import 'absent'")],
            "Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'absent'",
            "",
        ),
        (
            vec![("main.js", "require('./absent')")],
            "Error: Cannot find module './absent'",
            "main.js:1",
        ),
        (
            vec![("main.mjs", "\n\nthrow new RangeError('too much')")],
            "RangeError: too much",
            "main.mjs:3",
        ),
        (
            vec![("main.mjs", "console.error('bye'); process.exit(4)")],
            "the Node worker exited with status 4",
            "bye",
        ),
        (
            vec![("main.mjs", "export const answer = 42")],
            "it exited with status 0 before it listened on port ",
            "",
        ),
        (
            vec![(
                "main.mjs",
                "Promise.reject(new Error('late')); await new Promise((done) => setTimeout(done, 1000))",
            )],
            "the Node worker exited with status 1",
            "Error: late",
        ),
    ] {
        let error = Program::new(&files).fail().await;
        assert!(error.message.contains(message), "{error}");
        let traceback = error.traceback.unwrap_or_default();
        assert!(traceback.contains(account), "{traceback}");
    }
    let mut program = Program::new(&[("main.mjs", "")]);
    program.component.entrypoint = Entrypoint::File("absent.mjs".into());
    assert!(program.fail().await.message.contains("program: there is no /"));
}

#[tokio::test]
async fn finds_what_node_alone_would_find() {
    let program = Program::new(&[(
        "main.js",
        "const found = { argv: process.argv.slice(1), cwd: process.cwd(), main: require.main === module,
            globals: [typeof globalThis.fs, typeof globalThis.require, typeof globalThis.channel],
            execArgv: process.execArgv, greeting: process.env.GREETING, host: process.env.HOST,
            subtle: typeof globalThis.crypto?.subtle };
         module.exports = { fetch: () => Response.json(found) }",
    )]);
    let mut program = program;
    program
        .component
        .environment
        .insert("GREETING".to_owned(), "hello".to_owned());
    let engine = program.start().await;
    let found: serde_json::Value = serde_json::from_str(&text(get(&engine, "/").await).await).unwrap();
    let file = program.file("main.js");
    assert_eq!(found["argv"], serde_json::json!([file]));
    assert_eq!(found["cwd"], serde_json::json!(program.folder.path()));
    assert_eq!(found["main"], true);
    assert_eq!(
        found["globals"],
        serde_json::json!(["undefined", "undefined", "undefined"])
    );
    assert_eq!(found["execArgv"], serde_json::json!([]));
    assert_eq!(found["greeting"], "hello");
    assert_eq!(found["host"], "127.0.0.1");
}

#[tokio::test]
async fn a_module_finds_nothing_of_commonjs() {
    let (engine, _program) = start(
        "const found = [typeof module, typeof exports, typeof require, typeof __filename];
         export default { fetch: () => Response.json(found) }",
    )
    .await;
    let nothing = r#"["undefined","undefined","undefined","undefined"]"#;
    assert_eq!(text(get(&engine, "/").await).await, nothing);
}

#[tokio::test]
async fn a_worker_that_ends_is_replaced() {
    let (engine, _program) = start(
        "export default { fetch: (request) => request.url.endsWith('/die') ? process.exit(7) : new Response(String(process.pid)) }",
    )
    .await;
    let first = text(get(&engine, "/").await).await;
    let failure = send(&engine, request("/die")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Gone);
    assert!(
        failure.message.contains("exited with status 7 while it had this event"),
        "{failure}"
    );
    assert_ne!(text(get(&engine, "/").await).await, first);
}

#[tokio::test]
async fn a_server_that_ends_is_started_again() {
    let program = Program::new(&[(
        "main.js",
        "require('http').createServer((request, response) => {
            if (request.url === '/die') { console.error('bye'); process.exit(7) }
            response.end(String(process.pid));
         }).listen(process.env.PORT)",
    )]);
    let engine = program.start().await;
    let first = text(get(&engine, "/").await).await;
    let failure = send(&engine, request("/die")).await.unwrap_err();
    assert_eq!(failure.message, "program exited with status 7 while it had this event");
    assert_eq!(failure.traceback.as_deref(), Some("bye"));
    assert_ne!(text(get(&engine, "/").await).await, first);
}

#[tokio::test]
async fn a_failure_has_the_reason_of_its_own_status() {
    let (engine, _program) =
        start("export default (request, response) => { response.statusMessage = 'Fine'; throw new Error('not fine') }")
            .await;
    let response = get(&engine, "/").await;
    assert_eq!(response.status(), 500);
    // Where it is another than the status's own.
    assert!(response.extensions().get::<hyper::ext::ReasonPhrase>().is_none());
}

#[tokio::test]
async fn stops_gently() {
    let program = Program::new(&[(
        "main.mjs",
        r#"
import { writeFileSync } from "node:fs";
process.on("SIGTERM", () => { writeFileSync("bye", ""); process.exit(0) });
export default {
  async fetch(_, __, context) {
    context.waitUntil(new Promise((done) => setTimeout(done, 100)).then(() => writeFileSync("afterwards", "")));
    return new Response("");
  },
}"#,
    )]);
    let engine = program.start().await;
    get(&engine, "/").await;
    engine.stop(SECONDS).await;
    assert!(program.file("afterwards").exists() && program.file("bye").exists());
}

#[tokio::test]
async fn takes_the_interpreter_that_was_started_ahead() {
    let mut program = Program::new(&[(
        "main.mjs",
        "import { env, ppid, pid } from 'node:process'; export default { fetch: () => new Response(env.GREETING) }",
    )]);
    program
        .component
        .environment
        .insert("GREETING".to_owned(), "hello".to_owned());
    super::warm_up(&program.settings.warm, &program.settings);
    let warm = || format!("{:?}", program.settings.warm) == r#"{"Node"}"#;
    until("it is there", warm).await;
    let engine = program.start().await;
    assert!(!warm());
    assert_eq!(text(get(&engine, "/").await).await, "hello");
}
