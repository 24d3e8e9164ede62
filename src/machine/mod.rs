//! PID 1's duties: what a machine needs before a program can run in it, while it runs, and when it ends.
//!
//! Nothing here knows of events, engines or the host's wire: plain values come in, the kernel is told. Each module is
//! one duty; [`prepare`] is their order at boot.
//!
//! ```text
//! exec of init -> prepare: mounts, options, console, root, mounts -> reaper::live(life of init)
//! configuration -> hostname, network, volumes, keys
//! halt          -> power::restart (processes::end_all, volumes::release_all, sync, reboot)
//! ```

pub mod cgroup;
pub mod clock;
pub mod console;
pub mod crash;
pub mod hostname;
pub mod keys;
pub mod login;
pub mod modules;
pub mod mount_table;
pub mod mounts;
pub mod network;
pub mod options;
pub mod power;
pub mod processes;
pub mod reaper;
pub mod root;
pub mod superblock;
pub mod sysctl;
pub mod volumes;

#[cfg(test)]
pub(crate) mod isolation;

/// What [`prepare`] made of the machine, to be logged once there is a log.
#[derive(Debug)]
pub struct Prepared {
    /// What the machine's owner chose.
    pub options: options::Options,
    /// What of that can't be followed.
    pub mistakes: Vec<options::OptionError>,
    /// How the root came to be writable, or why it did not.
    pub root: Result<root::Root, root::RootError>,
    /// What the kernel or the image lacks.
    pub skipped: Vec<mounts::Skipped>,
}

/// Everything between the kernel's exec of init and the first line of log: file systems, console, a writable root.
///
/// Never fails: a machine with half of its file systems can still say so to its host. Call it before the first thread
/// is started and before any file is opened that should be on the writable root.
pub fn prepare() -> Prepared {
    // Where the root is read-only and lacks a directory, this first round leaves a gap that the last one fills.
    mounts::mount_kernel();
    crash::restart_on_crash();
    let (options, mistakes) = options::read();
    console::attach(options.console.as_deref());
    let root = root::make_writable(options.root_size.as_deref());
    let mut skipped = mounts::mount_kernel();
    skipped.extend(mounts::mount_runtime());
    skipped.extend(mounts::link_devices());
    console::quieten_kernel();
    power::reboot_on_kernel_panic();
    power::take_ctrl_alt_del();
    Prepared {
        options,
        mistakes,
        root,
        skipped,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::isolation::{Namespace, isolated};
    use super::*;

    #[test]
    fn an_image_of_empty_directories_becomes_a_machine() {
        isolated(
            "machine::tests::an_image_of_empty_directories_becomes_a_machine",
            &[Namespace::Mount],
            || {
                root::tests::enter_read_only_root(&["dev", "proc", "sys", "run"]);
                let prepared = prepare();
                assert_eq!(prepared.root.expect("a writable root"), root::Root::Overlay);
                let surprising: Vec<_> = prepared
                    .skipped
                    .iter()
                    .map(ToString::to_string)
                    .filter(|sentence| !sentence.starts_with("/sys/fs/cgroup"))
                    .collect();
                assert_eq!(surprising, [] as [&str; 0]);
                for point in ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"] {
                    assert!(mount_table::is_mount_point(Path::new(point)), "{point}");
                }
                for directory in ["/opt/code", "/data", "/etc", "/root", "/tmp", "/run"] {
                    fs::write(Path::new(directory).join("x"), "x").expect(directory);
                }
                assert!(fs::read_link("/dev/fd").is_ok_and(|to| to == Path::new("/proc/self/fd")));
            },
        );
    }
}
