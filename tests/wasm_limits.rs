//! How far WebAssembly guests may go, and what is told when they go further.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::support::{Served, built};

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
    let (spun, times) = tokio::join!(futures_util::future::join_all(spinning), others);
    assert!(spun.iter().all(|reply| reply.status == 504));
    // Some turns of 10 ms each; without turns it would be the 5 s of the loops. Other tests share the machine.
    assert!(times[10] < Duration::from_secs(1), "{times:?}");
    app.stop();
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
