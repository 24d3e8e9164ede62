//! Executables that serve HTTP: what they say comes through as they say it.

use std::io::Read;

use crate::support::{Served, built, executable, program, request};

const SERVERS: [&str; 2] = ["exec-go", "exec-rust"];

#[tokio::test]
async fn replies_pass_through_as_they_are() {
    for name in SERVERS {
        let app = Served::start(built(name), &[]);
        assert_eq!(app.get("/").await.status, 200);
        let redirect = app.get("/redirect").await;
        assert_eq!(
            (redirect.status, redirect.all("location").len()),
            (302, 1),
            "{redirect:?}"
        );
        assert_eq!(
            app.get("/cookies").await.all("set-cookie"),
            [&b"a=1; Path=/"[..], b"b=2; Path=/"]
        );
        let gzip = app.get("/gzip").await;
        assert_eq!(gzip.all("content-encoding"), [b"gzip"]);
        let mut text = String::new();
        flate2::read::GzDecoder::new(&gzip.body[..])
            .read_to_string(&mut text)
            .unwrap();
        assert!(!text.is_empty());
        let latin1 = app.get("/latin1").await;
        assert_eq!(latin1.status, 200);
        assert!(
            latin1
                .headers
                .values()
                .any(|value| value.as_bytes().iter().any(|byte| *byte >= 0x80)),
            "{latin1:?}"
        );
        app.stop();
    }
}

#[tokio::test]
async fn requests_arrive_as_they_were_sent() {
    for name in SERVERS {
        let app = Served::start(built(name), &[]);
        for target in ["/raw/%2e%2e/x?a=%20b&c", "/raw//x/./y?%7B"] {
            assert_eq!(app.get(target).await.text().trim_end(), target, "{name}");
        }
        let asked = http::Request::get("/headers").header("x-one", "1");
        let headers = request(&app.address, asked, "").await.text().to_lowercase();
        assert!(headers.contains("x-one"), "{headers}");
        for invented in ["accept-encoding", "user-agent", "accept\"", "transfer-encoding"] {
            assert!(!headers.contains(invented), "{name} was sent {invented}: {headers}");
        }
        app.stop();
    }
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    for name in SERVERS {
        let app = Served::start(built(name), &[]);
        let body: Vec<u8> = (0..10_000_000_u32).map(|at| (at % 253) as u8).collect();
        assert!(app.post("/echo", body.clone()).await.body == body, "{name}");
        app.stop();
    }
}

#[tokio::test]
async fn one_that_dies_later_is_started_again() {
    for name in SERVERS {
        let app = Served::start(built(name), &[]);
        let died = app.get("/die").await;
        assert_eq!(died.status, 502, "{died:?}");
        assert!(died.text().contains("status 3"), "{}", died.text());
        assert_eq!(app.get("/").await.status, 200);
        app.stop();
    }
}

#[tokio::test]
async fn one_that_listens_elsewhere_is_told_of_it_before_its_time_is_up() {
    let script = "#!/usr/bin/env python3\nimport socket, time\nserver = socket.create_server(('127.0.0.1', 0))\ntime.sleep(100)\n";
    let folder = executable("run", script);
    let app = Served::launch(folder.path(), &["--start-timeout", "40"]);
    app.wait_for("so far, and is waited for on port ");
    app.interrupt();
    app.end();
}

#[tokio::test]
async fn a_shell_script_that_starts_a_server() {
    let app = Served::start(program("exec-shell"), &[]);
    assert!(
        app.output().contains("run.sh begins with #! , ") || app.output().contains("run.sh begins with #!,"),
        "{}",
        app.output()
    );
    assert_eq!(app.get("/").await.status, 200);
    assert_eq!(app.get("/nowhere").await.status, 404);
    app.stop();
}
