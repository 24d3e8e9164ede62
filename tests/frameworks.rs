//! Programs in the frameworks that people use, as they are: nothing in them knows of polyinit.

use http::Request;
use serde_json::json;

use crate::support::websocket::{Socket, Text};
use crate::support::{Served, built, program, request};

/// `polyinit serve` with the frameworks on the program's path: `wasm-examples/build` puts them there.
fn start(name: &str, arguments: &[&str]) -> Served {
    let path = format!("PYTHONPATH={}", built("frameworks").to_str().unwrap());
    let mut all = vec!["--env", &path, "--workers", "1"];
    all.extend(arguments);
    Served::start(program(name), &all)
}

#[tokio::test]
async fn flask() {
    let app = start("flask-app", &[]);
    assert!(app.output().contains("`app` is a WSGI application"), "{}", app.output());
    assert_eq!(app.get("/").await.text(), "<h1>1 notes</h1>");
    app.wait_for("flask-app#1 | [");
    let read = app.get("/notes/1?shout=yes").await.json();
    assert_eq!(read, json!({"number": 1, "text": "written at startup", "shout": true}));
    assert_eq!(app.get("/notes/9").await.status, 404);
    let made = app.post("/notes", r#"{"text": "häppy"}"#).await;
    assert_eq!((made.status, made.all("set-cookie").len()), (201, 2));
    assert_eq!(made.all("location"), [b"/notes/2"]);
    assert_eq!(app.get("/notes/2").await.json()["text"], "häppy");
    let form = "--cut\r\ncontent-disposition: form-data; name=\"name\"\r\n\r\nAda\r\n--cut\r\n\
        content-disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\n12345\r\n--cut--\r\n";
    let upload = Request::post("/form").header("content-type", "multipart/form-data; boundary=cut");
    let upload = request(&app.address, upload, form).await.json();
    assert_eq!(upload, json!({"name": "Ada", "file": "a.txt", "bytes": 5}));
    assert_eq!(
        app.get("/stream?word=hey").await.text().lines().last(),
        Some("piece 9, hey")
    );
    let path = app.get("/path/a%20b/c?x=%2F").await.json();
    assert_eq!(path["path"], "a b/c");
    assert_eq!(path["url"], format!("http://{}/path/a%20b/c?x=/", app.address));
    assert_eq!(path["remote"], "127.0.0.1");
    assert_eq!(app.get("/wrong").await.status, 400);
    assert_eq!(app.get("/crash").await.status, 500);
    let line = app.wait_for("RuntimeError: nobody handles this one");
    assert!(line.contains("flask-app#"), "{line}");
    app.stop();
}

async fn use_shop(app: Served, kind: &str) {
    assert!(app.output().contains(kind), "{}", app.output());
    assert!(app.get("/").await.text().contains("<p>bread &amp; butter</p>"));
    assert_eq!(app.get("/items/").await.json(), json!({"items": []}));
    let made = app.post("/items/", r#"{"name": "Käse", "price": "3.50"}"#).await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(
        app.get("/items/1/").await.json(),
        json!({"name": "Käse", "price": "3.50"})
    );
    assert_eq!(app.get("/items/2/").await.status, 404);
    let first = app.get("/visits/?a=%C3%A4").await;
    assert_eq!(first.json(), json!({"visits": 1, "path": "/visits/?a=%C3%A4"}));
    let cookie = String::from_utf8_lossy(first.all("set-cookie")[0]).into_owned();
    let cookie = cookie.split(';').next().unwrap();
    let again = request(&app.address, Request::get("/visits/").header("cookie", cookie), "").await;
    assert_eq!(again.json()["visits"], 2);
    assert_eq!(app.get("/stream/").await.text().lines().count(), 10);
    let asynchronous = app.get("/async/").await.json();
    assert_eq!(asynchronous, json!({"scheme": "http", "host": app.address}));
    assert_eq!(app.get("/crash/").await.status, 500);
    // Its middleware sends who forgets the slash to where it is.
    assert_eq!(app.get("/items").await.status, 301);
    app.stop();
}

#[tokio::test]
async fn django_is_found_by_its_manage_py() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("SHOP_DATABASE={}/db", folder.path().display());
    use_shop(
        start("django-site", &["--env", &database]),
        "`application` is a WSGI application",
    )
    .await;
}

#[tokio::test]
async fn django_over_asgi() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("SHOP_DATABASE={}/db", folder.path().display());
    let arguments = ["--env", &database, "--entrypoint", "shop.asgi:application"];
    use_shop(start("django-site", &arguments), "`application` is an ASGI application").await;
}

#[tokio::test]
async fn starlette() {
    let app = start("starlette-app", &[]);
    assert_eq!(app.get("/").await.json(), json!({"members": 0, "left": []}));
    assert!(app.get("/events").await.text().ends_with("data: 4\n\n"));
    let gzip = Request::get("/files/large").header("accept-encoding", "gzip");
    let large = request(&app.address, gzip, "").await;
    assert_eq!(large.all("content-encoding"), [b"gzip"]);
    assert!(large.body.len() < 10_000);
    let mut ada = Socket::open(&app.address, "/chat/ada").await;
    let mut bob = Socket::open(&app.address, "/chat/bob").await;
    app.wait_for("chat: bob comes in");
    ada.send("hello").await;
    assert_eq!(bob.next().await, Text("ada: hello".into()));
    assert_eq!(app.post("/announce", "all out").await.status, 202);
    assert_eq!(bob.next().await, Text("all out".into()));
    bob.send("kick me").await;
    assert_eq!(bob.closed().await, (4000, "kicked".into()));
    ada.close(1001, "bye").await;
    crate::python::wait_until(async || app.get("/").await.json()["left"] == json!([["ada", 1001, "bye"]])).await;
    let denied = Socket::refused(&app.address, "/chat/banned").await;
    assert_eq!(
        (denied.status, denied.json()),
        (451, json!({"error": "you are banned"}))
    );
    assert_eq!(Socket::refused(&app.address, "/chat/nobody").await.status, 403);
    let mut crash = Socket::open(&app.address, "/chat/eve").await;
    crash.send("crash").await;
    assert_eq!(crash.closed().await.0, 1011);
    let line = app.wait_for("RuntimeError: the chat crashed");
    assert!(line.starts_with("starlette-app#"), "{line}");
    assert_eq!(app.get("/crash").await.status, 500);
    let output = app.stop();
    assert!(output.contains("starlette-app | the room is closed"), "{output}");
}

#[tokio::test]
async fn quart() {
    let app = start("quart-app", &[]);
    assert_eq!(
        app.get("/?q=%C3%BC").await.json(),
        json!({"greeting": "hello", "query": "ü"})
    );
    let body = vec![7; 1_000_000];
    assert!(app.post("/echo", body.clone()).await.body == body);
    assert_eq!(app.get("/stream").await.text().lines().count(), 10);
    let mut socket = Socket::open(&app.address, "/shout").await;
    socket.send("hey").await;
    assert_eq!(socket.next().await, Text("HEY".into()));
    socket.close(1000, "").await;
    let output = app.stop();
    assert!(output.contains("quart says goodbye"), "{output}");
}

#[tokio::test]
async fn litestar() {
    let app = start("litestar-app", &[]);
    assert_eq!(app.get("/").await.json(), json!({"tax": 19}));
    assert_eq!(
        app.get("/notes/4?shout=true").await.json(),
        json!({"text": "LOUD", "stars": 4})
    );
    let made = app.post("/notes", r#"{"text": "x", "stars": 2}"#).await;
    assert_eq!((made.status, made.json()["stars"].clone()), (201, json!(2)));
    assert_eq!(app.post("/notes", r#"{"stars": "many"}"#).await.status, 400);
    let mut socket = Socket::open(&app.address, "/double").await;
    socket.send(r#"{"number": 21}"#).await;
    assert_eq!(socket.next().await, Text(r#"{"double":42}"#.into()));
    socket.close(1000, "").await;
    app.stop();
}

#[tokio::test]
async fn aiohttp_as_an_executable() {
    let app = start("aiohttp-app", &[]);
    assert!(app.output().contains("→ executable"), "{}", app.output());
    assert_eq!(app.get("/?name=you").await.json(), json!({"hello": "you"}));
    let body = vec![7; 500_000];
    assert!(app.post("/echo", body.clone()).await.body == body);
    assert_eq!(app.get("/stream").await.text().lines().count(), 10);
    let mut socket = Socket::open(&app.address, "/shout").await;
    socket.send("hey").await;
    assert_eq!(socket.next().await, Text("HEY".into()));
    socket.close(1000, "").await;
    app.stop();
}

#[tokio::test]
async fn uvloop_is_used_where_it_is() {
    let source =
        "import asyncio\nasync def handler(event, context):\n    return type(asyncio.get_running_loop()).__module__\n";
    let folder = crate::support::folder_with("main.py", source);
    let path = format!("PYTHONPATH={}", built("frameworks").to_str().unwrap());
    let app = Served::start(folder.path(), &["--env", &path]);
    assert_eq!(app.get("/").await.text(), "uvloop");
    app.stop();
}

#[tokio::test]
async fn scikit_learn_behind_a_handler() {
    let app = start("scikit-app", &[]);
    let score = app.get("/score").await.json()["score"].as_f64().unwrap();
    assert!(score > 0.9, "{score}");
    let flowers = r#"{"flowers": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]}"#;
    assert_eq!(
        app.post("/", flowers).await.json(),
        json!({"kinds": ["setosa", "virginica"]})
    );
    assert_eq!(app.post("/", "{}").await.status, 400);
    app.stop();
}
