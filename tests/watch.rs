//! `polyinit serve --watch`.

use std::path::Path;
use std::time::Instant;

use tokio::task::JoinHandle;

use crate::support::{Browser, PATIENCE, Served, executable, folder_with, request};

/// Answers with its version and its process; `/wait` once there is a file `go`.
fn app(version: &str) -> String {
    format!(
        "\
import asyncio, os
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    if scope['path'] == '/wait':
        open('waiting.tmp', 'w').close()
        while not os.path.exists('go.tmp'):
            await asyncio.sleep(0.01)
    await send({{'type': 'http.response.start', 'status': 200}})
    await send({{'type': 'http.response.body', 'body': b'{version} %d' % os.getpid()}})
"
    )
}

fn write(folder: &Path, name: &str, content: &str) {
    std::fs::write(folder.join(name), content).unwrap();
}

/// Asks until the reply's text begins like this; every other reply must be what `meanwhile` allows.
async fn until(app: &Served, path: &str, start: &str, meanwhile: fn(u16) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = app.get(path).await;
        if reply.text().starts_with(start) {
            return reply.text();
        }
        assert!(meanwhile(reply.status), "{}: {}", reply.status, reply.text());
        assert!(Instant::now() < deadline, "{start} does not come: {}", app.output());
    }
}

/// A request to a program that waits to be told, once the program has it; its reply's text.
async fn under_way(served: &Served, folder: &Path) -> JoinHandle<String> {
    let address = served.address.clone();
    let waiting = tokio::spawn(async move { crate::support::get(&address, "/wait").await.text() });
    let deadline = Instant::now() + PATIENCE;
    while !folder.join("waiting.tmp").exists() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    waiting
}

#[tokio::test]
async fn a_change_takes_the_old_ones_place_without_dropping_a_request() {
    let folder = folder_with("main.py", app("one"));
    let served = Served::start(folder.path(), &["--watch"]);
    assert!(served.get("/").await.text().starts_with("one "));
    let waiting = under_way(&served, folder.path()).await;
    write(folder.path(), "main.py", &app("two"));
    until(&served, "/", "two ", |status| status == 200).await;
    write(folder.path(), "go.tmp", "");
    assert!(waiting.await.unwrap().starts_with("one "));
    served.stop();
}

#[tokio::test]
async fn only_what_has_changed_is_started_anew() {
    let manifest = "\
[components.a]
source = \"a\"
[components.b]
source = \"b\"
routes = [\"/b\"]
";
    let folder = folder_with("polyinit.toml", manifest);
    for name in ["a", "b"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        write(&folder.path().join(name), "main.py", &app("one"));
    }
    let served = Served::start(folder.path(), &["--watch", "--workers", "1"]);
    let b = served.get("/b").await.text();
    write(&folder.path().join("a"), "main.py", &app("two"));
    until(&served, "/", "two ", |status| status == 200).await;
    assert_eq!(served.get("/b").await.text(), b);
    // A component that comes with a new manifest.
    std::fs::create_dir(folder.path().join("c")).unwrap();
    write(&folder.path().join("c"), "main.py", &app("new"));
    write(
        folder.path(),
        "polyinit.toml",
        &format!("{manifest}[components.c]\nsource = \"c\"\nroutes = [\"/c\"]\n"),
    );
    until(&served, "/c", "new ", |status| status == 200).await;
    served.stop();
}

#[tokio::test]
async fn what_a_file_imports_is_part_of_it() {
    let folder = folder_with("polyinit.toml", "[components.a]\nsource = \"a/main.py\"\n");
    let a = folder.path().join("a");
    std::fs::create_dir(&a).unwrap();
    write(&a, "main.py", "from other import app");
    write(&a, "other.py", &app("one"));
    let served = Served::start(folder.path(), &["--watch"]);
    until(&served, "/", "one ", |status| status == 200).await;
    write(&a, "other.py", &app("two"));
    until(&served, "/", "two ", |status| status == 200).await;
    served.stop();
}

/// What `rm -rf dist` and a build do.
#[tokio::test]
async fn a_folder_that_is_made_anew_is_served_again() {
    let folder = folder_with("polyinit.toml", "[components.a]\nsource = \"a\"\n");
    let above = tempfile::tempdir().unwrap();
    let dist = above.path().join("dist");
    let make = |version: &str| {
        std::fs::create_dir(&dist).unwrap();
        std::fs::create_dir(dist.join("a")).unwrap();
        write(&dist.join("a"), "main.py", &app(version));
        std::fs::copy(folder.path().join("polyinit.toml"), dist.join("polyinit.toml")).unwrap();
    };
    make("one");
    let served = Served::start(&dist, &["--watch"]);
    until(&served, "/", "one ", |status| status == 200).await;
    std::fs::remove_dir_all(&dist).unwrap();
    until(&served, "/", "can't read", |status| status == 200 || status == 503).await;
    make("two");
    until(&served, "/", "two ", |status| status == 503).await;
    served.stop();
}

/// An archive is called what its file is called, and it is read anew when that changes.
#[tokio::test]
async fn an_archive_is_watched() {
    use std::io::Write;
    let pack = |version: &str| {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file("main.py", zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.write_all(app(version).as_bytes()).unwrap();
        zip.finish().unwrap().into_inner()
    };
    let folder = folder_with("shop.zip", pack("one"));
    let served = Served::start(folder.path().join("shop.zip"), &["--watch"]);
    served.wait_for("shop: main.py is a Python file");
    until(&served, "/", "one ", |status| status == 200).await;
    std::fs::write(folder.path().join("new.tmp"), pack("two")).unwrap();
    std::fs::rename(folder.path().join("new.tmp"), folder.path().join("shop.zip")).unwrap();
    until(&served, "/", "two ", |status| status == 200).await;
    served.stop();
}

#[tokio::test]
async fn what_is_done_around_requests_changes_with_the_manifest() {
    let manifest = |http: &str| format!("[components.app]\nsource = \"main.py\"\n{http}");
    let folder = folder_with("polyinit.toml", manifest(""));
    write(folder.path(), "main.py", &app("one"));
    let served = Served::start(folder.path(), &["--watch"]);
    let plain = served.get("/before").await;
    assert_eq!((plain.status, plain.all("x-request-id").len()), (200, 0));
    // One more would be let in after more than an hour, which no machine is too slow for.
    let http = "[http]\nrequest_id = true\naccess_log = \"json\"\nrate_limit = { requests = 20, seconds = 86400 }\n";
    write(folder.path(), "polyinit.toml", &manifest(http));
    let deadline = Instant::now() + PATIENCE;
    while served.get("/after").await.all("x-request-id").is_empty() {
        assert!(Instant::now() < deadline, "{}", served.output());
    }
    let line: serde_json::Value = serde_json::from_str(&served.wait_for("\"path\":\"/after\"")).unwrap();
    assert!(line["request_id"].is_string());
    // What a client has left is not given anew by a swap that changes nothing of this.
    while served.get("/").await.status != 429 {}
    write(folder.path(), "main.py", &app("two"));
    while served.output().matches("→ python").count() < 3 {
        assert!(Instant::now() < deadline, "{}", served.output());
        tokio::task::yield_now().await;
    }
    assert_eq!(served.get("/").await.status, 429);
    write(
        folder.path(),
        "polyinit.toml",
        &manifest("[http]\naccess_log = \"off\"\n"),
    );
    until(&served, "/", "two ", |status| status == 429).await;
    served.get("/unseen").await;
    assert!(!served.stop().contains("/unseen"));
}

#[tokio::test]
async fn what_is_wrong_is_shown_where_it_is_looked_for() {
    let manifest = "\
[components.app]
build = \"grep -q good source.txt || { echo 'source.txt:1: <not good>'; exit 1; }; cp source.txt app/made.txt\"
watch = [\"source.txt\"]
source = \"app\"
";
    let folder = folder_with("polyinit.toml", manifest);
    std::fs::create_dir(folder.path().join("app")).unwrap();
    write(&folder.path().join("app"), "main.py", &app("one"));
    write(folder.path(), "source.txt", "bad");
    let served = Served::start(folder.path(), &["--watch"]);
    let text = served.get("/").await;
    assert_eq!(
        (text.status, text.all("content-type")),
        (503, vec![&b"text/plain; charset=utf-8"[..]])
    );
    assert!(
        text.text().contains("failed with status 1") && text.text().contains("<not good>"),
        "{}",
        text.text()
    );
    let browser = ::http::Request::get("/").header("accept", "text/html,*/*;q=0.8");
    let page = request(&served.address, browser, "").await;
    assert_eq!(
        (page.status, page.all("content-type")),
        (503, vec![&b"text/html; charset=utf-8"[..]])
    );
    assert!(page.text().contains("&lt;not good&gt;"), "{}", page.text());
    served.wait_for("source.txt:1: <not good>");
    write(folder.path(), "source.txt", "good");
    until(&served, "/", "one ", |status| status == 503).await;
    // A mistake in the program itself, and in the manifest.
    write(&folder.path().join("app"), "main.py", "def (");
    until(&served, "/", "app", |status| status == 200).await;
    served.wait_for("SyntaxError");
    write(&folder.path().join("app"), "main.py", &app("two"));
    until(&served, "/", "two ", |status| status == 503).await;
    write(folder.path(), "polyinit.toml", "[components.app]\nsuorce = \"app\"\n");
    served.wait_for("did you mean `source`?");
    write(folder.path(), "polyinit.toml", "[components.app]\nsource = \"app\"\n");
    until(&served, "/", "two ", |status| status == 503 || status == 200).await;
    served.stop();
}

/// Who looks at it in a browser sees what is wrong, and then the program, without asking again.
#[tokio::test]
async fn a_browser_goes_on_by_itself_once_all_is_well() {
    let folder = folder_with("main.py", "raise ValueError('<b>not</b> yet')");
    let served = Served::start(folder.path(), &["--watch"]);
    let mut browser = Browser::open(&format!("http://{}/", served.address)).await;
    browser
        .wait_for(&["The program is not running", "&lt;b&gt;not&lt;/b&gt; yet"])
        .await;
    write(folder.path(), "main.py", &app("one"));
    browser.wait_for(&["one "]).await;
    served.stop();
}

/// A server that takes a while to start, on the port that its manifest has for it; `/wait` is answered once there is a file
/// `go`.
fn server(version: &str) -> String {
    format!(
        "\
#!/usr/bin/env python3
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/wait':
            open('waiting.tmp', 'w').close()
            while not os.path.exists('go.tmp'):
                time.sleep(0.01)
        body = b'{version} %d' % os.getpid()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *of):
        pass
time.sleep(0.5)
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
"
    )
}

#[tokio::test]
async fn who_has_a_port_of_its_own_is_waited_for() {
    let folder = executable("server", &server("one"));
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let manifest = format!("[components.app]\nsource = \"server\"\nenvironment = {{ PORT = \"{port}\" }}\n");
    write(folder.path(), "polyinit.toml", &manifest);
    let served = Served::start(folder.path(), &["--watch"]);
    assert!(served.get("/").await.text().starts_with("one "));
    // One under way is finished by the one that has it.
    let waiting = under_way(&served, folder.path()).await;
    write(folder.path(), "server", &server("two"));
    // It can't go before the other is done with, and those who ask now wait, whom no failure is shown.
    let asked = tokio::spawn({
        let address = served.address.clone();
        async move {
            loop {
                let reply = crate::support::get(&address, "/").await;
                assert_eq!(reply.status, 200, "{}", reply.text());
                if reply.text().starts_with("two ") {
                    return;
                }
            }
        }
    });
    write(folder.path(), "go.tmp", "");
    assert!(waiting.await.unwrap().starts_with("one "));
    asked.await.unwrap();
    // One that can't be started is shown to those who have waited, and the next one to whoever asks then.
    write(folder.path(), "server", "#!/bin/sh\necho 'no <port>' >&2\nexit 3\n");
    let shown = loop {
        let browser = ::http::Request::get("/").header("accept", "text/html");
        let reply = request(&served.address, browser, "").await;
        if reply.status != 200 {
            break reply;
        }
        assert!(reply.text().starts_with("two "), "{}", reply.text());
    };
    assert_eq!(shown.status, 503);
    assert!(shown.text().contains("no &lt;port&gt;"), "{}", shown.text());
    write(folder.path(), "server", &server("three"));
    until(&served, "/", "three ", |status| status == 503).await;
    served.stop();
}

/// The way from one version to the next is not always straight.
#[tokio::test]
async fn a_mistake_on_the_way_drops_no_request_either() {
    let folder = folder_with("main.py", app("one"));
    let served = Served::start(folder.path(), &["--watch"]);
    let waiting = under_way(&served, folder.path()).await;
    write(folder.path(), "main.py", "no Python");
    crate::python::wait_until(async || served.get("/").await.status == 503).await;
    write(folder.path(), "main.py", &app("two"));
    until(&served, "/", "two ", |status| status == 503).await;
    // Longer than what is told to end at once may take.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    write(folder.path(), "go.tmp", "");
    let reply = waiting.await.unwrap();
    assert!(reply.starts_with("one "), "{reply}");
    served.stop();
}

#[test]
fn a_build_command_ends_with_the_build() {
    let folder = folder_with(
        "polyinit.toml",
        "[components.a]\nsource = \"a.py\"\nbuild = \"exec sleep 1000\"\n",
    );
    let mut build = crate::support::Running::start(&["build", folder.path().to_str().unwrap()]);
    build.wait_until(|build| !build.children().is_empty());
    build.signal(nix::sys::signal::Signal::SIGTERM);
    // It sees to it that nothing is left.
    let (status, output) = build.end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("interrupted"), "{output}");
}
