//! WSGI applications (PEP 3333), by the specification.

use std::time::Duration;

use http::Request;
use polyinit::wire::{ConfigurationAnswer, EventAnswer, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host::{Guest, configuration_for};
use crate::python::wait_until;
use crate::support::{Served, folder_with, get, program, request};

fn start() -> Served {
    Served::start(program("wsgi-app"), &["--workers", "1"])
}

#[tokio::test]
async fn is_told_by_looking_at_it() {
    let app = start();
    assert!(
        app.output()
            .contains("main.py is a Python file, `app` is a WSGI application → python"),
        "{}",
        app.output()
    );
    assert_eq!(app.get("/").await.text(), "Hello from WSGI\n");
    app.stop();
}

#[tokio::test]
async fn environ_is_what_the_specification_says() {
    let app = start();
    let path = "/%C3%BCnder/way?a=%20b&c";
    let request = Request::get(path)
        .header("x-word", "one")
        .header("x-word", "two")
        .header("x_word", "an impostor")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let reply = crate::support::request(&app.address, request, "").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let text = reply.text();
    let port = app.address.rsplit(':').next().unwrap();
    for line in [
        "REQUEST_METHOD='GET'",
        "SCRIPT_NAME=''",
        // Bytes as text in latin-1.
        "PATH_INFO='/Ã¼nder/way'",
        "QUERY_STRING='a=%20b&c'",
        "REQUEST_URI='/%C3%BCnder/way?a=%20b&c'",
        "SERVER_NAME='127.0.0.1'",
        &format!("SERVER_PORT='{port}'"),
        "SERVER_PROTOCOL='HTTP/1.1'",
        "REMOTE_ADDR='127.0.0.1'",
        &format!("HTTP_HOST='{}'", app.address),
        "HTTP_X_WORD='one,two'",
        "HTTP_COOKIE='a=1; b=2'",
        "wsgi.version=(1, 0)",
        "wsgi.url_scheme='http'",
        "wsgi.multithread=True",
        "wsgi.run_once=False",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
    }
    assert!(!text.contains("impostor"), "{text}");
    app.stop();
}

#[tokio::test]
async fn bodies_go_in_and_out() {
    let app = start();
    for length in [0, 5, 200_000, 3_000_000] {
        let body: Vec<u8> = (0..length).map(|at: u32| at as u8).collect();
        let reply = app.post("/echo", body.clone()).await;
        assert!(reply.body == body, "{length} bytes");
        assert_eq!(reply.all("content-type"), [b"application/json"]);
    }
    let mut chunked = tokio::net::TcpStream::connect(&app.address).await.unwrap();
    let wire = b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
        3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    chunked.write_all(wire).await.unwrap();
    let mut said = String::new();
    chunked.read_to_string(&mut said).await.unwrap();
    assert!(said.ends_with("\r\n\r\nabcdefg"), "{said}");
    app.stop();
}

#[tokio::test]
async fn input_is_a_file() {
    let app = start();
    let many = format!("one\ntwo\nthree\nfour\n{}", "x".repeat(500_000));
    for body in ["one\ntwo\nthree\nfour", &many] {
        let said = app.post("/lines", body.to_owned()).await.text();
        let expected = r"(b'one\n', [b'two\n'], [b'three\n', b'four";
        assert!(said.starts_with(expected), "{}", &said[..200.min(said.len())]);
        assert!(said.ends_with("], b'')"));
    }
    app.stop();
}

#[tokio::test]
async fn replies_come_as_they_are_made() {
    let app = start();
    let streamed = app.get("/stream").await;
    assert_eq!(streamed.text().lines().last(), Some("piece 9"));
    assert_eq!(app.get("/write").await.text(), "written, then returned\n");
    let late = app.get("/late-start").await;
    assert_eq!((late.status, late.text().as_str()), (202, "late\n"));
    let empty = app.get("/empty").await;
    assert_eq!((empty.status, empty.body.len()), (204, 0));
    assert!(app.get("/file").await.text().contains("wsgi.file_wrapper"));
    let head = request(&app.address, Request::head("/"), "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.all("content-length"), [b"16"]);
    app.stop();
}

#[tokio::test]
async fn start_response_may_be_called_again_with_what_went_wrong() {
    let app = start();
    let changed = app.get("/changes-its-mind").await;
    assert_eq!((changed.status, changed.text().as_str()), (500, "sorry\n"));
    // What has been sent can't be taken back: the reply breaks off.
    assert!(app.get("/changes-its-mind-too-late").await.text().contains("<broken"));
    app.wait_for("ValueError: too late");
    app.stop();
}

#[tokio::test]
async fn what_is_against_the_specification_is_named() {
    let app = start();
    for (path, problem) in [
        ("/never-starts", "without calling start_response"),
        ("/starts-twice", "start_response was called twice"),
        ("/hop-by-hop", "'Connection' is the server's to send"),
        ("/bad-status", "a str like '200 OK', not 'OK'"),
        ("/text-body", "bytes, not str"),
        ("/raise", "RuntimeError: this route always fails"),
    ] {
        let reply = app.get(path).await;
        assert_eq!(reply.status, 500, "{path}");
        assert!(reply.text().contains(problem), "{path}: {}", reply.text());
    }
    app.stop();
}

#[tokio::test]
async fn iterables_are_closed_however_they_end() {
    let app = start();
    app.get("/stream").await;
    assert!(app.get("/breaks").await.text().contains("<broken"));
    let mut leaving = tokio::net::TcpStream::connect(&app.address).await.unwrap();
    leaving
        .write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    leaving.read_exact(&mut [0; 1000]).await.unwrap();
    drop(leaving);
    wait_until(async || app.get("/closed").await.text() == "stream,breaks,endless").await;
    app.stop();
}

#[tokio::test]
async fn errors_and_failures_reach_the_log_with_the_event() {
    let app = start();
    app.get("/errors").await;
    let line = app.wait_for("a line of wsgi.errors");
    assert!(line.starts_with("wsgi-app#1 | "), "{line}");
    app.get("/breaks").await;
    let line = app.wait_for("RuntimeError: the source of the stream ran dry");
    assert!(line.starts_with("wsgi-app#2 | "), "{line}");
    app.stop();
}

#[tokio::test]
async fn events_run_on_threads_beside_each_other() {
    let app = start();
    // Each waits in the one process until all eight are there.
    let mut meeting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let address = app.address.clone();
        meeting.spawn(async move { get(&address, "/meet").await.text() });
    }
    while let Some(met) = tokio::time::timeout(Duration::from_secs(60), meeting.join_next())
        .await
        .unwrap()
    {
        assert_eq!(met.unwrap(), "met\n");
    }
    app.stop();
}

#[tokio::test]
async fn network_messages_are_for_others() {
    let guest = Guest::start(&[]).await;
    let configuration = configuration_for(&program("wsgi-app"), "asgi", "main:app");
    assert_eq!(guest.configure(&configuration).await, ConfigurationAnswer::Success);
    let EventAnswer::Failure { error, .. } = guest.event(&Scope::Message("{}".into())).await else {
        panic!("a message was answered")
    };
    assert!(
        error.contains("a WSGI application takes no network messages"),
        "{error}"
    );
    let EventAnswer::Http(answer) = guest.get("/").await else {
        panic!("no reply")
    };
    assert_eq!(answer.body, "Hello from WSGI\n");
    guest.stop().await;
}

/// Clients send what has no place in a target, and not always encoded.
#[tokio::test]
async fn a_path_is_its_bytes_however_they_were_written() {
    let program = "def application(environ, start_response):\n    start_response('200 OK', [])\n    \
                   return [environ['PATH_INFO'].encode('latin-1')]\n";
    let folder = folder_with("main.py", program);
    let app = Served::start(folder.path(), &[]);
    let mut client = tokio::net::TcpStream::connect(&app.address).await.unwrap();
    client
        .write_all("GET /café%20%C3%A9 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".as_bytes())
        .await
        .unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    assert!(reply.ends_with("\r\n\r\n/café é"), "{reply}");
    app.stop();
}

/// As multiprocessing's pools end theirs.
#[tokio::test]
async fn a_child_that_is_ended_does_not_end_its_worker() {
    let program = "import os, signal\n\n\ndef application(environ, start_response):\n    start_response('200 OK', [])\n    \
                   if environ['PATH_INFO'] == '/child':\n        child = os.fork()\n        \
                   if child == 0:\n            while True:\n                signal.pause()\n        \
                   os.kill(child, signal.SIGTERM)\n        ended = os.waitpid(child, 0)[1]\n        \
                   return [str(os.WTERMSIG(ended)).encode()]\n    return [str(os.getpid()).encode()]\n";
    let folder = folder_with("main.py", program);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let before = app.get("/").await.text();
    for _ in 0..3 {
        assert_eq!(app.get("/child").await.text(), "15");
    }
    assert_eq!(app.get("/").await.text(), before);
    assert!(!app.stop().contains("exited"));
}

/// It has the other end of the worker's channel, as every forked child has.
#[tokio::test]
async fn a_childs_life_does_not_hide_its_workers_end() {
    let fork = "import os, signal\ndef leave():\n    if os.fork() == 0:\n        signal.alarm(60)\n        \
                signal.pause()\n    os._exit(5)\n";
    let program = format!(
        "{fork}def application(environ, start_response):\n    start_response('200 OK', [])\n    \
         return leave() if environ['REQUEST_METHOD'] == 'POST' else [b'here']\n"
    );
    let folder = folder_with("main.py", program);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let reply = app.post("/", "").await;
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains("exited with status 5"), "{}", reply.text());
    assert_eq!(app.get("/").await.text(), "here");
    app.stop();

    let folder = folder_with("main.py", format!("{fork}leave()\n"));
    let running = Served::launch(folder.path(), &[]);
    running.wait_for("exited with status 5 before its program was ready");
    assert_eq!(running.end().0.code(), Some(1));
}

#[tokio::test]
async fn a_child_may_print_whoever_prints_when_it_is_forked() {
    let program = "import os, signal, threading\ndef application(environ, start_response):\n    \
                   start_response('200 OK', [])\n    over = threading.Event()\n    def talk():\n        \
                   while not over.is_set():\n            print('talk')\n    \
                   talker = threading.Thread(target=talk)\n    talker.start()\n    ended = 0\n    \
                   for _ in range(20):\n        child = os.fork()\n        if child == 0:\n            \
                   signal.alarm(5)\n            print('child')\n            os._exit(0)\n        \
                   ended = ended or os.waitpid(child, 0)[1]\n    over.set()\n    talker.join()\n    \
                   return [str(ended).encode()]\n";
    let folder = folder_with("main.py", program);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    assert_eq!(app.get("/").await.text(), "0");
    app.stop();
}

#[tokio::test]
async fn what_one_event_sets_in_its_context_the_next_does_not_see() {
    let code = "\
from contextvars import ContextVar
SEEN = ContextVar('seen', default='nothing')
def app(environ, start_response):
    start_response('200 OK', [('content-type', 'text/plain')])
    yield SEEN.get().encode()
    SEEN.set(environ['PATH_INFO'])
    yield f' {SEEN.get()}'.encode()
";
    let folder = folder_with("main.py", code);
    // One thread, as long as one event comes after the other.
    let app = Served::start(folder.path(), &["--workers", "1"]);
    for path in ["/a", "/b"] {
        assert_eq!(app.get(path).await.text(), format!("nothing {path}"));
    }
    app.stop();
}
