//! Machines by Firecracker, where KVM boots a kernel.
//!
//! The whole machine is described in one file, as `docs/getting-started.md` of Firecracker has it ("Running
//! Firecracker", `--no-api --config-file`); the keys are those of its API (`src/firecracker/swagger/firecracker.yaml`).

use std::fs;

use serde_json::{Value, json};

use super::hardware::{GUEST_CID, Hardware, Network, StartError, Vmm, start, text};
use super::{kernel, kvm, tools};

const FIRECRACKER: &str = "firecracker";

/// As people call it.
const NAME: &str = "Firecracker";

/// Whether Firecracker is installed.
pub fn is_installed() -> bool {
    tools::program(FIRECRACKER).is_some()
}

/// Starts the machine. It runs as soon as this returns.
///
/// # Errors
/// [`StartError`] where Firecracker or KVM is missing, doesn't start, or shall give a network, for which it would need a tap
/// device that only root can make.
pub async fn run(hardware: &Hardware) -> Result<Vmm, StartError> {
    let program = tools::program(FIRECRACKER).ok_or(StartError::NotInstalled {
        program: FIRECRACKER,
        hint: "see https://github.com/firecracker-microvm/firecracker/releases, or use --vmm qemu",
    })?;
    kvm::may_be_used().map_err(|errno| StartError::NoKvm { vmm: NAME, errno })?;
    if kernel::is_bz_image(&hardware.kernel) {
        let kernel = hardware.kernel.clone();
        return Err(StartError::Compressed { vmm: NAME, kernel });
    }
    let configuration = configuration(hardware)?;
    let path = hardware.folder.join("machine.json");
    fs::write(&path, configuration.to_string()).map_err(|source| StartError::Write {
        path: path.clone(),
        source,
    })?;
    let arguments = vec!["--no-api".to_owned(), "--config-file".to_owned(), text(&path)?];
    Ok(Vmm::new(start("console", program, arguments, None).await?, None))
}

fn configuration(hardware: &Hardware) -> Result<Value, StartError> {
    if hardware.network != Network::None {
        return Err(StartError::NoNetwork {
            vmm: NAME,
            why: "that needs a tap device, which polyinit doesn't make; use --vmm qemu",
        });
    }
    let drives = hardware.drives.iter().enumerate().map(|(number, drive)| {
        Ok(json!({
            "drive_id": format!("drive{number}"),
            "path_on_host": text(&drive.path)?,
            // Firecracker puts this one first, as /dev/vda.
            "is_root_device": number == 0,
            "is_read_only": drive.read_only,
        }))
    });
    let mut configuration = json!({
        "boot-source": {
            "kernel_image_path": text(&hardware.kernel)?,
            // `k`: its keyboard controller is what Firecracker's machines are ended with.
            "boot_args": hardware.command_line("reboot=k pci=off"),
        },
        "drives": drives.collect::<Result<Vec<_>, StartError>>()?,
        "machine-config": {
            "vcpu_count": hardware.processors,
            "mem_size_mib": hardware.memory,
        },
        "vsock": {
            "guest_cid": GUEST_CID,
            "uds_path": text(&hardware.vsock())?,
        },
    });
    if let Some(initramfs) = &hardware.initramfs {
        configuration["boot-source"]["initrd_path"] = text(initramfs)?.into();
    }
    Ok(configuration)
}

#[cfg(test)]
mod tests {
    use super::super::hardware::Drive;
    use super::*;

    fn hardware() -> Hardware {
        Hardware {
            kernel: "/k/vmlinux".into(),
            initramfs: None,
            memory: 128,
            processors: 1,
            drives: vec![
                Drive {
                    path: "/root.squashfs".into(),
                    read_only: true,
                },
                Drive {
                    path: "/data.ext4".into(),
                    read_only: false,
                },
            ],
            network: Network::None,
            forwards: Vec::new(),
            append: String::new(),
            folder: "/run/m".into(),
        }
    }

    #[test]
    fn describes_the_machine_as_firecracker_reads_it() {
        let configuration = configuration(&hardware()).unwrap();
        assert_eq!(configuration["boot-source"]["kernel_image_path"], "/k/vmlinux");
        assert_eq!(configuration["boot-source"].get("initrd_path"), None);
        let arguments = configuration["boot-source"]["boot_args"].as_str().unwrap();
        assert!(arguments.contains("reboot=k") && arguments.contains("root=/dev/vda"));
        assert_eq!(configuration["drives"][0]["is_root_device"], true);
        assert_eq!(configuration["drives"][1]["is_root_device"], false);
        assert_eq!(configuration["drives"][1]["is_read_only"], false);
        assert_eq!(configuration["machine-config"]["mem_size_mib"], 128);
        assert_eq!(configuration["vsock"]["uds_path"], "/run/m/v");
    }

    #[test]
    fn an_initramfs_says_itself_what_the_root_is() {
        let hardware = Hardware {
            initramfs: Some("/run/m/initramfs".into()),
            ..hardware()
        };
        let configuration = configuration(&hardware).unwrap();
        assert_eq!(configuration["boot-source"]["initrd_path"], "/run/m/initramfs");
        assert!(
            !configuration["boot-source"]["boot_args"]
                .as_str()
                .unwrap()
                .contains("root=")
        );
    }
}
