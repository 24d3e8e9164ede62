//! `/init` of an initramfs, between the kernel and `/sbin/init`: for kernels that have their drivers as modules.
//!
//! A kernel made for microVMs has virtio, vsock and squashfs built in, mounts the root file system itself and starts
//! `/sbin/init`. A distribution's kernel can do none of it before its modules are loaded. `host::initramfs` then
//! packs this program as `/init` beside the modules and a [`Plan`]; what happens here ends in `/sbin/init` of the real
//! root file system, as if the kernel had come there by itself.
//!
//! A program of its own, for the whole of an initramfs is unpacked to memory: polyinit itself would take a third of the
//! smallest machine. The build script compiles it, with nothing but the standard library, and `host::initramfs` holds
//! the result, so that there still is one binary to carry around.

mod plan;

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr::null;
use std::thread::sleep;
use std::time::{Duration, Instant};

use plan::{PLAN, Plan, Root};

/// What PID 1 is in the real root file system.
const NEXT: &str = "/sbin/init";
const NEW_ROOT: &str = "/new-root";

/// How long the root's device may take to appear once its driver is loaded.
const DEVICE_DEADLINE: Duration = Duration::from_secs(10);

/// From `linux/mount.h`, `sys/mount.h`, `asm-generic/errno-base.h` and `linux/reboot.h`.
const MS_RDONLY: c_ulong = 1;
const MS_NOSUID: c_ulong = 2;
const MS_MOVE: c_ulong = 8192;
const MS_STRICTATIME: c_ulong = 1 << 24;
const MNT_DETACH: c_int = 2;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const RESTART: c_int = 0x0123_4567;

#[cfg(target_arch = "x86_64")]
const SYS_FINIT_MODULE: c_long = 313;
/// Of the architectures that share one table (`asm-generic/unistd.h`): aarch64, riscv64.
#[cfg(not(target_arch = "x86_64"))]
const SYS_FINIT_MODULE: c_long = 273;

// Of the C library that the standard library brings along.
unsafe extern "C" {
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn reboot(how: c_int) -> c_int;
}

/// What was being done, and why it failed.
struct Failure {
    act: String,
    cause: String,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.act, self.cause)
    }
}

/// Goes all the way to `/sbin/init`, in this process. Where that fails, says why and restarts the machine, which is how
/// its VMM ends.
fn main() {
    let Err(failure) = go();
    eprintln!("polyinit: no way out of the initramfs: {failure}; restarting the machine");
    // SAFETY: takes a number and changes no memory of this process.
    unsafe { reboot(RESTART) };
}

/// Returns only if a step fails.
fn go() -> Result<Infallible, Failure> {
    let text = fs::read_to_string(PLAN).map_err(failed(format!("reading {PLAN}")))?;
    let plan: Plan = text.parse().map_err(failed(format!("following {PLAN}")))?;
    make_directory("/dev")?;
    match mount_at(c"devtmpfs", c"/dev", Some("devtmpfs"), MS_NOSUID | MS_STRICTATIME) {
        // The kernel did it already (CONFIG_DEVTMPFS_MOUNT).
        Err(error) if error.raw_os_error() == Some(EBUSY) => {}
        other => other.map_err(failed("mounting the kernel's device files on /dev"))?,
    }
    for module in &plan.modules {
        load(module).map_err(failed(format!(
            "loading the kernel module {} (is it of the same build as the kernel?)",
            module.display()
        )))?;
    }
    match &plan.root {
        Root::Device { device, filesystem } => {
            wait_for(device)?;
            make_directory(NEW_ROOT)?;
            mount_at(&text_of(device)?, c"/new-root", Some(filesystem), MS_RDONLY)
                .map_err(failed(format!("mounting {} as {filesystem}", device.display())))?;
            switch_root(&plan).map_err(failed("making the mounted file system the root"))?;
        }
        Root::Here => remove_files(&plan),
    }
    // As a kernel says that mounts the root itself: whoever measures can tell the image's part of the boot from ours.
    eprintln!("Run {NEXT} as init process");
    let error = Command::new(NEXT).exec();
    Err(failed(format!("starting {NEXT} of the root file system"))(error))
}

fn failed<E: Display>(act: impl Into<String>) -> impl FnOnce(E) -> Failure {
    let act = act.into();
    move |cause| Failure {
        act,
        cause: cause.to_string(),
    }
}

fn make_directory(path: &str) -> Result<(), Failure> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(format!("making {path}"))(error)),
        _ => Ok(()),
    }
}

fn text_of(path: &Path) -> Result<CString, Failure> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(failed(format!("naming {}", path.display())))
}

fn mount_at(source: &CStr, target: &CStr, kind: Option<&str>, flags: c_ulong) -> io::Result<()> {
    let kind = kind.map(CString::new).transpose()?;
    let kind = kind.as_deref().map_or(null(), CStr::as_ptr);
    // SAFETY: all three are C strings that live until the call is over, or null where mount(2) allows it.
    checked(unsafe { mount(source.as_ptr(), target.as_ptr(), kind, flags, null()) })
}

fn checked(outcome: c_int) -> io::Result<()> {
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn load(module: &Path) -> io::Result<()> {
    let file = File::open(module)?;
    // SAFETY: finit_module(2) takes a descriptor, a C string with no parameters in it, and flags.
    let outcome = unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0 as c_int) };
    match checked(if outcome == 0 { 0 } else { -1 }) {
        // Built in, or loaded by the kernel on its own.
        Err(error) if error.raw_os_error() == Some(EEXIST) => Ok(()),
        other => other,
    }
}

/// Nearly always there at once: drivers probe their devices while they are loaded. The kernel tells nobody of a new
/// node in /dev whom we could wait for without a netlink socket, so that the rare case looks again every few ms.
fn wait_for(device: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + DEVICE_DEADLINE;
    while !device.exists() {
        if Instant::now() > deadline {
            let seconds = DEVICE_DEADLINE.as_secs();
            let cause = format!("it did not appear within {seconds} s: is the disk's driver among the modules?");
            return Err(failed(format!("waiting for {}", device.display()))(cause));
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// As switch_root(8) of util-linux does: /dev goes along, the files here are removed, since nothing else would give
/// their memory back, and the new root is moved over the old one, which pivot_root(2) can't do with an initramfs.
fn switch_root(plan: &Plan) -> io::Result<()> {
    if mount_at(c"/dev", c"/new-root/dev", None, MS_MOVE).is_err() {
        // An image without /dev: whoever is /sbin/init there sees to it.
        // SAFETY: a C string that lives until the call is over.
        checked(unsafe { umount2(c"/dev".as_ptr(), MNT_DETACH) })?;
    }
    remove_files(plan);
    std::env::set_current_dir(NEW_ROOT)?;
    mount_at(c".", c"/", None, MS_MOVE)?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Gives back the memory of what has done its work: what can't be removed costs it, nothing else.
fn remove_files(plan: &Plan) {
    for file in plan.modules.iter().map(|module| module.as_path()).chain([Path::new(PLAN), Path::new("/init")]) {
        let _ = fs::remove_file(file);
    }
}
