//! Python programs as people write them: ASGI by the specification, FastAPI, lifespan, and programs with bad manners.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Served, folder_with, get, program};

/// Where FastAPI is, as PYTHONPATH: `wasm-examples/build` puts it there.
pub fn packages() -> String {
    crate::support::built("packages").to_str().unwrap().to_owned()
}

fn fastapi() -> Served {
    let path = format!("PYTHONPATH={}", packages());
    Served::start(program("fastapi-app"), &["--env", &path])
}

fn plain(arguments: &[&str]) -> Served {
    Served::start(program("asgi-plain"), arguments)
}

#[tokio::test]
async fn fastapi_routes_queries_models_and_errors() {
    let app = fastapi();
    assert_eq!(app.get("/").await.json(), json!({"hello": "world", "notes": 1}));
    assert_eq!(
        app.get("/notes/1?shout=true&times=2").await.json()["text"],
        "WRITTEN AT STARTUP WRITTEN AT STARTUP"
    );
    assert_eq!(app.get("/notes/99").await.status, 404);
    let created = app.post("/notes", r#"{"text": "héllo", "stars": 3}"#).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.all("location"), [b"/notes/2"]);
    assert_eq!(created.json()["text"], "héllo");
    assert_eq!(app.post("/notes", "{}").await.status, 422);
    assert_eq!(app.get("/cookies").await.all("set-cookie").len(), 2);
    let url = app.get("/url?a=%20b").await.json();
    assert_eq!(url["url"], format!("http://{}/url?a=%20b", app.address));
    assert_eq!(url["client"], "127.0.0.1");
    app.stop();
}

#[tokio::test]
async fn fastapi_streams_both_ways() {
    let app = fastapi();
    let streamed = app.get("/stream").await.text();
    assert_eq!(streamed.lines().count(), 10);
    assert_eq!(streamed.lines().last(), Some("piece 9"));
    let body = vec![b'x'; 5 << 20];
    let uploaded = app.post("/upload", body).await.json();
    assert_eq!(uploaded["length"], 5 << 20);
    assert_eq!(app.get("/large?size=3000000").await.body.len(), 3_000_000);
    // One that breaks off does not look like one that is whole.
    assert!(app.get("/stream-breaks").await.text().contains("<broken"));
    assert_eq!(app.get("/").await.status, 200);
    app.stop();
}

#[tokio::test]
async fn a_program_that_raises_is_answered_with_its_traceback_on_loopback() {
    let app = plain(&[]);
    let failed = app.get("/raise").await;
    assert_eq!(failed.status, 500);
    assert_eq!(failed.all("content-type"), [b"application/problem+json"]);
    let problem = failed.json();
    assert_eq!(problem["detail"], "RuntimeError: this route always fails");
    let traceback = problem["traceback"].as_str().unwrap();
    assert!(
        traceback.contains("main.py") && traceback.contains("raise RuntimeError"),
        "{traceback}"
    );
    assert!(!traceback.contains("polyinit worker"), "{traceback}");
    assert_eq!(app.get("/").await.text(), "Hello from plain ASGI\n");
    app.stop();
}

#[tokio::test]
async fn the_scope_has_every_key_of_the_specification() {
    let app = plain(&[]);
    let scope = app.get("/scope?x=1&x=%20").await.json();
    for key in [
        "type",
        "asgi",
        "http_version",
        "method",
        "scheme",
        "path",
        "raw_path",
        "query_string",
        "root_path",
        "headers",
        "client",
        "server",
        "state",
        "extensions",
    ] {
        assert!(scope.get(key).is_some(), "{key} is missing: {scope}");
    }
    assert_eq!(scope["query_string"], "b'x=1&x=%20'");
    assert_eq!(scope["http_version"], "'1.1'");
    let globals = app.get("/globals").await.json();
    assert_eq!(globals["greeting"], "Hello from the module's own globals");
    assert_eq!(globals["name"], "main");
    app.stop();
}

#[tokio::test]
async fn a_body_in_several_messages_arrives_whole() {
    let app = plain(&[]);
    assert_eq!(app.get("/several").await.text().lines().count(), 10);
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    app.stop();
}

#[tokio::test]
async fn a_second_receive_waits_for_the_disconnect() {
    let app = plain(&["--workers", "1"]);
    // The client reads the first piece, and leaves.
    let mut stream = tokio::net::TcpStream::connect(&app.address).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream
        .write_all(b"GET /disconnect HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut buffer = [0; 1000];
    let mut seen = String::new();
    while !seen.contains("waiting for you") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert_eq!(app.get("/last-disconnect").await.json(), "waiting");
    drop(stream);
    wait_until(async || app.get("/last-disconnect").await.json() == "http.disconnect").await;
    // And after a reply that is complete.
    assert_eq!(app.get("/after-reply").await.text(), "done\n");
    wait_until(async || app.get("/last-disconnect").await.json() == "http.disconnect").await;
    app.stop();
}

/// Asks again until it is so: for what happens in the program behind a reply.
pub async fn wait_until(mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + crate::support::PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "it does not come about");
    }
}

#[tokio::test]
async fn programs_with_bad_manners_fail_their_own_events_alone() {
    let app = plain(&["--timeout", "2"]);
    let silent = app.get("/silent").await;
    assert_eq!(silent.status, 500);
    assert!(silent.text().contains("returned but sent nothing"), "{}", silent.text());
    assert!(app.get("/half").await.text().contains("<broken"));
    let exit = app.get("/exit").await;
    assert_eq!(exit.status, 500);
    assert!(exit.text().contains("sys.exit(3)"), "{}", exit.text());
    let never = app.get("/never").await;
    assert_eq!(never.status, 504);
    assert!(never.text().contains("no reply within 2 s"), "{}", never.text());
    assert_eq!(app.get("/").await.status, 200);
    app.stop();
}

#[tokio::test]
async fn a_worker_that_dies_fails_its_event_and_is_replaced() {
    let app = plain(&["--workers", "1"]);
    let before = app.get("/globals").await.json()["pid"].clone();
    let died = app.get("/die").await;
    assert_eq!(died.status, 502);
    assert!(died.text().contains("exited with status 9"), "{}", died.text());
    let after = app.get("/globals").await.json()["pid"].clone();
    assert_ne!(before, after);
    app.stop();
}

#[tokio::test]
async fn a_program_that_blocks_does_not_keep_others_waiting() {
    let app = plain(&[]);
    let blocked = tokio::spawn({
        let address = app.address.clone();
        async move { get(&address, "/block?s=5").await.status }
    });
    // A worker that has the blocking event is told by its answering no more.
    wait_until(async || !blocked.is_finished() && app.get("/").await.status == 200).await;
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(app.get("/").await.status, 200);
    }
    assert!(
        !blocked.is_finished(),
        "the others waited for it ({:?})",
        began.elapsed()
    );
    assert_eq!(blocked.await.unwrap(), 200);
    app.stop();
}

#[tokio::test]
async fn lifespan_as_the_specification_has_it() {
    let app = Served::start(program("asgi-lifespan-spec"), &[]);
    assert_eq!(app.get("/").await.text(), "lifespan.startup");
    let output = app.stop();
    assert!(
        output.contains("lifespan events: lifespan.startup, lifespan.shutdown"),
        "{output}"
    );
}

#[tokio::test]
async fn programs_without_lifespan_are_served_all_the_same() {
    for (name, text) in [
        ("asgi-lifespan-ignored", "served, lifespan ignored\n"),
        ("asgi-no-lifespan", "served without lifespan\n"),
    ] {
        let app = Served::start(program(name), &[]);
        assert_eq!(app.get("/").await.text(), text);
        app.stop();
    }
}

#[tokio::test]
async fn what_a_program_prints_is_in_the_log() {
    let app = plain(&[]);
    assert_eq!(app.get("/print").await.status, 200);
    app.wait_for("asgi-plain#1 | a line on stdout");
    app.stop();
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_worker() {
    let folder = folder_with(
        "main.py",
        "import asyncio\nrunning = 0\nasync def app(scope, receive, send):\n    global running\n    \
         assert scope['type'] == 'http'\n    if scope['path'] == '/wait':\n        running += 1\n        try:\n            \
         await asyncio.Event().wait()\n        finally:\n            running -= 1\n    \
         await send({'type': 'http.response.start', 'status': 200})\n    \
         await send({'type': 'http.response.body', 'body': str(running).encode()})\n",
    );
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let waiting = tokio::spawn({
        let address = app.address.clone();
        async move { get(&address, "/wait").await }
    });
    wait_until(async || app.get("/").await.text() == "1").await;
    waiting.abort();
    let _ = waiting.await;
    let gone = Instant::now();
    wait_until(async || app.get("/").await.text() == "0").await;
    assert!(gone.elapsed() < Duration::from_secs(30));
    app.stop();
}

#[tokio::test]
async fn what_a_venv_beside_the_code_holds_is_there() {
    let source = "import inside, linked\ndef handler(event, context):\n    \
                  return [inside.WORD, linked.WORD]\n";
    let folder = folder_with("main.py", source);
    let venv = folder.path().join(".venv");
    // Its interpreter is a link to the one that made it.
    let made = std::process::Command::new("python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&venv)
        .status()
        .unwrap();
    assert!(made.success());
    let lib = std::fs::read_dir(venv.join("lib")).unwrap().next().unwrap().unwrap();
    let packages = lib.path().join("site-packages");
    let elsewhere = folder_with("linked.py", "WORD = 'by a .pth file'\n");
    std::fs::write(packages.join("inside.py"), "WORD = 'in site-packages'\n").unwrap();
    std::fs::write(packages.join("more.pth"), elsewhere.path().to_str().unwrap()).unwrap();
    let app = Served::start(folder.path(), &[]);
    let found = app.get("/").await.json();
    assert_eq!(found[0], "in site-packages");
    assert_eq!(found[1], "by a .pth file");
    app.stop();
}

/// Nobody waits for it when it comes back: that is not when it can be told.
#[tokio::test]
async fn a_worker_that_has_blocked_gets_events_again() {
    let app = plain(&["--workers", "1", "--timeout", "20"]);
    let address = app.address.clone();
    let blocking = tokio::spawn(async move { get(&address, "/block?s=0.6").await.status });
    // It is asked for a sign of life only once it was silent for a while, and what is told here is time itself.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let impatient = tokio::time::timeout(Duration::from_millis(150), app.get("/")).await;
    assert!(impatient.is_err(), "the worker does not block: {impatient:?}");
    assert_eq!(blocking.await.unwrap(), 200);
    // As long again, in which nobody looks at it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(app.get("/").await.status, 200);
    app.stop();
}

/// What becomes of an upload that the client breaks off, or cuts into something that is no body.
#[tokio::test]
async fn an_upload_that_breaks_off_is_over_at_once() {
    let folder = folder_with(
        "main.py",
        "async def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    more = scope['method'] == 'POST'\n    \
         while more:\n        event = await receive()\n        if event['type'] == 'http.disconnect':\n            \
         print('told of it')\n            return\n        more = event['more_body']\n    \
         await send({'type': 'http.response.start', 'status': 200})\n    \
         await send({'type': 'http.response.body', 'body': b'whole'})\n",
    );
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut client = std::net::TcpStream::connect(&app.address).unwrap();
    client.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    write!(client, "{head}4\r\nfour\r\nnonsense\r\n").unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
    app.wait_for("told of it");
    let mut client = std::net::TcpStream::connect(&app.address).unwrap();
    write!(client, "{head}4\r\nfour\r\n").unwrap();
    drop(client);
    app.wait_for("400 POST / ");
    assert_eq!(app.get("/").await.text(), "whole");
    app.stop();
}

/// Who spins or sleeps for ever has no event any more once its client has left, or its time is up.
#[tokio::test]
async fn a_worker_that_blocks_for_nobody_gets_no_events() {
    let folder = folder_with(
        "main.py",
        "import time\nasync def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    \
         if scope['path'] == '/block':\n        print('blocks')\n        time.sleep(1000)\n    \
         await send({'type': 'http.response.start', 'status': 200})\n    \
         await send({'type': 'http.response.body', 'body': b'here'})\n",
    );
    let app = Served::start(folder.path(), &["--workers", "2"]);
    let mut client = std::net::TcpStream::connect(&app.address).unwrap();
    client.write_all(b"GET /block HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    app.wait_for("blocks");
    drop(client);
    assert_eq!(app.get("/").await.text(), "here");
    app.stop();

    let app = Served::start(folder.path(), &["--workers", "1", "--timeout", "1"]);
    assert_eq!(app.get("/block").await.status, 504);
    // There is no other to do its work.
    wait_until(async || app.get("/").await.status == 200).await;
    app.wait_for("it blocked for longer than an event may take");
    app.stop();
}

#[tokio::test]
async fn a_task_may_end_the_process_whatever_its_threads_do() {
    let folder = folder_with(
        "main.py",
        "import asyncio, sys, threading\nasync def leave(status):\n    sys.exit(status)\nasync def app(scope, receive, send):\n    \
         assert scope['type'] == 'http'\n    \
         asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)\n    \
         await asyncio.create_task(leave({'/': None, '/3': 3}[scope['path']]))\n",
    );
    for (path, expected) in [("/3", "exited with status 3"), ("/", "exited with status 0")] {
        let app = Served::start(folder.path(), &["--workers", "1"]);
        let reply = app.post(path, "").await;
        assert_eq!(reply.status, 502);
        assert!(reply.text().contains(expected), "{}", reply.text());
        app.stop();
    }
}

#[tokio::test]
async fn what_fails_after_the_client_has_left_is_in_the_log() {
    let folder = folder_with(
        "main.py",
        "class ClientDisconnect(Exception):\n    pass\nasync def app(scope, receive, send):\n    \
         assert scope['type'] == 'http'\n    print('asked')\n    await receive()\n    \
         assert (await receive())['type'] == 'http.disconnect'\n    \
         raise {'/': ValueError, '/quiet': ClientDisconnect}[scope['path']]('who is to clean up')\n",
    );
    let app = Served::start(folder.path(), &["--workers", "1"]);
    for (path, number) in [("/quiet", 1), ("/", 2)] {
        let mut client = std::net::TcpStream::connect(&app.address).unwrap();
        write!(client, "GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        app.wait_for(&format!("#{number} | asked"));
    }
    app.wait_for("#2 | ValueError: who is to clean up");
    assert!(!app.stop().contains("ClientDisconnect: who"));
}

#[tokio::test]
async fn an_application_is_found_by_what_it_is_or_by_what_makes_it() {
    let class = "class Web:\n    def __call__(self, environ, start_response):\n        start_response('200 OK', [])\n        \
                 return [b'hello']\n";
    let factory = "def create_app(settings=None, testing=False):\n    return Web()\n";
    // As FastAPI's is made of Starlette's.
    let router =
        "class Router(Web):\n    __call__ = Web.__call__\nclass APIRouter(Router):\n    pass\nrouter = APIRouter()\n";
    let router = format!("{router}{factory}");
    let odd = "class Odd:\n    def __call__(self, one, start_response, *, three):\n        pass\nodd = Odd()\n";
    let odd = format!("{odd}{factory}");
    for (rest, entrypoint, found) in [
        ("shop = Web()\nsame = shop\n", None, "`shop` is a WSGI application"),
        (factory, None, "`create_app()` is a WSGI application"),
        (factory, Some("main:create_app"), "`create_app()` is a WSGI application"),
        (
            "def made(settings=None, testing=False):\n    return Web()\n",
            Some("main:made()"),
            "`made()` is a WSGI application",
        ),
        (router.as_str(), None, "`create_app()` is a WSGI application"),
        (odd.as_str(), None, "`create_app()` is a WSGI application"),
    ] {
        let folder = folder_with("main.py", format!("{class}{rest}"));
        let arguments: Vec<&str> = entrypoint.iter().flat_map(|named| ["--entrypoint", named]).collect();
        let app = Served::start(folder.path(), &arguments);
        assert_eq!(app.get("/").await.text(), "hello");
        assert!(app.output().contains(found), "{}", app.output());
        app.stop();
    }
    for (rest, said) in [
        ("one, two = Web(), Web()\n", "it has: Web, one, two"),
        (
            "def make_app():\n    return 7\n",
            "what make_app() returns is an int, which can't be called",
        ),
    ] {
        let folder = folder_with("main.py", format!("{class}{rest}"));
        let running = Served::launch(folder.path(), &[]);
        let line = running.wait_for(said);
        assert!(line.contains("If it serves HTTP itself, it is an executable"), "{line}");
        assert_eq!(running.end().0.code(), Some(1));
    }
}

#[tokio::test]
async fn a_package_is_told_to_be_served_from_above() {
    let above = tempfile::tempdir().unwrap();
    for (name, slash, said) in [
        ("shop", "", true),
        ("shop", "/", true),
        // No package can be called so.
        ("shop-2", "", false),
    ] {
        let folder = above.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("main.py"), "from .routes import app\n").unwrap();
        let running = Served::launch(format!("{}{slash}", folder.display()), &[]);
        let line = running.wait_for("attempted relative import with no known parent package");
        let advice = format!(
            "`polyinit serve {} --entrypoint {name}.MODULE:NAME`",
            above.path().display()
        );
        assert_eq!(line.contains(&advice), said, "{line}");
        assert_eq!(line.contains("--entrypoint"), said, "{line}");
        assert_eq!(running.end().0.code(), Some(1));
    }
}

#[tokio::test]
async fn a_program_shuts_down_whatever_its_events_do() {
    let asgi = "import asyncio\nasync def app(scope, receive, send):\n    if scope['type'] == 'lifespan':\n        \
                await receive()\n        await send({'type': 'lifespan.startup.complete'})\n        await receive()\n        \
                print('shut down')\n        await send({'type': 'lifespan.shutdown.complete'})\n        return\n    \
                print('asked')\n    await asyncio.sleep(1000)\n";
    let wsgi = "import atexit, threading\natexit.register(print, 'shut down')\ndef app(environ, start_response):\n    \
                print('asked')\n    threading.Event().wait()\n";
    let stubborn = "    while True:\n        try:\n            await asyncio.sleep(1000)\n        \
                    except asyncio.CancelledError:\n            pass\n";
    let stubborn = asgi.replace("    await asyncio.sleep(1000)\n", stubborn);
    for source in [asgi, &stubborn, wsgi] {
        let folder = folder_with("main.py", source);
        let app = Served::start(folder.path(), &["--workers", "1"]);
        let mut client = std::net::TcpStream::connect(&app.address).unwrap();
        write!(client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        app.wait_for("#1 | asked");
        drop(client);
        let output = app.stop();
        assert!(output.contains("shut down"), "{output}");
        assert!(!output.contains("does not end"), "{output}");
    }
}

#[tokio::test]
async fn a_program_shuts_down_when_its_cancelled_events_have_ended() {
    let source = "\
import asyncio
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        await receive()
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        print('shut down')
        return await send({'type': 'lifespan.shutdown.complete'})
    print('asked')
    try:
        await asyncio.sleep(1000)
    finally:
        await asyncio.sleep(0.3)
        print('rolled back')
";
    let folder = folder_with("main.py", source);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let mut client = std::net::TcpStream::connect(&app.address).unwrap();
    write!(client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    app.wait_for("#1 | asked");
    let output = app.stop();
    let (_, after) = output.split_once("rolled back").unwrap_or_else(|| panic!("{output}"));
    assert!(after.contains("shut down"), "{output}");
}

#[tokio::test]
async fn a_programs_own_handler_of_sigterm_has_its_turn() {
    let folder = folder_with(
        "main.py",
        "import signal, sys\ndef leave(number, frame):\n    print('leaving')\n    sys.exit(0)\n\
         signal.signal(signal.SIGTERM, leave)\ndef handler(event, context):\n    return 'hello'\n",
    );
    let app = Served::start(folder.path(), &[]);
    assert_eq!(app.get("/").await.text(), "hello");
    let output = app.stop();
    assert!(output.contains("leaving"), "{output}");
}

#[tokio::test]
async fn a_program_that_serves_by_itself_is_told_what_it_is() {
    let folder = folder_with(
        "main.py",
        "import socket, threading\nserver = socket.create_server(('127.0.0.1', 0))\nthreading.Event().wait()\n",
    );
    let running = Served::launch(folder.path(), &[]);
    let line = running.wait_for("the program is not ready so far: it listens on 127.0.0.1:");
    assert!(line.contains("`engine = \"executable\"`"), "{line}");
    running.interrupt();
    running.end();
}
