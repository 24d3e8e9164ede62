//! Whether this host's KVM boots a kernel. That /dev/kvm is there doesn't say: where this host is itself a machine, it
//! may know too few instructions for any kernel, which shows only when one is tried.

use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::cli;

/// Whether to try: /dev/kvm may be used by this user, and has not failed since this host was booted.
pub fn is_worth_trying() -> bool {
    may_be_used().is_ok() && !failed_before()
}

/// Whether /dev/kvm is there, and may be used by this user.
///
/// # Errors
/// Why not.
pub fn may_be_used() -> Result<(), Errno> {
    access("/dev/kvm", AccessFlags::R_OK | AccessFlags::W_OK)
}

/// Notes that it failed, so that the next start loses no time with it. That it can't be noted is no harm.
pub fn note_failure() {
    let (Some(file), Some(boot)) = (note(), boot_id()) else {
        return;
    };
    if let Some(folder) = file.parent() {
        let _ = fs::create_dir_all(folder);
    }
    let _ = fs::write(file, boot);
}

fn failed_before() -> bool {
    let noted = note().and_then(|file| fs::read_to_string(file).ok());
    noted.is_some() && noted == boot_id()
}

fn note() -> Option<PathBuf> {
    Some(cli::cache_directory()?.join("kvm-boots-no-kernel"))
}

/// Another one after each boot of this host (random(4)).
fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}
