//! A root that programs can write to, over an image that nobody can: between the kernel's file systems and everything
//! that wants to write.
//!
//! ```text
//! /            overlay: lower the image, upper a tmpfs
//! /rom         the image itself
//! /dev, ...    moved along from the image's root
//! ```
//!
//! A root that can be written to already is left alone. Where the kernel has no overlay, single directories get a
//! tmpfs with a copy of what the image has there.
//!
//! pivot_root(2) asks that the present root is a mount with a parent: so it is where the kernel mounted it and where
//! an initramfs switched to it (MS_MOVE onto `/`, then chroot). Only a root that is the initramfs itself has none, and
//! that one is writable.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};
use walkdir::WalkDir;

use super::mount_table::{self, is_mount_point};

/// Where the image is to be found under an overlay.
pub const IMAGE: &str = "/rom";

/// What the root has become.
#[derive(Debug, PartialEq, Eq)]
pub enum Root {
    /// It could be written to from the start.
    Writable,
    /// An overlay; the image is at [`IMAGE`].
    Overlay,
    /// No overlay in this kernel: only these directories, and those that are a tmpfs anyway, can be written to.
    Patched { writable: Vec<PathBuf>, why: Errno },
}

/// Why the root stays read-only.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("can't tell whether the root is read-only: statvfs: {0}")]
    Unknown(Errno),
    #[error("the image has no empty directory to build a writable root in; add one of {STAGES:?}")]
    NoStage,
    #[error("mounting a tmpfs on {stage} for the writable root failed: {errno}")]
    Stage { stage: &'static str, errno: Errno },
    #[error("making {path} on the writable layer failed: {source}", path = .path.display())]
    Layer { path: PathBuf, source: io::Error },
    #[error("changing to the writable root failed: pivot_root: {0}")]
    Pivot(Errno),
    #[error("the root is read-only, and not allowed to change: mount: {0}")]
    NotAllowed(Errno),
}

/// Directories that can lend themselves as mount point while the new root is built. Any image has one.
const STAGES: [&str; 6] = ["/run", "/mnt", "/tmp", "/media", "/srv", "/proc"];

/// Without an overlay: directories that programs, or the machine's own set-up, write to.
const PATCHED: [&str; 7] = ["/etc", "/opt", "/data", "/root", "/home", "/var", "/srv"];

/// The largest directory, in bytes of its files, that is copied to memory for want of an overlay.
const COPY_LIMIT: u64 = 16 << 20;

/// Mount points and directories that programs expect; made where the image lacks them.
const EXPECTED: [(&str, u32); 13] = [
    ("/dev", 0o755),
    ("/proc", 0o555),
    ("/sys", 0o555),
    ("/run", 0o755),
    ("/tmp", 0o1777),
    ("/etc", 0o755),
    ("/opt", 0o755),
    ("/opt/code", 0o755),
    ("/data", 0o755),
    ("/root", 0o700),
    ("/var", 0o755),
    ("/var/tmp", 0o1777),
    ("/mnt", 0o755),
];

/// Makes the root writable if it isn't. `size` limits what is written, as the option of a tmpfs has it (tmpfs(5)); half
/// of the memory without.
///
/// # Errors
/// When neither way works; the root is then as it was.
pub fn make_writable(size: Option<&str>) -> Result<Root, RootError> {
    if !is_read_only()? {
        return Ok(Root::Writable);
    }
    let stage = STAGES
        .into_iter()
        .find(|stage| Path::new(stage).is_dir() && !is_mount_point(Path::new(stage)))
        .ok_or(RootError::NoStage)?;
    let options = format!("mode=0755,size={}", size.unwrap_or("50%"));
    let tmpfs = mount(
        Some("tmpfs"),
        stage,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    match tmpfs {
        Ok(()) => {}
        Err(errno @ (Errno::EPERM | Errno::EACCES)) => return Err(RootError::NotAllowed(errno)),
        Err(errno) => return Err(RootError::Stage { stage, errno }),
    }
    let outcome = match mount_overlay(Path::new(stage)) {
        Ok(()) => pivot(stage),
        Err(OverlayError::Kernel(why)) => Ok(Root::Patched {
            writable: patch(Path::new(stage)),
            why,
        }),
        Err(OverlayError::Layer(error)) => Err(error),
    };
    if !matches!(outcome, Ok(Root::Overlay)) {
        // The binds of a patched root, if any, keep the tmpfs alive. Otherwise the root is now as it was.
        let _ = umount2(stage, MntFlags::MNT_DETACH);
    }
    outcome
}

fn is_read_only() -> Result<bool, RootError> {
    let root = statvfs("/").map_err(RootError::Unknown)?;
    Ok(root.flags().contains(FsFlags::ST_RDONLY))
}

enum OverlayError {
    /// The kernel refuses overlays.
    Kernel(Errno),
    Layer(RootError),
}

/// Mounts `stage`/root: the present root below, `stage`/upper above.
fn mount_overlay(stage: &Path) -> Result<(), OverlayError> {
    for (name, mode) in [("upper", 0o755), ("work", 0o700), ("root", 0o755)] {
        make_directory(&stage.join(name), mode).map_err(OverlayError::Layer)?;
    }
    let stage = stage.display();
    let layers = format!("lowerdir=/,upperdir={stage}/upper,workdir={stage}/work");
    mount(
        Some("overlay"),
        format!("{stage}/root").as_str(),
        Some("overlay"),
        MsFlags::empty(),
        Some(layers.as_str()),
    )
    .map_err(OverlayError::Kernel)
}

fn make_directory(path: &Path, mode: u32) -> Result<(), RootError> {
    fs::DirBuilder::new()
        .mode(mode)
        .create(path)
        // The mode again, for the umask has been at it.
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|source| RootError::Layer {
            path: path.to_owned(),
            source,
        })
}

/// Makes the overlay the root, and takes along what was mounted on the old one.
fn pivot(stage: &'static str) -> Result<Root, RootError> {
    let new_root = Path::new(stage).join("root");
    for (path, mode) in EXPECTED {
        let path = graft(&new_root, Path::new(path));
        if fs::symlink_metadata(&path).is_err() {
            make_directory(&path, mode)?;
        }
    }
    let image = graft(&new_root, Path::new(IMAGE));
    if !image.is_dir() {
        make_directory(&image, 0o755)?;
    }
    pivot_root(&new_root, &image).map_err(RootError::Pivot)?;
    chdir("/").map_err(RootError::Pivot)?;

    // The overlay holds its layers by itself: the stage needs no place any more.
    let stage = graft(Path::new(IMAGE), Path::new(stage));
    let _ = umount2(&stage, MntFlags::MNT_DETACH);
    for old in mounts_left_behind() {
        move_mount(&old);
    }
    Ok(Root::Overlay)
}

/// The mounts right on the old root, under their present names; those further up follow theirs.
fn mounts_left_behind() -> Vec<PathBuf> {
    // /proc itself is still below the old root.
    let moved_proc = move_mount(Path::new("/rom/proc"));
    let table = match mount_table::read() {
        Ok(table) if moved_proc => table,
        _ => {
            return ["/rom/dev", "/rom/sys", "/rom/run", "/rom/tmp"]
                .map(PathBuf::from)
                .into_iter()
                .filter(|path| is_mount_point(path))
                .collect();
        }
    };
    let Some(image) = table.iter().rfind(|one| one.point == Path::new(IMAGE)) else {
        return Vec::new();
    };
    let on_image = table.iter().filter(|one| one.parent == image.id);
    on_image.map(|one| one.point.clone()).collect()
}

/// Moves a mount from below [`IMAGE`] to the same place below `/`. What can't be moved stays there, of use to nobody.
fn move_mount(old: &Path) -> bool {
    let Ok(rest) = old.strip_prefix(IMAGE) else {
        return false;
    };
    mount(
        Some(old),
        &Path::new("/").join(rest),
        None::<&str>,
        MsFlags::MS_MOVE,
        None::<&str>,
    )
    .is_ok()
}

/// `path`, which is absolute, as it is called below `base`.
fn graft(base: &Path, path: &Path) -> PathBuf {
    base.join(path.strip_prefix("/").unwrap_or(path))
}

/// Binds a copy on `stage` over each directory that programs write to. Gives back those that it worked for.
fn patch(stage: &Path) -> Vec<PathBuf> {
    PATCHED
        .into_iter()
        .map(Path::new)
        .filter(|directory| directory.is_dir() && !is_mount_point(directory) && !stage.starts_with(directory))
        .filter(|directory| {
            let copy = graft(stage, directory);
            let bound = copy_tree(directory, &copy).and_then(|()| {
                Ok(mount(
                    Some(&copy),
                    *directory,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )?)
            });
            if bound.is_err() {
                let _ = fs::remove_dir_all(&copy);
            }
            bound.is_ok()
        })
        .map(Path::to_owned)
        .collect()
}

/// Copies directories, files and symbolic links with their owners and modes, up to [`COPY_LIMIT`].
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut copied = 0;
    for entry in WalkDir::new(from).same_file_system(true) {
        let entry = entry.map_err(io::Error::other)?;
        let metadata = entry.metadata().map_err(io::Error::other)?;
        let rest = entry.path().strip_prefix(from).map_err(io::Error::other)?;
        let target = if rest.as_os_str().as_bytes().is_empty() {
            to.to_owned()
        } else {
            to.join(rest)
        };
        if metadata.is_dir() {
            fs::create_dir(&target)?;
        } else if metadata.is_symlink() {
            symlink(fs::read_link(entry.path())?, &target)?;
        } else if metadata.is_file() {
            copied += metadata.len();
            if copied > COPY_LIMIT {
                return Err(io::Error::other("too large to copy to memory"));
            }
            fs::copy(entry.path(), &target)?;
        } else {
            continue;
        }
        std::os::unix::fs::lchown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
        if !metadata.is_symlink() {
            fs::set_permissions(&target, metadata.permissions())?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use nix::unistd::chroot;

    /// Makes `point` the root in the way of an initramfs.
    pub fn switch_to(point: &Path) {
        chdir(point).expect("chdir");
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).expect("move onto /");
        chroot(".").expect("chroot");
        chdir("/").expect("chdir");
    }

    /// A read-only root that holds `directories`, with /dev, /proc and a volume on it.
    pub fn enter_read_only_root(directories: &[&str]) {
        let base = tempfile::tempdir().expect("a folder").keep();
        mount(Some("t"), &base, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a tmpfs");
        for directory in directories {
            fs::create_dir_all(graft(&base, Path::new(directory))).expect("a directory");
        }
        fs::write(base.join("image-file"), "of the image").expect("a file");
        if base.join("etc").is_dir() {
            fs::write(base.join("etc/conf"), "of the image").expect("a file");
            fs::set_permissions(base.join("etc/conf"), fs::Permissions::from_mode(0o640)).expect("a mode");
            symlink("conf", base.join("etc/link")).expect("a link");
        }
        if base.join("dev").is_dir() {
            mount(
                Some("d"),
                &base.join("dev"),
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .expect("dev");
            fs::create_dir(base.join("dev/pts")).expect("pts");
            mount(
                Some("p"),
                &base.join("dev/pts"),
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .expect("pts");
        }
        if base.join("vol").is_dir() {
            mount(
                Some("v"),
                &base.join("vol"),
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .expect("volume");
            fs::write(base.join("vol/data"), "of the volume").expect("a file");
        }
        if base.join("proc").is_dir() {
            mount(
                Some("proc"),
                &base.join("proc"),
                Some("proc"),
                MsFlags::empty(),
                None::<&str>,
            )
            .expect("proc");
        }
        mount(
            None::<&str>,
            &base,
            None::<&str>,
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            None::<&str>,
        )
        .expect("read-only");
        switch_to(&base);
        fs::write("/x", "x").expect_err("the root is read-only");
    }

    #[test]
    fn a_read_only_root_becomes_an_overlay_with_its_mounts() {
        isolated(
            "machine::root::tests::a_read_only_root_becomes_an_overlay_with_its_mounts",
            &[Namespace::Mount, Namespace::Pid],
            || {
                enter_read_only_root(&["proc", "dev", "run", "vol", "etc"]);
                assert_eq!(make_writable(None).expect("a writable root"), Root::Overlay);

                fs::write("/x", "x").expect("the root is writable");
                fs::write("/etc/conf", "changed").expect("the image's files can be changed");
                assert_eq!(fs::read_to_string("/image-file").expect("image"), "of the image");
                assert_eq!(fs::read_to_string("/rom/etc/conf").expect("image"), "of the image");
                assert!(!Path::new("/rom/x").exists());
                assert_eq!(fs::read_to_string("/vol/data").expect("volume"), "of the volume");
                for moved in ["/dev", "/dev/pts", "/proc", "/vol"] {
                    assert!(is_mount_point(Path::new(moved)), "{moved}");
                }
                let table = mount_table::read().expect("/proc came along");
                let left: Vec<_> = table.iter().filter(|one| one.point.starts_with("/rom")).collect();
                assert_eq!(left.len(), 1, "{left:?}");
                // The stage lent its name only.
                assert!(!is_mount_point(Path::new("/run")));
                for (path, mode) in EXPECTED.iter().filter(|(path, _)| *path != "/proc") {
                    let found = fs::metadata(path).expect(path).mode() & 0o7777;
                    assert!(found == *mode || ["/dev"].contains(path), "{path} has mode {found:o}");
                }
            },
        );
    }

    #[test]
    fn an_image_with_nothing_but_one_directory_is_enough() {
        isolated(
            "machine::root::tests::an_image_with_nothing_but_one_directory_is_enough",
            &[Namespace::Mount],
            || {
                enter_read_only_root(&["proc"]);
                // As where the kernel has mounted nothing yet.
                let _ = umount2("/proc", MntFlags::MNT_DETACH);
                assert_eq!(make_writable(None).expect("a writable root"), Root::Overlay);
                fs::write("/opt/code/x", "x").expect("missing directories are made");
            },
        );
    }

    #[test]
    fn a_writable_root_is_left_alone() {
        isolated(
            "machine::root::tests::a_writable_root_is_left_alone",
            &[Namespace::Mount],
            || {
                let before = mount_table::read().expect("table");
                assert_eq!(make_writable(None).expect("no change"), Root::Writable);
                assert_eq!(mount_table::read().expect("table"), before);
            },
        );
    }

    #[test]
    fn without_overlay_directories_become_writable_copies() {
        isolated(
            "machine::root::tests::without_overlay_directories_become_writable_copies",
            &[Namespace::Mount, Namespace::Pid],
            || {
                enter_read_only_root(&["proc", "run", "etc", "opt/aleph"]);
                mount(Some("t"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a stage");
                let mut writable = patch(Path::new("/run"));
                umount2("/run", MntFlags::MNT_DETACH).expect("the stage can go");
                writable.sort();
                assert_eq!(writable, [Path::new("/etc"), Path::new("/opt")]);

                fs::write("/etc/conf", "changed").expect("writable");
                assert_eq!(fs::metadata("/etc/conf").expect("copied").mode() & 0o777, 0o640);
                assert_eq!(fs::read_link("/etc/link").expect("copied"), Path::new("conf"));
                fs::write("/opt/aleph/x", "x").expect("writable");
                fs::write("/y", "y").expect_err("the rest is as it was");
            },
        );
    }

    #[test]
    fn a_directory_too_large_for_memory_is_not_copied() {
        let base = tempfile::tempdir().expect("a folder");
        let from = base.path().join("from");
        fs::create_dir(&from).expect("a folder");
        let large = fs::File::create(from.join("large")).expect("a file");
        large.set_len(COPY_LIMIT + 1).expect("a sparse file");
        copy_tree(&from, &base.path().join("to")).expect_err("too large");
    }
}
