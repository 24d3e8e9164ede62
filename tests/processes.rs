//! What the manifest says of a component's processes, and what becomes of those that end: both for workers and for
//! programs that serve HTTP themselves.

use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;

use futures_util::future::join_all;

use crate::support::{Response, Served, executable, request};

/// A worker's program.
const WORKER: &str = r#"
import { existsSync, readFileSync, writeFileSync } from "node:fs";

export async function handler({ method, path, query }) {
  switch (path) {
    case "/pid":
      await new Promise((done) => setTimeout(done, Number(query.ms ?? 0)));
      return String(process.pid);
    case "/die":
      if (query.once && existsSync(query.once)) return String(process.pid);
      if (query.once) writeFileSync(query.once, "");
      process.kill(process.pid, "SIGKILL");
      return new Promise(() => {});
    case "/never":
      return new Promise(() => {});
    case "/status":
      return readFileSync("/proc/self/status", "utf8") + readFileSync("/proc/self/limits", "utf8") + "HOME=" + process.env.HOME;
    case "/hog":
      globalThis.hog = [];
      for (;;) globalThis.hog.push(Buffer.alloc(8 << 20, 1));
  }
  return { status: 404, body: method };
}
"#;

/// The same as a server.
const SERVER: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys, time, urllib.parse

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if url.path == "/pid":
            time.sleep(int(query.get("ms", 0)) / 1000)
            body = str(os.getpid())
        elif url.path == "/die":
            if "once" not in query or not os.path.exists(query["once"]):
                if "once" in query:
                    open(query["once"], "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            body = str(os.getpid())
        elif url.path == "/never":
            time.sleep(1000)
        elif url.path == "/status":
            body = open("/proc/self/status").read() + open("/proc/self/limits").read() + "HOME=" + os.environ["HOME"]
        elif url.path == "/hog":
            hog = []
            while True:
                hog.append(b"1" * (8 << 20))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_PUT = do_GET

    def log_message(self, *arguments):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

struct Kind {
    file: &'static str,
    content: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        file: "main.mjs",
        content: WORKER,
    },
    Kind {
        file: "server",
        content: SERVER,
    },
];

struct App {
    served: Served,
    folder: tempfile::TempDir,
}

impl Kind {
    fn folder(&self, keys: &str) -> tempfile::TempDir {
        let folder = executable(self.file, self.content);
        let manifest = format!("[components.app]\nsource = {:?}\n{keys}\n", self.file);
        std::fs::write(folder.path().join("polyinit.toml"), manifest).unwrap();
        folder
    }

    fn start(&self, keys: &str) -> App {
        let folder = self.folder(keys);
        App {
            served: Served::start(folder.path(), &[]),
            folder,
        }
    }

    /// What is said of a program that does not start.
    fn refused(&self, keys: &str) -> String {
        let folder = self.folder(keys);
        let (status, output) = Served::launch(folder.path(), &[]).end();
        assert_eq!(status.code(), Some(1), "{output}");
        output
    }
}

impl App {
    async fn get(&self, path: &str) -> Response {
        self.served.get(path).await
    }

    async fn post(&self, path: &str) -> Response {
        self.served.post(path, "").await
    }

    async fn pids(&self, count: usize, path: &str) -> HashSet<String> {
        let replies = join_all((0..count).map(|_| self.get(path))).await;
        replies
            .into_iter()
            .map(|reply| {
                assert_eq!(reply.status, 200, "{reply:?}");
                reply.text()
            })
            .collect()
    }

    fn stop(self) {
        self.served.stop();
    }
}

#[tokio::test]
async fn there_are_as_many_as_said() {
    for kind in KINDS {
        let app = kind.start("workers = 1");
        assert_eq!(app.pids(8, "/pid?ms=20").await.len(), 1, "{}", kind.file);
        app.stop();
        let app = kind.start("workers = 3");
        let mut seen = HashSet::new();
        // The others are started meanwhile.
        while seen.len() < 3 {
            seen.extend(app.pids(12, "/pid?ms=20").await);
        }
        assert_eq!(seen.len(), 3, "{}", kind.file);
        app.stop();
    }
}

#[tokio::test]
async fn they_are_replaced_after_their_share() {
    for kind in KINDS {
        let app = kind.start("workers = 1\nmax_requests = 5");
        let mut seen = HashSet::new();
        let mut requests = 0;
        while seen.len() < 4 {
            seen.extend(app.pids(2, "/pid").await);
            requests += 2;
        }
        assert!(requests >= 12, "{}: {requests} for {}", kind.file, seen.len());
        // None was lost, and none of those that were replaced is left.
        app.stop();
    }
}

#[tokio::test]
async fn a_reply_on_its_way_is_finished_by_a_worker_that_is_replaced() {
    let slow = Kind {
        file: "main.mjs",
        content: r#"
export function handler() {
  let count = 0;
  return new Response(new ReadableStream({
    async pull(controller) {
      await new Promise((done) => setTimeout(done, 500));
      controller.enqueue(new TextEncoder().encode(`${count} `));
      if (++count === 13) controller.close();
    },
  }));
}
"#,
    };
    let app = slow.start("workers = 1\nmax_requests = 1");
    assert_eq!(app.get("/").await.text(), "0 1 2 3 4 5 6 7 8 9 10 11 12 ");
    app.stop();
}

#[tokio::test]
async fn one_that_is_being_replaced_shuts_down_in_time_when_all_is_to_end() {
    let streaming = Kind {
        file: "main.py",
        content: r#"
import asyncio

events = []

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("shut down after", events)
        return await send({"type": "lifespan.shutdown.complete"})
    events.append(scope["path"])
    tasks = len(asyncio.all_tasks())
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    # One more is the worker's own, that waits for the last event.
    while len(asyncio.all_tasks()) == tasks:
        await asyncio.sleep(0.01)
    print("told to end")
    await asyncio.sleep(1000)
"#,
    };
    let app = streaming.start("workers = 1\nmax_requests = 1");
    let mut client = std::net::TcpStream::connect(&app.served.address).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    app.served.wait_for("#1 | told to end");
    let output = app.served.stop();
    assert!(output.contains("shut down after ['/']"), "{output}");
    assert!(!output.contains("does not end"), "{output}");
}

#[tokio::test]
async fn a_start_and_a_reply_may_take_so_long() {
    let silent = Kind {
        file: "server",
        content: "#!/bin/sh\nexec sleep 1000\n",
    };
    let said = silent.refused("start_timeout = 0.3");
    assert!(
        said.contains("did not listen on") && said.contains("within 300ms"),
        "{said}"
    );
    for kind in KINDS {
        let app = kind.start("request_timeout = 0.3");
        let late = app.get("/never").await;
        assert_eq!(late.status, 504, "{late:?}");
        assert!(
            late.text().contains("within 0.3 s") || late.text().contains("within 300ms"),
            "{}",
            late.text()
        );
        assert_eq!(app.get("/pid").await.status, 200);
        app.stop();
    }
}

#[tokio::test]
async fn one_that_is_killed_fails_its_own_events_alone() {
    for kind in KINDS {
        let app = kind.start("workers = 2");
        let mut pids = HashSet::new();
        while pids.len() < 2 {
            pids.extend(app.pids(12, "/pid?ms=20").await);
        }
        let (killed, others) = tokio::join!(app.post("/die"), join_all((0..6).map(|_| app.get("/pid?ms=50"))));
        assert_eq!(killed.status, 502, "{killed:?}");
        assert!(killed.text().contains("was killed by SIGKILL"), "{}", killed.text());
        // Those that the same process had are done again by the other one.
        for other in others {
            assert_eq!(other.status, 200, "{}: {other:?}", kind.file);
        }
        app.stop();
    }
}

#[tokio::test]
async fn what_may_be_done_twice_is_tried_once_again() {
    for kind in KINDS {
        let app = kind.start("workers = 1");
        let once = |name: &str| format!("/die?once={}", app.folder.path().join(name).display());
        for method in ["GET", "PUT"] {
            let path = once(method);
            let asked = http::Request::builder().method(method).uri(&path);
            let reply = request(&app.served.address, asked, "").await;
            assert_eq!(reply.status, 200, "{} {method}: {reply:?}", kind.file);
        }
        let posted = app.post(&once("POST")).await;
        assert_eq!(posted.status, 502, "{posted:?}");
        // One that ends every process is not tried for ever.
        assert_eq!(app.get("/die").await.status, 502);
        app.stop();
    }
}

#[tokio::test]
async fn the_circuit_opens_for_one_that_keeps_ending() {
    for kind in KINDS {
        let app = kind.start("workers = 1");
        let mut statuses = Vec::new();
        let open = loop {
            let reply = app.post("/die").await;
            statuses.push(reply.status);
            if reply.status == 503 {
                break reply;
            }
            assert_eq!(reply.status, 502, "{reply:?}");
            assert!(statuses.len() < 20, "{statuses:?}");
        };
        let wait: u64 = open.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=10).contains(&wait), "{open:?}");
        let said = open.text();
        assert!(
            said.contains("was killed by SIGKILL") && said.contains("started again in"),
            "{said}"
        );
        // It closes by itself.
        let closed = async {
            while app.get("/pid").await.status == 503 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, closed).await.unwrap();
        assert_eq!(app.get("/pid").await.status, 200);
        app.stop();
    }
}

fn field<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name} in {status}"))
        .split_whitespace()
        .collect()
}

#[tokio::test]
async fn privileges_are_not_gained_unless_said() {
    for kind in KINDS {
        for (keys, expected) in [("", "1"), ("no_new_privs = false", "0")] {
            let app = kind.start(keys);
            assert_eq!(
                field(&app.get("/status").await.text(), "NoNewPrivs:"),
                [expected],
                "{}",
                kind.file
            );
            app.stop();
        }
    }
}

#[tokio::test]
async fn resources_are_limited() {
    for kind in KINDS {
        let app = kind.start("rlimits = { nofile = 321, core = 0, stack = \"unlimited\" }");
        let status = app.get("/status").await.text();
        assert_eq!(field(&status, "Max open files")[..2], ["321", "321"]);
        assert_eq!(field(&status, "Max core file size")[..2], ["0", "0"]);
        assert_eq!(field(&status, "Max stack size")[..2], ["unlimited", "unlimited"]);
        app.stop();
    }
}

#[tokio::test]
async fn they_run_as_whom_is_said() {
    for kind in KINDS {
        if !nix::unistd::geteuid().is_root() {
            let said = kind.refused("user = 65534");
            assert!(said.contains("`user` and `group` take root"), "{said}");
            continue;
        }
        let app = kind.start("user = \"nobody\"\ngroup = 4321");
        let status = app.get("/status").await.text();
        assert_eq!(field(&status, "Uid:"), ["65534"; 4], "{}", kind.file);
        assert_eq!(field(&status, "Gid:"), ["4321"; 4]);
        assert_eq!(field(&status, "Groups:"), ["4321"]);
        assert_eq!(field(&status, "CapEff:"), ["0000000000000000"]);
        assert_eq!(field(&status, "HOME="), ["/nonexistent"]);
        app.stop();
        let said = kind.refused("user = \"no-such-user\"");
        assert!(
            said.contains("there is no user \"no-such-user\" in /etc/passwd"),
            "{said}"
        );
        assert!(
            !said.contains("can't be started"),
            "it is the user's name that is wrong: {said}"
        );
    }
}

/// Whether this machine's cgroup2 has these controllers for us.
fn has_controllers() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let Some(mount) = mount.and_then(|line| line.split(' ').nth(4)) else {
        return false;
    };
    let controllers = std::fs::read_to_string(format!("{mount}/cgroup.controllers")).unwrap_or_default();
    controllers.contains("memory") && nix::unistd::geteuid().is_root()
}

#[tokio::test]
async fn memory_is_limited_or_it_is_said_why_not() {
    for kind in KINDS {
        if !has_controllers() {
            for (keys, named) in [("memory = \"64MiB\"", "`memory`"), ("cpu = 0.5", "`cpu`")] {
                let said = kind.refused(keys);
                assert!(
                    said.contains(&format!("{named} can't be enforced on this machine: ")),
                    "{said}"
                );
            }
            continue;
        }
        let app = kind.start("memory = \"128MiB\"\nworkers = 1");
        let killed = app.post("/hog").await;
        assert_eq!(killed.status, 502, "{killed:?}");
        let text = killed.text();
        assert!(
            text.contains("was killed by SIGKILL because it used more than its `memory`, 128 MiB"),
            "{text}"
        );
        assert_eq!(app.get("/pid").await.status, 200);
        app.stop();
    }
}

#[test]
fn bad_values_are_told_where_they_stand() {
    for (keys, expected) in [
        ("workers = 0", "3:11"),
        ("workers = \"many\"", "3:11"),
        ("max_requests = -1", "3:16"),
        ("start_timeout = 0", "3:17: must be a number of seconds, more than 0"),
        ("request_timeout = \"1s\"", "3:19"),
        ("memory = \"64 MB of it\"", "\"64 MB of it\" is no size"),
        ("memory = 5", "3:10: is too little for any process"),
        ("cpu = 0", "3:7: must be a number of processors"),
        (
            "rlimits = { files = 1 }",
            "unknown variant `files`, expected one of `as`",
        ),
        ("no_new_privs = \"no\"", "3:16"),
        (
            "workers = 2\nenvironment = { PORT = \"8080\" }",
            "can't be more than one on the one port",
        ),
    ] {
        let folder = KINDS[1].folder(keys);
        let running = crate::support::Running::start(&["check", folder.path().to_str().unwrap()]);
        let (status, output) = running.end();
        assert_eq!(status.code(), Some(1), "{keys}: {output}");
        assert!(output.contains(expected), "{keys}: {output}");
    }
}

/// Where this machine has no control groups to offer, an emulated one does.
#[cfg(all(feature = "host", feature = "image"))]
#[tokio::test]
async fn a_machine_enforces_memory_and_processors() {
    use crate::support::machine::{Machine, image};
    let program = r#"
def handler(event, context):
    if event["path"] == "/hog":
        hog = []
        while True:
            hog.append(b"1" * (8 << 20))
    group = open("/proc/self/cgroup").read().split("::")[1].strip()
    return "".join(open(f"/sys/fs/cgroup{group}/{name}").read() for name in ("memory.max", "cpu.max"))
"#;
    let folder = crate::support::folder_with("main.py", program);
    let manifest = "[components.app]\nsource = \"main.py\"\nmemory = \"64MiB\"\ncpu = 0.5\nworkers = 1\n";
    std::fs::write(folder.path().join("polyinit.toml"), manifest).unwrap();
    let machine = Machine::boot(&image("debian-12"), folder.path(), &["--memory", "512"]);
    assert_eq!(machine.text("/").await, format!("{}\n50000 100000\n", 64 << 20));
    let killed = machine.get("/hog").await.text();
    assert!(
        killed.contains("was killed by SIGKILL because it used more than its `memory`, 64 MiB,"),
        "{killed}"
    );
    assert_eq!(machine.get("/").await.status, 200);
    machine.halt();
}
