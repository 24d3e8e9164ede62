//! Machines by Cloud Hypervisor, where KVM boots a kernel.
//!
//! All of the machine is on its command line (`cloud-hypervisor --help`, and `docs/` of its repository). Its vsock has
//! the same Unix sockets as Firecracker's, its devices are on PCI. Version 51 or newer: older ones know no type of disks.

use super::hardware::{GUEST_CID, Hardware, Network, StartError, Vmm, start, text};
use super::{kvm, tools};

const CLOUD_HYPERVISOR: &str = "cloud-hypervisor";

/// As people call it.
const NAME: &str = "Cloud Hypervisor";

/// Whether Cloud Hypervisor is installed.
pub fn is_installed() -> bool {
    tools::program(CLOUD_HYPERVISOR).is_some()
}

/// Starts the machine. It runs as soon as this returns.
///
/// # Errors
/// [`StartError`] where Cloud Hypervisor or KVM is missing, doesn't start, or shall give a network, for which it would need a
/// tap device that only root can make.
pub async fn run(hardware: &Hardware) -> Result<Vmm, StartError> {
    let program = tools::program(CLOUD_HYPERVISOR).ok_or(StartError::NotInstalled {
        program: CLOUD_HYPERVISOR,
        hint: "see https://github.com/cloud-hypervisor/cloud-hypervisor/releases, or use --vmm qemu",
    })?;
    kvm::may_be_used().map_err(|errno| StartError::NoKvm { vmm: NAME, errno })?;
    let arguments = arguments(hardware)?;
    Ok(Vmm::new(start("console", program, arguments, None).await?, None))
}

fn arguments(hardware: &Hardware) -> Result<Vec<String>, StartError> {
    if hardware.network != Network::None {
        return Err(StartError::NoNetwork {
            vmm: NAME,
            why: "that needs a tap device, which polyinit doesn't make; use --vmm qemu",
        });
    }
    let mut arguments = Vec::new();
    let mut add = |option: &str, values: Vec<String>| {
        arguments.push(option.to_owned());
        arguments.extend(values);
    };
    add("--cpus", vec![format!("boot={}", hardware.processors)]);
    add("--memory", vec![format!("size={}M", hardware.memory)]);
    add("--kernel", vec![text(&hardware.kernel)?]);
    if let Some(initramfs) = &hardware.initramfs {
        add("--initramfs", vec![text(initramfs)?]);
    }
    // A restart by the keyboard controller ends its machines, as with Firecracker.
    add("--cmdline", vec![hardware.command_line("reboot=k")]);
    let disks = hardware.drives.iter().map(|drive| {
        let read_only = if drive.read_only { "on" } else { "off" };
        // What it has to guess is raw it doesn't let the guest write the first sector of, where some file systems begin.
        let path = text(&drive.path)?;
        Ok(format!("path={path},readonly={read_only},image_type=raw"))
    });
    add("--disk", disks.collect::<Result<_, StartError>>()?);
    add(
        "--vsock",
        vec![format!("cid={GUEST_CID},socket={}", text(&hardware.vsock())?)],
    );
    add("--serial", vec!["tty".to_owned()]);
    add("--console", vec!["off".to_owned()]);
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::super::hardware::Drive;
    use super::*;

    #[test]
    fn describes_the_machine_as_cloud_hypervisor_reads_it() {
        let drive = |path: &str, read_only| Drive {
            path: path.into(),
            read_only,
        };
        let hardware = Hardware {
            kernel: "/k/vmlinux".into(),
            initramfs: Some("/run/m/initramfs".into()),
            memory: 128,
            processors: 1,
            drives: vec![drive("/root.squashfs", true), drive("/data.ext4", false)],
            network: Network::None,
            forwards: Vec::new(),
            append: "polyinit.log=debug".to_owned(),
            folder: "/run/m".into(),
        };
        let words = arguments(&hardware).unwrap();
        let after = |option: &str| {
            let at = words.iter().position(|word| word == option).expect(option);
            words[at + 1].as_str()
        };
        assert_eq!(after("--memory"), "size=128M");
        assert_eq!(after("--disk"), "path=/root.squashfs,readonly=on,image_type=raw");
        assert!(words.contains(&"path=/data.ext4,readonly=off,image_type=raw".to_owned()));
        assert_eq!(after("--vsock"), "cid=3,socket=/run/m/v");
        assert!(after("--cmdline").ends_with(" polyinit.log=debug"));
        let networked = Hardware {
            network: Network::Open,
            ..hardware
        };
        assert!(arguments(&networked).unwrap_err().to_string().contains("--vmm qemu"));
    }
}
