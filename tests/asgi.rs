//! ASGI 3.0 over HTTP, by the specification.

use http::Request;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::python::wait_until;
use crate::support::{Served, ask_h2, get_h2, program, request};

fn start() -> Served {
    Served::start(program("asgi-http"), &["--workers", "1"])
}

/// Writes `wire`, and returns all that is said until the connection is closed.
async fn exchange(address: &str, wire: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(wire.as_bytes()).await.unwrap();
    let mut said = String::new();
    tokio::time::timeout(crate::support::PATIENCE, stream.read_to_string(&mut said))
        .await
        .expect("an end")
        .unwrap();
    said
}

#[tokio::test]
async fn paths_are_given_decoded_and_raw() {
    let app = start();
    let scope = app.get("/a%20b/%C3%BC%2F%ff?q=%20&q").await.json();
    assert_eq!(scope["path"], "'/a b/ü/\u{fffd}'");
    assert_eq!(scope["raw_path"], "b'/a%20b/%C3%BC%2F%ff'");
    assert_eq!(scope["query_string"], "b'q=%20&q'");
    assert_eq!(scope["root_path"], "''");
    assert_eq!(scope["scheme"], "'http'");
    assert_eq!(scope["asgi"], "{'version': '3.0', 'spec_version': '2.4'}");
    let h2 = get_h2(&app.address, "/x").await.json();
    assert_eq!(h2["http_version"], "'2'");
    assert!(h2["headers"].as_str().unwrap().contains("b'host'"), "{h2}");
    app.stop();
}

#[tokio::test]
async fn headers_keep_their_order_and_repetitions() {
    let app = start();
    let asked = Request::get("/x")
        .header("x-one", "1")
        .header("Cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-latin", http::HeaderValue::from_bytes(b"caf\xe9").unwrap());
    let scope = request(&app.address, asked, "").await.json();
    let headers = scope["headers"].as_str().unwrap();
    for part in [
        "(b'cookie', b'a=1'), (b'cookie', b'b=2')",
        "(b'x-latin', b'caf\\xe9')",
        "(b'x-one', b'1')",
    ] {
        assert!(headers.contains(part), "{part} in {headers}");
    }
    // HTTP/2 lets clients cut what is one field to programs.
    let cookies = [("cookie", "a=1"), ("x-one", "1"), ("cookie", "b=2")];
    let scope = ask_h2(&app.address, http::Method::GET, "/x", &cookies).await.json();
    let headers = scope["headers"].as_str().unwrap();
    assert!(headers.contains("(b'cookie', b'a=1; b=2')"), "{headers}");
    assert_eq!(headers.matches("cookie").count(), 1, "{headers}");
    let reply = app.get("/iterables").await;
    assert_eq!(reply.text(), "bytes");
    assert_eq!(reply.all("x-upper"), [b"1"]);
    assert_eq!(reply.all("x-twice"), [b"a", b"b"]);
    app.stop();
}

#[tokio::test]
async fn bodies_come_in_messages() {
    let app = start();
    assert_eq!(app.get("/counts").await.json(), json!([0, 1]));
    // In one, or with an empty one behind it that says that it was the last.
    let short = app.post("/counts", "12345").await.json();
    assert!(short == json!([5, 1]) || short == json!([5, 2]), "{short}");
    let large = app.post("/counts", vec![0; 2_000_000]).await.json();
    assert_eq!(large[0], 2_000_000);
    assert!(large[1].as_u64().unwrap() > 1);
    let chunked = "POST /counts HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
        3\r\nabc\r\n2;extension=1\r\nde\r\n0\r\ntrailer: 1\r\n\r\n";
    assert!(exchange(&app.address, chunked).await.contains("[5, "));
    let expects = "POST /counts HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n12345";
    let said = exchange(&app.address, expects).await;
    assert!(said.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"), "{said}");
    app.stop();
}

#[tokio::test]
async fn a_connection_has_many_requests() {
    let app = start();
    // Two at once, the second one the last.
    let wire = "GET /defaults HTTP/1.1\r\nhost: x\r\n\r\nGET /pieces HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let said = exchange(&app.address, wire).await;
    assert!(said.starts_with("HTTP/1.1 202"), "{said}");
    assert!(said.contains("HTTP/1.1 200") && said.contains("three"), "{said}");
    let old = exchange(&app.address, "GET /x HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200") && old.contains("'1.0'"), "{old}");
    app.stop();
}

#[tokio::test]
async fn replies_as_the_specification_allows_them() {
    let app = start();
    let defaults = app.get("/defaults").await;
    assert_eq!((defaults.status, defaults.body.len()), (202, 0));
    assert_eq!(app.get("/pieces").await.text(), "one two three");
    for path in ["/pieces", "/iterables"] {
        let head = request(&app.address, Request::head(path), "").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
    }
    app.stop();
}

#[tokio::test]
async fn trailers_follow_the_body() {
    let app = start();
    let wire = "GET /trailers HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: close, te\r\n\r\n";
    let said = exchange(&app.address, wire).await;
    let expected = "8\r\nthe body\r\n0\r\nx-checksum: abc\r\nx-more: 1\r\n\r\n";
    assert!(said.ends_with(expected), "{said}");
    // Who has not asked for them gets the body alone.
    assert_eq!(app.get("/trailers").await.text(), "the body");
    app.stop();
}

#[tokio::test]
async fn what_the_specification_forbids_is_named() {
    let app = start();
    for (path, problem) in [
        ("/starts-twice", "http.response.start was sent twice"),
        ("/body-first", "before http.response.start"),
        ("/unknown-message", "'http.response.nonsense'"),
        (
            "/text-header",
            "a header's name that is wrong: a str where bytes belongs",
        ),
        ("/split-header", "x-split with a value that no header may have"),
        ("/bad-status", "the status 1000"),
        ("/lies-about-its-length", "content-length of 3, and a body of 4 bytes"),
    ] {
        let reply = app.get(path).await;
        assert_eq!(reply.status, 500, "{path}: {}", reply.text());
        assert!(reply.text().contains(problem), "{path}: {}", reply.text());
    }
    assert_eq!(app.get("/after-the-end").await.text(), "whole");
    let disconnects = json!(["http.request", "http.disconnect", "http.disconnect"]);
    wait_until(async || {
        let seen = app.get("/show-seen").await.json();
        seen["after the end"] == "RuntimeError" && seen["received"] == disconnects
    })
    .await;
    app.stop();
}

#[tokio::test]
async fn lifespan_state_is_copied_for_each_request() {
    let app = start();
    for count in 1..4 {
        let state = app.get("/state").await.json();
        let expected = json!({"shared": {"count": count}, "word": "from the lifespan!"});
        assert_eq!(state, expected);
    }
    app.stop();
}

#[tokio::test]
async fn who_leaves_is_noticed() {
    let app = start();
    for path in ["/sends-to-nobody", "/is-cancelled"] {
        let mut stream = TcpStream::connect(&app.address).await.unwrap();
        let wire = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(wire.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 100]).await.unwrap();
    }
    wait_until(async || {
        let seen = app.get("/show-seen").await.json();
        seen["nobody"] == "Disconnected" && seen["cancelled"] == true
    })
    .await;
    // Nothing of that is a failure of the program.
    let output = app.stop();
    assert!(!output.contains("Traceback"), "{output}");
}

#[tokio::test]
async fn what_events_print_stays_apart() {
    let app = start();
    let (one, two) = tokio::join!(app.get("/logs?one"), app.get("/logs?two"));
    assert_eq!((one.status, two.status), (200, 200));
    let output = app.stop();
    let marks = ["#1 | ", "#2 | "].map(|mark| {
        let lines: Vec<&str> = output
            .lines()
            .filter_map(|line| Some(line.split_once(mark)?.1))
            .collect();
        lines
    });
    for name in ["one", "two"] {
        let begins = format!("{name} begins and goes on");
        let lines = marks
            .iter()
            .find(|lines| lines.contains(&&*begins))
            .unwrap_or_else(|| panic!("{output}"));
        for expected in [
            &*format!("WARNING {name} by logging"),
            "in two lines",
            &format!("{name} by a thread"),
            &format!("{name} by a task"),
            &format!("{name} in bytes: \u{fffd}"),
            "Traceback (most recent call last):",
            &format!("KeyError: '{name}'"),
            &format!("{name} ends"),
        ] {
            let count = lines.iter().filter(|line| **line == expected).count();
            assert_eq!(count, 1, "{expected}:\n{output}");
        }
    }
}

/// The interpreters of this machine that the worker is for, by version.
fn interpreters() -> Vec<(String, std::path::PathBuf)> {
    let pyenv = std::env::var("HOME").map(|home| format!("{home}/.pyenv/versions"));
    let installed = pyenv.map(std::fs::read_dir).into_iter().flatten().flatten().flatten();
    let path = std::env::var_os("PATH").unwrap();
    let fetched = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/toolchains/python");
    let mut folders: Vec<_> = ["bullseye", "forky"]
        .map(|suite| fetched.join(suite).join("usr/bin"))
        .into();
    folders.extend(installed.map(|entry| entry.path().join("bin")));
    folders.extend(std::env::split_paths(&path).filter(|folder| !folder.ends_with("shims")));
    (9..=15)
        .filter_map(|minor| {
            let name = format!("python3.{minor}");
            let found = folders
                .iter()
                .map(|folder| folder.join(&name))
                .find(|file| file.is_file());
            Some((format!("3.{minor}"), found?))
        })
        .collect()
}

#[tokio::test]
async fn every_python_of_this_machine_will_do_by_a_venv() {
    let interpreters = interpreters();
    for version in ["3.9", "3.14", "3.15"] {
        let found = interpreters.iter().any(|(found, _)| found == version);
        assert!(found, "no Python {version} here: tests/host/get-pythons fetches it");
    }
    for (version, interpreter) in interpreters {
        let folder = crate::support::folder_with(
            "main.py",
            "import asyncio, sys\nfrom contextvars import ContextVar\nasync def app(scope, receive, send):\n    \
             if scope['type'] == 'websocket':\n        await send({'type': 'websocket.accept'})\n        \
             await send({'type': 'websocket.send', 'text': 'hello'})\n        return\n    \
             assert scope['type'] == 'http'\n    print('asked')\n    \
             await send({'type': 'http.response.start', 'status': 200})\n    \
             await send({'type': 'http.response.body', 'body': b'%d.%d' % sys.version_info[:2]})\n\
             def wsgi(environ, start_response):\n    start_response('200 OK', [])\n    \
             return (b'%d.' % sys.version_info[0], b'%d' % sys.version_info[1])\n\
             async def handler(event, context):\n    await asyncio.sleep(0)\n    \
             return '%d.%d' % sys.version_info[:2]\n",
        );
        let bin = folder.path().join(".venv/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::os::unix::fs::symlink(&interpreter, bin.join("python3")).unwrap();
        for entrypoint in ["main:app", "main:wsgi", "main:handler"] {
            let app = Served::start(folder.path(), &["--entrypoint", entrypoint, "--workers", "1"]);
            assert_eq!(app.get("/").await.text(), version, "{entrypoint}");
            if entrypoint == "main:app" {
                app.wait_for("#1 | asked");
                let mut socket = crate::support::websocket::Socket::open(&app.address, "/").await;
                assert_eq!(socket.next().await, crate::support::websocket::Text("hello".into()));
                assert_eq!(socket.closed().await.0, 1000);
            }
            app.stop();
        }
        println!("Python {version}: {}", interpreter.display());
    }
}

#[tokio::test]
async fn a_venv_of_another_python_is_told_about() {
    let folder = crate::support::folder_with("main.py", "def handler(event, context):\n    return 'served'\n");
    // Moved from elsewhere: its interpreter is not here.
    std::fs::create_dir_all(folder.path().join("venv/lib/python3.1/site-packages")).unwrap();
    let app = Served::start(folder.path(), &[]);
    app.wait_for("venv is for python3.1, and this is Python 3.");
    assert_eq!(app.get("/").await.text(), "served");
    app.stop();
}
