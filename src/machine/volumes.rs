//! Block devices with file systems on them: the program's code and the user's disks. Mounted when the configuration
//! names them, let go at halt.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::superblock::{self, FileSystem};
use super::{modules, mount_table};

/// A block device, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Name below /dev (`vdb`), or whole path.
    pub device: String,
    /// Where to, absolute. Made if missing.
    pub mount: String,
    pub read_only: bool,
}

/// How long a device may take to appear after the configuration that names it.
pub const DEVICE_PATIENCE: Duration = Duration::from_secs(2);

/// How often a missing device is looked for. Only a device that is plugged in late costs anything at all.
const DEVICE_POLL: Duration = Duration::from_millis(5);

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("volume {device} on `{point}`: the mount point must be an absolute path below /, without `..`")]
    BadPoint { device: String, point: String },
    #[error("volume `{device}` on {point}: the device must be a name below /dev, such as vdb")]
    BadDevice { device: String, point: String },
    #[error("volume {device} on {point}: there is no such device after {} s", .patience.as_secs_f32())]
    NoDevice {
        device: String,
        point: String,
        patience: Duration,
    },
    #[error("volume {device} on {point}: it is no block device")]
    NotABlockDevice { device: String, point: String },
    #[error("volume {device} on {point}: reading its first bytes failed: {source}")]
    Unreadable {
        device: String,
        point: String,
        source: io::Error,
    },
    #[error(
        "volume {device} on {point}: it holds none of the file systems {}",
        superblock::known()
    )]
    UnknownFileSystem { device: String, point: String },
    #[error("volume {device} on {point}: the mount point can't be made: {source}")]
    NoPoint {
        device: String,
        point: String,
        source: io::Error,
    },
    #[error("volume {device} on {point}: this kernel has no {file_system}")]
    NoFileSystem {
        device: String,
        point: String,
        file_system: &'static str,
    },
    #[error("volume {device} on {point}: mounting it {} as {file_system} failed: {errno}", writing(*.read_only))]
    Mount {
        device: String,
        point: String,
        file_system: &'static str,
        read_only: bool,
        errno: Errno,
    },
}

fn writing(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "writable" }
}

/// Mounts all of `volumes`, those nearer to the root first, so that none hides another. Blocks: see [`mount_volume`].
///
/// # Errors
/// With the first one that can't be mounted; those before it stay.
pub fn mount_all(volumes: &[Volume]) -> Result<(), VolumeError> {
    let mut ordered: Vec<&Volume> = volumes.iter().collect();
    ordered.sort_by_key(|volume| Path::new(&volume.mount).components().count());
    ordered
        .into_iter()
        .try_for_each(|volume| mount_volume(volume, DEVICE_PATIENCE))
}

/// Mounts one volume, and waits up to `patience` for its device. Blocks, also for as long as the kernel needs to
/// bring the file system into order: not for a thread that others wait for.
///
/// # Errors
/// Each names the device, the mount point and, where one is known, the file system.
pub fn mount_volume(volume: &Volume, patience: Duration) -> Result<(), VolumeError> {
    let attempt = Attempt::new(volume)?;
    attempt.wait_for_device(patience)?;
    let file_system = attempt.probe()?;
    attempt.make_point()?;
    attempt.mount(file_system)
}

/// One volume on its way, with the words for an error about it.
#[derive(Debug)]
struct Attempt {
    device: PathBuf,
    point: PathBuf,
    read_only: bool,
}

impl Attempt {
    fn new(volume: &Volume) -> Result<Self, VolumeError> {
        let point = PathBuf::from(&volume.mount);
        let mut parts = point.components();
        let absolute = parts.next() == Some(Component::RootDir);
        let names = parts.clone().count();
        if !absolute || names == 0 || !parts.all(|part| matches!(part, Component::Normal(_))) {
            return Err(VolumeError::BadPoint {
                device: volume.device.clone(),
                point: volume.mount.clone(),
            });
        }
        let device = Path::new("/dev").join(&volume.device);
        let named = device
            .strip_prefix("/dev")
            .is_ok_and(|name| name.components().count() > 0 && !volume.device.contains(".."));
        if !named {
            return Err(VolumeError::BadDevice {
                device: volume.device.clone(),
                point: volume.mount.clone(),
            });
        }
        Ok(Self {
            device,
            point,
            read_only: volume.read_only,
        })
    }

    /// Device and mount point as every error tells them.
    fn names(&self) -> (String, String) {
        (self.device.display().to_string(), self.point.display().to_string())
    }

    fn wait_for_device(&self, patience: Duration) -> Result<(), VolumeError> {
        let deadline = Instant::now() + patience;
        let (device, point) = self.names();
        if !self.device.exists() {
            tracing::info!("volume {device} on {point}: its device is not there yet");
        }
        loop {
            match fs::metadata(&self.device) {
                Ok(found) if found.file_type().is_block_device() => return Ok(()),
                Ok(_) => return Err(VolumeError::NotABlockDevice { device, point }),
                Err(_) if Instant::now() >= deadline => {
                    return Err(VolumeError::NoDevice {
                        device,
                        point,
                        patience,
                    });
                }
                Err(_) => std::thread::sleep(DEVICE_POLL),
            }
        }
    }

    fn probe(&self) -> Result<&'static FileSystem, VolumeError> {
        let (device, point) = self.names();
        match File::open(&self.device).and_then(|opened| superblock::recognise(&opened)) {
            Ok(Some(file_system)) => Ok(file_system),
            Ok(None) => Err(VolumeError::UnknownFileSystem { device, point }),
            Err(source) => Err(VolumeError::Unreadable { device, point, source }),
        }
    }

    fn make_point(&self) -> Result<(), VolumeError> {
        let (device, point) = self.names();
        fs::create_dir_all(&self.point).map_err(|source| VolumeError::NoPoint { device, point, source })
    }

    fn mount(&self, kind: &'static FileSystem) -> Result<(), VolumeError> {
        // Whoever filled the volume is not whoever made the image: nothing on it gains rights by being there.
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        if self.read_only {
            flags |= MsFlags::MS_RDONLY;
        }
        let attempt = |options| mount(Some(&self.device), &self.point, Some(kind.name), flags, options);
        let mut outcome = attempt(None);
        if outcome == Err(Errno::ENODEV) {
            for error in modules::load(&[kind.name]) {
                tracing::debug!("{error}");
            }
            outcome = attempt(None);
        }
        if outcome == Err(Errno::EROFS) && self.read_only && kind.without_recovery.is_some() {
            outcome = attempt(kind.without_recovery);
        }
        let (device, point) = self.names();
        let file_system = kind.name;
        outcome.map_err(|errno| match errno {
            Errno::ENODEV => VolumeError::NoFileSystem {
                device,
                point,
                file_system,
            },
            errno => VolumeError::Mount {
                device,
                point,
                file_system,
                read_only: self.read_only,
                errno,
            },
        })
    }
}

/// Lets go of every block device that can be written to, latest mount first, so that nothing is lost when the machine
/// ends: unmounts it, or, where something still uses it, makes it read-only. Gives back what could not be helped.
///
/// File systems without a block device end with the machine anyway. Only for the machine's own init: a mount made
/// read-only is read-only for everyone, a container's host included.
pub fn release_all() -> Vec<(PathBuf, Errno)> {
    let mut mounts = mount_table::read().unwrap_or_default();
    mounts.retain(|one| one.major != 0 && !one.read_only);
    mounts.sort_by_key(|one| Reverse(one.id));
    mounts
        .into_iter()
        .filter_map(|one| release(&one.point).err().map(|errno| (one.point, errno)))
        .collect()
}

fn release(point: &Path) -> Result<(), Errno> {
    umount2(point, MntFlags::empty()).or_else(|_| {
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, point, None::<&str>, read_only, None::<&str>)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use std::os::fd::AsRawFd;
    use std::process::Command;

    fn volume(device: &str, mount: &str) -> Volume {
        Volume {
            device: device.to_owned(),
            mount: mount.to_owned(),
            read_only: false,
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for point in ["", "/", "opt", "/opt/../etc", "./x", "/.."] {
            let error = Attempt::new(&volume("vdb", point)).expect_err(point).to_string();
            assert!(error.contains("mount point must be an absolute path"), "{error}");
        }
        for device in ["", "/etc/shadow", "../etc/shadow", "a/../../x"] {
            let error = Attempt::new(&volume(device, "/opt")).expect_err(device).to_string();
            assert!(error.contains("must be a name below /dev"), "{error}");
        }
        let good = Attempt::new(&volume("/dev/vdb", "/opt/code")).expect("good");
        assert_eq!(good.device, Path::new("/dev/vdb"));
    }

    #[test]
    fn a_device_that_never_comes_is_named_after_the_time_allowed() {
        let patience = Duration::from_millis(20);
        let start = Instant::now();
        let error = mount_volume(&volume("polyinit-none", "/opt/x"), patience).expect_err("no device");
        assert!(start.elapsed() >= patience);
        assert_eq!(
            error.to_string(),
            "volume /dev/polyinit-none on /opt/x: there is no such device after 0.02 s"
        );
        let error = mount_volume(&volume("null", "/opt/x"), patience).expect_err("no disk");
        assert_eq!(error.to_string(), "volume /dev/null on /opt/x: it is no block device");
    }

    nix::ioctl_none_bad!(loop_clear, 0x4c01);

    /// A loop device (loop(4)), free again when dropped or, if it is mounted then, when unmounted.
    struct Loop {
        path: String,
        device: File,
    }

    impl Loop {
        /// A device over `image`; whether there is one to be had is for the machine to say.
        fn over(image: &Path) -> Option<Self> {
            let output = Command::new("losetup")
                .args(["--find", "--show"])
                .arg(image)
                .output()
                .ok()?;
            if !output.status.success() {
                eprintln!("SKIPPED: no loop device: {}", String::from_utf8_lossy(&output.stderr));
                return None;
            }
            let path = String::from_utf8(output.stdout).expect("a path").trim().to_owned();
            let device = File::open(&path).expect("the loop device");
            Some(Self { path, device })
        }
    }

    impl Drop for Loop {
        #[allow(unsafe_code)]
        fn drop(&mut self) {
            // SAFETY: LOOP_CLR_FD takes no argument, and the descriptor is open.
            unsafe { loop_clear(self.device.as_raw_fd()) }.expect("the loop device is given back");
        }
    }

    fn made_by(tool: &str, arguments: &[&str], image: &Path, folder: Option<&Path>) -> bool {
        let mut command = Command::new(tool);
        if let Some(folder) = folder {
            command.arg(folder);
        }
        match command.arg(image).args(arguments).output() {
            Ok(output) => {
                assert!(output.status.success(), "{output:?}");
                true
            }
            Err(e) => {
                eprintln!("SKIPPED: {tool}: {e}");
                false
            }
        }
    }

    #[test]
    fn an_ext4_disk_is_mounted_written_and_released() {
        isolated(
            "machine::volumes::tests::an_ext4_disk_is_mounted_written_and_released",
            &[Namespace::Mount],
            || {
                let base = tempfile::tempdir().expect("a folder");
                let image = base.path().join("disk");
                File::create(&image).expect("a file").set_len(8 << 20).expect("8 MiB");
                if !made_by("mkfs.ext4", &["-q"], &image, None) {
                    return;
                }
                let Some(device) = Loop::over(&image) else { return };
                // The root of this namespace is the machine's own: only what is mounted here may be let go.
                let point = base.path().join("a/b");
                let mut disk = volume(&device.path, point.to_str().expect("text"));
                mount_volume(&disk, DEVICE_PATIENCE).expect("mounted");
                fs::write(point.join("file"), "kept").expect("writable");
                release(&point).expect("released");
                assert!(!mount_table::is_mount_point(&point));

                disk.read_only = true;
                mount_volume(&disk, DEVICE_PATIENCE).expect("mounted again");
                assert_eq!(fs::read_to_string(point.join("file")).expect("there"), "kept");
                fs::write(point.join("file"), "changed").expect_err("read-only");
                release(&point).expect("released");

                disk.read_only = false;
                mount_volume(&disk, DEVICE_PATIENCE).expect("mounted a third time");
                let busy = File::open(point.join("file")).expect("open");
                release(&point).expect("made read-only");
                fs::write(point.join("file"), "changed").expect_err("read-only");
                drop(busy);
                release(&point).expect("released");
            },
        );
    }

    #[test]
    fn a_late_device_is_waited_for_and_a_broken_one_named() {
        isolated(
            "machine::volumes::tests::a_late_device_is_waited_for_and_a_broken_one_named",
            &[Namespace::Mount],
            || {
                let base = tempfile::tempdir().expect("a folder");
                let image = base.path().join("disk");
                File::create(&image).expect("a file").set_len(8 << 20).expect("8 MiB");
                if !made_by("mkfs.ext4", &["-q"], &image, None) {
                    return;
                }
                let Some(device) = Loop::over(&image) else { return };
                let name = format!("polyinit-late-{}", std::process::id());
                let late = Path::new("/dev").join(&name);
                let point = base.path().join("point");
                let disk = volume(&name, point.to_str().expect("text"));
                // It comes when somebody has looked for it in vain, which is why there is a time to wait.
                let comes = std::thread::spawn({
                    let (target, late) = (device.path.clone(), late.clone());
                    move || {
                        std::thread::sleep(DEVICE_POLL * 10);
                        std::os::unix::fs::symlink(target, late)
                    }
                });
                let mounted = mount_volume(&disk, DEVICE_PATIENCE);
                comes.join().expect("no panic").expect("a link");
                fs::remove_file(&late).expect("the link is ours");
                mounted.expect("mounted");
                release(&point).expect("released");

                // The superblock's magic, and nothing behind it.
                let broken = base.path().join("broken");
                let file = File::create(&broken).expect("a file");
                file.set_len(8 << 20).expect("8 MiB");
                std::os::unix::fs::FileExt::write_all_at(&file, &[0x53, 0xef], 1024 + 0x38).expect("written");
                let Some(device) = Loop::over(&broken) else { return };
                let error = mount_volume(&volume(&device.path, disk.mount.as_str()), DEVICE_PATIENCE);
                let error = error.expect_err("no file system").to_string();
                let expected = format!(
                    "volume {} on {}: mounting it writable as ext4 failed: E",
                    device.path,
                    point.display()
                );
                assert!(error.starts_with(&expected), "{error}");
            },
        );
    }

    #[test]
    fn at_halt_every_disk_is_released_the_busy_ones_too() {
        isolated(
            "machine::volumes::tests::at_halt_every_disk_is_released_the_busy_ones_too",
            &[Namespace::Mount],
            || {
                let base = tempfile::tempdir().expect("a folder");
                let devices: Vec<Loop> = ["one", "two"]
                    .iter()
                    .filter_map(|name| {
                        let image = base.path().join(name);
                        File::create(&image).expect("a file").set_len(8 << 20).expect("8 MiB");
                        made_by("mkfs.ext4", &["-q"], &image, None)
                            .then(|| Loop::over(&image))
                            .flatten()
                    })
                    .collect();
                let [one, two] = devices.as_slice() else { return };
                // The machine's own disks must be out of reach: a root of our own that sees none of them.
                let root = tempfile::tempdir().expect("a folder").keep();
                let tmpfs = |point: &Path| {
                    mount(Some("t"), point, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a tmpfs");
                };
                tmpfs(&root);
                for (directory, source) in [("dev", "/dev"), ("proc", "/proc")] {
                    fs::create_dir(root.join(directory)).expect("a folder");
                    let bind = MsFlags::MS_BIND;
                    mount(Some(source), &root.join(directory), None::<&str>, bind, None::<&str>).expect("bound");
                }
                crate::machine::root::tests::switch_to(&root);

                let free = volume(&one.path, "/free");
                let busy = volume(&two.path, "/free/busy");
                mount_all(&[busy, free]).expect("the nearer one first");
                fs::write("/free/kept", "kept").expect("writable");
                fs::write("/free/busy/open", "").expect("writable");
                let reading = File::open("/free/busy/open").expect("open");
                let disks: Vec<_> = mount_table::read()
                    .expect("table")
                    .into_iter()
                    .filter(|one| one.major != 0)
                    .map(|one| one.point)
                    .collect();
                assert_eq!(
                    disks,
                    [Path::new("/free"), Path::new("/free/busy")],
                    "nothing else may be let go"
                );

                assert_eq!(release_all(), []);
                let left = mount_table::read().expect("table");
                assert!(left.iter().all(|one| one.major == 0 || one.read_only), "{left:?}");
                fs::write("/free/busy/open", "x").expect_err("read-only");
                drop(reading);
                for point in ["/free/busy", "/free"] {
                    umount2(point, MntFlags::empty()).expect(point);
                }
            },
        );
    }

    #[test]
    fn a_squashfs_is_mounted_and_a_disk_of_zeroes_is_not() {
        isolated(
            "machine::volumes::tests::a_squashfs_is_mounted_and_a_disk_of_zeroes_is_not",
            &[Namespace::Mount],
            || {
                let base = tempfile::tempdir().expect("a folder");
                let (image, folder) = (base.path().join("image"), base.path().join("folder"));
                fs::create_dir(&folder).expect("a folder");
                fs::write(folder.join("main.py"), "app").expect("a file");
                let point = base.path().join("code");
                if made_by("mksquashfs", &["-quiet", "-no-progress"], &image, Some(&folder)) {
                    let Some(device) = Loop::over(&image) else { return };
                    let code = volume(&device.path, point.to_str().expect("text"));
                    mount_volume(&code, DEVICE_PATIENCE).expect("mounted");
                    assert_eq!(fs::read_to_string(point.join("main.py")).expect("there"), "app");
                    release(&point).expect("released");
                }

                let zeroes = base.path().join("zeroes");
                File::create(&zeroes).expect("a file").set_len(1 << 20).expect("1 MiB");
                let Some(device) = Loop::over(&zeroes) else { return };
                let error = mount_volume(&volume(&device.path, "/opt/x"), DEVICE_PATIENCE).expect_err("nothing there");
                assert_eq!(
                    error.to_string(),
                    format!(
                        "volume {} on /opt/x: it holds none of the file systems \
                         squashfs, ext4, erofs, xfs, btrfs",
                        device.path
                    )
                );
            },
        );
    }
}
