//! The file systems that come from the kernel, not from a disk: first thing at boot, flags as systemd sets them
//! (systemd's `src/shared/mount-setup.c` and `tmp.mount`; file-hierarchy(7)).
//!
//! What is mounted already is left alone, so a container's own /proc or /dev stays as the container made it. What the
//! kernel or the image lacks is skipped and reported: most programs never miss it.

use std::fs::Metadata;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use walkdir::WalkDir;

use super::mount_table::is_mount_point;

/// A file system, or a link, that is not there now; the machine goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum Skipped {
    #[error("{target}: the directory is missing and can't be made ({source}): add it to the image")]
    NoDirectory { target: &'static str, source: io::Error },
    #[error("{target}: this kernel has no {file_system}")]
    NoFileSystem {
        target: &'static str,
        file_system: &'static str,
    },
    #[error("{target}: not allowed to mount {file_system}: the container's own is used")]
    NotAllowed {
        target: &'static str,
        file_system: &'static str,
    },
    #[error("{target}: mounting {file_system} failed: {errno}")]
    Failed {
        target: &'static str,
        file_system: &'static str,
        errno: Errno,
    },
    #[error("{link}: the link to {to} can't be made: {source}")]
    NoLink {
        link: &'static str,
        to: &'static str,
        source: io::Error,
    },
}

struct KernelMount {
    target: &'static str,
    file_system: &'static str,
    flags: MsFlags,
    /// Tried in turn: older kernels refuse options that they don't know.
    options: &'static [&'static str],
}

const CLOSED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const SHARED_MEMORY: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_STRICTATIME);

/// Needed by everything after it, root and console first of all.
const KERNEL: [KernelMount; 3] = [
    KernelMount {
        target: "/proc",
        file_system: "proc",
        flags: CLOSED,
        options: &[""],
    },
    KernelMount {
        target: "/sys",
        file_system: "sysfs",
        flags: CLOSED,
        options: &[""],
    },
    KernelMount {
        target: "/dev",
        file_system: "devtmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_STRICTATIME),
        options: &["mode=0755"],
    },
];

/// Needed by programs; mounted once the root is the one that stays.
const RUNTIME: [KernelMount; 7] = [
    KernelMount {
        target: "/dev/pts",
        file_system: "devpts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        // Group 5 is `tty` on every distribution.
        options: &["mode=0620,gid=5,ptmxmode=0666"],
    },
    KernelMount {
        target: "/dev/shm",
        file_system: "tmpfs",
        flags: SHARED_MEMORY,
        options: &["mode=1777"],
    },
    KernelMount {
        target: "/dev/mqueue",
        file_system: "mqueue",
        flags: CLOSED,
        options: &[""],
    },
    KernelMount {
        target: "/run",
        file_system: "tmpfs",
        flags: SHARED_MEMORY,
        options: &["mode=0755"],
    },
    KernelMount {
        target: "/tmp",
        file_system: "tmpfs",
        flags: SHARED_MEMORY,
        options: &["mode=1777"],
    },
    KernelMount {
        target: "/sys/kernel/security",
        file_system: "securityfs",
        flags: CLOSED,
        options: &[""],
    },
    KernelMount {
        target: "/sys/fs/cgroup",
        file_system: "cgroup2",
        flags: CLOSED,
        options: &["nsdelegate,memory_recursiveprot", "nsdelegate", ""],
    },
];

/// What shells and programs expect in /dev beside the devices.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Mounts /proc, /sys and /dev.
pub fn mount_kernel() -> Vec<Skipped> {
    mount_each(&KERNEL)
}

/// Mounts what is in /dev and /sys, then /run and /tmp. The folders that the image has in /run are there afterwards, too:
/// servers expect theirs, such as /run/postgresql, where no service manager makes it for them.
pub fn mount_runtime() -> Vec<Skipped> {
    let folders = folders_below(Path::new("/run"));
    let skipped = mount_each(&RUNTIME);
    for (path, metadata) in folders {
        // One that is there is as it should be; without one that can't be made, most programs go on.
        if fs::create_dir(&path).is_ok() {
            let _ = chown(&path, Some(metadata.uid()), Some(metadata.gid()));
            let _ = fs::set_permissions(&path, metadata.permissions());
        }
    }
    skipped
}

/// Each before what is in it.
fn folders_below(path: &Path) -> Vec<(PathBuf, Metadata)> {
    WalkDir::new(path)
        .min_depth(1)
        .same_file_system(true)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_dir())
        .filter_map(|entry| Some((entry.path().to_owned(), entry.metadata().ok()?)))
        .collect()
}

/// Makes `/dev/fd`, `/dev/stdin` and its like.
pub fn link_devices() -> Vec<Skipped> {
    LINKS
        .iter()
        .filter_map(|&(link, to)| match symlink(to, link) {
            Ok(()) => None,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
            Err(source) => Some(Skipped::NoLink { link, to, source }),
        })
        .collect()
}

fn mount_each(wanted: &[KernelMount]) -> Vec<Skipped> {
    wanted.iter().filter_map(|one| one.mount().err()).collect()
}

impl KernelMount {
    fn mount(&self) -> Result<(), Skipped> {
        let &Self {
            target, file_system, ..
        } = self;
        let directory = Path::new(target);
        if is_mount_point(directory) {
            return Ok(());
        }
        if !directory.is_dir() {
            // The kernel makes a place in /sys for each file system that it has.
            if directory != "/sys" && directory.starts_with("/sys") {
                return Err(Skipped::NoFileSystem { target, file_system });
            }
            make_directory(directory).map_err(|source| Skipped::NoDirectory { target, source })?;
        }
        let mut refusal = Errno::EINVAL;
        for options in self.options {
            match mount(
                Some(file_system),
                directory,
                Some(file_system),
                self.flags,
                Some(*options),
            ) {
                Ok(()) => return Ok(()),
                Err(Errno::EINVAL) => refusal = Errno::EINVAL,
                Err(errno) => {
                    refusal = errno;
                    break;
                }
            }
        }
        Err(match refusal {
            Errno::ENODEV => Skipped::NoFileSystem { target, file_system },
            Errno::EPERM | Errno::EACCES => Skipped::NotAllowed { target, file_system },
            errno => Skipped::Failed {
                target,
                file_system,
                errno,
            },
        })
    }
}

fn make_directory(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use crate::machine::{mount_table, root};
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_empty_writable_root_gets_every_file_system_of_this_kernel_once() {
        isolated(
            "machine::mounts::tests::an_empty_writable_root_gets_every_file_system_of_this_kernel_once",
            &[Namespace::Mount, Namespace::Pid],
            || {
                let base = tempfile::tempdir().expect("a folder");
                let point = base.path();
                mount(Some("t"), point, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a tmpfs");
                root::tests::switch_to(point);
                fs::create_dir_all("/run/postgresql/x").expect("a folder of the image");
                fs::set_permissions("/run/postgresql", Permissions::from_mode(0o3777)).expect("its mode");

                let mut skipped = mount_kernel();
                skipped.extend(mount_runtime());
                skipped.extend(link_devices());
                skipped.extend(mount_kernel());
                skipped.extend(mount_runtime());
                skipped.extend(link_devices());
                let surprising = skipped
                    .iter()
                    .filter(|one| !matches!(one, Skipped::NoFileSystem { .. }))
                    .collect::<Vec<_>>();
                // A machine whose cgroups are of version 1 may refuse to have version 2 twice.
                assert!(
                    surprising
                        .iter()
                        .all(|one| one.to_string().starts_with("/sys/fs/cgroup")),
                    "{surprising:?}"
                );

                let table = mount_table::read().expect("/proc is mounted");
                for target in ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"] {
                    let count = table.iter().filter(|one| one.point == Path::new(target)).count();
                    assert_eq!(count, 1, "{target}");
                }
                let mode = |path: &str| fs::metadata(path).expect(path).permissions().mode() & 0o7777;
                assert_eq!(mode("/tmp"), 0o1777);
                assert_eq!(mode("/dev/shm"), 0o1777);
                assert_eq!(mode("/run"), 0o755);
                assert_eq!(mode("/run/postgresql"), 0o3777);
                assert_eq!(mode("/run/postgresql/x"), 0o755);
                fs::write("/dev/stdout", "written through /dev/stdout\n").expect("the link works");
                fs::write("/dev/null", "x").expect("devices are there");
            },
        );
    }
}
