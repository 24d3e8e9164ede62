//! `polyinit vm`: an image in a real microVM, and the gateway that offers its program.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use polyinit::event::Event;
use polyinit::host::gateway;
use polyinit::host::link::Link;
use polyinit::wire::ConfigurationAnswer;

use crate::host::{Guest, configuration_for};
use crate::support::machine::build_smallest;
use crate::support::{PATIENCE, Running, built, get, program, request};

/// An image with nothing but init in it.
struct Image {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = build_smallest(&folder.path().join("wasm.squashfs"));
        Self { folder, path }
    }

    /// Boots it in an emulated machine with `program` in it, and waits until that is served.
    fn boot(&self, program: &Path, arguments: &[&str]) -> Machine {
        let mut all = vec![
            "vm",
            self.path.to_str().unwrap(),
            "--program",
            program.to_str().unwrap(),
        ];
        all.extend(["--listen", "127.0.0.1:0", "--vmm", "qemu"]);
        all.extend(arguments);
        let running = Running::start(&all);
        let line = running.wait_for("serving on http://");
        let address = line.rsplit('/').next().unwrap().trim().to_owned();
        // QEMU's process has the image's path in its command line, and beside it that of the machine's own folder.
        let vmm = command_lines_with(self.path.to_str().unwrap())
            .into_iter()
            .find(|line| line.starts_with("/") && line.contains("qemu"))
            .expect("a VMM");
        let folder = vmm
            .split([' ', ',', '=', ':'])
            .filter_map(|word| Path::new(word).ancestors().find(|path| is_machine_folder(path)))
            .next()
            .expect("the machine's folder")
            .to_owned();
        Machine {
            running,
            address,
            folder,
        }
    }
}

struct Machine {
    running: Running,
    address: String,
    /// With the VMM's sockets: it stands in the command lines of all that the machine consists of.
    folder: PathBuf,
}

impl Machine {
    /// Nothing of the machine runs any more. The kernel kills it when `polyinit` dies, and tells nobody when it has.
    fn is_gone(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = command_lines_with(self.folder.to_str().unwrap());
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

fn is_machine_folder(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("polyinit-vm-")
}

/// The command lines of other processes that have `text` in them.
fn command_lines_with(text: &str) -> Vec<String> {
    let lines = std::fs::read_dir("/proc").unwrap().flatten().map(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    });
    lines
        .filter(|line| line.contains(text) && !line.contains("polyinit vm"))
        .collect()
}

#[tokio::test]
async fn a_component_in_a_microvm() {
    let image = Image::build();
    let machine = image.boot(&built("rust-http.wasm"), &["--memory", "256"]);
    let get = |path: &'static str| get(&machine.address, path);
    assert_eq!(get("/").await.text(), "Hello from a Rust component\n");
    assert_eq!(
        get("/headers?a=%20b").await.json()["path_with_query"],
        "/headers?a=%20b"
    );
    assert_eq!(get("/cookies").await.all("set-cookie").len(), 2);
    assert_eq!(get("/status/418").await.status, 418);
    let streamed = get("/stream").await;
    assert_eq!(streamed.text().lines().count(), 10);
    assert!(streamed.headers.contains_key("content-length"));

    let body: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 249) as u8).collect();
    let echoed = request(&machine.address, http::Request::post("/echo"), body.clone()).await;
    assert!(echoed.body == body);
    let many = (0..16).map(|_| get("/"));
    for reply in futures_util::future::join_all(many).await {
        assert_eq!(reply.status, 200);
    }

    machine.running.interrupt();
    machine.running.wait_for("halted");
    machine.is_gone();
    let (status, output) = machine.running.end();
    assert_eq!(status.code(), Some(0), "{output}");
    drop(image.folder);
}

#[tokio::test]
async fn nothing_outlives_a_killed_polyinit() {
    let image = Image::build();
    let machine = image.boot(&built("exec-rust"), &["--net"]);
    let reply = get(&machine.address, "/redirect").await;
    assert_eq!(reply.status, 302);
    machine.running.signal(Signal::SIGKILL);
    machine.is_gone();
    let (status, output) = machine.running.end();
    assert_eq!(status.signal(), Some(9), "{output}");
}

#[tokio::test]
async fn a_program_that_is_none_is_told_and_the_machine_halted() {
    let image = Image::build();
    let notes = image.folder.path().join("notes.txt");
    std::fs::write(&notes, "hello").unwrap();
    let image_path = image.path.to_str().unwrap();
    let arguments = [
        "vm",
        image_path,
        "--program",
        notes.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
    ];
    let (status, output) = Running::start(&arguments).end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("the program was not started"), "{output}");
    assert!(output.contains("notes.txt") && output.contains("halted"), "{output}");
}

/// The gateway needs no machine: `polyinit guest` stands behind such a socket as well.
#[tokio::test]
async fn the_gateway_hands_over_requests_and_messages() {
    let guest = Guest::start(&[]).await;
    let link = Link::new(guest.socket());
    let configuration = configuration_for(&built("rust-http.wasm"), "executable", "rust-http.wasm");
    let answer = link.configure(&configuration).await.unwrap();
    assert_eq!(answer, ConfigurationAnswer::Success);

    let handler = gateway::handler(link.clone(), gateway::Limits::default(), None);
    let ask = async |request: http::Request<polyinit::event::Body>| match handler(Event::http(request)).await.unwrap() {
        polyinit::event::Reply::Http(response) => response,
        other => panic!("{other:?}"),
    };
    let response = ask(http::Request::get("/cookies").body("".into()).unwrap()).await;
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(response.headers()["content-length"], "12");
    // The program's own failure comes as the network's hosts show it: the account as text.
    let response = ask(http::Request::get("/panic").body("".into()).unwrap()).await;
    assert_eq!(response.status(), 500);
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");

    link.halt().await.unwrap();
    guest.has_ended();
    let gone = handler(Event::http(http::Request::get("/").body("".into()).unwrap())).await;
    assert_eq!(gone.unwrap_err().kind.status(), 503);
}

#[tokio::test]
async fn a_program_without_a_name_of_its_own_is_called_one() {
    let guest = Guest::start(&[]).await;
    let link = Link::new(guest.socket());
    let configuration = configuration_for(&program("asgi-plain"), "asgi", "main:app");
    let answer = link.configure(&configuration).await.unwrap();
    assert_eq!(answer, ConfigurationAnswer::Success);
    guest.wait_for("program: the entrypoint \"main:app\" is a Python module");
    link.halt().await.unwrap();
    guest.has_ended();
}

#[tokio::test]
async fn a_component_that_is_called_as_its_folder_keeps_its_name() {
    let guest = Guest::start(&[]).await;
    let link = Link::new(guest.socket());
    let manifest = "[components.code]\nsource = \"run.sh\"\nengine = \"executable\"\n";
    let folder = crate::support::folder_with("polyinit.toml", manifest);
    let script = "#!/bin/sh\nexec python3 -m http.server \"$PORT\" --bind 127.0.0.1\n";
    std::fs::write(folder.path().join("run.sh"), script).unwrap();
    let configuration = configuration_for(folder.path(), "executable", "");
    let answer = link.configure(&configuration).await.unwrap();
    assert_eq!(answer, ConfigurationAnswer::Success);
    guest.wait_for("code: ");
    link.halt().await.unwrap();
    guest.has_ended();
}

/// What is said of a machine that can't be, at once and without one.
fn refused(arguments: &[&str]) -> String {
    let (status, output) = Running::start(arguments).end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(!output.contains("panicked"), "{output}");
    output
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (image, text, kernel) = (at("image"), at("text"), at("vmlinux"));
    std::fs::write(&image, "hsqs").unwrap();
    std::fs::write(&text, "hello").unwrap();
    std::fs::write(&kernel, "\x7fELF").unwrap();
    let listen = ["--listen", "127.0.0.1:0"];
    let vm = |more: &[&str]| refused(&[&["vm"], more, &listen].concat());
    assert!(vm(&[&at("none"), "--kernel", &kernel]).contains("can't read the image"));
    assert!(vm(&[&text, "--kernel", &kernel]).contains("is no image of a root file system"));
    let initramfs = at("initramfs");
    std::fs::write(&initramfs, "070701").unwrap();
    let unpacked = std::fs::File::options().write(true).open(&initramfs).unwrap();
    unpacked.set_len(100 << 20).unwrap();
    let error = vm(&[&initramfs, "--kernel", &kernel, "--memory", "256"]);
    assert!(
        error.contains("256 MiB are too few for it: --memory 348 or more"),
        "{error}"
    );
    assert!(vm(&[&image, "--kernel", &at("none")]).contains("there is no kernel at"));
    assert!(vm(&[&image, "--kernel", &text]).contains("is no kernel: neither a vmlinux nor a bzImage"));
    for option in ["--program", "--data", "--authorized-keys"] {
        let error = format!("error: {option}: can't read {}", at("none"));
        assert!(
            vm(&[&image, "--kernel", &kernel, option, &at("none")]).contains(&error),
            "{error}"
        );
    }
    let volume = format!("{}:/srv", at("none"));
    assert!(vm(&[&image, "--kernel", &kernel, "--volume", &volume]).contains("error: --volume: can't read"));
    let volume = format!("{}:/data:rw", folder.path().display());
    assert!(vm(&[&image, "--kernel", &kernel, "--volume", &volume]).contains("can't be written to from a machine"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = refused(&["vm", &image, "--kernel", &kernel, "--listen", &address]);
    assert!(output.contains("choose another with --listen"), "{output}");
}

#[test]
fn what_has_to_be_installed_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, "hsqs").unwrap();
    // A program in another place finds nothing that was fetched for the build.
    let program = folder.path().join("polyinit");
    std::fs::copy(env!("CARGO_BIN_EXE_polyinit"), &program).unwrap();
    let run = |more: &[&str]| -> String {
        let Output { stderr, .. } = Command::new(&program)
            .args(["vm", image.to_str().unwrap(), "--listen", "127.0.0.1:0"])
            .args(more)
            .env_clear()
            .env("PATH", folder.path())
            .env("XDG_CACHE_HOME", folder.path().join("cache"))
            .output()
            .unwrap();
        String::from_utf8(stderr).unwrap()
    };
    let output = run(&[]);
    assert!(output.contains("no kernel found: pass --kernel FILE"), "{output}");
    let fetch = format!(
        "mkdir -p {0}/polyinit/vm && cd {0}/polyinit/vm &&\n",
        folder.path().join("cache").display()
    );
    assert!(output.contains(&fetch), "{output}");
    // What is told to be typed leaves a kernel where it is looked for. Debian's mirror is played; its package is not.
    let mirror = folder.path().join("mirror");
    std::fs::create_dir_all(mirror.join("kernel/boot")).unwrap();
    std::fs::create_dir_all(mirror.join("kernel/DEBIAN")).unwrap();
    let header = [&[0; 0x202][..], b"HdrS"].concat();
    std::fs::write(mirror.join("kernel/boot/vmlinuz-6.1.0-56-cloud-amd64"), header).unwrap();
    for (name, text) in [
        (
            "kernel/DEBIAN/control",
            "Package: linux-image-6.1.0-56-cloud-amd64\nVersion: 6.1.192-2\nArchitecture: amd64\n\
             Maintainer: nobody <nobody@example.org>\nDescription: a kernel\n",
        ),
        (
            "apt-cache",
            "#!/bin/sh\ntest \"$*\" = 'depends linux-image-cloud-amd64' || exit 1\n\
             printf 'linux-image-cloud-amd64\\n  Depends: linux-image-6.1.0-56-cloud-amd64\\n'\n",
        ),
        (
            "apt-get",
            "#!/bin/sh\ntest \"$*\" = 'download linux-image-6.1.0-56-cloud-amd64' || exit 1\n\
             exec dpkg-deb --build ${0%/*}/kernel linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb\n",
        ),
    ] {
        std::fs::write(mirror.join(name), text).unwrap();
        if name.starts_with("apt-") {
            std::fs::set_permissions(mirror.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let typed: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let path = format!("{}:{}", mirror.display(), std::env::var("PATH").unwrap());
    let shell = Command::new("sh")
        .args(["-c", &typed.join("\n")])
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(shell.status.success(), "{typed:?}: {shell:?}");
    let output = run(&[]);
    assert!(output.contains("qemu-system-x86_64 is not installed"), "{output}");
    let kernel = folder.path().join("vmlinux");
    std::fs::write(&kernel, "\x7fELF").unwrap();
    let kernel = ["--kernel", kernel.to_str().unwrap()];
    let output = run(&kernel);
    assert!(output.contains("qemu-system-x86_64 is not installed"), "{output}");
    for vmm in ["firecracker", "cloud-hypervisor"] {
        let output = run(&[&kernel[..], &["--vmm", vmm]].concat());
        assert!(
            output.contains(&format!("{vmm} is not installed: see https://")),
            "{output}"
        );
        assert!(output.contains("or use --vmm qemu"), "{output}");
    }
}
