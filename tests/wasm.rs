//! WebAssembly guests, built from their sources in wasm-examples.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

use polyinit::wire::{EventAnswer, Scope};

use crate::host::{Guest, configuration_for};
use crate::manifest::polyinit;
use crate::support::{Served, ask_h2, built, folder_with, request};

const CGI: [(&str, &str); 3] = [("go-cgi.wasm", "Go"), ("rust-cgi.wasm", "Rust"), ("c-cgi.wasm", "C")];

#[tokio::test]
async fn components_in_go_python_and_javascript() {
    for (guest, language, failing) in [
        ("go-http.wasm", "Go", "/panic"),
        ("python-http.wasm", "Python", "/raise"),
        ("js-http.wasm", "JavaScript", "/throw"),
    ] {
        let app = Served::start(built(guest), &[]);
        assert_eq!(app.get("/").await.text(), format!("Hello from {language}\n"));
        let body: Vec<u8> = (0..300_000_u32).map(|at| (at % 249) as u8).collect();
        assert!(app.post("/echo", body.clone()).await.body == body, "{guest}");
        assert_eq!(app.get("/nowhere").await.status, 404, "{guest}");
        let headers = app.get("/headers?a=%20b").await.json();
        assert!(headers["query"].as_str().unwrap().ends_with("a=%20b"), "{headers}");
        assert_eq!(app.get(failing).await.status, 500, "{guest}");
        // The log may come after the reply.
        app.wait_for(&format!("asked to {}", &failing[1..]));
        app.stop();
    }
}

#[tokio::test]
async fn assemblyscript_by_the_cgi_convention() {
    let app = Served::start(built("as-cgi.wasm"), &[]);
    assert_eq!(app.get("/").await.text(), "Hello from AssemblyScript by way of CGI\n");
    let body: Vec<u8> = (0..300_000_u32).map(|at| (at % 249) as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    assert_eq!(app.get("/nowhere").await.status, 404);
    let failed = app.get("/fail").await;
    assert!(
        failed
            .text()
            .contains("exited with status 3; its last line on stderr: as-cgi: asked to fail"),
        "{}",
        failed.text()
    );
    app.stop();
}

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
async fn replies_that_have_no_body_tell_the_length_of_another() {
    let app = Served::start(built("rust-http.wasm"), &[]);
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let ask = async |method: http::Method, path| match version {
            http::Version::HTTP_2 => ask_h2(&app.address, method, path, &[]).await,
            _ => {
                let asked = http::Request::builder().method(method).uri(path);
                request(&app.address, asked, "").await
            }
        };
        let head = ask(http::Method::HEAD, "/length").await;
        assert_eq!((head.status, head.text().as_str()), (200, ""), "{version:?}");
        assert_eq!(head.all("content-length"), [b"6"], "{version:?}");
        let unchanged = ask(http::Method::GET, "/unchanged").await;
        assert_eq!((unchanged.status, unchanged.text().as_str()), (304, ""), "{version:?}");
        // What is written all the same is nobody's.
        let head = ask(http::Method::HEAD, "/").await;
        assert_eq!((head.status, head.text().as_str()), (200, ""), "{version:?}");
        let none = ask(http::Method::GET, "/status/204").await;
        assert_eq!((none.status, none.text().as_str()), (204, ""), "{version:?}");
        assert_eq!(ask(http::Method::GET, "/length").await.text(), "hello\n");
    }
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

#[tokio::test]
async fn a_rust_component_for_wasi_http_0_3() {
    let app = Served::start(built("rust-service.wasm"), &["--timeout", "2"]);
    assert!(app.output().contains("wasi:http/service 0.3"), "{}", app.output());
    let hello = app.get("/").await;
    assert_eq!(hello.text(), "Hello from a WASI 0.3 component\n");
    // It was written after the head, without waiting for anybody: it goes out in one piece.
    assert_eq!(hello.all("content-length"), [b"32"], "{:?}", hello.headers);
    let body: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 249) as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    // The guest is done before the body is.
    assert!(app.post("/pass", body.clone()).await.body == body);
    assert_eq!(app.get("/stream").await.text().lines().count(), 10);
    assert_eq!(app.get("/nowhere").await.status, 404);
    let error = app.get("/error").await;
    assert_eq!(error.status, 500);
    assert!(
        error.text().contains("loop-detected") || error.text().contains("LoopDetected"),
        "{}",
        error.text()
    );
    let trapped = app.get("/panic").await;
    assert_eq!(trapped.status, 500);
    assert!(trapped.json()["traceback"].as_str().is_some(), "{}", trapped.text());
    let (spun, meanwhile) = tokio::join!(app.get("/spin"), app.get("/"));
    assert_eq!((spun.status, meanwhile.status), (504, 200));
    app.stop();
}

#[tokio::test]
async fn a_command_of_wasi_0_3() {
    let app = Served::start(built("rust-command.wasm"), &[]);
    assert!(app.output().contains("wasi:cli/command 0.3"), "{}", app.output());
    assert_eq!(app.get("/").await.text(), "Hello from a WASI 0.3 command\n");
    let body: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 249) as u8).collect();
    assert!(app.post("/echo", body.clone()).await.body == body);
    let failed = app.get("/fail").await;
    assert_eq!(failed.status, 500);
    assert!(failed.text().contains("exited with status 1"), "{}", failed.text());
    app.stop();

    let guest = Guest::start(&[]).await;
    let program = configuration_for(&built("rust-command.wasm"), "executable", "rust-command.wasm");
    guest.configure(&program).await;
    let answer = guest.event(&message(r#"{"type": "POST"}"#)).await;
    assert_eq!(value(&answer)["type"], "POST");
    guest.stop().await;
}

#[tokio::test]
async fn an_instance_has_as_many_events_as_it_may() {
    for (guest, flags, most) in [
        ("rust-service.wasm", &[][..], 12),
        ("rust-service.wasm", &["--reuse", "2"], 2),
        ("rust-http.wasm", &[], 1),
        ("rust-http.wasm", &["--reuse", "3"], 3),
    ] {
        let app = Served::start(built(guest), flags);
        let mut highest = 0;
        for _ in 0..12 {
            let count: u32 = app.get("/count").await.text().trim().parse().unwrap();
            highest = highest.max(count);
        }
        // Which instance an event gets is chance where one is made beside it; but none has more than it may.
        assert!(
            highest <= most && (most == 1 || highest > 1),
            "{guest} {flags:?}: {highest}"
        );
        app.stop();
    }
}

#[tokio::test]
async fn an_instance_that_failed_has_no_more_events() {
    for guest in ["rust-http.wasm", "rust-service.wasm"] {
        let app = Served::start(built(guest), &["--reuse", "100"]);
        for _ in 0..5 {
            assert_eq!(app.get("/panic").await.status, 500);
            // One that was there before the last failed, or a fresh one: in neither case one that has had it.
            assert_eq!(app.get("/count").await.status, 200);
        }
        app.stop();
    }
}

#[test]
fn compiled_code_is_run_and_what_is_left_of_it_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::copy(built("c-cgi.wasm"), path("hello.wasm")).unwrap();
    let (code, _, errors) = polyinit(&["compile", &path("hello.wasm"), "-o", &path("hello.cwasm")]);
    assert_eq!(code, 0, "{errors}");
    let (code, _, errors) = polyinit(&["compile", &path("hello.wasm"), "-o", &path("hello.wasm")]);
    assert_eq!(code, 1);
    assert!(errors.contains("written over with its own code"), "{errors}");
    // What is no file takes it, and stays what it is.
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::unistd::mkfifo(path("pipe").as_str(), mode).unwrap();
    let pipe = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path("pipe"))
        .unwrap();
    let reader = std::thread::spawn(move || {
        let mut first = [0; 4];
        std::io::Read::read_exact(&mut &pipe, &mut first).unwrap();
        // The rest is nobody's.
        first
    });
    polyinit(&["compile", &path("hello.wasm"), "-o", &path("pipe")]);
    assert!(std::fs::metadata(path("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(&reader.join().unwrap(), b"\x7fELF");
    // Whoever may read what this user writes may read this, too.
    std::fs::write(path("other"), "").unwrap();
    let mode = |name: &str| std::fs::metadata(path(name)).unwrap().permissions().mode();
    assert_eq!(mode("hello.cwasm"), mode("other"));
    let whole = std::fs::read(path("hello.cwasm")).unwrap();
    std::fs::write(path("hello.cwasm"), &whole[..whole.len() / 2]).unwrap();

    // The source is there, too.
    let (code, said, errors) = polyinit(&["invoke", &path("hello.cwasm")]);
    assert_eq!((code, said.as_str()), (0, "Hello from C by way of CGI\n"), "{errors}");
    assert!(errors.contains("hello.wasm, which is there, too"), "{errors}");
    std::fs::remove_file(path("hello.wasm")).unwrap();
    let (code, _, errors) = polyinit(&["invoke", &path("hello.cwasm")]);
    assert_eq!(code, 1);
    assert!(
        errors.contains("not what `polyinit compile` writes, or not all of it: compile it again"),
        "{errors}"
    );
    std::fs::write(path("hello.cwasm"), &whole).unwrap();
    let (code, said, errors) = polyinit(&["invoke", &path("hello.cwasm"), "--quiet"]);
    assert_eq!((code, said.as_str()), (0, "Hello from C by way of CGI\n"), "{errors}");
}

#[test]
fn who_waits_for_a_compilation_is_told() {
    // One function, which can't be compiled in parts.
    let work = "(local.set 0 (i64.xor (i64.mul (local.get 1) (i64.const 3)) (local.get 2)))
        (local.set 1 (i64.xor (i64.mul (local.get 2) (i64.const 5)) (local.get 0)))
        (local.set 2 (i64.xor (i64.mul (local.get 0) (i64.const 7)) (local.get 1)))"
        .repeat(100_000);
    let text = format!(
        r#"(module (memory 1) (func (export "_start") (local i64 i64 i64) (local.set 1 (i64.load (i32.const 0))) {work}
            (i64.store (i32.const 0) (local.get 0))))"#
    );
    let folder = folder_with("long.wasm", wat::parse_str(text).unwrap());
    let path = folder.path().join("long.wasm");
    let (code, said, errors) = polyinit(&["compile", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    assert!(said.contains(".cwasm, "), "{said}");
    assert!(errors.contains("long.wasm ("), "{errors}");
    assert!(errors.contains(" KiB), which takes a moment\n"), "{errors}");
}

#[test]
fn what_was_compiled_ahead_is_not_compiled_where_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let hello = folder.path().join("hello.wasm");
    std::fs::copy(built("c-cgi.wasm"), &hello).unwrap();
    let invoke = |kept: &str| {
        let cache = folder.path().join(kept);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_polyinit"))
            .args(["invoke", "--quiet", hello.to_str().unwrap()])
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"Hello from C by way of CGI\n", "{output:?}");
        std::fs::read_dir(cache.join("polyinit")).map_or(0, Iterator::count)
    };
    assert_eq!(invoke("before"), 1);
    let (code, _, errors) = polyinit(&["compile", hello.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(invoke("after"), 0);
}

#[test]
fn code_that_is_not_whole_is_compiled_again_as_what_its_source_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::copy(built("rust-service.wasm"), path("hello.wasm")).unwrap();
    for left in [&b"\x7fELF"[..], b""] {
        std::fs::write(path("hello.cwasm"), left).unwrap();
        let (code, said, errors) = polyinit(&["invoke", &path("hello.cwasm")]);
        assert_eq!(
            (code, said.as_str()),
            (0, "Hello from a WASI 0.3 component\n"),
            "{errors}"
        );
        assert!(errors.contains("hello.wasm, which is there, too"), "{errors}");
    }
}

/// Names of the threads of a process (proc_pid_comm(5)).
fn threads(app: &Served) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", app.id())).unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .collect()
}

#[tokio::test]
async fn a_program_without_webassembly_makes_no_engine() {
    let files = folder_with("index.html", "hello");
    for (program, expected) in [(files.path().to_owned(), false), (built("c-cgi.wasm"), true)] {
        let app = Served::start(program, &[]);
        assert_eq!(app.get("/").await.status, 200);
        // An engine's ticker is there as long as the engine is.
        let threads = threads(&app);
        assert_eq!(
            threads.iter().any(|name| name.starts_with("wasm-")),
            expected,
            "{threads:?}"
        );
        app.stop();
    }
}

fn message(body: &str) -> Scope {
    Scope::Message(body.into())
}

fn value(answer: &EventAnswer) -> serde_json::Value {
    match answer {
        EventAnswer::Value(value) => serde_json::from_slice(value).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_come_to_a_component_that_takes_requests_too() {
    let guest = Guest::start(&[]).await;
    let program = configuration_for(&built("rust-message.wasm"), "executable", "rust-message.wasm");
    guest.configure(&program).await;
    let answer = guest.event(&message(r#"{"type": "POST"}"#)).await;
    assert_eq!(value(&answer)["bytes"], 16);
    assert!(format!("{:?}", guest.get("/").await).contains("Send me messages"));
    let failed = format!("{:?}", guest.event(&message(r#"{"type": "fail"}"#)).await);
    assert!(
        failed.contains("could not handle the message: this message asked for a failure"),
        "{failed}"
    );
    let trapped = format!("{:?}", guest.event(&message(r#"{"type": "panic"}"#)).await);
    assert!(trapped.contains("the guest trapped"), "{trapped}");
    guest.stop().await;
}

#[tokio::test]
async fn messages_come_to_plain_modules_on_stdin() {
    for (file, language) in [
        ("rust-cgi.wasm", "rust"),
        ("go-cgi.wasm", "go"),
        ("as-cgi.wasm", "assemblyscript"),
    ] {
        let guest = Guest::start(&[]).await;
        guest
            .configure(&configuration_for(&built(file), "executable", file))
            .await;
        let answer = value(&guest.event(&message(r#"{"type": "POST"}"#)).await);
        assert_eq!(
            (answer["language"].as_str(), answer["bytes"].as_u64()),
            (Some(language), Some(16))
        );
        guest.stop().await;
    }
}

#[test]
fn names_that_a_guest_gives_itself_do_nothing_to_a_terminal() {
    let guest = r#"(module (import "\1b[31mred\0aerror: none" "\07" (func)) (func (export "_start")))"#;
    let folder = crate::support::folder_with("guest.wasm", wat::parse_str(guest).unwrap());
    let guest = folder.path().join("guest.wasm");
    for command in ["inspect", "invoke"] {
        let (_, said) = crate::support::Running::start(&[command, guest.to_str().unwrap()]).end();
        assert!(said.contains("\\u{1b}[31mred\\nerror: none"), "{said}");
        assert!(!said.contains(['\x1b', '\x07']), "{said}");
    }
}
