//! Requests at certain times, and which messages go where.

use crate::manifest::polyinit;
use crate::support::{PATIENCE, Served, folder_with};

const APP: &str = "\
import json
seen = []
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        raise NotImplementedError
    if scope['type'] != 'http':
        await receive()
        await send({'taken by': __name__})
        return
    headers = {name.decode(): value.decode() for name, value in scope['headers']}
    if scope['path'] == '/tick':
        seen.append([scope['method'], scope['query_string'].decode(), headers])
    await send({'type': 'http.response.start', 'status': 200})
    await send({'type': 'http.response.body', 'body': json.dumps(seen).encode()})
";

fn program(manifest: &str, names: &[&str]) -> tempfile::TempDir {
    let folder = folder_with("polyinit.toml", manifest);
    for name in names {
        std::fs::write(folder.path().join(format!("{name}.py")), APP).unwrap();
    }
    folder
}

#[tokio::test]
async fn a_component_is_asked_when_its_time_comes() {
    let manifest = "\
[components.app]
source = \"app.py\"
schedules = [{ cron = \"* * * * * *\", path = \"/tick?x=1\" }, { cron = \"0 0 1 1 *\", path = \"/tick?never\" }]
";
    let folder = program(manifest, &["app"]);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let deadline = std::time::Instant::now() + PATIENCE;
    let seen = loop {
        let seen = app.get("/").await.json();
        if seen.as_array().unwrap().len() >= 2 {
            break seen;
        }
        assert!(std::time::Instant::now() < deadline, "{}", app.output());
    };
    for run in seen.as_array().unwrap() {
        assert_eq!((&run[0], &run[1]), (&"POST".into(), &"x=1".into()));
        assert_eq!(run[2]["host"], "app.internal");
        assert_eq!(run[2]["polyinit-schedule"], "* * * * * *");
    }
    assert_ne!(seen[0][2]["polyinit-scheduled"], seen[1][2]["polyinit-scheduled"]);
    app.stop();
}

#[tokio::test]
async fn a_message_goes_to_the_component_that_says_most_of_it() {
    let manifest = "\
[components.every]
source = \"every.py\"
messages = true
[components.shop]
source = \"shop.py\"
messages = [{ channel = \"shop\" }]
[components.posts]
source = \"posts.py\"
messages = [{ channel = \"shop\", type = \"POST\" }, { sender = \"0x1\" }]
";
    let folder = program(manifest, &["every", "shop", "posts"]);
    let app = Served::start(folder.path(), &[]);
    for (message, expected) in [
        (r#"{"channel": "shop", "type": "POST"}"#, "posts"),
        (r#"{"channel": "shop", "type": "STORE"}"#, "shop"),
        (r#"{"channel": "other", "sender": "0x1"}"#, "posts"),
        (r#"{"channel": "other"}"#, "every"),
    ] {
        let reply = app.post("/_polyinit/message", message).await;
        assert_eq!(reply.json()["taken by"], expected, "{message}");
    }
    app.stop();
}

#[test]
fn mistakes_are_told_where_they_are() {
    for (key, expected) in [
        (
            "schedules = [{ cron = \"every day\" }]",
            ":3:23: \"every day\" is no cron expression",
        ),
        (
            "schedules = [{ cron = \"* * * * *\", path = \"tidy\" }]",
            "\"tidy\" is no path",
        ),
        ("schedules = [{ path = \"/\" }]", "the key `cron` is missing"),
        ("messages = [{ chanel = \"x\" }]", "did you mean `channel`?"),
        ("messages = \"yes\"", "must be true or false or an array"),
    ] {
        let folder = program(&format!("[components.app]\nsource = \"app.py\"\n{key}\n"), &["app"]);
        let (code, _, errors) = polyinit(&["check", folder.path().to_str().unwrap()]);
        assert_eq!(code, 1, "{key}");
        assert!(errors.contains(expected), "{key}: {errors}");
    }
}
