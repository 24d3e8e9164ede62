//! A machine that is started from a snapshot: it notices, and its clock is put right.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use polyinit::host::initramfs;
use polyinit::machine::modules;
use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::machine::{build_smallest, turn};

/// QEMU's larger machine, since its smaller one doesn't tell its guest which generation it is. It has no vsock, so that
/// init waits for its configuration for ever.
struct Machine {
    qemu: Child,
    lines: mpsc::Receiver<String>,
    seen: String,
}

impl Machine {
    fn start(kernel: &Path, folder: &Path, generation: u8, more: &[&str]) -> Self {
        let [initramfs, monitor] = ["initramfs", "qmp"].map(|name| folder.join(name).display().to_string());
        let root = json!({
            "driver": "raw", "node-name": "root", "read-only": true,
            "file": {"driver": "file", "filename": folder.join("image")},
        });
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-m",
            "256",
        ]);
        command.args([
            "-serial",
            "stdio",
            "-qmp",
            &format!("unix:{monitor},server=on,wait=off"),
        ]);
        command.arg("-kernel").arg(kernel).args(["-initrd", &initramfs]);
        command.args([
            "-append",
            "console=ttyS0 panic=1 quiet reboot=t tsc=reliable polyinit.log=debug",
        ]);
        command.args(["-blockdev", &root.to_string(), "-device", "virtio-blk-pci,drive=root"]);
        let guid = format!("{generation:08}-0000-0000-0000-000000000000");
        command.args(["-device", &format!("vmgenid,guid={guid}")]).args(more);
        let mut qemu = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = mpsc::channel();
        let console = BufReader::new(qemu.stdout.take().unwrap());
        std::thread::spawn(move || {
            console
                .split(b'\n')
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(String::from_utf8_lossy(&line).into_owned()))
        });
        Self {
            qemu,
            lines,
            seen: String::new(),
        }
    }

    fn wait_for(&mut self, text: &str) {
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
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// QEMU's monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.0.read_line(&mut String::new()).unwrap();
        monitor.order("qmp_capabilities", json!({}));
        monitor
    }

    fn order(&mut self, order: &str, arguments: Value) -> Value {
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

/// A kernel of its own, since that of the other tests has no such driver.
fn kernel() -> Option<PathBuf> {
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm/vmgenid/vmlinux");
    if !kernel.exists() {
        eprintln!(
            "SKIPPED: there is no {}: tests/host/get-vm gets it where apt has it",
            kernel.display()
        );
        return None;
    }
    Some(kernel)
}

#[test]
fn a_machine_started_from_a_snapshot_notices() {
    let Some(kernel) = kernel() else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let wanted = [
        "virtio_pci",
        "virtio_blk",
        "squashfs",
        "overlay",
        "vmw_vsock_virtio_transport",
    ];
    let modules = modules::in_load_order(&kernel.with_file_name("modules"), &wanted).unwrap();
    initramfs::write(&folder.path().join("initramfs"), &modules, "/dev/vda", "squashfs").unwrap();
    build_smallest(&folder.path().join("image"));
    let snapshot = folder.path().join("snapshot").display().to_string();

    let mut first = Machine::start(&kernel, folder.path(), 1, &[]);
    // Its last word before it waits: there is no Python in the image.
    first.wait_for("no warm Python worker");
    let mut monitor = Monitor::connect(&folder.path().join("qmp"));
    monitor.order("migrate", json!({"uri": format!("exec:cat > {snapshot}")}));
    let deadline = Instant::now() + PATIENCE;
    while monitor.order("query-migrate", json!({}))["status"] != "completed" {
        assert!(Instant::now() < deadline, "no snapshot");
    }
    drop(first);

    // What is tested is time going by.
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(4) {
        std::thread::park_timeout(Duration::from_secs(4));
    }
    let incoming = format!("exec:cat {snapshot}");
    let mut second = Machine::start(&kernel, folder.path(), 2, &["-incoming", &incoming]);
    second.wait_for("the machine was resumed from a snapshot");
    // Said together, or before, where the clock was looked at in between.
    assert!(second.seen.contains("s behind, and is right again"), "{}", second.seen);
}
