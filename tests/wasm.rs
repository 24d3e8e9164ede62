//! WebAssembly guests, built from their sources in wasm-examples.

use crate::support::{Served, built};

const CGI: [(&str, &str); 3] = [("go-cgi.wasm", "Go"), ("rust-cgi.wasm", "Rust"), ("c-cgi.wasm", "C")];

#[tokio::test]
async fn a_rust_component_for_wasi_http() {
    let app = Served::start(built("rust-http.wasm"), &["--timeout", "2"]);
    assert!(app.output().contains("wasi:http/proxy"), "{}", app.output());
    assert_eq!(app.get("/").await.text(), "Hello from a Rust component\n");
    assert_eq!(
        app.get("/headers?a=%20b").await.json()["path_with_query"],
        "/headers?a=%20b"
    );
    let body: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 249) as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    assert_eq!(app.get("/stream").await.text().lines().count(), 10);
    assert_eq!(app.get("/cookies").await.all("set-cookie").len(), 2);
    assert_eq!(app.get("/status/418").await.status, 418);
    app.stop();
}

#[tokio::test]
async fn a_guest_that_traps_or_spins_or_grows_fails_its_event_alone() {
    let app = Served::start(built("rust-http.wasm"), &["--timeout", "2"]);
    let trapped = app.get("/panic").await;
    assert_eq!(trapped.status, 500);
    assert!(trapped.json()["traceback"].as_str().is_some(), "{}", trapped.text());
    let (spun, meanwhile) = tokio::join!(app.get("/spin"), app.get("/"));
    assert_eq!((spun.status, meanwhile.status), (504, 200));
    assert!(app.get("/memory").await.status >= 200);
    assert_eq!(app.get("/").await.status, 200);
    app.stop();
}

#[tokio::test]
async fn plain_modules_by_the_cgi_convention() {
    for (guest, language) in CGI {
        let app = Served::start(built(guest), &["--env", "GREETING=hello"]);
        assert!(app.output().contains("CGI"), "{}", app.output());
        assert_eq!(
            app.get("/").await.text(),
            format!("Hello from {language} by way of CGI\n")
        );
        let body: Vec<u8> = (0..300_000_u32).map(|at| (at % 249) as u8).collect();
        assert!(app.post("/echo", body.clone()).await.body == body, "{guest}");
        assert_eq!(app.get("/status/404").await.status, 404);
        let environment = app.get("/env?q=%20").await.json();
        assert_eq!(environment["GATEWAY_INTERFACE"], "CGI/1.1");
        assert_eq!(environment["QUERY_STRING"], "q=%20");
        assert_eq!(environment["REQUEST_METHOD"], "GET");
        assert_eq!(environment["GREETING"], "hello");
        assert!(
            environment.get("PATH").is_none() && environment.get("HOME").is_none(),
            "{environment}"
        );
        assert_eq!(app.get("/fail").await.status, 500, "{guest}");
        app.stop();
    }
}
