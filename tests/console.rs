//! The console at `/_polyinit/`: what it tells, to whom, and that its page shows it.

use std::time::Instant;

use http_body_util::BodyExt;

use crate::support::{Browser, PATIENCE, Served, folder_with, request};

const APP: &str = "\
import json
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        raise NotImplementedError
    event = await receive()
    if scope['type'] != 'http':
        await send({'length': len(event['body'])})
        return
    print('seen', scope['path'], flush=True)
    if scope['path'] == '/fail':
        raise ValueError('no such <luck>')
    await send({'type': 'http.response.start', 'status': 201})
    await send({'type': 'http.response.body', 'body': b'12345'})
";

async fn state(app: &Served) -> serde_json::Value {
    app.get("/_polyinit/state").await.json()
}

#[tokio::test]
async fn tells_what_there_is_and_what_has_happened() {
    let folder = folder_with("main.py", APP);
    let app = Served::start(folder.path(), &[]);
    app.get("/a?b=c").await;
    app.get("/fail").await;
    app.wait_for("no such <luck>");
    // What a program prints comes on its own way.
    let deadline = Instant::now() + PATIENCE;
    let state = loop {
        let state = state(&app).await;
        if state["log"].to_string().contains("seen /fail") {
            break state;
        }
        assert!(Instant::now() < deadline, "{state}");
    };
    let component = &state["components"][0];
    assert_eq!(component["engine"], "python");
    assert_eq!(component["routes"], serde_json::json!(["/*"]));
    assert!(component["processes"].as_u64().unwrap() >= 1, "{component}");
    assert!(component["memory"].as_u64().unwrap() > 1 << 20, "{component}");
    let requests = state["requests"].as_array().unwrap();
    assert_eq!(requests.len(), 2);
    let first = &requests[0];
    assert_eq!((&first["method"], &first["path"]), (&"GET".into(), &"/a?b=c".into()));
    assert_eq!((&first["status"], &first["bytes"]), (&201.into(), &5.into()));
    let [head, whole] = ["head_ms", "whole_ms"].map(|name| first[name].as_f64().unwrap());
    assert!(0.0 < head && head <= whole, "{first}");
    assert_eq!(requests[1]["status"], 500);
    assert!(requests[1]["error"].as_str().unwrap().contains("no such <luck>"));
    let starts = state["starts"].as_object().unwrap();
    let parts = starts.values().next().unwrap()["parts"].to_string();
    for part in ["spawn", "interpreter", "imports", "app import", "lifespan"] {
        assert!(parts.contains(part), "{parts}");
    }
    let boot = state["boot"].to_string();
    for stage in ["program read", " ready\"", "serving"] {
        assert!(boot.contains(stage), "{boot}");
    }
    app.stop();
}

#[tokio::test]
async fn tells_what_happens_while_it_does() {
    let folder = folder_with("main.py", APP);
    let app = Served::start(folder.path(), &[]);
    let stream = tokio::net::TcpStream::connect(&app.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let asked = ::http::Request::get("/_polyinit/events")
        .header("host", &app.address)
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let mut events = sender.send_request(asked).await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    app.get("/now").await;
    let mut text = String::new();
    let told = async {
        while !(text.contains("\"path\":\"/now\"") && text.contains("seen /now")) {
            let frame = events.frame().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    // A page that is open is no request that the end waits for: it is told that there is nothing more.
    app.stop();
    while let Some(frame) = events.frame().await {
        frame.unwrap();
    }
}

#[tokio::test]
async fn messages_can_be_sent() {
    let folder = folder_with("main.py", APP);
    let app = Served::start(folder.path(), &[]);
    let reply = app.post("/_polyinit/message", "{\"a\": 1}").await;
    assert_eq!(
        (reply.status, reply.json()["length"].clone()),
        (200, 8.into()),
        "{}",
        reply.text()
    );
    assert_eq!(state(&app).await["requests"][0]["method"], "message");
    app.stop();
}

#[tokio::test]
async fn is_only_for_this_machine_unless_told() {
    let folder = folder_with("main.py", APP);
    let app = Served::start(folder.path(), &[]);
    // A name of somebody else's that leads here, and a page of somebody else's.
    let rebound = ::http::Request::get("/_polyinit/state").header("host", "evil.example");
    assert_eq!(request(&app.address, rebound, "").await.text(), "12345");
    let foreign = ::http::Request::post("/_polyinit/message").header("origin", "https://evil.example");
    assert_eq!(request(&app.address, foreign, "{}").await.text(), "12345");
    assert_eq!(app.get("/_polyinit/nothing").await.status, 404);
    app.stop();
    let off = Served::start(folder.path(), &["--console", "off"]);
    assert_eq!(off.get("/_polyinit/state").await.text(), "12345");
    off.stop();
    // Every address, but nobody has asked for a console: this is how it is run where others can reach it.
    let folder = folder.path().to_str().unwrap();
    for (console, status) in [("auto", 201), ("on", 200)] {
        let arguments = ["serve", folder, "--listen", "0.0.0.0:0", "--console", console];
        let running = crate::support::Running::start(&arguments);
        let line = running.wait_for("serving on http://");
        let address = line.rsplit('/').next().unwrap().trim().replace("0.0.0.0", "127.0.0.1");
        let named = ::http::Request::get("/_polyinit/state").header("host", "shop.example");
        assert_eq!(request(&address, named, "").await.status, status, "{console}");
        running.interrupt();
        assert_eq!(running.end().0.code(), Some(0));
    }
}

#[tokio::test]
async fn the_page_shows_it_in_a_browser() {
    let folder = folder_with("main.py", APP);
    let app = Served::start(folder.path(), &[]);
    app.get("/asked-before?x=1").await;
    app.get("/fail").await;
    let mut browser = Browser::open(&format!("http://{}/_polyinit/", app.address)).await;
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    let shown = [
        &format!("<b>{name}</b>"),
        "GET /asked-before?x=1",
        "class=\"n bad\">500<",
        "seen /fail",
        &format!("{name} ready"),
        "title=\"app import\"",
        "title=\"lifespan\"",
        "MiB",
        "class=\"on\">live<",
    ];
    browser.wait_for(&shown).await;
    // What happens while somebody looks.
    app.get("/now?x").await;
    browser.wait_for(&["GET /now?", "seen /now"]).await;
    // A request opens, and shows what was logged for it and no other; nothing of it is taken for markup.
    let failed =
        "[...document.querySelectorAll('tr.row')].find((row) => row.textContent.includes('/fail')).click(); ''";
    browser.ask(failed).await;
    browser.wait_for(&["no such &lt;luck&gt;</pre>"]).await;
    let details = browser.ask("document.querySelector('td[colspan]').innerText").await;
    assert!(
        details.contains("seen /fail") && !details.contains("seen /asked-before"),
        "{details}"
    );
    app.stop();
}
