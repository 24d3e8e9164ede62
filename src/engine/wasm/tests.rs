//! Whole events through small guests, written as text and compiled as users' programs are.

mod refusals;

use futures_util::FutureExt as _;
use http_body::Body as _;
use http_body_util::{BodyExt as _, StreamBody};

use super::*;
use crate::engine::testing::text;
use crate::event::{Body, BodyError, Reply};
use crate::program::EngineKind;

/// A WASI 0.1 module: functions to write it short, 64 KiB of memory with `data`, and `body` as its `_start`.
///
/// Memory up to 1,024 is for the functions; data is put at 1,024.
fn module(data: &str, body: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (data (i32.const 1024) "{data}")
            ;; Writes all of a piece of memory to a descriptor.
            (func $write (param $fd i32) (param $at i32) (param $length i32)
                (loop $more
                    (i32.store (i32.const 0) (local.get $at))
                    (i32.store (i32.const 4) (local.get $length))
                    (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
                    (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
                    (local.set $length (i32.sub (local.get $length) (i32.load (i32.const 8))))
                    (br_if $more (local.get $length))))
            ;; Reads up to 4 KiB of stdin to 8192; how much.
            (func $read (result i32)
                (i32.store (i32.const 0) (i32.const 8192))
                (i32.store (i32.const 4) (i32.const 4096))
                (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
                (i32.load (i32.const 8)))
            ;; Sleeps for an hour by the monotonic clock.
            (func $sleep
                (i32.store (i32.const 16) (i32.const 0))
                (i32.store8 (i32.const 24) (i32.const 0))
                (i32.store (i32.const 32) (i32.const 1))
                (i64.store (i32.const 40) (i64.const 3600000000000))
                (drop (call $poll (i32.const 16) (i32.const 128) (i32.const 1) (i32.const 12))))
            (func $deep (unreachable))
            (func (export "_start") {body}))"#
    )
}

/// Writes the first `length` bytes of the data to stdout.
fn say(length: usize) -> String {
    format!("(call $write (i32.const 1) (i32.const 1024) (i32.const {length}))")
}

const ECHO: &str = r"
    (local $length i32)
    (call $write (i32.const 1) (i32.const 1024) (i32.const 26))
    (block $end (loop $more
        (local.set $length (call $read))
        (br_if $end (i32.eqz (local.get $length)))
        (call $write (i32.const 1) (i32.const 8192) (local.get $length))
        (br $more)))";
const PLAIN: &str = r"Content-Type: text/plain\0a\0a";

async fn start_with(settings: &Settings, wat: &str) -> Result<Arc<dyn Engine>, StartError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("guest.wasm"), wat::parse_str(wat).unwrap()).unwrap();
    start_file(settings, directory.path(), "guest.wasm").await
}

async fn start_file(settings: &Settings, root: &Path, file: &str) -> Result<Arc<dyn Engine>, StartError> {
    let component = Component {
        environment: [("GREETING".to_owned(), "hello".to_owned())].into(),
        messages: true,
        ..Component::new("guest", root, EngineKind::Wasm, Entrypoint::File(file.into()))
    };
    start(&component, settings).await
}

async fn engine(wat: &str) -> Arc<dyn Engine> {
    start_with(&Settings::default(), wat).await.unwrap()
}

fn with_timeout(milliseconds: u64) -> Settings {
    Settings {
        event_timeout: Duration::from_millis(milliseconds),
        ..Settings::default()
    }
}

async fn request(engine: &Arc<dyn Engine>, request: http::Request<Body>) -> Result<http::Response<Body>, Failure> {
    match engine.handle(Event::http(request)).await? {
        Reply::Http(response) => Ok(response),
        Reply::Value(value) => panic!("{value:?}"),
    }
}

async fn get(engine: &Arc<dyn Engine>) -> Result<http::Response<Body>, Failure> {
    request(engine, http::Request::get("/").body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_module_answers_with_head_and_body() {
    let guest = engine(&module(
        r"Status: 201 Made\0aSet-Cookie: a\0aSet-Cookie: b\0a\0ahello",
        &say(51),
    ))
    .await;
    assert_eq!(guest.describe(), "a WASI 0.1 module, run by the CGI convention");
    let response = get(&guest).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert_eq!(text(response).await, "hello");
}

#[tokio::test]
async fn the_environment_is_the_request_and_what_was_named() {
    let guest = engine(&module(
        PLAIN,
        r"(call $write (i32.const 1) (i32.const 1024) (i32.const 26))
        (drop (call $environ_sizes (i32.const 12) (i32.const 16)))
        (drop (call $environ_get (i32.const 4096) (i32.const 8192)))
        (call $write (i32.const 1) (i32.const 8192) (i32.load (i32.const 16)))",
    ))
    .await;
    let asked = http::Request::get("/a%20b?c=d")
        .header("proxy", "evil")
        .body(Body::empty())
        .unwrap();
    let all = text(request(&guest, asked).await.unwrap()).await;
    let variables: Vec<&str> = all.split_terminator('\0').collect();
    for expected in [
        "GREETING=hello",
        "EVENT_TYPE=http",
        "PATH_INFO=/a b",
        "QUERY_STRING=c=d",
    ] {
        assert!(variables.contains(&expected), "{expected} in {variables:?}");
    }
    assert!(!all.contains("evil"));
    assert!(!all.contains("PATH="), "nothing of our own environment");
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let guest = engine(&module(PLAIN, ECHO)).await;
    let (pieces, stream) = tokio::sync::mpsc::channel::<&'static str>(1);
    let frames = futures_util::stream::unfold(stream, |mut stream| async {
        let piece = stream.recv().await?;
        Some((
            Ok::<_, BodyError>(http_body::Frame::data(bytes::Bytes::from_static(piece.as_bytes()))),
            stream,
        ))
    });
    let asked = http::Request::post("/")
        .body(Body::stream(StreamBody::new(frames)))
        .unwrap();
    // The head comes before the body is there, and each piece before the next is sent.
    let mut body = request(&guest, asked).await.unwrap().into_body();
    for piece in ["one", "two"] {
        pieces.send(piece).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
    }
    drop(pieces);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_body_larger_than_any_buffer_comes_back_whole() {
    let guest = engine(&module(PLAIN, ECHO)).await;
    let sent: String = (0..300_000).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let asked = http::Request::post("/").body(Body::from(sent.clone())).unwrap();
    assert!(text(request(&guest, asked).await.unwrap()).await == sent);
}

#[tokio::test]
async fn a_message_comes_on_stdin_and_its_answer_on_stdout() {
    let guest = engine(&module(PLAIN, &ECHO.replace("(i32.const 26)", "(i32.const 1)"))).await;
    let message = "x".repeat(200_000);
    let answer = guest.handle(Event::message(message.clone())).await.unwrap();
    let Reply::Value(answer) = answer else {
        panic!("{answer:?}")
    };
    assert!(answer == format!("C{message}"));

    let settings = Settings {
        body_limit: 1000,
        ..Settings::default()
    };
    let guest = start_with(&settings, &module(PLAIN, ECHO)).await.unwrap();
    let failure = guest.handle(Event::message(message)).await.unwrap_err();
    assert_eq!(
        failure.message,
        "the guest's answer is larger than the limit of 1000 bytes"
    );
}

#[tokio::test]
async fn an_exit_status_before_the_head_is_a_failure_with_the_last_words() {
    let guest = engine(&module(
        r"first\0aNo such luck\0a",
        "(call $write (i32.const 2) (i32.const 1024) (i32.const 19)) (call $exit (i32.const 3))",
    ))
    .await;
    let failure = get(&guest).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Program);
    assert_eq!(
        failure.message,
        "the guest exited with status 3; its last line on stderr: No such luck"
    );
    assert_eq!(failure.traceback.as_deref(), Some("first\nNo such luck"));
}

#[tokio::test]
async fn a_panic_of_go_is_told_by_what_happened_and_not_by_where() {
    let said = r"panic: no lamps\0a\0agoroutine 1 [running]:\0amain.main()\0a\09main.go:5\0a";
    let guest = engine(&module(
        said,
        "(call $write (i32.const 2) (i32.const 1024) (i32.const 63)) (call $exit (i32.const 2))",
    ))
    .await;
    let failure = get(&guest).await.unwrap_err();
    assert_eq!(failure.message, "the guest exited with status 2: panic: no lamps");
}

#[tokio::test]
async fn exit_zero_is_a_good_end() {
    let guest = engine(&module(PLAIN, &format!("{} (call $exit (i32.const 0))", say(26)))).await;
    assert_eq!(text(get(&guest).await.unwrap()).await, "");
}

#[tokio::test]
async fn a_failure_after_the_head_breaks_the_body() {
    // 200,000 bytes don't fit into any buffer, so the head is on its way when the guest fails.
    let guest = engine(&module(
        PLAIN,
        r"(call $write (i32.const 1) (i32.const 1024) (i32.const 26))
        (call $write (i32.const 1) (i32.const 8192) (i32.const 50000))
        (call $write (i32.const 1) (i32.const 8192) (i32.const 50000))
        (call $exit (i32.const 4))",
    ))
    .await;
    let mut body = get(&guest).await.unwrap().into_body();
    let mut received = 0;
    let error = loop {
        match body.frame().await.expect("an error before the end") {
            Ok(frame) => received += frame.into_data().unwrap().len(),
            Err(error) => break error,
        }
    };
    assert_eq!(received, 100_000);
    assert!(error.to_string().starts_with("the guest exited with status 4"));
}

#[tokio::test]
async fn a_trap_is_told_with_its_backtrace() {
    let guest = engine(&module("", "(call $deep)")).await;
    let failure = get(&guest).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Program);
    assert_eq!(
        failure.message,
        "the guest trapped: wasm `unreachable` instruction executed"
    );
    assert!(failure.traceback.unwrap().contains("!deep"));
}

#[tokio::test]
async fn a_loop_without_end_is_ended_and_lets_others_work() {
    let guest = start_with(&with_timeout(300), &module("", "(loop $on (br $on))"))
        .await
        .unwrap();
    // One thread: this only works if the guest yields.
    let other = async { tokio::time::sleep(Duration::from_millis(20)).await };
    tokio::pin!(other);
    let busy = get(&guest);
    tokio::pin!(busy);
    tokio::select! {
        biased;
        _ = &mut busy => panic!("the guest ended first"),
        () = &mut other => {}
    }
    let failure = busy.await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert_eq!(failure.message, "the guest was not done after 0.3 s and was ended");
}

#[tokio::test]
async fn a_guest_that_sleeps_is_ended_in_time() {
    let guest = start_with(&with_timeout(50), &module("", "(call $sleep)"))
        .await
        .unwrap();
    assert_eq!(get(&guest).await.unwrap_err().kind, FailureKind::Timeout);
}

#[tokio::test]
async fn a_body_that_stops_coming_breaks_in_time() {
    let guest = start_with(
        &with_timeout(100),
        &module(PLAIN, &format!("{} (call $sleep)", say(26))),
    )
    .await
    .unwrap();
    let mut body = get(&guest).await.unwrap().into_body();
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(error.to_string().contains("was ended"), "{error}");
}

#[tokio::test]
async fn a_guest_whose_client_takes_nothing_is_ended_in_time() {
    let guest = start_with(
        &with_timeout(100),
        &module(PLAIN, &format!("{} (loop $on {} (br $on))", say(26), say(60_000))),
    )
    .await
    .unwrap();
    let mut body = get(&guest).await.unwrap().into_body();
    // With no guest left there is nothing to wait for.
    let stopped = guest.stop(Duration::from_secs(60));
    tokio::time::timeout(Duration::from_secs(20), stopped).await.unwrap();
    let error = loop {
        if let Err(error) = body.frame().await.expect("an error in place of the end") {
            break error;
        }
    };
    assert!(error.to_string().contains("was ended"), "{error}");
}

#[tokio::test]
async fn a_guest_whose_client_is_gone_is_gone_too() {
    let guest = engine(&module(PLAIN, &format!("{} (call $sleep)", say(26)))).await;
    let response = get(&guest).await.unwrap();
    let waiting = Box::pin(get(&guest));
    drop(response);
    drop(waiting);
    // With no guest left there is nothing to wait for.
    let stopped = guest.stop(Duration::from_secs(60));
    tokio::time::timeout(Duration::from_secs(20), stopped).await.unwrap();
}

#[tokio::test]
async fn stop_ends_what_is_still_at_work_after_its_grace() {
    let guest = engine(&module("", "(call $sleep)")).await;
    let mut event = guest.handle(Event::http(http::Request::get("/").body(Body::empty()).unwrap()));
    assert!((&mut event).now_or_never().is_none());
    guest.stop(Duration::from_millis(10)).await;
    assert_eq!(event.await.unwrap_err().kind, FailureKind::Gone);
    let failure = get(&guest).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert_eq!(failure.message, "the program has been stopped");
}

#[tokio::test]
async fn memory_ends_at_the_limit_and_the_failure_says_so() {
    // 4,097 pages are one more than 256 MiB.
    let guest = engine(&module(
        "",
        "(if (i32.eq (memory.grow (i32.const 4096)) (i32.const -1)) (then unreachable))",
    ))
    .await;
    let failure = get(&guest).await.unwrap_err();
    assert!(
        failure.message.starts_with(
            "the guest trapped: wasm `unreachable` instruction executed; before that, it asked for 256 MiB of memory"
        ),
        "{failure}"
    );
}

#[tokio::test]
async fn a_module_holds_only_so_many_files_open() {
    let directory = tempfile::tempdir().unwrap();
    let guest = r#"(module
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "guest.wasm")
        (func (export "_start") (local $left i32)
            (local.set $left (i32.const 20000))
            (loop $more
                (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 10) (i32.const 0) (i64.const 2)
                        (i64.const 2) (i32.const 0) (i32.const 32))
                    (then unreachable))
                (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))"#;
    std::fs::write(directory.path().join("guest.wasm"), wat::parse_str(guest).unwrap()).unwrap();
    let mut component = Component::new(
        "guest",
        directory.path(),
        EngineKind::Wasm,
        Entrypoint::File("guest.wasm".into()),
    );
    let folder = format!("{}::/data", directory.path().display());
    component.keys.wasm.directories.push(folder.parse().unwrap());
    component.keys.memory = Some(crate::program::limits::Size(64 << 20));
    let guest = start(&component, &Settings::default()).await.unwrap();
    let failure = get(&guest).await.unwrap_err();
    // Whichever there are fewer of here.
    let why = ["until the guest drops it", "files and sockets open"];
    assert!(why.iter().any(|why| failure.message.contains(why)), "{failure}");
}

#[tokio::test]
async fn what_is_no_reply_is_told_in_the_guests_words() {
    for (data, body, expected) in [
        (
            "Hello, world!\\0a",
            say(14),
            "line 1 of stdout, \"Hello, world!\", is no header",
        ),
        ("", String::new(), "nothing on stdout"),
        (
            "",
            "(call $write (i32.const 1) (i32.const 1024) (i32.const 60000))".repeat(2),
            "65536 bytes on stdout and no empty line",
        ),
        (PLAIN, say(20), "stdout ends before the empty line"),
        (
            "Content-Length: 9\\0a\\0a",
            say(19),
            "the guest announced `Content-Length: 9` and wrote 0 bytes",
        ),
    ] {
        let failure = get(&engine(&module(data, &body)).await).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Program);
        assert!(failure.message.starts_with(expected), "{failure}");
    }
}

#[tokio::test]
async fn a_length_without_a_body_answers_a_head_request() {
    let guest = engine(&module("Content-Length: 9\\0a\\0a", &say(19))).await;
    let asked = http::Request::head("/").body(Body::empty()).unwrap();
    let response = request(&guest, asked).await.unwrap();
    assert_eq!(response.headers()["content-length"], "9");
}

#[tokio::test]
async fn a_program_compiled_ahead_of_time_runs() {
    let directory = tempfile::tempdir().unwrap();
    let wasm = directory.path().join("guest.wasm");
    std::fs::write(&wasm, wat::parse_str(module(PLAIN, &say(26))).unwrap()).unwrap();
    let compiled = compile(&wasm).unwrap();
    std::fs::write(directory.path().join("guest.cwasm"), compiled).unwrap();
    let guest = start_file(&Settings::default(), directory.path(), "guest.cwasm")
        .await
        .unwrap();
    assert_eq!(get(&guest).await.unwrap().status(), 200);
    // The next version is copied over it. A guest that is at work would read zeroes as code from here on.
    let file = std::fs::File::options()
        .write(true)
        .open(directory.path().join("guest.cwasm"))
        .unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(0).unwrap();
    file.set_len(length).unwrap();
    assert_eq!(get(&guest).await.unwrap().status(), 200);
}

#[tokio::test]
async fn code_compiled_ahead_of_time_counts_no_fuel_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let wasm = directory.path().join("guest.wasm");
    std::fs::write(&wasm, wat::parse_str(module(PLAIN, &say(26))).unwrap()).unwrap();
    std::fs::write(directory.path().join("ahead.cwasm"), compile(&wasm).unwrap()).unwrap();
    let mut component = Component::new(
        "guest",
        directory.path(),
        EngineKind::Wasm,
        Entrypoint::File("ahead.cwasm".into()),
    );
    component.keys.wasm.fuel = std::num::NonZeroU64::new(1_000_000);
    let refused = start(&component, &Settings::default()).await.err().unwrap();
    assert!(
        refused
            .message
            .starts_with("ahead.cwasm was compiled without the counting of fuel"),
        "{refused}"
    );
}

/// A component that exports `wasi:http/incoming-handler` and does `body` in it.
fn component(body: &str) -> String {
    format!(
        r#"(component
            (import "wasi:http/types@0.2.0" (instance $types
                (export "incoming-request" (type (sub resource)))
                (export "response-outparam" (type (sub resource)))))
            (alias export $types "incoming-request" (type $request))
            (alias export $types "response-outparam" (type $out))
            (core module $m (func (export "handle") (param i32 i32) {body}))
            (core instance $i (instantiate $m))
            (func $handle (param "request" (own $request)) (param "response-out" (own $out))
                (canon lift (core func $i "handle")))
            (instance $handler (export "handle" (func $handle)))
            (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#
    )
}

/// What a request holds outside a guest's memory is bounded: nothing there counts it.
#[tokio::test]
async fn a_request_has_no_method_or_authority_of_any_length() {
    let guest = r#"(component
        (import "wasi:http/types@0.2.0" (instance $types
            (export "incoming-request" (type (sub resource)))
            (export "response-outparam" (type (sub resource)))
            (export "fields" (type $fields (sub resource)))
            (export "outgoing-request" (type $request (sub resource)))
            (type $methods (variant (case "get") (case "head") (case "post") (case "put") (case "delete")
                (case "connect") (case "options") (case "trace") (case "patch") (case "other" string)))
            (export "method" (type $method (eq $methods)))
            (export "[constructor]fields" (func (result (own $fields))))
            (export "[constructor]outgoing-request"
                (func (param "headers" (own $fields)) (result (own $request))))
            (export "[method]outgoing-request.set-method"
                (func (param "self" (borrow $request)) (param "method" $method) (result (result))))
            (export "[method]outgoing-request.set-authority"
                (func (param "self" (borrow $request)) (param "authority" (option string)) (result (result))))))
        (alias export $types "incoming-request" (type $incoming))
        (alias export $types "response-outparam" (type $out))
        (core module $m1 (memory (export "memory") 1))
        (core instance $m1 (instantiate $m1))
        (alias core export $m1 "memory" (core memory $memory))
        (core func $fields (canon lower (func $types "[constructor]fields")))
        (core func $new (canon lower (func $types "[constructor]outgoing-request")))
        (core func $method (canon lower (func $types "[method]outgoing-request.set-method")
            (memory $memory)))
        (core func $authority (canon lower (func $types "[method]outgoing-request.set-authority")
            (memory $memory)))
        (core module $m2
            (import "" "memory" (memory 1))
            (import "" "fields" (func $fields (result i32)))
            (import "" "new" (func $new (param i32) (result i32)))
            (import "" "method" (func $method (param i32 i32 i32 i32) (result i32)))
            (import "" "authority" (func $authority (param i32 i32 i32 i32) (result i32)))
            (func $expect (param i32 i32) (if (i32.ne (local.get 0) (local.get 1)) (then unreachable)))
            (func (export "handle") (param i32 i32) (local $request i32)
                (memory.fill (i32.const 0) (i32.const 65) (i32.const 2000))
                (local.set $request (call $new (call $fields)))
                (call $expect (call $method (local.get $request) (i32.const 9) (i32.const 0) (i32.const 1024)) (i32.const 0))
                (call $expect (call $method (local.get $request) (i32.const 9) (i32.const 0) (i32.const 1025)) (i32.const 1))
                (call $expect (call $authority (local.get $request) (i32.const 1) (i32.const 0) (i32.const 1024)) (i32.const 0))
                (call $expect (call $authority (local.get $request) (i32.const 1) (i32.const 0) (i32.const 1025)) (i32.const 1))))
        (core instance $m2 (instantiate $m2 (with "" (instance
            (export "memory" (memory $memory))
            (export "fields" (func $fields))
            (export "new" (func $new))
            (export "method" (func $method))
            (export "authority" (func $authority))))))
        (func $handle (param "request" (own $incoming)) (param "response-out" (own $out))
            (canon lift (core func $m2 "handle")))
        (instance $handler (export "handle" (func $handle)))
        (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#;
    let failure = get(&engine(guest).await).await.unwrap_err();
    assert!(failure.message.contains("without a response"), "{}", failure.message);
}

#[tokio::test]
async fn a_component_that_sets_no_response_is_told_so() {
    let guest = engine(&component("")).await;
    assert_eq!(guest.describe(), "a component for wasi:http/proxy 0.2");
    let failure = get(&guest).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Program);
    assert_eq!(
        failure.message,
        "the guest returned without a response: it never called `response-outparam.set`"
    );
    let failure = guest.handle(Event::message("{}")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotFound);
}

#[tokio::test]
async fn a_component_that_traps_or_loops_is_ended() {
    let failure = get(&engine(&component("unreachable")).await).await.unwrap_err();
    assert_eq!(
        failure.message,
        "the guest trapped: wasm `unreachable` instruction executed"
    );
    let guest = start_with(&with_timeout(50), &component("(loop $on (br $on))"))
        .await
        .unwrap();
    assert_eq!(get(&guest).await.unwrap_err().kind, FailureKind::Timeout);
}

#[tokio::test]
async fn components_of_many_parts_have_as_many_events_at_once_as_others() {
    let parts = format!(
        "(core module $part) {} (core module $m",
        "(core instance (instantiate $part))".repeat(200)
    );
    let many = component("(loop $on (br $on))").replacen("(core module $m", &parts, 1);
    let guest = start_with(&with_timeout(300), &many).await.unwrap();
    for outcome in futures_util::future::join_all((0..30).map(|_| get(&guest))).await {
        let failure = outcome.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Timeout, "{failure}");
    }
}

#[tokio::test]
async fn a_command_component_is_run_for_a_message() {
    let command = |result: u32| {
        format!(
            r#"(component
                (core module $m (func (export "run") (result i32) (i32.const {result})))
                (core instance $i (instantiate $m))
                (func $run (result (result)) (canon lift (core func $i "run")))
                (instance $runner (export "run" (func $run)))
                (export "wasi:cli/run@0.2.0" (instance $runner)))"#
        )
    };
    let guest = engine(&command(0)).await;
    assert_eq!(
        guest.describe(),
        "a component for wasi:cli/command 0.2, run by the CGI convention"
    );
    let answer = guest.handle(Event::message("{}")).await.unwrap();
    assert!(matches!(&answer, Reply::Value(value) if value.is_empty()), "{answer:?}");
    let failure = engine(&command(1))
        .await
        .handle(Event::message("{}"))
        .await
        .unwrap_err();
    assert_eq!(
        failure.message,
        "the guest exited with status 1 and wrote nothing to stderr"
    );
}
