//! `polyinit invoke` and `polyinit inspect`: one event, and what a program is made of.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::manifest::polyinit;
use crate::support::{PATIENCE, built, folder_with, program};

const ECHO: &str = "\
import json
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        raise NotImplementedError
    event = await receive()
    if scope['type'] != 'http':
        await send({'words': len(json.loads(event['body'])['content'].split())})
        return
    status = int(scope['path'].strip('/') or 200)
    if status == 599:
        raise ValueError('no such luck')
    headers = [[name.decode(), value.decode()] for name, value in scope['headers']]
    seen = [scope['method'], scope['query_string'].decode(), headers, event['body'].decode()]
    await send({'type': 'http.response.start', 'status': status, 'headers': [(b'x-a', b'1'), (b'x-a', b'2')]})
    await send({'type': 'http.response.body', 'body': json.dumps(seen).encode()})
";

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn one_request_its_reply_and_its_timings() {
    let folder = folder_with("main.py", ECHO);
    let path = folder.path().to_str().unwrap();
    let (code, said, errors) = polyinit(&["invoke", path, "--path", "/201?q=1", "-H", "x-b: c", "--body", "hello"]);
    assert_eq!(code, 0, "{errors}");
    let seen = json(&said);
    assert_eq!(
        (&seen[0], &seen[1], &seen[3]),
        (&"POST".into(), &"q=1".into(), &"hello".into())
    );
    assert!(seen[2].to_string().contains(r#"["x-b","c"]"#), "{said}");
    assert!(
        errors.contains("201 Created\n") && errors.contains("x-a: 1\nx-a: 2\n"),
        "{errors}"
    );
    assert!(
        errors.contains("started in ") && errors.contains("replied after "),
        "{errors}"
    );
    let (code, said, errors) = polyinit(&["invoke", path, "--quiet"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert_eq!(json(&said)[0], "GET");
}

/// The parts of a cold start, each measured: together they are the start, or nearly.
#[test]
fn what_a_start_took_is_told_part_by_part() {
    let python = "\
import time
time.sleep(0.2)
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        await receive()
        time.sleep(0.1)
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        await send({'type': 'lifespan.shutdown.complete'})
        return
    await send({'type': 'http.response.start', 'status': 200})
    await send({'type': 'http.response.body', 'body': b''})
";
    let node =
        "const until = Date.now() + 200; while (Date.now() < until); export default { fetch: () => new Response('') };";
    let interpreted = ["spawn", "interpreter", "imports", "app import"];
    for (name, code, parts) in [
        ("main.py", python, [&interpreted[..], &["lifespan"]].concat()),
        ("index.mjs", node, [&interpreted[..], &["listen"]].concat()),
    ] {
        let folder = folder_with(name, code);
        let path = folder.path().to_str().unwrap();
        let (exit, said, errors) = polyinit(&["invoke", path, "--json"]);
        assert_eq!(exit, 0, "{errors}");
        let timings = json(&said)["timings"].clone();
        let starts = timings["starts"].as_object().unwrap();
        let start = starts.values().next().unwrap();
        assert_eq!(start["ahead"], false);
        let told: Vec<(&str, f64)> = start["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| (part[0].as_str().unwrap(), part[1].as_f64().unwrap()))
            .collect();
        assert_eq!(told.iter().map(|(what, _)| *what).collect::<Vec<_>>(), parts);
        let took = |what: &str| told.iter().find(|(part, _)| *part == what).unwrap().1;
        assert!(
            took("spawn") > 0.0 && took("interpreter") > 1.0 && took("imports") > 0.1,
            "{told:?}"
        );
        assert!(took("app import") >= 199.0, "{told:?}");
        if name == "main.py" {
            assert!(took("lifespan") >= 99.0, "{told:?}");
        }
        let sum: f64 = told.iter().map(|(_, took)| took).sum();
        let whole = timings["start_ms"].as_f64().unwrap();
        assert!(sum <= whole && sum > whole * 0.5, "{sum} of {whole}: {told:?}");
        let (_, _, errors) = polyinit(&["invoke", path]);
        assert!(
            errors.contains(": spawn ") && errors.contains(", app import "),
            "{errors}"
        );
    }
    for (path, parts) in [
        (built("rust-http.wasm"), ["load", "link"]),
        (built("exec-go"), ["spawn", "listen"]),
    ] {
        let (_, said, _) = polyinit(&["invoke", path.to_str().unwrap(), "--json"]);
        let starts = json(&said)["timings"]["starts"].clone();
        let start = starts.as_object().unwrap().values().next().unwrap();
        let told: Vec<&str> = start["parts"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|part| part[0].as_str())
            .collect();
        assert_eq!(told, parts);
    }
}

#[test]
fn json_has_all_of_it_and_the_exit_code_its_class() {
    let folder = folder_with("main.py", ECHO);
    let path = folder.path().to_str().unwrap();
    for (status, expected) in [(200, 0), (302, 0), (404, 4), (503, 5)] {
        let (code, said, errors) = polyinit(&["invoke", path, "--json", "--path", &format!("/{status}")]);
        assert_eq!(code, expected, "{errors}");
        let reply = json(&said);
        assert_eq!(reply["status"], status);
        assert_eq!(reply["headers"][0], json(r#"["x-a", "1"]"#));
        assert!(reply["body"].as_str().unwrap().starts_with("[\"GET\""), "{said}");
        for timing in ["start_ms", "head_ms", "whole_ms"] {
            assert!(reply["timings"][timing].as_f64().unwrap() > 0.0, "{said}");
        }
    }
    let (code, said, _) = polyinit(&["invoke", path, "--json", "--path", "/599"]);
    assert_eq!(code, 5);
    let failure = &json(&said)["failure"];
    assert_eq!(failure["status"], 500);
    assert!(
        failure["traceback"].as_str().unwrap().contains("no such luck"),
        "{said}"
    );
    let (code, said, errors) = polyinit(&["invoke", path, "--path", "/599"]);
    assert_eq!((code, said.as_str()), (5, ""));
    assert!(errors.contains("no such luck"), "{errors}");
}

#[test]
fn a_message() {
    let folder = folder_with("main.py", ECHO);
    let message = folder.path().join("message.json");
    std::fs::write(&message, r#"{"content": "two words"}"#).unwrap();
    let (path, message) = (folder.path().to_str().unwrap(), message.to_str().unwrap());
    let (code, said, errors) = polyinit(&["invoke", path, "--message", message]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(json(&said)["words"], 2);
    let (_, said, _) = polyinit(&["invoke", path, "--message", message, "--json"]);
    assert_eq!(json(&said)["value"]["words"], 2);
    let (code, _, errors) = polyinit(&["invoke", path, "--message", "/nowhere.json"]);
    assert_eq!(code, 1);
    assert!(errors.contains("/nowhere.json"), "{errors}");
}

#[test]
fn what_can_not_be_invoked() {
    let syntax = program("asgi-syntax-error");
    let (code, _, errors) = polyinit(&["invoke", syntax.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(errors.contains("SyntaxError"), "{errors}");
    for wrong in [
        &["--path", "no-slash"][..],
        &["--header", "novalue"],
        &["--header", "a b: c"],
        &["--method", "G T"],
        &["--message", "x", "--body", "y"],
    ] {
        let (code, _, errors) = polyinit(&[&["invoke", "x"], wrong].concat());
        assert_eq!(code, 2, "{wrong:?}: {errors}");
    }
}

#[test]
fn inspect_tells_what_runs_each_part_and_what_it_may_use() {
    let (code, said, errors) = polyinit(&["inspect", built("polyglot").to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    for expected in [
        "api: the entrypoint \"main:app\" is a Python module → python",
        "takes        /api/*",
        "environment  SHOP_NAME",
        "may use      all that a process of this user may",
        "thumbnails: thumbnails.wasm is WebAssembly → wasm",
        "is a         WebAssembly component",
        "runs as      a component for wasi:http/proxy 0.2",
        "wasi:http/types@0.2",
        "exports      wasi:http/incoming-handler@0.2",
        "is a         WebAssembly module",
        "wasi_snapshot_preview1::fd_write",
        "nothing else unless granted",
    ] {
        assert!(said.contains(expected), "{expected:?} is not said:\n{said}");
    }
    let (code, said, _) = polyinit(&["inspect", built("rust-http.wasm").to_str().unwrap(), "--json"]);
    assert_eq!(code, 0);
    let component = &json(&said)["components"][0];
    assert_eq!(component["engine"], "wasm");
    assert_eq!(component["wasm"]["form"], "component");
    assert_eq!(component["wasm"]["runs_as"], "a component for wasi:http/proxy 0.2");
    let (code, said, _) = polyinit(&["inspect", built("bad/bad-no-entry.wasm").to_str().unwrap()]);
    assert_eq!(code, 0);
    assert!(
        said.contains("can't run    bad-no-entry.wasm is a module that"),
        "{said}"
    );
    let (code, _, errors) = polyinit(&["inspect", built("bad/bad-text.wasm").to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(errors.contains("no WebAssembly"), "{errors}");
}

#[test]
fn a_reply_that_breaks_off_is_told_from_a_reader_that_has_enough() {
    let program = "\
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        raise NotImplementedError
    await send({'type': 'http.response.start', 'status': 200})
    for _ in range(100):
        await send({'type': 'http.response.body', 'body': b'x' * 10_000, 'more_body': True})
    if scope['path'] == '/broken':
        raise ValueError('no such luck')
    await send({'type': 'http.response.body'})
";
    let folder = folder_with("main.py", program);
    let path = folder.path().to_str().unwrap();
    for form in ["--quiet", "--json"] {
        let (code, _, _) = polyinit(&["invoke", path, "--path", "/broken", form]);
        assert_eq!(code, 1, "{form}");
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_polyinit"))
        .args(["invoke", path, "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), Vec::new()));
}

#[test]
fn one_that_waits_for_its_standard_input_can_be_ended() {
    let folder = folder_with("main.py", ECHO);
    let mut child = Command::new(env!("CARGO_BIN_EXE_polyinit"))
        .args(["invoke", folder.path().to_str().unwrap(), "--message", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // read(2), the first of system calls, of descriptor 0 (proc_pid_syscall(5)).
    let syscall = format!("/proc/{}/syscall", child.id());
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&syscall).is_ok_and(|call| call.starts_with("0 0x0 ")) {
        assert!(Instant::now() < deadline, "it never reads");
        std::thread::yield_now();
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let ended = child.wait().unwrap();
    assert_eq!(ended.signal(), Some(Signal::SIGTERM as i32), "{ended:?}");
}
