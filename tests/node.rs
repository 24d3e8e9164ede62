//! Node programs: the web's own form, and plain servers.

use serde_json::json;

use crate::support::{Served, program};

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
