//! The image that we ship, on a real kernel, with real vsock: what its programs find there.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use crate::support::api::Api;
use crate::support::machine::{Machine, image};
use crate::support::{PATIENCE, Running, built, executable, program, request, ssh};

fn boot(program: &Path, arguments: &[&str]) -> Machine {
    Machine::boot(&image("debian-12"), program, arguments)
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
    // The network's places for what a program imports: a virtual environment, and plain packages.
    let venv = folder.path().join("venv");
    let site = venv.join("lib/python3.11/site-packages");
    let packages = folder.path().join("packages");
    for (folder, name) in [(&site, "of_the_venv.py"), (&packages, "of_the_packages.py")] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(name), "").unwrap();
    }
    std::fs::create_dir(venv.join("bin")).unwrap();
    std::os::unix::fs::symlink("/usr/bin/python3", venv.join("bin/python3")).unwrap();
    std::fs::write(venv.join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
    let venv = format!("{}:/opt/venv", venv.display());
    let packages = format!("{}:/opt/packages", packages.display());
    let arguments = [
        "--volume",
        &state,
        "--volume",
        &extra,
        "--volume",
        &venv,
        "--volume",
        &packages,
        "--net",
        "--env",
        "GREETING=héllo",
    ];

    let machine = boot(&program("machine-report"), &arguments);
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
    // As systemd mounts them.
    for (point, flags) in [
        ("/proc", "rw,nosuid,nodev,noexec,relatime"),
        ("/sys", "rw,nosuid,nodev,noexec,relatime"),
        ("/dev", "rw,nosuid,"),
        ("/dev/pts", "rw,nosuid,noexec,relatime,gid=5,mode=620"),
        ("/dev/shm", "rw,nosuid,nodev"),
        ("/dev/mqueue", "rw,nosuid,nodev,noexec,relatime"),
        ("/run", "rw,nosuid,nodev,mode=755"),
        ("/tmp", "rw,nosuid,nodev"),
        (
            "/sys/fs/cgroup",
            "rw,nosuid,nodev,noexec,relatime,nsdelegate,memory_recursiveprot",
        ),
        ("/sys/kernel/security", "rw,nosuid,nodev,noexec,relatime"),
        ("/var/lib/state", "rw,nosuid,nodev"),
    ] {
        let found = report["mounts"][point][1].as_str().unwrap_or_default();
        assert!(found.starts_with(flags), "{point} has {found:?}, not {flags:?}");
    }
    let links = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"];
    let targets = links.map(|link| report["device_links"][link].as_str().unwrap_or_default().to_owned());
    assert_eq!(
        targets,
        ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]
    );
    let group = report["cgroup"].as_str().unwrap();
    assert!(group.starts_with("0::/programs/"), "{group}");
    assert_eq!(report["oom_score_adj"], "500");
    assert_eq!(report["controllers"], "cpu io memory pids");
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
    for (module, place) in [
        ("of_the_venv", "/opt/venv/lib/python3.11/site-packages"),
        ("of_the_packages", "/opt/packages"),
    ] {
        let found = machine.json(&format!("/import?module={module}")).await;
        assert_eq!(found, format!("{place}/{module}.py"));
    }
    assert_eq!(machine.json("/loopback").await, json!(["127.0.0.1", "::1"]));
    let before = machine.json("/init-time").await.as_f64().unwrap();
    let mut seconds = 0.0;
    for _ in 0..4 {
        seconds += machine.json("/orphans?count=500").await["seconds"].as_f64().unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while machine.json("/zombies").await != json!([]) {
        assert!(Instant::now() < deadline, "orphans stay zombies");
    }
    // A processor of one's own is asked for 60 us an orphan, which is 1 % of it for 10,000 in a minute (tests/serve.rs). Of an
    // emulated one, however slow the machine is at it, what takes longest is to make them.
    let busy = machine.json("/init-time").await.as_f64().unwrap() - before;
    eprintln!("2,000 orphans within {seconds} s cost init {busy} s");
    assert!(busy < seconds / 10.0, "2,000 orphans cost init {busy} s of {seconds}");
    machine.halt();

    // What was written without fsync is on the volume when the machine starts again, and the root is new.
    let machine = boot(&program("machine-report"), &arguments);
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
    let machine = boot(&program("machine-report"), &[]);
    assert_eq!(machine.json("/loopback").await, json!(["127.0.0.1", "::1"]));
    machine.halt();
}

#[tokio::test]
async fn the_networks_sdk_reaches_its_host() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let api = Api::serve(&socket);
    let machine = boot(&program("aleph-sdk"), &["--guest-api", socket.to_str().unwrap()]);
    assert_eq!(
        machine.json("/cache").await,
        json!({"before": null, "after": "hello, host", "keys": ["greeting"], "binary": 256_000, "deleted": true})
    );
    let signed = machine.json("/account").await;
    assert_eq!(
        (&signed["sender"], &signed["signature"]),
        (&json!("0xabc"), &json!("0xsigned"))
    );
    assert_eq!(machine.json("/at-once?count=200").await, json!({"200": 200}));
    assert!(api.most_at_once() >= 200, "{}", api.most_at_once());
    let message = http::Request::post("/_polyinit/message");
    let value = request(&machine.address, message, r#"{"item_hash": "cafe"}"#).await;
    assert_eq!(value.json(), json!({"seen": "cafe"}));
    machine.halt();
}

#[tokio::test]
async fn whoever_has_a_key_can_log_in() {
    let folder = tempfile::tempdir().unwrap();
    let (key, port) = (ssh::key(folder.path(), "key"), ssh::free_port());
    let (forward, public) = (format!("{port}:22"), format!("{}.pub", key.display()));
    let arguments = ["--net", "--forward", &forward, "--authorized-keys", &public];
    let machine = boot(&program("machine-report"), &arguments);
    assert_eq!(
        machine.json("/mode?path=/root/.ssh/authorized_keys").await,
        "100600 0:0"
    );
    assert_eq!(machine.json("/mode?path=/root/.ssh").await, "40700 0:0");
    let deadline = Instant::now() + PATIENCE;
    let said = loop {
        let output = ssh::log_in(port, &key, "hostname; cat /proc/1/comm");
        if output.status.success() {
            break String::from_utf8(output.stdout).unwrap();
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(Instant::now() < deadline, "{why}: {}", machine.output());
    };
    let refused = machine.shell("id");
    assert!(refused.starts_with("the shell is off in this machine"), "{refused}");
    let (name, init) = said.trim().split_once('\n').unwrap();
    assert_eq!((name.len(), init), (52, "init"));

    let refused = ssh::log_in(port, &ssh::key(folder.path(), "other"), "true");
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("Permission denied (publickey)"), "{why}");
    machine.halt();
}

#[tokio::test]
async fn the_hosts_data_is_in_data_and_its_owners_shell_on_the_console() {
    let folder = tempfile::tempdir().unwrap();
    let [input, output] = ["input", "output"].map(|name| folder.path().join(name));
    std::fs::create_dir(&input).unwrap();
    std::fs::write(input.join("input.txt"), "from the host").unwrap();
    let machine = boot(
        &program("machine-report"),
        &[
            "--data",
            input.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--net",
            "--append",
            "polyinit.root_size=64M polyinit.mtu=1400 polyinit.login=ttyS0",
        ],
    );
    assert_eq!(machine.json("/show?path=/data/input.txt").await, "from the host");
    // Nothing has changed yet.
    assert!(!folder.path().join("output").exists());
    machine.json("/write?path=/data/results/note").await;
    for (path, text) in [
        ("results/note", "written in the machine\n"),
        ("input.txt", "from the host"),
    ] {
        let came_back = std::fs::read_to_string(folder.path().join("output").join(path));
        assert_eq!(came_back.unwrap(), text, "{path}");
    }
    assert_eq!(machine.json("/show?path=/sys/class/net/eth0/mtu").await, "1400\n");
    let deadline = Instant::now() + PATIENCE;
    while machine.json("/on-terminals").await != json!({"bash": [4, 64]}) {
        assert!(
            Instant::now() < deadline,
            "no shell on the console: {}",
            machine.output()
        );
    }
    machine.halt();
}

#[tokio::test]
async fn one_image_runs_every_language_at_once() {
    let machine = boot(
        &compiled_ahead(&built("polyglot")).path().join("polyglot"),
        &["--cpus", "2"],
    );
    assert_eq!(machine.json("/api/").await["shop"], "Polyglot");
    // The page asks the API, another component, for what it shows.
    let page = machine.get("/").await;
    assert!(page.text().contains("<b>Desk lamp</b> 39.00"), "{page:?}");
    assert_eq!(machine.json("/search?q=WARM+brass").await[0]["id"], "lamp");
    let thumbnail = machine.get("/thumbnails/lamp.png?width=32").await;
    assert!(thumbnail.body.starts_with(b"\x89PNG"), "{thumbnail:?}");
    assert!(machine.get("/static/style.css").await.text().contains("font"));
    let message = http::Request::post("/_polyinit/message");
    let value = request(
        &machine.address,
        message,
        r#"{"sender": "0xabc", "channel": "shop", "content": {"product": "lamp", "count": 2}}"#,
    )
    .await;
    assert_eq!(value.json(), json!({"from": "0xabc", "ordered": {"lamp": 2}}));
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
async fn a_script_in_the_minimal_image() {
    let script = "#!/bin/sh\nls -l /usr/share/zoneinfo/Europe/Paris && cd /etc/ssl/certs && \
                  exec busybox httpd -f -p 127.0.0.1:$PORT\n";
    let program = executable("run.sh", script);
    let arguments = ["--memory", "256", "--env", "PORT=8080"];
    let machine = Machine::boot(&image("minimal"), program.path(), &arguments);
    let certificates = machine.get("/ca-certificates.crt").await.text();
    assert!(
        certificates.starts_with("-----BEGIN CERTIFICATE-----\n"),
        "{certificates}"
    );
    machine.halt();
}

#[tokio::test]
async fn an_executable_alone() {
    let machine = boot(&built("exec-go"), &[]);
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
    let modules = ["search.wasm", "thumbnails.wasm"].map(|name| folder.path().join("polyglot").join(name));
    let mut arguments = vec!["compile"];
    arguments.extend(modules.iter().map(|module| module.to_str().unwrap()));
    let (status, output) = Running::start(&arguments).end();
    assert_eq!(status.code(), Some(0), "{output}");
    folder
}
