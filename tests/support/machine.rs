//! An image in a real machine, with real vsock, and its program on a port of this host.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::qemu::Monitor;
use super::{PATIENCE, Response, Running, get};

/// The image that `make images` builds of a recipe.
pub fn image(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/images/{name}.squashfs"));
    assert!(
        path.exists(),
        "{} is not built: run make images, or make test",
        path.display()
    );
    path
}

/// Has the binary that is tested build an image, with itself as init.
pub fn build(recipe: &Path, image: &Path) -> PathBuf {
    let [from, to] = [recipe, image].map(|path| path.to_str().unwrap());
    let (status, output) = Running::start(&["image", "build", from, "-o", to]).end();
    assert_eq!(status.code(), Some(0), "{output}");
    image.to_owned()
}

/// One with nothing but init in it.
pub fn build_smallest(image: &Path) -> PathBuf {
    build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes/wasm"), image)
}

/// A disk image of `megabytes` with the file system that `tool` makes.
pub fn disk(folder: &Path, name: &str, megabytes: u64, tool: &[&str]) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(megabytes << 20).unwrap();
    let mut command = Command::new(tool[0]);
    command
        .args(&tool[1..])
        .arg(&path)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

/// Breaks an ext4 so that its magic stays, and its block size (s_log_block_size of ext4.h) is none.
pub fn break_ext4(disk: &Path) {
    let disk = File::options().write(true).open(disk).unwrap();
    disk.write_all_at(&[0xff; 4], 1024 + 0x18).unwrap();
}

pub struct Machine {
    running: Running,
    pub address: String,
    _turn: Turn,
}

/// The right to have a machine run.
pub struct Turn {
    _guard: MutexGuard<'static, ()>,
}

/// An emulated machine takes all of a processor: several at once would only wait for each other.
static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other machine runs.
pub fn turn() -> Turn {
    let _guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Turn { _guard }
}

impl Machine {
    /// Boots `image` with `program` in it, and waits until that is served.
    pub fn boot(image: &Path, program: &Path, arguments: &[&str]) -> Self {
        let turn = turn();
        let mut all = vec!["vm", image.to_str().unwrap(), "--program", program.to_str().unwrap()];
        all.extend(["--listen", "127.0.0.1:0", "-v"]);
        all.extend(arguments);
        let running = Running::start(&all);
        let line = running.wait_for("serving on http://127.0.0.1:");
        let address = line.rsplit('/').next().unwrap().trim().to_owned();
        Self {
            running,
            address,
            _turn: turn,
        }
    }

    pub async fn get(&self, path: &str) -> Response {
        get(&self.address, path).await
    }

    pub async fn json(&self, path: &str) -> Value {
        self.get(path).await.json()
    }

    /// What the program says, which must be that all went well.
    pub async fn text(&self, path: &str) -> String {
        let response = self.get(path).await;
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        response.text()
    }

    /// Waits for a line of the console, or of `polyinit vm`.
    pub fn wait_for(&self, text: &str) -> String {
        self.running.wait_for(text)
    }

    /// Everything that was said so far.
    pub fn output(&self) -> String {
        self.running.output()
    }

    /// Halts it, within what a host gives it.
    pub fn halt(self) -> String {
        let began = Instant::now();
        self.running.interrupt();
        let (status, output) = self.running.end();
        assert_eq!(status.code(), Some(0), "{output}");
        assert!(
            began.elapsed() < Duration::from_secs(6),
            "{:?}: {output}",
            began.elapsed()
        );
        assert!(output.lines().any(|line| line == "halted"), "{output}");
        assert!(!output.contains("Kernel panic"), "{output}");
        output
    }

    /// Tells the guest to halt over its vsock, past `polyinit vm`. Returns the time to its last word.
    pub fn halt_as_hosts_do(&self) -> Duration {
        let mut stream = self.vsock();
        let began = Instant::now();
        stream.write_all(b"halt").unwrap();
        let mut last = String::new();
        stream.read_to_string(&mut last).unwrap();
        assert_eq!(last, "STOP\nSTOPZ\n");
        began.elapsed()
    }

    /// What the guest answers to a command of its host.
    pub fn shell(&self, command: &str) -> String {
        let mut stream = self.vsock();
        stream.write_all(format!("!{command}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A connection to the guest's port for its host.
    fn vsock(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder().join("v")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"CONNECT 52\n").unwrap();
        // A byte at a time: what follows the line is the guest's.
        let mut said = String::new();
        while !said.ends_with('\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            said.push(byte[0].into());
        }
        assert!(said.starts_with("OK "), "{said}");
        stream
    }

    /// Waits until it has ended by itself, and returns everything that was said.
    pub fn ended(self) -> String {
        let (status, output) = self.running.end();
        assert_eq!(status.code(), Some(1), "{output}");
        assert!(output.contains("the machine ended by itself"), "{output}");
        output
    }

    /// QEMU's monitor.
    pub fn monitor(&self) -> Monitor {
        Monitor::connect(&self.folder().join("qmp"))
    }

    /// The machine's own folder on this host: QEMU's process has its sockets' paths in its command line.
    pub fn folder(&self) -> PathBuf {
        let children = self.running.children();
        let is_folder = |path: &&Path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("polyinit-vm-"))
        };
        let words = children.iter().flat_map(|line| line.split([' ', ',', '=', ':']));
        let found = words
            .filter_map(|word| Path::new(word).ancestors().find(is_folder))
            .next();
        found.expect("a VMM").to_owned()
    }
}
