//! How far WebAssembly guests may go, and what is told when they go further.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::support::{Response, Running, Served, built, folder_with, get};

#[tokio::test]
async fn a_trap_is_told_with_the_functions_that_led_there() {
    let app = Served::start(built("rust-http.wasm"), &[]);
    let reply = app.get("/panic").await.json();
    let detail = reply["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("the guest trapped: wasm `unreachable` instruction executed"),
        "{detail}"
    );
    let traceback = reply["traceback"].as_str().unwrap();
    assert!(
        traceback.contains("asked to panic by the request for /panic"),
        "{traceback}"
    );
    assert!(traceback.contains("rust_http::Component"), "{traceback}");
    app.wait_for("rust_http::Component");
    app.stop();
}

#[tokio::test]
async fn guests_leave_files_to_open_for_others() {
    let guest = r#"(module
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "guest.wasm")
        (func (export "_start")
            (loop $more
                (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 10) (i32.const 0) (i64.const 2)
                    (i64.const 2) (i32.const 0) (i32.const 32)))
                (br $more))))"#;
    let folder = folder_with("guest.wasm", wat::parse_str(guest).unwrap());
    let program = folder.path().join("guest.wasm");
    let granted = format!("{}::/data", folder.path().display());
    let serve = [
        "serve",
        program.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--allow-dir",
        &granted,
    ];
    let app = Running::start_under(&["prlimit", "--nofile=300:300"], &serve);
    let line = app.wait_for("serving on http://");
    let address = line.rsplit('/').next().unwrap().trim().to_owned();
    // It would have gone on until nobody could connect any more.
    for reply in join_all([get(&address, "/"), get(&address, "/"), get(&address, "/")]).await {
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(
            detail.contains("files and sockets open") && detail.contains("ulimit -n"),
            "{detail}"
        );
    }
    app.interrupt();
    let (status, output) = app.end();
    assert_eq!(status.code(), Some(0), "{output}");
}

#[tokio::test]
async fn a_trap_is_told_where_no_client_asked() {
    let manifest = format!(
        "[components.out]\nsource = {:?}\nroutes = [\"/fetch\"]\n[components.out.wasm]\nhosts = [\"self\"]\n\
         [components.inner]\nsource = {:?}\nroutes = []\n",
        built("rust-outgoing.wasm"),
        built("rust-http.wasm"),
    );
    let folder = folder_with("polyinit.toml", manifest);
    let app = Served::start(folder.path(), &[]);
    let reply = app.get("/fetch?http://inner.internal/panic").await;
    assert_eq!(reply.status, 500);
    app.wait_for("GET http://inner.internal/panic, asked by a component: the guest trapped");
    app.wait_for("rust_http::Component");
    app.stop();
    // Nobody sees the reply to a schedule's request.
    let manifest = format!(
        "[components.inner]\nsource = {:?}\nschedules = [{{ cron = \"* * * * * *\", path = \"/panic\" }}]\n",
        built("rust-http.wasm"),
    );
    let folder = folder_with("polyinit.toml", manifest);
    let app = Served::start(folder.path(), &[]);
    app.wait_for("inner: the schedule \"* * * * * *\": the guest trapped");
    app.wait_for("rust_http::Component");
    app.stop();
}

#[tokio::test]
async fn an_instance_has_the_memory_that_is_said() {
    let app = Served::start(built("rust-http.wasm"), &["--memory", "16"]);
    let taken = app.get("/memory").await.text();
    let taken: u32 = taken.split(' ').next().unwrap().parse().unwrap();
    assert!((8..16).contains(&taken), "{taken}");
    app.stop();
}

#[tokio::test]
async fn fuel_ends_what_works_too_much_and_nothing_else() {
    for guest in ["rust-http.wasm", "rust-cgi.wasm", "rust-service.wasm"] {
        let app = Served::start(built(guest), &["--fuel", "50000000"]);
        for _ in 0..3 {
            assert_eq!(app.get("/").await.status, 200, "{guest}");
            let spun = app.get("/spin").await;
            assert_eq!(spun.status, 500, "{guest}");
            let detail = spun.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("50000000 units of fuel"), "{guest}: {detail}");
        }
        app.stop();
    }
}

#[tokio::test]
async fn endless_loops_on_every_core_do_not_keep_others_waiting() {
    let app = Served::start(built("rust-http.wasm"), &["--timeout", "5"]);
    let cores = std::thread::available_parallelism().unwrap().get();
    let spinning = (0..cores * 2).map(|_| app.get("/spin"));
    let others = async {
        let mut times = Vec::new();
        for _ in 0..20 {
            let began = Instant::now();
            assert_eq!(app.get("/").await.status, 200);
            times.push(began.elapsed());
        }
        times.sort();
        times
    };
    let (spun, times) = tokio::join!(join_all(spinning), others);
    assert!(spun.iter().all(|reply| reply.status == 504));
    // Some turns of 10 ms each; without turns it would be the 5 s of the loops. Other tests share the machine.
    assert!(times[10] < Duration::from_secs(1), "{times:?}");
    app.stop();
}

/// A WASI 0.1 module with `memories` memories and a table of `elements`, which does `body`.
fn module(memories: usize, elements: usize, body: &str) -> tempfile::TempDir {
    let more = "(memory 1)".repeat(memories - 1);
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1) {more}
            (table $table {elements} funcref)
            (func (export "_start") {body}))"#
    );
    folder_with("guest.wasm", wat::parse_str(text).unwrap())
}

#[tokio::test]
async fn calls_nest_as_deep_as_the_stack_and_no_deeper() {
    // `_start`, after the two imports, calls itself.
    let folder = module(1, 1, "(call 2)");
    let app = Served::start(folder.path().join("guest.wasm"), &[]);
    let reply = app.get("/").await;
    assert_eq!(reply.status, 500);
    assert!(
        reply.text().contains("nest deeper than its stack of 1024 KiB holds"),
        "{}",
        reply.text()
    );
    app.stop();
}

#[tokio::test]
async fn a_call_gets_so_many_random_bytes() {
    for (bytes, expected) in [
        (4 << 20, "nothing on stdout"),
        ((4 << 20) + 1, "requested len 4194305 exceeds limit 4194304"),
    ] {
        let text = format!(
            r#"(module
                (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
                (memory (export "memory") 65)
                (func (export "_start") (drop (call $random (i32.const 0) (i32.const {bytes})))))"#
        );
        let folder = folder_with("guest.wasm", wat::parse_str(text).unwrap());
        let app = Served::start(folder.path().join("guest.wasm"), &[]);
        let reply = app.get("/").await.text();
        assert!(reply.contains(expected), "{reply}");
        app.stop();
    }
}

/// Waits for an hour by the monotonic clock.
const SLEEP: &str = "
    (i32.store8 (i32.const 24) (i32.const 0))
    (i32.store (i32.const 32) (i32.const 1))
    (i64.store (i32.const 40) (i64.const 3600000000000))
    (drop (call $poll (i32.const 16) (i32.const 128) (i32.const 1) (i32.const 12)))";

#[tokio::test]
async fn events_wait_for_a_free_instance_so_many_of_them_and_so_long() {
    // Four memories take four places, so that fewer events fill them.
    let folder = module(4, 1, SLEEP);
    let app = Served::start(folder.path().join("guest.wasm"), &["--timeout", "15", "--quiet"]);
    let (memories, waiting) = (1000, 1024);
    let replies = join_all((0..memories / 4 + waiting + 10).map(|_| app.get("/"))).await;
    let with = |status: u16, words: &str| {
        let told = |reply: &&Response| reply.status == status && reply.text().contains(words);
        replies.iter().filter(told).collect::<Vec<_>>()
    };
    let (full, slow, at_work) = (
        with(503, "and 1024 events wait for one; try again later"),
        with(503, "and none became free within 10 s; try again later"),
        with(504, "was ended"),
    );
    assert_eq!(
        full.len() + slow.len() + at_work.len(),
        replies.len(),
        "{:?}",
        replies.last()
    );
    // A machine with less memory or few processors has fewer places.
    assert!(
        !full.is_empty() && slow.len() == waiting,
        "{} {}",
        full.len(),
        slow.len()
    );
    for reply in full.iter().chain(&slow) {
        assert_eq!(reply.all("retry-after"), [b"1"]);
    }
    app.stop();
}

#[tokio::test]
async fn tables_grow_to_their_limit_and_no_further() {
    for (elements, status) in [(262_143, 200), (262_144, 500)] {
        let body = format!(
            "(if (i32.eq (table.grow $table (ref.null func) (i32.const {elements})) (i32.const -1))
                (then (call $exit (i32.const 3))))"
        );
        let folder = module(1, 1, &body);
        let app = Served::start(folder.path().join("guest.wasm"), &[]);
        let reply = app.get("/").await.text();
        let grown = !reply.contains("exited with status 3");
        assert_eq!(grown, status == 200, "{elements}: {reply}");
        app.stop();
    }
}

#[tokio::test]
async fn a_component_of_too_many_parts_is_told_so() {
    let parts = |count: usize| {
        format!(
            r#"(component
                (core module $part)
                (core module $m (func (export "run") (result i32) (i32.const 0)))
                {}
                (core instance $i (instantiate $m))
                (func $run (result (result)) (canon lift (core func $i "run")))
                (instance $runner (export "run" (func $run)))
                (export "wasi:cli/run@0.2.0" (instance $runner)))"#,
            "(core instance (instantiate $part))".repeat(count)
        )
    };
    for (count, expected) in [
        (200, "nothing on stdout"),
        (300, "resource limit exceeded: instance count too high at 257"),
    ] {
        let folder = folder_with("guest.wasm", wat::parse_str(parts(count)).unwrap());
        let app = Served::start(folder.path().join("guest.wasm"), &[]);
        let reply = app.get("/").await;
        assert_eq!(reply.status, 500);
        assert!(reply.text().contains(expected), "{count}: {}", reply.text());
        app.stop();
    }
}

/// Requests over one connection.
struct Connection(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Connection {
    async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn get(&mut self, path: &str) -> u16 {
        self.0.ready().await.unwrap();
        let request = http::Request::get(path)
            .header("host", "test")
            .body(Full::default())
            .unwrap();
        let response = self.0.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    }
}

#[tokio::test]
async fn ten_thousand_trapped_events_leave_nothing_behind() {
    for guest in ["rust-http.wasm", "rust-service.wasm"] {
        let app = Served::start(built(guest), &["--quiet"]);
        let mut connection = Connection::open(&app.address).await;
        let mut trap = async |times| {
            for _ in 0..times {
                assert_eq!(connection.get("/panic").await, 500);
            }
        };
        trap(1000).await;
        let before = app.resident();
        trap(10_000).await;
        let grown = app.resident().saturating_sub(before);
        // A kilobyte an event would be 10 MiB.
        assert!(grown < 8 << 20, "{guest}: grown by {grown} bytes from {before}");
        drop(connection);
        app.stop();
    }
}
