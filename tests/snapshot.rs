//! A machine that is started from a snapshot: it notices, and its clock is put right.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use polyinit::host::initramfs::{self, Next};
use polyinit::machine::modules;
use serde_json::json;

use crate::support::PATIENCE;
use crate::support::machine::{build_smallest, turn};
use crate::support::qemu::Qemu;

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

/// QEMU's smaller machine doesn't tell its guest which generation it is. There is no vsock, so that init waits for its
/// configuration for ever.
fn start(kernel: &Path, folder: &Path, generation: u8, more: &[&str]) -> Qemu {
    let device = format!("vmgenid,guid={generation:08}-0000-0000-0000-000000000000");
    Qemu::start("q35", kernel, folder, &[&["-device", &device], more].concat())
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
    let root = Next::Device("/dev/vda", "squashfs");
    initramfs::write(&folder.path().join("initramfs"), &modules, root).unwrap();
    build_smallest(&folder.path().join("image"));
    let snapshot = folder.path().join("snapshot").display().to_string();

    let mut first = start(&kernel, folder.path(), 1, &[]);
    // Its last word before it waits: there is no Python in the image.
    first.wait_for("no warm Python worker");
    let mut monitor = first.monitor();
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
    let mut second = start(&kernel, folder.path(), 2, &["-incoming", &incoming]);
    second.wait_for("the machine was resumed from a snapshot");
    // Said together, or before, where the clock was looked at in between.
    assert!(second.seen.contains("s behind, and is right again"), "{}", second.seen);
}
