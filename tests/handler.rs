//! Plain functions: `def handler(event, context)` and `async def`.

use std::io::{Read, Write};

use polyinit::wire::{EventAnswer, Scope};
use serde_json::json;

use crate::host::{Guest, configuration_for};
use crate::support::{Served, folder_with, get, program};

#[tokio::test]
async fn an_event_says_what_is_asked() {
    let app = Served::start(program("handler-plain"), &["--workers", "1"]);
    assert!(
        app.output().contains("`handler` is a handler → python"),
        "{}",
        app.output()
    );
    let event = app.post("/event?a=1&a=2&b=%20x", "the body").await.json();
    for (key, value) in [
        ("type", json!("http")),
        ("method", json!("POST")),
        ("path", json!("/event")),
        ("query", json!({"a": "2", "b": " x"})),
        ("query_string", json!("a=1&a=2&b=%20x")),
        ("body", json!("the body")),
        ("client", json!("127.0.0.1")),
        ("id", json!("1")),
        ("remaining", json!(true)),
    ] {
        assert_eq!(event[key], value, "{key}: {event}");
    }
    assert_eq!(event["headers"]["content-type"], "application/json");
    let large = "x".repeat(1_000_000);
    assert_eq!(app.post("/event", large.clone()).await.json()["body"], large);
    app.stop();
}

#[tokio::test]
async fn what_is_returned_is_the_reply() {
    let app = Served::start(program("handler-plain"), &["--workers", "1"]);
    for (path, status, kind, body) in [
        ("/text", 200, "text/plain; charset=utf-8", "text, häppily"),
        ("/bytes", 200, "application/octet-stream", "\0\u{1}\u{2}"),
        ("/list", 200, "application/json", "[1, \"two\", null]"),
        ("/full", 201, "text/x-full", "made"),
        ("/json-body", 418, "application/json", "{\"tea\": true}"),
        ("/other", 404, "text/plain; charset=utf-8", "nothing at /other"),
    ] {
        let reply = app.get(path).await;
        assert_eq!((reply.status, reply.text().as_str()), (status, body), "{path}");
        assert_eq!(reply.all("content-type"), [kind.as_bytes()], "{path}");
    }
    assert_eq!(app.get("/full").await.all("set-cookie"), [b"a=1", b"b=2"]);
    assert_eq!(app.get("/nothing").await.status, 204);
    assert_eq!(app.get("/large").await.body.len(), 3_000_000);
    assert_eq!(app.get("/pieces").await.text().lines().count(), 10);
    assert_eq!(app.get("/count").await.json()["count"], 1);
    assert_eq!(app.get("/count").await.json()["count"], 2);
    app.stop();
}

#[tokio::test]
async fn failures_are_told_in_the_handlers_terms() {
    let app = Served::start(program("handler-plain"), &["--workers", "1"]);
    let raised = app.get("/raise").await.json();
    assert_eq!(raised["detail"], "LookupError: nothing to be found");
    let traceback = raised["traceback"].as_str().unwrap();
    assert!(
        traceback.contains("app.py") && !traceback.contains("polyinit"),
        "{traceback}"
    );
    let object = app.get("/object").await;
    assert_eq!(object.status, 500);
    assert!(
        object.text().contains("returned a object that is no JSON"),
        "{}",
        object.text()
    );
    app.get("/print").await;
    app.wait_for("handler-plain#3 | begins and ends");
    app.stop();
}

#[tokio::test]
async fn coroutine_functions_share_a_loop() {
    let app = Served::start(program("handler-async"), &["--workers", "1"]);
    let other = app.address.clone();
    let (one, two) = tokio::join!(app.get("/meet"), get(&other, "/meet"));
    assert_eq!((one.text(), two.text()), ("met".into(), "met".into()));
    assert_eq!(
        app.post("/", "12345").await.json(),
        json!({"method": "POST", "length": 5})
    );
    assert_eq!(app.get("/pieces").await.text().lines().last(), Some("piece 9"));
    app.stop();
}

#[tokio::test]
async fn messages_are_events_as_well() {
    for (name, entrypoint, expected) in [
        (
            "handler-plain",
            "app:handler",
            json!({"from": "0xabc", "text": "{\"sender\": \"0xabc\"}"}).to_string(),
        ),
        ("handler-async", "main:handler", "got 0xabc".to_owned()),
    ] {
        let guest = Guest::start(&[]).await;
        let answer = guest
            .configure(&configuration_for(&program(name), "asgi", entrypoint))
            .await;
        assert_eq!(answer, polyinit::wire::ConfigurationAnswer::Success);
        let message = Scope::Message(r#"{"sender": "0xabc"}"#.into());
        let EventAnswer::Value(answer) = guest.event(&message).await else {
            panic!("{name}: no value")
        };
        let same = serde_json::from_slice::<serde_json::Value>(&answer).ok() == serde_json::from_str(&expected).ok();
        assert!(
            answer == expected.as_bytes() || same,
            "{}",
            String::from_utf8_lossy(&answer)
        );
        guest.stop().await;
    }
}

#[tokio::test]
async fn one_argument_is_enough() {
    let folder = folder_with("main.py", "def handle(event):\n    return event['method']\n");
    let app = Served::start(folder.path(), &[]);
    assert_eq!(app.get("/").await.text(), "GET");
    app.stop();
}

#[tokio::test]
async fn what_is_no_program_is_told_with_what_was_looked_for() {
    for (source, said) in [
        (
            "def main():\n    pass\n",
            "nothing to run under the names app, application, asgi, wsgi, api, handler, handle",
        ),
        ("application = 7\n", "'application' is an int, which can't be called"),
        (
            "def app(one):\n    pass\n",
            "'app' is a function that is called as app(one)",
        ),
    ] {
        let folder = folder_with("main.py", source);
        let running = Served::launch(folder.path(), &[]);
        let line = running.wait_for(said);
        assert!(line.contains("a WSGI application (environ, start_response)"), "{line}");
        assert_eq!(running.end().0.code(), Some(1));
    }
}

#[tokio::test]
async fn a_piece_may_be_empty() {
    let folder = folder_with(
        "main.py",
        "async def handler(event, context):\n    async def pieces():\n        \
         for piece in ('', 'one ', '', b'', 'two'):\n            yield piece\n    return pieces()\n",
    );
    let app = Served::start(folder.path(), &["--workers", "1"]);
    assert_eq!(app.get("/").await.text(), "one two");
    app.stop();
}

#[tokio::test]
async fn a_generator_is_closed_when_its_client_has_gone() {
    let folder = folder_with(
        "main.py",
        "import contextvars, time\nSEEN = contextvars.ContextVar('seen')\ndef handler(event, context):\n    def ticks():\n        \
         token = SEEN.set(1)\n        try:\n            while True:\n                \
         yield 'tick\\n'\n                time.sleep(0.01)\n        finally:\n            \
         SEEN.reset(token)\n            print('closed')\n    return ticks()\n",
    );
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let mut client = std::net::TcpStream::connect(&app.address).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    client.read_exact(&mut [0; 100]).unwrap();
    drop(client);
    app.wait_for("#1 | closed");
    app.stop();
}

#[tokio::test]
async fn a_generator_that_a_thread_is_in_is_closed_afterwards() {
    let code = "\
import asyncio, contextvars, time
SEEN = contextvars.ContextVar('seen')
def pieces(task):
    token = SEEN.set(1)
    try:
        yield 'x' * 100
        print('in it')
        while not task.done():
            time.sleep(0.01)
        yield 'more'
    finally:
        SEEN.reset(token)
        print('closed')
async def handler(event, context):
    return pieces(asyncio.current_task())
";
    let folder = folder_with("main.py", code);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let mut client = std::net::TcpStream::connect(&app.address).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    app.wait_for("#1 | in it");
    drop(client);
    app.wait_for("#1 | closed");
    let output = app.stop();
    assert!(!output.contains("Error"), "{output}");
}

/// A message's answer has no pieces, and may be as large as an event.
#[tokio::test]
async fn a_messages_answer_may_be_large() {
    for (name, entrypoint, program) in [
        (
            "main.py",
            "main:handler",
            "def handler(event, context):\n    return 'x' * event['message']\n",
        ),
        (
            "main.mjs",
            "main.mjs",
            "export const handler = (event) => 'x'.repeat(event.message);\n",
        ),
    ] {
        let folder = folder_with(name, program);
        let guest = Guest::start(&["--event-limit", "33554432"]).await;
        let answer = guest
            .configure(&configuration_for(folder.path(), "asgi", entrypoint))
            .await;
        assert_eq!(answer, polyinit::wire::ConfigurationAnswer::Success);
        let ask = async |length: usize| guest.event(&Scope::Message(length.to_string())).await;
        assert!(matches!(ask(10_000_000).await, EventAnswer::Value(value) if value.len() == 10_000_000));
        let EventAnswer::Failure { error, .. } = ask(17_000_000).await else {
            panic!("{name}: no failure")
        };
        assert!(error.contains("17000000 bytes"), "{name}: {error}");
        assert!(matches!(ask(1).await, EventAnswer::Value(value) if &value[..] == b"x"));
        guest.stop().await;
    }
}

/// As other platforms' handlers are written.
#[tokio::test]
async fn a_reply_may_say_its_status_code_and_have_its_body_in_base64() {
    let reply = "{'statusCode': 201, 'body': 'aGVsbG8=', 'isBase64Encoded': ";
    for (name, source) in [
        (
            "main.py",
            format!("def handler(event, context):\n    return {reply}True}}\n"),
        ),
        ("main.mjs", format!("export const handler = () => ({reply}true}});\n")),
    ] {
        let folder = folder_with(name, source);
        let app = Served::start(folder.path(), &["--workers", "1"]);
        let reply = app.get("/").await;
        assert_eq!((reply.status, reply.text().as_str()), (201, "hello"), "{name}");
        app.stop();
    }
}

#[tokio::test]
async fn a_status_that_is_none_of_http_is_json() {
    for (name, source) in [
        ("main.py", "def handler(event, context):\n    return {'status': 'ok'}\n"),
        ("main.mjs", "export const handler = () => ({ status: 'ok' });\n"),
    ] {
        let folder = folder_with(name, source);
        let app = Served::start(folder.path(), &["--workers", "1"]);
        let reply = app.get("/").await;
        assert_eq!((reply.status, reply.json()), (200, json!({"status": "ok"})), "{name}");
        app.stop();
    }
}

#[tokio::test]
async fn what_one_event_sets_in_its_context_the_next_does_not_see() {
    let code = "\
from contextvars import ContextVar
SEEN = ContextVar('seen', default='nothing')
def pieces(path):
    yield f'{SEEN.get()} '
    SEEN.set(path + '+')
    yield SEEN.get()
def handler(event, context):
    before = SEEN.get()
    SEEN.set(event['path'])
    return pieces(event['path']) if event['query'] else before
";
    let folder = folder_with("main.py", code);
    // One thread, as long as one event comes after the other.
    let app = Served::start(folder.path(), &["--workers", "1"]);
    for path in ["/a", "/b"] {
        assert_eq!(app.get(path).await.text(), "nothing");
        // What a generator does belongs to the call that made it.
        assert_eq!(app.get(&format!("{path}?x=1")).await.text(), format!("{path} {path}+"));
    }
    app.stop();
}

#[tokio::test]
async fn a_generators_next_piece_is_made_by_any_thread() {
    let code = "\
def pieces():
    for number in range(5000):
        yield f'{number}\\n'
def handler(event, context):
    return pieces()
";
    let folder = folder_with("main.py", code);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let all: String = (0..5000).map(|number| format!("{number}\n")).collect();
    let (one, two, three, four) = tokio::join!(app.get("/"), app.get("/"), app.get("/"), app.get("/"));
    for reply in [one, two, three, four] {
        assert!(reply.text() == all, "{} bytes of {}", reply.body.len(), all.len());
    }
    app.stop();
}

#[tokio::test]
async fn a_function_without_parameters_is_called_where_the_entrypoint_says_so() {
    let folder = folder_with("main.py", "def handler():\n    print('called')\n    return 'hello'\n");
    let running = Served::launch(folder.path(), &["--entrypoint", "main:handler"]);
    running.wait_for("'handler' is a function that is called as handler()");
    let (status, output) = running.end();
    assert_eq!(status.code(), Some(1));
    assert!(!output.contains("| called"), "{output}");
}
