//! A program served by the binary, and a client to ask it.

#[cfg(all(feature = "host", feature = "image"))]
pub mod api;
mod browser;
mod client;
#[cfg(all(feature = "host", feature = "image"))]
pub mod machine;
mod process;
#[cfg(all(feature = "host", feature = "image"))]
pub mod qemu;
#[cfg(all(feature = "host", feature = "image"))]
pub mod ssh;
pub mod websocket;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use browser::Browser;
pub use client::{Response, ask_h2, get, get_h2, request, send_h2};
pub use process::{Running, leftovers};

/// How long anything that a test waits for may take: much longer than it does, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// `polyinit serve PROGRAM`, on a free port.
pub struct Served {
    running: Running,
    pub address: String,
}

impl Served {
    /// Starts it and waits until it serves.
    pub fn start(program: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let running = Self::launch(program, arguments);
        let line = running.wait_for("serving on http://");
        let address = line.rsplit('/').next().unwrap().trim().to_owned();
        Self { running, address }
    }

    /// Starts it, and waits for nothing.
    pub fn launch(program: impl AsRef<Path>, arguments: &[&str]) -> Running {
        let mut all = vec!["serve", program.as_ref().to_str().unwrap(), "--listen", "127.0.0.1:0"];
        all.extend(arguments);
        Running::start(&all)
    }

    pub async fn get(&self, path: &str) -> Response {
        get(&self.address, path).await
    }

    /// A GET with these headers.
    pub async fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut sent = http::Request::get(path);
        for (name, value) in headers {
            sent = sent.header(*name, *value);
        }
        request(&self.address, sent, "").await
    }

    pub async fn post(&self, path: &str, body: impl Into<bytes::Bytes>) -> Response {
        let request = http::Request::post(path).header("content-type", "application/json");
        client::send(&self.address, request, body.into()).await
    }

    /// Of its process.
    pub fn id(&self) -> u32 {
        self.running.id()
    }

    /// Its memory, in bytes (proc_pid_status(5), VmRSS).
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// Everything it has printed so far.
    pub fn output(&self) -> String {
        self.running.output()
    }

    /// Waits for a line with `text` in it.
    pub fn wait_for(&self, text: &str) -> String {
        self.running.wait_for(text)
    }

    /// Tells it to end, as a terminal does, and sees to it that nothing is left.
    pub fn stop(self) -> String {
        self.running.interrupt();
        let (status, output) = self.running.end();
        assert_eq!(status.code(), Some(0), "{output}");
        output
    }
}

/// One of tests/programs.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// One of the guests and executables that `wasm-examples/build` makes.
pub fn built(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests").join(name);
    assert!(
        path.exists(),
        "{} is not built: run wasm-examples/build, or make test",
        path.display()
    );
    path
}

/// A folder with one file in it.
pub fn folder_with(name: &str, content: impl AsRef<[u8]>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), content).unwrap();
    folder
}

/// A folder with one executable file in it, which whoever it is may read.
pub fn executable(name: &str, script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder_with(name, script);
    for path in [folder.path().to_owned(), folder.path().join(name)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}
