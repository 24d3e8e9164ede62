//! QEMU driven by its own options and orders, for what `polyinit vm` has no machine for.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use serde_json::{Value, json};

use super::PATIENCE;

/// A machine with PCI: its root is the file `image` of a folder, its initramfs `initramfs`.
pub struct Qemu {
    process: Child,
    lines: mpsc::Receiver<String>,
    /// All that it has said, as far as it was waited for.
    pub seen: String,
    monitor: PathBuf,
}

impl Qemu {
    /// Starts one of this type (`-machine`), of 256 MiB, with more options.
    pub fn start(machine: &str, kernel: &Path, folder: &Path, more: &[&str]) -> Self {
        let monitor = folder.join("qmp");
        let root = json!({
            "driver": "raw", "node-name": "root", "read-only": true,
            "file": {"driver": "file", "filename": folder.join("image")},
        });
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-machine", machine, "-accel", "tcg,thread=multi"]);
        command.args(["-cpu", "max", "-m", "256", "-serial", "stdio"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
        command
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(folder.join("initramfs"));
        command.args([
            "-append",
            "console=ttyS0 panic=1 quiet reboot=t tsc=reliable polyinit.log=debug",
        ]);
        command.args(["-blockdev", &root.to_string(), "-device", "virtio-blk-pci,drive=root"]);
        let started = command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut process = started.unwrap();
        let (tell, lines) = mpsc::channel();
        let console = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            console
                .split(b'\n')
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(String::from_utf8_lossy(&line).into_owned()))
        });
        Self {
            process,
            lines,
            seen: String::new(),
            monitor,
        }
    }

    /// Waits for a line of the console.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("it does not say {text:?}: {}", self.seen));
            self.seen += &format!("{line}\n");
            if line.contains(text) {
                return;
            }
        }
    }

    pub fn monitor(&self) -> Monitor {
        Monitor::connect(&self.monitor)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// QEMU's monitor (QMP).
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.0.read_line(&mut String::new()).unwrap();
        monitor.order("qmp_capabilities", json!({}));
        monitor
    }

    /// Gives an order, which must be followed, and returns the answer.
    pub fn order(&mut self, order: &str, arguments: Value) -> Value {
        let order = json!({"execute": order, "arguments": arguments});
        self.0.get_mut().write_all(format!("{order}\n").as_bytes()).unwrap();
        // Events come in between.
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let said: Value = serde_json::from_str(&line).unwrap();
            assert!(said.get("error").is_none(), "{order}: {line}");
            if let Some(answer) = said.get("return") {
                return answer.clone();
            }
        }
    }
}
