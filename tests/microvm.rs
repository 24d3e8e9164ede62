//! The image that we ship, on a real kernel, with real vsock: what its programs find there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{PATIENCE, Response, Running, built, get, program, request};

/// The image that `make images` builds.
fn debian() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images/debian-12.squashfs");
    assert!(
        path.exists(),
        "{} is not built: run make images, or make test",
        path.display()
    );
    path
}

struct Machine {
    running: Running,
    address: String,
    _turn: MutexGuard<'static, ()>,
}

/// An emulated machine takes all of a processor: several at once would only wait for each other.
static TURN: Mutex<()> = Mutex::new(());

impl Machine {
    fn boot(program: &Path, arguments: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let image = debian();
        let mut all = vec!["vm", image.to_str().unwrap(), "--program", program.to_str().unwrap()];
        all.extend(["--listen", "127.0.0.1:0", "-v"]);
        all.extend(arguments);
        let running = Running::start(&all);
        let line = running.wait_for("serving on http://");
        let address = line.rsplit('/').next().unwrap().trim().to_owned();
        Self {
            running,
            address,
            _turn: turn,
        }
    }

    async fn get(&self, path: &str) -> Response {
        get(&self.address, path).await
    }

    async fn json(&self, path: &str) -> Value {
        self.get(path).await.json()
    }

    /// Halts it, within what a host gives it.
    fn halt(self) -> String {
        let began = Instant::now();
        self.running.interrupt();
        let (status, output) = self.running.end();
        assert_eq!(status.code(), Some(0), "{output}");
        assert!(
            began.elapsed() < Duration::from_secs(6),
            "{:?}: {output}",
            began.elapsed()
        );
        assert!(output.contains("halted"), "{output}");
        assert!(!output.contains("Kernel panic"), "{output}");
        output
    }
}

#[tokio::test]
async fn a_program_finds_a_machine_as_it_should_be() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("state.ext4");
    std::fs::File::create(&volume).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4")
        .arg("-q")
        .arg(&volume)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status();
    assert!(made.unwrap().success());
    std::fs::create_dir(folder.path().join("extra")).unwrap();
    std::fs::write(folder.path().join("extra/note.txt"), "from a read-only volume").unwrap();
    let state = format!("{}:/var/lib/state:rw", volume.display());
    let extra = format!("{}:/srv/extra", folder.path().join("extra").display());
    let arguments = [
        "--volume",
        &state,
        "--volume",
        &extra,
        "--net",
        "--env",
        "GREETING=héllo",
    ];

    let machine = Machine::boot(&program("machine-report"), &arguments);
    let report = machine.json("/report").await;
    assert_eq!(report["init"], "/sbin/init");
    assert_eq!(report["uid"], 0);
    let name = report["host_name"].as_str().unwrap();
    assert_eq!(name.len(), 52, "{name}");
    assert!(report["hosts"].as_str().unwrap().contains(name));
    for (point, kind) in [
        ("/", "overlay"),
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev", "devtmpfs"),
        ("/dev/shm", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/tmp", "tmpfs"),
        ("/run", "tmpfs"),
        ("/rom", "squashfs"),
        ("/var/lib/state", "ext4"),
        ("/srv/extra", "squashfs"),
    ] {
        assert_eq!(report["mounts"][point][0], kind, "{point}: {}", report["mounts"]);
    }
    assert!(report["mounts"]["/srv/extra"][1].as_str().unwrap().starts_with("ro"));
    assert_eq!(report["links"]["eth0"], "up", "{}", report["links"]);
    assert_eq!(
        report["routes"][0][1], "00000000",
        "no default route: {}",
        report["routes"]
    );
    assert!(report["resolv_conf"].as_str().unwrap().starts_with("nameserver "));
    assert_eq!(report["environment"]["GREETING"], "héllo");
    assert_eq!(report["environment"]["ALEPH_API_UNIX_SOCKET"], "/tmp/socat-socket");
    assert_eq!(report["environment"]["ALEPH_ADDRESS_TO_USE"], name);
    assert_eq!(report["api_socket"], true);

    let written = json!("written in the machine\n");
    for path in [
        "/opt/new/file",
        "/etc/file",
        "/var/lib/state/file",
        "/root/file",
        "/usr/local/file",
    ] {
        assert_eq!(machine.json(&format!("/write?path={path}")).await, written, "{path}");
    }
    assert!(
        machine.json("/write?path=/srv/extra/file").await["error"]
            .as_str()
            .unwrap()
            .contains("Read-only")
    );
    assert_eq!(
        machine.json("/show?path=/srv/extra/note.txt").await,
        "from a read-only volume"
    );
    assert_eq!(machine.json("/loopback").await, json!(["127.0.0.1", "::1"]));
    assert_eq!(machine.json("/orphans?count=200").await, 200);
    let deadline = Instant::now() + PATIENCE;
    while machine.json("/zombies").await != json!([]) {
        assert!(Instant::now() < deadline, "orphans stay zombies");
    }
    machine.halt();

    // What was written without fsync is on the volume when the machine starts again, and the root is new.
    let machine = Machine::boot(&program("machine-report"), &arguments);
    assert_eq!(machine.json("/show?path=/var/lib/state/file").await, written);
    assert!(
        machine.json("/show?path=/etc/file").await["error"]
            .as_str()
            .unwrap()
            .contains("No such file")
    );
    machine.halt();
}

#[tokio::test]
async fn without_a_network_device_there_is_still_loopback() {
    let machine = Machine::boot(&program("machine-report"), &[]);
    assert_eq!(machine.json("/loopback").await, json!(["127.0.0.1", "::1"]));
    machine.halt();
}

#[tokio::test]
async fn one_image_runs_every_language_at_once() {
    let machine = Machine::boot(
        &compiled_ahead(&built("polyglot")).path().join("polyglot"),
        &["--cpus", "2"],
    );
    assert_eq!(machine.json("/api/").await["site"], "Polyglot");
    assert!(machine.get("/").await.text().contains("<html"));
    assert_eq!(machine.get("/search?q=wasm").await.status, 200);
    assert!(machine.get("/chart").await.text().contains("<svg"));
    let message = http::Request::post("/_polyinit/message");
    let value = request(
        &machine.address,
        message,
        r#"{"sender": "0xabc", "content": "three words here"}"#,
    )
    .await;
    assert_eq!(value.json(), json!({"sender": "0xabc", "words": 3}));
    // More than one read, and more than the vsock's buffers.
    let body = vec![b'x'; 1 << 20];
    let refused = request(&machine.address, http::Request::post("/nowhere"), body).await;
    assert_eq!(refused.status, 500);
    let output = machine.halt();
    for told in ["→ python", "→ node", "→ wasm"] {
        assert!(output.contains(told), "{told}: {output}");
    }
}

#[tokio::test]
async fn an_executable_alone() {
    let machine = Machine::boot(&built("exec-go"), &[]);
    assert_eq!(machine.get("/cookies").await.all("set-cookie").len(), 2);
    assert_eq!(machine.get("/redirect").await.status, 302);
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    assert!(
        request(&machine.address, http::Request::post("/echo"), body.clone())
            .await
            .body
            == body
    );
    machine.halt();
}

/// A copy of a program with its WebAssembly compiled: an emulated machine takes a minute for what this one compiles in
/// seconds.
fn compiled_ahead(program: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(program)
        .arg(folder.path().join("polyglot"))
        .status()
        .unwrap();
    assert!(copied.success());
    let modules = ["search.wasm", "chart.wasm"].map(|name| folder.path().join("polyglot").join(name));
    let mut arguments = vec!["compile"];
    arguments.extend(modules.iter().map(|module| module.to_str().unwrap()));
    let (status, output) = Running::start(&arguments).end();
    assert_eq!(status.code(), Some(0), "{output}");
    folder
}
