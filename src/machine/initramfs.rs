//! `/init` of an initramfs, between the kernel and `/sbin/init`: for kernels that have their drivers as modules.
//!
//! A kernel made for microVMs has virtio, vsock and squashfs built in, mounts the root file system itself and starts
//! `/sbin/init`. A distribution's kernel can do none of it before its modules are loaded. `host::initramfs` then
//! packs this program as `/init` beside the modules and a [`Plan`]; what happens here ends in `/sbin/init` of the real
//! root file system, as if the kernel had come there by itself.

use std::convert::Infallible;
use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, execv};

use super::power;

/// Where the initramfs keeps its [`Plan`]. Its presence tells `/init` that it is in one.
pub const PLAN: &str = "/boot.plan";

/// What PID 1 is in the real root file system.
pub const NEXT: &str = "/sbin/init";

const NEW_ROOT: &str = "/new-root";

/// How long the root's device may take to appear once its driver is loaded.
const DEVICE_DEADLINE: Duration = Duration::from_secs(10);

/// What is to be done, in the order of its lines: `module FILE` for each, then `root DEVICE FILESYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Absolute paths, each after what it depends on.
    pub modules: Vec<PathBuf>,
    /// Below /dev: `/dev/vda`.
    pub device: PathBuf,
    /// As mount(2) names it: `squashfs`.
    pub filesystem: String,
}

/// Why the machine can't come to its root file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {PLAN}: {0}")]
    ReadPlan(#[source] io::Error),
    #[error("line {line:?} of {PLAN} is neither `module FILE` nor `root DEVICE FILESYSTEM`")]
    Line { line: String },
    #[error("{PLAN} has no line `root DEVICE FILESYSTEM`")]
    NoRoot,
    #[error("can't open the kernel module {}: {source}", module.display())]
    OpenModule { module: PathBuf, source: io::Error },
    #[error("the kernel refuses its module {}: {source}; is it of the same build as the kernel?", module.display())]
    LoadModule { module: PathBuf, source: Errno },
    #[error("can't make {path}: {source}")]
    MakeDirectory { path: &'static str, source: io::Error },
    #[error("can't mount {what}: {source}")]
    Mount { what: String, source: Errno },
    #[error("{} did not appear within {} s: is the disk's driver among the modules?", device.display(), DEVICE_DEADLINE.as_secs())]
    NoDevice { device: PathBuf },
    #[error("can't make the mounted file system the root: {0}")]
    SwitchRoot(#[source] Errno),
    #[error("can't start {NEXT} of the root file system: {0}")]
    Exec(#[source] Errno),
}

/// Whether this process stands in an initramfs made by `host::initramfs`.
pub fn is_here() -> bool {
    Path::new(PLAN).exists()
}

/// Goes all the way to `/sbin/init`, in this process. Where that fails, says why and ends the machine.
pub fn leave() -> ! {
    let Err(error) = go();
    power::fail(&format!("no way out of the initramfs: {error}"))
}

/// Returns only if a step fails.
fn go() -> Result<Infallible, Error> {
    let plan: Plan = fs::read_to_string(PLAN).map_err(Error::ReadPlan)?.parse()?;
    make_directory("/dev")?;
    match mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::empty()) {
        // The kernel did it already (CONFIG_DEVTMPFS_MOUNT).
        Err(Errno::EBUSY) => Ok(()),
        other => other,
    }
    .map_err(mount_error("the kernel's device files on /dev"))?;
    for module in &plan.modules {
        load(module)?;
    }
    wait_for(&plan.device)?;
    make_directory(NEW_ROOT)?;
    mount_at(&plan.device, NEW_ROOT, &plan.filesystem, MsFlags::MS_RDONLY).map_err(mount_error(format!(
        "{} as {}",
        plan.device.display(),
        plan.filesystem
    )))?;
    switch_root(&plan)?;
    let next = CString::new(NEXT).map_err(|_| Error::Exec(Errno::EINVAL))?;
    execv(&next, &[&next]).map_err(Error::Exec)
}

fn make_directory(path: &'static str) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Error::MakeDirectory { path, source }),
        _ => Ok(()),
    }
}

fn mount_at(source: impl AsRef<Path>, target: &str, filesystem: &str, flags: MsFlags) -> nix::Result<()> {
    mount(Some(source.as_ref()), target, Some(filesystem), flags, None::<&str>)
}

fn mount_error(what: impl Into<String>) -> impl FnOnce(Errno) -> Error {
    let what = what.into();
    |source| Error::Mount { what, source }
}

fn load(module: &Path) -> Result<(), Error> {
    let file = File::open(module).map_err(|source| Error::OpenModule {
        module: module.to_owned(),
        source,
    })?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // Built in, or loaded by the kernel on its own.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(source) => Err(Error::LoadModule {
            module: module.to_owned(),
            source,
        }),
    }
}

/// Nearly always there at once: drivers probe their devices while they are loaded. The kernel tells nobody of a new
/// node in /dev whom we could wait for without a netlink socket, so that the rare case looks again every few ms.
fn wait_for(device: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + DEVICE_DEADLINE;
    while !device.exists() {
        if Instant::now() > deadline {
            return Err(Error::NoDevice {
                device: device.to_owned(),
            });
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// As switch_root(8) of util-linux does: /dev goes along, the files here are removed, since nothing else would give
/// their memory back (a fifth of the smallest machine's), and the new root is moved over the old one, which pivot_root(2)
/// can't do with an initramfs.
fn switch_root(plan: &Plan) -> Result<(), Error> {
    let dev = format!("{NEW_ROOT}/dev");
    let moved = mount(Some("/dev"), dev.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>);
    if moved.is_err() {
        // An image without /dev: whoever is /sbin/init there sees to it.
        umount2("/dev", MntFlags::MNT_DETACH).map_err(Error::SwitchRoot)?;
    }
    for file in plan
        .modules
        .iter()
        .map(PathBuf::as_path)
        .chain([Path::new(PLAN), Path::new("/init")])
    {
        // What can't be removed costs memory, nothing else.
        let _ = fs::remove_file(file);
    }
    chdir(NEW_ROOT).map_err(Error::SwitchRoot)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(Error::SwitchRoot)?;
    chroot(".").map_err(Error::SwitchRoot)?;
    chdir("/").map_err(Error::SwitchRoot)
}

impl FromStr for Plan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut modules = Vec::new();
        let mut root = None;
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["module", file] => modules.push(file.into()),
                ["root", device, filesystem] => root = Some((device.into(), filesystem.to_owned())),
                _ => return Err(Error::Line { line: line.to_owned() }),
            }
        }
        let (device, filesystem) = root.ok_or(Error::NoRoot)?;
        Ok(Self {
            modules,
            device,
            filesystem,
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for module in &self.modules {
            writeln!(f, "module {}", module.display())?;
        }
        writeln!(f, "root {} {}", self.device.display(), self.filesystem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_back_as_written() {
        let plan = Plan {
            modules: vec!["/modules/virtio.ko".into(), "/modules/virtio_blk.ko".into()],
            device: "/dev/vda".into(),
            filesystem: "squashfs".into(),
        };
        assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
    }

    #[test]
    fn a_plan_that_is_none_is_told() {
        let error = |text: &str| text.parse::<Plan>().unwrap_err().to_string();
        assert!(error("modul /a.ko\n").contains("\"modul /a.ko\""));
        assert!(error("module /a.ko\n").contains("no line `root"));
    }
}
