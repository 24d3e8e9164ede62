//! Machines by QEMU, with or without KVM: virtio over MMIO and no PCI, as Firecracker's machines are.
//!
//! The vsock is that of `vhost-device-vsock`, a process of its own beside QEMU, since the kernel's would need a module
//! on the host and has no Unix sockets. It offers the host's side exactly as Firecracker does.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;

use super::hardware::{GUEST_CID, Hardware, Network, StartError, Vmm, start, text};
use super::{tools, tsc};
use crate::engine::process::Process;

const QEMU: &str = "qemu-system-x86_64";
const VHOST: &str = "vhost-device-vsock";

/// How long `vhost-device-vsock` may take to open its socket. It takes 3 ms.
const VHOST_DEADLINE: Duration = Duration::from_secs(5);

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, by way of /dev/kvm.
    Kvm,
    /// QEMU's translator. Works everywhere, ten and more times slower.
    Tcg,
}

/// Starts the machine. It runs as soon as this returns.
///
/// # Errors
/// [`StartError`] where QEMU or `vhost-device-vsock` is missing or doesn't start.
pub async fn run(hardware: &Hardware, accelerator: Accelerator) -> Result<Vmm, StartError> {
    let qemu = tools::program(QEMU).ok_or(StartError::NotInstalled {
        program: QEMU,
        hint: "on Debian and Ubuntu, `apt-get install --no-install-recommends qemu-system-x86`",
    })?;
    let vhost = tools::program(VHOST).ok_or(StartError::NotInstalled {
        program: VHOST,
        hint: "`cargo install vhost-device-vsock` gives QEMU its vsock",
    })?;
    let socket = hardware.folder.join("vhost");
    let arguments = vec![
        "--guest-cid".to_owned(),
        GUEST_CID.to_string(),
        "--socket".to_owned(),
        text(&socket)?,
        "--uds-path".to_owned(),
        text(&hardware.vsock())?,
    ];
    let device = start("vsock", vhost, arguments, None).await?;
    let connection = connect(&socket, &device).await?;
    let arguments = arguments_of_qemu(hardware, accelerator, &connection)?;
    let process = start("console", qemu, arguments, Some(connection)).await?;
    Ok(Vmm::new(process, Some(device)))
}

/// Connects to the device in QEMU's place, since QEMU would connect once and give up.
async fn connect(socket: &Path, device: &Process) -> Result<OwnedFd, StartError> {
    let connecting = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let no_socket = |words| StartError::NoSocket {
        program: VHOST,
        socket: socket.to_owned(),
        after: VHOST_DEADLINE,
        words,
    };
    let Ok(stream) = tokio::time::timeout(VHOST_DEADLINE, connecting).await else {
        return Err(no_socket(device.last_words().await));
    };
    let stream = stream.into_std().and_then(|stream| {
        stream.set_nonblocking(false)?;
        Ok(stream)
    });
    match stream {
        Ok(stream) => Ok(stream.into()),
        Err(error) => Err(no_socket(error.to_string())),
    }
}

fn arguments_of_qemu(
    hardware: &Hardware,
    accelerator: Accelerator,
    vhost: &impl AsRawFd,
) -> Result<Vec<String>, StartError> {
    let memory = hardware.memory;
    // What runs the vsock shares the guest's memory: hence the memfd.
    let memory =
        json!({"qom-type": "memory-backend-memfd", "id": "memory", "size": u64::from(memory) << 20, "share": true});
    let vhost = format!("socket,id=vsock,fd={}", vhost.as_raw_fd());
    let (accelerator, processor, clock) = match accelerator {
        Accelerator::Kvm => ("kvm", "host", String::new()),
        // Machines of this type have a clock to measure others by only with KVM (kvmclock), so that the kernel has to
        // be told: QEMU hands the guest this processor's own counter.
        Accelerator::Tcg => (
            "tcg,thread=multi",
            "max",
            format!(" no_timer_check tsc_early_khz={}", tsc::kilohertz()),
        ),
    };
    // There is no keyboard controller to reset: `t`, a triple fault, ends the machine at once.
    let command_line = hardware.command_line(&format!("reboot=t pci=off tsc=reliable{clock}"));
    let mut arguments: Vec<String> = [
        "-nodefaults -no-user-config -display none -no-reboot",
        // qboot, not SeaBIOS, under which one start in four stops before the kernel's first word.
        "-machine microvm,acpi=on,memory-backend=memory -bios qboot.rom",
        "-chardev stdio,id=console,signal=off -serial chardev:console",
        "-device vhost-user-vsock-device,chardev=vsock",
    ]
    .iter()
    .flat_map(|options| options.split(' '))
    .map(str::to_owned)
    .collect();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("-accel", accelerator.to_owned());
    add("-cpu", processor.to_owned());
    add("-smp", hardware.processors.to_string());
    add("-m", hardware.memory.to_string());
    add("-object", memory.to_string());
    add("-chardev", vhost);
    add(
        "-qmp",
        format!("unix:{},server=on,wait=off", text(&hardware.monitor())?),
    );
    add("-kernel", text(&hardware.kernel)?);
    add("-append", command_line);
    if let Some(initramfs) = &hardware.initramfs {
        add("-initrd", text(initramfs)?);
    }
    for (number, drive) in hardware.drives.iter().enumerate() {
        let file = json!({"driver": "file", "filename": text(&drive.path)?});
        let node = format!("drive{number}");
        let block = json!({"driver": "raw", "node-name": node, "read-only": drive.read_only, "file": file});
        add("-blockdev", block.to_string());
        add("-device", format!("virtio-blk-device,drive={node}"));
    }
    let restricted = match hardware.network {
        Network::None => return Ok(arguments),
        Network::Isolated => "on",
        Network::Open => "off",
    };
    let forwards = hardware.forwards.iter();
    let forwards: String = forwards
        .map(|forward| format!(",hostfwd=tcp:127.0.0.1:{}-:{}", forward.host, forward.guest))
        .collect();
    add("-netdev", format!("user,id=network,restrict={restricted}{forwards}"));
    add("-device", "virtio-net-device,netdev=network".to_owned());
    Ok(arguments)
}
