//! A machine's whole life, from options to its end, on a real kernel with real vsock: what its owner would notice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use polyinit::event::{Event, Reply};
use polyinit::host::gateway;
use polyinit::host::hardware::{Drive, Network};
use polyinit::host::kernel::Kernel;
use polyinit::host::vm::{Choice, End, Settings, Vm};
use polyinit::wire::{Configuration, ConfigurationAnswer, Volume};
use serde_json::json;

use crate::host::configuration_for;
use crate::support::machine::{Machine, break_ext4, build, build_smallest, disk, image, turn};
use crate::support::{PATIENCE, Running, built, program, ssh};

/// Of signal(7).
const SIGABRT: i32 = 6;
const SIGPWR: i32 = 30;
const SIGTERM: i32 = 15;
const SIGINT: i32 = 2;

/// An image of nothing but init, this configuration and the kernel's modules named.
fn image_with(folder: &Path, options: &str, modules: &[&str]) -> PathBuf {
    let recipe = folder.join("recipe");
    let files = recipe.join("files");
    std::fs::create_dir_all(files.join("etc")).unwrap();
    std::fs::write(recipe.join("image.toml"), "base = \"none\"\n").unwrap();
    std::fs::write(files.join("etc/polyinit.toml"), options).unwrap();
    for module in modules {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/vm/modules/{module}.ko"));
        let place = files.join("lib/modules").join(release(&module)).join("kernel");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::copy(&module, place.join(module.file_name().unwrap())).unwrap();
    }
    build(&recipe, &folder.join("image.squashfs"))
}

/// The kernel that a module is for, which it says itself: `vermagic=6.1.0-56-cloud-amd64 SMP ...`.
fn release(module: &Path) -> String {
    const KEY: &[u8] = b"vermagic=";
    let content = std::fs::read(module).unwrap();
    let at = content
        .windows(KEY.len())
        .position(|window| window == KEY)
        .expect("a module");
    let rest = &content[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == b' ').unwrap();
    String::from_utf8_lossy(&rest[..end]).into_owned()
}

#[tokio::test]
async fn options_come_from_the_image_and_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let options = r#"
        log = "debug"
        modules = ["erofs", "nosuchmodule"]
        evnt_limit = 5
        root_size = "8M"
        http = ["127.0.0.1:8000"]
        [sysctl]
        net.core.somaxconn = 1234
        kernel.domainname = "from.the.file"
        no.such.parameter = 1
        [service]
        server = ["/opt/code/exec-machine"]
        missing = "/usr/bin/missing --flag"
    "#;
    let image = image_with(folder.path(), options, &["erofs", "libcrc32c"]);
    let words =
        "polyinit.sysctl.kernel.domainname=from.the.line polyinit.shell \"polyinit.reserve=24M\" polyinit.lgo=x";
    let machine = Machine::boot(&image, &built("exec-machine"), &["--memory", "256", "--append", words]);
    for warning in [
        "/etc/polyinit.toml: there is no option \"evnt_limit\"; did you mean \"event_limit\"?",
        "there is no kernel module nosuchmodule in /lib/modules/",
        "the kernel parameter no.such.parameter can't be set to \"1\"",
        "the kernel's command line: shell = true is not used",
        "the kernel's command line: there is no option \"lgo\"; did you mean \"log\"?",
        "/usr/bin/missing --flag can't be started: No such file",
    ] {
        machine.wait_for(warning);
    }
    let read = async |path: &str| machine.text(&format!("/read?path={path}")).await;
    let modules = read("/proc/modules").await;
    assert!(
        modules.contains("erofs ") && modules.contains("libcrc32c "),
        "{modules}"
    );
    assert_eq!(read("/proc/sys/net/core/somaxconn").await.trim(), "1234");
    assert_eq!(read("/proc/sys/kernel/domainname").await.trim(), "from.the.line");
    let root = read("/proc/mounts").await;
    let root = root
        .lines()
        .find(|line| line.contains(" / overlay "))
        .expect("an overlay");
    assert!(root.contains("lowerdir="), "{root}");
    assert_eq!(machine.text("/size?path=/etc").await, (8 << 20).to_string());
    let total: u64 = memory(&read("/proc/meminfo").await, "MemTotal:");
    let limit: u64 = read("/sys/fs/cgroup/programs/memory.max").await.trim().parse().unwrap();
    // Of what is free at boot, which is less than all.
    assert!(
        limit < (total << 10) - (24 << 20) && limit > (total << 9),
        "{limit} of {total} KiB"
    );
    let itself = machine
        .text("/fetch?url=http://127.0.0.1:8000/link?path=/dev/stdin")
        .await;
    assert_eq!(itself, "/proc/self/fd/0");
    // The service, which is the same program on its usual port, and was started before the program was there.
    let asked = "/fetch?url=http://127.0.0.1:8080/read?path=/proc/self/cgroup";
    let deadline = Instant::now() + Duration::from_secs(60);
    let service = loop {
        let answer = machine.get(asked).await;
        if answer.status == 200 {
            break answer.text();
        }
        assert!(Instant::now() < deadline, "{}: {}", answer.text(), machine.output());
    };
    assert!(service.starts_with("0::/programs/server."), "{service}");
    machine.halt();
}

fn memory(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_init_that_crashes_says_so_and_restarts_the_machine_at_once() {
    let machine = Machine::boot(&image("wasm"), &built("exec-machine"), &["--memory", "256"]);
    let began = Instant::now();
    // The answer may get lost with the machine, or never begin.
    let address = machine.address.clone();
    let asked = async move { crate::support::get(&address, &format!("/kill?signal={SIGABRT}")).await };
    let _ = tokio::spawn(asked).await;
    let output = machine.ended();
    let elapsed = began.elapsed();
    assert!(output.contains("polyinit: init aborted (SIGABRT)"), "{output}");
    assert!(!output.contains("Kernel panic"), "{output}");
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}

#[tokio::test]
async fn the_signals_that_ask_for_the_end_halt_the_machine() {
    // SIGINT is what the kernel makes of Ctrl-Alt-Del (reboot(2)), SIGPWR of a failing power supply.
    for signal in [SIGTERM, SIGINT, SIGPWR] {
        let machine = Machine::boot(&image("wasm"), &built("exec-machine"), &["--memory", "256"]);
        machine.text(&format!("/kill?signal={signal}")).await;
        let output = machine.ended();
        assert!(output.contains("halted after"), "{signal}: {output}");
        assert!(!output.contains("Kernel panic"), "{signal}: {output}");
    }
}

#[tokio::test]
async fn data_survives_a_program_that_will_not_end() {
    let folder = tempfile::tempdir().unwrap();
    let state = disk(folder.path(), "state.ext4", 16, &["mkfs.ext4", "-q"]);
    let volume = format!("{}:/state:rw", state.display());
    let arguments = ["--memory", "256", "--volume", &volume, "--env", "STUBBORN=1"];
    let machine = Machine::boot(&image("wasm"), &built("exec-machine"), &arguments);
    machine.text("/write?path=/state/synced&text=synced&fsync=1").await;
    machine.text("/write?path=/state/unsynced&text=unsynced").await;
    // An event that is never answered, from a client that waits.
    let address = machine.address.clone();
    let waiting = tokio::spawn(async move { crate::support::get(&address, "/hold").await });
    let deadline = Instant::now() + Duration::from_secs(60);
    while machine.text("/holding").await != "1" {
        assert!(Instant::now() < deadline, "the event never came");
    }
    let took = machine.halt_as_hosts_do();
    assert!(took < Duration::from_secs(5), "{took:?}: {}", machine.output());
    let output = machine.ended();
    assert!(output.contains("1 events are cut off by the halt"), "{output}");
    waiting.abort();

    let machine = Machine::boot(&image("wasm"), &built("exec-machine"), &arguments);
    for name in ["synced", "unsynced"] {
        assert_eq!(machine.text(&format!("/read?path=/state/{name}")).await, name);
    }
    machine.halt();
}

#[tokio::test]
async fn volumes_of_every_file_system_are_told_by_their_superblocks() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("note"), "in an erofs").unwrap();
    let erofs = folder.path().join("note.erofs");
    let made = Command::new("mkfs.erofs").arg(&erofs).arg(&content).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let volumes = [
        format!("{}:/erofs", erofs.display()),
        format!("{}:/squashfs", content.display()),
        format!(
            "{}:/ext4:rw",
            disk(folder.path(), "a", 16, &["mkfs.ext4", "-q"]).display()
        ),
        format!(
            "{}:/xfs:rw",
            disk(folder.path(), "b", 320, &["mkfs.xfs", "-q"]).display()
        ),
        format!(
            "{}:/btrfs:rw",
            disk(folder.path(), "c", 128, &["mkfs.btrfs", "-q"]).display()
        ),
    ];
    let mut arguments = vec!["--memory", "256"];
    arguments.extend(volumes.iter().flat_map(|volume| ["--volume", volume]));
    let machine = Machine::boot(&image("wasm"), &built("exec-machine"), &arguments);
    let mounts = machine.text("/read?path=/proc/mounts").await;
    for name in ["erofs", "squashfs", "ext4", "xfs", "btrfs"] {
        assert!(mounts.contains(&format!(" /{name} {name} ")), "{name}: {mounts}");
    }
    assert_eq!(machine.text("/read?path=/erofs/note").await, "in an erofs");
    let refused = machine.get("/write?path=/erofs/x&text=x").await;
    assert!(refused.text().contains("read-only file system"), "{}", refused.text());
    for name in ["ext4", "xfs", "btrfs"] {
        machine.text(&format!("/write?path=/{name}/note&text={name}")).await;
    }
    machine.halt();
}

#[tokio::test]
async fn a_clock_that_stood_still_is_put_right() {
    let machine = Machine::boot(&image("wasm"), &built("exec-machine"), &["--memory", "256"]);
    let ahead = async || {
        let there: f64 = machine.text("/time").await.parse().unwrap();
        let here = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        here.as_secs_f64() - there / 1e3
    };
    assert!(ahead().await.abs() < 1.5, "{}", ahead().await);
    machine.monitor().order("stop", json!({}));
    // What is tested is time going by.
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(5) {
        std::thread::park_timeout(Duration::from_secs(5));
    }
    machine.monitor().order("cont", json!({}));
    machine.wait_for("the machine had been stopped: its clock was");
    assert!(ahead().await.abs() < 1.5, "{}", ahead().await);
    let deadline = Instant::now() + PATIENCE;
    while machine.text("/continued").await != "1" {
        assert!(Instant::now() < deadline, "the program was not told");
    }
    machine.halt();
}

#[tokio::test]
async fn every_file_system_that_a_root_may_be_is_made_writable() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["ext4", "erofs"] {
        let image = build_smallest(&folder.path().join(format!("image.{format}")));
        let machine = Machine::boot(&image, &built("exec-machine"), &["--memory", "256"]);
        let mounts = machine.text("/read?path=/proc/mounts").await;
        assert!(mounts.contains(&format!(" /rom {format} ro")), "{mounts}");
        assert!(mounts.contains(" / overlay "), "{mounts}");
        machine.text("/write?path=/etc/note&text=x").await;
        assert!(
            machine
                .get("/write?path=/rom/etc/note&text=x")
                .await
                .text()
                .contains("read-only")
        );
        machine.halt();
    }
}

#[tokio::test]
async fn a_root_in_memory_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let image = build_smallest(&folder.path().join("image.cpio"));
    let state = disk(folder.path(), "state.ext4", 16, &["mkfs.ext4", "-q"]);
    let volume = format!("{}:/state:rw", state.display());
    let arguments = ["--memory", "512", "--volume", &volume];
    let machine = Machine::boot(&image, &built("exec-machine"), &arguments);
    let mounts = machine.text("/read?path=/proc/mounts").await;
    let root: Vec<_> = mounts.lines().filter(|line| line.contains(" / ")).collect();
    assert!(root.len() == 1 && root[0].starts_with("rootfs / rootfs rw"), "{mounts}");
    assert!(!mounts.contains(" /rom "), "{mounts}");
    for (point, kind) in [
        ("/proc", "proc"),
        ("/dev/shm", "tmpfs"),
        ("/run", "tmpfs"),
        ("/state", "ext4"),
    ] {
        assert!(mounts.contains(&format!(" {point} {kind} ")), "{point}: {mounts}");
    }
    for path in ["/etc/note", "/opt/new/note", "/state/note"] {
        machine.text(&format!("/write?path={path}&text=kept")).await;
    }
    // What was in the initramfs for the kernel's sake is gone.
    assert_eq!(machine.get("/read?path=/boot.plan").await.status, 418);
    machine.halt();

    let machine = Machine::boot(&image, &built("exec-machine"), &arguments);
    assert_eq!(machine.text("/read?path=/state/note").await, "kept");
    assert_eq!(machine.get("/read?path=/etc/note").await.status, 418);
    machine.halt();
}

#[tokio::test]
async fn a_wrong_configuration_is_answered_by_what_is_wrong_and_a_right_one_taken_after_it() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let broken = disk(folder.path(), "broken", 16, &["mkfs.ext4", "-q"]);
    break_ext4(&broken);
    let empty = folder.path().join("empty");
    std::fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
    let drive = |path| Drive { path, read_only: false };
    let settings = Settings {
        image: build_smallest(&folder.path().join("image")),
        kernel: Kernel::find(None).unwrap(),
        memory: 256,
        processors: 1,
        drives: vec![drive(broken), drive(empty)],
        network: Network::Isolated,
        forwards: Vec::new(),
        append: String::new(),
        choice: Choice::Qemu,
        guest_api: None,
    };
    let vm = Vm::boot(&settings, |_| ()).await.unwrap();
    let right = Configuration {
        ip: Some("10.0.2.15/24".to_owned()),
        route: Some("10.0.2.2".to_owned()),
        ipv6: Some("fd00::15/128".to_owned()),
        ipv6_gateway: Some("fd00:1::1".to_owned()),
        dns_servers: vec!["10.0.2.3".to_owned(), "fd00::3".to_owned()],
        ..configuration_for(&built("exec-machine"), "executable", "exec-machine")
    };
    let text = |text: &str| Some(text.to_owned());
    let volume = |device: &str, mount: &str| {
        let (device, mount) = (device.to_owned(), mount.to_owned());
        vec![Volume {
            mount,
            device,
            read_only: false,
        }]
    };
    let wrong = [
        (
            Configuration {
                ip: text("10.0.2.256/24"),
                ..right.clone()
            },
            "the IPv4 address (ip) `10.0.2.256/24` is not valid",
        ),
        (
            Configuration {
                route: text("10.0.2.2/24"),
                ..right.clone()
            },
            "the IPv4 gateway (route) `10.0.2.2/24` is not valid",
        ),
        (
            Configuration {
                ipv6: text("fd00::15/129"),
                ..right.clone()
            },
            "the IPv6 address (ipv6) `fd00::15/129` is not valid",
        ),
        (
            Configuration {
                ipv6_gateway: text("::"),
                ..right.clone()
            },
            "the IPv6 gateway (ipv6_gateway) `::` is not valid",
        ),
        (
            Configuration {
                dns_servers: vec!["dns".to_owned()],
                ..right.clone()
            },
            "the DNS server (dns_servers) `dns` is not valid",
        ),
        (
            Configuration {
                vm_hash: "xyz".to_owned(),
                ..right.clone()
            },
            "xyz",
        ),
        (
            Configuration {
                volumes: volume("vdz", "/x"),
                ..right.clone()
            },
            "volume /dev/vdz on /x: there is no such device after 2 s",
        ),
        (
            Configuration {
                volumes: volume("vdb", "/x"),
                ..right.clone()
            },
            "volume /dev/vdb on /x: mounting it writable as ext4 failed: EINVAL",
        ),
        (
            Configuration {
                volumes: volume("vdc", "/x"),
                ..right.clone()
            },
            "volume /dev/vdc on /x: it holds none of the file systems squashfs, ext4, erofs, xfs, btrfs",
        ),
        (
            Configuration {
                volumes: volume("vdb", "x"),
                ..right.clone()
            },
            "the mount point must be an absolute path",
        ),
    ];
    for (configuration, expected) in wrong {
        match vm.link().configure(&configuration).await.unwrap() {
            ConfigurationAnswer::Failure { error, .. } => assert!(error.contains(expected), "{error}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let answer = vm.link().configure(&right).await.unwrap();
    assert_eq!(answer, ConfigurationAnswer::Success);

    let handler = gateway::handler(vm.link().clone(), gateway::Limits::default(), None);
    let read = async |path: &str| {
        let request = http::Request::get(format!("/read?path={path}"))
            .body("".into())
            .unwrap();
        match handler(Event::http(request)).await.unwrap() {
            Reply::Http(response) => {
                let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
                String::from_utf8(body.to_bytes().to_vec()).unwrap()
            }
            other => panic!("{other:?}"),
        }
    };
    // In use at once: duplicate address detection would have it tentative (0x40) for a second.
    let addresses = read("/proc/net/if_inet6").await;
    let address = addresses
        .lines()
        .find(|line| line.starts_with("fd000000000000000000000000000015"));
    let address: Vec<_> = address.expect("the IPv6 address").split_whitespace().collect();
    assert_eq!((address[2], address[5]), ("80", "eth0"), "{addresses}");
    assert_eq!(u8::from_str_radix(address[4], 16).unwrap() & 0x40, 0, "{addresses}");
    // The gateway is on no network of the machine's, so that it is reached on the link.
    let routes = read("/proc/net/ipv6_route").await;
    let default = format!("{0} 00 {0} 00 fd000001{1}1 ", "0".repeat(32), "0".repeat(23));
    assert!(routes.contains(&default), "{routes}");
    let routes = read("/proc/net/route").await;
    // 10.0.2.2, in the byte order of this processor.
    assert!(routes.contains("eth0\t00000000\t0202000A\t"), "{routes}");
    assert_eq!(
        read("/etc/resolv.conf").await,
        "nameserver 10.0.2.3\nnameserver fd00::3\n"
    );
    assert_eq!(vm.halt().await, End::Halted);
}

/// A folder with programs of this machine, and the libraries that they need (ldd(1)), each in its own place.
fn copies(folder: &Path, programs: &[&str]) {
    for program in programs {
        let output = Command::new("ldd").arg(program).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([*program]) {
            let place = folder.join(file.trim_start_matches('/'));
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::copy(file, place).unwrap();
        }
    }
}

#[tokio::test]
async fn dropbear_stands_in_for_sshd_and_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe");
    copies(&recipe.join("files"), &["/usr/sbin/dropbear", "/bin/sh"]);
    std::fs::create_dir(recipe.join("files/etc")).unwrap();
    std::fs::write(recipe.join("image.toml"), "base = \"none\"\n").unwrap();
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\n"),
        ("polyinit.toml", "shell = true\n"),
    ] {
        std::fs::write(recipe.join("files/etc").join(name), text).unwrap();
    }
    let image = build(&recipe, &folder.path().join("image.squashfs"));
    let (key, port) = (ssh::key(folder.path(), "key"), ssh::free_port());
    let (forward, public) = (format!("{port}:22"), format!("{}.pub", key.display()));
    let arguments = [
        "--memory",
        "256",
        "--net",
        "--forward",
        &forward,
        "--authorized-keys",
        &public,
    ];
    let machine = Machine::boot(&image, &built("exec-machine"), &arguments);
    let log_in = |command: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = ssh::log_in(port, &key, command);
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(Instant::now() < deadline, "{why}: {}", machine.output());
        }
    };
    // The process above the one of this connection is the one that is kept; it tells its number and is ended.
    let parent = "read -r _ _ _ parent _ < /proc/$PPID/stat; echo $parent";
    let first = log_in(parent);
    let host_key = machine.shell("echo /etc/dropbear/*; cat /etc/dropbear/*ed25519*");
    assert!(host_key.starts_with("/etc/dropbear/dropbear_"), "{host_key}");
    machine.shell(&format!("kill -9 {first}"));
    machine.wait_for("dropbear was killed by SIGKILL");
    let second = log_in(parent);
    assert_ne!(first, second);
    assert_eq!(
        machine.shell("echo /etc/dropbear/*; cat /etc/dropbear/*ed25519*"),
        host_key
    );

    let other = ssh::log_in(port, &ssh::key(folder.path(), "other"), "true");
    let why = String::from_utf8_lossy(&other.stderr);
    assert!(why.contains("Permission denied (publickey)"), "{why}");
    machine.halt();
}

/// A program of those components; the Wasm one has its code beside it.
fn composed(folder: &Path, manifest: &str) {
    let copy = |from: &Path, to: &str| {
        let to = folder.join(to);
        let copied = Command::new("cp").arg("-r").arg(from).arg(&to).status().unwrap();
        assert!(copied.success());
        to
    };
    copy(&program("fastapi-app"), "notes");
    copy(&program("machine-report"), "report");
    let module = copy(&built("rust-http.wasm"), "hello.wasm");
    let (status, output) = Running::start(&["compile", module.to_str().unwrap()]).end();
    assert_eq!(status.code(), Some(0), "{output}");
    std::fs::write(folder.join("polyinit.toml"), manifest).unwrap();
}

/// The smallest machine of the network: 128 MiB and one processor, with a distribution's kernel, which leaves 100.
#[tokio::test]
async fn the_smallest_machine_runs_fastapi_and_a_component() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = r#"
        [components.notes]
        source = "notes"
        [components.hello]
        source = "hello.wasm"
        routes = ["/headers"]
    "#;
    composed(folder.path(), manifest);
    let machine = Machine::boot(&image("debian-12"), folder.path(), &["--memory", "128", "--cpus", "1"]);
    assert_eq!(machine.get("/").await.status, 200);
    assert_eq!(machine.get("/headers").await.status, 200);
    machine.halt();
}

#[tokio::test]
async fn a_glutton_is_ended_and_started_again_and_its_siblings_live() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = r#"
        [components.notes]
        source = "notes"
        routes = ["/notes/*", "/"]
        [components.report]
        source = "report"
        routes = ["/report", "/eat", "/init-time"]
        [components.hello]
        source = "hello.wasm"
        routes = ["/headers"]
    "#;
    composed(folder.path(), manifest);
    let machine = Machine::boot(&image("debian-12"), folder.path(), &["--memory", "256", "--cpus", "1"]);
    assert_eq!(machine.get("/").await.status, 200);
    assert_eq!(machine.get("/headers").await.status, 200);

    let eaten = machine.get("/eat").await;
    assert_eq!(eaten.status, 500, "{}", eaten.text());
    assert!(eaten.text().contains("out of memory"), "{}", eaten.text());
    // Started again, beside the others, which have seen nothing of it.
    let deadline = Instant::now() + Duration::from_secs(120);
    while machine.get("/init-time").await.status != 200 {
        assert!(
            Instant::now() < deadline,
            "it is not started again: {}",
            machine.output()
        );
    }
    assert_eq!(machine.get("/").await.status, 200);
    assert_eq!(machine.get("/headers").await.status, 200);
    machine.halt();
}
