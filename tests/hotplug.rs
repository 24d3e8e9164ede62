//! Disks that come when the machine already runs, and waits for them.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Instant;

use polyinit::event::{Event, Reply};
use polyinit::host::initramfs::{self, Next};
use polyinit::host::kernel::Kernel;
use polyinit::host::link::{Link, Ready};
use polyinit::host::{gateway, tools};
use polyinit::machine::modules;
use polyinit::wire::{Configuration, ConfigurationAnswer, Volume};
use serde_json::json;

use crate::host::configuration_for;
use crate::support::machine::{break_ext4, build_smallest, disk, turn};
use crate::support::qemu::Qemu;
use crate::support::{PATIENCE, built};

/// The vsock of a machine that is not `polyinit vm`'s.
struct Vsock(Child);

impl Vsock {
    fn start(folder: &Path) -> Self {
        let socket = folder.join("vhost");
        let program = tools::program("vhost-device-vsock").expect("tests/host/get-vm has been run");
        let mut command = Command::new(program);
        command.args(["--guest-cid", "3", "--socket"]).arg(&socket);
        let vsock = Self(command.arg("--uds-path").arg(folder.join("v")).spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "no vsock");
            std::thread::yield_now();
        }
        vsock
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// The console is waited for while the machine is being asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_comes_late_is_waited_for_and_what_is_wrong_with_it_told() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("content")).unwrap();
    std::fs::write(at("content/note"), "came late").unwrap();
    let content = at("content");
    let good = disk(
        folder.path(),
        "good",
        16,
        &["mkfs.ext4", "-q", "-d", content.to_str().unwrap()],
    );
    let broken = disk(folder.path(), "broken", 16, &["mkfs.ext4", "-q"]);
    break_ext4(&broken);

    let kernel = Kernel::find(None).unwrap();
    let wanted = [
        "virtio_pci",
        "virtio_blk",
        "squashfs",
        "overlay",
        "ext4",
        "vmw_vsock_virtio_transport",
    ];
    let modules = modules::in_load_order(kernel.modules.as_deref().expect("modules"), &wanted).unwrap();
    initramfs::write(&at("initramfs"), &modules, Next::Device("/dev/vda", "squashfs")).unwrap();
    build_smallest(&at("image"));
    let ready = Ready::bind(&at("v_52")).unwrap();
    let _vsock = Vsock::start(folder.path());
    let vhost = format!("socket,id=vsock,path={}", at("vhost").display());
    let mut machine = Qemu::start(
        "q35,memory-backend=memory",
        &kernel.image,
        folder.path(),
        &[
            "-object",
            "memory-backend-memfd,id=memory,size=256M,share=on",
            "-chardev",
            &vhost,
            "-device",
            "vhost-user-vsock-pci,chardev=vsock",
            "-device",
            "pcie-root-port,id=port1,chassis=1",
            "-device",
            "pcie-root-port,id=port2,chassis=2",
        ],
    );
    tokio::time::timeout(PATIENCE, ready.signal())
        .await
        .expect("ready")
        .unwrap();
    let mut monitor = machine.monitor();
    let link = Link::new(at("v"));

    // The first one is the machine's /dev/vdb, whatever becomes of it.
    let mut answers = Vec::new();
    for (device, port, file) in [("vdb", "port1", &broken), ("vdc", "port2", &good)] {
        let configuration = Configuration {
            volumes: vec![Volume {
                device: device.to_owned(),
                mount: "/late".to_owned(),
                read_only: false,
            }],
            ..configuration_for(&built("exec-machine"), "executable", "exec-machine")
        };
        let asked = tokio::spawn({
            let link = link.clone();
            async move { link.configure(&configuration).await }
        });
        machine.wait_for(&format!("volume /dev/{device} on /late: its device is not there yet"));
        monitor.order(
            "blockdev-add",
            json!({"driver": "raw", "node-name": device, "file": {"driver": "file", "filename": file}}),
        );
        monitor.order(
            "device_add",
            json!({"driver": "virtio-blk-pci", "drive": device, "bus": port}),
        );
        answers.push(asked.await.unwrap().unwrap());
    }
    let ConfigurationAnswer::Failure { error, .. } = &answers[0] else {
        panic!("{answers:?}: {}", machine.seen)
    };
    assert_eq!(
        error,
        "volume /dev/vdb on /late: mounting it writable as ext4 failed: EINVAL: Invalid argument"
    );
    assert_eq!(answers[1], ConfigurationAnswer::Success, "{}", machine.seen);
    let handler = gateway::handler(link.clone(), gateway::Limits::default(), None);
    let request = http::Request::get("/read?path=/late/note").body("".into()).unwrap();
    let Reply::Http(response) = handler(Event::http(request)).await.unwrap() else {
        panic!("no response")
    };
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    assert_eq!(body.to_bytes(), "came late");
    link.halt().await.unwrap();
}
