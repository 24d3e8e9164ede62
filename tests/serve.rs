//! `polyinit serve`: what it says, how it ends.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;

use crate::support::{Running, Served, built, folder_with, get_h2, program};

const HELLO: &str = "\
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': scope['http_version'].encode()})
";

#[tokio::test]
async fn says_what_it_found_and_why_and_one_line_a_request() {
    let folder = folder_with("main.py", HELLO);
    let app = Served::start(folder.path().join("main.py"), &[]);
    assert!(
        app.output()
            .contains("main.py is a Python file, `app` is an ASGI application → python"),
        "{}",
        app.output()
    );
    assert_eq!(app.get("/some/path?x=1").await.text(), "1.1");
    let line = app.wait_for("/some/path?x=1");
    assert!(
        line.starts_with("200 GET /some/path?x=1 ") && line.ends_with(" ms"),
        "{line}"
    );
    let output = app.stop();
    assert!(
        !output.contains('\x1b'),
        "colour where there is no terminal: {output:?}"
    );
}

#[tokio::test]
async fn speaks_http2_with_prior_knowledge() {
    let folder = folder_with("main.py", HELLO);
    let app = Served::start(folder.path(), &["--quiet"]);
    let response = get_h2(&app.address, "/").await;
    assert_eq!(
        (response.version, response.text().as_str()),
        (http::Version::HTTP_2, "2")
    );
    let output = app.stop();
    assert!(!output.contains("200 GET"), "{output}");
}

#[tokio::test]
async fn ends_cleanly_on_sigterm_with_a_request_under_way() {
    let app = Served::launch(program("asgi-plain"), &[]);
    let line = app.wait_for("serving on http://");
    let address = line.rsplit('/').next().unwrap().to_owned();
    let waiting = tokio::spawn({
        let address = address.clone();
        async move { crate::support::get(&address, "/wait?s=0.3").await.status }
    });
    // The request is known to be with the program once a later one is answered.
    while crate::support::get(&address, "/globals").await.json()["requests_seen"].as_u64() < Some(2) {}
    app.signal(Signal::SIGTERM);
    let (status, output) = tokio::task::spawn_blocking(move || app.end()).await.unwrap();
    assert_eq!(status.code(), Some(0), "{output}");
    assert_eq!(waiting.await.unwrap(), 200);
}

#[tokio::test]
async fn as_pid_1_of_a_container_it_reaps_orphans() {
    // A namespace of processes of its own is what makes a container's PID 1.
    let container = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let permitted = std::process::Command::new(container[0])
        .args(&container[1..])
        .arg("true")
        .status();
    if !permitted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no new namespace of processes is permitted here");
        return;
    }
    let program = program("machine-report");
    let serve = ["serve", program.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let running = crate::support::Running::start_under(&container, &serve);
    let address = running
        .wait_for("serving on http://")
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    let json = async |path: &str| crate::support::get(&address, path).await.json();
    let before = json("/init-time").await.as_f64().unwrap();
    let orphans = json("/orphans?count=10000").await;
    assert!(orphans["seconds"].is_number(), "{orphans}");
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while json("/zombies").await != serde_json::json!([]) {
        assert!(std::time::Instant::now() < deadline, "orphans stay zombies");
    }
    // 1 % of a processor, were they to come within a minute.
    let busy = json("/init-time").await.as_f64().unwrap() - before;
    eprintln!("10,000 orphans cost init {:.0} ms", busy * 1e3);
    assert!(busy < 0.6, "10,000 orphans cost init {busy} s");
}

#[tokio::test]
async fn where_nothing_else_can_be_written_to_shared_memory_is() {
    let folder = folder_with("main.py", HELLO);
    // No more can be written there than to a container's read-only root.
    let starter = ["env", "TMPDIR=/proc"];
    // A folder would be served where it is.
    let zip = folder.path().join("app.zip");
    std::fs::write(&zip, crate::host::zip_of(&folder.path().join("main.py"))).unwrap();
    let serve = ["serve", zip.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let running = crate::support::Running::start_under(&starter, &serve);
    let address = running.wait_for("serving on http://");
    let address = address.rsplit('/').next().unwrap();
    assert_eq!(crate::support::get(address, "/").await.status, 200);
}

#[tokio::test]
async fn serves_folders_zips_and_squashfs() {
    let folder = folder_with("main.py", HELLO);
    let zip = folder.path().join("app.zip");
    std::fs::write(&zip, crate::host::zip_of(&folder.path().join("main.py"))).unwrap();
    let squashfs = folder.path().join("app.squashfs");
    let mut image = backhand::FilesystemWriter::default();
    image
        .push_file(HELLO.as_bytes(), "main.py", backhand::NodeHeader::default())
        .unwrap();
    image.write(&mut std::fs::File::create(&squashfs).unwrap()).unwrap();
    for path in [folder.path(), &zip, &squashfs] {
        let app = Served::start(path, &["--entrypoint", "main:app"]);
        assert_eq!(app.get("/").await.text(), "1.1");
        app.stop();
    }
}

#[tokio::test]
async fn one_program_of_six_components_in_four_languages() {
    let path = format!("PYTHONPATH={}", crate::python::packages());
    let app = Served::start(built("polyglot"), &["--env", &path]);
    shop_works(&app.address).await;
    app.stop();
}

/// Asks everything of the shop that is served at `address`.
pub async fn shop_works(address: &str) {
    let get = async |path: &str| crate::support::get(address, path).await;
    let post = async |path: &str, body: &'static str| {
        let request = http::Request::post(path).header("content-type", "application/json");
        crate::support::request(address, request, body).await
    };
    assert_eq!(get("/api/").await.json()["shop"], "Polyglot");
    let order = post("/api/orders", r#"{"product": "lamp", "count": 2}"#).await;
    assert_eq!((order.status, order.json()["total"].clone()), (201, 7800.into()));
    // The page asks the API, another component, for what it shows.
    let page = get("/").await;
    assert!(page.text().contains("<b>Desk lamp</b> 39.00 €"), "{page:?}");
    assert!(page.headers.contains_key("x-request-id"));
    assert!(get("/product/chair").await.text().contains("Solid oak"));
    assert_eq!(get("/product/nothing").await.status, 404);
    let found = get("/search?q=WARM+brass").await.json();
    assert_eq!(
        (found[0]["id"].clone(), found.as_array().unwrap().len()),
        ("lamp".into(), 1)
    );
    let thumbnail = get("/thumbnails/lamp.png?width=32").await;
    assert_eq!(thumbnail.all("content-type"), [b"image/png"]);
    // Its width and height (PNG specification, 11.2.2).
    assert_eq!(thumbnail.body[16..24], [0, 0, 0, 32, 0, 0, 0, 32]);
    assert_eq!(get("/thumbnails/lamp.png?width=9999").await.status, 400);
    assert_eq!(
        get("/static/pictures/lamp.png").await.all("content-type"),
        [b"image/png"]
    );
    let message = r#"{"sender": "0xabc", "channel": "shop", "content": {"product": "lamp", "count": 2}}"#;
    assert_eq!(post("/_polyinit/message", message).await.json()["ordered"]["lamp"], 2);
    let put = crate::support::request(address, ::http::Request::put("/search"), "").await;
    assert_eq!(put.status, 405);
    let nowhere = get("/nowhere").await;
    assert_eq!(nowhere.status, 404);
    assert!(
        nowhere.text().contains("no component has a route for /nowhere"),
        "{}",
        nowhere.text()
    );
}

/// A terminal that is closed is a way to end it, too: nothing of the program may be left then.
#[tokio::test]
async fn ends_all_when_its_terminal_is_closed() {
    let script = "#!/bin/sh\npython3 -m http.server $PORT --bind 127.0.0.1 &\nwait\n";
    let folder = crate::support::executable("server", script);
    let path = folder.path().join("server");
    let serve = ["serve", path.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    // These tests may run under nohup(1) themselves.
    let app = Running::start_under(&["env", "--default-signal=HUP"], &serve);
    app.wait_for("serving on http://");
    app.signal(Signal::SIGHUP);
    let (status, output) = app.end();
    assert_eq!(status.code(), Some(0), "{output}");
}

/// `nohup polyinit serve` is to go on.
#[tokio::test]
async fn goes_on_where_hangups_are_ignored() {
    let folder = folder_with("main.py", HELLO);
    let serve = ["serve", folder.path().to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let app = Running::start_under(&["nohup"], &serve);
    let line = app.wait_for("serving on http://");
    app.signal(Signal::SIGHUP);
    let address = line.rsplit('/').next().unwrap();
    assert_eq!(crate::support::get(address, "/").await.status, 200);
    app.interrupt();
    app.end();
}

/// What is said of a program's end is lost then, and nothing else.
#[tokio::test]
async fn goes_on_when_nobody_reads_its_log_any_more() {
    let program = "import os\nasync def handler(event, context):\n    \
        if event['path'] == '/exit':\n        os._exit(3)\n    return 'here'\n";
    let folder = folder_with("main.py", program);
    let serve = [
        "serve",
        folder.path().to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--workers",
        "1",
    ];
    let unread = ["bash", "-c", "exec \"$@\" 2> >(exec true)", "bash"];
    let app = Running::start_under(&unread, &serve);
    let line = app.wait_for("serving on http://");
    let address = line.rsplit('/').next().unwrap();
    assert_eq!(crate::support::get(address, "/exit").await.status, 502);
    assert_eq!(crate::support::get(address, "/").await.text(), "here");
    app.interrupt();
    let (status, output) = app.end();
    assert_eq!(status.code(), Some(0), "{output}");
}

/// Asks for `path`, and takes nothing of the reply yet.
fn ask(address: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    stream
}

#[tokio::test]
async fn a_client_that_takes_nothing_keeps_no_program_from_its_own_end() {
    let endless = "\
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        while (await receive())['type'] == 'lifespan.startup':
            await send({'type': 'lifespan.startup.complete'})
        print('all is saved', flush=True)
        return await send({'type': 'lifespan.shutdown.complete'})
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    while True:
        await send({'type': 'http.response.body', 'body': bytes(65536), 'more_body': True})
";
    let folder = folder_with("main.py", endless);
    let app = Served::start(folder.path(), &["--workers", "1"]);
    let mut unread = ask(&app.address, "/");
    unread.read_exact(&mut [0; 16]).unwrap();
    let output = app.stop();
    assert!(output.contains("all is saved"), "{output}");
}

/// select(2) can't tell of a descriptor beyond 1,023: programs that use it count on not getting one.
#[tokio::test]
async fn it_may_have_many_files_open_and_programs_as_many_as_before() {
    let limits = "\
import resource
async def handler(event, context):
    return '%d %d' % resource.getrlimit(resource.RLIMIT_NOFILE)
";
    let folder = folder_with("main.py", limits);
    let serve = ["serve", folder.path().to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let limited = ["sh", "-c", "ulimit -Sn 300; ulimit -Hn 2000; exec \"$@\"", "sh"];
    let app = Running::start_under(&limited, &serve);
    let line = app.wait_for("serving on http://");
    let address = line.rsplit('/').next().unwrap();
    let own = std::fs::read_to_string(format!("/proc/{}/limits", app.id())).unwrap();
    let own = own.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(
        own.split_whitespace().skip(3).take(2).collect::<Vec<_>>(),
        ["2000", "2000"]
    );
    assert_eq!(crate::support::get(address, "/").await.text(), "300 2000");
    app.interrupt();
    let (status, output) = app.end();
    assert_eq!(status.code(), Some(0), "{output}");
}

#[test]
fn temporary_files_are_removed_with_the_one_who_needed_them() {
    let folder = folder_with("main.py", HELLO);
    let zip = folder.path().join("app.zip");
    std::fs::write(&zip, crate::host::zip_of(&folder.path().join("main.py"))).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let place = format!("TMPDIR={}", temporary.path().display());
    let starter = ["env", "--default-signal=HUP", &place];
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let ends = |words: &[&str], said: &str, signal| {
        let running = crate::support::Running::start_under(&starter, words);
        running.wait_for(said);
        running.signal(signal);
        running.end();
        let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().collect();
        assert!(left.is_empty(), "{words:?}, {signal}: {left:?}");
    };
    // Nobody cleans up after SIGKILL, so that what is not needed must not be there.
    let (site, zip) = (folder_with("index.html", "hello"), zip.as_path());
    for (program, signal) in [
        (site.path(), Signal::SIGKILL),
        (zip, Signal::SIGTERM),
        (zip, Signal::SIGHUP),
    ] {
        let program = path(program);
        ends(&["serve", &program, "--listen", "127.0.0.1:0"], "serving on", signal);
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let socket = path(&folder.path().join("v.sock"));
        ends(&["guest", "--socket", &socket], "ready after", signal);
        // Nor one that is just beginning.
        let mut running = crate::support::Running::start_under(&starter, &["guest", "--socket", &socket]);
        running.wait_until(|_| std::fs::read_dir(temporary.path()).unwrap().count() > 0);
        running.signal(signal);
        running.end();
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "{signal}");
    }
    // Nor is anything left of what was still being unpacked.
    let mut many = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for number in 0..20_000 {
        let options = zip::write::SimpleFileOptions::default();
        many.start_file(format!("{number}/main.py"), options).unwrap();
    }
    let zip = folder.path().join("many.zip");
    std::fs::write(&zip, many.finish().unwrap().into_inner()).unwrap();
    let zip = path(&zip);
    let commands = [
        (&["inspect", &zip][..], 1),
        (&["serve", &zip, "--listen", "127.0.0.1:0"], 0),
        (&["invoke", &zip], 130),
    ];
    for (words, code) in commands.iter().cycle().take(21) {
        let left = || std::fs::read_dir(temporary.path()).unwrap().count();
        let mut running = crate::support::Running::start_under(&starter, words);
        running.wait_until(|_| left() > 0);
        running.signal(Signal::SIGTERM);
        let (status, output) = running.end();
        assert_eq!(status.code(), Some(*code), "{output}");
        assert_eq!(left(), 0, "{output}");
    }
}
